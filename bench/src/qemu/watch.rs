//! How long a VM stands still, as the QEMU that stops it tells: the one method for all that are compared.
//!
//! Our sidecar and QEMU's own COLO stop the VM by the same function of the same program, which reports `STOP` when the
//! processors stand still and `RESUME` before they run on, each with a time in microseconds. Neither the sidecar nor the
//! secondary has a say in it, and both pay the same for being watched.

use anyhow::{Result, ensure};
use mc_core::histogram::Histogram;
use rig::{
    monitor::{Monitor, Pause, pauses},
    timeline::now_ms,
};
use std::{path::Path, time::Duration};

/// What was seen of one VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// In order.
    pub pauses: Vec<Pause>,
    /// When watching began, in unix milliseconds.
    pub from_ms: f64,
}

/// Watches for so long.
///
/// # Errors
/// QEMU is gone, or tells of no pause at all.
pub(crate) fn watch(monitor: &Path, time: Duration) -> Result<Watched> {
    let mut monitor = Monitor::connect(monitor)?;
    let from_ms = now_ms();
    let pauses = pauses(&monitor.listen(time)?);
    ensure!(!pauses.is_empty(), "QEMU tells of no pause within {time:?}");
    Ok(Watched { pauses, from_ms })
}

impl Watched {
    /// How long they took.
    #[must_use]
    pub(crate) fn times(&self) -> Histogram {
        let mut times = Histogram::new();
        self.pauses.iter().for_each(|p| times.record(Duration::from_secs_f64(p.took_ms.max(0.0) / 1e3)));
        times
    }

    /// From the beginning of one to the beginning of the next: the median, in microseconds. None of a single one.
    #[must_use]
    pub(crate) fn period_us(&self) -> Option<f64> {
        let mut between: Vec<f64> = self.pauses.windows(2).map(|w| (w[1].at_ms - w[0].at_ms) * 1e3).collect();
        between.sort_by(f64::total_cmp);
        between.get(between.len() / 2).copied()
    }

    /// Seconds since watching began, and microseconds.
    #[must_use]
    pub(crate) fn points(&self) -> Vec<(f64, f64)> {
        self.pauses.iter().map(|p| ((p.at_ms - self.from_ms) / 1e3, p.took_ms * 1e3)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_have_a_length_and_a_period() {
        let pause = |at_ms, took_ms| Pause { at_ms, took_ms };
        let seen = Watched { pauses: vec![pause(1000.0, 2.0), pause(1100.0, 4.0), pause(1201.0, 3.0)], from_ms: 900.0 };
        assert_eq!((seen.period_us(), seen.times().count()), (Some(101_000.0), 3));
        assert!((seen.times().at(0.5).as_secs_f64() * 1e3 - 3.0).abs() < 0.01);
        assert_eq!(seen.points()[1], (0.2, 4000.0));
        assert_eq!(Watched::default().period_us(), None);
    }
}
