//! One test's processes, files and ports.

use crate::{
    guest::{Machine, Serial, Vm},
    proc::{self, Proc, until},
};
use mc_core::{id::Name, register::Register};
use node::arbiter::file;
use serde_json::Value;
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The VM's name.
pub(crate) const VM: &str = "web";

static TURN: Mutex<()> = Mutex::new(());

/// See the module.
pub(crate) struct World {
    pub(crate) machine: &'static Machine,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) arbiter: String,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for World {
    fn drop(&mut self) {
        // Data paths and QEMUs may have lost the parents that would have taken them along.
        proc::kill_marked(self.dir.path());
    }
}

/// How a standby is started.
#[derive(Clone, Debug)]
pub(crate) struct StandbyOptions {
    pub(crate) vm: &'static str,
    /// Its QEMU, where it differs.
    pub(crate) qemu: Option<Vec<String>>,
    pub(crate) flags: Vec<String>,
    /// Where it listens, where that is known already.
    pub(crate) addr: Option<SocketAddr>,
    /// The event that it begins with.
    pub(crate) begins: &'static str,
}

impl Default for StandbyOptions {
    fn default() -> Self {
        Self { vm: VM, qemu: None, flags: Vec::new(), addr: None, begins: "waiting" }
    }
}

/// A standby.
pub(crate) struct Standby {
    pub(crate) proc: Proc,
    pub(crate) addr: SocketAddr,
    pub(crate) serial: Serial,
}

