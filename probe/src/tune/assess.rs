//! One setting: how often it would suspect a live peer, and how sure that is.

use super::{
    detection::Detection,
    losses::Losses,
    rate::{Rate, counted},
    tail::Tail,
};
use node::keepalive::Measured;
use serde::Serialize;
use std::time::Duration;

/// A false suspicion costs protection until the next full synchronisation: more than one a year is too many unless told otherwise.
const BEARABLE_PER_S: f64 = 1.0 / (365.25 * 86_400.0);
/// Intervals are drawn from these percents of the nominal one.
const DRAWN: std::ops::RangeInclusive<usize> = 75..=90;
/// Of the nominal interval, on average.
const MEAN: f64 = 0.825;
/// Of the nominal interval, at most.
const MOST: f64 = 0.9;
/// Runs that are less likely than this are left out.
const NEGLIGIBLE: f64 = 1e-18;
/// A thread that is later than this share of an interval does not keep it.
const KEEPS: f64 = 0.25;

/// What an assessment rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Support {
    /// Silences that long were seen, and counted.
    Counted,
    /// None was seen: the fitted tail says how many there would be.
    Extrapolated,
    /// None was seen, and there is no tail that fits: only the rule of three holds.
    RuleOfThree,
    /// The measurement cannot see such short silences: measure at this interval.
    Untold,
}

/// What makes false suspicions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Beats that are lost.
    Loss,
    /// Beats that are late: the other end's scheduling or the link.
    Stalls,
    /// This end's own clockwork: its thread is later than a quarter of the interval, one time in a hundred.
    OwnLateness,
}

/// Whether a setting may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Even the upper end of the interval is bearable.
    Carries,
    /// The upper end is not: more measuring may tell.
    Unproven,
    /// Not even the lower end is, or this end cannot keep the interval.
    Cannot,
}

/// One setting, assessed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assessment {
    /// I, seconds.
    pub interval_s: f64,
    /// K.
    pub multiplier: u8,
    /// From death to suspicion.
    pub detection_s: Detection,
    /// False suspicions per second.
    pub false_per_s: Rate,
    /// Of those, the ones that losses alone make.
    pub loss_per_s: Rate,
    /// And those that stalls make, or stalls and losses together.
    pub stalls_per_s: Rate,
    /// By counting alone, with 95 % not more, per second.
    pub counted_high_per_s: f64,
    /// What it rests on.
    pub support: Support,
    /// What makes the most of them, or limits the interval.
    pub limit: Limit,
    /// For how long was measured, seconds.
    pub observed_s: f64,
}

impl Assessment {
    /// Whether false suspicions are as rare as `bearable_per_s`.
    #[must_use]
    pub fn verdict(&self, bearable_per_s: f64) -> Verdict {
        let Rate { low, high, .. } = self.false_per_s;
        if self.limit == Limit::OwnLateness || low > bearable_per_s {
            Verdict::Cannot
        } else if self.support == Support::Untold || high > bearable_per_s {
            Verdict::Unproven
        } else {
            Verdict::Carries
        }
    }

    /// The verdict for one false suspicion a year.
    #[must_use]
    pub fn usual_verdict(&self) -> Verdict {
        self.verdict(BEARABLE_PER_S)
    }
}

/// Assesses one setting. For several, fit a [`Model`] once.
#[must_use]
pub fn assess(measured: &Measured, interval: Duration, multiplier: u8) -> Assessment {
    Model::fit(measured).assess(interval, multiplier)
}

/// What was measured, with its fits.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    measured: &'a Measured,
    /// Of the excess.
    pub tail: Option<Tail>,
    /// Of the losses.
    pub losses: Losses,
    gaps: u64,
    observed: f64,
}

/// Of stalls: how likely a gap is one, and how.
struct Stalls {
    /// Per gap.
    rate: Rate,
    /// How many were seen.
    seen: u64,
}

impl<'a> Model<'a> {
    /// Fits both tails.
    #[must_use]
    pub fn fit(measured: &'a Measured) -> Self {
        let gaps = measured.gap.count();
        let (tail, losses) = (Tail::fit(&measured.excess), Losses::fit(&measured.losses, gaps));
        Self { measured, tail, losses, gaps, observed: measured.observed().as_secs_f64() }
    }

    /// Assesses one setting.
    #[must_use]
    pub fn assess(&self, interval: Duration, multiplier: u8) -> Assessment {
        let (i, i0, k) = (interval.as_secs_f64(), self.measured.interval().as_secs_f64(), f64::from(multiplier));
        let unseen = MOST * (i0 - i).max(0.0);
        let gaps_per_s = if self.observed > 0.0 { self.gaps as f64 / self.observed * (i0 / i).max(1.0) } else { 0.0 };
        let beats = Beats { stretch: (i0 / i).max(1.0), multiplier: multiplier.into() };
        let loss = self.loss(&beats);
        let stalls = self.stalls(&beats, |drawn: f64| i * (k - drawn) - unseen);
        let far = i * (k - MEAN) - unseen;
        let (loss_per_s, stalls_per_s) = (loss.rate.times(gaps_per_s), stalls.rate.times(gaps_per_s));
        let untold = gaps_per_s <= 0.0 || i * (k - MOST) <= unseen;
        let seen = loss.seen + stalls.seen;
        let support = match (&self.tail, seen) {
            _ if untold => Support::Untold,
            (_, 1..) => Support::Counted,
            (Some(tail), 0) if far > tail.threshold => Support::Extrapolated,
            _ => Support::RuleOfThree,
        };
        let own = self.measured.lateness.at(0.99).as_secs_f64();
        let limit = match loss_per_s.high > stalls_per_s.high {
            _ if own > KEEPS * i => Limit::OwnLateness,
            true => Limit::Loss,
            false => Limit::Stalls,
        };
        Assessment {
            interval_s: i,
            multiplier,
            detection_s: Detection::of(self.measured, interval, multiplier),
            false_per_s: loss_per_s.and(stalls_per_s),
            loss_per_s,
            stalls_per_s,
            counted_high_per_s: counted(seen, self.gaps).high * gaps_per_s,
            support,
            limit,
            observed_s: self.observed,
        }
    }

