//! The `mc-bench` binary. Exit codes: 0 done, 1 failed, 2 usage, 5 a target was missed (`--strict`), 6 something is missing.

use anyhow::Result;
use clap::Parser;
use mc_bench::{
    beats, capture,
    cli::{Cli, Command, Effort},
    peer, qemu,
    record::Section,
    table, takeover, transport,
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
            if error.is::<rig::prerequisite::Missing>() {
                return ExitCode::from(MISSING);
            }
            let Some(no_device) = error.downcast_ref::<DeviceError>() else { return ExitCode::FAILURE };
            eprintln!("mc-bench: {}", no_device.remedy());
            ExitCode::from(MISSING)
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Peer { control } => peer::serve(control).map(|()| ExitCode::SUCCESS),
        Command::Transport(args) => show(&transport::run(&args)?, &args.effort),
        Command::Beats(args) => show(&beats::run(&args)?, &args.effort),
        Command::Capture(args) => show(&capture::run(&args)?, &args.effort),
        Command::Register(args) => show(&capture::register(&args)?, &args.effort),
        Command::Takeover(args) => show_section(&takeover::run(&args)?, &args.effort),
        Command::Qemu(args) => show_section(&qemu::run(&args)?, &args.effort),
    }
}

fn show_section(section: &Section, effort: &Effort) -> Result<ExitCode> {
    let text = if effort.json { serde_json::to_string(section)? } else { lines(section).join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if effort.strict && section.missed() { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
}

fn lines(section: &Section) -> Vec<String> {
    let mut lines = vec![section.title.clone()];
    lines.extend(section.settings.iter().map(|s| format!("{:<24} {}", s.name, s.value)));
    for m in &section.measures {
        let figure = |spread| table::spread(spread, 2);
        let beside = m.yardstick.as_ref().map(|y| format!("  {} of {}", figure(m.yardstick_spread()), y.name));
        let ratio = m.ratio().map(|r| format!("  ratio {}", table::spread(Some(r), 3)));
        let verdict = m.met().map(|met| if met { "  met" } else { "  MISSED" });
        let more = [beside.unwrap_or_default(), ratio.unwrap_or_default(), verdict.unwrap_or_default().to_owned()];
        let (ours, unit) = (figure(m.spread()), m.unit.as_str());
        lines.push(format!("{:<22} {:<44} {ours} {unit}{}", m.name, m.case, more.concat()));
        lines.extend(m.columns.iter().map(|c| format!("{:>66} {:.2}", c.heading, c.value)));
    }
    lines.extend(section.missing.iter().map(|m| format!("missing  {}: {}", m.what, m.why)));
    lines.extend(section.failures.iter().map(|f| format!("failed   {f}")));
    lines.extend(section.notes.iter().map(|n| format!("note     {n}")));
    lines
}

fn show(report: &impl Report, effort: &Effort) -> Result<ExitCode> {
    let text = if effort.json { serde_json::to_string(report)? } else { report.lines().join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(if effort.strict && report.frame().missed() { ExitCode::from(MISSED) } else { ExitCode::SUCCESS })
}
