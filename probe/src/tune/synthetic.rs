//! The tuner against worlds whose law is known: the stated 95 % intervals must hold the true rate about that often.

use super::*;
use mc_core::detector::jittered;
use node::keepalive::Measured;
use std::time::Duration;

const INTERVAL: f64 = 0.01;
const I: Duration = Duration::from_millis(10);
const SEEDS: u64 = 60;
/// With 60 worlds, fewer than this happen once in 300 even to intervals that hold 95 %.
const HELD: usize = 52;

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / 9_007_199_254_740_992.0
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.next().ln()
    }
}

/// Stalls of the way: so many a second, each so long; what is sent meanwhile comes at its end.
#[derive(Clone, Copy)]
struct StallLaw {
    per_s: f64,
    scale: f64,
    shape: f64,
}

impl StallLaw {
    fn survival(&self, s: f64) -> f64 {
        if self.shape == 0.0 {
            (-s / self.scale).exp()
        } else {
            (1.0 + self.shape * s / self.scale).powf(-1.0 / self.shape)
        }
    }

    fn draw(&self, dice: &mut Dice) -> f64 {
        let p = dice.next();
        if self.shape == 0.0 { -self.scale * p.ln() } else { self.scale * (p.powf(-self.shape) - 1.0) / self.shape }
    }

    /// False suspicions per second: a stall that begins `age` after a beat must last K·I - age. Ages have the density of a
    /// renewal process.
    fn truth(&self, i: f64, k: f64) -> f64 {
        let longer = |age: f64| (0..16).filter(|j| (75.0 + f64::from(*j)) / 100.0 > age).count() as f64 / 16.0;
        let cells = 900;
        let sum: f64 = (0..cells)
            .map(|c| (f64::from(c) + 0.5) / 1000.0)
            .map(|age| longer(age) * self.survival(i * (k - age)) * 0.001)
            .sum();
        self.per_s * sum / 0.825
    }
}

/// Loss with two states; in each, a beat is lost with a probability of its own.
#[derive(Clone, Copy)]
struct LossLaw {
    lost: [f64; 2],
    /// From good to bad, from bad to good, per beat.
    moves: [f64; 2],
}

impl LossLaw {
    /// P(a gap has at least m losses): exactly, from the state after a beat that was heard.
    fn at_least(&self, m: u32) -> f64 {
        let stationary =
            [self.moves[1] / (self.moves[0] + self.moves[1]), self.moves[0] / (self.moves[0] + self.moves[1])];
        let heard: f64 = (0..2).map(|s| stationary[s] * (1.0 - self.lost[s])).sum();
        let mut p: [f64; 2] = std::array::from_fn(|s| stationary[s] * (1.0 - self.lost[s]) / heard);
        for _ in 0..m {
            let moved = [
                p[0] * (1.0 - self.moves[0]) + p[1] * self.moves[1],
                p[0] * self.moves[0] + p[1] * (1.0 - self.moves[1]),
            ];
            p = [moved[0] * self.lost[0], moved[1] * self.lost[1]];
        }
        p[0] + p[1]
    }

    /// Per second, over the drawn intervals' sums.
    fn truth(&self, i: f64, k: usize) -> f64 {
        let (mut sums, mut per_gap, mut due) = (vec![1.0], 0.0, 0.0);
        for m in 0..3 * k {
            let mut more = vec![0.0; sums.len() + 90];
            sums.iter().enumerate().for_each(|(at, p)| (75..=90).for_each(|j| more[at + j] += p / 16.0));
            sums = more;
            let m = u32::try_from(m).unwrap();
            let exactly = self.at_least(m) - self.at_least(m + 1);
            per_gap += exactly * sums.iter().skip(100 * k).sum::<f64>();
            due += exactly * f64::from(m + 1);
        }
        per_gap / (due * 0.825 * i)
    }
}

