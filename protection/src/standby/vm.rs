//! The VM that waits: a stock QEMU over a shared RAM file, the image that writes into the same file, and the takeover.

use super::settings::Settings;
use super::{ram_file::RamFile, state::VmState};
use anyhow::{Context, Result};
use mc_core::{
    id::{BlockId, Epoch, Generation, Node},
    image::Image,
    ram::SharedRam,
    register::Owner,
};
use node::units::size_text;
use serde_json::json;
use std::{
    io::{self, BufWriter},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};
use vmm_qemu::{
    argv::quoted,
    blocks,
    control::run_state,
    profile::Profile,
    qmp::{Qmp, QmpError, Watched, instance_id, kill_instance},
    standby::{
        DEADLINE, Look, Rehearsal, RehearsalConfig, StandbyConfig as VmConfig, StandbyError, StandbyVm, TakeoverTimes,
        stock_command,
    },
};

/// What QEMU says of a -m that is not the size of the image.
const OTHER_SIZE: &str = "does not match the size of the memory backend";

/// Whose VM has how much memory, in other words than QEMU's.
fn explained(error: StandbyError, main_bytes: u64, command: &[String]) -> anyhow::Error {
    let memory = command.iter().rposition(|word| word == "-m" || word == "--m").and_then(|at| command.get(at + 1));
    match &error {
        StandbyError::Exited { stderr, .. } if stderr.contains(OTHER_SIZE) => anyhow::anyhow!(
            "the primary's VM has {} of main memory, and the QEMU command of this standby says {}: give both the same -m",
            size_text(main_bytes),
            memory.map_or("nothing of -m, which is 128MiB".to_owned(), |size| format!("-m {size}"))
        ),
        _ => error.into(),
    }
}

/// For a QEMU that an earlier standby may have left behind to answer.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// The waiting VM.
#[derive(Debug)]
pub(super) struct WaitingVm {
    /// Gone only while a QEMU that died cannot be started again, or was put to rest.
    vm: Option<StandbyVm>,
    /// It was put to rest, and has not died.
    rests: bool,
    launch: VmConfig,
    /// Of the primary's VM; ours was found to match.
    profile: Profile,
    /// The block that is the RAM file.
    shared: BlockId,
    /// What was changed in the operator's command.
    notes: Vec<String>,
    ram: RamFile,
}

impl WaitingVm {
    /// Starts a QEMU for a primary with this profile, and compares.
    pub(super) fn start(config: &Settings, theirs: &Profile) -> Result<Self> {
        let shared = blocks::main_block(&theirs.blocks).context("the primary's profile has no RAM block")?;
        let main_ram = theirs.blocks[usize::from(shared.0)].clone();
        let run_dir = config.run_dir.join(config.vm.to_string());
        std::fs::create_dir_all(&run_dir).with_context(|| run_dir.display().to_string())?;
        dismiss_predecessor(&run_dir)?;
        let ram = RamFile::create(&config.ram_dir, config.vm, main_ram.used_length)?;
        let launch = VmConfig { argv: config.qemu.clone(), run_dir, ram_file: ram.path().to_owned(), main_ram };
        let main = launch.main_ram.used_length;
        let vm = StandbyVm::launch(launch.clone()).map_err(|error| explained(error, main, &config.qemu))?;
        let notes = vm.notes().to_vec();
        let profile = theirs.clone();
        let mut waiting = Self { vm: Some(vm), rests: false, launch, profile, shared, notes, ram };
        let differences = theirs.mismatches(&waiting.profile()?);
        let what = "this standby's VM differs from the primary's";
        anyhow::ensure!(differences.is_empty(), "{what}: {}", differences.join("; "));
        Ok(waiting)
    }

    /// What was changed in the operator's command, each in a sentence.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Its RAM file.
    pub(super) fn ram_path(&self) -> &Path {
        self.ram.path()
    }

    fn vm(&mut self) -> Result<&mut StandbyVm> {
        self.vm.as_mut().context("the waiting QEMU died, and does not start again")
    }

    /// Of the waiting QEMU, for the primary to compare as well.
    pub(super) fn profile(&mut self) -> Result<Profile> {
        Ok(self.vm()?.profile()?)
    }

