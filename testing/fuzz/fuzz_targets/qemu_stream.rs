//! The target for libFuzzer of `afterimage_fuzz::qemu_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::qemu_stream::run(bytes));
