//! Random operations on both ends, by seed, and a random ending.

use super::{Fabric, flow::SLAB, station::World};
use crate::{testing::Rng, transport::Transport};

const SEEDS: u64 = 30;
const OPERATIONS: u64 = 400;
const QUEUE: usize = 6;

/// Thousands of operations: nothing is lost, doubled, reordered or changed while the link is up; afterwards what was seen
/// is a prefix of what was sent; all slabs come home.
pub fn operations_by_seed<F: Fabric>(fabric: &mut F) {
    for seed in 0..SEEDS {
        let named = Seed(seed);
        one_seed(&mut *fabric, seed);
        drop(named);
    }
}

/// Says which seed failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("conformance: seed {}", self.0);
        }
    }
}

fn one_seed<F: Fabric>(fabric: &mut F, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut w = World::new(fabric, SLAB, QUEUE);
    for _ in 0..OPERATIONS {
        operation(&mut w, &mut rng);
    }
    match rng.below(4) {
        0 => w.fabric.cut(),
        1 => w.a.link.revoke().expect("fenced"),
        2 => w.b.link.revoke().expect("fenced"),
        _ => {
            finish(&mut w);
            w.check_complete();
            w.fabric.cut();
        }
    }
    w.until_both_down();
    w.check_prefixes();
}

/// One step of one end. Refusals are part of the game: the stations check that they give everything back.
fn operation<F: Fabric>(w: &mut World<'_, F>, rng: &mut Rng) {
    let station = if rng.below(2) == 0 { &mut w.a } else { &mut w.b };
    match rng.below(10) {
        0..=2 => drop(station.write(rng.below(4))),
        3 | 4 => drop(station.send()),
        5 | 6 => drop(station.post()),
        _ => drop(station.step()),
    }
}

/// Posts until everything has arrived.
fn finish<F: Fabric>(w: &mut World<'_, F>) {
    w.until("everything arrives", |w| {
        for station in [&mut w.a, &mut w.b] {
            if station.posted == 0 {
                station.post().expect("nothing is posted");
            }
        }
        w.a.seen.len() == w.b.sent.len() && w.b.seen.len() == w.a.sent.len() && w.a.writing + w.b.writing == 0
    });
}