    /// Who we are, once we took over.
    pub(super) fn owner(&mut self, node: Node) -> Result<Owner> {
        Ok(Owner { node, instance: self.vm()?.instance()? })
    }

    /// The image over the RAM file; blocks that are not in it are kept in private memory.
    pub(super) fn image(&self) -> Result<Image> {
        let main = usize::from(self.shared.0);
        let blocks = self.profile.blocks.iter().enumerate().map(|(index, block)| {
            let len = usize::try_from(block.used_length).context("RAM block size")?;
            let ram = if index == main { SharedRam::map(self.ram.file(), len) } else { SharedRam::anonymous(len) };
            ram.with_context(|| format!("memory for RAM block {} ({len} bytes)", block.name))
        });
        Ok(Image::new(blocks.collect::<Result<_>>()?))
    }

    /// What the primary protects the VM but for.
    pub(super) fn unheld(&self) -> &[String] {
        &self.profile.unheld
    }

    /// QEMU's process, to be watched when this is gone.
    pub(super) fn watch(&mut self) -> Result<Watched> {
        Ok(Watched::new(self.vm()?.pid())?)
    }

    /// Its QEMU's process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.vm.as_ref().map(StandbyVm::pid)
    }

    /// Whether QEMU still waits, or runs.
    pub(super) fn is_alive(&mut self) -> bool {
        self.vm.as_mut().is_some_and(StandbyVm::is_alive)
    }

    /// How QEMU is. Does not wait.
    pub(super) fn look(&mut self) -> Look {
        self.vm.as_mut().map_or(Look::Ended, StandbyVm::look)
    }

    /// Whether it was put to rest, and has not died.
    pub(super) fn rests(&self) -> bool {
        self.rests
    }

    /// A QEMU that died is started again over the same RAM file; one that does nothing is killed first.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.launch.ram_file = self.ram.for_qemu();
        let vm = start_again(self.vm.take(), &self.launch)?;
        (self.vm, self.rests) = (Some(vm), false);
        Ok(())
    }

    /// Its QEMU ends, its memory stays: [`WaitingVm::restart`] starts another.
    pub(super) fn rest(&mut self) {
        (self.vm, self.rests) = (None, true);
    }

    /// What a takeover on a thread of its own needs; [`WaitingVm::give_back`] what comes of it.
    pub(super) fn lend(&mut self) -> Lent {
        self.launch.ram_file = self.ram.for_qemu();
        Lent { vm: self.vm.take(), launch: self.launch.clone() }
    }

    pub(super) fn give_back(&mut self, lent: Lent) {
        self.vm = lent.vm;
    }

    /// All of the VM but its main memory.
    pub(super) fn state(&self, image: &Image) -> VmState {
        VmState::copy(&self.profile, self.shared, image)
    }

    /// The main memory, mapped once more.
    pub(super) fn main_memory(&self) -> Result<SharedRam> {
        let len = usize::try_from(self.launch.main_ram.used_length).context("RAM block size")?;
        Ok(SharedRam::map(self.ram.file(), len)?)
    }

    /// Proves on a thread of its own that this image can be loaded here. Until it has ended, nothing may be applied to the
    /// image.
    pub(super) fn rehearse(&self, image: &Image) -> Result<Rehearsal> {
        let VmState { machine, blocks, shared, others, device } = self.state(image);
        let config = RehearsalConfig {
            argv: self.launch.argv.clone(),
            dir: self.launch.run_dir.join("rehearsal"),
            ram_file: self.ram.for_qemu(),
            machine,
            blocks,
            shared,
            others,
            device,
            deadline: DEADLINE,
        };
        Rehearsal::start(config).context("a thread for the rehearsal")
    }

    /// QEMU runs, and has the RAM file mapped: its name has served.
    pub(super) fn runs(&self) {
        self.ram.unlink();
    }

    /// The image outlives this process: its RAM file, and beside it everything else of the VM, and how to run it. Returns the
    /// RAM file's path. The waiting QEMU ends with this value.
    pub(super) fn keep(&mut self, copy: Owner, image: &Image, at: (Generation, Epoch)) -> Result<PathBuf> {
        let state = self.state(image);
        let (ram, beside) = (self.ram.path().to_owned(), self.ram.path().with_extension("state"));
        let load = format!("exec:cat {}", quoted(&beside.display().to_string()));
        let about = json!({
            "schema": 1,
            "node": copy.node,
            "instance": copy.instance,
            "generation": at.0,
            "epoch": at.1,
            "machine": self.profile.machine,
            "ram": ram,
            "state": beside,
            "run": stock_command(&self.launch.argv, &self.launch.main_ram, Some(&ram), &load)?,
        });
        self.ram.keep(&about, |file| state.write(BufWriter::new(file), None, &AtomicBool::new(false)))
    }
}

