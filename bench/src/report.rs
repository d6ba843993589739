//! What a run of `mc-bench transport` found: as a record, and as tables.

use crate::{
    load::Outcome,
    machine::Machine,
    stats::{Spread, Summary},
    table::{Table, spread},
    transport::Settings,
    units,
    yard::YardError,
};
use serde::Serialize;

/// Of the JSON records: rises when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "transport".
    pub kind: &'static str,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// What must be known beside the figures.
    pub caveats: Vec<String>,
    /// The bandwidth yardstick's name, with the size at which it does best.
    pub bandwidth_yardstick: Option<String>,
    /// Goodput of checkpoints.
    pub goodput: Vec<Goodput>,
    /// Latency of empty checkpoints.
    pub commit: Commit,
    /// Yardsticks that gave no figure, each named once.
    pub missing: Vec<YardError>,
    /// What was to be reached, and whether it was.
    pub targets: Vec<Target>,
}

/// One size at one depth.
#[derive(Clone, Debug, Serialize)]
pub struct Goodput {
    /// Bytes of pages in each checkpoint.
    pub bytes: usize,
    /// Checkpoints under way.
    pub depth: usize,
    /// Ours, in order.
    pub runs: Vec<Outcome>,
    /// The yardstick's MB/sec, each just before ours.
    pub yardstick_mb_s: Vec<Option<f64>>,
    /// MB/sec of ours.
    pub mb_s: Option<Spread>,
    /// Ours by the yardstick's, run by run.
    pub ratio: Option<Spread>,
}

/// The empty checkpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Commit {
    /// From commit record to ACK, in order.
    pub runs: Vec<Summary>,
    /// The yardsticks', in the same order.
    pub yardsticks: Vec<LatencyYardstick>,
    /// What the ratio is to.
    pub bound_is: String,
    /// t_typical by the bound, run by run.
    pub ratio: Option<Spread>,
    /// t_avg by the bound made of averages, run by run.
    pub ratio_of_averages: Option<Spread>,
}

/// A latency yardstick.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyYardstick {
    /// Its name and options.
    pub name: &'static str,
    /// "half round trip" (perftest's) or "round trip".
    pub is: &'static str,
    /// How often it counts in the bound.
    pub weight: f64,
    /// Each just before ours.
    pub runs: Vec<Option<Summary>>,
}

/// Something to be reached.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What.
    pub name: String,
    /// The median.
    pub value: f64,
    /// The bound.
    pub bound: f64,
    /// Whether it was.
    pub met: bool,
}

/// Ours by theirs, run by run, where both are there.
#[must_use]
pub fn ratios(ours: &[f64], theirs: &[Option<f64>]) -> Option<Spread> {
    let pairs = ours.iter().zip(theirs).filter_map(|(o, t)| t.filter(|t| *t > 0.0).map(|t| o / t));
    Spread::of(&pairs.collect::<Vec<_>>())
}

impl Goodput {
    /// From runs and the yardstick's figures beside them.
    #[must_use]
    pub fn new(bytes: usize, depth: usize, runs: Vec<Outcome>, yardstick_mb_s: Vec<Option<f64>>) -> Self {
        let ours: Vec<f64> = runs.iter().map(|r| r.average).collect();
        let (mb_s, ratio) = (Spread::of(&ours), ratios(&ours, &yardstick_mb_s));
        Self { bytes, depth, runs, yardstick_mb_s, mb_s, ratio }
    }

    fn row(&self) -> Vec<String> {
        let middle = |value: fn(&Outcome) -> f64| {
            Spread::of(&self.runs.iter().map(value).collect::<Vec<_>>()).map_or(0.0, |s| s.median)
        };
        let rate = middle(|r| if r.seconds > 0.0 { r.iterations as f64 / r.seconds / 1e6 } else { 0.0 });
        let yardstick: Vec<f64> = self.yardstick_mb_s.iter().flatten().copied().collect();
        vec![
            self.bytes.to_string(),
            self.depth.to_string(),
            format!("{:.0}", middle(|r| r.iterations as f64)),
            format!("{:.2}", middle(|r| r.peak)),
            spread(self.mb_s, 2),
            format!("{rate:.6}"),
            format!("{:.2}", middle(|r| r.latency.t_typical)),
            format!("{:.2}", middle(|r| r.latency.p99)),
            spread(Spread::of(&yardstick), 2),
            spread(self.ratio, 3),
        ]
    }
}

