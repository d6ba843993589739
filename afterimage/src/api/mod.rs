//! The control socket: HTTP/1.1 and JSON over a unix socket. docs/API.md lists every route; docs/adr/0014 says where tokio ends.
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
//! | `route` | method and path to a request, and back | pure |
//! | `answer` | an answer to a status and a body, and back | pure |
//! | [`problem`] | errors, as RFC 9457 has them | pure |
//! | `head` | whether the first bytes are HTTP/1.1, and whose dialect else | pure |
//! | [`desk`] | takes a request, waits for its reply | tokio |
//! | `serve` | connections: limits, deadlines, bytes; metrics use it too | tokio |
//! | `plane` | the one thread that all of this runs on | tokio |
//! | [`socket`] | the unix socket: its lock, its file | |
//! | `journal` | the newest events | |
//! | [`client`], `older` | this program's own questions; and those to a process of the release before | tokio |

pub(crate) mod answer;
pub mod client;
pub mod desk;
pub(crate) mod head;
mod journal;
mod older;
pub(crate) mod plane;
pub mod problem;
pub mod request;
mod route;
pub(crate) mod serve;
pub mod socket;

pub use client::ask;
pub use desk::{Desk, ReplyTo, Serves};
pub use head::{Head, look};
pub(crate) use older::ask_older;
pub use problem::{Kind, Problem};
pub use request::{Request, Response};
pub use route::{ROUTES, Route, Routed, line, route};
pub use socket::{ControlError, ControlSocket, socket_path};
