//! `mc-bench beats`: the keepalive idle, then beside full bulk, in turns.

use crate::{
    beating::{End, Heard, Sender, Sent},
    cli::{BeatsArgs, Effort},
    link::{Network, Poll, Port, RcKnobs},
    load::Plan,
    report::latency_row,
    side::Side,
    stats::{Spread, Summary},
    table::{Table, spread},
    transport::network_line,
    units,
    verdict::{Frame, Report, Target, ratios},
};
use anyhow::Result;
use mc_core::wire::beat::BeatKey;
use serde::Serialize;
use std::{thread, time::Duration};

/// A phase with a failing load is taken again so often.
const TRIES: usize = 3;

/// One phase.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phase {
    /// The sender's account.
    pub sent: Sent,
    /// The receiver's.
    pub heard: Heard,
    /// MB/sec (2^20) of checkpoints meanwhile.
    pub load_mb_s: Option<f64>,
}

impl Phase {
    fn lost(&self) -> u64 {
        self.sent.sent.saturating_sub(self.heard.received)
    }
}

/// How a run was set up.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Which.
    pub transport: Network,
    /// RDMA: the sender's port and the receiver's.
    pub ports: Option<(Port, Port)>,
    /// RDMA: of the load's queue pairs.
    pub rc: Option<RcKnobs>,
    /// Microseconds between beats.
    pub every_us: f64,
    /// Bytes of pages in the load's checkpoints.
    pub load_bytes: usize,
    /// Checkpoints under way.
    pub load_depth: usize,
    /// How both sides of the load wait.
    pub poll: Poll,
    /// Runs.
    pub runs: u32,
    /// Seconds of each phase.
    pub seconds: f64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct BeatsReport {
    /// Head, targets.
    #[serde(flatten)]
    pub frame: Frame,
    /// How.
    pub settings: Settings,
    /// In order.
    pub idle: Vec<Phase>,
    /// Each just after its idle one.
    pub loaded: Vec<Phase>,
    /// Beats lost under load, all runs.
    pub lost_under_load: u64,
    /// 99th percentile of one-way times under load by the idle one, run by run.
    pub p99_ratio: Option<Spread>,
}

/// Runs it all.
///
/// # Errors
/// Devices or sockets are not to be had; the load fails again and again.
pub fn run(args: &BeatsArgs) -> Result<BeatsReport> {
    let effort = args.effort.settled();
    let mut side = Side::new(&args.place)?;
    let ports = side.ports().cloned();
    let names: Vec<&str> = ports.iter().flat_map(|(a, b)| [a.device.as_str(), b.device.as_str()]).collect();
    let mut frame = Frame::new("beats", &names);
    let settings = settings(args, &effort, ports.clone());
    let (mut idle, mut loaded) = (Vec::new(), Vec::new());
    for round in 1..=effort.runs {
        idle.push(phase(&mut side, args, |_, sender| {
            sender.go();
            thread::sleep(effort.time);
            Ok(None)
        })?);
        loaded.push(under_load(&mut side, args, effort.time)?);
        let [before, beside] = [&idle, &loaded].map(|phases| phases.last().map_or(0.0, |p| p.heard.one_way.p99));
        eprintln!("mc-bench: run {round}: 99% one way: {before:.2} us idle, {beside:.2} us under load");
    }
    let p99 = |phases: &[Phase]| phases.iter().map(|p| p.heard.one_way.p99).collect::<Vec<_>>();
    let p99_ratio = ratios(&p99(&loaded), &p99(&idle).into_iter().map(Some).collect::<Vec<_>>());
    let lost_under_load = loaded.iter().map(Phase::lost).sum();
    frame.failures = side.into_failures();
    frame.targets = targets(lost_under_load, p99_ratio);
    Ok(BeatsReport { frame, settings, idle, loaded, lost_under_load, p99_ratio })
}

