//! The `afterimage` binary: reads the command line, runs the command, and turns what comes of it into an exit code.

use afterimage::{
    cli::{self, Command, ConfigCommand, ImageCommand, KeepaliveCommand, PROGRAM, RdmaCommand},
    config, live, orders, print, probe, status, why, witness,
};
use api::Request;
use node::{
    arbiter,
    events::{self, Event, Exit},
    exit::{self, Code, ExitError},
    narration, rdma,
};
use protection::{keeper, primary, standby};
use std::{process::ExitCode, time::Duration};

/// What a process that ends has to say gets so long to be written, each way: stdout, journal, stderr.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Exits with 2, clap's own, on a command line that is none; with 0 on --help and --version.
    let cli = cli::parse();
    let ended = narration::begin().map_err(Into::into).and_then(|()| run(cli.command));
    say_how(&ended);
    let code = match ended {
        Ok(code) => code,
        Err(error) => {
            let (code, text) = exit::explain(&error);
            narration::say(text);
            code
        }
    };
    // Nobody may be listening: the code still tells.
    narration::flush(LAST_WORDS);
    code.into()
}

/// The last event of a process that keeps a journal, and time to write what waits.
fn say_how(ended: &anyhow::Result<Code>) {
    if events::is_recorded() {
        let (code, why) = match ended {
            Ok(code) => (*code, None),
            Err(error) => (exit::explain(error).0, Some(exit::words(error))),
        };
        events::emit(Event::Exit(Exit { code: code as u8, why }));
    }
    events::flush(LAST_WORDS);
}

fn run(command: Command) -> anyhow::Result<Code> {
    match command {
        Command::Witness { command: Some(command), .. } => witness::operate(&command),
        Command::AcceptWitness(args) => {
            arbiter::accept_witness(&args.state_dir, args.vm)?;
            print(&format!("the next witness that answers about {} is accepted, once\n", args.vm))?;
            Ok(Code::Done)
        }
        Command::Witness { args, command: None } => {
            let config = config::witness(args).map_err(ExitError::from)?;
            witness::run(&config)?;
            Ok(Code::Done)
        }
        Command::Config { command: ConfigCommand::Check { file } } => {
            print(&config::check(&file).map_err(ExitError::from)?)?;
            Ok(Code::Done)
        }
        Command::Config { command: ConfigCommand::Settings } => {
            print(&config::manual())?;
            Ok(Code::Done)
        }
        Command::Status(args) => status::show(&args),
        Command::Why(args) => why::run(&args),
        Command::Takeover(args) => orders::operate(&args, &Request::Takeover),
        Command::Solo(args) => orders::operate(&args, &Request::Solo),
        Command::Set(args) => live::set(&args),
        Command::Unprotect(args) => orders::unprotect(&args),
        Command::Reprotect(args) => orders::reprotect(&args),
        Command::Image { command: ImageCommand::Export(args) } => orders::export(&args),
        Command::Protect(args) => {
            let settings = config::protect(args).map_err(ExitError::from)?;
            let rejoin = config::rejoin(&settings).map_err(ExitError::from)?;
            primary::run(settings, PROGRAM, rejoin.as_ref())
        }
        Command::Standby(args) => standby::run(config::standby(args).map_err(ExitError::from)?, PROGRAM),
        Command::Rdma { command: RdmaCommand::Devices { json } } => {
            let report = rdma::devices(json)?;
            print(&report.text)?;
            report.outcome?;
            Ok(Code::Done)
        }
        Command::Keepalive { command: KeepaliveCommand::Set(args) } => live::change(&args),
        Command::Keepalive { command: KeepaliveCommand::Show(args) } => live::show(&args),
        Command::Keepalive { command: KeepaliveCommand::Probe(args) } => probe::probe(&args),
        Command::Keepalive { command: KeepaliveCommand::Serve(args) } => probe::serve(&args),
        Command::Keepalive { command: KeepaliveCommand::Tune(args) } => probe::tune(&args),
        Command::DataPath => primary::data_path::run(PROGRAM),
        Command::Keeper(args) => keeper::run(args.settings().map_err(ExitError::from)?),
    }
}
