//! Isolation of the remaining options for a rehearsal: chardevs, disks, objects, devices.

use super::{NotIsolated, refuse};
use crate::argv::{Item, Params};

/// Beginnings of devices that are a piece of the host, or have their other half in another process.
const HOST_DEVICES: &[&str] =
    &["ivshmem", "u2f-passthru", "usb-host", "vfio", "vhost", "virtio-vhost", "x-pci-proxy", "xen"];

/// Objects that a VM's devices refer to, and that reach no further.
const OBJECTS: &[&str] = &[
    "can-bus",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "iothread",
    "main-loop",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "secret",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-cipher-suites",
];

/// Objects that watch, copy or grab something of the host, and that no state depends on.
const OBJECTS_DROPPED: &[&str] = &["can-host-socketcan", "colo-compare", "filter-", "input-"];

/// Block drivers that read a file, or change what another one reads. An inactive image is never written.
const DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "io_uring",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];

/// A serial or parallel port: there, and nobody at its other end. `none` is no port, and a chardev is one already.
pub(super) fn port(item: &Item) -> Item {
    let value = item.value.as_deref().unwrap_or_default();
    if value == "none" || value.starts_with("chardev:") {
        return item.clone();
    }
    Item { written: item.written.clone(), value: Some("null".into()) }
}

pub(super) fn chardev(item: &Item, params: &Params) -> Item {
    let mut null = Params::parse("null");
    for key in ["id", "mux"] {
        if let Some(value) = params.get(key) {
            null.set(key, &value);
        }
    }
    item.with_params(&null)
}

pub(super) fn object(item: &Item, params: &Params) -> Result<Option<Item>, NotIsolated> {
    let kind = params.kind("qom-type").unwrap_or_default();
    if OBJECTS_DROPPED.iter().any(|dropped| kind.starts_with(dropped)) {
        return Ok(None);
    }
    if OBJECTS.contains(&kind.as_str()) || kind.starts_with("tls-creds-") || kind.starts_with("authz-") {
        return Ok(Some(item.clone()));
    }
    refuse(item, format!("a rehearsal does not know the object {kind:?}"))
}

pub(super) fn device(item: &Item, params: &Params) -> Result<Item, NotIsolated> {
    let kind = params.kind("driver").unwrap_or_default();
    if HOST_DEVICES.iter().any(|host| kind.starts_with(host)) || kind.contains("vhost-user") {
        return refuse(item, format!("{kind:?} is a piece of this host, or shared with another process"));
    }
    Ok(item.clone())
}

/// Disks are opened as they are: until the VM runs they are inactive, so no lock is taken and nothing is written.
pub(super) fn disk(item: &Item, params: &Params) -> Result<Item, NotIsolated> {
    let drivers = match params {
        Params::Keys(keys) => {
            let first = (item.name() == "blockdev").then(|| params.kind("driver")).flatten();
            let named = keys.iter().filter(|(key, _)| key == "driver" || key.ends_with(".driver") || key == "format");
            named.filter_map(|(_, value)| value.clone()).chain(first).collect()
        }
        Params::Json(map) => {
            let mut drivers = Vec::new();
            map.iter().for_each(|(key, value)| json_drivers(key, value, &mut drivers));
            drivers
        }
    };
    match drivers.iter().find(|driver| !DRIVERS.contains(&driver.as_str())) {
        Some(driver) => {
            refuse(item, format!("a rehearsal does not know whether the block driver {driver:?} can be opened twice"))
        }
        None => Ok(item.clone()),
    }
}

fn json_drivers(key: &str, value: &serde_json::Value, drivers: &mut Vec<String>) {
    match value {
        serde_json::Value::String(driver) if key == "driver" => drivers.push(driver.clone()),
        serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| json_drivers(key, value, drivers)),
        serde_json::Value::Array(values) => values.iter().for_each(|value| json_drivers("", value, drivers)),
        _ => {}
    }
}

/// Sound that goes nowhere. The device's own choices (`model=`) stay.
pub(super) fn audio(item: &Item, params: &Params) -> Item {
    let mut silent = Params::Keys(vec![("driver".into(), Some("none".into()))]);
    for key in ["id", "model"] {
        if let Some(value) = params.get(key) {
            silent.set(key, &value);
        }
    }
    item.with_params(&silent)
}

pub(super) fn folder(item: &Item, params: &Params) -> Result<Item, NotIsolated> {
    match params.kind("fsdriver").unwrap_or_default().as_str() {
        "local" | "synth" => Ok(item.clone()),
        other => refuse(item, format!("the folder's driver {other:?} is another process")),
    }
}

/// Locked memory would be a copy of all of the image.
pub(super) fn overcommit(item: &Item, mut params: Params) -> Item {
    params.set("mem-lock", "off");
    item.with_params(&params)
}

pub(super) fn usb(item: &Item) -> Result<Item, NotIsolated> {
    match item.value.as_deref() {
        Some("keyboard" | "mouse" | "tablet" | "wacom-tablet") => Ok(item.clone()),
        _ => refuse(item, "a rehearsal does not know what that USB device is connected to"),
    }
}

/// `-set` changes another option behind our back; those of devices are safe.
pub(super) fn set(item: &Item) -> Result<Item, NotIsolated> {
    match item.value.as_deref() {
        Some(value) if value.starts_with("device.") => Ok(item.clone()),
        _ => refuse(item, "it changes another option: write it there"),
    }
}
