//! What went wrong, as RFC 9457 has it: `application/problem+json`.

use node::exit::Code;
use serde::{Deserialize, Serialize};

/// The content type.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// What every `type` begins with: a reference that is relative to the socket.
const TYPES: &str = "/v1/problems/";

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The bytes are no request, or the request's parameters or body are wrong.
    BadRequest,
    /// Whoever asks is neither this process's user nor root.
    Forbidden,
    /// No such route, or no such VM here.
    NotFound,
    /// The route has other methods.
    MethodNotAllowed,
    /// The request did not arrive in time.
    TooSlow,
    /// What was asked for was not done: the state of the VM does not allow it.
    Refused,
    /// The body is too long.
    BodyTooLong,
    /// The request line and headers are too long.
    HeadTooLong,
    /// Something that was needed is away; nothing was changed.
    Away,
    /// Too many connections are open: what was asked over this one was not heard.
    Busy,
    /// The process is there, and its loop does not answer.
    Stalled,
    /// Another version of HTTP.
    Version,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::TooSlow,
        Self::Refused,
        Self::BodyTooLong,
        Self::HeadTooLong,
        Self::Away,
        Self::Busy,
        Self::Stalled,
        Self::Version,
    ];

    /// The word in its `type`, the HTTP status, and the title.
    #[must_use]
    pub const fn facts(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", 400, "The request is invalid"),
            Self::Forbidden => ("forbidden", 403, "Only the owner of the process may ask"),
            Self::NotFound => ("not-found", 404, "There is no such resource"),
            Self::MethodNotAllowed => ("method-not-allowed", 405, "The resource has other methods"),
            Self::TooSlow => ("too-slow", 408, "The request did not arrive in time"),
            Self::Refused => ("refused", 409, "The request was refused"),
            Self::BodyTooLong => ("body-too-long", 413, "The request's body is too long"),
            Self::HeadTooLong => ("head-too-long", 431, "The request's head is too long"),
            Self::Away => ("away", 503, "Something that is needed is away"),
            Self::Busy => ("busy", 503, "Too many connections are open"),
            Self::Stalled => ("stalled", 504, "The process does not answer"),
            Self::Version => ("version", 505, "Another version of HTTP is needed"),
        }
    }

    /// What the program's own command exits with, where it knows.
    const fn code(self) -> Option<Code> {
        match self {
            Self::Refused | Self::Stalled | Self::NotFound => Some(Code::Failed),
            Self::Away => Some(Code::Prerequisite),
            _ => None,
        }
    }
}

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which kind: a reference that ends in its word.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// The kind in words.
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// This one in words.
    pub detail: String,
    /// What was asked for: the path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// What the program's own command would exit with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Problem {
    /// One without a remedy.
    #[must_use]
    pub fn new(kind: Kind, detail: impl std::fmt::Display) -> Self {
        let (word, status, title) = kind.facts();
        Self {
            kind: format!("{TYPES}{word}").into(),
            title: title.into(),
            status,
            detail: detail.to_string(),
            instance: String::new(),
            exit_code: kind.code().map(|code| code as u8),
            remedy: None,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(self, remedy: impl std::fmt::Display) -> Self {
        Self { remedy: Some(remedy.to_string()), ..self }
    }

    /// Adds what was asked for.
    #[must_use]
    pub fn instance(self, path: &str) -> Self {
        Self { instance: path.to_owned(), ..self }
    }

    /// Whether it is of this kind.
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        self.kind.strip_prefix(TYPES) == Some(kind.facts().0)
    }
}
