//! What replication means: the protocol of Afterimage, without sockets, clocks, threads or devices.
//!
//! # A page's journey
//!
//! 1. The VM runs. [`primary`] decides that an epoch is over and asks its [`driver`] to pause; the [`source`] lets the VM
//!    stop and hands over every page that it wrote, and its device state.
//! 2. [`staging`] copies each page into a [`slab`], once. Slabs come from a pool with a hard cap; a sealed slab *is* the
//!    wire image ([`wire::slab`]), and is never copied again on this host.
//! 3. With the VM still stopped, the [`gate`] closes the batch of output that this epoch covers. Then the VM runs on.
//! 4. The [`transport`] sends the slabs, and after them a commit record ([`wire::control`]).
//! 5. On the other host, slabs are received into slabs, and checked against the [`image`]. When the commit record comes
//!    and the epoch is whole, [`standby`] commits it, ACKs it, and only then applies it: the page is in the after-image,
//!    in [`ram`] that a waiting VM maps.
//! 6. The ACK reaches [`primary`], and the gate releases what the VM had sent in that epoch.
//!
//! Two copies, one in, one out. If the primary dies between any two of these steps, what the outside has seen is in the
//! image.
//!
//! # The roles
//!
//! Five machines, each a plain value that is handed events and time, and gives actions ([`machine`]):
//!
//! | machine | decides |
//! |---|---|
//! | [`primary::Primary`] | when to checkpoint, what output may leave, when to ask for going on alone |
//! | [`standby::Standby`] | what is committed, when to ask for the VM |
//! | [`detector::Detector`] | when the other side is suspect; a suspicion is not a verdict |
//! | [`arbiter::Arbiter`] | the verdict: one compare-and-swap on the [`register`] |
//! | [`claim::Claim`] | whether a process that starts, or follows one that died, may run the VM at all |
//!
//! Start with [`primary`], whose module documentation draws the whole life of a protected VM; then [`standby`]. The same
//! values run in the product ([`driver`]) and under the model checker (`tests/model/main.rs`).
//!
//! # The map
//!
//! Modules are the namespaces here: [`primary::Event`] is not [`standby::Event`]. What an embedder implements: a [`source`], a
//! [`gate`], and for a network of its own a [`transport`]; what it makes: [`ram`], [`image`].
//!
//! [`id`] has the vocabulary's numbers, [`seen`] what a node remembers of the register, [`histogram`] the one way in which times
//! are counted, [`wire`] every byte, [`slab`] and [`staging`] the memory, [`capture`] the trait of who copies into it,
//! [`transport`], [`source`] and [`gate`] the traits that the outside implements, [`failover`] a transport made of
//! two, `testing` (a feature) an in-memory transport and the suite that every transport must pass.
//!
//! # What may grow
//!
//! Errors are `non_exhaustive`. What machines, drivers, links and sources hand out is not ([`primary::Action`],
//! [`driver::PrimaryErrand`], [`transport::Completion`], [`source::SourceEvent`], [`register::CasOutcome`], the roles): an owner
//! that passed over a new one in silence would lose a slab, or a VM. It shall not compile instead.

#![deny(unsafe_code)]

pub mod arbiter;
pub mod capture;
pub mod claim;
pub mod detector;
pub mod driver;
pub mod failover;
pub mod gate;
pub mod histogram;
pub mod id;
pub mod image;
pub mod machine;
pub mod primary;
pub mod ram;
pub mod register;
mod sabotage;
pub mod seen;
pub mod slab;
pub mod source;
pub mod staging;
pub mod standby;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
pub mod wire;
