//! How two VMs differ.

use super::{Cpu, Device, Profile};
use node::units::bytes_text;
use std::collections::BTreeMap;

/// Blocks that QEMU fills from fw_cfg and resizes by itself when it loads a VM.
const RESIZABLE: &str = "/rom@";

impl Profile {
    /// Why `standby` cannot run this VM, a line for each reason; none if it can.
    #[must_use]
    pub fn mismatches(&self, standby: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        differ(&mut lines, "machine type", &self.machine, &standby.machine);
        if !lines.is_empty() {
            return lines; // another machine has other devices: that is all there is to say
        }
        self.compare_cpus(standby, &mut lines);
        self.compare_devices(standby, &mut lines);
        self.compare_blocks(standby, &mut lines);
        lines
    }

    fn compare_cpus(&self, standby: &Self, lines: &mut Vec<String>) {
        let counts = (self.vcpus().to_string(), standby.vcpus().to_string());
        differ(lines, "number of vCPUs", &counts.0, &counts.1);
        // The vCPUs of a VM are all alike: the first that differs tells it all.
        let pairs = self.cpus.iter().zip(&standby.cpus).enumerate();
        if let Some((index, (ours, theirs))) = pairs.into_iter().find(|(_, (ours, theirs))| ours != theirs) {
            compare_cpu(index, ours, theirs, lines);
        }
    }

    fn compare_devices(&self, standby: &Self, lines: &mut Vec<String>) {
        let (ours, theirs) = (by_place(&self.devices), by_place(&standby.devices));
        let same_version = self.qemu_version == standby.qemu_version;
        for (key, device) in &ours {
            match theirs.get(key) {
                None => lines.push(format!("device {}: on the primary only", key.0)),
                Some(other) => compare_properties(device, other, same_version, lines),
            }
        }
        let extra = theirs.keys().filter(|key| !ours.contains_key(*key));
        lines.extend(extra.map(|key| format!("device {}: on the standby only", key.0)));
    }

    fn compare_blocks(&self, standby: &Self, lines: &mut Vec<String>) {
        for block in &self.blocks {
            match standby.blocks.iter().find(|other| other.name == block.name) {
                None => lines.push(format!("RAM block {:?}: on the primary only", block.name)),
                Some(other) if block.name.starts_with(RESIZABLE) || other.used_length == block.used_length => {}
                Some(other) => lines.push(format!(
                    "RAM block {:?}: {} on the primary, {} on the standby",
                    block.name,
                    bytes_text(block.used_length),
                    bytes_text(other.used_length)
                )),
            }
        }
        let extra = standby.blocks.iter().filter(|other| !self.blocks.iter().any(|block| block.name == other.name));
        lines.extend(extra.map(|block| format!("RAM block {:?}: on the standby only", block.name)));
    }
}

fn differ(lines: &mut Vec<String>, what: &str, primary: &str, standby: &str) {
    if primary != standby {
        lines.push(format!("{what}: {primary} on the primary, {standby} on the standby"));
    }
}

fn compare_cpu(index: usize, ours: &Cpu, theirs: &Cpu, lines: &mut Vec<String>) {
    differ(lines, &format!("vCPU {index} model"), &ours.model, &theirs.model);
    differ(lines, &format!("vCPU {index} place"), &ours.place, &theirs.place);
    let names = ours.features.keys().chain(theirs.features.keys().filter(|name| !ours.features.contains_key(*name)));
    for name in names {
        let value = |cpu: &Cpu| cpu.features.get(name).cloned().unwrap_or_else(|| "nothing".into());
        differ(lines, &format!("vCPU {index} {name}"), &value(ours), &value(theirs));
    }
}

/// Devices by place; those at the same place (the two DMA controllers) are numbered.
fn by_place(devices: &[Device]) -> BTreeMap<(&str, usize), &Device> {
    let mut counts = BTreeMap::new();
    let numbered = devices.iter().map(|device| {
        let count = counts.entry(device.place.as_str()).or_insert(0);
        *count += 1;
        ((device.place.as_str(), *count), device)
    });
    numbered.collect()
}

/// Another version of QEMU has other properties: then only those are compared that both have.
fn compare_properties(ours: &Device, theirs: &Device, all: bool, lines: &mut Vec<String>) {
    let names =
        ours.properties.keys().chain(theirs.properties.keys().filter(|name| !ours.properties.contains_key(*name)));
    for name in names {
        let (Some(here), Some(there)) = (ours.properties.get(name), theirs.properties.get(name)) else {
            if all {
                let side = if ours.properties.contains_key(name) { "primary" } else { "standby" };
                lines.push(format!("device {}: property {name} on the {side} only", ours.place));
            }
            continue;
        };
        differ(lines, &format!("device {}: {name}", ours.place), here, there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::RamBlock;

    fn profile(machine: &str, device: &str, ram: u64) -> Profile {
        Profile {
            qemu_version: "7.2.22".into(),
            machine: machine.into(),
            accel: "kvm".into(),
            cpus: Vec::new(),
            devices: vec![Device { place: device.into(), properties: BTreeMap::new() }],
            blocks: vec![RamBlock { name: "pc.ram".into(), used_length: ram }],
            unheld: Vec::new(),
        }
    }

    #[test]
    fn another_machine_is_all_there_is_to_say() {
        let ours = profile("pc-i440fx-7.2", "main-system-bus/i440FX-pcihost", 2 << 30);
        let said = ours.mismatches(&profile("pc-q35-7.2", "main-system-bus/q35-pcihost", 1 << 30));
        assert_eq!(said, ["machine type: pc-i440fx-7.2 on the primary, pc-q35-7.2 on the standby"]);
        let said = ours.mismatches(&profile("pc-i440fx-7.2", "main-system-bus/i440FX-pcihost", 1 << 30));
        assert_eq!(said, ["RAM block \"pc.ram\": 2GiB on the primary, 1GiB on the standby"]);
    }
}
