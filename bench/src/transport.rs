//! `mc-bench transport`: rounds of yardstick, ours, yardstick, ours, so that whatever else the machine does hits both.

use crate::{
    cli::{Effort, TransportArgs},
    link::{Network, Port, RcKnobs},
    load::{Outcome, Plan},
    pong,
    report::{Commit, Goodput, LatencyYardstick, TransportReport, rdma_targets},
    side::Side,
    stats::Summary,
    units,
    verdict::Frame,
    yard::{Yardsticks, iperf, perftest::Devices},
};
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;

/// Sizes among which `ib_write_bw`'s best is looked for, before the first round.
pub const SWEEP: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// How a run was set up.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Which.
    pub transport: Network,
    /// RDMA: the sender's port and the receiver's.
    pub ports: Option<(Port, Port)>,
    /// RDMA: of the queue pairs.
    pub rc: Option<RcKnobs>,
    /// Bytes of each slab.
    pub slab_bytes: usize,
    /// How both sides wait.
    pub poll: crate::link::Poll,
    /// Runs.
    pub runs: u32,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Microseconds between beginnings of checkpoints, if paced.
    pub every_us: Option<f64>,
}

impl Settings {
    fn new(args: &TransportArgs, effort: &Effort, ports: Option<&(Port, Port)>) -> Self {
        let place = &args.place;
        Self {
            transport: place.transport,
            ports: ports.cloned(),
            rc: ports.map(|_| place.knobs()),
            slab_bytes: place.slab,
            poll: args.poll,
            runs: effort.runs,
            seconds: effort.time.as_secs_f64(),
            every_us: args.every.map(units::us),
        }
    }

    /// Lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let network = network_line(self.ports.as_ref(), self.rc);
        let pace = self.every_us.map(|us| format!(", one every {us} us")).unwrap_or_default();
        let poll = format!("{:?}", self.poll).to_lowercase();
        vec![
            format!("link     {network}"),
            format!(
                "settings slabs of {}, poll {poll}, {} runs of {} s, yardstick before each{pace}; two processes",
                units::size(self.slab_bytes),
                self.runs,
                self.seconds
            ),
        ]
    }
}

/// The link, for people.
pub(crate) fn network_line(ports: Option<&(Port, Port)>, rc: Option<RcKnobs>) -> String {
    let (Some((near, far)), Some(rc)) = (ports, rc) else { return "tcp over loopback".to_owned() };
    let timeout = rc.timeout.map_or_else(|| "by default".to_owned(), |code| code.to_string());
    format!(
        "rdma, {} (GID {}) to {} (GID {}); slices of {}, {} queue pair(s) of {} work requests, one in {} signalled, ACK \
         timeout {timeout}",
        near.device,
        near.gid_index,
        far.device,
        far.gid_index,
        units::size(rc.slice_bytes),
        rc.queues,
        rc.send_depth,
        rc.signal_every,
    )
}

/// One invocation.
struct Bench<'a> {
    args: &'a TransportArgs,
    effort: Effort,
    side: Side,
    yardsticks: Yardsticks,
    /// Where `ib_write_bw` does best: bytes.
    best: usize,
}

/// Runs it all.
///
/// # Errors
/// A link cannot be opened or fails. Yardsticks never fail it.
pub fn run(args: &TransportArgs) -> Result<TransportReport> {
    let effort = args.effort.settled();
    let side = Side::new(&args.place)?;
    let settings = Settings::new(args, &effort, side.ports());
    let devices = side.ports().map(|(near, far)| Devices { near: near.clone(), far: far.clone() });
    let names: Vec<&str> = devices.iter().flat_map(|d| [d.near.device.as_str(), d.far.device.as_str()]).collect();
    let mut frame = Frame::new("transport", &names);
    let yardsticks = Yardsticks::new(devices, effort.no_yardsticks);
    let mut bench = Bench { args, effort, side, yardsticks, best: 0 };
    let bandwidth_yardstick = bench.bandwidth_yardstick();
    let (goodput, commit) = bench.rounds()?;
    if bench.side.ports().is_some() {
        frame.targets = rdma_targets(&goodput, &commit);
    }
    (frame.failures, frame.missing) = (bench.side.into_failures(), bench.yardsticks.into_missing());
    Ok(TransportReport { frame, settings, bandwidth_yardstick, goodput, commit })
}

