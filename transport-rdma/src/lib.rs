//! Checkpoints over RC, beats over UD, local copies by RDMA: what [`mc_core::transport`] asks for, on RDMA devices.
//!
//! | file | what |
//! |---|---|
//! | [`rc`] | [`rc::RdmaLink`], the [`mc_core::transport::Transport`]: slabs by RDMA WRITE, records by SEND |
//! | [`error`] | what goes wrong, with peer, queue pair, work request, times and a hint |
//! | [`types`] | plain values of the verbs |
//! | [`ffi`] | owned handles over libibverbs: the only `unsafe` |

pub mod error;
pub mod ffi;
pub mod rc;
pub mod types;
