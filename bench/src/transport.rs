//! `mc-bench transport`: rounds of yardstick, ours, yardstick, ours, so that whatever else the machine does hits both.

use crate::{
    cli::{Effort, TransportArgs},
    link::{Network, QUEUE, RcKnobs},
    load::{self, Outcome, Plan, slabs_per_checkpoint},
    machine::{self, Machine},
    peer::{LinkSpec, Peer},
    pong,
    report::{Commit, Goodput, LatencyYardstick, Report, SCHEMA, rdma_targets},
    stats::Summary,
    units,
    yard::{YardError, iperf, perftest::Devices},
};
use anyhow::{Context, Result};
use mc_core::slab::SlabPool;
use serde::Serialize;
use std::time::Duration;

/// Sizes among which `ib_write_bw`'s best is looked for, before the first round.
const SWEEP: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// How a run was set up.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Which.
    pub transport: Network,
    /// RDMA: the sender's device and the receiver's.
    pub devices: Option<[String; 2]>,
    /// RDMA: index in their GID tables.
    pub gid_index: Option<u8>,
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
    fn new(args: &TransportArgs, effort: &Effort) -> Self {
        let place = &args.place;
        let rdma = place.transport == Network::Rdma;
        Self {
            transport: place.transport,
            devices: rdma.then(|| [place.device.clone(), place.peer_device.clone()]),
            gid_index: rdma.then_some(place.gid_index),
            rc: rdma.then(|| place.knobs()),
            slab_bytes: place.slab,
            poll: place.poll,
            runs: effort.runs,
            seconds: effort.time.as_secs_f64(),
            every_us: args.every.map(units::us),
        }
    }

    /// Lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let network = match (&self.devices, self.gid_index, &self.rc) {
            (Some([near, far]), Some(gid), Some(rc)) => format!(
                "rdma, {near} to {far}, GID index {gid}; slices of {}, {} queue pair(s) of {} work requests, one in {} signalled",
                units::size(rc.slice_bytes),
                rc.queues,
                rc.send_depth,
                rc.signal_every
            ),
            _ => "tcp over loopback".to_owned(),
        };
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

/// One invocation.
struct Bench<'a> {
    args: &'a TransportArgs,
    effort: Effort,
    machine: Machine,
    peer: Peer,
    pool: SlabPool,
    devices: Devices,
    /// Where `ib_write_bw` does best: bytes.
    best: usize,
    missing: Vec<YardError>,
}

/// Runs it all.
///
/// # Errors
/// A link cannot be opened or fails. Yardsticks never fail it.
pub fn run(args: &TransportArgs) -> Result<Report> {
    let effort = args.effort.settled();
    let place = &args.place;
    if place.transport == Network::Rdma {
        // Before five yardsticks say so one by one.
        let (near, far) = place.ports();
        near.check().and_then(|()| far.check())?;
    }
    let mut bench = Bench {
        args,
        machine: Machine::here(),
        peer: Peer::start()?,
        pool: SlabPool::new(place.slab, 2 * QUEUE * place.slab),
        devices: Devices { device: place.device.clone(), peer: place.peer_device.clone(), gid_index: place.gid_index },
        best: 64 << 10,
        missing: Vec::new(),
        effort,
    };
    let yardstick = bench.bandwidth_yardstick();
    let (goodput, commit) = bench.rounds()?;
    Ok(bench.report(yardstick, goodput, commit))
}

