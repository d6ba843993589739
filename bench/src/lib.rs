//! `mc-bench`: what the transports do, beside what others' tools do on the same devices, in the same run.
//!
//! | file | what |
//! |---|---|
//! | [`cli`], [`units`] | the command line |
//! | [`transport`] | `mc-bench transport`: rounds of yardstick and ours |
//! | [`load`], [`sink`] | checkpoints over a link: the side that measures, and the one that ACKs |
//! | [`peer`] | the second process |
//! | [`link`] | what a link to measure is like |
//! | [`pong`], [`yard`] | yardsticks: a bare ping-pong over TCP, perftest, iperf3 |
//! | [`report`], [`table`], [`stats`], [`machine`] | what comes out |
//!
//! Results go to stdout, narration to stderr. `docs/PERFORMANCE.md` has the method and figures.

#![forbid(unsafe_code)]

pub mod cli;
pub mod link;
pub mod load;
pub mod machine;
pub mod peer;
pub mod pong;
pub mod report;
pub mod sink;
pub mod stats;
pub mod table;
pub mod transport;
pub mod units;
pub mod yard;
