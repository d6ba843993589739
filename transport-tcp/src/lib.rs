//! Checkpoints over TCP, beats over UDP: what [`mc_core::transport`] asks for, on any network.
//!
//! | | |
//! |---|---|
//! | [`session`] | one connection's beginning: hello, profile, ready or a refusal; the [`session::Listener`] |
//! | [`TcpLink`] | the [`mc_core::transport::Transport`]: slabs and control records in one byte stream |
//! | [`Stream`] | the byte stream under both: plain TCP today, an enum so that TLS becomes an arm |
//! | [`reach`] | the connection to one of a name's addresses |
//! | [`UdpKeepalive`] | the [`mc_core::transport::Keepalive`] |
//! | [`LinkOptions`] | the knobs |
//!
//! On the wire nothing is added: after the handshake the stream is control records (64 bytes) and slabs (header and body),
//! back to back, told apart by their magic number. A slab leaves by vectored writes of its own memory, and is received into
//! the memory that was posted for it.
//!
//! # Socket options, and why
//!
//! | option | value | why |
//! |---|---|---|
//! | `TCP_NODELAY` | on | a commit record must not wait for the ACK of the slab before it |
//! | `TCP_USER_TIMEOUT` | 30 s | a backstop that ends a dead connection, or one whose peer has not read for that long; silence is the keepalive's business, within milliseconds |
//! | `SO_KEEPALIVE` | off | likewise |
//! | `SO_SNDBUF`, `SO_RCVBUF` | the kernel's autotuning unless configured | a fixed size ends autotuning and is clamped to `net.core.[rw]mem_max`, often *less* than autotuning reaches |
//! | `SO_LINGER` | untouched | `close` returns at once, and what was written is still delivered |
//! | `SO_REUSEADDR` | on the listener | a standby that restarts can listen again at once |
//! | `IP_TOS`, `IPV6_TCLASS` | CS6, on beats only | network control: switches queue beats before bulk |
//! | `SO_PRIORITY` | 6, on beats only | the local queueing discipline sends beats before bulk; 6 is the most that needs no capability |
//!
//! Bytes that were reported as `Written` are in the kernel, which goes on sending them after the link was dropped; bytes
//! that were still queued here are lost with it.

#![forbid(unsafe_code)]

mod link;
mod options;
pub mod reach;
pub mod session;
mod stream;
mod udp;

pub use link::TcpLink;
pub use options::LinkOptions;
pub use stream::Stream;
pub use udp::UdpKeepalive;
