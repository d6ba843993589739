//! The target for libFuzzer of `afterimage_fuzz::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::journal::run(bytes));
