//! What an operator changes while the pair runs: its keepalive, its epoch, its staging.

use super::{channel::ToSupervisor, data_path::DataPath};
use anyhow::Result;
use api::{KeepaliveReport, OnCapWish, Response, Session, Settings, SettingsReport, Wanted, refused, report};
use mc_core::primary::OnCap;
use node::{
    arbiter::ArbiterSpec,
    events::{Event, Set, emit},
    paths,
};
use std::time::Duration;

fn session(path: &DataPath) -> Session<'_> {
    let config = &path.brief.config;
    Session {
        configured: config.wish(),
        beats: path.run.host.beats(),
        vm: config.vm,
        node: config.node,
        side: "primary",
        peer: path.run.host.peer().unwrap_or_default().to_owned(),
        paths: report::beat_paths(&path.run.host.watch),
        config_file: config.config_file.clone(),
    }
}

pub(super) fn keepalive(path: &DataPath) -> Response {
    Response::Keepalive(Box::new(session(path).report()))
}

/// The order is given, not carried out: the caller looks again.
pub(super) fn keepalive_set(path: &mut DataPath, wanted: &Wanted) -> Response {
    match session(path).change(wanted) {
        Ok((wish, warnings)) => {
            emit(Event::KeepaliveSet(wish.into()));
            path.brief.config.set_wish(wish);
            tell_supervisor(path);
            Response::Keepalive(Box::new(KeepaliveReport { warnings, ..session(path).report() }))
        }
        Err(refusal) => Response::Refused { message: refusal.what, remedy: Some(refusal.remedy) },
    }
}

/// All of them, or none: whatever may be wrong is looked at before anything is changed.
pub(super) fn set(path: &mut DataPath, settings: &Settings) -> Response {
    let config = &path.brief.config;
    let staging = settings.max_staging_bytes.unwrap_or(config.staging_bytes);
    let on_cap = settings.on_cap.unwrap_or(config.on_cap);
    if let Err(why) = settings.check(config.slab_bytes).and_then(|()| room_to_pin(path, staging, on_cap)) {
        return refused(&format!("{why}; nothing was changed"));
    }
    let Ok(cap) = usize::try_from(staging) else {
        return refused("staging is more than this machine can address; nothing was changed");
    };
    let epoch = settings.epoch_us.map_or(path.brief.config.epoch, Duration::from_micros);
    let changed = *settings != Settings::default();
    let config = &mut path.brief.config;
    (config.staging_bytes, config.on_cap, config.epoch) = (staging, on_cap, epoch);
    config.paths.staging_bytes = staging.saturating_add(on_cap.extra_bytes());
    path.run.driver.set_epoch(epoch);
    path.run.driver.set_cap(cap, path.on_cap());
    tell_supervisor(path);
    let report = report(path);
    if changed {
        let (epoch_us, on_cap) = (report.epoch_us, report.on_cap.clone());
        emit(Event::Set(Set { epoch_us, max_staging_bytes: staging, on_cap }));
    }
    Response::Settings(Box::new(report))
}

impl DataPath {
    /// What a full staging does now. Protection cannot end while the arbiter is away, or is an operator who was not asked: to ask for
    /// that would hold all of the VM's output for as long, and to wait for room holds the VM for a moment.
    fn on_cap(&self) -> OnCap {
        let decides = *self.run.host.arbiter.spec() != ArbiterSpec::Manual
            && self.run.host.arbiter.health().failover_possible().is_ok();
        match self.brief.config.on_cap.0 {
            OnCap::Unprotect if !decides => OnCap::Throttle,
            wish => wish,
        }
    }

    /// The arbiter may have come, or gone; beats and epochs may have another length, by whoever's wish.
    pub(super) fn follow_the_settings(&mut self) -> Result<()> {
        self.run.driver.set_commit_deadline(self.brief.config.commit_deadline(self.run.host.watch.has_rdma()));
        let on_cap = self.on_cap();
        if self.run.driver.machine().on_cap() != on_cap {
            self.run.driver.set_cap(usize::try_from(self.brief.config.staging_bytes)?, on_cap);
        }
        Ok(())
    }
}

/// The next data path begins with what was changed.
fn tell_supervisor(path: &mut DataPath) {
    let config = Box::new(path.brief.config.clone());
    if let Err(error) = path.supervisor.say(&ToSupervisor::Changed(config)) {
        tracing::warn!(%error, "the change did not reach the supervisor");
    }
}

/// RDMA pins slabs as they are made: a limit that it could not pin would end the session in the middle of a checkpoint.
fn room_to_pin(path: &mut DataPath, staging: u64, on_cap: OnCapWish) -> Result<(), String> {
    if !path.run.host.watch.has_rdma() {
        return Ok(());
    }
    let more = staging.saturating_add(on_cap.extra_bytes()).saturating_sub(path.run.driver.pool_stats().live_bytes);
    paths::room_to_pin(more).map_err(|error| error.to_string())
}

fn report(path: &mut DataPath) -> SettingsReport {
    let stats = path.run.driver.pool_stats();
    let config = &path.brief.config;
    SettingsReport {
        epoch_us: u64::try_from(config.epoch.as_micros()).unwrap_or(u64::MAX),
        max_staging_bytes: config.staging_bytes,
        on_cap: config.on_cap.to_string(),
        limit_bytes: stats.limit_bytes,
        live_bytes: stats.live_bytes,
        config_file: config.config_file.clone(),
        ..SettingsReport::new(config.vm.to_string())
    }
}
