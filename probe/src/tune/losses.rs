//! Lost beats, as runs: how likely a gap has so many in it.
//!
//! Independent loss makes long runs absurdly rare; real loss comes in bursts. Gilbert's and Elliott's model (1960, 1963) has runs whose
//! tail is geometric: each lost beat is followed by another lost one with the same probability ρ, which is not the loss rate.
//! So: the runs of at least `from` beats are counted, and ρ is taken from how they go on. `from` is 1, unless the short
//! runs disagree with the long ones (single losses beside bursts): then it is where they begin to agree.

use super::{
    rate::{Rate, counted},
    tail::Z,
};
use node::keepalive::LossRuns;

/// Runs beyond the threshold, at least, for ρ to be taken from them alone.
const ENOUGH: u64 = 10;
/// Two shares disagree beyond this many standard errors (10 %).
const DISAGREE: f64 = 1.645;

/// The model of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// Runs from this length on are geometric.
    pub from: u32,
    /// How many there are.
    pub runs: u64,
    /// ρ, with its 95 % interval.
    pub ratio: Rate,
    gaps: u64,
}

impl Losses {
    /// Of the runs in so many gaps.
    #[must_use]
    pub fn fit(measured: &LossRuns, gaps: u64) -> Self {
        let mut from = 1;
        while measured.at_least(from + 1) >= ENOUGH && disagree(measured, from) {
            from += 1;
        }
        let runs = measured.at_least(from);
        let (more, trials) = continuations(measured, from);
        Self { from, runs, ratio: share(more, trials), gaps }
    }

    /// How likely a gap has at least `length` losses (1 or more) in it.
    #[must_use]
    pub fn at_least(&self, measured: &LossRuns, length: u32) -> Rate {
        if length <= self.from || self.runs == 0 {
            return self.few(measured, length);
        }
        let begin = counted(self.runs, self.gaps);
        let steps = f64::from(length - self.from);
        let grown = |begin: f64, ratio: f64| begin * ratio.powf(steps);
        let estimate = grown(begin.estimate, self.ratio.estimate);
        if estimate <= 0.0 {
            return Rate { estimate: 0.0, low: 0.0, high: grown(begin.high, self.ratio.high) };
        }
        let logs = |of: fn(&Rate) -> f64| {
            let begun = (of(&begin) / begin.estimate).ln();
            let continued = steps * (of(&self.ratio) / self.ratio.estimate).ln();
            begun.hypot(continued)
        };
        let (down, up) = (logs(|r| r.low), logs(|r| r.high));
        Rate { estimate, low: estimate * (-down).exp(), high: (estimate * up.exp()).min(1.0) }
    }

    /// What was counted; where nothing was lost at all, what independent loss that happened not to show could do.
    fn few(&self, measured: &LossRuns, length: u32) -> Rate {
        let begin = counted(measured.at_least(length), self.gaps);
        if self.runs > 0 {
            return begin;
        }
        let high = begin.high.min(1.0).powf(f64::from(length));
        Rate { estimate: 0.0, low: 0.0, high }
    }
}

/// Of the losses that begin or continue runs of at least `from`: how often another one followed.
fn continuations(measured: &LossRuns, from: u32) -> (u64, u64) {
    let long = measured.runs().filter(|(length, _)| *length >= from);
    let (more, ends) = long.fold((0, 0), |(more, ends), (length, n)| (more + u64::from(length - from) * n, ends + n));
    (more, more + ends)
}

/// Whether runs of `from` go on more or less often than longer ones do.
fn disagree(measured: &LossRuns, from: u32) -> bool {
    let first = (measured.at_least(from + 1) as f64, measured.at_least(from) as f64);
    let (more, trials) = continuations(measured, from + 1);
    let later = (more as f64, trials as f64);
    let pooled = (first.0 + later.0) / (first.1 + later.1);
    let error = (pooled * (1.0 - pooled) * (1.0 / first.1 + 1.0 / later.1)).sqrt();
    error > 0.0 && (first.0 / first.1 - later.0 / later.1).abs() > DISAGREE * error
}

/// Wilson's interval.
fn share(of: u64, trials: u64) -> Rate {
    if trials == 0 {
        return Rate { estimate: 0.0, low: 0.0, high: 1.0 };
    }
    let (k, n) = (of as f64, trials as f64);
    let (p, z2) = (k / n, Z * Z);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Rate { estimate: p, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: &[(u64, u32)]) -> LossRuns {
        let mut runs = LossRuns::default();
        of.iter().for_each(|(length, times)| (0..*times).for_each(|_| runs.record(*length)));
        runs
    }

    #[test]
    fn bursts_beside_single_losses_are_told_apart() {
        let bursts = runs(&[(1, 1000), (2, 40), (3, 20), (4, 10), (5, 5), (6, 3), (7, 2)]);
        let model = Losses::fit(&bursts, 100_000);
        assert_eq!((model.from, model.runs), (2, 80));
        assert!((0.4..0.6).contains(&model.ratio.estimate), "{model:?}");
        let plain = runs(&[(1, 900), (2, 90), (3, 9), (4, 1)]);
        let model = Losses::fit(&plain, 100_000);
        assert_eq!((model.from, model.runs), (1, 1000));
        assert!((model.at_least(&plain, 3).estimate / 1e-4 - 1.0).abs() < 0.1, "{model:?}");
    }

    #[test]
    fn nothing_lost_is_no_proof_that_nothing_can_be() {
        let none = LossRuns::default();
        let model = Losses::fit(&none, 3000);
        let one = model.at_least(&none, 1);
        assert_eq!((one.estimate, one.low), (0.0, 0.0));
        assert!((one.high / 1e-3 - 1.0).abs() < 0.01 && model.at_least(&none, 3).high < 1.1e-9);
    }
}
