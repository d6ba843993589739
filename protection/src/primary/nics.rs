//! The VM's NICs, as the data path has them: opened at the start, mended while it runs.
//!
//! A gate that takes the place of another process's is the VM's network from then on, whatever is wrong with one of its NICs: it begins
//! with what there is, and mends the rest.

use super::settings::Settings;
use super::{channel::Brief, data_path::DataPath};
use crate::keeper;
use anyhow::Result;
use mc_core::id::Time;
use node::{
    events::{Event, emit},
    exit::{Code, ExitError},
};
use std::time::{Duration, Instant};
use vmm_qemu::{
    gate::{GateError, Mode, NicGate, Options},
    mending,
    qmp::is_ending,
};

/// For the TAP devices to be let go by whoever had them, and between two looks.
const TAPS: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(2);
/// For QEMU's end of the NICs; and where the other NICs' packets wait meanwhile.
const NICS: Duration = Duration::from_secs(5);
const NICS_IN_PLACE: Duration = Duration::from_millis(500);

/// Looks whether the gate could be opened, before anybody is told to leave for it: a wrong name must not cost the VM its network.
pub(super) fn look(config: &Settings) -> Result<()> {
    NicGate::check(&config.nics).map_err(|error| cannot_open(&error))
}

/// Looks again, at the last moment.
pub(super) fn check(brief: &Brief) -> Result<()> {
    let config = &brief.config;
    let replaces = brief.relieve || keeper::running(&config.run_dir, config.vm).is_some();
    if brief.deaths == 0 && replaces {
        look(config)?;
    }
    Ok(())
}

/// The gate of a VM that runs solo. Whoever had its TAP devices may be about to let them go. `replaces`: the VM's packets passed
/// through another process until now.
pub(super) fn open(config: &Settings, replaces: bool) -> Result<NicGate> {
    let held_limit_bytes = usize::try_from(config.held_limit_bytes)?;
    let options = Options { held_limit_bytes, mode: Mode::Open };
    let opened = open_all(config, options, if replaces { NICS_IN_PLACE } else { NICS });
    match opened {
        Ok(gate) => Ok(gate),
        Err(error) if replaces => {
            tracing::error!(%error, "a NIC of the VM is not connected; it is tried again");
            Ok(NicGate::unconnected(&config.nics, options)?)
        }
        Err(error) => Err(cannot_open(&error)),
    }
}

fn open_all(config: &Settings, options: Options, patience: Duration) -> Result<NicGate, GateError> {
    let deadline = Instant::now() + TAPS;
    let mut gate = loop {
        match NicGate::new(config.nics.clone(), options) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(STEP),
            opened => break opened?,
        }
    };
    gate.connect(patience)?;
    Ok(gate)
}

fn is_busy(error: &GateError) -> bool {
    matches!(error, GateError::Tap { source, .. } if source.kind() == std::io::ErrorKind::ResourceBusy)
}

fn cannot_open(error: &GateError) -> anyhow::Error {
    let code = if error.is_prerequisite() { Code::Prerequisite } else { Code::Failed };
    ExitError::new(code, error).into()
}

/// Whose sockets the NICs' are: the process at the other end of the first one that is connected, else QEMU.
pub(super) fn listener(gate: &NicGate, brief: &Brief) -> u32 {
    gate.connections().find_map(mending::peer).unwrap_or(brief.qemu_pid)
}

impl DataPath {
    /// The gate had trouble: a NIC was lost, or a barrier or a release failed. A QEMU that ends closes its sockets before anybody hears
    /// of its end: then there is nobody to connect to, and the end is what is worth an error.
    pub(super) fn gate_failed(&mut self, why: String) {
        let (pid, instance) = self.brief.qemu_process();
        let is_gone = self.is_vm_gone() || is_ending(pid, instance);
        if is_gone || self.stop.is_ending() {
            tracing::info!(%why, "a NIC's connection has ended, as the VM or this process does");
            emit(Event::GateFailed(why.as_str().into()));
        } else if self.run.gate_failed(&why) {
            emit(Event::GateFailed(why.as_str().into()));
        }
        if self.run.driver.gate.nics().any(|nic| !nic.connected || !nic.port_works) {
            if !is_gone {
                self.mending.lost(self.run.host.now(), why);
            }
        } else if !self.notes.contains(&why) {
            self.notes.push(why);
        }
    }

    /// Tries to get back what was lost, while there is somebody to connect to.
    pub(super) fn mend_nics(&mut self) {
        if self.is_vm_gone() || self.run.driver.gate.mode() == Mode::Shut {
            return self.mending.forget();
        }
        let specs = self.brief.config.nics.clone();
        // What fails is noted, and tried again.
        let _ = self.mending.mend(self.run.host.now(), &mut self.run.driver.gate, &specs, Some(self.listener));
    }

    /// When to try again.
    pub(super) fn mend_at(&self) -> Option<Time> {
        self.mending.deadline()
    }
}
