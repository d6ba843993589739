//! Orders events by boot and time since boot, because the wall clock may be set.

use node::events::Record;
use std::collections::HashSet;

/// Boots that are told apart in one journal: what is in there may be anything.
const MOST: usize = 256;

/// The host's boots, in order. Journals tell of them in the order in which they were; where two journals have no boot in
/// common, the wall clock has to do.
#[derive(Debug, Default)]
pub(super) struct Boots(Vec<(String, f64)>);

impl Boots {
    /// Takes note of a journal's boots.
    pub(super) fn learn(&mut self, records: &[Record]) {
        let mut from = 0;
        let boots = distinct(records);
        for (index, (boot, at_ms)) in boots.iter().enumerate() {
            if let Some(known) = self.rank(boot) {
                from = known + 1;
                continue;
            }
            // After the one before it, before the next one that is known; between them by the wall clock.
            let later = boots[index..].iter().filter_map(|(boot, _)| self.rank(boot)).find(|rank| *rank >= from);
            let until = later.unwrap_or(self.0.len());
            let at = (from..until).find(|at| self.0[*at].1 > *at_ms).unwrap_or(until);
            self.0.insert(at, ((*boot).to_owned(), *at_ms));
            from = at + 1;
        }
    }

    fn rank(&self, boot: &str) -> Option<usize> {
        self.0.iter().position(|(known, _)| known == boot)
    }

    /// What to sort by.
    fn key(&self, record: &Record) -> (usize, f64) {
        (self.rank(&record.boot).unwrap_or(0), record.boot_ms.unwrap_or(record.at_ms))
    }

    /// Whether one came before the other.
    pub(super) fn compare(&self, a: &Record, b: &Record) -> std::cmp::Ordering {
        let ((boot_a, ms_a), (boot_b, ms_b)) = (self.key(a), self.key(b));
        boot_a.cmp(&boot_b).then(ms_a.total_cmp(&ms_b))
    }
}

/// The boots that a journal has lines of, in their order, each with the time of its first line; the newest [`MOST`] of them.
fn distinct(records: &[Record]) -> Vec<(&str, f64)> {
    let mut seen = HashSet::new();
    let firsts = records.iter().filter(|record| seen.insert(record.boot.as_str()));
    let firsts: Vec<(&str, f64)> = firsts.map(|record| (record.boot.as_str(), record.at_ms)).collect();
    firsts[firsts.len().saturating_sub(MOST)..].to_vec()
}

/// The events of a side's journals, each once. Of the two, `all` has what is new and `roles` what is old.
pub(super) fn together(roles: Vec<Record>, all: Vec<Record>) -> Vec<Record> {
    let known: HashSet<&str> = all.iter().map(|e| e.line.as_str()).collect();
    let (_, older): (Vec<Record>, Vec<Record>) = roles.into_iter().partition(|e| known.contains(e.line.as_str()));
    older.into_iter().chain(all).collect()
}
