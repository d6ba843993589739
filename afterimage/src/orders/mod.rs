//! What an operator tells a running `protect` or `standby`: `takeover`, `solo`, `unprotect`, `reprotect`, `image export`. What is decided
//! later is waited for.

mod beating;
mod outcome;

use crate::{
    cli::{ExportArgs, OperatorArgs, ReprotectArgs, UnprotectArgs},
    find::find,
    print,
};
use api::{ANSWER_PATIENCE, EXPORT_PATIENCE, Request, Response, Side, ask, ask_one};
use beating::heard_again;
use mc_core::id::Name;
use node::exit::{Code, ExitError};
use std::path::Path;

/// Tells the process what its operator decided: `takeover` on the standby, `solo` on the primary.
pub fn operate(args: &OperatorArgs, request: &Request) -> anyhow::Result<Code> {
    let (word, side, other) = match request {
        Request::Solo => ("solo", Side::Primary, Side::Standby),
        _ => ("takeover", Side::Standby, Side::Primary),
    };
    let path = find(&args.run_dir, args.vm, &[side], word).ok().map(|(path, _)| path);
    let alive = path.and_then(|path| heard_again(&path));
    match alive {
        Some(beating) => beating.confirm(args, word, other)?,
        None if args.yes_the_other_side_is_stopped || args.although_it_beats.is_some() => {}
        None => {
            let what = format!("afterimage {word} needs --yes-the-other-side-is-stopped");
            let remedy = format!(
                "make sure that {} does not run on the {}: power that host off, or kill its QEMU and check; then add \
                 the flag",
                args.vm,
                other.as_str()
            );
            return Err(ExitError::usage(what).remedy(remedy).into());
        }
    }
    order((&args.run_dir, args.vm, args.no_wait), side, request)
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
    let _ = print(&(say(&path, request)? + "\n"));
    Ok(Code::Done)
}

/// Gives an order that somebody else decides, and waits for what comes of it unless `no_wait`.
fn order((run_dir, vm, no_wait): (&Path, Name, bool), side: Side, request: &Request) -> anyhow::Result<Code> {
    let (path, _) = find(run_dir, vm, &[side], request.word())?;
    // Once it has lost, a standby has no other side any more.
    let peer = match ask(&path, Request::Status, ANSWER_PATIENCE) {
        Ok(Response::Status(status)) => status.peer.split(' ').next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let taken = say(&path, request)?;
    let told = if no_wait { taken } else { outcome::wait(&path, request, (&vm.to_string(), &peer))? };
    let _ = print(&(told + "\n"));
    Ok(Code::Done)
}

/// What the process behind a socket says to a request that it can do or refuse.
fn say(path: &Path, request: &Request) -> Result<String, ExitError> {
    let patience = if matches!(request, Request::Export { .. }) { EXPORT_PATIENCE } else { ANSWER_PATIENCE };
    match ask_one(path, request.clone(), patience)? {
        Response::Done { message } => Ok(message),
        other => Err(ExitError::new(Code::Failed, format!("{} answered {request:?} with {other:?}", path.display()))),
    }
}
