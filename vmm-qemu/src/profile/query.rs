//! Asks a running QEMU.

use super::{Cpu, Make, Profile, qtree};
use crate::{
    blocks::{self, BlocksError, RamBlock},
    qmp::{Qmp, QmpError},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// For each command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// What the guest sees of a vCPU besides the feature words. Not the TSC's frequency: it is the host's, and QEMU deals with it.
const CPU_PROPERTIES: &[&str] = &["vendor", "family", "model", "stepping", "level", "xlevel", "phys-bits", "model-id"];

/// Why a profile could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Its list of RAM blocks.
    #[error("QEMU's \"info ramblock\": {0}")]
    Blocks(#[from] BlocksError),
    /// A line of that list.
    #[error("QEMU's \"info ramblock\" has a line that cannot be read: {0:?}")]
    BlockLine(String),
}

impl Profile {
    /// Asks QEMU what its VM is made of. Also of a VM that waits in `-incoming`.
    pub fn query(qmp: &mut Qmp) -> Result<Self, ProfileError> {
        let machine = qom_get(qmp, "/machine", "type")?;
        let machine = machine.as_str().unwrap_or_default();
        let make = Make::read(&qmp.hmp("info qtree", TIMEOUT)?, &qmp.hmp("info ramblock", TIMEOUT)?)?;
        let kvm = qmp.execute("query-kvm", Value::Null, TIMEOUT)?;
        Ok(Self {
            qemu_version: qmp.version(),
            machine: machine.strip_suffix("-machine").unwrap_or(machine).into(),
            accel: if kvm["enabled"] == true { "kvm" } else { "tcg" }.into(),
            cpus: cpus(qmp)?,
            devices: make.devices,
            blocks: make.blocks,
            unheld: Vec::new(),
        })
    }
}

impl Make {
    /// From QEMU's `info qtree` and `info ramblock`.
    ///
    /// # Errors
    /// A line of the latter is not as QEMU writes it, or the blocks cannot be those of a VM.
    pub fn read(qtree: &str, ramblock: &str) -> Result<Self, ProfileError> {
        Ok(Self { devices: qtree::parse(qtree), blocks: ram_blocks(ramblock)? })
    }
}

fn qom_get(qmp: &mut Qmp, path: &str, property: &str) -> Result<Value, QmpError> {
    qmp.execute("qom-get", json!({ "path": path, "property": property }), TIMEOUT)
}

fn cpus(qmp: &mut Qmp) -> Result<Vec<Cpu>, QmpError> {
    let list = qmp.execute("query-cpus-fast", Value::Null, TIMEOUT)?;
    list.as_array().into_iter().flatten().map(|entry| cpu(qmp, entry)).collect()
}

fn cpu(qmp: &mut Qmp, entry: &Value) -> Result<Cpu, QmpError> {
    let missing = QmpError::Answer { command: "query-cpus-fast".into(), missing: "qom-path" };
    let path = entry["qom-path"].as_str().ok_or(missing)?;
    let model = qom_get(qmp, path, "type")?;
    let mut features = BTreeMap::new();
    for property in CPU_PROPERTIES {
        match qom_get(qmp, path, property) {
            Ok(value) => features.insert((*property).into(), plain(&value)),
            // Another architecture, or a QEMU that no longer has it.
            Err(QmpError::Command { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    match qom_get(qmp, path, "feature-words") {
        Ok(words) => features.extend(words.as_array().into_iter().flatten().filter_map(feature_word)),
        Err(QmpError::Command { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(Cpu { model: plain(&model), place: place(&entry["props"]), features })
}

/// `CPUID.00000007H.0:EBX` and its bits; none if they are all zero, as a word is that an older QEMU does not know.
fn feature_word(word: &Value) -> Option<(String, String)> {
    let bits = word["features"].as_u64().filter(|bits| *bits != 0)?;
    let leaf = word["cpuid-input-eax"].as_u64()?;
    let sub = word["cpuid-input-ecx"].as_u64().map(|sub| format!(".{sub}")).unwrap_or_default();
    let register = word["cpuid-register"].as_str()?;
    Some((format!("CPUID.{leaf:08X}H{sub}:{register}"), format!("{bits:#010x}")))
}

fn place(props: &Value) -> String {
    let parts = props.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {}", plain(value)));
    parts.collect::<Vec<_>>().join(", ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Reads `info ramblock`:
///
/// ```text
///               Block Name    PSize              Offset               Used              Total
///                   pc.ram    4 KiB  0x0000000000000000 0x0000000001002000 0x0000000001002000
/// ```
///
/// Later versions have more columns behind.
fn ram_blocks(text: &str) -> Result<Vec<RamBlock>, ProfileError> {
    let lines = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    let blocks: Vec<RamBlock> = lines
        .map(|line| ram_block(line).ok_or_else(|| ProfileError::BlockLine(line.trim().into())))
        .collect::<Result<_, _>>()?;
    blocks::check(&blocks)?;
    Ok(blocks)
}

fn ram_block(line: &str) -> Option<RamBlock> {
    let (head, numbers) = line.split_once(" 0x")?;
    // "pc.ram    4 KiB": the name may hold blanks, the page size is two words.
    let (head, _unit) = head.trim().rsplit_once(' ')?;
    let (name, _size) = head.trim().rsplit_once(' ')?;
    let used = numbers.split_ascii_whitespace().nth(1)?.strip_prefix("0x")?;
    Some(RamBlock { name: name.trim().into(), used_length: u64::from_str_radix(used, 16).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ram_blocks_of_old_and_new_versions() {
        let old = "              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000001002000 0x0000000001002000
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x00000000010c0000 0x0000000000040000 0x0000000000040000
                  a name    2 MiB  0x00000000010c0000 0x0000000000040000 0x0000000000080000

";
        let blocks = ram_blocks(old).unwrap();
        assert_eq!(blocks[0], RamBlock { name: "pc.ram".into(), used_length: 0x100_2000 });
        assert_eq!(blocks[1].name, "0000:00:02.0/virtio-net-pci.rom");
        assert_eq!(blocks[2], RamBlock { name: "a name".into(), used_length: 0x4_0000 });
        let new = "  Block Name    PSize  Offset  Used  Total  HVA  RO
      pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007f1c3fe00000 rw\n";
        assert_eq!(ram_blocks(new).unwrap()[0].used_length, 0x800_0000);
    }

    #[test]
    fn refuses_other_texts() {
        assert!(matches!(ram_blocks("header\nnonsense"), Err(ProfileError::BlockLine(line)) if line == "nonsense"));
        assert!(matches!(ram_blocks(""), Err(ProfileError::Blocks(BlocksError::Count(0)))));
    }

    #[test]
    fn names_feature_words() {
        let word = json!({"cpuid-register": "EBX", "cpuid-input-ecx": 0, "cpuid-input-eax": 7, "features": 8});
        assert_eq!(feature_word(&word), Some(("CPUID.00000007H.0:EBX".into(), "0x00000008".into())));
        assert_eq!(feature_word(&json!({"cpuid-register": "EBX", "cpuid-input-eax": 7, "features": 0})), None);
    }
}
