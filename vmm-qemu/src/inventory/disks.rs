//! The VM's disks, from `query-block`.

use super::{Class, Output};
use serde_json::Value;

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    name: String,
    /// What is in it; `None`: nothing.
    medium: Option<Medium>,
    /// Whether a device of the VM uses it.
    attached: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Medium {
    file: String,
    driver: String,
    read_only: bool,
}

/// Reads the answer to `query-block`.
pub(super) fn parse(answer: &Value) -> Result<Vec<Disk>, String> {
    let entries = answer.as_array().ok_or("no list")?;
    entries.iter().map(disk).collect()
}

fn disk(entry: &Value) -> Result<Disk, String> {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let inserted = &entry["inserted"];
    let medium = || {
        Some(Medium {
            file: text(&inserted["file"]).unwrap_or_default(),
            driver: text(&inserted["drv"])?,
            read_only: inserted["ro"].as_bool()?,
        })
    };
    let medium = match inserted.is_null() {
        true => None,
        false => Some(medium().ok_or_else(|| format!("a drive without \"drv\" or \"ro\": {entry}"))?),
    };
    let device = text(&entry["qdev"]);
    // A node that was given no name has one like "#block135", another one at every start.
    let node = text(&inserted["node-name"]).filter(|name| !name.starts_with('#'));
    let short = device.as_ref().map(|path| path.trim_start_matches("/machine/").to_owned());
    let name = text(&entry["device"]).or(node).or(short).unwrap_or_else(|| "unnamed".into());
    Ok(Disk { name, medium, attached: device.is_some() })
}

pub(super) fn outputs(disks: &[Disk]) -> Vec<Output> {
    disks.iter().map(|disk| Output::new("disk", &disk.name, class(disk))).collect()
}

fn class(disk: &Disk) -> Class {
    let Some(medium) = &disk.medium else { return Class::harmless("an empty drive") };
    if medium.read_only {
        return Class::harmless("read-only");
    }
    if !disk.attached {
        return Class::harmless("no device of the VM uses it");
    }
    if medium.driver.starts_with("null-") {
        return Class::harmless("it keeps nothing of what is written");
    }
    let why = format!(
        "the guest can write to it ({}), and disk writes are not held: a takeover would find the disk ahead of the memory",
        medium.file
    );
    Class::unheld(why, "attach it read-only")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::collect::captured;
    use serde_json::json;

    #[test]
    fn disks_of_a_real_vm() {
        for version in captured::VERSIONS {
            let disks = parse(&captured::read(version)["query-block"]).unwrap();
            let found: Vec<_> =
                outputs(&disks).into_iter().map(|o| (o.name, o.class.word(), o.class.why().to_owned())).collect();
            let words: Vec<_> = found.iter().map(|(name, word, _)| (name.as_str(), *word)).collect();
            assert_eq!(
                words,
                [
                    ("d0", "unheld"),
                    ("d1", "harmless"),
                    ("cd0", "harmless"),
                    ("r2", "unheld"),
                    ("peripheral-anon/device[10]", "harmless")
                ],
                "{version}"
            );
            assert!(found[0].2.contains("/run/vm/rw.img"), "{}", found[0].2);
        }
    }

    #[test]
    fn one_that_no_device_uses_and_one_that_cannot_be_read() {
        let drive = |ro: Value| json!([{ "device": "d", "inserted": { "drv": "raw", "file": "f", "ro": ro } }]);
        assert_eq!(outputs(&parse(&drive(json!(false))).unwrap())[0].class.word(), "harmless");
        assert!(parse(&drive(json!("no"))).is_err());
        assert!(parse(&json!({})).is_err());
    }
}
