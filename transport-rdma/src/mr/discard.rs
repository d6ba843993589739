//! Punched holes. A region keeps the pages that it pinned; a hole punched into the file under it (`MADV_REMOVE`,
//! `FALLOC_FL_PUNCH_HOLE`: a balloon, free page reporting, a memory device that is unplugged) gives everybody else new ones.
//! From then on the device reads, with success, what nobody writes any more. Nothing tells us so afterwards, hence: no guest
//! with a device that discards, as with VFIO (`ram_block_discard_disable`, QEMU system/physmem.c).

/// A guest may punch holes into memory that is, or is to be, registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the VM has {0}, which discards pages of its RAM; under memory that is registered for RDMA this leaves the device with \
     stale pages. Remove the device, or do not register guest RAM (capture by memcpy)"
)]
pub struct Discards(pub String);

/// Names of QEMU's device types that discard RAM begin so: balloons (and their free page reporting), and memory that is
/// plugged and unplugged in pieces.
const DISCARDING: [&str; 3] = ["virtio-balloon", "virtio-mem", "hv-balloon"];

/// Refuses a VM with a device that discards guest RAM. `devices`: QEMU's type names, or ways in its device tree
/// (`main-system-bus/…/pci.0/virtio-balloon-pci`).
///
/// # Errors
/// Names the first such device.
pub fn refuse_discard<'a>(devices: impl IntoIterator<Item = &'a str>) -> Result<(), Discards> {
    let discards = |device: &&str| device.split('/').any(|part| DISCARDING.iter().any(|name| part.starts_with(name)));
    devices.into_iter().find(discards).map_or(Ok(()), |device| Err(Discards(device.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_discard_are_refused_by_name() {
        assert_eq!(refuse_discard(["e1000", "main-system-bus/i440FX-pcihost/pci.0/virtio-net-pci", "pc-dimm"]), Ok(()));
        for device in ["virtio-balloon-pci", "main-system-bus/i440FX-pcihost/pci.0/virtio-mem-pci id=m0", "hv-balloon"]
        {
            let refused = refuse_discard(["e1000", device]).unwrap_err();
            assert!(refused.to_string().contains(device), "{refused}");
        }
    }
}
