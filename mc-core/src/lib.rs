//! What replication means: the protocol of Afterimage, without sockets, clocks, threads or devices.

#![deny(unsafe_code)]

pub mod arbiter;
pub mod detector;
pub mod driver;
pub mod gate;
pub mod id;
pub mod image;
pub mod machine;
pub mod primary;
pub mod ram;
pub mod register;
pub mod slab;
pub mod source;
pub mod staging;
pub mod standby;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod wire;
