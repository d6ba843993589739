//! Axes of charts: where a value stands, where ticks stand, and how values are written beside them.

/// How values are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; nothing below the low end has a place.
    Log,
}

/// From values to the units of a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From 0 to `high` or a little more.
    #[must_use]
    pub fn linear(high: f64, from: f64, to: f64) -> Self {
        let high = if high > 0.0 && high.is_finite() { high } else { 1.0 };
        Self { scale: Scale::Linear, low: 0.0, high, from, to }
    }

    /// From `low` to `high`, or a little further where they are too close; both above 0.
    #[must_use]
    pub fn log(low: f64, high: f64, from: f64, to: f64) -> Self {
        let low = if low > 0.0 && low.is_finite() { low } else { 1e-3 };
        let high = if high.is_finite() { high.max(low * 1.5) } else { low * 10.0 };
        Self { scale: Scale::Log, low: low / 1.15, high: high * 1.15, from, to }
    }

    /// Where a value stands; one that is outside, at the end.
    #[must_use]
    pub fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// The value that stands at that share (0 to 1) of the axis.
    #[must_use]
    pub fn value(&self, share: f64) -> f64 {
        match self.scale {
            Scale::Linear => self.low + share * (self.high - self.low),
            Scale::Log => self.low * (self.high / self.low).powf(share),
        }
    }

    /// Round values within, three to eight of them as a rule.
    #[must_use]
    pub fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = step(self.high - self.low);
                let whole = (self.high / step + 1e-9).floor();
                (0..=20).map(f64::from).take_while(|n| *n <= whole).map(|n| n * step).collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10();
                let heads: &[f64] = if decades > 3.0 {
                    &[1.0]
                } else if decades > 1.2 {
                    &[1.0, 3.0]
                } else {
                    &[1.0, 2.0, 3.0, 5.0, 7.0]
                };
                let first = self.low.log10().floor();
                let tens = (0..=18).map(|n| 10_f64.powf(first + f64::from(n)));
                let all = tens.flat_map(|ten| heads.iter().map(move |head| head * ten));
                all.filter(|v| (self.low..=self.high).contains(v)).collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, about a fifth of the range.
fn step(range: f64) -> f64 {
    let rough = range / 5.0;
    let ten = 10_f64.powf(rough.log10().floor());
    let head = [1.0, 2.0, 5.0].into_iter().find(|head| head * ten >= rough * 0.999).unwrap_or(10.0);
    head * ten
}

/// "850 ns", "13.2 µs", "2 ms", "1.5 s".
#[must_use]
pub fn time(us: f64) -> String {
    let (value, unit) = if us >= 1e6 {
        (us / 1e6, "s")
    } else if us >= 1e3 {
        (us / 1e3, "ms")
    } else if us >= 1.0 || us <= 0.0 {
        (us, "µs")
    } else {
        (us * 1e3, "ns")
    };
    format!("{} {unit}", short(value))
}

/// Three digits, no zeros at the end, thousands as they are.
#[must_use]
pub fn short(value: f64) -> String {
    let size = value.abs();
    let digits = if size >= 100.0 || value == 0.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_places_and_ticks_are_round() {
        let linear = Axis::linear(1.25, 0.0, 100.0);
        assert_eq!((linear.at(0.0), linear.at(1.25), linear.at(9.0), linear.at(-1.0)), (0.0, 100.0, 100.0, 0.0));
        let ticks: Vec<String> = linear.ticks().into_iter().map(short).collect();
        assert_eq!(ticks, ["0", "0.5", "1"]);
        let log = Axis::log(10.0, 100_000.0, 100.0, 0.0);
        assert!(log.at(10.0) > log.at(1000.0) && log.at(0.0) <= 100.0);
        assert_eq!(log.ticks(), [10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
        assert!((log.value(0.0) - 10.0 / 1.15).abs() < 1e-9);
    }

    #[test]
    fn odd_ranges_do_not_break_an_axis() {
        for axis in [Axis::linear(0.0, 0.0, 1.0), Axis::linear(f64::NAN, 0.0, 1.0), Axis::log(0.0, 0.0, 0.0, 1.0)] {
            assert!(
                (0.0..=1.0).contains(&axis.at(5.0)) && !axis.ticks().is_empty() && axis.ticks().len() < 30,
                "{axis:?}"
            );
        }
        assert!(Axis::log(5.0, 5.0, 0.0, 1.0).ticks().len() > 1);
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let words = [0.85, 13.24, 999.6, 2000.0, 1.5e6, 0.0].map(time);
        assert_eq!(words, ["850 ns", "13.2 µs", "1000 µs", "2 ms", "1.5 s", "0 µs"]);
    }
}
