//! Checkpoints over RC, beats over UD, local copies by RDMA: what [`mc_core::transport`] asks for, on RDMA devices.

pub mod ffi;
pub mod types;