impl Bench<'_> {
    /// Finds the size at which `ib_write_bw` does best. The yardstick's name.
    fn bandwidth_yardstick(&mut self) -> Option<String> {
        if !self.yardsticks.are_on() {
            return None;
        }
        if self.side.ports().is_none() {
            return Some("iperf3".to_owned());
        }
        let sizes: &[usize] = if self.effort.quick { &[64 << 10] } else { &SWEEP };
        self.best = self.args.yardstick_size.unwrap_or_else(|| self.yardsticks.best_write_size(sizes));
        Some(format!("ib_write_bw -s {}", self.best))
    }

    fn rounds(&mut self) -> Result<(Vec<Goodput>, Commit)> {
        let (sizes, depths) = (&self.args.size, &self.args.depth);
        let cells: Vec<(usize, usize)> = sizes.iter().flat_map(|s| depths.iter().map(|d| (*s, *d))).collect();
        let mut found: Vec<(Vec<Outcome>, Vec<Option<f64>>)> = vec![Default::default(); cells.len()];
        let mut yardsticks = self.latency_yardsticks();
        let mut commits = Vec::new();
        for round in 1..=self.effort.runs {
            for ((bytes, depth), (runs, beside)) in cells.iter().zip(&mut found) {
                let theirs = self.bandwidth();
                let ours = self.checkpoints(*bytes, *depth, self.args.every)?;
                let (what, figure) = (units::size(*bytes), ours.average);
                let beside_it = theirs.map_or_else(String::new, |t| format!(" beside {t:.2}"));
                eprintln!("mc-bench: run {round}: {what} at depth {depth}: {figure:.2} MB/sec{beside_it}");
                runs.push(ours);
                beside.push(theirs);
            }
            self.latencies(&mut yardsticks)?;
            let commit = self.checkpoints(0, 1, None)?.latency;
            eprintln!("mc-bench: run {round}: commit record to ACK: {:.2} us typical", commit.t_typical);
            commits.push(commit);
        }
        let goodput = cells.into_iter().zip(found).map(|((bytes, depth), (r, y))| Goodput::new(bytes, depth, r, y));
        Ok((goodput.collect(), Commit::new(commits, yardsticks)))
    }

    fn bandwidth(&mut self) -> Option<f64> {
        let (best, time) = (self.best, self.effort.time);
        if self.side.ports().is_none() {
            return self.yardsticks.ask(|| iperf::stream(time));
        }
        self.yardsticks.perftest(|d| d.write_bw(best, time)).map(|found| found.average)
    }

    fn latency_yardsticks(&self) -> Vec<LatencyYardstick> {
        let yardstick = |name, is, weight| LatencyYardstick { name, is, weight, runs: Vec::new() };
        if self.side.ports().is_none() {
            return vec![yardstick("bare TCP ping-pong", "round trip", 1.0)];
        }
        let half = "half round trip";
        vec![
            yardstick("ib_write_lat", half, 3.0),
            yardstick("ib_send_lat", half, 1.0),
            yardstick("ib_send_lat -c UD", half, 0.0),
        ]
    }

    fn latencies(&mut self, yardsticks: &mut [LatencyYardstick]) -> Result<()> {
        let count = self.args.latency_iterations;
        for yardstick in yardsticks {
            let figure = match yardstick.name {
                "ib_write_lat" => self.yardsticks.perftest(|d| d.write_lat(count)),
                "ib_send_lat" => self.yardsticks.perftest(|d| d.send_lat(count)),
                "ib_send_lat -c UD" => self.yardsticks.perftest(|d| d.send_lat_ud(count)),
                _ => Some(self.ping_pong()?),
            };
            yardstick.runs.push(figure);
        }
        Ok(())
    }

    fn ping_pong(&mut self) -> Result<Summary> {
        let stream = self.side.peer.echo(self.args.poll)?;
        let latencies = pong::ping(stream, self.effort.time, self.args.poll)?;
        self.side.peer.account()?;
        Ok(Summary::from(&latencies))
    }

    fn checkpoints(&mut self, bytes: usize, depth: usize, every: Option<Duration>) -> Result<Outcome> {
        let plan = Plan { bytes, depth, every, time: self.effort.time, poll: self.args.poll };
        self.side.checkpoints(&plan)
    }
}
