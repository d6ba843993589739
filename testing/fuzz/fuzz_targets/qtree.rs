//! The target for libFuzzer of `afterimage_fuzz::qtree`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::qtree::run(bytes));