impl Commit {
    /// From runs and the yardsticks beside them: the bound is the weighted sum of those that count.
    #[must_use]
    pub fn new(runs: Vec<Summary>, yardsticks: Vec<LatencyYardstick>) -> Self {
        let parts = yardsticks.iter().filter(|y| y.weight > 0.0);
        let name = |y: &LatencyYardstick| {
            if y.weight == 1.0 { y.name.to_owned() } else { format!("{} x {}", y.weight, y.name) }
        };
        let bound_is = parts.map(name).collect::<Vec<_>>().join(" + ");
        let ratio = |of: fn(&Summary) -> f64| {
            let ours: Vec<f64> = runs.iter().map(of).collect();
            ratios(&ours, &bounds(&yardsticks, runs.len(), of))
        };
        let (ratio, ratio_of_averages) = (ratio(|s| s.t_typical), ratio(|s| s.t_avg));
        Self { runs, bound_is, ratio, ratio_of_averages, yardsticks }
    }
}

/// The bound of each run: none if one of its parts is missing.
fn bounds(yardsticks: &[LatencyYardstick], runs: usize, of: fn(&Summary) -> f64) -> Vec<Option<f64>> {
    let part = |run: usize, y: &LatencyYardstick| y.runs.get(run).copied().flatten().map(|s| y.weight * of(&s));
    (0..runs).map(|run| yardsticks.iter().filter(|y| y.weight > 0.0).map(|y| part(run, y)).sum()).collect()
}

