//! Sessions between this process and another that is there to die: the product's beat threads at both ends.
//!
//! ```text
//!   this process                          mc-bench detect-peer
//!   ends opened
//!     Setup, a line of JSON ────────────>  its ends opened, joined to ours; beat threads started
//!     joined to its <──── Ready, a line ─  waits for SIGKILL, SIGSTOP or the end of its input
//!   beat threads started
//! ```

use super::filter::{Failing, Filter};
use crate::{
    beating::{Address, End},
    link::Port,
};
use anyhow::{Context, Result, ensure};
use mc_core::{
    detector::{Config, Parameters},
    id::Incarnation,
    transport::Keepalive,
    wire::beat::BeatKey,
};
use node::{
    clock::Clock,
    keepalive::{BeatHandle, BeatThread, Verdict},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

/// For the other process to come up, and for sessions to be up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a line between the two.
const MAX_LINE: u64 = 1 << 20;
const KEY: BeatKey = BeatKey([0x64; 32]);

/// How often, and how many may be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Between two beats.
    pub interval: Duration,
    /// K.
    pub multiplier: u8,
}

/// What the other process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Setup {
    setting: Setting,
    port: Option<Port>,
    sessions: Vec<(u64, Address)>,
}

/// One session's near end.
#[derive(Debug)]
pub(super) struct Near {
    /// Its beats.
    pub(super) beats: BeatHandle,
    /// Set to cut its link.
    pub(super) cut: Arc<AtomicBool>,
}

/// Sessions, and the process at their other end. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Pair {
    /// The near ends.
    pub(super) near: Vec<Near>,
    child: Child,
}

fn start(keepalive: Box<dyn Keepalive>, member: u8, incarnation: u64, setting: Setting) -> Result<BeatHandle> {
    let parameters = Parameters::new(setting.interval, setting.interval, setting.multiplier)?;
    let config = Config { incarnation: Incarnation(incarnation), member, parameters, startup: Some(PATIENCE) };
    Ok(BeatThread::spawn(keepalive, KEY, config, Clock)?)
}

impl Pair {
    /// So many sessions, all up.
    ///
    /// # Errors
    /// A device or a socket is not to be had; the other process does not come up; a session does not.
    pub(super) fn start(
        ports: Option<&(Port, Port)>,
        setting: Setting,
        sessions: u32,
        failing: Failing,
        seed: u64,
    ) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe().context("finding this program's file")?)
            .arg("detect-peer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting this program again as the peer")?;
        let near = Self::join(&mut child, ports, setting, sessions, failing, seed);
        match near {
            Ok(near) => Ok(Self { near, child }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    fn join(
        child: &mut Child,
        ports: Option<&(Port, Port)>,
        setting: Setting,
        sessions: u32,
        failing: Failing,
        seed: u64,
    ) -> Result<Vec<Near>> {
        let mut ends = vec![];
        let mut setup = Setup { setting, port: ports.map(|(_, far)| far.clone()), sessions: vec![] };
        for number in 0..sessions {
            let end = End::open(ports.map(|(near, _)| near), KEY)?;
            setup.sessions.push((seed.wrapping_add(number.into()), end.address()?));
            ends.push(end);
        }
        let mut line = serde_json::to_vec(&setup)?;
        line.push(b'\n');
        child.stdin.as_mut().context("its input")?.write_all(&line)?;
        let theirs: Vec<Address> = read_line(child.stdout.as_mut().context("its output")?)?;
        ensure!(theirs.len() == ends.len(), "the peer process answered with {} addresses", theirs.len());
        let mut near = vec![];
        for ((mut end, theirs), (incarnation, _)) in ends.into_iter().zip(theirs).zip(setup.sessions) {
            end.meet(theirs)?;
            let cut = Arc::new(AtomicBool::new(false));
            let link = Filter::new(end.into_keepalive(), failing, Arc::clone(&cut), incarnation ^ 0xf117);
            near.push(Near { beats: start(Box::new(link), 1, incarnation, setting)?, cut });
        }
        let start = Instant::now();
        while near.iter().any(|near| near.beats.verdict() == Verdict::Waiting) {
            ensure!(start.elapsed() < PATIENCE, "a session did not come up within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(near)
    }

    /// Kills the other process.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing the peer")
    }

    /// Stops the other process as it is.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) fn freeze(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).context("stopping the peer")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.near.clear();
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have been killed before; a stopped one dies as well.
    let _ = child.kill();
    let _ = child.wait();
}

fn read_line<T: for<'de> Deserialize<'de>>(from: impl std::io::Read) -> Result<T> {
    let mut line = vec![];
    BufReader::new(std::io::Read::take(from, MAX_LINE)).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).context("the other process's line")
}

/// The other process: beats until its input ends.
///
/// # Errors
/// A device or a socket is not to be had; the setup is none.
pub fn serve() -> Result<()> {
    let setup: Setup = read_line(std::io::stdin())?;
    let (mut addresses, mut beats) = (vec![], vec![]);
    for (incarnation, theirs) in setup.sessions {
        let mut end = End::open(setup.port.as_ref(), KEY)?;
        addresses.push(end.address()?);
        end.meet(theirs)?;
        beats.push(start(end.into_keepalive(), 2, incarnation, setup.setting)?);
    }
    let mut line = serde_json::to_vec(&addresses)?;
    line.push(b'\n');
    std::io::stdout().write_all(&line)?;
    std::io::stdout().flush()?;
    // Nothing more comes: this returns when the first process ends, however it does.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(beats);
    Ok(())
}
