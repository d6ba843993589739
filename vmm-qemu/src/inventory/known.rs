//! What is known of QEMU's device and object types (those of 7.2 and 10.0 on x86): which of them reach out of the VM by
//! themselves, and which do not. A type that is in no list is not known, and counts as unheld.

/// What a type means for what the VM lets out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It lets nothing out but through a netdev, disk or chardev, which is judged by itself.
    Harmless,
    /// It is for a person who looks at this VM.
    Operator(&'static str),
    /// It reaches out by itself.
    Unheld { why: &'static str, remedy: &'static str },
    /// In no list.
    Unknown,
}

const REMOVE: &str = "remove the device";

/// By the beginning of the type's name; the first that fits.
const UNHELD_DEVICES: &[(&str, &str, &str)] = &[
    ("vfio-", "a device of this host acts at once on what the guest does, and its state cannot be copied", REMOVE),
    ("vhost-user-fs", "virtio-fs: another program writes the guest's files at once", "share no writable directory"),
    ("vhost-user-vsock", "vsock: what the guest sends reaches other programs at once", REMOVE),
    ("vhost-vsock", "vsock: what the guest sends reaches other programs at once", REMOVE),
    ("vhost-user-", "another program does its work at once", "use QEMU's own device"),
    ("vhost-scsi", "the host's kernel does its work at once", "use QEMU's own device"),
    ("vhost-vdpa-", "a device of this host does its work at once", REMOVE),
    ("virtio-9p-", "9p: the guest's files are written at once", "share no writable directory"),
    ("ivshmem-", "other programs see at once what the guest writes to the shared memory", REMOVE),
    ("usb-host", "a USB device of this host does at once what the guest tells it", REMOVE),
    ("usb-mtp", "the guest's files are written at once", REMOVE),
    ("u2f-passthru", "a security key of this host answers at once", REMOVE),
    ("ccid-card-", "a smart card outside of the VM answers at once", REMOVE),
    ("scsi-generic", "a device of this host does at once what the guest tells it", "use scsi-hd, read-only"),
    ("scsi-block", "a device of this host does at once what the guest tells it", "use scsi-hd, read-only"),
    ("tpm-", "the TPM's state is outside of the VM: a takeover would find another one", REMOVE),
    ("ipmi-bmc-extern", "the management controller is another program", "use ipmi-bmc-sim"),
    ("x-pci-proxy-dev", "another program does its work at once", REMOVE),
    (
        "nvdimm",
        "what the guest makes durable is in a file of this host, which a takeover would not find",
        "use a read-only disk",
    ),
    (
        "virtio-pmem",
        "what the guest makes durable is in a file of this host, which a takeover would not find",
        "use a read-only disk",
    ),
    ("acpi-erst", "what the guest stores in it is in a file of this host, at once", REMOVE),
    ("uefi-vars-", "what the guest stores in it may be in a file of this host, at once", REMOVE),
    ("hv-syndbg", "a debugger elsewhere hears the guest at once", REMOVE),
];

