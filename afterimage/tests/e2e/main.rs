//! The program as a user runs it: `afterimage witness`, `standby` and `protect` around a stock QEMU with the tiny guest
//! (`testing/guests/README.md`), on loopback. Skipped where there is no QEMU or no C compiler.
//!
//! Tests run one at a time ([`world::World`] has a lock): each is three to six busy processes.

mod again;
mod away;
mod copies;
mod deaths;
mod ends;
mod found;
mod guest;
mod happy;
mod identities;
mod keeper;
mod last_resort;
mod leaving;
mod lifecycle;
mod live;
mod manual;
mod metrics;
mod misc;
mod net;
mod nics;
mod no_failover;
mod outputs;
mod paths;
mod power;
mod proc;
mod proxy;
mod refusals;
mod register;
mod signals;
mod staging;
mod stalls;
mod standstill;
mod stopped;
mod successor;
mod takeover;
mod unable;
mod unfit;
mod way;
mod world;