fn settings(args: &BeatsArgs, effort: &Effort, ports: Option<(Port, Port)>) -> Settings {
    Settings {
        transport: args.place.transport,
        rc: ports.as_ref().map(|_| args.place.knobs()),
        ports,
        every_us: units::us(args.every),
        load_bytes: args.size,
        load_depth: args.depth,
        poll: args.poll,
        runs: effort.runs,
        seconds: effort.time.as_secs_f64(),
    }
}

fn targets(lost: u64, p99_ratio: Option<Spread>) -> Vec<Target> {
    let lost = Target::at_most("beats lost under load".to_owned(), lost as f64, 0.0);
    let ratio = p99_ratio.map(|r| Target::at_most("99% one way, under load by idle".to_owned(), r.median, 3.0));
    std::iter::once(lost).chain(ratio).collect()
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

impl Report for BeatsReport {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn lines(&self) -> Vec<String> {
        let Settings { every_us, load_bytes, load_depth, poll, runs, seconds, .. } = &self.settings;
        let poll = format!("{poll:?}").to_lowercase();
        let load = units::size(*load_bytes);
        let mut lines = self.frame.head(vec![
            format!("link     {}", network_line(self.settings.ports.as_ref(), self.settings.rc)),
            format!(
                "settings a beat every {every_us} us; load: checkpoints of {load} at depth {load_depth}, poll {poll}"
            ),
            format!("         {runs} runs of {seconds} s idle, then {seconds} s or more under load; two processes"),
        ]);
        let mut table = Table::new(&[
            "beats",
            "#bytes",
            "#iterations",
            "t_min[usec]",
            "t_max[usec]",
            "t_typical[usec]",
            "t_avg[usec]",
            "t_stdev[usec]",
            "99% percentile[usec]",
            "99.9% percentile[usec]",
            "t_typical over runs",
        ]);
        for (name, phases) in [("idle", &self.idle), ("under load", &self.loaded)] {
            let mut add = |what: &str, of: fn(&Phase) -> Summary| {
                let runs: Vec<Option<Summary>> = phases.iter().map(|p| Some(of(p))).collect();
                table.row(latency_row(format!("{name}, {what}"), beat_bytes(), &runs));
            };
            add("one way", |p| p.heard.one_way);
            add("one way from when it was due", |p| p.heard.from_due);
            add("round trip", |p| p.sent.round_trip);
        }
        lines.push("beats; the middle run".to_owned());
        lines.extend(table.lines());
        lines.extend(self.summary());
        lines.push(String::new());
        lines.extend(self.frame.tail());
        lines
    }
}

fn beat_bytes() -> usize {
    mc_core::wire::beat::LEN
}

impl BeatsReport {
    fn summary(&self) -> Vec<String> {
        let count = |phases: &[Phase]| {
            let (sent, lost) = phases.iter().fold((0, 0), |(s, l), p| (s + p.sent.sent, l + p.lost()));
            format!("{lost} of {sent}")
        };
        let load: Vec<f64> = self.loaded.iter().filter_map(|p| p.load_mb_s).collect();
        let real_time = self.idle.iter().chain(&self.loaded).all(|p| p.sent.real_time && p.heard.real_time);
        vec![
            format!(" lost: {} idle, {} under load", count(&self.idle), count(&self.loaded)),
            format!(" load: {} MB/sec", spread(Spread::of(&load), 2)),
            format!(" 99% one way, under load by idle: {}", spread(self.p99_ratio, 2)),
            format!(" threads of beats: {}", if real_time { "real-time" } else { "NOT real-time" }),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_beat_misses_the_target() {
        let ratio = Spread::of(&[2.0, 4.0, 2.5]);
        assert!(targets(0, ratio).iter().all(|t| t.met));
        assert_eq!(targets(1, ratio).iter().filter(|t| !t.met).count(), 1);
        assert_eq!(targets(0, Spread::of(&[3.5])).iter().filter(|t| !t.met).count(), 1);
    }
}
