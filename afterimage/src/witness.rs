//! `afterimage witness`: the embedded arbiter, one small daemon on any third machine. The register's keeper is the crate `witness`; here
//! are its command, its operator's socket and its metrics.

mod operator;

pub use operator::operate;
pub use witness::{NodeSpec, RegisterReport, WitnessReport, WitnessRequest};

use crate::config::WitnessConfig;
use api::{ControlError, metrics};
use node::exit::{Code, ExitError, listen_remedy};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    future::ready,
    io::{self, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::Arc,
};
use tracing::{info, warn};
use witness::{OpenError, Witness, WitnessError};

/// The command: runs until SIGTERM, SIGINT, or a failure that only a restart can heal. Prints the address it listens on.
pub fn run(config: &WitnessConfig) -> anyhow::Result<()> {
    let (signals, on_signal) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, on_signal.try_clone()?)?;
    }
    raise_file_limit();
    let witness = Witness::start(config.listen, &config.state).map_err(|e| explain(&e))?;
    let _operator = operator::serve(&config.state, witness.operator()).map_err(|e| cannot_be_heard(&e))?;
    let _metrics = serve_metrics(&witness, config.metrics)?;
    info!("{} registers in {}", witness.vms(), config.state.display());
    // Whoever started us may have gone: narrating to nobody is no reason to end.
    let _ = writeln!(io::stdout(), "listening on {}", witness.local_addr());
    {
        let ended = witness.ended();
        let mut fds = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        while let Err(e) = poll(&mut fds, None) {
            if e != rustix::io::Errno::INTR {
                return Err(io::Error::from(e).into());
            }
        }
    }
    witness.stop()?;
    info!("ended");
    Ok(())
}

/// Room for 4096 nodes' descriptors and a few more: the usual soft limit is 1024. Where the hard one is lower, callers wait.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        warn!("the limit of open files stays as it is: {e}");
    }
}

/// Adds what to do.
fn explain(error: &WitnessError) -> ExitError {
    let remedy = match error {
        WitnessError::Listen { source, .. } => listen_remedy(source.kind()),
        WitnessError::State(OpenError::Locked { .. }) => {
            "one witness per directory: stop the other, or choose another --state"
        }
        WitnessError::State(OpenError::Misnamed { .. }) => "move it out of the directory: it is not a register",
        WitnessError::State(OpenError::Identity { .. }) => {
            "remove that file: a new identity is made, and every node has to accept it (`afterimage accept-witness`)"
        }
        WitnessError::State(OpenError::Io { .. } | OpenError::Unreadable(_) | OpenError::Store(_)) => {
            "--state needs a directory on a persistent disk that this user may write to"
        }
        WitnessError::Storage { .. } | WitnessError::System { .. } => {
            return ExitError::new(Code::Failed, error.to_string());
        }
    };
    ExitError::new(Code::Prerequisite, error.to_string()).remedy(remedy)
}

fn cannot_be_heard(error: &ControlError) -> ExitError {
    let remedy = "the control socket is STATE/control.sock: a path of at most 100 bytes, which only one witness serves";
    ExitError::new(Code::Prerequisite, format!("witness: {error}")).remedy(remedy)
}

/// Serves metrics at `listen`, until the server is dropped; nowhere if that is none.
fn serve_metrics(witness: &Witness, listen: Option<SocketAddr>) -> anyhow::Result<Option<metrics::Server>> {
    let figures = witness.figures();
    let source: metrics::Source =
        Arc::new(move || Box::pin(ready(Some(metrics::openmetrics(metrics::Witness(figures())).into()))));
    listen.map(|listen| metrics::Server::spawn(listen, metrics::IfTaken::Refuse, source)).transpose()
}
