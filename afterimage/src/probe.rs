//! `afterimage keepalive probe`, `serve` and `tune`: what is measured and said is the crate `probe`'s; here are the command lines, files and
//! signals.

use crate::{
    cli::{Out, ProbeArgs, ServeArgs, TuneArgs},
    config,
    find::find,
    print,
};
use anyhow::{Context, Result, bail};
use api::{ANSWER_PATIENCE, Request, Response, Side, ask};
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use probe::{LOAD_BYTES, Probe, ProbeFile, SERVED_BYTES, Server, Wish};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// `afterimage keepalive probe`
pub fn probe(args: &ProbeArgs) -> Result<Code> {
    let out = args.out.as_deref().map(Out::open).transpose()?;
    let (file, failed) = match (&args.peer, args.vm) {
        (Some(_), _) => measure(args)?,
        (None, Some(vm)) => (of_session(&args.run_dir, vm, args.role)?, None),
        (None, None) => bail!("neither --peer nor --vm"),
    };
    let json = serde_json::to_string(&file)?;
    if let (Some(out), Some(path)) = (out, &args.out) {
        out.write(&json).with_context(|| format!("writing {}", path.display()))?;
    }
    print(&if args.json { json + "\n" } else { probe::render(&file) })?;
    // What was measured is shown all the same.
    failed.map_or(Ok(Code::Done), Err)
}

/// What was measured, and why it is not all that was asked for.
fn measure(args: &ProbeArgs) -> Result<(ProbeFile, Option<anyhow::Error>)> {
    let paths = config::paths(args.paths.clone(), LOAD_BYTES).map_err(ExitError::from)?;
    let load = args.load.as_ref().map(|size| config::parse_size(size)).transpose().map_err(ExitError::usage)?;
    let (peer, bind) = (args.peer.clone().context("a peer")?, args.bind);
    let what = Probe { peer, interval: args.interval, duration: args.duration, load, bind, paths };
    let stop = stopped_by_signals(true)?;
    probe::measure(&what, &stop)
}

/// ^C, or SIGTERM: what was measured by then is shown. With `twice`, a second one ends the process at once.
fn stopped_by_signals(twice: bool) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        if twice {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))?;
        }
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// The measurements of a session that runs on this host.
fn of_session(run_dir: &Path, vm: Name, side: Option<Side>) -> Result<ProbeFile> {
    let wanted = side.map_or_else(|| vec![Side::Primary, Side::Standby], |side| vec![side]);
    let (path, side) = find(run_dir, vm, &wanted, "keepalive probe")?;
    match ask(&path, Request::Measured, ANSWER_PATIENCE)? {
        Response::Measured(here) => Ok(ProbeFile::of_session(format!("the session of {vm}, at its {side}"), *here)),
        Response::Refused { message, .. } => Err(ExitError::new(Code::Failed, message).into()),
        other => bail!("{side} answered {:?} with {other:?}", Request::Measured),
    }
}

/// `afterimage keepalive serve`: until SIGTERM or SIGINT. Prints the address it listens on.
pub fn serve(args: &ServeArgs) -> Result<Code> {
    let stop = stopped_by_signals(false)?;
    let paths = config::paths(args.paths.clone(), SERVED_BYTES).map_err(ExitError::from)?;
    let server = Server::bind(args.listen, paths, stop)?;
    // Whoever started us may have gone.
    let _ = print(&format!("listening on {}\n", server.local_addr()));
    server.run();
    Ok(Code::Done)
}

/// `afterimage keepalive tune`
pub fn tune(args: &TuneArgs) -> Result<Code> {
    let file = if args.from.as_os_str() == "live" {
        let vm = args.vm.ok_or_else(|| ExitError::usage("--from live needs --vm NAME"))?;
        of_session(&args.run_dir, vm, None)?
    } else {
        ProbeFile::read(&args.from)
            .map_err(|error| ExitError::new(Code::Failed, format!("{}: {error}", args.from.display())))?
    };
    let TuneArgs { detect_within, false_failovers, what_if, .. } = *args;
    let advice = probe::advise(&file, &Wish { detect_within, false_failovers, what_if });
    print(&if args.json { serde_json::to_string(&advice)? + "\n" } else { probe::render_advice(&advice) })?;
    Ok(if what_if.is_none() && !advice.carried { Code::BoundMissed } else { Code::Done })
}
