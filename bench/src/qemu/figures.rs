//! From runs to measures.

use super::{ours::Ours, watch::Watched};
use crate::record::{Better, Bound, Measure, Section, Timeline, Unit};
use mc_core::histogram::Histogram;

/// What pauses are to reach beside COLO's.
const PAUSE_BOUND: f64 = 0.5;
/// What goodput is to reach beside QEMU's migrate.
const GOODPUT_BOUND: f64 = 1.0;

/// Whose pauses stand beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rival {
    /// QEMU-to-QEMU COLO as it comes.
    Colo,
    /// The same, but neither kernel delays ACKs.
    QuickColo,
    /// A QEMU whose checkpoints nobody keeps: the floor.
    Alone,
}

impl Rival {
    /// All, in the order in which they are measured.
    pub(crate) const ALL: [Self; 3] = [Self::Colo, Self::QuickColo, Self::Alone];

    /// The yardstick's name.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Colo => "QEMU COLO over TCP",
            Self::QuickColo => "QEMU COLO over TCP, no delayed ACKs",
            Self::Alone => "QEMU alone, checkpoints discarded",
        }
    }

    fn case(self, name: &str) -> String {
        match self {
            Self::Colo => name.to_owned(),
            Self::QuickColo => format!("{name}; COLO without delayed ACKs"),
            Self::Alone => format!("{name}; QEMU alone"),
        }
    }
}

/// Runs of one guest: ours, and beside each those of its rivals, as in [`Rival::ALL`].
#[derive(Debug, Default)]
pub(crate) struct Case {
    /// "tiny on kvm, 64 pages".
    pub name: String,
    /// Run by run.
    pub runs: Vec<(Ours, [Option<Watched>; 3])>,
}

/// Streams of one run, in MB/sec.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams {
    /// Our transport over loopback, and QEMU's migrate before it.
    pub loopback: (f64, Option<f64>),
    /// Our full synchronisation over the replication link, and QEMU's migrate before it.
    pub link: (f64, Option<f64>),
}

fn us(times: &Histogram, quantile: f64) -> f64 {
    times.at(quantile).as_secs_f64() * 1e6
}

fn all<'a>(times: impl Iterator<Item = Histogram> + 'a) -> Histogram {
    times.fold(Histogram::new(), |mut all, times| {
        all.merge(&times);
        all
    })
}

impl Case {
    fn each(&self, value: impl Fn(&Ours) -> f64) -> Vec<f64> {
        self.runs.iter().map(|(ours, _)| value(ours)).collect()
    }

    /// Adds what was found.
    pub(crate) fn fill(&self, section: &mut Section) {
        if self.runs.is_empty() {
            return;
        }
        for (index, rival) in Rival::ALL.into_iter().enumerate() {
            self.pauses(section, index, rival);
        }
        self.work(section);
        self.delay(section);
        let timeline = |case: String, seen: &Watched| Timeline {
            name: "pauses".into(),
            case,
            unit: Unit::Usec,
            points: seen.points(),
        };
        let (first, theirs) = &self.runs[0];
        section.timelines.push(timeline(format!("{}; ours", self.name), &first.watched));
        for (rival, seen) in Rival::ALL.into_iter().zip(theirs) {
            section
                .timelines
                .extend(seen.as_ref().map(|seen| timeline(format!("{}; {}", self.name, rival.name()), seen)));
        }
    }

    fn pauses(&self, section: &mut Section, index: usize, rival: Rival) {
        let beside = |value: &dyn Fn(&Watched) -> Option<f64>| -> Vec<Option<f64>> {
            self.runs.iter().map(|(_, theirs)| theirs[index].as_ref().and_then(value)).collect()
        };
        let case = rival.case(&self.name);
        let theirs = all(self.runs.iter().filter_map(|(_, t)| t[index].as_ref().map(Watched::times)));
        if theirs.is_empty() && rival != Rival::Colo {
            return;
        }
        let own = |ours: &Ours, p: f64| if p < 0.9 { ours.own_pause_us.0 } else { ours.own_pause_us.1 };
        for (name, p) in [("pause p50", 0.5), ("pause p99", 0.99)] {
            let mut ours =
                Measure::new(name, &case, Unit::Usec, Better::Lower, self.each(|o| us(&o.watched.times(), p)))
                    .beside(rival.name(), beside(&|seen| Some(us(&seen.times(), p))))
                    .times(all(self.runs.iter().map(|(o, _)| o.watched.times())))
                    .column("sidecar's own[usec]", median(&self.each(|o| own(o, p))));
            // The others are no QEMU that anybody runs: they say what the difference is made of.
            ours.bound = (rival == Rival::Colo).then(|| Bound::ratio_at_most(PAUSE_BOUND));
            section.measures.push(ours);
        }
        let periods = self.each(|o| o.watched.period_us().unwrap_or_default());
        let period = Measure::new("period", &case, Unit::Usec, Better::Neither, periods);
        section.measures.push(period.beside(rival.name(), beside(&Watched::period_us)));
        if !theirs.is_empty() {
            let runs = beside(&|seen| Some(us(&seen.times(), 0.5))).into_iter().flatten().collect();
            let measure = Measure::new("yardstick's pause", &case, Unit::Usec, Better::Neither, runs).times(theirs);
            section.measures.push(measure);
        }
    }

