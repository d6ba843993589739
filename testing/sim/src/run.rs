//! A run: a seed, hardships, what came of it; and the shortest schedule that still fails.

use crate::{
    hardship::{Hardships, Schedule},
    world::{Trace, World},
};
use mc_core::testing::Sabotage;
use node::outside::World as Outside;
use std::{io, path::Path};

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that is drawn follows from it.
    pub seed: u64,
    /// What befalls the world.
    pub hardships: Hardships,
    /// When, and what exactly.
    pub schedule: Schedule,
    /// A rule that is left out.
    pub bug: Option<Sabotage>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What must not be.
    pub wrong: Option<String>,
    /// Words that were heard outside.
    pub words: u64,
    /// How often a standby continued the VM.
    pub takeovers: u64,
    /// Virtual time, ns.
    pub lasted: u64,
    /// What happened, a line each, if it was wanted.
    pub trace: Vec<String>,
}

impl Plan {
    /// Of this seed; without a word about hardships they are drawn as well.
    #[must_use]
    pub fn new(seed: u64, hardships: Option<&Hardships>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let hardships = hardships.cloned().unwrap_or_else(|| Hardships::drawn(&mut rng));
        let schedule = hardships.schedule(&mut rng);
        Self { seed, hardships, schedule, bug: None }
    }

    /// Runs it. `dir`: for what nodes keep; it is emptied.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn run(&self, dir: &Path, traced: bool) -> io::Result<Outcome> {
        std::fs::remove_dir_all(dir).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        std::fs::create_dir_all(dir)?;
        let trace = traced.then(Trace::default);
        let mut world = World::new(self.seed, &self.schedule, self.bug, dir, trace.clone());
        let wrong = world.run().err();
        let (words, takeovers) = {
            let observer = world.observer();
            (observer.words, observer.takeovers)
        };
        let lasted = world.now;
        world.note("=", wrong.as_deref().unwrap_or("nothing is wrong"));
        drop(world);
        Outside::end();
        let trace = trace.map(|trace| trace.take()).unwrap_or_default();
        Ok(Outcome { wrong, words, takeovers, lasted, trace })
    }

    /// The shortest schedule that still goes wrong: blows are left out as long as it does.
    ///
    /// # Errors
    /// As for [`Plan::run`].
    pub fn shrunk(&self, dir: &Path) -> io::Result<Self> {
        let mut plan = self.clone();
        let mut index = 0;
        while index < plan.schedule.len() {
            let mut shorter = plan.clone();
            shorter.schedule.remove(index);
            if shorter.run(dir, false)?.wrong.is_some() {
                plan = shorter;
            } else {
                index += 1;
            }
        }
        Ok(plan)
    }
}
