//! `afterimage image export`: the VM that a standby holds, written as files that a stock `qemu -incoming` loads.
//!
//! Only while the image stands still: the primary is gone, and the VM is not running here yet. A takeover calls an export off;
//! one that has failed is not tried again while an export is under way.

use super::{main_loop::Node, state::VmState, task::Task};
use anyhow::{Context, Result};
use api::{ControlRequest, Response, done, refused};
use mc_core::{ram::SharedRam, standby::Role};
use node::{
    events::{self, Event, emit},
    exit, files,
};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use vmm_qemu::{argv::quoted, standby::stock_command};

/// The export ends nothing.
const STILL_TRIES: &str = "This standby still tries to take the VM over: stop it before you start the exported copy";

/// An export under way.
#[derive(Debug)]
pub(super) struct Export {
    request: ControlRequest,
    stop: Arc<AtomicBool>,
    pub(super) task: Task<Result<Exported>>,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Exported {
    stream: PathBuf,
    command: PathBuf,
    bytes: u64,
}

/// What is to be written.
struct Plan {
    vm: String,
    dir: PathBuf,
    argv: Vec<String>,
    generation: u64,
    epoch: u64,
}

impl Node {
    /// Begins an export, and answers when it has ended; answers at once when there is nothing that could be exported.
    pub(super) fn begin_export(&mut self, request: ControlRequest, dir: PathBuf) {
        match self.exported(dir) {
            Ok((stop, task)) => self.export = Some(Export { request, stop, task }),
            Err(why) => request.reply(why),
        }
    }

    fn exported(&mut self, dir: PathBuf) -> Result<(Arc<AtomicBool>, Task<Result<Exported>>), Response> {
        if self.export.is_some() {
            return Err(refused("an export is under way"));
        }
        self.image_stands_still()?;
        let wrong = |error: anyhow::Error| refused(&exit::words(&error));
        let (Some(vm), Some(image)) = (&self.vm, self.run.driver.image()) else {
            return Err(refused("this standby has no image"));
        };
        let (generation, epoch) = self.run.driver.machine().committed();
        let vm_name = self.config.vm.to_string();
        let argv = self.config.qemu.clone();
        let plan = Plan { vm: vm_name, dir, argv, generation: generation.0, epoch: epoch.0 };
        let (state, main) = (vm.state(image), vm.main_memory().map_err(wrong)?);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = Task::spawn("export", move || write(&plan, &state, &main, &stopped));
        Ok((stop, task.map_err(|error| refused(&error.to_string()))?))
    }

    fn image_stands_still(&self) -> Result<(), Response> {
        let (message, remedy) = match self.run.role() {
            Role::Claiming | Role::Lost | Role::Disputed => return Ok(()),
            Role::TakingOver if !self.is_attempting() => return Ok(()),
            Role::TakingOver => ("the takeover is being tried at this moment", "try again in a few seconds"),
            Role::Idle | Role::Syncing | Role::Rehearsing => {
                ("this standby holds no whole image of the VM", "there is nothing to export here")
            }
            Role::Protecting | Role::Revoking => (
                "the image changes with every epoch while the primary lives",
                "for a running VM use QMP's `migrate` to a file; export is for a VM that cannot run here",
            ),
            Role::Active => ("the VM runs here; its image is gone", "let its own QEMU make a file: QMP's `migrate`"),
        };
        Err(Response::Refused { message: message.into(), remedy: Some(remedy.into()) })
    }

    /// The memory will change: what is being written would be of no epoch.
    pub(super) fn call_export_off(&self) {
        if let Some(export) = &self.export {
            export.stop.store(true, Ordering::Release);
        }
    }

    pub(super) fn hear_export(&mut self) {
        let Some(result) = self.export.as_ref().and_then(|export| export.task.take()) else { return };
        let Some(export) = self.export.take() else { return };
        let response = match result.map_err(anyhow::Error::from).and_then(|outcome| outcome) {
            Ok(Exported { stream, command, bytes }) => {
                let (text, how) = (stream.display(), command.display());
                let text = format!("wrote {text} ({bytes} bytes); how to run it is in {how}. {STILL_TRIES}");
                emit(Event::Exported(events::Exported { stream, command, bytes }));
                done(&text)
            }
            Err(error) => refused(&format!("the export failed: {}", exit::words(&error))),
        };
        export.request.reply(response);
    }
}

/// Writes both files, or neither.
fn write(plan: &Plan, state: &VmState, main: &SharedRam, stop: &AtomicBool) -> Result<Exported> {
    let stream = plan.dir.join(format!("{}.vmstate", plan.vm));
    let command = plan.dir.join(format!("{}.txt", plan.vm));
    let new = |path: &Path| {
        files::create(path).with_context(|| format!("{} (an export never overwrites a file)", path.display()))
    };
    let stream_file = new(&stream)?;
    let command_file = new(&command).inspect_err(|_| drop(files::remove(&stream, &stream_file)))?;
    let fill = || -> Result<u64> {
        let bytes = write_stream(&stream_file, state, main, stop).with_context(|| stream.display().to_string())?;
        let text = explanation(plan, state, &stream)?;
        write_text(&command_file, &text).with_context(|| command.display().to_string())?;
        File::open(&plan.dir).and_then(|dir| dir.sync_all()).with_context(|| plan.dir.display().to_string())?;
        Ok(bytes)
    };
    let bytes = fill().inspect_err(|_| {
        let _ = files::remove(&stream, &stream_file);
        let _ = files::remove(&command, &command_file);
    })?;
    Ok(Exported { stream, command, bytes })
}

fn write_stream(file: &File, state: &VmState, main: &SharedRam, stop: &AtomicBool) -> io::Result<u64> {
    match state.write(BufWriter::with_capacity(1 << 20, file), Some(main), stop) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            Err(io::Error::other("called off: this node takes the VM over"))
        }
        written => written.and_then(|()| file.sync_all()).and_then(|()| Ok(file.metadata()?.len())),
    }
}

fn write_text(mut file: &File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// What lies there, and how to run it.
fn explanation(plan: &Plan, state: &VmState, stream: &Path) -> Result<String> {
    let load = format!("exec:cat {}", quoted(&stream.display().to_string()));
    let main = &state.blocks[usize::from(state.shared.0)];
    let command = stock_command(&plan.argv, main, None, &load)?;
    Ok(format!(
        "VM {}, generation {}, epoch {}: its memory and device state as of its last commit, in QEMU's own migration format.\n\
         \n\
         To run it, on one host only, and only if it runs nowhere else:\n\
         \n\
         {command}\n\
         \n\
         The standby that wrote this goes on trying to take the VM over. Stop it before this copy is started anywhere (a first\n\
         signal to end may be refused; a second one is obeyed), and see that the VM does not run there. Else two copies may run.\n\
         \n\
         The NICs' sockets and TAP devices must be there, as on the standby that wrote this. QEMU's version must know the machine\n\
         type {}.\n",
        plan.vm, plan.generation, plan.epoch, state.machine
    ))
}
