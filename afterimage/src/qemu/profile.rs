//! What must be alike on both sides. QEMU itself checks the machine type and RAM blocks, and loads a different CPU, another
//! number of vCPUs or other devices without a word.

use super::qmp::{Qmp, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Properties that belong to a host, not to the VM: names of backends, and what a guest may change as it runs.
const HOST_PROPERTIES: [&str; 9] =
    ["netdev", "chardev", "drive", "audiodev", "vlan", "hpet-offset-saved", "memdev", "guest_cid", "smb_io_base"];

/// A RAM block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamBlock {
    /// QEMU's name for it.
    pub name: String,
    /// Bytes in use.
    pub used_length: u64,
}

/// A VM, as far as a takeover depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// For messages; versions may differ.
    pub qemu_version: String,
    /// The versioned name, as `-machine` takes it.
    pub machine: String,
    /// Type, family, model, stepping, and features of every vCPU.
    pub cpus: Vec<String>,
    /// Devices, with the properties that they were made with.
    pub devices: Vec<String>,
    /// RAM blocks; their order gives the block numbers of the wire.
    pub blocks: Vec<RamBlock>,
}

impl Profile {
    /// Asks a QEMU.
    pub fn query(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let version = qmp.execute("query-version", &json!({}), TIMEOUT)?;
        let machine = qmp.execute("qom-get", &json!({ "path": "/machine", "property": "type" }), TIMEOUT)?;
        let number = |part: &str| version["qemu"][part].as_u64().unwrap_or(0);
        let machine = machine.as_str().unwrap_or_default();
        Ok(Self {
            qemu_version: format!("{}.{}.{}", number("major"), number("minor"), number("micro")),
            machine: machine.strip_suffix("-machine").unwrap_or(machine).to_owned(),
            cpus: cpus(qmp)?,
            devices: devices(&qmp.hmp("info qtree")?),
            blocks: blocks(&qmp.hmp("info ramblock")?)?,
        })
    }

    /// The block that is the guest's main RAM: the largest.
    #[must_use]
    pub fn main_block(&self) -> Option<(usize, &RamBlock)> {
        self.blocks.iter().enumerate().max_by_key(|(_, b)| b.used_length)
    }

    /// What a takeover by `standby` would trip over, a line each.
    #[must_use]
    pub fn mismatches(&self, standby: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.machine != standby.machine {
            found.push(format!("machine: primary {}, standby {}", self.machine, standby.machine));
        }
        if self.cpus.len() != standby.cpus.len() {
            found.push(format!("vCPUs: primary {}, standby {}", self.cpus.len(), standby.cpus.len()));
        }
        for (index, (ours, theirs)) in self.cpus.iter().zip(&standby.cpus).enumerate() {
            found.extend(difference(&format!("vCPU {index}"), &words(ours), &words(theirs)));
        }
        found.extend(difference("device", &count(&self.devices), &count(&standby.devices)));
        let block = |b: &RamBlock| format!("{} of {} bytes", b.name, b.used_length);
        let (ours, theirs) = (self.blocks.iter().map(block).collect(), standby.blocks.iter().map(block).collect());
        found.extend(difference("RAM block", &ours, &theirs));
        found
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A multiset: equal devices are told apart by their number.
fn count(lines: &[String]) -> BTreeSet<String> {
    let nth = |i: usize| lines[..i].iter().filter(|l| **l == lines[i]).count();
    lines
        .iter()
        .enumerate()
        .map(|(i, l)| if nth(i) == 0 { l.clone() } else { format!("{l} (no. {})", nth(i) + 1) })
        .collect()
}

fn difference(what: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>) -> Vec<String> {
    let only = |side: &str, a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
        a.difference(b).map(|item| format!("{what}: only the {side} has {item}")).collect()
    };
    let mut found = only("primary", ours, theirs);
    found.extend(only("standby", theirs, ours));
    found
}

fn cpus(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let list = qmp.execute("query-cpus-fast", &json!({}), TIMEOUT)?;
    let paths: Vec<String> =
        list.as_array().into_iter().flatten().filter_map(|c| c["qom-path"].as_str().map(str::to_owned)).collect();
    paths.iter().map(|path| cpu(qmp, path)).collect()
}

/// The CPUID words that the guest sees (`feature-words`) say more than a model's name.
fn cpu(qmp: &mut Qmp, path: &str) -> Result<String, QmpError> {
    let mut text = String::new();
    for property in ["type", "family", "model", "stepping", "feature-words"] {
        let value = qmp.execute("qom-get", &json!({ "path": path, "property": property }), TIMEOUT);
        let value = match value {
            Ok(value) => value,
            Err(QmpError::Refused { .. }) => continue, // not an x86 CPU, or an older QEMU
            Err(error) => return Err(error),
        };
        for part in value.as_array().map_or_else(|| vec![value.clone()], Clone::clone) {
            let part = match (&part["cpuid-input-eax"], &part["cpuid-register"], &part["features"]) {
                (eax, register, features) if !eax.is_null() => {
                    let ecx = part["cpuid-input-ecx"].as_u64().unwrap_or(0);
                    format!("cpuid:{eax}:{ecx}:{register}={features}")
                }
                _ => format!("{property}={part}"),
            };
            text.push_str(&part.replace(' ', ""));
            text.push(' ');
        }
    }
    Ok(text.trim_end().to_owned())
}

/// A line per device of `info qtree`: its type, id, and the properties that it was made with. Buses, addresses that the
/// guest assigned and GPIO lines are left out.
fn devices(tree: &str) -> Vec<String> {
    let mut devices: Vec<String> = Vec::new();
    for line in tree.lines().map(str::trim) {
        if let Some(device) = line.strip_prefix("dev: ") {
            devices.push(device.to_owned());
        } else if let (Some(device), Some((name, value))) = (devices.last_mut(), line.split_once(" = "))
            && !HOST_PROPERTIES.contains(&name)
        {
            device.push_str(&format!(", {name}={value}"));
        }
    }
    devices.sort();
    devices
}

/// Lines of `info ramblock`: name, page size in two words, offset, used, total.
fn blocks(table: &str) -> Result<Vec<RamBlock>, QmpError> {
    let bad = |line: &str| QmpError::Answer { command: "info ramblock".to_owned(), what: format!("line {line:?}") };
    let mut blocks = Vec::new();
    for line in table.lines().skip(1).filter(|l| !l.trim().is_empty()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, _size, _unit, _offset, used, ..] = fields[..] else { return Err(bad(line)) };
        let hex = used.strip_prefix("0x").ok_or_else(|| bad(line))?;
        let used_length = u64::from_str_radix(hex, 16).map_err(|_| bad(line))?;
        blocks.push(RamBlock { name: name.to_owned(), used_length });
    }
    if blocks.is_empty() || blocks.len() > super::stream::MAX_BLOCKS {
        return Err(bad(&format!("{} blocks", blocks.len())));
    }
    blocks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(blocks)
}

/// Disks that the guest can write to.
pub fn writable_disks(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let list = qmp.execute("query-block", &json!({}), TIMEOUT)?;
    let writable = |disk: &&serde_json::Value| disk["inserted"].is_object() && disk["inserted"]["ro"] != json!(true);
    let name = |disk: &serde_json::Value| {
        let device = disk["device"].as_str().filter(|d| !d.is_empty()).or_else(|| disk["qdev"].as_str());
        format!("{} ({})", device.unwrap_or("?"), disk["inserted"]["file"].as_str().unwrap_or("?"))
    };
    Ok(list.as_array().into_iter().flatten().filter(writable).map(name).collect())
}
