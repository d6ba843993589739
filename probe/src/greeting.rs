//! The messages that the two ends exchange in place of a VM's profile.

use anyhow::{Result, bail};
use mc_core::id::Name;
use node::keepalive::Measured;
use serde::{Deserialize, Serialize};

/// Of the JSON in the profile's place.
const VERSION: u32 = 1;
const KIND: &str = "keepalive-probe";

/// This host's name, for the other end's log.
pub(crate) fn this_host() -> Name {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Name::new(&host).unwrap_or_else(|_| Name::new("a host").expect("a name"))
}

/// What the probing end wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Beats, until the link is closed.
    Measure,
    /// What was measured in the session of this incarnation.
    Report(u64),
}

/// The probing end's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Greeting {
    kind: String,
    version: u32,
    /// The request.
    pub ask: Ask,
}

/// The serving end's words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    kind: String,
    version: u32,
    /// To [`Ask::Report`]; none if it heard no beat.
    pub measured: Option<Measured>,
    /// What its operator was told.
    pub notes: Vec<String>,
}

/// To know whom one talks to, before the rest is read.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    version: u32,
}

fn check(bytes: &[u8]) -> Result<()> {
    let head: Head = serde_json::from_slice(bytes).unwrap_or(Head { kind: String::new(), version: 0 });
    if head.kind != KIND {
        bail!("the other side is not an `afterimage keepalive` probe or serve");
    }
    if head.version != VERSION {
        bail!(
            "the other side speaks version {} of the probe, this one version {VERSION}: use the same build on both \
             hosts",
            head.version
        );
    }
    Ok(())
}

impl Greeting {
    /// A greeting that asks for `ask`.
    #[must_use]
    pub fn new(ask: Ask) -> Self {
        Self { kind: KIND.to_owned(), version: VERSION, ask }
    }

    /// Encodes it as JSON bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// As received.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check(bytes)?;
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl Answer {
    /// Words with that.
    #[must_use]
    pub fn new(measured: Option<Measured>, notes: Vec<String>) -> Self {
        Self { kind: KIND.to_owned(), version: VERSION, measured, notes }
    }

    /// Encodes it as JSON bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// As received.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        check(bytes)?;
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_others_are_told_apart() {
        for ask in [Ask::Measure, Ask::Report(u64::MAX)] {
            let greeting = Greeting::new(ask);
            assert_eq!(Greeting::decode(&greeting.encode()).unwrap(), greeting);
        }
        let answer = Answer::new(None, vec!["x".into()]);
        assert_eq!(Answer::decode(&answer.encode()).unwrap(), answer);
        for (bytes, words) in [
            (&b"{\"machine\":\"pc\"}"[..], "is not an `afterimage keepalive` probe or serve"),
            (b"\xff", "is not an `afterimage keepalive` probe or serve"),
            (br#"{"kind":"keepalive-probe","version":2,"ask":"measure"}"#, "version 2 of the probe"),
            (br#"{"kind":"keepalive-probe","version":1,"ask":"dance"}"#, "dance"),
        ] {
            let error = Greeting::decode(bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
