//! The target for libFuzzer of `afterimage_fuzz::framing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::framing::run(bytes));