    fn work(&self, section: &mut Section) {
        let plain = |name: &str, unit, runs| Measure::new(name, &self.name, unit, Better::Neither, runs);
        section.measures.extend([
            plain("epochs per second", Unit::Count, self.each(|o| o.epochs_per_s)),
            plain("dirty pages per second", Unit::Count, self.each(|o| o.pages_per_s)),
            plain("stream to the standby", Unit::MbPerSec, self.each(|o| o.bytes_per_s / f64::from(1 << 20))),
        ]);
    }

    fn delay(&self, section: &mut Section) {
        let lower = |name: &str, runs| Measure::new(name, &self.name, Unit::Usec, Better::Lower, runs);
        section.measures.push(lower("hold p50", self.each(|o| o.hold_us.0)));
        section.measures.push(lower("hold p99", self.each(|o| o.hold_us.1)));
        for (reply, added, p) in [("reply p50", "added delay p50", 0.5), ("reply p99", "added delay p99", 0.99)] {
            let bare: Vec<Option<f64>> =
                self.runs.iter().map(|(o, _)| (!o.unprotected.is_empty()).then(|| us(&o.unprotected, p))).collect();
            let more = self.runs.iter().zip(&bare).filter_map(|((o, _), bare)| Some(us(&o.replies, p) - (*bare)?));
            section.measures.push(lower(added, more.collect()));
            let times = all(self.runs.iter().map(|(o, _)| o.replies.clone()));
            let replies = lower(reply, self.each(|o| us(&o.replies, p))).beside("the same VM, unprotected", bare);
            section.measures.push(replies.times(times));
        }
    }
}

fn median(values: &[f64]) -> f64 {
    crate::stats::Spread::of(values).map_or(0.0, |spread| spread.median)
}

/// Adds the streams.
pub(crate) fn fill_streams(section: &mut Section, case: &str, runs: &[Streams]) {
    if runs.is_empty() {
        return;
    }
    let two = |of: fn(&Streams) -> (f64, Option<f64>)| -> (Vec<f64>, Vec<Option<f64>>) { runs.iter().map(of).unzip() };
    let (ours, theirs) = two(|s| s.loopback);
    let goodput = Measure::new("goodput over loopback", case, Unit::MbPerSec, Better::Higher, ours);
    section.measures.push(goodput.beside("QEMU's migrate", theirs).bound(Bound::ratio_at_least(GOODPUT_BOUND)));
    let (ours, theirs) = two(|s| s.link);
    let sync = Measure::new("full synchronisation", case, Unit::MbPerSec, Better::Higher, ours);
    section.measures.push(sync.beside("QEMU's migrate", theirs));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rig::monitor::Pause;

    fn seen(took_ms: f64) -> Watched {
        let pause = |number: u32| Pause { at_ms: 100.0 * f64::from(number), took_ms };
        Watched { pauses: (0..9).map(pause).collect(), from_ms: 0.0 }
    }

    fn ours(took_ms: f64) -> Ours {
        Ours {
            watched: seen(took_ms),
            epochs_per_s: 10.0,
            pages_per_s: 640.0,
            bytes_per_s: f64::from(1 << 21),
            own_pause_us: (900.0, 950.0),
            hold_us: (50.0, 90.0),
            replies: Histogram::new(),
            unprotected: Histogram::new(),
        }
    }

    #[test]
    fn pauses_are_bounded_beside_colo_as_it_comes() {
        let case = Case { name: "tiny".into(), runs: vec![(ours(1.0), [Some(seen(50.0)), Some(seen(1.5)), None])] };
        let mut section = Section::new("qemu", "");
        case.fill(&mut section);
        let pauses: Vec<_> = section.measures.iter().filter(|m| m.name.starts_with("pause ")).collect();
        let met: Vec<_> = pauses.iter().map(|m| m.met()).collect();
        assert_eq!(met, [Some(true), Some(true), None, None]);
        assert!((pauses[2].ratio().unwrap().median - 2.0 / 3.0).abs() < 0.01);
        assert_eq!(section.timelines.len(), 3);
        let stream = section.measures.iter().find(|m| m.name == "stream to the standby").unwrap();
        assert_eq!(stream.runs, [2.0]);
    }

    #[test]
    fn without_colo_ours_stand_alone() {
        let case = Case { name: "tiny".into(), runs: vec![(ours(1.0), [None, None, None])] };
        let mut section = Section::new("qemu", "");
        case.fill(&mut section);
        let of = |name: &str| section.measures.iter().filter(|m| m.name == name).collect::<Vec<_>>();
        assert_eq!((of("pause p50").len(), of("pause p50")[0].met(), of("yardstick's pause").len()), (1, None, 0));
    }

    #[test]
    fn goodput_must_reach_migrates() {
        let mut section = Section::new("qemu", "");
        fill_streams(&mut section, "256 MiB", &[Streams { loopback: (900.0, Some(1000.0)), link: (500.0, None) }]);
        assert!(section.missed());
        assert_eq!(section.measures[1].met(), None);
    }
}
