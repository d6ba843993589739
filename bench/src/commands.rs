//! Which command gives which section, and what is missing on this machine where one cannot run.

use crate::{
    beats, capture,
    cli::{Command, Output},
    detect, epoch, qemu,
    record::{Missing, Section},
    register, takeover, transport,
};
use anyhow::Result;
use transport_rdma::device::DeviceError;

/// A command that measures.
pub struct Job {
    /// How it is shown.
    pub output: Output,
    run: Box<dyn FnOnce() -> Result<Section>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("output", &self.output).finish_non_exhaustive()
    }
}

impl Job {
    fn new(output: &Output, run: impl FnOnce() -> Result<Section> + 'static) -> Self {
        Self { output: output.clone(), run: Box::new(run) }
    }

    /// The command's work; `None` if it does not measure. A new command gets its line here.
    #[must_use]
    pub fn of(command: Command) -> Option<Self> {
        Some(match command {
            Command::Transport(args) => Self::new(&args.effort.output.clone(), move || transport::run(&args)),
            Command::Beats(args) => Self::new(&args.effort.output.clone(), move || beats::run(&args)),
            Command::Capture(args) => Self::new(&args.effort.output.clone(), move || capture::run(&args)),
            Command::Register(args) => Self::new(&args.effort.output.clone(), move || register::run(&args)),
            Command::Detect(args) => Self::new(&args.output.clone(), move || detect::run(&args)),
            Command::Epoch(args) => Self::new(&args.effort.output.clone(), move || epoch::run(&args)),
            Command::Takeover(args) => Self::new(&args.effort.output.clone(), move || takeover::run(&args)),
            Command::Qemu(args) => Self::new(&args.effort.output.clone(), move || qemu::run(&args)),
            _ => return None,
        })
    }

    /// Whether a command measures, alone or with others.
    #[must_use]
    pub fn measures(command: &Command) -> bool {
        use Command::{Compare, DetectPeer, Guest, Peer, Report};
        !matches!(command, Peer { .. } | DetectPeer | Guest(_) | Report(_) | Compare(_))
    }

    /// Measures.
    ///
    /// # Errors
    /// The command's. [`Prerequisite::of`] tells what is missing from what failed.
    pub fn run(self) -> Result<Section> {
        let start = std::time::Instant::now();
        let mut section = (self.run)()?;
        section.took_s = start.elapsed().as_secs_f64();
        Ok(section)
    }
}

/// Something that a measurement needs and this machine has not. As an error it ends `mc-bench` with exit code 6; within
/// `mc-bench all` it is recorded, and the others go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Prerequisite {
    /// What there is not, or why it is of no use.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
    /// The Debian package that has it, if that is all that is missing.
    pub package: Option<String>,
}

impl Prerequisite {
    /// One that no package brings.
    pub fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { why: why.into(), remedy: remedy.into(), package: None }
    }

    /// One that a Debian package brings.
    pub fn package(why: impl Into<String>, package: impl Into<String>) -> Self {
        let package = package.into();
        Self { why: why.into(), remedy: format!("install the Debian package {package}"), package: Some(package) }
    }

    /// What is missing, if that is why it failed.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Option<Self> {
        if let Some(device) = error.downcast_ref::<DeviceError>() {
            return Some(Self::new(format!("{error:#}"), device.remedy()));
        }
        if let Some(missing) = error.downcast_ref::<rig::prerequisite::Missing>() {
            return Some(Self::new(missing.what.as_str(), missing.remedy.as_str()));
        }
        error.downcast_ref::<Self>().cloned()
    }

    /// For a section, of a measurement of that name.
    #[must_use]
    pub fn missing(self, what: impl Into<String>) -> Missing {
        Missing { what: what.into(), why: format!("{}; remedy: {}", self.why, self.remedy), package: self.package }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn what_is_missing_is_told_from_what_failed() {
        let root =
            || Err::<(), anyhow::Error>(Prerequisite::new("network namespaces take root", "run it as root").into());
        let error = root().context("setting up").unwrap_err();
        let missing = Prerequisite::of(&error).unwrap().missing("detect");
        assert_eq!(missing.why, "network namespaces take root; remedy: run it as root");
        let device = anyhow::Error::from(DeviceError::NoDevice).context("opening rxe0");
        assert!(Prerequisite::of(&device).unwrap().remedy.contains("rdma_rxe"));
        assert_eq!(Prerequisite::of(&anyhow::anyhow!("the link went down")), None);
        assert_eq!(
            Prerequisite::package("no QEMU", "qemu-system-x86").missing("qemu").package.unwrap(),
            "qemu-system-x86"
        );
    }
}
