//! What the synthetic guest does with its memory.
//!
//! | workload | an operation |
//! |---|---|
//! | idle | nothing |
//! | sequential | writes 64 bytes to the next page |
//! | uniform | writes 64 bytes to a page, all equally likely |
//! | zipf | writes 64 bytes to a page, the kth most popular with a likelihood of 1/k^0.99 |
//! | database | a transaction: reads four rows of 256 bytes and rewrites one, all chosen as in zipf, in the first 7/8 of memory; appends 128 bytes to a log that goes round in the rest |

use crate::capture::pattern::Random;
use clap::ValueEnum;
use mc_core::{id::PAGE_SIZE, ram::SharedRam};
use serde::{Deserialize, Serialize};

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Nothing
    Idle,
    /// One page after the other
    Sequential,
    /// All pages equally likely
    Uniform,
    /// A few pages most of the time
    Zipf,
    /// Reads and writes of popular rows, and a log
    Database,
}

impl Workload {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Sequential => "sequential",
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Database => "database",
        }
    }
}

/// Zipf's distribution over 0..n, by Gray and others' approximation ("Quickly generating billion-record synthetic databases"),
/// as YCSB has it.
#[derive(Clone, Debug)]
struct Zipf {
    n: u64,
    theta: f64,
    alpha: f64,
    zeta_n: f64,
    eta: f64,
}

impl Zipf {
    fn new(n: u64) -> Self {
        let theta: f64 = 0.99;
        let zeta = |n: u64| (1..=n).map(|k| (k as f64).powf(-theta)).sum::<f64>();
        let zeta_n = zeta(n);
        let eta = (1.0 - (2.0 / n as f64).powf(1.0 - theta)) / (1.0 - zeta(2.min(n)) / zeta_n);
        Self { n, theta, alpha: 1.0 / (1.0 - theta), zeta_n, eta }
    }

    /// The rank; 0 is the most popular.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and n")]
    fn draw(&self, random: &mut Random) -> u64 {
        let u = random.fraction();
        let uz = u * self.zeta_n;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5_f64.powf(self.theta) {
            return 1.min(self.n - 1);
        }
        let rank = self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.n - 1)
    }
}

/// A workload under way.
#[derive(Debug)]
pub struct Work {
    workload: Workload,
    random: Random,
    pages: u64,
    zipf: Zipf,
    /// Operations done.
    ops: u64,
    row: [u8; 256],
}

impl Work {
    /// On memory of so many pages, at least 16.
    #[must_use]
    pub fn new(workload: Workload, pages: u64, seed: u64) -> Self {
        let rows = if workload == Workload::Database { pages * 7 / 8 } else { pages };
        Self { workload, random: Random::new(seed), pages, zipf: Zipf::new(rows), ops: 0, row: [0; 256] }
    }

    /// One operation.
    pub fn operate(&mut self, ram: &mut SharedRam) {
        self.ops += 1;
        match self.workload {
            Workload::Idle => {}
            Workload::Sequential => self.write(ram, self.ops % self.pages),
            Workload::Uniform => {
                let page = self.random.below(self.pages);
                self.write(ram, page);
            }
            Workload::Zipf => {
                let page = self.popular();
                self.write(ram, page);
            }
            Workload::Database => self.transact(ram),
        }
    }

    /// A popular page: ranks are spread over memory, as hash tables and heaps do.
    fn popular(&mut self) -> u64 {
        let rank = self.zipf.draw(&mut self.random);
        rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.zipf.n
    }

    fn write(&mut self, ram: &mut SharedRam, page: u64) {
        let mut line = [0; 64];
        line.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.ops.to_le_bytes()));
        let at = page * PAGE_SIZE as u64 + self.random.below(64) * 64;
        ram.write(usize::try_from(at).expect("inside memory"), &line);
    }

    fn transact(&mut self, ram: &mut SharedRam) {
        let mut at = 0;
        for _ in 0..4 {
            at = self.popular() * PAGE_SIZE as u64 + self.random.below(16) * 256;
            ram.read(usize::try_from(at).expect("inside memory"), &mut self.row);
        }
        self.row[..8].copy_from_slice(&self.ops.to_le_bytes());
        ram.write(usize::try_from(at).expect("inside memory"), &self.row);
        let log = self.zipf.n * PAGE_SIZE as u64;
        let records = (self.pages * PAGE_SIZE as u64 - log) / 128;
        let at = log + (self.ops % records) * 128;
        ram.write(usize::try_from(at).expect("inside memory"), &self.row[..128]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_has_its_likelihoods() {
        let (zipf, mut random) = (Zipf::new(1000), Random::new(1));
        let mut counts = vec![0_u32; 1000];
        (0..100_000).for_each(|_| counts[usize::try_from(zipf.draw(&mut random)).unwrap()] += 1);
        // 1/H(1000, 0.99) = 0.1287; the second is 0.5036 of it.
        assert!((12_000..14_000).contains(&counts[0]), "{}", counts[0]);
        assert!((5_800..7_200).contains(&counts[1]), "{}", counts[1]);
        assert!(counts[500..].iter().sum::<u32>() > 5_000);
    }

    #[test]
    fn all_stay_inside_and_repeat_by_seed() {
        for workload in Workload::value_variants() {
            let run = |seed| {
                let mut ram = SharedRam::anonymous(16 * PAGE_SIZE).unwrap();
                let mut work = Work::new(*workload, 16, seed);
                (0..5000).for_each(|_| work.operate(&mut ram));
                let mut bytes = vec![0; ram.len()];
                ram.read(0, &mut bytes);
                bytes
            };
            assert_eq!(run(3), run(3));
            assert_eq!(run(3).iter().any(|b| *b != 0), *workload != Workload::Idle);
        }
    }
}
