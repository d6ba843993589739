//! Runs as measures.

use super::{
    session::{Run, bytes},
    standby::StandReport,
    workload::Workload,
};
use crate::{
    record::{Better, Measure, Timeline, Unit},
    stats::Spread,
    units::us,
};
use anyhow::Result;
use mc_core::histogram::Histogram;

/// One workload at one rate.
#[derive(Debug)]
pub struct Case {
    /// What the guest does.
    pub workload: Workload,
    /// Operations per second; `None`: as fast as it can.
    pub rate: Option<u64>,
    runs: Vec<Found>,
}

/// What a run found.
#[derive(Debug)]
struct Found {
    /// Operations per second before.
    unprotected: f64,
    run: Run,
    apply: Histogram,
    /// Of the standby, for the full synchronisation and all epochs.
    standby_cpu_s: f64,
    /// Bytes of guest RAM.
    ram: usize,
}

/// Measures in the order in which they are shown.
const ORDER: [&str; 10] = [
    "pause",
    "capture",
    "commit",
    "hold",
    "apply",
    "operations",
    "goodput",
    "dirty pages per epoch",
    "epochs",
    "processor time per GiB of dirty pages",
];

/// Where a measure is in the order.
#[must_use]
pub fn order(name: &str) -> usize {
    ORDER.iter().position(|n| *n == name).unwrap_or(ORDER.len())
}

impl Case {
    /// Without runs.
    #[must_use]
    pub fn new(workload: Workload, rate: Option<u64>) -> Self {
        Self { workload, rate, runs: Vec::new() }
    }

    /// For people, and for `compare`.
    #[must_use]
    pub fn name(&self) -> String {
        match (self.workload, self.rate) {
            (Workload::Idle, _) => "idle".to_owned(),
            (workload, None) => format!("{}, free running", workload.name()),
            (workload, Some(rate)) => format!("{}, {rate}/s", workload.name()),
        }
    }

    /// Adds a run.
    pub fn add(&mut self, unprotected: f64, run: Run, stood: &StandReport, ram: usize) {
        self.runs.push(Found { unprotected, run, apply: stood.apply.clone(), standby_cpu_s: stood.cpu_s, ram });
    }

    /// Narrates the newest run.
    ///
    /// # Errors
    /// There is none.
    pub fn tell(&self, round: u32) -> Result<()> {
        let Some(Found { run, .. }) = self.runs.last() else { anyhow::bail!("no run of {}", self.name()) };
        let (pause, hold) = (us(run.source.pause.at(0.5)), us(run.hold.at(0.5)));
        let epochs = run.source.pause.count();
        eprintln!(
            "mc-bench: run {round}: {}: {epochs} epochs, pause {pause:.0} us, hold {hold:.0} us typical",
            self.name()
        );
        Ok(())
    }

    /// Its figures.
    #[must_use]
    pub fn measures(&self) -> Vec<Measure> {
        let mut measures = vec![
            self.times("pause", |f| &f.run.source.pause)
                .column("stop[usec]", self.median(|f| us(f.run.source.stop.at(0.5))))
                .column("track[usec]", self.median(|f| us(f.run.source.track.at(0.5)))),
            self.times("capture", |f| &f.run.source.capture),
            self.times("commit", |f| &f.run.commit),
            self.times("hold", |f| &f.run.hold),
            self.times("apply", |f| &f.apply),
            self.measure("goodput", Unit::MbPerSec, Better::Higher, |f| {
                bytes(f.run.pages) / f64::from(1 << 20) / f.run.seconds
            }),
            self.measure("dirty pages per epoch", Unit::Count, Better::Neither, |f| {
                f.run.source.pages as f64 / (f.run.source.pause.count() as f64).max(1.0)
            }),
            self.measure("epochs", Unit::Count, Better::Neither, |f| f.run.source.pause.count() as f64)
                .column("sent while held", self.median(|f| f.run.streamed_while_held as f64)),
        ];
        if self.workload != Workload::Idle {
            measures.push(self.operations());
            measures.push(self.cpu());
        }
        measures.retain(|m| !m.runs.is_empty());
        measures
    }

    /// What protection costs the guest.
    fn operations(&self) -> Measure {
        let alone = self.runs.iter().map(|f| Some(f.unprotected)).collect();
        self.measure("operations", Unit::Count, Better::Higher, |f| f.run.operations as f64 / f.run.seconds)
            .beside("unprotected, per second", alone)
    }

    /// Of both sides, without the guest's own.
    fn cpu(&self) -> Measure {
        let per_gib = |seconds: f64, bytes: f64| if bytes > 0.0 { seconds * f64::from(1 << 30) / bytes } else { 0.0 };
        let primary = |f: &Found| per_gib(f.run.cpu_s, bytes(f.run.source.pages));
        let standby = |f: &Found| per_gib(f.standby_cpu_s, bytes(f.run.pages) + f.ram as f64);
        self.measure(ORDER[9], Unit::Sec, Better::Lower, |f| primary(f) + standby(f))
            .column("primary[sec]", self.median(primary))
            .column("standby[sec]", self.median(standby))
    }

    /// Medians of times, run by run, and all of them together. A run without any has none.
    fn times(&self, name: &str, of: impl Fn(&Found) -> &Histogram) -> Measure {
        let mut all = Histogram::new();
        self.runs.iter().for_each(|found| all.merge(of(found)));
        let p99 = us(all.at(0.99));
        let medians = self.runs.iter().map(of).filter(|times| !times.is_empty()).map(|times| us(times.at(0.5)));
        let measure = Measure::new(name, self.name(), Unit::Usec, Better::Lower, medians.collect());
        measure.column("99% percentile[usec]", p99).times(all)
    }

    /// What must be known of runs in which no epoch was committed.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let none = self.runs.iter().filter(|found| found.run.commit.is_empty()).count();
        let of = self.runs.len();
        (none > 0)
            .then(|| format!("{}: no epoch began and was committed in {none} of {of} runs: raise --for", self.name()))
    }

    fn measure(&self, name: &str, unit: Unit, better: Better, of: impl Fn(&Found) -> f64) -> Measure {
        Measure::new(name, self.name(), unit, better, self.runs.iter().map(of).collect())
    }

    fn median(&self, of: impl Fn(&Found) -> f64) -> f64 {
        Spread::of(&self.runs.iter().map(of).collect::<Vec<_>>()).map_or(0.0, |s| s.median)
    }

    /// The pauses of the last run.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        let run = &self.runs.last()?.run;
        let points = run.source.pauses.iter().map(|(at, length)| (*at, length * 1e6)).collect();
        Some(Timeline { name: "pauses".to_owned(), case: self.name(), unit: Unit::Usec, points })
    }
}
