//! `mc-bench transport`: rounds of yardstick, ours, yardstick, ours, so that whatever else the machine does hits both.

use crate::{
    cli::{Effort, TransportArgs},
    interrupt,
    link::{Network, Port, RcKnobs},
    load::{Outcome, Plan},
    pong,
    progress::Progress,
    record::{Better, Bound, Measure, Section, Unit},
    side::Side,
    stats::{Spread, Summary},
    units,
    yard::{Yardsticks, iperf, perftest::Devices},
};
use anyhow::Result;
use mc_core::histogram::Histogram;
use std::time::Duration;

/// Sizes among which `ib_write_bw`'s best is looked for, before the first round.
pub(crate) const SWEEP: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Checkpoints from this size on have a bound on their goodput: smaller ones are round trips.
const LARGE: usize = 1 << 20;
/// Over TCP the bound is for this depth or more: at less, the sender waits for the standby's checksum and ACK.
const DEEP: usize = 4;
/// As long as a control record, and the messages of the latency yardsticks.
const RECORD_BYTES: usize = 64;

/// The link, for people.
pub(crate) fn network_line(ports: Option<&(Port, Port)>, rc: RcKnobs) -> String {
    let Some((near, far)) = ports else { return "tcp over loopback".to_owned() };
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

/// A section of what goes over that link, its head filled in.
pub(crate) fn section_over(kind: &str, what: &str, ports: Option<&(Port, Port)>, rc: RcKnobs) -> Section {
    let network = if ports.is_some() { "RDMA" } else { "TCP" };
    let section = Section::new(kind, format!("{what} over {network}")).setting("link", network_line(ports, rc));
    let names = ports.into_iter().flat_map(|(near, far)| [near, far]);
    names.fold(section, |section, port| section.device(&port.device))
}

/// One size at one depth.
#[derive(Debug)]
struct Cell {
    bytes: usize,
    depth: usize,
    ours: Vec<Outcome>,
    theirs: Vec<Option<f64>>,
}

/// A latency yardstick: a tool's summaries, run by run.
#[derive(Debug)]
struct Latency {
    name: &'static str,
    /// "round trip", or perftest's "half round trip".
    is: &'static str,
    runs: Vec<Option<Summary>>,
    /// If it is ours to count.
    times: Option<Histogram>,
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
pub(crate) fn run(args: &TransportArgs) -> Result<Section> {
    let effort = args.effort.settled();
    let side = Side::new(&args.place)?;
    let ports = side.ports().cloned();
    let mut section = settings(args, &effort, ports.as_ref());
    let devices = ports.map(|(near, far)| Devices { near, far });
    let yardsticks = Yardsticks::new(devices, effort.no_yardsticks);
    let mut bench = Bench { args, effort, side, yardsticks, best: 0 };
    let yardstick = bench.bandwidth_yardstick();
    let (cells, empty, latencies) = bench.rounds()?;
    section.measures = cells.into_iter().map(|cell| cell.measure(&yardstick, args.place.transport)).collect();
    section.measures.extend(commits(&empty, &latencies, args.place.transport));
    section.measures.extend(latencies.into_iter().filter_map(Latency::measure));
    section.failures = bench.side.into_failures();
    section.missing = bench.yardsticks.into_missing();
    Ok(section)
}

fn settings(args: &TransportArgs, effort: &Effort, ports: Option<&(Port, Port)>) -> Section {
    let beside = if effort.no_yardsticks { "no tool beside them" } else { "a yardstick before each" };
    let section = section_over("transport", "Checkpoints", ports, args.place.knobs())
        .setting("slabs", units::size(args.place.slab))
        .setting("processes", "two, so that the ends share no thread")
        .setting("poll", format!("{:?}", args.poll).to_lowercase())
        .setting("runs", format!("{} of {} s, {beside}", effort.runs, effort.time.as_secs_f64()));
    let section = match args.every {
        Some(every) => section.setting("pace", format!("a checkpoint every {} us", units::us(every))),
        None => section,
    };
    let bounded = match args.place.transport {
        Network::Rdma => "the bound on goodput is for checkpoints of 1 MiB and more",
        Network::Tcp => "the bound on goodput is for checkpoints of 1 MiB and more, at depth 4 and more",
    };
    section.note(format!("goodput: bytes of pages until the ACK, MB = 2^20; {bounded}"))
}

impl Bench<'_> {
    /// Finds the size at which `ib_write_bw` does best. The yardstick's name.
    fn bandwidth_yardstick(&mut self) -> String {
        if self.side.ports().is_none() {
            return "iperf3, one stream".to_owned();
        }
        let sizes: &[usize] = if self.effort.quick { &[64 << 10] } else { &SWEEP };
        self.best = match self.args.yardstick_size {
            Some(bytes) => bytes,
            None if self.effort.quick || !self.yardsticks.are_on() => sizes[0],
            None => self.yardsticks.best_write_size(sizes),
        };
        format!("ib_write_bw -s {}", self.best)
    }

    fn rounds(&mut self) -> Result<(Vec<Cell>, Vec<Outcome>, Vec<Latency>)> {
        let (sizes, depths) = (&self.args.size, &self.args.depth);
        let shapes = sizes.iter().flat_map(|bytes| depths.iter().map(|depth| (*bytes, *depth)));
        let mut cells: Vec<Cell> =
            shapes.map(|(bytes, depth)| Cell { bytes, depth, ours: vec![], theirs: vec![] }).collect();
        let (mut latencies, mut empty) = (self.latency_yardsticks(), Vec::new());
        let progress = Progress::new("transport", u64::from(self.effort.runs) * (cells.len() as u64 + 1));
        for round in interrupt::rounds(self.effort.runs) {
            for cell in cells.iter_mut().take_while(|_| !interrupt::asked()) {
                let what = format!("run {round}: {}", cell.case());
                progress.doing(&what);
                let theirs = self.bandwidth();
                let ours = self.checkpoints(cell.bytes, cell.depth, self.args.every)?;
                let beside = theirs.map_or_else(String::new, |t| format!(" beside {t:.2}"));
                progress.step(format_args!("{what}: {:.2} MB/sec{beside}", ours.average));
                cell.ours.push(ours);
                cell.theirs.push(theirs);
            }
            if interrupt::asked() {
                break;
            }
            progress.doing(format_args!("run {round}: latencies"));
            self.latencies(&mut latencies)?;
            let commit = self.checkpoints(0, 1, None)?;
            let typical = units::us(commit.times.at(0.5));
            progress.step(format_args!("run {round}: commit record to ACK: {typical:.2} us typical"));
            empty.push(commit);
        }
        cells.retain(|cell| !cell.ours.is_empty());
        latencies.retain(|latency| !latency.runs.is_empty());
        Ok((cells, empty, latencies))
    }

    fn bandwidth(&mut self) -> Option<f64> {
        let (best, time) = (self.best, self.effort.time);
        if self.side.ports().is_none() {
            return self.yardsticks.ask(|| iperf::stream(time));
        }
        self.yardsticks.perftest(|d| d.write_bw(best, time)).map(|found| found.average)
    }

    fn latency_yardsticks(&self) -> Vec<Latency> {
        let yardstick = |name, is, times| Latency { name, is, runs: Vec::new(), times };
        if self.side.ports().is_none() {
            return vec![yardstick(PING_PONG, "round trip", Some(Histogram::new()))];
        }
        [WRITE_LAT, SEND_LAT, DATAGRAM_LAT].map(|name| yardstick(name, "half round trip", None)).into()
    }

    fn latencies(&mut self, yardsticks: &mut [Latency]) -> Result<()> {
        let count = self.args.latency_iterations;
        for yardstick in yardsticks {
            let figure = match yardstick.name {
                WRITE_LAT => self.yardsticks.perftest(|d| d.write_lat(count)),
                SEND_LAT => self.yardsticks.perftest(|d| d.send_lat(count)),
                DATAGRAM_LAT => self.yardsticks.perftest(|d| d.send_lat_ud(count)),
                _ => {
                    let times = self.ping_pong()?;
                    yardstick.times.get_or_insert_default().merge(&times);
                    Some(Summary::from(&times))
                }
            };
            yardstick.runs.push(figure);
        }
        Ok(())
    }

    fn ping_pong(&mut self) -> Result<Histogram> {
        let stream = self.side.peer.echo(self.args.poll)?;
        let times = pong::ping(stream, self.effort.time, self.args.poll)?;
        self.side.peer.account()?;
        Ok(times)
    }

    fn checkpoints(&mut self, bytes: usize, depth: usize, every: Option<Duration>) -> Result<Outcome> {
        let plan = Plan { bytes, depth, every, time: self.effort.time, poll: self.args.poll };
        self.side.checkpoints(&plan)
    }
}

impl Cell {
    fn case(&self) -> String {
        format!("{}, depth {}", units::size(self.bytes), self.depth)
    }

    fn measure(self, yardstick: &str, network: Network) -> Measure {
        let middle = |value: fn(&Outcome) -> f64| {
            Spread::of(&self.ours.iter().map(value).collect::<Vec<_>>()).map_or(0.0, |s| s.median)
        };
        let rate = |r: &Outcome| if r.seconds > 0.0 { r.iterations as f64 / r.seconds / 1e6 } else { 0.0 };
        let goodput = self.ours.iter().map(|r| r.average).collect();
        let measure = Measure::new("goodput", self.case(), Unit::MbPerSec, Better::Higher, goodput)
            .column("#bytes", self.bytes as f64)
            .column("#iterations", middle(|r| r.iterations as f64))
            .column("BW peak[MB/sec]", middle(|r| r.peak))
            .column("BW average[MB/sec]", middle(|r| r.average))
            .column("MsgRate[Mpps]", middle(rate))
            .times(merged(&self.ours))
            .beside(yardstick, self.theirs);
        match bound(network, self.bytes, self.depth) {
            Some(bound) => measure.bound(bound),
            None => measure,
        }
    }
}

fn bound(network: Network, bytes: usize, depth: usize) -> Option<Bound> {
    match network {
        _ if bytes < LARGE => None,
        Network::Rdma => Some(Bound::ratio_at_least(0.95)),
        Network::Tcp => (depth >= DEEP).then(|| Bound::ratio_at_least(0.9)),
    }
}

fn merged(runs: &[Outcome]) -> Histogram {
    runs.iter().fold(Histogram::new(), |mut all, run| {
        all.merge(&run.times);
        all
    })
}

const PING_PONG: &str = "bare TCP ping-pong";
const WRITE_LAT: &str = "ib_write_lat";
const SEND_LAT: &str = "ib_send_lat";
const DATAGRAM_LAT: &str = "ib_send_lat -c UD";

impl Latency {
    /// Its figures as information.
    fn measure(self) -> Option<Measure> {
        let found: Vec<Summary> = self.runs.into_iter().flatten().collect();
        let middle = Summary::middle(&found)?;
        let typical = found.iter().map(|s| s.t_typical).collect();
        let case = format!("{}, {}", self.name, self.is);
        let measure = Measure::new("yardsticks of latency", case, Unit::Usec, Better::Neither, typical)
            .column("#bytes", RECORD_BYTES as f64);
        Some(match self.times {
            Some(times) => measure.times(times),
            None => middle.columns(measure),
        })
    }
}

/// The sum of `weight` times each yardstick's median latency, run by run: none where one of them is missing.
fn weighted(latencies: &[Latency], runs: usize, parts: &[(f64, &str)]) -> Vec<Option<f64>> {
    let part = |run: usize, (weight, name): &(f64, &str)| {
        let yardstick = latencies.iter().find(|l| l.name == *name)?;
        yardstick.runs.get(run).copied().flatten().map(|s| weight * s.t_typical)
    };
    (0..runs).map(|run| parts.iter().map(|p| part(run, p)).sum()).collect()
}

/// The empty checkpoint beside a bare round trip on the same transport. RDMA's is twice `ib_send_lat`, which gives half of it;
/// beside it, without a bound, stand the operations that a commit is made of.
fn commits(empty: &[Outcome], latencies: &[Latency], network: Network) -> Vec<Measure> {
    let typical: Vec<f64> = empty.iter().map(|r| units::us(r.times.at(0.5))).collect();
    let commit = |case: &str, beside: &str, parts: &[(f64, &str)]| {
        Measure::new("empty checkpoint", case, Unit::Usec, Better::Lower, typical.clone())
            .column("#bytes", RECORD_BYTES as f64)
            .beside(beside, weighted(latencies, typical.len(), parts))
    };
    let (ping_pong, parts): (_, &[_]) = match network {
        Network::Tcp => ("bare TCP ping-pong, 64 bytes, a round trip", &[(1.0, PING_PONG)]),
        Network::Rdma => ("bare ping-pong: 2 x ib_send_lat -s 64", &[(2.0, SEND_LAT)]),
    };
    let ours = commit("commit record to ACK", ping_pong, parts).bound(Bound::ratio_at_most(2.0)).times(merged(empty));
    let mut measures = vec![ours];
    if network == Network::Rdma {
        let parts = [(3.0, WRITE_LAT), (1.0, SEND_LAT)];
        measures.push(commit("by its operations", "3 x ib_write_lat + ib_send_lat", &parts));
    }
    measures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(average: f64) -> Outcome {
        let mut times = Histogram::new();
        times.record(Duration::from_micros(20));
        Outcome { iterations: 10, seconds: 1.0, average, peak: average, times }
    }

    fn latency(name: &'static str, runs: &[Option<f64>]) -> Latency {
        let summary = |t_typical| Summary { t_typical, ..Summary::default() };
        Latency { name, is: "half round trip", runs: runs.iter().map(|r| r.map(summary)).collect(), times: None }
    }

    #[test]
    fn a_round_trip_is_two_halves_and_the_operations_need_all_their_parts() {
        let latencies = [latency(WRITE_LAT, &[Some(10.0), None]), latency(SEND_LAT, &[Some(10.0), Some(4.0)])];
        let commits = commits(&[outcome(0.0), outcome(0.0)], &latencies, Network::Rdma);
        let beside = |at: usize| commits[at].yardstick.clone().unwrap().runs;
        assert_eq!(beside(0), [Some(20.0), Some(8.0)]);
        assert_eq!((beside(1), commits[1].bound), (vec![Some(40.0), None], None));
        assert_eq!(commits[0].bound, Some(Bound::ratio_at_most(2.0)));
    }

    #[test]
    fn small_checkpoints_have_no_bound_and_shallow_ones_over_tcp_have_none() {
        let bounded = |network, bytes, depth| bound(network, bytes, depth).map(|b| b.limit);
        assert_eq!([bounded(Network::Rdma, 1 << 20, 1), bounded(Network::Rdma, 65536, 4)], [Some(0.95), None]);
        assert_eq!([bounded(Network::Tcp, 1 << 20, 1), bounded(Network::Tcp, 1 << 20, 4)], [None, Some(0.9)]);
    }

    #[test]
    fn a_cell_keeps_perftests_columns_and_every_time() {
        let cell = Cell { bytes: 1 << 20, depth: 1, ours: vec![outcome(90.0); 2], theirs: vec![Some(100.0), None] };
        let measure = cell.measure("ib_write_bw -s 65536", Network::Rdma);
        assert_eq!((measure.case.as_str(), measure.met()), ("1 MiB, depth 1", Some(false)));
        assert_eq!(measure.times.as_ref().unwrap().count(), 2);
        let headings: Vec<_> = measure.columns.iter().map(|c| c.heading.as_str()).collect();
        assert_eq!(headings, ["#bytes", "#iterations", "BW peak[MB/sec]", "BW average[MB/sec]", "MsgRate[Mpps]"]);
    }
}
