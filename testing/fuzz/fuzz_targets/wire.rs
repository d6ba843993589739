//! The target for libFuzzer of `afterimage_fuzz::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::wire::run(bytes));