/// A port that was free a moment ago.
pub(crate) fn free_addr() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// The words of a line of flags.
pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl World {
    /// `None`, with the reason printed, where there is no QEMU. Waits for the test before.
    pub(crate) fn new() -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = Machine::find()?;
        let dir = tempfile::Builder::new().prefix("ai-e2e-").tempdir().unwrap();
        Some(Self { machine, dir, arbiter: "manual".to_owned(), _turn: turn })
    }

    /// With a witness.
    pub(crate) fn with_witness() -> Option<(Self, Proc)> {
        let mut world = Self::new()?;
        let witness = world.witness();
        Some((world, witness))
    }

    pub(crate) fn witness(&mut self) -> Proc {
        self.arbiter = format!("witness://{}", free_addr());
        self.witness_again()
    }

    /// At the same address, with the same state.
    pub(crate) fn witness_again(&self) -> Proc {
        let addr = self.arbiter.strip_prefix("witness://").expect("a witness before");
        let mut command = Self::program();
        command.args(["witness", "--listen", addr, "--state"]).arg(self.path("witness"));
        let witness = Proc::spawn(self.dir.path(), "witness", command);
        until("the witness listens", || std::net::TcpStream::connect(addr).ok());
        witness
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn program() -> Command {
        Command::new(env!("CARGO_BIN_EXE_afterimage"))
    }

    /// A running VM named `name`, with these arguments more.
    pub(crate) fn vm(&self, name: &str, extra: &[&str]) -> Vm {
        let serial = Serial(self.path(&format!("{name}.serial")));
        let mut line = self.machine.qemu(self.dir.path(), &serial, None);
        line.extend(extra.iter().map(|w| (*w).to_owned()));
        self.start_vm(name, &line, serial)
    }

    pub(crate) fn start_vm(&self, name: &str, line: &[String], serial: Serial) -> Vm {
        let (qmp, look) = (self.path(&format!("{name}.qmp")), self.path(&format!("{name}.look")));
        let mut line = line.to_vec();
        for socket in [&qmp, &look] {
            line.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]);
        }
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        let proc = Proc::spawn(self.dir.path(), name, command);
        let vm = Vm { proc, qmp, look, serial };
        vm.serial.goes_on();
        vm
    }

    /// The run directory of a node.
    pub(crate) fn run_dir(&self, node: &str) -> PathBuf {
        self.path(node)
    }

    /// The QEMU of a standby on `node`.
    pub(crate) fn standby_qemu(&self, node: &str, dirty: Option<u32>) -> Vec<String> {
        let serial = Serial(self.path(&format!("{node}.serial")));
        self.machine.qemu(self.dir.path(), &serial, dirty)
    }

    pub(crate) fn standby(&self, node: &str) -> Standby {
        self.standby_with(node, &StandbyOptions::default())
    }

    /// A standby that listens where `protect` looks for one already.
    pub(crate) fn standby_at(&self, node: &str, addr: SocketAddr) -> Standby {
        self.standby_with(node, &StandbyOptions { addr: Some(addr), ..StandbyOptions::default() })
    }

    /// The files that the standbys' VM has in memory, or left there.
    pub(crate) fn vm_files(&self) -> Vec<PathBuf> {
        let prefix = format!("afterimage-{VM}-");
        let entries = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))).collect()
    }

    /// What the witness has on its disk.
    pub(crate) fn register(&self) -> Register {
        let path = self.path("witness").join(format!("{VM}.reg"));
        file::load(&path, Name::new(VM).unwrap()).unwrap().expect("a register")
    }

    /// A standby that waits, or whatever it begins with.
    pub(crate) fn standby_with(&self, node: &str, options: &StandbyOptions) -> Standby {
        let addr = options.addr.unwrap_or_else(free_addr);
        let mut command = Self::program();
        command.args(["standby", "--vm", options.vm, "--node", node, "--listen", &addr.to_string()]);
        command.args(["--arbiter", &self.arbiter, "--run-dir"]).arg(self.run_dir(node));
        command.arg("--state-dir").arg(self.path(&format!("state-{node}")));
        command.arg("--ram-dir").arg(self.dir.path()).args(&options.flags).arg("--");
        command.args(options.qemu.clone().unwrap_or_else(|| self.standby_qemu(node, None)));
        let mut proc = Proc::spawn(self.dir.path(), node, command);
        proc.wait_event(options.begins);
        Standby { proc, addr, serial: Serial(self.path(&format!("{node}.serial"))) }
    }

    /// `protect` on `node`, of the QEMU at `qmp`; `name` is for its output.
    pub(crate) fn protect(&self, node: &str, name: &str, qmp: &Path, to: SocketAddr, flags: &str) -> Proc {
        let mut command = Self::program();
        command.args(["protect", "--vm", VM, "--node", node, "--to", &to.to_string(), "--qmp"]).arg(qmp);
        command
            .args(["--arbiter", &self.arbiter, "--state-dir"])
            .arg(self.path(&format!("state-{node}")))
            .args(words(flags));
        if !flags.contains("--run-dir") {
            command.arg("--run-dir").arg(self.run_dir(node));
        }
        Proc::spawn(self.dir.path(), name, command)
    }

    /// Runs the program to its end: exit code, stdout, stderr.
    pub(crate) fn run(&self, node: &str, line: &str) -> (i32, String, String) {
        let out = Self::program().args(words(line)).arg("--run-dir").arg(self.run_dir(node)).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr))
    }

    /// `status --json` of a node.
    pub(crate) fn status(&self, node: &str) -> Value {
        self.status_code(node).1
    }

    /// `status --json` of a node, and its exit code.
    pub(crate) fn status_code(&self, node: &str) -> (i32, Value) {
        let (code, stdout, stderr) = self.run(node, &format!("status --vm {VM} --json"));
        (code, serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout:?} {stderr}")))
    }

    /// Waits until a node's status has this role.
    pub(crate) fn wait_role(&self, node: &str, role: &str) -> Value {
        let mut last = String::new();
        until(&format!("{node} is {role}"), || {
            let (_, stdout, stderr) = self.run(node, &format!("status --vm {VM} --json"));
            last = stdout + &stderr;
            let status: Value = serde_json::from_str(&last).ok()?;
            (status["role"] == role).then_some(status)
        })
    }

    /// `protect` on node a of a VM that has no standby.
    pub(crate) fn alone(&self) -> (Vm, Proc) {
        let vm = self.vm("vm", &[]);
        let mut protect = self.protect("a", "a", &vm.qmp, free_addr(), "");
        protect.wait_event("no-session");
        (vm, protect)
    }

    /// A protected pair: the VM, `protect` on node a, a standby on node b.
    pub(crate) fn pair(&self) -> (Vm, Proc, Standby) {
        self.pair_with(&StandbyOptions::default())
    }

    /// The same, with another standby.
    pub(crate) fn pair_with(&self, options: &StandbyOptions) -> (Vm, Proc, Standby) {
        let vm = self.vm("vm", &[]);
        let mut standby = self.standby_with("b", options);
        let mut protect = self.protect("a", "a", &vm.qmp, standby.addr, "");
        protect.wait_event("protected");
        standby.proc.wait_event("protected");
        (vm, protect, standby)
    }
}

/// The death of the primary's host: everything at once.
pub(crate) fn kill_host(vm: &mut Vm, protect: &mut Proc) {
    let data_path = protect.data_path();
    for pid in [protect.pid(), data_path, vm.proc.pid()] {
        proc::kill(pid);
    }
    vm.proc.kill();
    protect.kill();
}
