//! The target for libFuzzer of `afterimage_fuzz::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::control::run(bytes));
