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
//! | [`mod@keepalive`] | `keepalive set` and `show` |
//! | [`mod@set`] | `set`: `epoch=…`, `staging=…`, `on_cap=…`, all or nothing |
//! | [`text`] | the keepalive for a reader |
//! | [`save`], [`endings`] | into the configuration file, which keeps its comments and its lines' ends |

mod endings;
mod keepalive;
mod save;
mod set;
mod text;

pub use keepalive::{change, show};
pub use set::{Assignment, set};