impl Report {
    /// Lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.machine.lines();
        lines.extend(self.settings.lines());
        lines.extend(self.caveats.iter().map(|note| format!("note     {note}")));
        lines.push(String::new());
        if !self.goodput.is_empty() {
            lines.extend(self.goodput_lines());
            lines.push(String::new());
        }
        lines.extend(self.commit_lines());
        lines.push(String::new());
        lines.extend(self.missing.iter().map(|error| format!("missing  {error}")));
        lines.extend(self.targets.iter().map(Target::line));
        lines
    }

    fn goodput_lines(&self) -> Vec<String> {
        let yardstick = self.bandwidth_yardstick.as_deref().unwrap_or("yardstick");
        let mut table = Table::new(&[
            "#bytes",
            "depth",
            "#iterations",
            "BW peak[MB/sec]",
            "BW average[MB/sec]",
            "MsgRate[Mpps]",
            "t_typical[usec]",
            "99% percentile[usec]",
            &format!("{yardstick}[MB/sec]"),
            "ratio",
        ]);
        self.goodput.iter().for_each(|cell| table.row(cell.row()));
        let title = "goodput of checkpoints: bytes of pages until the ACK, MB = 2^20; medians (least..most) over runs";
        std::iter::once(title.to_owned()).chain(table.lines()).collect()
    }

    fn commit_lines(&self) -> Vec<String> {
        let mut table = Table::new(&[
            "what",
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
        let ours: Vec<Option<Summary>> = self.commit.runs.iter().copied().map(Some).collect();
        table.row(latency_row("commit record to ACK (round trip)".to_owned(), &ours));
        for y in &self.commit.yardsticks {
            table.row(latency_row(format!("{} ({})", y.name, y.is), &y.runs));
        }
        let mut lines = vec!["latency of an empty checkpoint; the middle run".to_owned()];
        lines.extend(table.lines());
        if let Some(ratio) = self.commit.ratio {
            let averages = spread(self.commit.ratio_of_averages, 3);
            let typical = spread(Some(ratio), 3);
            lines.push(format!(" commit by ({}): {typical} typical, {averages} average", self.commit.bound_is));
        }
        lines
    }
}

/// perftest's columns of the middle run.
fn latency_row(name: String, runs: &[Option<Summary>]) -> Vec<String> {
    let runs: Vec<Summary> = runs.iter().flatten().copied().collect();
    let Some(s) = Summary::middle(&runs) else { return vec![name, "-".to_owned()] };
    let typical: Vec<f64> = runs.iter().map(|r| r.t_typical).collect();
    let mut cells = vec![name, "64".to_owned(), s.iterations.to_string()];
    let times = [s.t_min, s.t_max, s.t_typical, s.t_avg, s.t_stdev, s.p99, s.p999];
    cells.extend(times.map(|time| format!("{time:.2}")));
    cells.push(spread(Spread::of(&typical), 2));
    cells
}

impl Target {
    /// Something that must not be less, or not be more.
    #[must_use]
    pub fn new(name: String, value: f64, bound: f64, at_least: bool) -> Self {
        let met = if at_least { value >= bound } else { value <= bound };
        Self { name, value, bound, met }
    }

    fn line(&self) -> String {
        let (word, Self { name, value, bound, .. }) = (if self.met { "met" } else { "MISSED" }, self);
        format!("target   {name}: {value:.3}, bound {bound}: {word}")
    }
}

/// The targets for RDMA: goodput of checkpoints of 1 MiB or more at least 0.95 of the yardstick; an empty commit within its bound.
#[must_use]
pub fn rdma_targets(goodput: &[Goodput], commit: &Commit) -> Vec<Target> {
    let large = goodput.iter().filter(|g| g.bytes >= 1 << 20);
    let goodput = large.filter_map(|g| {
        let name = format!("goodput, {} at depth {}, by ib_write_bw", units::size(g.bytes), g.depth);
        g.ratio.map(|r| Target::new(name, r.median, 0.95, true))
    });
    let name = format!("empty commit by ({})", commit.bound_is);
    goodput.chain(commit.ratio.map(|r| Target::new(name, r.median, 1.0, false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(average: f64) -> Outcome {
        Outcome { iterations: 10, seconds: 1.0, average, peak: average, latency: Summary::default() }
    }

    fn typical(t_typical: f64) -> Summary {
        Summary { t_typical, t_avg: 2.0 * t_typical, ..Summary::default() }
    }

    #[test]
    fn ratios_are_of_neighbours() {
        let g = Goodput::new(1 << 20, 1, vec![outcome(90.0), outcome(40.0)], vec![Some(100.0), Some(50.0)]);
        let ratio = g.ratio.unwrap();
        assert_eq!((ratio.min, ratio.max, ratio.runs), (0.8, 0.9, 2));
        assert_eq!(ratios(&[1.0], &[None]), None);
        assert_eq!(ratios(&[1.0, 3.0], &[Some(0.0), Some(2.0)]).unwrap().median, 1.5);
    }

    #[test]
    fn the_bound_is_a_weighted_sum_and_needs_all_its_parts() {
        let yardstick = |name, weight, runs| LatencyYardstick { name, is: "half round trip", weight, runs };
        let commit = Commit::new(
            vec![typical(20.0), typical(50.0)],
            vec![
                yardstick("w", 3.0, vec![Some(typical(10.0)), None]),
                yardstick("s", 1.0, vec![Some(typical(10.0)), Some(typical(1.0))]),
                yardstick("ud", 0.0, vec![None, None]),
            ],
        );
        assert_eq!(commit.bound_is, "3 x w + s");
        let ratio = commit.ratio.unwrap();
        assert_eq!((ratio.runs, ratio.median), (1, 0.5));
        assert_eq!(commit.ratio_of_averages.unwrap().median, 0.5);
    }

    #[test]
    fn only_large_checkpoints_have_a_target_and_missing_yardsticks_have_none() {
        let cell = |bytes, average| Goodput::new(bytes, 1, vec![outcome(average)], vec![Some(100.0)]);
        let cells = [cell(4096, 1.0), cell(1 << 20, 96.0), cell(4 << 20, 90.0)];
        let targets = rdma_targets(&cells, &Commit::default());
        assert_eq!(targets.iter().map(|t| t.met).collect::<Vec<_>>(), [true, false]);
        assert!(targets[1].line().contains("4 MiB at depth 1") && targets[1].line().ends_with("MISSED"));
    }
}
