//! The target for libFuzzer of `afterimage_fuzz::slab`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| afterimage_fuzz::slab::run(bytes));
