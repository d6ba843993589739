//! Checkpoints over RC, beats over UD, local copies by RDMA: what [`mc_core::transport`] asks for, on RDMA devices.

pub mod ffi;
pub mod local;
pub mod memlock;
pub mod mr;
pub mod types;
