//! The TOML file: a section per command, units in the keys, unknown keys refused.

use super::{
    ConfigError, OnCapWish, near,
    paths::PathSettings,
    units::{Kib, Mib, Millis, NicSpec},
};
use mc_core::id::Name;
use node::paths::{KeepaliveWish, TransportWish};
use node::{
    address::{Listen, LocalAddr},
    arbiter::{ArbiterSpec, HostPort},
};
use serde::Deserialize;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};
use toml::Spanned;

/// Bytes of a file at most.
const LARGEST: u64 = 1 << 20;

/// A setting that may be there, and where.
pub(super) type Setting<T> = Option<Spanned<T>>;

/// The file's sections.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sections {
    pub(super) witness: Option<WitnessSection>,
    pub(super) protect: Option<ProtectSection>,
    pub(super) standby: Option<StandbySection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WitnessSection {
    pub(super) listen: Setting<Listen>,
    pub(super) state: Setting<PathBuf>,
    pub(super) metrics: Setting<Listen>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ProtectSection {
    pub(super) vm: Setting<Name>,
    pub(super) node: Setting<Name>,
    pub(super) qmp: Setting<PathBuf>,
    pub(super) to: Setting<HostPort>,
    pub(super) arbiter: Setting<ArbiterSpec>,
    pub(super) epoch_ms: Setting<Millis>,
    pub(super) nics: Setting<Vec<NicSpec>>,
    pub(super) beat_interval_ms: Setting<Millis>,
    pub(super) beat_min_rx_ms: Setting<Millis>,
    pub(super) detect_multiplier: Setting<u8>,
    pub(super) stall_after_ms: Setting<Millis>,
    pub(super) commit_deadline_ms: Setting<Millis>,
    pub(super) staging_mib: Setting<Mib>,
    pub(super) on_cap: Setting<OnCapWish>,
    pub(super) slab_kib: Setting<Kib>,
    pub(super) window: Setting<u64>,
    pub(super) held_limit_mib: Setting<Mib>,
    pub(super) run_dir: Setting<PathBuf>,
    pub(super) state_dir: Setting<PathBuf>,
    pub(super) metrics: Setting<Listen>,
    pub(super) bind: Setting<LocalAddr>,
    pub(super) force_writable_disks: Setting<bool>,
    pub(super) once: Setting<bool>,
    pub(super) rejoin: Setting<bool>,
    pub(super) unheld: Setting<Vec<String>>,
    pub(super) transport: Setting<TransportWish>,
    pub(super) keepalive: Setting<KeepaliveWish>,
    pub(super) beat_port: Setting<u16>,
    pub(super) rdma_device: Setting<String>,
    pub(super) rdma_gid_index: Setting<u8>,
    pub(super) rdma_timeout: Setting<u8>,
    pub(super) rdma_retry: Setting<u8>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StandbySection {
    pub(super) vm: Setting<Name>,
    pub(super) node: Setting<Name>,
    pub(super) listen: Setting<Listen>,
    pub(super) arbiter: Setting<ArbiterSpec>,
    pub(super) nics: Setting<Vec<NicSpec>>,
    pub(super) ram_dir: Setting<PathBuf>,
    pub(super) spill: Setting<PathBuf>,
    pub(super) no_rehearsal: Setting<bool>,
    pub(super) staging_mib: Setting<Mib>,
    pub(super) beat_interval_ms: Setting<Millis>,
    pub(super) beat_min_rx_ms: Setting<Millis>,
    pub(super) detect_multiplier: Setting<u8>,
    pub(super) stall_after_ms: Setting<Millis>,
    pub(super) run_dir: Setting<PathBuf>,
    pub(super) state_dir: Setting<PathBuf>,
    pub(super) metrics: Setting<Listen>,
    pub(super) qemu: Setting<Vec<String>>,
    pub(super) transport: Setting<TransportWish>,
    pub(super) keepalive: Setting<KeepaliveWish>,
    pub(super) beat_port: Setting<u16>,
    pub(super) rdma_device: Setting<String>,
    pub(super) rdma_gid_index: Setting<u8>,
    pub(super) rdma_timeout: Setting<u8>,
    pub(super) rdma_retry: Setting<u8>,
}

macro_rules! take_paths {
    ($($section:ident)*) => {$(
        impl $section {
            /// Takes out the settings that both sides share.
            pub(super) fn take_paths(&mut self) -> PathSettings {
                PathSettings {
                    transport: self.transport.take(),
                    keepalive: self.keepalive.take(),
                    beat_port: self.beat_port.take(),
                    rdma_device: self.rdma_device.take(),
                    rdma_gid_index: self.rdma_gid_index.take(),
                    rdma_timeout: self.rdma_timeout.take(),
                    rdma_retry: self.rdma_retry.take(),
                }
            }
        }
    )*};
}
take_paths! { ProtectSection StandbySection }

/// Where a file's settings stand in it.
#[derive(Debug, Default)]
pub(super) struct Source {
    path: PathBuf,
    text: String,
}

/// Reads and checks a file. No path, no settings.
pub(super) fn load(path: Option<&Path>) -> Result<(Source, Sections), ConfigError> {
    let Some(path) = path else {
        return Ok(Default::default());
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|f| f.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    if bytes.len() as u64 > LARGEST {
        return Err(ConfigError::TooLong { path: path.into(), limit: LARGEST });
    }
    parse(path, bytes)
}

/// The same, of what a file shall hold.
pub(super) fn parse(path: &Path, bytes: Vec<u8>) -> Result<(Source, Sections), ConfigError> {
    let wrong = |line, what: &str| ConfigError::Syntax { path: path.into(), line, what: near::with_guess(what) };
    let text = String::from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]).into_owned();
        wrong(line_of(&good, good.len()), "not UTF-8")
    })?;
    let sections =
        toml::from_str(&text).map_err(|e| wrong(line_of(&text, e.span().map_or(0, |s| s.start)), e.message()))?;
    Ok((Source { path: path.into(), text }, sections))
}

impl Source {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn line<T>(&self, setting: &Spanned<T>) -> usize {
        line_of(&self.text, setting.span().start)
    }
}

/// The line, from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}
