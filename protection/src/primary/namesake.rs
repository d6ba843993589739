//! Refuses a second name for a QEMU: the register decides by name, so a typo in `--vm` could run the VM twice.
//!
//! Whoever has a VM on this host under another name says at its control socket which QEMU that is. Only what uses the same run directory
//! is found, and only while it runs: that is a guard against a slip, and no more.

use super::settings::Settings;
use api::{Request, Response, Status, ask_all, sockets_in};
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use vmm_qemu::qmp::QmpError;

/// Looks whether this QEMU process is another VM's by name.
///
/// # Errors
/// It is: exit code 6, with that name.
pub(super) fn refuse(config: &Settings, qemu: u32) -> Result<(), ExitError> {
    let others = sockets_in(&config.run_dir).into_iter().filter(|(_, vm, _)| *vm != config.vm);
    let paths: Vec<_> = others.map(|(path, ..)| path).collect();
    let answers = ask_all(&paths, &Request::Status);
    let mut told = answers.into_iter().filter_map(|(_, answer)| match answer {
        Ok(Response::Status(status)) => Some(*status),
        _ => None,
    });
    told.find(|status| status.qemu == Some(qemu)).map_or(Ok(()), |status| Err(refused(&status, config.vm, qemu)))
}

/// The QMP socket has another client. Is it one that has the QEMU behind it as another VM?
pub(super) fn explain(config: &Settings, error: &QmpError) -> Option<anyhow::Error> {
    match error {
        QmpError::Busy { listener: Some(qemu), .. } => Some(refuse(config, *qemu).err()?.into()),
        _ => None,
    }
}

fn refused(status: &Status, asked: Name, qemu: u32) -> ExitError {
    let (vm, side) = (&status.vm, status.side.word());
    let what = format!(
        "this QEMU (process {qemu}) already runs as VM {vm} on this host (its {side}); it cannot also be {asked}"
    );
    let remedy = format!(
        "use --vm {vm}; to give it another name, first stop the process that has it as {vm} (`afterimage status --vm \
         {vm}`)"
    );
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}
