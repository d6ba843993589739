//! How a host falls silent.

use super::Host;
use anyhow::{Context, Result, ensure};
use std::{
    io::Write,
    process::{Child, Command, Stdio},
};

/// A device that can be made to swallow whatever is sent through it. Prepared ahead: then it takes no time.
#[derive(Debug)]
pub(super) struct Silencer {
    tc: Child,
    devices: &'static [&'static str],
}

impl Silencer {
    /// Prepares `devices` of `host`.
    pub(super) fn prepare(host: &Host, devices: &'static [&'static str]) -> Result<Self> {
        let mut tc = Command::new("tc");
        tc.args(["-n", &host.netns, "-batch", "-"]).stdin(Stdio::piped());
        Ok(Self { tc: tc.spawn().context("tc")?, devices })
    }

    /// From here on nothing leaves by these devices. No carrier is lost and no error is seen: the worst kind of
    /// silence.
    pub(super) fn fire(&mut self) -> Result<()> {
        let mut input = self.tc.stdin.take().context("tc's standard input is gone")?;
        for device in self.devices {
            writeln!(input, "qdisc replace dev {device} root blackhole")?;
        }
        drop(input);
        let status = self.tc.wait()?;
        ensure!(status.success(), "tc could not silence {:?}: {status}", self.devices);
        Ok(())
    }
}

impl Drop for Silencer {
    fn drop(&mut self) {
        let _ = self.tc.kill();
        let _ = self.tc.wait();
    }
}
