//! A primary that wants to be protected, and what a session with it begins with.

use super::{
    main_loop::{NIC_PATIENCE, Node},
    revival::Revival,
    vm::WaitingVm,
};
use crate::config::StandbyConfig;
use anyhow::{Context, Result};
use mc_core::{
    driver::{Attachment, SpillFile, StandbyDriver},
    image::Image,
    register::Owner,
    slab::SlabPool,
    standby::{Config, Event, Standby},
    wire::session::Hello,
};
use node::{
    beats,
    clock::WatchedClock,
    events::{Event as Told, QemuCommandChanged, Syncing, emit},
    exit, files,
    keepalive::Watched,
    paths::{self, Answer, Route},
};
use rustix::rand::{GetRandomFlags, getrandom};
use std::time::Duration;
use transport_tcp::{reach::at_port, session::Offer};
use vmm_qemu::profile::Profile;

/// All that can go wrong before the answer has not.
struct Prepared {
    answer: Answer,
    vm: WaitingVm,
    profile: Vec<u8>,
    image: Image,
}

impl Node {
    /// One caller a turn: whoever is slow has until the listener's deadline, and keeps nobody.
    pub(super) fn hear_offers(&mut self) {
        self.look_after_waiting();
        self.say_what_was_counted();
        if self.leave.is_leaving() {
            return;
        }
        match self.listener.accept(Duration::ZERO) {
            Ok(None) => {}
            Ok(Some(offer)) => self.hear_offer(offer),
            Err(error) => self.hear_stranger(&error),
        }
    }

    /// Begins a session with a primary that the register vouches for. The offer comes back if the primary has no answer yet.
    pub(super) fn begin(&mut self, offer: Offer, theirs: &Profile) -> Result<(), (Option<Box<Offer>>, anyhow::Error)> {
        // A copy that was lost may be handed back: it goes only for one that has begun. Its QEMU makes way, its memory does not.
        // Where there is no room for both, it goes first.
        if self.vm.is_some()
            && self.room_for(theirs, None).is_err()
            && let Err(error) = self.make_room()
        {
            return Err((Some(Box::new(offer)), error));
        }
        let mut lost = self.vm.take();
        lost.iter_mut().for_each(WaitingVm::rest);
        match self.prepare(&offer, theirs).and_then(|prepared| self.make_room().map(|()| prepared)) {
            Ok(prepared) => {
                drop(lost);
                self.accept(offer, prepared).map_err(|error| (None, error))
            }
            Err(error) => {
                self.vm = lost;
                Err((Some(Box::new(offer)), error))
            }
        }
    }

    /// The new QEMU waits: a copy that was lost has been kept until now.
    fn make_room(&mut self) -> Result<()> {
        self.driver.event(Event::MakeRoom);
        self.run_errands()
    }

    /// Which way the session goes; a QEMU that waits, with the primary's profile, and an image over its RAM.
    fn prepare(&mut self, offer: &Offer, theirs: &Profile) -> Result<Prepared> {
        let paths = &self.config.paths;
        let answer = Answer::prepare(paths, offer.local_addr, &offer.hello, offer.endpoint.as_ref())?;
        let started = WaitingVm::start(&self.config, theirs);
        self.unstartable = started.as_ref().err().map(exit::words);
        let mut vm = started?;
        let profile = vm.profile()?.to_json();
        let image = vm.image()?;
        if !vm.notes().is_empty() {
            tracing::warn!(notes = ?vm.notes(), "the standby's QEMU command was changed");
            emit(Told::QemuCommandChanged(QemuCommandChanged { notes: vm.notes().to_vec() }));
        }
        self.gate.connect(NIC_PATIENCE)?;
        Ok(Prepared { answer, vm, profile, image })
    }

