//! What a run of `mc-bench transport` found: as a record, and as tables.

use crate::{
    load::Outcome,
    stats::{Spread, Summary},
    table::{Table, spread},
    transport::Settings,
    units,
    verdict::{Frame, Report, Target, ratios},
};
use serde::Serialize;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct TransportReport {
    /// Head, targets.
    #[serde(flatten)]
    pub frame: Frame,
    /// How.
    pub settings: Settings,
    /// The bandwidth yardstick's name, with the size at which it does best.
    pub bandwidth_yardstick: Option<String>,
    /// Goodput of checkpoints.
    pub goodput: Vec<Goodput>,
    /// Latency of empty checkpoints.
    pub commit: Commit,
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

impl Report for TransportReport {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = self.frame.head(self.settings.lines());
        if !self.goodput.is_empty() {
            lines.extend(self.goodput_lines());
            lines.push(String::new());
        }
        lines.extend(self.commit_lines());
        lines.push(String::new());
        lines.extend(self.frame.tail());
        lines
    }
}

impl TransportReport {
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
        table.row(latency_row("commit record to ACK (round trip)".to_owned(), 64, &ours));
        for y in &self.commit.yardsticks {
            table.row(latency_row(format!("{} ({})", y.name, y.is), 64, &y.runs));
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
pub(crate) fn latency_row(name: String, bytes: usize, runs: &[Option<Summary>]) -> Vec<String> {
    let runs: Vec<Summary> = runs.iter().flatten().copied().collect();
    let Some(s) = Summary::middle(&runs) else { return vec![name, "-".to_owned()] };
    let typical: Vec<f64> = runs.iter().map(|r| r.t_typical).collect();
    let mut cells = vec![name, bytes.to_string(), s.iterations.to_string()];
    let times = [s.t_min, s.t_max, s.t_typical, s.t_avg, s.t_stdev, s.p99, s.p999];
    cells.extend(times.map(|time| format!("{time:.2}")));
    cells.push(spread(Spread::of(&typical), 2));
    cells
}

/// The targets for RDMA: goodput of checkpoints of 1 MiB or more at least 0.95 of the yardstick; an empty commit within its bound.
#[must_use]
pub fn rdma_targets(goodput: &[Goodput], commit: &Commit) -> Vec<Target> {
    let large = goodput.iter().filter(|g| g.bytes >= 1 << 20);
    let goodput = large.filter_map(|g| {
        let name = format!("goodput, {} at depth {}, by ib_write_bw", units::size(g.bytes), g.depth);
        g.ratio.map(|r| Target::at_least(name, r.median, 0.95))
    });
    let name = format!("empty commit by ({})", commit.bound_is);
    goodput.chain(commit.ratio.map(|r| Target::at_most(name, r.median, 1.0))).collect()
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
        assert!(targets[1].name.contains("4 MiB at depth 1"), "{}", targets[1].name);
    }
}
