//! The probe file: JSON, `"schema": 1`, `"kind": "keepalive-probe"`. Histograms as [`mc_core::histogram`] writes them (ns), losses as
//! [`node::keepalive::LossRuns`] does.

use node::keepalive::{Measured, at_most};
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The version of the file. Fields may be added under the same number.
pub const SCHEMA: u32 = 1;
/// Bytes at most: two phases of two ends are a megabyte at the worst that was seen.
pub const MAX_FILE: u64 = 64 << 20;
const KIND: &str = "keepalive-probe";
const MAX_PHASES: usize = 8;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeFile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// "keepalive-probe".
    pub kind: String,
    /// When: seconds since 1970.
    pub taken_unix_s: f64,
    /// The machine that measured.
    pub machine: Machine,
    /// Who was at the other end.
    pub peer: String,
    /// The settings of the measurement.
    pub settings: Settings,
    /// What was measured, phase by phase.
    #[serde(deserialize_with = "few")]
    pub phases: Vec<Phase>,
    /// What must be known beside it.
    pub notes: Vec<String>,
}

/// The probing host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub host: String,
    /// Its kernel's release.
    pub kernel: String,
    /// Processors that the program may use.
    pub cpus: usize,
    /// The program's version.
    pub version: String,
}

/// How was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What the load went over: "tcp", "rdma".
    pub transport: String,
    /// What the beats went over: "ud", "udp", "both".
    pub keepalive: String,
    /// Between two beats, before jitter, µs.
    pub interval_us: u32,
    /// Of the load's checkpoints.
    pub load_bytes: Option<u64>,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// "idle", "loaded", "session".
    pub name: String,
    /// How long, seconds; of a session, how long its beats have been heard.
    pub seconds: f64,
    /// Of the load, MiB/s.
    pub load_mib_per_s: Option<f64>,
    /// What the probing end heard.
    pub here: Measured,
    /// What the serving end heard; none if it did not answer.
    pub there: Option<Measured>,
}

fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Phase>, D::Error> {
    at_most(MAX_PHASES, "phases", deserializer)
}

/// Why a file is no probe's.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Too long.
    #[error("{}: longer than {MAX_FILE} bytes; not a probe file", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// JSON, but of another kind.
    #[error("a file of kind {found:?}; `afterimage keepalive probe --out FILE` writes \"keepalive-probe\"")]
    Kind {
        /// What it says it is.
        found: String,
    },
    /// Written by another version.
    #[error(
        "the probe file has schema {found}, and this afterimage reads schema {SCHEMA}: probe again, or use the \
         version that wrote it"
    )]
    Schema {
        /// What it says.
        found: u64,
    },
    /// The JSON does not have the fields of a probe file.
    #[error("not a probe file: {0}")]
    Content(#[from] serde_json::Error),
    /// The file has no phase.
    #[error("the probe file has no phase, so it contains no measurements")]
    Empty,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    schema: u64,
    #[serde(default)]
    kind: String,
}

impl ProbeFile {
    /// A new probe file with the present time and this machine.
    #[must_use]
    pub fn new(peer: String, settings: Settings) -> Self {
        let name = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let machine = Machine {
            host: text(name.nodename()),
            kernel: text(name.release()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Whole milliseconds: so many digits are read as they were written.
        let (kind, taken_unix_s) = (KIND.to_owned(), (now.as_secs_f64() * 1e3).round() / 1e3);
        Self { schema: SCHEMA, kind, taken_unix_s, machine, peer, settings, phases: vec![], notes: vec![] }
    }

    /// What a session's beats measured at one end: `of`, "the session of web, at its standby".
    #[must_use]
    pub fn of_session(of: String, here: Measured) -> Self {
        let ways = here.paths.iter().map(|path| path.name.as_str()).collect::<Vec<_>>().join("+");
        let settings = Settings { keepalive: ways, interval_us: here.interval_us, ..Settings::default() };
        let mut file = Self::new(of, settings);
        let seconds = here.observed().as_secs_f64();
        file.phases = vec![Phase { name: "session".into(), seconds, load_mib_per_s: None, here, there: None }];
        file.notes.push("this shows one end only; run the command on the other host for the other end".into());
        file
    }

    /// What is in a file.
    ///
    /// # Errors
    /// It is no probe file, or of another schema.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let head: Head = serde_json::from_slice(bytes)?;
        if head.kind != KIND {
            return Err(FileError::Kind { found: head.kind });
        }
        if head.schema != u64::from(SCHEMA) {
            return Err(FileError::Schema { found: head.schema });
        }
        let file: Self = serde_json::from_slice(bytes)?;
        if file.phases.is_empty() { Err(FileError::Empty) } else { Ok(file) }
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`ProbeFile::parse`]; it cannot be read or is too long.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(FileError::TooLong { path: path.to_owned() });
        }
        Self::parse(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase() -> Phase {
        let here = Measured { interval_us: 10_000, ..Measured::default() };
        Phase { name: "idle".into(), seconds: 1.0, load_mib_per_s: None, here, there: None }
    }

    #[test]
    fn a_file_is_read_as_it_was_written_and_others_are_refused_with_words() {
        let mut file = ProbeFile::new("10.0.0.2:7500".into(), Settings::default());
        let text = |file: &ProbeFile| serde_json::to_string(file).unwrap();
        assert!(matches!(ProbeFile::parse(text(&file).as_bytes()), Err(FileError::Empty)));
        file.phases = vec![phase(); 2];
        assert_eq!(ProbeFile::parse(text(&file).as_bytes()).unwrap(), file);
        let good = text(&file);
        for (from, to, words) in [
            ("\"schema\":1", "\"schema\":2", "schema 2, and this afterimage reads schema 1"),
            ("keepalive-probe", "mc-bench", "kind \"mc-bench\""),
            ("\"interval_us\":10000", "\"interval_us\":1", "beats are"),
            ("\"unit\":\"ns\"", "\"unit\":\"s\"", "only \"ns\""),
        ] {
            let error = ProbeFile::parse(good.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        file.phases = vec![phase(); 9];
        let error = ProbeFile::parse(text(&file).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("more than 8 phases"), "{error}");
        assert!(ProbeFile::read(Path::new("/nonexistent")).is_err());
    }
}
