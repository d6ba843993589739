//! A thread whose outside is a test.

use crate::{
    arbiter::Steps as Arbiter, events::Event, keepalive::Steps as Beats, primary::session::Search, standby::Calls,
};
use mc_core::testing::Sabotage;
use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

thread_local! {
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
    static START: Instant = Instant::now();
    static WORLD: RefCell<World> = RefCell::new(World::default());
}

type Told = Box<dyn FnMut(&Event)>;

/// What this thread's nodes have begun, for whoever turns it. A thread is a world from [`World::set_now`] to [`World::end`].
#[derive(Default)]
pub struct World {
    random: u64,
    sabotage: Option<Sabotage>,
    told: Option<Told>,
    beats: Vec<Beats>,
    arbiters: Vec<Arbiter>,
    searches: Vec<Search>,
    door: Option<Box<dyn Calls>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(act)
}

impl World {
    /// It is `ns` after boot, on the host whose turn is next.
    pub fn set_now(ns: u64) {
        NOW.set(Some(ns));
    }

    /// Now, as what only measures has it.
    #[must_use]
    pub fn instant() -> Instant {
        instant().unwrap_or_else(Instant::now)
    }

    /// What is drawn at random follows from `seed`.
    pub fn seed(seed: u64) {
        with(|world| world.random = seed);
    }

    /// Machines that are made from here on have this bug.
    pub fn sabotage(bug: Option<Sabotage>) {
        with(|world| world.sabotage = bug);
    }

    /// Events are told to `told`, and to nobody else.
    pub fn tell(told: impl FnMut(&Event) + 'static) {
        with(|world| world.told = Some(Box::new(told)));
    }

    /// The next standby is called through this.
    pub fn open(door: Box<dyn Calls>) {
        with(|world| world.door = Some(door));
    }

    /// The beats that were started since this was asked.
    #[must_use]
    pub fn beats() -> Vec<Beats> {
        with(|world| std::mem::take(&mut world.beats))
    }

    /// The clients of arbiters that were started since this was asked.
    #[must_use]
    pub fn arbiters() -> Vec<Arbiter> {
        with(|world| std::mem::take(&mut world.arbiters))
    }

    /// The searches for a standby that were begun since this was asked.
    #[must_use]
    pub fn searches() -> Vec<Search> {
        with(|world| std::mem::take(&mut world.searches))
    }

    /// This thread is an ordinary one again.
    pub fn end() {
        NOW.set(None);
        drop(WORLD.take());
    }
}

pub(super) fn now() -> Option<u64> {
    NOW.get()
}

pub(super) fn instant() -> Option<Instant> {
    now().map(|ns| START.with(|start| *start + Duration::from_nanos(ns)))
}

/// SplitMix64.
pub(super) fn random(bytes: &mut [u8]) -> bool {
    if now().is_none() {
        return false;
    }
    with(|world| {
        for part in bytes.chunks_mut(8) {
            world.random = world.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = world.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            part.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..part.len()]);
        }
    });
    true
}

pub(crate) fn sabotaged() -> Option<Sabotage> {
    now().and_then(|_| with(|world| world.sabotage))
}

/// Whether somebody listens who is not the operator.
pub(crate) fn told(event: &Event) -> bool {
    if now().is_none() {
        return false;
    }
    let told = with(|world| world.told.take());
    if let Some(mut told) = told {
        told(event);
        with(|world| world.told = Some(told));
    }
    true
}

/// Where the next standby is called, in a world.
pub(crate) fn door() -> Option<Box<dyn Calls>> {
    now().and_then(|_| with(|world| world.door.take()))
}

/// Takes it, if this thread is a world.
pub(crate) fn begin_beats(beats: Box<Beats>) -> Result<(), Box<Beats>> {
    if now().is_none() {
        return Err(beats);
    }
    with(|world| world.beats.push(*beats));
    Ok(())
}

/// The same.
pub(crate) fn begin_arbiter(arbiter: Box<Arbiter>) -> Result<(), Box<Arbiter>> {
    if now().is_none() {
        return Err(arbiter);
    }
    with(|world| world.arbiters.push(*arbiter));
    Ok(())
}

/// The same.
pub(crate) fn begin_search(search: Box<Search>) -> Result<(), Box<Search>> {
    if now().is_none() {
        return Err(search);
    }
    with(|world| world.searches.push(*search));
    Ok(())
}