    fn accept(&mut self, offer: Offer, prepared: Prepared) -> Result<()> {
        let Prepared { answer, vm, profile, image } = prepared;
        self.vm = Some(vm);
        let theirs = offer.hello;
        let peer = offer.peer_addr;
        let keepalive = paths::beats_at(&self.config.paths, offer.local_addr, paths::End::Listener)?;
        let beat_port = if answer.has_udp() { keepalive.local_port()? } else { 0 };
        if answer.has_udp() {
            keepalive.connect(at_port(peer, theirs.beat_port))?;
        }
        let hello = self.hello(&theirs, beat_port)?;
        self.last_copy.begins(hello.instance)?;
        let accepted = offer.accept(hello, &profile, answer.endpoint().as_ref())?;
        let Route { link, keepalive, report: way } = answer.settle(accepted.link, keepalive)?;
        let owner = self.vm.as_mut().map(|vm| vm.owner(self.this)).transpose()?.context("a waiting VM")?;
        let machine = Standby::new(Config { owner, rehearse: !self.config.no_rehearsal, sabotage: None });
        let pool = SlabPool::new(theirs.slab_size as usize, usize::try_from(self.config.staging_bytes)?);
        self.driver = StandbyDriver::new(machine, pool, spill_file(&self.config)?, WatchedClock(self.progress.clone()));
        let wish = self.config.wish();
        let session = (theirs.incarnation, theirs.beat_key);
        let watched = Watched { progress: self.progress.clone(), limit: self.config.stall_after };
        self.beats = Some(beats::start(keepalive.0, session, beats::STANDBY, wish, Some(watched))?);
        (self.revival, self.silent, self.no_tap) = (Revival::default(), None, None);
        (self.registered, self.suspected_at, self.operator_wants_it) = (false, None, false);
        self.instance = hello.instance;
        self.primary = Some(Owner { node: theirs.node, instance: theirs.instance });
        self.peer = Some(format!("{} at {peer}", theirs.node));
        emit(Told::Syncing(Syncing {
            standby: None,
            primary: Some(theirs.node),
            peer: Some(peer),
            generation: Some(theirs.generation),
            peer_beats: Some(beats::told(&theirs)),
            beats: Some(wish.told()),
        }));
        self.watch.begin(way);
        let (incarnation, instance) = (theirs.incarnation, hello.instance);
        self.driver.attach(Attachment { link, incarnation, generation: theirs.generation, instance, image });
        Ok(())
    }

    /// Our answer to a primary's hello.
    fn hello(&self, theirs: &Hello, beat_port: u16) -> Result<Hello> {
        let interval_us = beats::interval_us(self.config.beat_interval)?;
        let mut instance = [0; 8];
        getrandom(&mut instance, GetRandomFlags::empty())?;
        Ok(Hello {
            staging_slabs: u32::try_from(self.config.staging_bytes / u64::from(theirs.slab_size))?,
            node: self.this,
            witness: self.arbiter.health().witness,
            instance: u64::from_le_bytes(instance),
            beat_port,
            detect_multiplier: self.config.detect_multiplier,
            desired_tx_us: interval_us,
            required_rx_us: beats::interval_us(self.config.beat_min_rx.unwrap_or(self.config.beat_interval))?,
            ..*theirs
        })
    }
}

/// The spill file: made anew beside the configured name, so that nobody's file is touched, and unlinked at once, so that it
/// ends with this process.
pub(super) fn spill_file(config: &StandbyConfig) -> Result<Option<SpillFile>> {
    let Some(path) = &config.spill else { return Ok(None) };
    let mut name =
        path.file_name().with_context(|| format!("spill file {}: not a file's name", path.display()))?.to_owned();
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context("a random number")?;
    name.push(format!(".{:016x}", u64::from_le_bytes(random)));
    let path = path.with_file_name(name);
    let what = || format!("spill file {}", path.display());
    let file = files::create(&path).with_context(what)?;
    std::fs::remove_file(&path).with_context(what)?;
    Ok(Some(SpillFile::new(file)))
}
