//! QEMU's migration stream, in chunks of every size: never a panic, never more memory than the limits allow.

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    let _ = vmm_qemu::stream::fuzz::run(bytes);
}
