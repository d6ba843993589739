//! Checkpoints over RC, beats over UD: what [`mc_core::transport`] asks for, on RDMA devices.
//!
//! | | |
//! |---|---|
//! | [`Prepared`], [`RdmaLink`] | the [`mc_core::transport::Transport`] over RC, before and after it is connected: slabs by RDMA WRITE, records by SEND |
//! | [`UdKeepalive`] | the [`mc_core::transport::Keepalive`] over UD: beats as datagrams, to each member or to a group |
//! | [`device`] | which devices there are, which one to use and why, what it can do |
//! | [`mr`] | guest RAM and other large memory, registered in chunks |
//! | [`memlock`] | what is registered, against the limit on locked memory |
//! | [`RdmaError`], [`WorkFailure`] | what goes wrong, with peer, queue pair, work request, times and a hint |
//! | [`types`] | plain values of the verbs |
//! | [`ffi`] | owned handles over libibverbs: the only `unsafe` |

pub mod device;
mod error;
pub mod ffi;
pub mod memlock;
pub mod mr;
mod patience;
mod rc;
pub mod types;
mod ud;

pub use error::{RdmaError, WorkFailure, ack_timeout};
pub use patience::patiently;
#[cfg(feature = "testing")]
pub use rc::Breaker;
pub use rc::{Place, Prepared, RcOptions, RdmaLink};
#[cfg(feature = "group")]
pub use ud::group_of;
pub use ud::{UdAddress, UdCounts, UdKeepalive, UdOptions, qkey_of};
