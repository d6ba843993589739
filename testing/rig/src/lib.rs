//! The test rig: what it takes to watch a VM outlive its host on one machine.
//!
//! | module | |
//! |---|---|
//! | [`hosts`] | what a scenario needs of hosts: run something there, kill, freeze, cut |
//! | [`netns`] | hosts made of network namespaces |
//! | [`lab`] | hosts that are virtual machines with RDMA devices, made by `scripts/lab pair` |
//! | [`process`] | processes on such a host, their events and logs |
//! | [`metronome`] | whether this machine kept time |
//! | [`monitor`] | a QEMU monitor that is held: commands, events, pauses |
//! | [`guest`] | QEMU's command lines, and which accelerator boots which guest here |
//! | [`plug`] | the NIC of a VM that nobody protects yet: carries frames between QEMU and a TAP device |
//! | [`client`] | the client inside: asks the guest without end, and keeps the books that a lie cannot balance |
//! | [`timeline`] | events of all processes in one order |
//! | [`scenario`] | one fault each: what is done, what is observed, what must be true |
//! | [`demo`] | runs a scenario once or a hundred times, and prints the verdict |
//!
//! Nothing here is part of the product, and it uses the product only as an operator can: command lines, standard
//! output, `afterimage status`. What it claims about survivors comes from elsewhere: from the client's books, from
//! QEMU's own monitor, and from the packet counters of the TAP devices or of the wire.

pub mod client;
pub mod demo;
pub mod guest;
pub mod hosts;
pub mod lab;
pub mod metronome;
pub mod monitor;
pub mod netns;
pub mod plug;
pub mod prerequisite;
pub mod process;
pub mod qmp;
pub mod scenario;
pub mod serial;
pub mod stats;
pub mod sys;
pub mod timeline;
