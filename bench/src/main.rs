//! The `mc-bench` binary. Exit codes: 0 done, 1 failed, 2 usage, 5 a target was missed (`--strict`), 6 something is missing.

use anyhow::Result;
use clap::Parser;
use mc_bench::{
    cli::{Cli, Command},
    peer, transport,
};
use std::{io::Write, process::ExitCode};
use transport_rdma::error::RdmaError;

const MISSED: u8 = 5;
const MISSING: u8 = 6;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mc-bench: {error:#}");
            let no_device = error.chain().any(|e| matches!(e.downcast_ref(), Some(RdmaError::Device { .. })));
            if no_device { ExitCode::from(MISSING) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Peer { control } => peer::serve(control).map(|()| ExitCode::SUCCESS),
        Command::Transport(args) => {
            let report = transport::run(&args)?;
            let text = if args.effort.json { serde_json::to_string(&report)? } else { report.lines().join("\n") };
            writeln!(std::io::stdout(), "{text}")?;
            let missed = args.effort.strict && report.targets.iter().any(|t| !t.met);
            Ok(if missed { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
        }
    }
}
