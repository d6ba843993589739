//! The `mc-bench` binary. Exit codes: 0 done, 1 failed, 2 usage, 5 a target was missed (`--strict`), 6 something is missing.

use anyhow::Result;
use clap::Parser;
use mc_bench::{
    beats, capture,
    cli::{Cli, Command, Effort},
    detect, peer, transport,
    verdict::Report,
};
use std::{io::Write, process::ExitCode};
use transport_rdma::device::DeviceError;

const MISSED: u8 = 5;
const MISSING: u8 = 6;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mc-bench: {error:#}");
            let Some(no_device) = error.downcast_ref::<DeviceError>() else { return ExitCode::FAILURE };
            eprintln!("mc-bench: {}", no_device.remedy());
            ExitCode::from(MISSING)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Peer { control } => peer::serve(control).map(|()| ExitCode::SUCCESS),
        Command::Detect(args) => {
            let section = detect::run(&args)?;
            let text = if args.json { serde_json::to_string(&section)? } else { detect::lines(&section).join("\n") };
            writeln!(std::io::stdout(), "{text}")?;
            Ok(if args.strict && section.missed() { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
        }
        Command::DetectPeer => detect::serve().map(|()| ExitCode::SUCCESS),
        Command::Transport(args) => show(&transport::run(&args)?, &args.effort),
        Command::Beats(args) => show(&beats::run(&args)?, &args.effort),
        Command::Capture(args) => show(&capture::run(&args)?, &args.effort),
        Command::Register(args) => show(&capture::register(&args)?, &args.effort),
    }
}

fn show(report: &impl Report, effort: &Effort) -> Result<ExitCode> {
    let text = if effort.json { serde_json::to_string(report)? } else { report.lines().join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if effort.strict && report.frame().missed() { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
}
