//! Checkpoints over RC, beats over UD: what [`mc_core::transport`] asks for, on RDMA devices.
//!
//! | file | what |
//! |---|---|
//! | [`rc`] | [`rc::RdmaLink`], the [`mc_core::transport::Transport`]: slabs by RDMA WRITE, records by SEND |
//! | [`ud`] | [`ud::UdKeepalive`], the [`mc_core::transport::Keepalive`]: beats as datagrams, to each member or to a group |
//! | [`device`] | which devices there are, which one to use and why, what it can do |
//! | [`mr`] | guest RAM and other large memory, registered in chunks |
//! | [`memlock`] | what is registered, against the limit on locked memory |
//! | [`error`] | what goes wrong, with peer, queue pair, work request, times and a hint |
//! | [`types`] | plain values of the verbs |
//! | [`ffi`] | owned handles over libibverbs: the only `unsafe` |

pub mod device;
pub mod error;
pub mod ffi;
pub mod memlock;
pub mod mr;
pub mod patience;
pub mod rc;
pub mod types;
pub mod ud;
