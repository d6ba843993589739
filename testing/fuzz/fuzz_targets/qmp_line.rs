//! The target for libFuzzer of `afterimage_fuzz::qmp_line`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::qmp_line::run(bytes));
