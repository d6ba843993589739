//! QEMU's migration stream, in chunks of every size: never a panic, never more memory than the limits allow.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = vmm_qemu::stream::fuzz::run(bytes);
});
