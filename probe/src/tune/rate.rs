//! A figure with its 95 % interval.

use super::tail::Z;
use serde::Serialize;

/// How often, or how likely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    /// The best guess.
    pub estimate: f64,
    /// Not less, with 95 %.
    pub low: f64,
    /// Not more, with 95 %.
    pub high: f64,
}

impl Rate {
    /// All of it times `factor`.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { estimate: self.estimate * factor, low: self.low * factor, high: self.high * factor }
    }

    /// Of two independent causes together: distances from the estimates add up as squares (Zou and Donner's MOVER).
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let estimate = self.estimate + other.estimate;
        let down = (self.estimate - self.low).hypot(other.estimate - other.low);
        let up = (self.high - self.estimate).hypot(other.high - other.estimate);
        Self { estimate, low: (estimate - down).max(0.0), high: estimate + up }
    }
}

/// `k` events in `n` chances or seconds, after Poisson: Garwood's interval by Wilson and Hilferty's cubes. None seen: the bound is the
/// rule of three, 3.00 / n with 95 %.
#[must_use]
pub fn counted(k: u64, n: u64) -> Rate {
    let (events, chances) = (k as f64, (n as f64).max(1.0));
    if k == 0 {
        return Rate { estimate: 0.0, low: 0.0, high: -(0.05_f64.ln()) / chances };
    }
    let cube = |m: f64, z: f64| m * (1.0 - 1.0 / (9.0 * m) + z / (3.0 * m.sqrt())).powi(3);
    let (low, high) = (cube(events, -Z).max(0.0), cube(events + 1.0, Z));
    Rate { estimate: events / chances, low: low / chances, high: high / chances }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_garwoods_interval() {
        for (k, low, high) in [(1, 0.0253, 5.572), (5, 1.624, 11.67), (100, 81.36, 121.63)] {
            let rate = counted(k, 1);
            assert!((rate.low - low).abs() < 0.03 && (rate.high - high).abs() < 0.03, "{k}: {rate:?}");
        }
        assert!((counted(0, 300).high - 0.01).abs() < 1e-4, "the rule of three");
    }
}
