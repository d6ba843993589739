//! The only unsafe code of the program: system calls for which no safe crate exists.

#![allow(unsafe_code)]

pub mod sched;
