//! Changing a running pair: `afterimage keepalive set|show` and `afterimage set`.
//!
//! ```text
//!   afterimage keepalive set ──Request::KeepaliveSet──> the side's process: refuses, or orders its beat thread
//!     │   asks again and again                             │ propose                       (poll, for both)
//!     │ <──Response::Keepalive, "change_under_way"──┐      v                     beats ───────────────────> the other side
//!     v                                             └── what is in force  <────────── final, its own poll ──┘
//!   prints both directions; saves
//! ```
//!
//! | file | |
//! |---|---|
//! | [`settings`] | `epoch=…`, `max-staging=…`, `on-cap=…`: all or nothing |
//! | [`command`] | the operator's end |
//! | [`text`] | for a reader |
//! | [`save`] | into the configuration file, which keeps its comments |

mod command;
mod endings;
mod save;
mod settings;
mod text;

pub use command::{change, set, show};
pub use settings::Assignment;