/// Names, with blanks between them. A `*` stands for the rest of the name.
const HARMLESS_DEVICES: &[&str] = &[
    // Bridges and hubs.
    "cxl-downstream cxl-rp cxl-upstream i82801b11-bridge ioh3420 pci-bridge pci-bridge-seat pcie-pci-bridge \
     pcie-root-port pxb* usb-hub vmbus-bridge x3130-upstream xio3130-downstream",
    // USB controllers.
    "ich9-usb-* nec-usb-xhci pci-ohci piix3-usb-uhci piix4-usb-uhci qemu-xhci usb-ehci",
    // Storage: their disks are listed.
    "am53c974 dc390 floppy ich9-ahci ide-cd ide-cf ide-hd isa-fdc isa-ide lsi53c8* megasas* mptsas1068 nvme* \
     piix3-ide piix4-ide pvscsi scsi-cd scsi-hd sd-card* sdhci-pci ufs* usb-bot usb-storage usb-uas virtio-blk-* \
     virtio-scsi-*",
    // Network: their netdevs are listed.
    "e1000* i825* i82801 igb ne2k_isa ne2k_pci pcnet rtl8139 tulip usb-net virtio-net-* vmxnet3",
    // Input and lines: their chardevs are listed.
    "i8042 ipoctal232 isa-parallel isa-serial pci-serial* tpci200 usb-braille usb-ccid usb-kbd usb-mouse \
     usb-redir usb-serial usb-tablet usb-wacom-tablet virtconsole virtio-input-host-* virtio-keyboard-* \
     virtio-mouse-* virtio-multitouch-* virtio-serial-* virtio-tablet-* virtserialport vmmouse",
    // Displays: VNC, SPICE and windows are listed.
    "ati-vga bochs-display cirrus-vga isa-cirrus-vga isa-vga qxl qxl-vga ramfb secondary-vga sga VGA virtio-gpu-* \
     virtio-vga* vmware-svga",
    // Sound: audiodevs are listed.
    "AC97 adlib cs4231a ES1370 gus hda-* ich9-intel-hda intel-hda sb16 usb-audio virtio-sound-*",
    // CAN controllers: what leaves the host is an object.
    "ctucan_pci kvaser_pci mioe3680_pci pcm3680_pci",
    // Of the machine.
    "*-x86_64-cpu AMDVI-PCI amd-iommu edu guest-loader hv-balloon i2c-ddc i2c-echo i6300esb ib700 intel-iommu \
     ipmi-bmc-sim isa-applesmc isa-debug-exit isa-debugcon isa-ipmi-* loader mc146818rtc pc-dimm pc-testdev \
     pci-ipmi-* pci-testdev pvpanic* smbus-ipmi virtio-balloon-* virtio-crypto-* virtio-iommu-* virtio-mem \
     virtio-mem-pci virtio-rng-* vmclock vmcoreinfo vmgenid",
];

const HARMLESS_OBJECTS: &[&str] =
    &["authz-* can-bus cryptodev-backend cryptodev-backend-builtin cryptodev-backend-lkcf filter-buffer \
     filter-replay filter-rewriter input-linux iothread main-loop memory-backend-* rng-* secret* sev-* \
     thread-context throttle-group tls-c*"];

/// What a device of this type means.
pub(super) fn device(kind: &str) -> Verdict {
    if let Some((_, why, remedy)) = UNHELD_DEVICES.iter().find(|(begin, ..)| kind.starts_with(begin)) {
        return Verdict::Unheld { why, remedy };
    }
    if is_in(HARMLESS_DEVICES, kind) { Verdict::Harmless } else { Verdict::Unknown }
}

/// What an object (`-object`, `object-add`) of this type means.
pub(super) fn object(kind: &str) -> Verdict {
    match kind {
        "filter-dump" => Verdict::Operator("a recording of packets"),
        "filter-mirror" | "filter-redirector" | "colo-compare" => {
            Verdict::Unheld { why: "it hands packets to another program at once", remedy: "remove the object" }
        }
        "can-host-socketcan" => {
            Verdict::Unheld { why: "frames leave through the host's CAN bus at once", remedy: "remove the object" }
        }
        kind if is_in(HARMLESS_OBJECTS, kind) => Verdict::Harmless,
        _ => Verdict::Unknown,
    }
}

fn is_in(list: &[&str], kind: &str) -> bool {
    list.iter().flat_map(|names| names.split(' ')).any(|known| {
        match (known.strip_suffix('*'), known.strip_prefix('*')) {
            (Some(begin), _) => kind.starts_with(begin),
            (None, Some(end)) => kind.ends_with(end),
            (None, None) => kind == known,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_devices_are_harmless_and_strange_ones_are_not() {
        for kind in ["virtio-net-pci", "e1000e", "qemu-xhci", "scsi-hd", "virtio-rng-pci", "qemu64-x86_64-cpu", "VGA"] {
            assert_eq!(device(kind), Verdict::Harmless, "{kind}");
        }
        for kind in [
            "vfio-pci",
            "vhost-user-blk-pci",
            "vhost-vsock-pci",
            "virtio-9p-pci",
            "ivshmem-plain",
            "tpm-crb",
            "usb-host",
        ] {
            assert!(matches!(device(kind), Verdict::Unheld { .. }), "{kind}");
        }
        for kind in ["rocker", "pvrdma", "xen-net-device", "a-later-one", "", "virtio"] {
            assert_eq!(device(kind), Verdict::Unknown, "{kind}");
        }
        assert_eq!(object("memory-backend-file"), Verdict::Harmless);
        assert_eq!(object("cryptodev-vhost-user"), Verdict::Unknown);
    }
}
