//! The `mc-bench` binary. Exit codes: 0 done, 1 failed, 2 usage, 5 a bound was missed (`--strict`), 6 something is missing.

use anyhow::Result;
use clap::Parser;
use mc_bench::{
    all,
    cli::{AllArgs, Cli, Command, Output},
    commands::{Job, Prerequisite},
    compare, detect, epoch, face, interrupt, peer,
    record::{Begun, Record},
    stored,
};
use std::{io::Write, process::ExitCode};

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
    if Job::measures(&command) {
        interrupt::catch()?;
    }
    match command {
        Command::Peer { control } => peer::serve(control).map(|()| ExitCode::SUCCESS),
        Command::DetectPeer => detect::serve().map(|()| ExitCode::SUCCESS),
        Command::Guest(args) => epoch::guest::serve(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => {
            let record = stored::read(&args.record)?;
            face::show_again(&record, &args)?;
            Ok(verdict(args.strict && record.missed()))
        }
        Command::Compare(args) => Ok(verdict(compare::run(&args)? && args.strict)),
        Command::All(args) => all(begun, &args),
        command => {
            let Some(job) = Job::of(command) else { unreachable!("every other command measures") };
            let output = job.output.clone();
            show(&begun.done(vec![job.run()?]), &output)
        }
    }
}

fn all(begun: Begun, args: &AllArgs) -> Result<ExitCode> {
    if args.list {
        let lines: String = all::lines(args).iter().map(|words| format!("mc-bench {}\n", words.join(" "))).collect();
        std::io::stdout().write_all(lines.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = all::run(args)?;
    let (failed, nothing) = (outcome.failed > 0, outcome.is_all_missing());
    let code = show(&begun.done(outcome.sections), &args.output)?;
    Ok(match (failed, nothing) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(MISSING),
        (false, false) => code,
    })
}

fn show(record: &Record, output: &Output) -> Result<ExitCode> {
    face::show(record, output)?;
    Ok(verdict(output.strict && record.missed()))
}

fn verdict(missed: bool) -> ExitCode {
    if missed { ExitCode::from(MISSED) } else { ExitCode::SUCCESS }
}
