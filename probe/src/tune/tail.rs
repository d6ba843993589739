//! The tail of the silences: peaks over a threshold, with a generalised Pareto distribution (Pickands 1975; Coles 2001, chapter 4).
//!
//! P(X > x) = ζ · (1 + ξ (x - u) / σ)^(-1/ξ) for x > u: ζ is the share over the threshold u, σ the scale, ξ the shape (0: exponential;
//! above: heavier; below: with an end). The parameters are the most likely ones (Grimshaw's profile), with ξ from -0.5 to 1.
//!
//! The threshold leaves [`MOST`] to [`FEWEST`] values over it: the lowest one for which the Cramér-von Mises statistic does not object
//! ([`OBJECTS`], about the 10 % point when both parameters were fitted: Choulakian and Stephens 2001).
//!
//! Intervals are profile likelihoods at 95 %, widened by the count's own uncertainty: unlike standard errors they are as
//! lopsided as the answer is.

use mc_core::histogram::Histogram;

/// Values over the threshold, at most.
const MOST: u64 = 250;
/// And at least: fewer carry no fit.
pub const FEWEST: u64 = 30;
/// The fit is not believed above this.
const OBJECTS: f64 = 0.13;
/// Of the shape.
const SHAPES: (f64, f64) = (-0.5, 1.0);
/// Half the 95 % point of chi-square with one degree of freedom.
const DROP: f64 = 1.92;
/// The 97.5 % point of the normal distribution.
pub(super) const Z: f64 = 1.96;
/// A logarithm of a probability that is none.
const NEVER: f64 = -600.0;

/// A fitted tail. Values are seconds.
#[derive(Clone, Debug)]
pub struct Tail {
    /// u.
    pub threshold: f64,
    /// σ.
    pub scale: f64,
    /// ξ.
    pub shape: f64,
    /// How many lie over the threshold.
    pub over: u64,
    /// ζ.
    share: f64,
    /// By how much, and how many of each.
    excesses: Vec<(f64, f64)>,
    /// Of the fit.
    likelihood: f64,
}

impl Tail {
    /// Of what was measured; `None` if too little was, or no threshold leaves a tail of that form.
    #[must_use]
    pub fn fit(measured: &Histogram) -> Option<Self> {
        let mut buckets: Vec<(f64, u64)> = measured.buckets().map(|(d, n)| (d.as_secs_f64(), n)).collect();
        buckets.reverse();
        let total = measured.count();
        let mut most = MOST.min(total / 10);
        while most >= FEWEST {
            let tail = Self::over(&buckets, most, total);
            if let Some(tail) = tail.filter(|tail| tail.misfit() < OBJECTS) {
                return Some(tail);
            }
            most = most * 4 / 5;
        }
        None
    }

    /// With the lowest threshold that has at most so many over it. `buckets` fall.
    fn over(buckets: &[(f64, u64)], most: u64, total: u64) -> Option<Self> {
        let mut over = 0;
        let end = buckets.iter().position(|(_, n)| {
            over += n;
            over > most
        })?;
        let threshold = buckets[end].0;
        let over: u64 = buckets[..end].iter().map(|(_, n)| n).sum();
        let excesses: Vec<(f64, f64)> = buckets[..end].iter().rev().map(|(x, n)| (x - threshold, *n as f64)).collect();
        (over >= FEWEST).then(|| {
            let (shape, scale) = most_likely(&excesses);
            let likelihood = likelihood(&excesses, shape, scale);
            Self { threshold, scale, shape, over, share: over as f64 / total as f64, excesses, likelihood }
        })
    }

    /// P(X > `x`), for an `x` over the threshold.
    #[must_use]
    pub fn survival(&self, x: f64) -> f64 {
        self.share * self.conditional(x - self.threshold)
    }

    /// Of what is over the threshold, how much is so far over it.
    fn conditional(&self, y: f64) -> f64 {
        let base = 1.0 + self.shape * y / self.scale;
        if y <= 0.0 {
            1.0
        } else if self.shape.abs() < 1e-6 {
            (-y / self.scale).exp()
        } else if base <= 0.0 {
            0.0
        } else {
            base.powf(-1.0 / self.shape)
        }
    }

    /// The x of which P(X > x) is `probability`; the threshold if that is larger than the share over it.
    #[must_use]
    pub fn quantile(&self, probability: f64) -> f64 {
        let q = (probability / self.share).min(1.0);
        let y = if self.shape.abs() < 1e-6 { -q.ln() } else { (q.powf(-self.shape) - 1.0) / self.shape };
        self.threshold + self.scale * y
    }

    /// Where P(X > `x`) may lie, with 95 %.
    #[must_use]
    pub fn interval(&self, x: f64) -> (f64, f64) {
        let y = (x - self.threshold).max(f64::MIN_POSITIVE);
        let at = self.conditional(y).max(f64::MIN_POSITIVE).ln().max(NEVER);
        let missed = |log_q: f64| self.likelihood - self.profile(y, log_q) > DROP;
        let bound = |mut inside: f64, mut outside: f64| {
            for _ in 0..32 {
                let middle = f64::midpoint(inside, outside);
                if missed(middle) { outside = middle } else { inside = middle }
            }
            outside
        };
        let up = bound(at, 0.0) - at;
        let down = if missed(NEVER) { at - bound(at, NEVER) } else { f64::INFINITY };
        let count = Z / (self.over as f64).sqrt();
        let estimate = self.share * at.exp();
        (estimate * (-down.hypot(count)).exp(), (estimate * up.hypot(count).exp()).min(1.0))
    }

