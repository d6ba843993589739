//! Prints the results of a probe.

use crate::file::{Phase, ProbeFile};
use mc_core::histogram::Histogram;
use node::{
    keepalive::{LossRuns, Measured},
    units::time,
};
use std::fmt::Write;

/// The whole report as text.
#[must_use]
pub fn render(file: &ProbeFile) -> String {
    let mut out = format!("{} with {}\n", file.machine.host, file.peer);
    for phase in &file.phases {
        phase_lines(&mut out, phase, &file.settings.keepalive);
    }
    for note in &file.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

fn phase_lines(out: &mut String, phase: &Phase, keepalive: &str) {
    let every = time(phase.here.interval());
    let load = phase.load_mib_per_s.map(|rate| format!(", beside {rate:.0} MiB/s of checkpoints")).unwrap_or_default();
    let _ = writeln!(out, "\n{}: {:.1} s, beats every {every} over {keepalive}{load}", phase.name, phase.seconds);
    let heading = ["count", "p50", "p99", "p99.9", "max"];
    let _ = writeln!(out, "  {:<28}{}", "", heading.map(|h| format!("{h:>10}")).concat());
    end(out, "here", &phase.here);
    if let Some(there) = &phase.there {
        end(out, "there", there);
    }
}

fn end(out: &mut String, name: &str, m: &Measured) {
    row(out, &format!("{name}: gap"), &m.gap);
    row(out, "  silence beyond what was due", &m.excess);
    row(out, "  round trip", &m.rtt);
    row(out, "  own lateness", &m.lateness);
    for path in &m.paths {
        row(out, &format!("  {}: beyond the fastest", path.name), &path.one_way);
    }
    let _ = writeln!(out, "  {name}: {} sent, {} heard, lost: {}", m.sent, m.received, losses(&m.losses));
    for path in m.paths.iter().filter(|_| m.paths.len() > 1) {
        let _ = writeln!(
            out,
            "    {}: {} heard, {} first, lost: {}",
            path.name,
            path.heard,
            path.first,
            losses(&path.losses)
        );
    }
}

fn row(out: &mut String, name: &str, h: &Histogram) {
    let values = [time(h.at(0.5)), time(h.at(0.99)), time(h.at(0.999)), time(h.max())];
    let _ = writeln!(out, "  {name:<28}{:>10}{}", h.count(), values.map(|v| format!("{v:>10}")).concat());
}

fn losses(losses: &LossRuns) -> String {
    if losses.lost() == 0 {
        return "0".to_owned();
    }
    let runs = losses.runs().map(|(length, times)| format!("{times} x {length}")).collect::<Vec<_>>();
    let (shown, more) = (runs.len().min(8), runs.len().saturating_sub(8));
    let rest = if more > 0 { format!(", and {more} longer lengths") } else { String::new() };
    format!("{}, in runs of: {}{rest}", losses.lost(), runs[..shown].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_shown_not_only_their_sum() {
        let mut runs = LossRuns::default();
        [1, 1, 5].into_iter().for_each(|length| runs.record(length));
        assert_eq!(losses(&runs), "7, in runs of: 2 x 1, 1 x 5");
    }
}
