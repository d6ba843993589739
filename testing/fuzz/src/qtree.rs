//! The tree of devices and the list of RAM blocks, as QEMU's human monitor prints them: never a panic, and a profile of what
//! was read comes to a peer as it is.

use vmm_qemu::profile::{MAX_JSON, Make, Profile};

/// Fails by a panic. The list begins behind the first byte of zero.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (qtree, ramblock) = text.split_once('\0').unwrap_or((&text, ""));
    let Ok(make) = Make::read(qtree, ramblock) else { return };
    assert!(make.devices.is_sorted());
    let profile = Profile {
        qemu_version: String::new(),
        machine: String::new(),
        accel: String::new(),
        cpus: Vec::new(),
        devices: make.devices,
        blocks: make.blocks,
        unheld: Vec::new(),
    };
    let json = profile.to_json();
    if json.len() <= MAX_JSON {
        assert_eq!(Profile::from_json(&json).expect("it was written"), profile);
    }
}