/// What an end would measure in so many seconds.
fn measure(seed: u64, seconds: f64, stalls: Option<StallLaw>, loss: Option<LossLaw>) -> Measured {
    let mut dice = Dice(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let mut measured = Measured { interval_us: 10_000, detect_multiplier: 255, ..Measured::default() };
    let (mut sent, mut heard, mut due, mut missing, mut state) = (0.0, 0.0, 0.0, 0_u64, 0);
    let (mut stall_from, mut stall_to) = (stalls.map_or(f64::MAX, |s| dice.exponential(1.0 / s.per_s)), 0.0);
    for sequence in 1.. {
        let drawn = jittered(I, seed, 1, sequence).as_secs_f64();
        (sent, due) = (sent + drawn, due + drawn);
        if sent > seconds {
            break;
        }
        while let Some(law) = stalls.filter(|_| stall_from < sent) {
            stall_to = f64::max(stall_to, stall_from + law.draw(&mut dice));
            stall_from += dice.exponential(1.0 / law.per_s);
        }
        if let Some(law) = loss {
            state = if dice.next() < law.moves[state] { 1 - state } else { state };
            if dice.next() < law.lost[state] {
                missing += 1;
                continue;
            }
        }
        let now = f64::max(sent.max(stall_to) + dice.exponential(20e-6), heard);
        let time = |s: f64| Duration::from_secs_f64(s.max(0.0));
        measured.gap.record(time(now - heard));
        measured.excess.record(time(now - heard - due));
        measured.losses.record(missing);
        measured.received += 1;
        (heard, due, missing) = (now, 0.0, 0);
    }
    measured
}

/// In how many of the worlds the interval holds the truth, and the median of how far the estimate is off (a factor).
fn held(truth: f64, k: u8, world: impl Fn(u64) -> Measured) -> (usize, f64) {
    let mut ratios = vec![];
    let held = (1..=SEEDS).filter(|seed| {
        let assessment = assess(&world(*seed), I, k);
        ratios.push(assessment.false_per_s.estimate / truth);
        (assessment.false_per_s.low..=assessment.false_per_s.high).contains(&truth)
    });
    let held = held.count();
    ratios.sort_by(f64::total_cmp);
    println!("K = {k}: {truth:e} per second; held {held} of {SEEDS}");
    (held, ratios[ratios.len() / 2])
}

#[test]
fn exponential_stalls() {
    let law = StallLaw { per_s: 0.8, scale: 0.006, shape: 0.0 };
    for k in [3_u8, 6] {
        let (held, ratio) = held(law.truth(INTERVAL, k.into()), k, |seed| measure(seed, 300.0, Some(law), None));
        assert!(held >= HELD, "K = {k}: held {held} of {SEEDS}, median estimate x {ratio:.2}");
    }
}

#[test]
fn pareto_stalls() {
    let law = StallLaw { per_s: 0.8, scale: 0.004, shape: 0.3 };
    for k in [3_u8, 8] {
        let (held, ratio) = held(law.truth(INTERVAL, k.into()), k, |seed| measure(seed, 300.0, Some(law), None));
        assert!(held >= HELD, "K = {k}: held {held} of {SEEDS}, median estimate x {ratio:.2}");
    }
}

#[test]
fn independent_loss() {
    let law = LossLaw { lost: [0.05; 2], moves: [0.5; 2] };
    for k in [3_u8, 5] {
        let (held, ratio) = held(law.truth(INTERVAL, k.into()), k, |seed| measure(seed, 120.0, None, Some(law)));
        assert!(held >= HELD, "K = {k}: held {held} of {SEEDS}, median estimate x {ratio:.2}");
    }
}

#[test]
fn bursty_loss() {
    // Bad times of 4 beats on average, of which four in five are lost; single losses beside.
    let law = LossLaw { lost: [0.002, 0.8], moves: [0.002, 0.25] };
    for k in [4_u8, 10] {
        let (held, ratio) = held(law.truth(INTERVAL, k.into()), k, |seed| measure(seed, 300.0, None, Some(law)));
        assert!(held >= HELD, "K = {k}: held {held} of {SEEDS}, median estimate x {ratio:.2}");
        // Independent loss at the same rate would say next to never.
        let rate = 0.002 + 0.8 * 0.002 / 0.252;
        assert!(law.truth(INTERVAL, k.into()) > 100.0 * f64::powi(rate, k.into()) / INTERVAL);
    }
}