    /// The likelihood of the best shape when the share beyond `y` is given.
    fn profile(&self, y: f64, log_q: f64) -> f64 {
        if log_q >= 0.0 {
            return f64::NEG_INFINITY;
        }
        let at = |shape: f64| likelihood(&self.excesses, shape, scale_for(shape, y, log_q));
        best(at, SHAPES, 12).1
    }

    /// The Cramér-von Mises statistic.
    fn misfit(&self) -> f64 {
        let n = self.over as f64;
        let (mut sum, mut before) = (1.0 / (12.0 * n), 0.0);
        for (y, times) in &self.excesses {
            // Values of one bucket spread evenly over their ranks.
            let rank = (before + times / 2.0) / n;
            sum += times * (1.0 - self.conditional(*y) - rank).powi(2);
            before += times;
        }
        sum
    }
}

/// The scale of which the share beyond `y` is exp(`log_q`).
fn scale_for(shape: f64, y: f64, log_q: f64) -> f64 {
    if shape.abs() < 1e-6 { -y / log_q } else { shape * y / ((-shape * log_q).exp_m1()) }
}

fn likelihood(excesses: &[(f64, f64)], shape: f64, scale: f64) -> f64 {
    if !(scale > 0.0 && scale.is_finite()) {
        return f64::NEG_INFINITY;
    }
    let (mut n, mut sum) = (0.0, 0.0);
    for (y, times) in excesses {
        n += times;
        sum += times
            * if shape.abs() < 1e-6 {
                y / scale
            } else {
                let base = 1.0 + shape * y / scale;
                if base <= 0.0 {
                    return f64::NEG_INFINITY;
                }
                (1.0 + 1.0 / shape) * base.ln()
            };
    }
    -n * scale.ln() - sum
}

/// Shape and scale: with θ = ξ/σ given, the most likely ξ is the mean of ln(1 + θy), so that one dimension is left to search.
fn most_likely(excesses: &[(f64, f64)]) -> (f64, f64) {
    let n: f64 = excesses.iter().map(|(_, times)| times).sum();
    let mean = excesses.iter().map(|(y, times)| y * times).sum::<f64>() / n;
    let most = excesses.last().map_or(mean, |(y, _)| *y);
    let shape_of = |t: f64| excesses.iter().map(|(y, times)| times * (t * y / mean).ln_1p()).sum::<f64>() / n;
    let at = |t: f64| {
        if t.abs() < 1e-9 {
            return (0.0, mean);
        }
        let shape = shape_of(t).clamp(SHAPES.0, SHAPES.1);
        (shape, shape * mean / t)
    };
    // A scale whose tail ends before the largest value has no likelihood; t runs from that end to a very heavy tail.
    let limits = (-0.999 * mean / most, 20.0);
    let objective = |t: f64| {
        let (shape, scale) = at(t);
        likelihood(excesses, shape, scale)
    };
    at(best(objective, limits, 60).0)
}

/// Where a function of one hump is largest, and what it is there: a coarse look, then the golden section.
fn best(f: impl Fn(f64) -> f64, (low, high): (f64, f64), steps: u32) -> (f64, f64) {
    let step = (high - low) / f64::from(steps);
    let coarse = (0..=steps).map(|i| low + step * f64::from(i));
    let top = coarse.map(|x| (x, f(x))).fold((low, f64::NEG_INFINITY), |a, b| if b.1 > a.1 { b } else { a });
    let (mut a, mut b) = ((top.0 - step).max(low), (top.0 + step).min(high));
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut c, mut d) = (b - ratio * (b - a), a + ratio * (b - a));
    let (mut fc, mut fd) = (f(c), f(d));
    for _ in 0..20 {
        if fc > fd {
            (b, d, fd) = (d, c, fc);
            c = b - ratio * (b - a);
            fc = f(c);
        } else {
            (a, c, fc) = (c, d, fd);
            d = a + ratio * (b - a);
            fd = f(d);
        }
    }
    [(c, fc), (d, fd)].into_iter().fold(top, |a, b| if b.1 > a.1 { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Quantiles of a law instead of draws: the fit has nothing to guess.
    fn of(law: impl Fn(f64) -> f64) -> Histogram {
        let mut histogram = Histogram::new();
        (0..20_000).for_each(|i| histogram.record(Duration::from_secs_f64(law((f64::from(i) + 0.5) / 20_000.0))));
        histogram
    }

    #[test]
    fn an_exponential_and_a_pareto_tail_are_known_again() {
        let exponential = Tail::fit(&of(|p| -0.003 * (1.0 - p).ln())).unwrap();
        assert!(exponential.shape.abs() < 0.05, "{}", exponential.shape);
        assert!((exponential.survival(0.03).ln() + 10.0).abs() < 0.3, "{}", exponential.survival(0.03));
        let pareto = Tail::fit(&of(|p| 0.002 * ((1.0 - p).powf(-0.4) - 1.0))).unwrap();
        assert!((pareto.shape - 0.4).abs() < 0.05, "{}", pareto.shape);
        for tail in [exponential, pareto] {
            let x = tail.quantile(1e-5);
            let (low, high) = tail.interval(x);
            assert!((tail.survival(x) / 1e-5 - 1.0).abs() < 1e-6);
            assert!(low < 1e-5 && 1e-5 < high && high < 1e-3, "{low:e} {high:e}");
        }
    }

    #[test]
    fn too_little_is_no_tail() {
        let mut few = Histogram::new();
        (1..200).for_each(|us| few.record(Duration::from_micros(us)));
        assert!(Tail::fit(&few).is_none());
        few.record_many(Duration::from_millis(1), 1_000_000);
        assert!(Tail::fit(&few).is_none(), "no threshold leaves anything over it");
        assert!(Tail::fit(&Histogram::new()).is_none());
    }
}
