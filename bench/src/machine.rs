//! What figures were taken on: the head of every output.

use serde::{Deserialize, Serialize};
use std::fs;

/// The machine and the program, as far as they bear on figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The node's name.
    pub host: String,
    /// Name, release and version of the kernel.
    pub kernel: String,
    /// The processor's name for itself.
    pub cpu: String,
    /// How many of them this process may use.
    pub cpus: usize,
    /// Whether instructions are emulated (QEMU TCG).
    pub emulated: bool,
    /// The frequency governor of the first processor, if there is one.
    pub governor: Option<String>,
    /// Runnable tasks, mean over the last minute, at the start: others may share the machine.
    pub load: String,
    /// Of this program.
    pub commit: String,
    /// Of this program.
    pub version: String,
    /// Built with optimisations and without debug assertions.
    pub optimised: bool,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let name = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let kernel = format!("{} {} {}", text(name.sysname()), text(name.release()), text(name.version()));
        let cpu = cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            host: text(name.nodename()),
            kernel,
            emulated: cpu.contains("TCG"),
            cpu,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            governor: governor.map(|g| g.trim().to_owned()),
            load: load.split(' ').next().unwrap_or("?").to_owned(),
            commit: env!("MC_BENCH_COMMIT").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
        }
    }

    /// The program, for people.
    #[must_use]
    pub fn program(&self) -> String {
        let build = if self.optimised { "optimised" } else { "NOT optimised" };
        format!("mc-bench {} {}, {build}", self.version, self.commit)
    }

    /// The machine, for people.
    #[must_use]
    pub fn words(&self) -> String {
        let governor = self.governor.as_ref().map(|g| format!(", governor {g}")).unwrap_or_default();
        format!("{}: {} x {}{governor}, load {}", self.host, self.cpus, self.cpu, self.load)
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(": ")).map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// An RDMA device, as its driver describes it in /sys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// "rxe0".
    pub name: String,
    /// What else is known: network device, rate, firmware.
    pub about: Vec<String>,
}

impl Device {
    /// The one of that name on this machine.
    #[must_use]
    pub fn here(name: &str) -> Self {
        let read = |file: &str| {
            let text = fs::read_to_string(format!("/sys/class/infiniband/{name}/{file}")).ok()?;
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        };
        let parts = [
            read("parent").map(|on| format!("on {on}")),
            read("node_desc"),
            read("fw_ver").map(|version| format!("firmware {version}")),
            read("ports/1/rate"),
        ];
        Self { name: name.to_owned(), about: parts.into_iter().flatten().collect() }
    }

    /// In one line.
    #[must_use]
    pub fn line(&self) -> String {
        let about = self.about.join(", ");
        if about.is_empty() { self.name.clone() } else { format!("{} ({about})", self.name) }
    }

    fn is_soft(&self) -> bool {
        self.name.starts_with("rxe")
    }
}

/// What must be said beside figures from such devices on such a machine.
#[must_use]
pub(crate) fn caveats(machine: &Machine, devices: &[Device]) -> Vec<String> {
    let mut notes = Vec::new();
    if machine.emulated {
        notes.push("the processor is emulated (QEMU TCG): only ratios within this run mean anything".to_owned());
    }
    if devices.iter().any(Device::is_soft) {
        let note =
            "SoftRoCE does in software what a NIC does in hardware: compare with the yardsticks beside, nothing else";
        notes.push(note.to_owned());
    }
    if !machine.optimised {
        notes.push("this build is not optimised: build with --release".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_names_itself() {
        let text = "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\nstepping\t: 3\n";
        assert_eq!(cpu_model(text), "QEMU TCG CPU version 2.5+");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn emulation_and_soft_devices_are_said() {
        let mut machine = Machine::here();
        (machine.emulated, machine.optimised) = (false, true);
        assert!(caveats(&machine, &[Device::here("mlx5_0")]).is_empty());
        machine.emulated = true;
        let notes = caveats(&machine, &[Device::here("rxe0")]).join("\n");
        assert!(notes.contains("TCG") && notes.contains("SoftRoCE"), "{notes}");
    }
}
