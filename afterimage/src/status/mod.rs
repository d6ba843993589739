//! `afterimage status`, and the operator's words: what a running `protect` or `standby` says over its control socket.

mod find;
mod operator;
mod outcome;
mod table;
mod text;
mod watch;

pub(crate) use find::{find, left, nobody};
pub use operator::operate;
pub(crate) use text::as_json;

use crate::cli::{ExportArgs, ReprotectArgs, StatusArgs, UnprotectArgs};
use api::{EXPORT_PATIENCE, Request, Response, Side, Status, ask, ask_one, is_left_over, sockets_in};
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// For an answer over the control socket: its thread only copies figures.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sockets of `side` (`None`: all) of `vm` (`None`: all) in the run directory, by name.
pub(crate) fn sockets(args: &StatusArgs) -> Result<Vec<PathBuf>, ExitError> {
    let dir = &args.run_dir;
    if let Some(vm) = args.vm {
        let wanted: &[Side] = args.role.as_ref().map_or(&Side::ALL, std::slice::from_ref);
        left(dir, vm, wanted, "status")?;
    }
    let wanted = |vm, side| args.vm.is_none_or(|v| v == vm) && args.role.is_none_or(|r| r == side);
    let found = sockets_in(dir).into_iter().filter(|(_, vm, side)| wanted(*vm, *side));
    let found: Vec<PathBuf> = found.map(|(path, ..)| path).collect();
    if found.is_empty() {
        return Err(nobody(None, dir));
    }
    Ok(found)
}

/// The command: prints the status of every VM asked about; of one all there is, of several a table. The worst one decides
/// the exit code; a process that cannot be asked is one that does not protect.
pub fn show(args: &StatusArgs) -> anyhow::Result<Code> {
    if let Some(interval) = args.watch {
        return watch::run(args, interval);
    }
    let statuses = api::statuses(&sockets(args)?);
    let codes = statuses.iter().filter(|s| !is_left_over(s, &statuses)).map(Status::code);
    let worst = codes.max_by_key(|code| *code as u8).unwrap_or(Code::Done);
    let out = if args.json { as_json(&statuses, args.vm.is_some())? } else { for_people(&statuses, args.vm.is_some()) };
    match io::stdout().write_all(out.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(worst),
    }
}

/// All there is of the processes of one VM, that was `named` or is the only one; of several VMs a table.
fn for_people(statuses: &[Status], named: bool) -> String {
    match statuses {
        [one] => text::render(one),
        several if named => several.iter().map(text::render).collect::<Vec<_>>().join("\n"),
        several => table::render(several),
    }
}

/// The command `unprotect`.
pub fn unprotect(args: &UnprotectArgs) -> anyhow::Result<Code> {
    order((&args.run_dir, args.vm, args.no_wait), Side::Primary, &Request::Unprotect)
}

/// The command `reprotect`.
pub fn reprotect(args: &ReprotectArgs) -> anyhow::Result<Code> {
    tell(&args.run_dir, args.vm, Side::Primary, &Request::Protect)
}

/// The command `image export`: the running standby writes it.
pub fn export(args: &ExportArgs) -> anyhow::Result<Code> {
    let dir = std::fs::canonicalize(&args.to).map_err(|e| {
        ExitError::usage(format!("--to {}: {e}", args.to.display()))
            .remedy("name a directory that is there, with room for the VM's memory")
    })?;
    tell(&args.run_dir, args.vm, Side::Standby, &Request::Export { dir })
}

fn tell(run_dir: &Path, vm: Name, side: Side, request: &Request) -> anyhow::Result<Code> {
    let (path, _) = find(run_dir, vm, &[side], request.word())?;
    let _ = writeln!(io::stdout(), "{}", say(&path, request)?);
    Ok(Code::Done)
}

/// Gives an order that somebody else decides, and waits for what comes of it unless `no_wait`.
fn order((run_dir, vm, no_wait): (&Path, Name, bool), side: Side, request: &Request) -> anyhow::Result<Code> {
    let (path, _) = find(run_dir, vm, &[side], request.word())?;
    // Once it has lost, a standby has no other side any more.
    let peer = match ask(&path, Request::Status, PATIENCE) {
        Ok(Response::Status(status)) => status.peer.split(' ').next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let taken = say(&path, request)?;
    let told = if no_wait { taken } else { outcome::wait(&path, request, (&vm.to_string(), &peer))? };
    let _ = writeln!(io::stdout(), "{told}");
    Ok(Code::Done)
}

/// What the process behind a socket says to a request that it can do or refuse.
fn say(path: &Path, request: &Request) -> Result<String, ExitError> {
    let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { PATIENCE };
    match ask_one(path, request.clone(), patience)? {
        Response::Done { message } => Ok(message),
        Response::Refused { message, remedy } => {
            let refused = ExitError::new(Code::Failed, message);
            Err(remedy.into_iter().fold(refused, |e: ExitError, r: String| e.remedy(r)))
        }
        Response::Away { message, remedy } => Err(ExitError::new(Code::Prerequisite, message).remedy(remedy)),
        other => Err(ExitError::new(Code::Failed, format!("{} answered {request:?} with {other:?}", path.display()))),
    }
}
