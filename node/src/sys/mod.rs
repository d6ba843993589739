//! The crate's only `unsafe`: calls into the system that no well-kept crate wraps. One concern a file, a SAFETY line for
//! each condition; everything else is safe code (`lib.rs` denies the rest).
#![allow(unsafe_code)]

pub mod child;
pub mod sched;
