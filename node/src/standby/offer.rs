//! A primary that the register vouches for, and what a session with it begins with.

use super::{Caller, Ready, Standby, StandbyLoop, VmCopy};
use crate::{
    beats::{self, Wish},
    events::{Event as Told, Syncing, emit},
    host::Session,
    keepalive::Watched,
    outside,
    paths::Route,
};
use anyhow::{Error, Result};
use mc_core::{driver::Attachment, register::Owner, slab::SlabPool, wire::session::Hello};
use rustix::rand::GetRandomFlags;

/// The offer comes back if the primary has no answer yet.
pub(super) fn begin(
    node: &mut (impl StandbyLoop + ?Sized),
    mut caller: Box<dyn Caller>,
) -> Result<(), (Option<Box<dyn Caller>>, Error)> {
    // A copy that was lost may be handed back: it goes only for one that has begun.
    let prepared = caller.prepare(node.paths()).and_then(|()| {
        let ready = node.prepare(&*caller)?;
        node.make_room().map(|()| ready)
    });
    match prepared {
        Ok(ready) => accept(node, caller, ready).map_err(|error| (None, error)),
        Err(error) => Err((Some(caller), error)),
    }
}

/// All that can go wrong before the answer has not.
fn accept(node: &mut (impl StandbyLoop + ?Sized), mut caller: Box<dyn Caller>, ready: Ready) -> Result<()> {
    let Ready { profile, image, instance: waiting } = ready;
    let (theirs, peer) = (*caller.hello(), caller.address());
    let (wish, limit) = node.beating();
    let beat_port = caller.beat_port(node.paths())?;
    let standby = node.standby_mut();
    let ours = hello(standby, &theirs, wish, beat_port)?;
    let instance = ours.instance;
    standby.last_copy.begins(instance)?;
    let Route { link, keepalive, report } = caller.accept(ours, &profile)?;
    let pool = SlabPool::new(theirs.slab_size as usize, usize::try_from(standby.staging_bytes)?);
    let spill = node.spill()?;
    let standby = node.standby_mut();
    let watched = Watched { progress: standby.host.progress.clone(), limit };
    let session = (theirs.incarnation, theirs.beat_key);
    let beats = beats::start(keepalive, session, beats::STANDBY, wish, Some(watched))?;
    standby.host.session = Some(Session::new(beats, format!("{} at {peer}", theirs.node)));
    standby.copy = Some(VmCopy::new(instance, Owner { node: theirs.node, instance: theirs.instance }));
    node.attached();
    emit(Told::Syncing(Syncing {
        standby: None,
        primary: Some(theirs.node),
        peer: Some(peer),
        generation: Some(theirs.generation),
        peer_beats: Some(beats::told(&theirs)),
        beats: Some(wish.told()),
    }));
    let standby = node.standby_mut();
    standby.host.watch.begin(report);
    standby.driver.set_owner(Owner { node: standby.this, instance: waiting });
    let (incarnation, generation) = (theirs.incarnation, theirs.generation);
    standby.driver.attach(Attachment { link, incarnation, generation, instance, image, pool, spill });
    Ok(())
}

/// Our answer to a primary's hello.
fn hello(standby: &Standby, theirs: &Hello, wish: Wish, beat_port: u16) -> Result<Hello> {
    let interval_us = beats::interval_us(wish.interval)?;
    let mut instance = [0; 8];
    outside::random(&mut instance, GetRandomFlags::empty())?;
    Ok(Hello {
        staging_slabs: u32::try_from(standby.staging_bytes / u64::from(theirs.slab_size))?,
        node: standby.this,
        witness: standby.host.arbiter.health().witness,
        instance: u64::from_le_bytes(instance),
        beat_port,
        detect_multiplier: wish.multiplier,
        desired_tx_us: interval_us,
        required_rx_us: beats::interval_us(wish.min_rx.unwrap_or(wish.interval))?,
        ..*theirs
    })
}
