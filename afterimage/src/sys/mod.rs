//! The one place for `unsafe` in this crate: system calls that no safe crate offers. Each file wraps one kernel interface
//! behind safe functions and keeps its own SAFETY reasons; everything outside `sys` is compiled with `deny(unsafe_code)`.

#![allow(unsafe_code)]

pub mod tap;
