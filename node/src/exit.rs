//! How the program ends: a code, a message, and what to do about it.

use std::{any::Any, fmt};
use transport_tcp::session::SessionError;

/// The program's exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// As asked.
    Done = 0,
    /// It failed, for a reason that no other code names.
    Failed = 1,
    /// The command line or the configuration is wrong; nothing was started.
    Usage = 2,
    /// It works, but the VM is not protected.
    Degraded = 3,
    /// Another node owns the VM: this copy was stopped.
    Fenced = 4,
    /// A drill or a bench missed its bound.
    BoundMissed = 5,
    /// Something that has to be there is not: the remedy says what.
    Prerequisite = 6,
}

impl Code {
    /// The code of this number; one that is none is a failure.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        use Code::{BoundMissed, Degraded, Done, Failed, Fenced, Prerequisite, Usage};
        let all = [Done, Failed, Usage, Degraded, Fenced, BoundMissed, Prerequisite];
        all.into_iter().find(|code| *code as u8 == number).unwrap_or(Failed)
    }
}

/// The codes, for `--help`.
pub const CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  usage: the command line or the configuration is wrong
  3  degraded: it works, but the VM is not protected
  4  fenced: another node owns the VM, this copy was stopped
  5  a drill or a bench missed its bound
  6  a prerequisite is missing: the message says what to do";

/// An error that decides the exit code. Everything else ends in [`Code::Failed`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExitError {
    /// What to exit with.
    pub code: Code,
    /// What went wrong, and where.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl ExitError {
    /// An error without a remedy.
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), remedy: None }
    }

    /// A wrong command line or configuration.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }
}

/// An error and its causes in one line. Many of our errors quote their cause: it is not said twice.
#[must_use]
pub fn words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |mut text, cause| {
        if !text.ends_with(&cause) && !text.contains(&format!("{cause};")) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
        text
    })
}

/// The code that `error` ends with, and what to print on stderr.
#[must_use]
pub fn explain(error: &anyhow::Error) -> (Code, String) {
    let exit = error.chain().find_map(|e| e.downcast_ref::<ExitError>()).or_else(|| error.downcast_ref());
    let mut text = format!("error: {}\n", words(error));
    if let Some(remedy) = exit.and_then(|e| e.remedy.as_ref()) {
        text.push_str(&format!("  what to do: {remedy}\n"));
    }
    (exit.map_or(Code::Failed, |e| e.code), text)
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// What a panic said.
#[must_use]
pub fn panic_words(panic: &(dyn Any + Send)) -> &str {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words")
}

/// What stands behind `--listen` cannot be had: another process has the port, as a rule.
#[must_use]
pub fn cannot_listen(error: SessionError) -> anyhow::Error {
    match &error {
        SessionError::Listen { source, .. } => {
            let remedy = listen_remedy(source.kind());
            ExitError::new(Code::Prerequisite, error).remedy(remedy).into()
        }
        _ => error.into(),
    }
}

/// What to do about an address that cannot be listened on.
#[must_use]
pub fn listen_remedy(kind: std::io::ErrorKind) -> &'static str {
    match kind {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there (`ss -ltnp` names it): stop it, or choose another --listen"
        }
        _ => "--listen takes an address of this host and a port, such as 127.0.0.1:7400",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_survives_context_around_it() {
        let inner = ExitError::new(Code::Fenced, "vm web belongs to b").remedy("look at b");
        let wrapped = Err::<(), _>(inner.clone()).context("protecting").unwrap_err();
        for error in [anyhow::Error::from(inner.clone()), wrapped, anyhow::anyhow!("x").context(inner)] {
            let (code, text) = explain(&error);
            assert_eq!(code, Code::Fenced);
            assert!(text.contains("vm web belongs to b") && text.contains("what to do: look at b"), "{text}");
        }
        let quoting = anyhow::anyhow!("refused").context("a: refused").context("b: a: refused").context("c");
        assert_eq!(words(&quoting), "c: b: a: refused");
        assert_eq!(explain(&anyhow::anyhow!("plain")), (Code::Failed, "error: plain\n".to_owned()));
    }
}
