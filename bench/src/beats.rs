//! `mc-bench beats`: the keepalive idle, then beside full bulk, in turns.

use crate::{
    beating::{End, Heard, Sender, Sent},
    cli::{BeatsArgs, Effort},
    interrupt,
    link::Port,
    load::Plan,
    progress::Progress,
    record::{Better, Bound, Measure, Section, Unit},
    side::Side,
    transport::section_over,
    units,
};
use anyhow::Result;
use mc_core::{
    histogram::Histogram,
    wire::beat::{self, BeatKey},
};
use std::{thread, time::Duration};

/// A phase with a failing load is taken again so often.
const TRIES: usize = 3;

/// One phase.
#[derive(Debug)]
struct Phase {
    /// The sender's account.
    sent: Sent,
    /// The receiver's.
    heard: Heard,
    /// MB/sec (2^20) of checkpoints meanwhile.
    load_mb_s: Option<f64>,
}

impl Phase {
    fn lost(&self) -> u64 {
        self.sent.sent.saturating_sub(self.heard.received)
    }

    fn words(&self) -> String {
        let p99 = units::us(self.heard.one_way.at(0.99));
        format!("{} of {} lost, 99% one way {p99:.2} us", self.lost(), self.sent.sent)
    }
}

/// Runs it all.
///
/// # Errors
/// Devices or sockets are not to be had; the load of the first run fails again and again.
pub(crate) fn run(args: &BeatsArgs) -> Result<Section> {
    let effort = args.effort.settled();
    let mut side = Side::new(&args.place)?;
    let mut section = settings(args, &effort, side.ports());
    let (mut idle, mut loaded) = (Vec::new(), Vec::new());
    let progress = Progress::new("beats", 2 * u64::from(effort.runs));
    for round in interrupt::rounds(effort.runs) {
        match turn(&mut side, args, effort.time, (&progress, round)) {
            Ok((quiet, busy)) => {
                idle.push(quiet);
                loaded.push(busy);
            }
            // What there is, is of use, and that there is no more is said.
            Err(error) if !idle.is_empty() => {
                section.failures.push(format!("given up in run {round}: {error:#}"));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if !idle.iter().chain(&loaded).all(|p| p.sent.real_time && p.heard.real_time) {
        section.notes.push("the threads of beats were NOT real-time: this process may not ask for it".to_owned());
    }
    section.measures = measures(&idle, &loaded);
    section.failures.extend(side.into_failures());
    Ok(section)
}

/// A phase idle, and one under load.
fn turn(
    side: &mut Side,
    args: &BeatsArgs,
    time: Duration,
    (progress, round): (&Progress, u32),
) -> Result<(Phase, Phase)> {
    progress.doing(format_args!("run {round}: idle"));
    let quiet = phase(side, args, |_, sender| {
        sender.go();
        thread::sleep(time);
        Ok(None)
    })?;
    progress.step(format_args!("run {round}: idle: {}", quiet.words()));
    progress.doing(format_args!("run {round}: under load"));
    let busy = under_load(side, args, time)?;
    progress.step(format_args!("run {round}: under load: {}", busy.words()));
    Ok((quiet, busy))
}

fn settings(args: &BeatsArgs, effort: &Effort, ports: Option<&(Port, Port)>) -> Section {
    let poll = format!("{:?}", args.poll).to_lowercase();
    let load = format!("checkpoints of {} at depth {}, poll {poll}", units::size(args.size), args.depth);
    let seconds = effort.time.as_secs_f64();
    section_over("beats", "Beats beside bulk", ports, args.place.knobs())
        .setting("a beat every", format!("{} us", units::us(args.every)))
        .setting("load", load)
        .setting("processes", "two, so that the ends share no thread")
        .setting("runs", format!("{} of {seconds} s idle, then {seconds} s or more under load", effort.runs))
}

fn measures(idle: &[Phase], loaded: &[Phase]) -> Vec<Measure> {
    let lost = |phases: &[Phase]| phases.iter().map(|p| p.lost() as f64).collect::<Vec<_>>();
    let sent = |phases: &[Phase]| phases.iter().map(|p| p.sent.sent as f64).sum::<f64>();
    let losses = |case, phases: &[Phase]| {
        Measure::new("beats lost", case, Unit::Count, Better::Lower, lost(phases))
            .column("sent, all runs", sent(phases))
    };
    let p99 = |phases: &[Phase]| phases.iter().map(|p| units::us(p.heard.one_way.at(0.99))).collect::<Vec<_>>();
    let mut measures = vec![
        losses("under load", loaded).bound(Bound::every_run_at_most(0.0)),
        losses("idle", idle),
        Measure::new("99% one way", "under load", Unit::Usec, Better::Lower, p99(loaded))
            .beside("idle, just before", p99(idle).into_iter().map(Some).collect())
            .bound(Bound::ratio_at_most(3.0)),
    ];
    for (case, phases) in [("idle", idle), ("under load", loaded)] {
        measures.push(times(&format!("one way, {case}"), phases, |p| &p.heard.one_way));
        measures.push(times(&format!("one way from when it was due, {case}"), phases, |p| &p.heard.from_due));
        measures.push(times(&format!("round trip, {case}"), phases, |p| &p.sent.round_trip));
    }
    let load = loaded.iter().filter_map(|p| p.load_mb_s).collect();
    measures.push(Measure::new("load", "beside the beats", Unit::MbPerSec, Better::Neither, load));
    measures
}

fn times(case: &str, phases: &[Phase], of: fn(&Phase) -> &Histogram) -> Measure {
    let typical = phases.iter().map(|p| units::us(of(p).at(0.5))).collect();
    let mut all = Histogram::new();
    phases.iter().for_each(|p| all.merge(of(p)));
    Measure::new("beats", case, Unit::Usec, Better::Lower, typical).column("#bytes", beat::LEN as f64).times(all)
}

/// Beats while `meanwhile` runs, which starts them.
fn phase(
    side: &mut Side,
    args: &BeatsArgs,
    meanwhile: impl FnOnce(&mut Side, &Sender) -> Result<Option<f64>>,
) -> Result<Phase> {
    let key = BeatKey([0x42; 32]);
    let ports = side.ports().cloned();
    let mut end = End::open(ports.as_ref().map(|(near, _)| near), key)?;
    let theirs = side.peer.beats(ports.as_ref().map(|(_, far)| far), end.address()?, key)?;
    end.meet(theirs)?;
    let sender = Sender::start(end, key, args.every);
    let load_mb_s = meanwhile(side, &sender)?;
    let sent = sender.end()?;
    Ok(Phase { sent, heard: side.peer.end_beats()?, load_mb_s })
}

fn under_load(side: &mut Side, args: &BeatsArgs, time: Duration) -> Result<Phase> {
    let plan = Plan { bytes: args.size, depth: args.depth, every: None, time, poll: args.poll };
    let once = |side: &mut Side| {
        phase(side, args, |side, sender| {
            // From the first, which warms up, on: that is load as well.
            side.once(&plan, &mut || sender.go()).map(|outcome| Some(outcome.average))
        })
    };
    for _ in 1..TRIES {
        match once(side) {
            Ok(phase) => return Ok(phase),
            Err(error) => side.start_again("the load beside the beats", &error)?,
        }
    }
    once(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(sent: u64, received: u64, us: u64) -> Phase {
        let mut one_way = Histogram::new();
        one_way.record_many(Duration::from_micros(us), received);
        let heard = Heard { received, one_way, ..Heard::default() };
        Phase { sent: Sent { sent, ..Sent::default() }, heard, load_mb_s: Some(1.0) }
    }

    #[test]
    fn one_lost_beat_in_one_of_many_runs_misses_the_bound() {
        let idle: Vec<Phase> = (0..3).map(|_| phase(10, 10, 100)).collect();
        let met = |loaded: &[Phase]| measures(&idle, loaded).iter().filter_map(Measure::met).collect::<Vec<_>>();
        assert_eq!(met(&[phase(10, 10, 200), phase(10, 10, 200), phase(10, 10, 200)]), [true, true]);
        assert_eq!(met(&[phase(10, 10, 200), phase(10, 9, 200), phase(10, 10, 200)]), [false, true]);
        assert_eq!(met(&[phase(10, 10, 500), phase(10, 10, 500), phase(10, 10, 200)]), [true, false]);
    }
}