impl Bench<'_> {
    fn is_rdma(&self) -> bool {
        self.args.place.transport == Network::Rdma
    }

    /// A yardstick's figure; a tool that is missing or fails is noted once, and asked no more if it is missing.
    fn ask<T>(&mut self, figure: impl FnOnce(&Devices) -> Result<T, YardError>) -> Option<T> {
        if self.effort.no_yardsticks {
            return None;
        }
        figure(&self.devices)
            .map_err(|error| {
                if !self.missing.contains(&error) {
                    eprintln!("mc-bench: no figure to compare with: {error}");
                    self.missing.push(error);
                }
            })
            .ok()
    }

    /// Finds the size at which `ib_write_bw` does best. The yardstick's name.
    fn bandwidth_yardstick(&mut self) -> Option<String> {
        if self.effort.no_yardsticks {
            return None;
        }
        if !self.is_rdma() {
            return Some("iperf3".to_owned());
        }
        let sizes: &[usize] = if self.effort.quick { &SWEEP[2..3] } else { &SWEEP };
        let mut best = (0.0, self.best);
        for &bytes in sizes {
            let Some(found) = self.ask(|d| d.write_bw(bytes, Duration::from_secs(1))) else { continue };
            eprintln!("mc-bench: ib_write_bw -s {bytes}: {:.2} MB/sec", found.average);
            if found.average > best.0 {
                best = (found.average, bytes);
            }
        }
        self.best = best.1;
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
                beside.push(self.bandwidth());
                let outcome = self.checkpoints(*bytes, *depth, self.args.every)?;
                eprintln!(
                    "mc-bench: run {round}: {} at depth {depth}: {:.2} MB/sec",
                    units::size(*bytes),
                    outcome.average
                );
                runs.push(outcome);
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
        let (rdma, best, time) = (self.is_rdma(), self.best, self.effort.time);
        self.ask(|d| if rdma { d.write_bw(best, time).map(|found| found.average) } else { iperf::stream(time) })
    }

    fn latency_yardsticks(&self) -> Vec<LatencyYardstick> {
        let yardstick = |name, is, weight| LatencyYardstick { name, is, weight, runs: Vec::new() };
        if !self.is_rdma() {
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
                "ib_write_lat" => self.ask(|d| d.write_lat(count)),
                "ib_send_lat" => self.ask(|d| d.send_lat(count)),
                "ib_send_lat -c UD" => self.ask(|d| d.send_lat_ud(count)),
                _ => Some(self.ping_pong()?),
            };
            yardstick.runs.push(figure);
        }
        Ok(())
    }

    fn ping_pong(&mut self) -> Result<Summary> {
        let stream = self.peer.echo(self.args.place.poll)?;
        let latencies = pong::ping(stream, self.effort.time, self.args.place.poll)?;
        self.peer.account()?;
        Ok(latencies.summary())
    }

    /// Ours, on a link of its own.
    fn checkpoints(&mut self, bytes: usize, depth: usize, every: Option<Duration>) -> Result<Outcome> {
        let place = &self.args.place;
        let (near, far) = place.ports();
        let spec = LinkSpec {
            network: place.transport,
            near,
            far,
            knobs: place.knobs(),
            slab_bytes: place.slab,
            posts: (slabs_per_checkpoint(bytes, place.slab) * depth + 2).min(QUEUE),
            poll: place.poll,
        };
        let (mut link, incarnation) = self.peer.link(&spec)?;
        let plan = Plan { bytes, depth, every, time: self.effort.time, poll: place.poll };
        let outcome = load::run(link.as_mut(), &plan, &mut self.pool, incarnation);
        drop(link);
        let account = self.peer.account();
        let outcome = outcome.context(account.as_ref().err().map_or_else(String::new, |why| format!("{why:#}")));
        let account = account.context("the receiving side");
        outcome.and_then(|outcome| account.map(|_| outcome))
    }

    fn report(self, bandwidth_yardstick: Option<String>, goodput: Vec<Goodput>, commit: Commit) -> Report {
        let machine = self.machine;
        let settings = Settings::new(self.args, &self.effort);
        let devices: Vec<&str> = settings.devices.iter().flatten().map(String::as_str).collect();
        Report {
            schema: SCHEMA,
            kind: "transport",
            caveats: machine::caveats(&machine, &devices),
            bandwidth_yardstick,
            targets: if settings.transport == Network::Rdma { rdma_targets(&goodput, &commit) } else { Vec::new() },
            goodput,
            commit,
            missing: self.missing,
            machine,
            settings,
        }
    }
}
