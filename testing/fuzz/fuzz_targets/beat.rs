//! The target for libFuzzer of `afterimage_fuzz::beat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::beat::run(bytes));
