//! `mc-bench`: what the transports do, beside what others' tools do on the same devices, in the same run.
//!
//! | file | what |
//! |---|---|
//! | [`cli`], [`units`] | the command line |
//! | [`transport`] | `mc-bench transport`: rounds of yardstick and ours |
//! | [`beats`], [`beating`] | `mc-bench beats`: the keepalive idle and beside bulk; its two ends |
//! | [`capture`] | `mc-bench capture` and `register` |
//! | [`detect`] | `mc-bench detect`: deaths, and false suspicions |
//! | [`side`] | the first process's side of a link |
//! | [`load`], [`sink`] | checkpoints over a link: the side that measures, and the one that ACKs |
//! | [`peer`] | the second process |
//! | [`link`] | what a link to measure is like |
//! | [`pong`], [`yard`] | yardsticks: a bare ping-pong over TCP, perftest, iperf3 |
//! | [`verdict`], [`report`], [`table`], [`stats`], [`machine`], [`sys`] | what comes out |
//!
//! Results go to stdout, narration to stderr. `docs/PERFORMANCE.md` has the method and figures.

#![deny(unsafe_code)]

pub mod beating;
pub mod beats;
pub mod capture;
pub mod cli;
pub mod detect;
pub mod link;
pub mod load;
pub mod machine;
pub mod peer;
pub mod pong;
pub mod record;
pub mod report;
pub mod side;
pub mod sink;
pub mod stats;
pub mod sys;
pub mod table;
pub mod transport;
pub mod units;
pub mod verdict;
pub mod yard;
