//! How dirty pages get from guest RAM into staging slabs while the VM is paused, and how one knows which pages those are.
//!
//! ```text
//! VM paused ──track──> runs of dirty pages ──a mc_core::capture::CaptureEngine──> slabs, as they go on the wire
//! ```
//!
//! | engine | copies by |
//! |---|---|
//! | [`Memcpy`] | the processor, one thread |
//! | [`parallel::Parallel`] | the processor, several threads ([`threads`]), past the caches |
//! | [`rdma::LocalCopy`] (feature `rdma`) | the device, by local RDMA writes |
//! | [`WithSpare`] | another engine, and by `memcpy` from its first failure on |
//!
//! QEMU sends its pages itself. [`source::MemorySource`] puts a guest, a tracker and an engine together for a source that sees guest RAM:
//! `vmm-memory` runs it with [`memcpy`], and `bench` with every engine (`mc-bench capture`, `epoch`). Slabs come out byte for byte the
//! same, whatever the engine. [`track`] asks the kernel which pages a process has written; its `kernel.rs` is this crate's only `unsafe`.

#![deny(unsafe_code)]

mod memcpy;
pub mod parallel;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod source;
mod spare;
pub mod threads;
pub mod track;

pub use memcpy::{Memcpy, covers};
pub use spare::WithSpare;
