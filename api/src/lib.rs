//! The control API of a node: what can be asked of a process that protects a VM, or stands by for one, and how it is asked: HTTP/1.1
//! and JSON over a unix socket, and metrics for Prometheus. docs/API.md lists every route; docs/adr/0014 says where tokio ends.
//!
//! ```text
//!   client ──bytes──> serve (tokio) ──method, path, body──> route ──Request──> the loop, between two turns
//!     ^                 head: is it HTTP/1.1?                                     │
//!     └──────bytes──────── answer: Response or Problem as JSON <───────ReplyTo────┘
//! ```
//!
//! | file | | |
//! |---|---|---|
//! | [`request`] | what can be asked, and what comes back | values |
//! | [`status`], [`keepalive`], [`settings`] | what is told of a VM; what can be changed while it runs | values |
//! | [`report`] | what both sides of a VM fill in alike | values |
//! | `route` | method and path to a request, and back | pure |
//! | `answer` | an answer to a status and a body, and back | pure |
//! | [`problem`] | errors, as RFC 9457 has them | pure |
//! | `head` | whether the first bytes are HTTP/1.1, and whose dialect else | pure |
//! | [`desk`] | takes a request, waits for its reply | tokio |
//! | `serve` | connections: limits, deadlines, bytes; metrics use it too | tokio |
//! | `plane` | the one thread that all of this runs on | tokio |
//! | [`socket`] | the unix socket: its lock, its file | |
//! | `journal` | the newest events | |
//! | [`client`], `older` | a program's own questions; and those to a process of the release before | tokio |
//! | [`gather`] | the same question to every process of a host | threads |
//! | [`control`] | the requests, brought to the loop that owns the state | |
//! | `sockets` | where the socket of a side of a VM is | |
//! | [`metrics`] | the same figures for Prometheus | |

#![forbid(unsafe_code)]

mod answer;
mod body;
mod client;
mod control;
mod desk;
mod gather;
mod head;
mod journal;
pub mod keepalive;
pub mod metrics;
mod older;
mod on_cap;
mod plane;
mod problem;
pub mod report;
mod request;
mod route;
mod seats;
mod serve;
mod settings;
mod socket;
mod sockets;
mod status;

pub use client::ask;
pub use control::{Control, ControlRequest, done, refused};
pub use desk::{Desk, EXPORT_PATIENCE, Handler, Late, PATIENCE, ReplyTo, Serves};
pub use gather::{
    ANSWER_PATIENCE, Answered, GONE, MUTE, NoAnswer, ask_all, ask_one, ended, is_left_over, is_served, statuses,
};
pub use head::{Head, look};
pub use keepalive::{KeepaliveReport, Session, Wanted};
pub use node::events::{Side, Takeover};
pub use older::ask_any;
pub use on_cap::OnCapWish;
pub use problem::{Kind, PROBLEM_JSON, Problem};
pub use request::{Request, Response};
pub use route::{ROUTES, Route, Routed, line, route};
pub use settings::{EPOCH, STAGING, Settings, SettingsReport, two_slabs};
pub use socket::{ControlError, ControlSocket};
pub use sockets::{RUN_DIR, side_of, socket_path, sockets_in};
pub use status::{
    ArbiterStatus, Beats, OfSide, OutputStatus, Primary, RUNNING, SCHEMA, Standby, Status, WAITING, WhyNot,
};

/// The version, as JSON, of the lists and reports beside [`Status`]. Fields may be added under the same number.
pub const REPORT_SCHEMA: u32 = 1;
