//! The target for libFuzzer of `afterimage_fuzz::probe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::probe::run(bytes));
