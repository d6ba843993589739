//! A primary that the register vouches for, and what a session with it begins with.

use super::{Ready, Standby, StandbyLoop, VmCopy};
use crate::{
    beats::{self, Wish},
    events::{Event as Told, Syncing, emit},
    host::Session,
    keepalive::Watched,
    paths::{self, Answer, Route},
};
use anyhow::{Error, Result};
use mc_core::{driver::Attachment, register::Owner, slab::SlabPool, wire::session::Hello};
use rustix::rand::{GetRandomFlags, getrandom};
use transport_tcp::{reach::at_port, session::Offer};

/// The offer comes back if the primary has no answer yet.
pub(super) fn begin(node: &mut (impl StandbyLoop + ?Sized), offer: Offer) -> Result<(), (Option<Box<Offer>>, Error)> {
    // A copy that was lost may be handed back: it goes only for one that has begun.
    let prepared = answer(node, &offer).and_then(|answer| {
        let ready = node.prepare(&offer)?;
        node.make_room().map(|()| (answer, ready))
    });
    match prepared {
        Ok((answer, ready)) => accept(node, offer, answer, ready).map_err(|error| (None, error)),
        Err(error) => Err((Some(Box::new(offer)), error)),
    }
}

/// Which way the session goes.
fn answer(node: &(impl StandbyLoop + ?Sized), offer: &Offer) -> Result<Answer> {
    Answer::prepare(node.paths(), offer.local_addr, &offer.hello, offer.endpoint.as_ref())
}

/// All that can go wrong before the answer has not.
fn accept(node: &mut (impl StandbyLoop + ?Sized), offer: Offer, answer: Answer, ready: Ready) -> Result<()> {
    let Ready { profile, image, instance: waiting } = ready;
    let (theirs, peer) = (offer.hello, offer.peer_addr);
    let (wish, limit) = node.beating();
    let keepalive = paths::beats_at(node.paths(), offer.local_addr, paths::End::Listener)?;
    let beat_port = if answer.has_udp() { keepalive.local_port()? } else { 0 };
    if answer.has_udp() {
        keepalive.connect(at_port(peer, theirs.beat_port))?;
    }
    let standby = node.standby_mut();
    let ours = hello(standby, &theirs, wish, beat_port)?;
    let instance = ours.instance;
    standby.last_copy.begins(instance)?;
    let accepted = offer.accept(ours, &profile, answer.endpoint().as_ref())?;
    let Route { link, keepalive, report } = answer.settle(accepted.link, keepalive)?;
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
    getrandom(&mut instance, GetRandomFlags::empty())?;
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
