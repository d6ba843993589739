//! The `mc-bench` binary. Exit codes: 0 done, 1 failed, 2 usage, 5 a bound was missed (`--strict`), 6 something is missing.

use anyhow::Result;
use clap::Parser;
use mc_bench::{
    cli::{Cli, Command, Effort},
    commands::{Job, Prerequisite},
    face, peer,
    record::{Begun, Record},
    stored,
};
use std::process::ExitCode;

const MISSED: u8 = 5;
const MISSING: u8 = 6;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mc-bench: {error:#}");
            let Some(missing) = Prerequisite::of(&error) else { return ExitCode::FAILURE };
            eprintln!("mc-bench: {}", missing.remedy);
            ExitCode::from(MISSING)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let begun = Begun::now();
    match command {
        Command::Peer { control } => peer::serve(control).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => {
            let record = stored::read(&args.record)?;
            face::show_again(&record, &args)?;
            Ok(verdict(args.strict && record.missed()))
        }
        command => {
            let Some(job) = Job::of(command) else { unreachable!("every other command measures") };
            let effort = job.effort.clone();
            show(&begun.done(vec![job.run()?]), &effort)
        }
    }
}

fn show(record: &Record, effort: &Effort) -> Result<ExitCode> {
    face::show(record, effort)?;
    Ok(verdict(effort.strict && record.missed()))
}

fn verdict(missed: bool) -> ExitCode {
    if missed { ExitCode::from(MISSED) } else { ExitCode::SUCCESS }
}
