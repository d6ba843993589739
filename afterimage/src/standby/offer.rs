//! A primary that wants to be protected: taken on, or refused with words that it hears.

use super::{
    node::{NIC_PATIENCE, Node, RETRY},
    vm::WaitingVm,
};
use crate::{
    beats,
    clock::WatchedClock,
    config::StandbyConfig,
    events::emit,
    exit,
    keepalive::Watched,
    paths::{Answer, Route},
    qemu::profile::Profile,
    report,
};
use anyhow::{Context, Result};
use mc_core::{
    driver::{Attachment, SpillFile, StandbyDriver},
    image::Image,
    slab::SlabPool,
    standby::{Config, Role, Standby},
    wire::session::Hello,
};
use serde_json::json;
use std::{fs::File, net::SocketAddr, time::Duration};
use transport_tcp::{session::Offer, udp::UdpKeepalive};

/// All that can go wrong before the answer has not.
struct Prepared {
    answer: Answer,
    profile: Vec<u8>,
    image: Image,
}

impl Node {
    pub(super) fn hear_offers(&mut self) {
        match self.listener.accept(Duration::ZERO) {
            Ok(None) => {}
            Ok(Some(offer)) => self.hear_offer(offer),
            Err(error) => {
                if let Some(more) = self.crowd[0].again(self.clock.now()) {
                    tracing::warn!(%error, more, "a caller was turned away");
                }
            }
        }
    }

    fn hear_offer(&mut self, offer: Offer) {
        let (vm, node, peer) = (offer.hello.vm, offer.hello.node, offer.peer_addr);
        if let Err((offer, why)) = self.consider(offer) {
            if let Some(more) = self.crowd[1].again(self.clock.now()) {
                tracing::warn!(%vm, %node, %peer, why, more, "refused");
                emit("refused", json!({ "peer": peer, "node": node, "why": why, "more": more }));
            }
            if let Some(Err(error)) = offer.map(|offer| offer.refuse(&why)) {
                tracing::debug!(%error, "the refusal was not heard");
            }
        }
    }

    /// Takes a primary on, or says why not.
    fn consider(&mut self, offer: Offer) -> Result<(), (Option<Box<Offer>>, String)> {
        let role = self.driver.machine().role();
        if role != Role::Idle {
            let why = format!("this standby is busy ({role:?})");
            return Err((Some(Box::new(offer)), why));
        }
        let hello = offer.hello;
        if hello.vm != self.config.vm {
            let why = format!("this standby stands by for {}, not for {}", self.config.vm, hello.vm);
            return Err((Some(Box::new(offer)), why));
        }
        if u64::from(hello.slab_size) * 2 > self.config.staging_bytes {
            let (slab, staging) = (hello.slab_size, self.config.staging_bytes);
            let why = format!(
                "slabs of {slab} bytes: this standby's staging of {staging} bytes does not hold two; raise --staging here, or \
                 lower --slab there"
            );
            return Err((Some(Box::new(offer)), why));
        }
        match self.prepare(&offer) {
            Ok(prepared) => self.accept(offer, prepared).map_err(|error| {
                self.vm = None;
                (None, exit::words(&error))
            }),
            Err(error) => {
                self.vm = None;
                Err((Some(Box::new(offer)), exit::words(&error)))
            }
        }
    }

    /// Which way the session goes; a QEMU that waits, with the primary's profile, and an image over its RAM.
    fn prepare(&mut self, offer: &Offer) -> Result<Prepared> {
        let theirs: Profile = Profile::from_json(&offer.profile).context("the primary")?;
        let (paths, local) = (&self.config.paths, offer.local_addr.ip());
        let answer = Answer::prepare(paths, local, &offer.hello, offer.endpoint.as_ref())?;
        self.vm = None;
        let mut vm = WaitingVm::start(&self.config, &theirs)?;
        let profile = vm.profile()?.to_json();
        let image = vm.image()?;
        self.gate.connect(NIC_PATIENCE)?;
        self.vm = Some(vm);
        Ok(Prepared { answer, profile, image })
    }

    fn accept(&mut self, offer: Offer, prepared: Prepared) -> Result<()> {
        let Prepared { answer, profile, image } = prepared;
        let theirs = offer.hello;
        let peer = offer.peer_addr;
        let keepalive = UdpKeepalive::bind(offer.local_addr.ip()).context("UDP socket for beats")?;
        let beat_port = if answer.has_udp() { keepalive.local_port()? } else { 0 };
        if answer.has_udp() {
            keepalive.connect(SocketAddr::new(peer.ip(), theirs.beat_port))?;
        }
        let accepted = offer.accept(self.hello(&theirs, beat_port)?, &profile, answer.endpoint().as_ref())?;
        let Route { link, keepalive, report: way } = answer.settle(accepted.link, keepalive)?;
        let owner = self.vm.as_mut().map(WaitingVm::owner).transpose()?.context("a waiting VM")?;
        let machine = Standby::new(Config { owner, retry: RETRY.0, retries: RETRY.1, sabotage: None });
        let pool = SlabPool::new(theirs.slab_size as usize, usize::try_from(self.config.staging_bytes)?);
        self.driver = StandbyDriver::new(machine, pool, spill_file(&self.config)?, WatchedClock(self.progress.clone()));
        let wish = self.config.wish();
        let session = (theirs.incarnation, theirs.beat_key);
        let watched = Watched { progress: self.progress.clone(), limit: self.config.stall_after };
        self.beats = Some(beats::start(keepalive.0, session, beats::STANDBY, wish, Some(watched))?);
        (self.registered, self.suspected_at, self.operator_wants_it) = (false, None, false);
        self.peer = Some(format!("{} at {peer}", theirs.node));
        let generation = theirs.generation;
        let beats = json!({ "interval_ms": report::ms(wish.interval), "multiplier": wish.multiplier });
        emit(
            "syncing",
            json!({ "primary": theirs.node, "peer": peer, "generation": generation, "peer_beats": beats::told(&theirs), "beats": beats }),
        );
        self.watch.begin(way);
        self.driver.attach(Attachment { link, incarnation: theirs.incarnation, generation: theirs.generation, image });
        Ok(())
    }

    /// Our answer to a primary's hello.
    fn hello(&self, theirs: &Hello, beat_port: u16) -> Result<Hello> {
        let interval_us = beats::interval_us(self.config.beat_interval)?;
        Ok(Hello {
            staging_slabs: u32::try_from(self.config.staging_bytes / u64::from(theirs.slab_size))?,
            node: self.config.node,
            beat_port,
            detect_multiplier: self.config.detect_multiplier,
            desired_tx_us: interval_us,
            required_rx_us: beats::interval_us(self.config.beat_min_rx.unwrap_or(self.config.beat_interval))?,
            ..*theirs
        })
    }
}

/// The spill file: unlinked at once, so that it ends with this process.
pub(super) fn spill_file(config: &StandbyConfig) -> Result<Option<SpillFile>> {
    let Some(path) = &config.spill else { return Ok(None) };
    let what = || format!("spill file {}", path.display());
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).with_context(what)?;
    std::fs::remove_file(path).with_context(what)?;
    Ok(Some(SpillFile::new(file)))
}