/// The waiting QEMU, out of the loop's hands.
#[derive(Debug)]
pub(super) struct Lent {
    vm: Option<StandbyVm>,
    launch: VmConfig,
}

impl Lent {
    /// Whether a QEMU waits.
    pub(super) fn is_alive(&mut self) -> bool {
        self.vm.as_mut().is_some_and(StandbyVm::is_alive)
    }

    /// Starts one over the same RAM file.
    pub(super) fn start(&mut self) -> Result<(), StandbyError> {
        self.vm = Some(start_again(self.vm.take(), &self.launch)?);
        Ok(())
    }

    /// Ends it, be it that it runs.
    pub(super) fn kill(&mut self) {
        if let Some(Err(error)) = self.vm.as_mut().map(StandbyVm::kill) {
            tracing::error!(%error, "the QEMU of a takeover that is given up");
        }
    }

    /// The VM is ours: feeds it what the RAM file does not hold, and waits until it runs.
    pub(super) fn take_over(&mut self, state: &VmState) -> Result<TakeoverTimes, StandbyError> {
        let gone = || StandbyError::io("feeding", Path::new("QEMU"), io::Error::other("there is none"));
        let vm = self.vm.as_mut().ok_or_else(gone)?;
        vm.must_answer()?;
        state.fed(|feed| vm.take_over(feed))
    }
}

fn start_again(died: Option<StandbyVm>, launch: &VmConfig) -> Result<StandbyVm, StandbyError> {
    match died {
        Some(vm) => vm.restart(),
        None => StandbyVm::launch(launch.clone()),
    }
}

/// The QEMU of an earlier standby, and the state of its VM; `None` if there is none. One that waited ends with its standby, and may be
/// about to: its sockets close one by one.
pub(super) fn earlier(path: &Path) -> Result<Option<(Qmp, String)>, QmpError> {
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        let asked = Qmp::connect(path, PREDECESSOR).and_then(|mut qmp| {
            let state = run_state(&mut qmp)?;
            Ok((qmp, state))
        });
        match asked {
            Ok(found) => return Ok(Some(found)),
            Err(QmpError::Connect { .. }) => return Ok(None),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// A standby that was killed left its QEMU behind. One that still waits ends now; one that runs a VM is not ours to end.
fn dismiss_predecessor(run_dir: &Path) -> Result<()> {
    let path = run_dir.join("standby.qmp");
    let Some((mut qmp, state)) = earlier(&path).context("a QEMU of an earlier standby")? else { return Ok(()) };
    if state != "inmigrate" {
        anyhow::bail!(
            "a QEMU of an earlier standby runs a VM that it took over ({state}; control socket {}): protect that one, or end it",
            path.display()
        );
    }
    let pid = qmp.peer_pid()?;
    let ending = || format!("ending an earlier standby's QEMU, process {pid}");
    // Without an instance it is gone.
    if let Ok(instance) = instance_id(pid) {
        tracing::warn!(pid, "an earlier standby's QEMU still waits; ending it");
        kill_instance(pid, instance).with_context(ending)?;
    }
    qmp.wait_closed(PREDECESSOR).with_context(ending)?;
    // A dying process closes its sockets one by one: until the last one is gone its place is taken.
    let deadline = Instant::now() + PREDECESSOR;
    while UnixStream::connect(&path).is_ok() {
        anyhow::ensure!(Instant::now() < deadline, "{} is still served, though its QEMU was killed", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
