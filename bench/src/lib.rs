//! `mc-bench`: what this program does, beside what others' tools do on the same machine, in the same run.
//!
//! ```text
//!   command ──> Section ──┐
//!   command ──> Section ──┴─> Record ──> tables │ JSON │ .hgrm │ HTML       record, record ──> compare
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`cli`], [`units`] | the command line |
//! | [`commands`] | which command gives which section; what is missing here |
//! | [`all`] | `mc-bench all`: the list of what it runs |
//! | [`record`] | what a command leaves behind; [`machine`], [`stats`] |
//! | [`face`] | how it is shown: tables, files, the page |
//! | [`stored`], [`compare`] | records read again, and compared |
//! | [`progress`] | how far it is, on stderr |
//! | [`transport`] | `mc-bench transport`: rounds of yardstick and ours |
//! | [`beats`], [`beating`] | `mc-bench beats`: the keepalive idle and beside bulk; its two ends |
//! | [`register`] | `mc-bench register`: beside the bare verb |
//! | [`takeover`] | `mc-bench takeover`: N real kills |
//! | [`qemu`] | `mc-bench qemu`: a real VM, beside QEMU's own COLO and `migrate` |
//! | [`capture`] | `mc-bench capture`: engines on patterns of dirty pages |
//! | [`epoch`] | `mc-bench epoch`: the whole loop with a synthetic guest |
//! | [`detect`] | `mc-bench detect`: deaths, and false suspicions |
//! | [`side`] | the first process's side of a link |
//! | [`load`], [`sink`] | checkpoints over a link: the side that measures, and the one that ACKs |
//! | [`peer`] | the second process |
//! | [`link`] | what a link to measure is like |
//! | [`pong`], [`yard`] | yardsticks: a bare ping-pong over TCP, perftest, iperf3 |
//! | [`sys`] | this crate's only unsafe code |
//!
//! Results go to stdout, narration to stderr. `docs/PERFORMANCE.md` has the method and figures.

#![deny(unsafe_code)]

pub mod all;
mod beating;
mod beats;
mod capture;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod detect;
pub mod epoch;
pub mod face;
pub mod interrupt;
mod link;
mod load;
mod machine;
pub mod peer;
mod pong;
pub mod progress;
mod qemu;
pub mod record;
mod register;
mod side;
mod sink;
mod stats;
pub mod stored;
mod sys;
mod takeover;
mod transport;
mod units;
mod yard;
