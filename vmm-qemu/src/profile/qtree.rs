//! The devices, from the human monitor's `info qtree`: the only place where QEMU shows all of them with their properties.
//!
//! ```text
//! bus: main-system-bus
//!   type System
//!   dev: i440FX-pcihost, id ""
//!     pci-hole64-size = 2147483648 (2 GiB)        <- a property: static, kept
//!     bus: pci.0
//!       type PCI
//!       dev: e1000, id "n0"
//!         netdev = "n0"                           <- how this host provides it: dropped
//!         addr = 03.0
//!         class Ethernet controller, addr 00:03.0 <- runtime: dropped, as everything without " = "
//!         bar 0: mem at 0xfeb40000 [0xfeb5ffff]
//! ```

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Names of properties that say how a host provides something, not what the guest sees.
const HOST_ONLY: &[&str] = &[
    "audiodev",
    "backend_defaults",
    "chardev",
    "cryptodev",
    "drive",
    "fd",
    "filename",
    "iothread",
    "memdev",
    "netdev",
    "path",
    "rerror",
    "rng",
    "romfile",
    "share-rw",
    "vhostfd",
    "werror",
];

/// Names of properties that firmware changes: state, which the stream carries.
const RUNTIME: &[&str] = &["MCFG", "smb_io_base"];

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Device {
    /// The way to it, as `main-system-bus/i440FX-pcihost/pci.0/e1000`, then `id=` and `addr=` where it has them.
    pub place: String,
    /// Its static properties.
    pub properties: BTreeMap<String, String>,
}

/// Reads `info qtree`: the devices, sorted.
pub(super) fn parse(text: &str) -> Vec<Device> {
    let mut tree = Tree::default();
    for line in text.lines() {
        tree.line(line);
    }
    tree.devices.sort();
    tree.devices
}

#[derive(Default)]
struct Tree<'a> {
    /// The way to here: how far it is indented, its name, and its device if it is one.
    stack: Vec<(usize, &'a str, Option<usize>)>,
    devices: Vec<Device>,
}

impl<'a> Tree<'a> {
    fn line(&mut self, line: &'a str) {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        self.stack.retain(|(above, ..)| *above < indent);
        if let Some(name) = text.strip_prefix("bus: ") {
            self.stack.push((indent, name, None));
        } else if let Some(device) = text.strip_prefix("dev: ") {
            self.device(indent, device);
        } else if let Some((name, value)) = text.split_once(" = ")
            && let Some((_, _, Some(device))) = self.stack.last()
        {
            property(&mut self.devices[*device], name, value);
        }
    }

    fn device(&mut self, indent: usize, text: &'a str) {
        let (kind, id) = text.split_once(", id ").unwrap_or((text, ""));
        let mut place = String::new();
        for (_, name, _) in &self.stack {
            place.push_str(name);
            place.push('/');
        }
        place.push_str(kind);
        let id = id.trim_matches('"');
        if !id.is_empty() {
            place.push_str(" id=");
            place.push_str(id);
        }
        self.stack.push((indent, kind, Some(self.devices.len())));
        self.devices.push(Device { place, properties: BTreeMap::new() });
    }
}

fn property(device: &mut Device, name: &str, value: &str) {
    if name.contains(' ') || HOST_ONLY.contains(&name) || RUNTIME.contains(&name) {
        return;
    }
    // The address on a bus is as good as a name.
    if name == "addr" {
        device.place.push_str(" addr=");
        device.place.push_str(value);
    } else {
        device.properties.insert(name.into(), canonical(name, value).into());
    }
}

/// `rombar`: 7.2 says 1 where 10.0 says -1. The guest sees a ROM BAR or none.
fn canonical<'a>(name: &str, value: &'a str) -> &'a str {
    match name {
        "rombar" if value.starts_with("0 ") => "off",
        "rombar" => "on",
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"bus: main-system-bus
  type System
  dev: hpet, id ""
    gpio-in "" 2
    timers = 3 (0x3)
    mmio 00000000fed00000/0000000000000400
  dev: i440FX-pcihost, id ""
    short_root_bus = 0 (0x0)
    bus: pci.0
      type PCI
      dev: e1000, id "n0"
        mac = "52:54:00:12:34:57"
        netdev = "net7"
        addr = 03.0
        class Ethernet controller, addr 00:03.0, pci id 8086:100e (sub 1af4:1100)
        bar 0: mem at 0xfeb40000 [0xfeb5ffff]
  dev: kvmclock, id ""
"#;

    #[test]
    fn keeps_what_the_guest_sees() {
        let devices = parse(TEXT);
        let places: Vec<_> = devices.iter().map(|device| device.place.as_str()).collect();
        assert_eq!(
            places,
            [
                "main-system-bus/hpet",
                "main-system-bus/i440FX-pcihost",
                "main-system-bus/i440FX-pcihost/pci.0/e1000 id=n0 addr=03.0",
                "main-system-bus/kvmclock"
            ]
        );
        assert_eq!(devices[2].properties.keys().collect::<Vec<_>>(), ["mac"]);
        assert_eq!(devices[0].properties["timers"], "3 (0x3)");
    }

    /// QEMU 7.2 and 10.0 have other defaults for the same: every pair of the two was refused.
    #[test]
    fn a_rom_bar_is_there_or_not() {
        let rombar = |value: &str| {
            let text = format!("  dev: e1000, id \"\"\n    rombar = {value}\n");
            parse(&text)[0].properties["rombar"].clone()
        };
        assert_eq!(rombar("1 (0x1)"), rombar("-1 (0xffffffffffffffff)"));
        assert_ne!(rombar("1 (0x1)"), rombar("0 (0x0)"));
    }

    #[test]
    fn whatever_it_reads_is_no_panic() {
        for end in 0..TEXT.len() {
            parse(&TEXT[end..]);
            parse(&TEXT[..end]);
        }
        assert!(parse(" = \n  x = y\n dev: \n  =  = \n").len() == 1);
    }
}
