//! Devices, from the human monitor's `info qtree`: those that reach out of the VM by themselves, and what the others use.
//! (Its form: [`crate::profile`].)

use super::{Class, Output, chardevs::Users, known, line::User};
use std::collections::BTreeSet;

/// A device, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    kind: String,
    id: String,
    address: String,
    chardev: String,
    /// What the guest calls the port.
    port: String,
    audio: String,
    /// The inner half of a virtio device on PCI, whose outer half is judged.
    inner: bool,
}

/// A bus or device around a line: how far it is indented, the device if it is one, or whether it is a bus between the two
/// halves of a virtio device.
struct Around(usize, Option<usize>, bool);

/// Reads `info qtree`.
pub(super) fn parse(text: &str) -> Vec<Device> {
    let (mut devices, mut around): (Vec<Device>, Vec<Around>) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        around.retain(|Around(above, ..)| *above < indent);
        if text.starts_with("bus: ") {
            around.push(Around(indent, None, false));
        } else if let Some(device) = text.strip_prefix("dev: ") {
            let (kind, id) = device.split_once(", id ").unwrap_or((device, ""));
            let inner = around.last().is_some_and(|Around(_, _, halves)| *halves);
            around.push(Around(indent, Some(devices.len()), false));
            let id = id.trim_matches('"').to_owned();
            devices.push(Device { kind: kind.to_owned(), id, inner, ..Device::default() });
        } else if let Some(Around(_, device, halves)) = around.last_mut() {
            match (text.strip_prefix("type "), text.split_once(" = "), device) {
                (Some(kind), _, None) => *halves = kind == "virtio-pci-bus",
                (_, Some((name, value)), Some(device)) => property(&mut devices[*device], name, value),
                _ => {}
            }
        }
    }
    devices
}

fn property(device: &mut Device, name: &str, value: &str) {
    let place = match name {
        "addr" => &mut device.address,
        "chardev" => &mut device.chardev,
        "name" => &mut device.port,
        "audiodev" => &mut device.audio,
        _ => return,
    };
    value.trim_matches('"').clone_into(place);
}

impl Device {
    fn name(&self) -> String {
        match (self.id.as_str(), self.address.as_str()) {
            ("", "") => self.kind.clone(),
            ("", address) => format!("{}@{address}", self.kind),
            (id, _) => id.to_owned(),
        }
    }
}

/// Adds the devices' chardevs to those that the command line knows.
pub(super) fn add_users(devices: &[Device], users: &mut Users) {
    for device in devices.iter().filter(|device| !device.chardev.is_empty()) {
        let user = User::Device { kind: device.kind.clone(), port: device.port.clone() };
        let users = users.entry(device.chardev.clone()).or_default();
        if !users.contains(&user) {
            users.push(user);
        }
    }
}

/// `added`: the types of devices that somebody asked for, by `-device` or `device_add`. The machine's own need no naming.
pub(super) fn outputs(devices: &[Device], added: &BTreeSet<String>) -> Vec<Output> {
    let judged = devices.iter().filter(|device| !device.inner);
    let mut outputs: Vec<Output> = judged.filter_map(|device| output(device, added)).collect();
    let sounds: BTreeSet<&str> = devices.iter().map(|device| device.audio.as_str()).filter(|a| !a.is_empty()).collect();
    outputs.extend(sounds.into_iter().map(|name| Output::new("audio", name, Class::operator("sound"))));
    outputs
}

fn output(device: &Device, added: &BTreeSet<String>) -> Option<Output> {
    let class = match known::device(&device.kind) {
        known::Verdict::Harmless => return None,
        known::Verdict::Operator(why) => Class::operator(why),
        known::Verdict::Unheld { why, remedy } => Class::unheld(format!("{}: {why}", device.kind), remedy),
        known::Verdict::Unknown if added.contains(&device.kind) => {
            let why = format!("afterimage does not know whether devices of type {} let output out", device.kind);
            Class::unheld(why, "remove it")
        }
        known::Verdict::Unknown => return None,
    };
    Some(Output::new("device", device.name(), class))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"bus: main-system-bus
  type System
  dev: i440FX-pcihost, id ""
    bus: pci.0
      type PCI
      dev: vfio-pci, id "gpu"
        host = "0000:01:00.0"
        addr = 05.0
      dev: virtio-9p-pci, id ""
        addr = 04.0
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-9p-device, id ""
            mount_tag = "t"
      dev: a-new-one, id ""
        addr = 06.0
      dev: board-thing, id ""
      dev: virtio-serial-pci, id ""
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-serial-device, id ""
            bus: virtio-serial-bus.0
              type virtio-serial-bus
              dev: virtserialport, id ""
                chardev = "ga"
                name = "org.qemu.guest_agent.0"
"#;

    #[test]
    fn what_reaches_out_is_listed_and_what_is_not_known_too() {
        let devices = parse(TEXT);
        let added = ["a-new-one", "vfio-pci", "virtio-9p-pci"].map(str::to_owned).into();
        let found: Vec<_> = outputs(&devices, &added).into_iter().map(|o| (o.name, o.class)).collect();
        let names: Vec<_> = found.iter().map(|(name, class)| (name.as_str(), class.word())).collect();
        assert_eq!(names, [("gpu", "unheld"), ("virtio-9p-pci@04.0", "unheld"), ("a-new-one@06.0", "unheld")]);
        assert!(found[2].1.why().contains("does not know"), "{:?}", found[2]);
        let mut users = Users::new();
        add_users(&devices, &mut users);
        let agent = User::Device { kind: "virtserialport".into(), port: "org.qemu.guest_agent.0".into() };
        assert_eq!(users, Users::from([("ga".to_owned(), vec![agent])]));
    }

    #[test]
    fn whatever_it_reads_is_no_panic() {
        for end in 0..TEXT.len() {
            parse(&TEXT[end..]);
            parse(&TEXT[..end]);
        }
    }
}