    /// At least so many losses in one gap.
    fn run(&self, beats: &Beats, length: u32) -> Rate {
        self.losses.at_least(&self.measured.losses, beats.measured(length))
    }

    /// Losses alone: runs whose due times add up to K intervals. The intervals are drawn, so that is a share of the runs of each length.
    fn loss(&self, beats: &Beats) -> Stalls {
        let (mut estimate, mut low, mut high, mut seen) = (0.0, 0.0, 0.0, 0.0);
        let mut before = 0.0;
        for (m, sums) in beats.sums().enumerate().skip(1) {
            let enough: f64 = sums.iter().skip((beats.multiplier * 100).saturating_sub(DRAWN.start() * (m + 1))).sum();
            // P(at least m) counts for how much more of it is enough than with one loss fewer.
            let more = enough - before;
            if more > 0.0 {
                let length = u32::try_from(m).unwrap_or(u32::MAX);
                let run = self.run(beats, length);
                estimate += run.estimate * more;
                low += run.low * more;
                high += run.high * more;
                seen += self.measured.losses.at_least(beats.measured(length)) as f64 * more;
            }
            before = enough;
            if enough > 1.0 - 1e-12 {
                break;
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Stalls { rate: Rate { estimate, low, high }, seen: seen.round() as u64 }
    }

    /// Stalls, with and without losses before them. `needed`: the excess that makes a gap of so many intervals a suspicion.
    fn stalls(&self, beats: &Beats, needed: impl Fn(f64) -> f64) -> Stalls {
        let total = self.measured.excess.count();
        if total == 0 {
            return Stalls { rate: Rate { estimate: 0.0, low: 0.0, high: 1.0 }, seen: 0 };
        }
        let mut estimate = 0.0;
        for (m, sums) in beats.sums().enumerate() {
            let m32 = u32::try_from(m).unwrap_or(u32::MAX);
            let at_least = if m == 0 { 1.0 } else { self.run(beats, m32).estimate };
            if at_least < NEGLIGIBLE {
                break;
            }
            let exactly = at_least - self.run(beats, m32 + 1).estimate.min(at_least);
            for (extra, weight) in sums.iter().enumerate() {
                let percents = DRAWN.start() * (m + 1) + extra;
                // From K intervals on, losses alone are enough.
                if percents < beats.multiplier * 100 {
                    estimate += exactly * weight * self.survival(needed(percents as f64 / 100.0));
                }
            }
        }
        let near = needed(MEAN).max(0.0);
        let seen = total - self.measured.excess.count_at_most(Duration::from_secs_f64(near));
        Stalls { rate: self.around(estimate, near, seen), seen }
    }

    /// P(excess > `x`): counted, or by the fit where it holds.
    fn survival(&self, x: f64) -> f64 {
        match &self.tail {
            _ if x <= 0.0 => 1.0,
            Some(tail) if x > tail.threshold => tail.survival(x),
            _ => {
                let excess = &self.measured.excess;
                1.0 - excess.count_at_most(Duration::from_secs_f64(x)) as f64 / excess.count() as f64
            }
        }
    }

    /// The interval of a probability: the fitted tail's, where that says so much; or the count's.
    fn around(&self, estimate: f64, near: f64, seen: u64) -> Rate {
        let total = self.measured.excess.count();
        match &self.tail {
            Some(tail) if near > tail.threshold => {
                // The one excess that is as likely as all of them together.
                let x = if estimate > 0.0 { tail.quantile(estimate).max(tail.threshold) } else { near };
                let (low, high) = tail.interval(x);
                Rate { estimate, low: low.min(estimate), high: high.max(estimate) }
            }
            _ => {
                let Rate { low, high, .. } = counted(seen, total);
                Rate { estimate, low: low.min(estimate), high: high.max(estimate) }
            }
        }
    }
}

/// The beats of a setting.
struct Beats {
    /// How many of them there are to one that was measured; 1 if they are rarer.
    stretch: f64,
    multiplier: usize,
}

impl Beats {
    /// A run of `length` here, as a run of the beats that were measured: the shorter one.
    fn measured(&self, length: u32) -> u32 {
        let shorter = f64::from(length.saturating_sub(1)) / self.stretch;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to length")]
        let whole = shorter.floor() as u32;
        if length == 0 { 0 } else { 1 + whole }
    }

    /// For 1, 2, … drawn intervals: how likely their sum is 75, 76, … percent times their number, and on. To twice K of them.
    fn sums(&self) -> impl Iterator<Item = Vec<f64>> {
        let one = vec![1.0 / DRAWN.count() as f64; DRAWN.count()];
        let next = move |sums: &Vec<f64>| {
            let mut more = vec![0.0; sums.len() + DRAWN.count() - 1];
            for (at, p) in sums.iter().enumerate() {
                (0..DRAWN.count()).for_each(|drawn| more[at + drawn] += p / DRAWN.count() as f64);
            }
            Some(more)
        };
        std::iter::successors(Some(one), next).take(2 * self.multiplier + 2)
    }
}
