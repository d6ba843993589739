//! The `rig` binary.

use anyhow::Result;
use clap::{Parser, Subcommand};
use rig::{
    client::{self, Plan, Stop},
    demo::{self, DemoArgs, parse_time},
    guest::Kind,
    netns, plug,
    prerequisite::{self, Missing},
    qmp, sys,
};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

/// The test rig: watches a VM outlive its host, on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario: exit code 0 passed, 1 failed, 6 something is missing. The last line of output is JSON
    Demo(Box<DemoArgs>),
    /// Ask a guest's service without end, and keep books (used by `demo` on the client host)
    Client {
        /// Whose service
        #[arg(long, value_enum)]
        guest: Kind,
        /// Where
        #[arg(long)]
        address: SocketAddr,
        /// Requests under way at a time (Linux guest)
        #[arg(long, default_value_t = 1)]
        pipeline: usize,
        /// The longest pause between a reply and the next request
        #[arg(long, value_parser = parse_time, default_value = "10ms")]
        think: Duration,
        /// Silence after which the guest is given up
        #[arg(long, value_parser = parse_time, default_value = "10s")]
        patience: Duration,
        /// Time without an answer after which a request is sent again (tiny guest)
        #[arg(long, value_parser = parse_time, default_value = "20ms")]
        repeat_after: Duration,
    },
    /// Carry frames between QEMU's NIC socket and a TAP device (used by `demo` before protection starts)
    Plug {
        /// QEMU's socket
        #[arg(long)]
        socket: PathBuf,
        /// The TAP device
        #[arg(long)]
        tap: String,
    },
    /// Say whether the VM behind a monitor executes (used by `demo` on hosts that are virtual machines)
    Executes {
        /// QEMU's monitor
        #[arg(long)]
        monitor: PathBuf,
        /// How long to wait until it does
        #[arg(long, value_parser = parse_time, default_value = "0s")]
        patience: Duration,
    },
    /// Hold one thread of a process until standard input ends (used by `demo`)
    Hold {
        /// Its thread id
        #[arg(long)]
        thread: u32,
    },
    /// Keep a processor busy until standard input ends (used by `demo --busy`)
    Busy,
    /// Remove network namespaces, and what runs in them, that a killed rig left behind
    Clean,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rig: {error:#}");
            if error.is::<Missing>() { ExitCode::from(prerequisite::EXIT) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: Command) -> Result<bool> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Client { guest, address, pipeline, think, patience, repeat_after } => {
            let plan = Plan { guest, address, pipeline, think, patience, repeat_after };
            let summary = client::run(&plan, &Stop::at_end_of_stdin(), &mut std::io::stdout().lock())?;
            Ok(!summary.stuck)
        }
        Command::Plug { socket, tap } => plug::run(&socket, &tap).map(|()| true),
        Command::Executes { monitor, patience } => {
            println!("{}", qmp::executes(&monitor, patience)?);
            Ok(true)
        }
        Command::Hold { thread } => {
            let held = sys::hold_thread(thread)?;
            println!("{}", serde_json::json!({ "event": "held", "thread": thread }));
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
            drop(held);
            Ok(true)
        }
        Command::Busy => {
            let stop = Stop::at_end_of_stdin();
            while !stop.is_stopped() {
                std::hint::black_box((0..1 << 20).sum::<u64>());
            }
            Ok(true)
        }
        Command::Clean => {
            prerequisite::check()?;
            netns::clean()?.iter().for_each(|name| println!("removed {name}"));
            Ok(true)
        }
    }
}
