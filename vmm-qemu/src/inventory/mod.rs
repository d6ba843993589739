//! The inventory of a VM's outputs: every way out of the VM, and whether what leaves by it waits for the standby.
//!
//! "Protected" is true only if nothing that the guest sends is seen before the standby could repeat it. So each output is
//! one of
//!
//! | class | is | `protect` |
//! |---|---|---|
//! | [`Class::Held`] | a NIC's stream socket that `--nic` names: the gate holds it | goes on |
//! | [`Class::Harmless`] | nothing leaves the VM by it, or nothing that could not be taken back | goes on |
//! | [`Class::Operator`] | for a person who looks at this VM: console, VNC, SPICE, guest agent, monitor | goes on |
//! | [`Class::Unheld`] | everything else, and whatever is not known here | refuses, unless `--unheld` names it |
//!
//! QEMU has no event for `device_add` or `netdev_add`, so [`Watcher`] looks again and again. A look is six short commands;
//! the long one (`info qtree`, some 3 ms of QEMU's main loop) is asked only when one of the six has another answer.
//!
//! | file | |
//! |---|---|
//! | [`collect`] | the commands, and what their answers make together |
//! | [`watch`] | asks without waiting, once a second |
//! | [`network`], [`disks`], [`chardevs`], [`devices`] | an answer each, and what it means |
//! | [`known`] | device and object types: what is known of them |
//! | [`mod@line`] | QEMU's own command line: what QMP does not tell |

mod chardevs;
mod collect;
mod devices;
mod disks;
mod known;
mod line;
mod network;
mod watch;

pub use collect::{InventoryError, take};
pub use watch::{Look, Watcher};

use super::profile::Make;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All outputs of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Inventory {
    /// Each of them, by a name of its own.
    pub outputs: Vec<Output>,
    /// Devices, netdevs, objects and disks, in words: two inventories of one shape have device states that load alike.
    pub shape: Vec<String>,
}

/// One way out of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Output {
    /// QEMU's name for it: the id of a netdev or chardev, a drive's or node's name; "kind:name" where two have the same.
    pub name: String,
    /// "netdev", "nic", "disk", "chardev", "display", "audio", "device", "object".
    pub kind: String,
    /// What becomes of what leaves by it.
    pub class: Class,
}

/// What becomes of what leaves by an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case")]
pub enum Class {
    /// The gate holds it.
    Held,
    /// It needs no holding.
    Harmless {
        /// Why.
        why: String,
    },
    /// For the VM's operator, who knows that a takeover may take back what was seen.
    Operator {
        /// What it is.
        why: String,
    },
    /// It leaves before the standby has the state that it was sent from.
    Unheld {
        /// What happens.
        why: String,
        /// What to do about it.
        remedy: String,
    },
}

impl Class {
    fn harmless(why: impl Into<String>) -> Self {
        Self::Harmless { why: why.into() }
    }

    fn operator(why: impl Into<String>) -> Self {
        Self::Operator { why: why.into() }
    }

    fn unheld(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unheld { why: why.into(), remedy: remedy.into() }
    }

    /// "held", "harmless", "operator", "unheld".
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Harmless { .. } => "harmless",
            Self::Operator { .. } => "operator",
            Self::Unheld { .. } => "unheld",
        }
    }

    /// Why it is in that class.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Held => "its output waits for the standby's ACK",
            Self::Harmless { why } | Self::Operator { why } | Self::Unheld { why, .. } => why,
        }
    }

    /// What to do about it; empty if nothing has to be.
    #[must_use]
    pub fn remedy(&self) -> &str {
        match self {
            Self::Unheld { remedy, .. } => remedy,
            _ => "",
        }
    }
}

/// A VM that has changed: what it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its outputs.
    pub outputs: Inventory,
    /// What it is made of; `None` if QEMU's answers could not be read.
    pub make: Option<Make>,
}

impl Output {
    fn new(kind: &str, name: impl Into<String>, class: Class) -> Self {
        Self { name: name.into(), kind: kind.to_owned(), class }
    }

    /// Whether nothing holds it.
    #[must_use]
    pub fn is_unheld(&self) -> bool {
        matches!(self.class, Class::Unheld { .. })
    }

    /// As "netdev n1: …".
    #[must_use]
    pub fn told(&self) -> String {
        format!("{} {}: {}", self.kind, self.name, self.class.why())
    }
}

impl Inventory {
    /// Gives every output a name of its own, in a fixed order.
    fn new(mut outputs: Vec<Output>, mut shape: Vec<String>) -> Self {
        let mut counts = BTreeMap::new();
        for output in &outputs {
            *counts.entry(output.name.clone()).or_insert(0) += 1;
        }
        for output in outputs.iter_mut().filter(|output| counts[&output.name] > 1) {
            output.name = format!("{}:{}", output.kind, output.name);
        }
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for output in &mut outputs {
            let times = seen.entry(output.name.clone()).or_insert(0);
            *times += 1;
            if *times > 1 {
                output.name = format!("{}.{times}", output.name);
            }
        }
        outputs.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        shape.sort();
        Self { outputs, shape }
    }

    /// What is to be thought of a VM whose outputs could not be asked for: nothing good.
    #[must_use]
    pub fn unknown(error: &InventoryError) -> Self {
        let why = format!("the VM's outputs could not be read: {error}");
        let class = Class::unheld(why, "look at QEMU's monitor; protect the VM again when it answers");
        Self { outputs: vec![Output::new("device", "inventory", class)], shape: vec![error.to_string()] }
    }

    /// All that is in it, each in words.
    pub fn items(&self) -> Vec<String> {
        let output = |output: &Output| format!("{} {} ({})", output.kind, output.name, output.class.word());
        self.outputs.iter().map(output).chain(self.shape.iter().cloned()).collect()
    }

    /// What nothing holds.
    pub fn unheld(&self) -> impl Iterator<Item = &Output> {
        self.outputs.iter().filter(|output| output.is_unheld())
    }
}

/// Outputs that an operator accepts although nothing holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forced {
    /// By name.
    pub names: Vec<String>,
    /// And every disk.
    pub disks: bool,
}

impl Forced {
    fn covers(&self, output: &Output) -> bool {
        self.names.contains(&output.name) || (self.disks && output.kind == "disk")
    }

    /// What nothing holds and nobody accepted.
    #[must_use]
    pub fn left_open<'a>(&self, inventory: &'a Inventory) -> Vec<&'a Output> {
        inventory.unheld().filter(|output| !self.covers(output)).collect()
    }

    /// Names of no output.
    #[must_use]
    pub fn strangers(&self, inventory: &Inventory) -> Vec<&str> {
        let known = |name: &&str| inventory.outputs.iter().any(|output| output.name == *name);
        self.names.iter().map(String::as_str).filter(|name| !known(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unheld(kind: &str, name: &str) -> Output {
        Output::new(kind, name, Class::unheld("it leaves at once", "remove it"))
    }

    #[test]
    fn every_output_has_a_name_of_its_own() {
        let outputs = vec![unheld("netdev", "a"), unheld("chardev", "a"), unheld("device", "x"), unheld("disk", "b")];
        let outputs = [outputs, vec![unheld("device", "x")]].concat();
        let inventory = Inventory::new(outputs, Vec::new());
        let names: Vec<_> = inventory.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["chardev:a", "device:x", "device:x.2", "b", "netdev:a"]);
    }

    #[test]
    fn forced_are_those_that_are_named() {
        let inventory = Inventory::new(vec![unheld("netdev", "n1"), unheld("disk", "d0")], Vec::new());
        let open = |names: &[&str], disks| {
            let forced = Forced { names: names.iter().map(|n| (*n).to_owned()).collect(), disks };
            forced.left_open(&inventory).iter().map(|output| output.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(open(&[], false), ["d0", "n1"]);
        assert_eq!(open(&["n1"], false), ["d0"]);
        assert_eq!(open(&[], true), ["n1"]);
        assert_eq!(open(&["n1", "d0"], false), Vec::<String>::new());
        let forced = Forced { names: vec!["n1".into(), "n9".into()], disks: false };
        assert_eq!(forced.strangers(&inventory), ["n9"]);
    }
}
