//! `afterimage status`: what the processes of this host say of their VMs.

mod table;
mod text;
mod watch;

pub(crate) use text::as_json;

use crate::{
    cli::StatusArgs,
    find::{left, nobody},
    print,
};
use api::{Side, Status, is_left_over, sockets_in};
use node::exit::{Code, ExitError};
use std::path::PathBuf;

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
    print(&out)?;
    Ok(worst)
}

/// All there is of the processes of one VM, which was `named` or is the only one; of several VMs a table.
fn for_people(statuses: &[Status], named: bool) -> String {
    let one_vm = statuses.windows(2).all(|pair| pair[0].vm == pair[1].vm);
    match statuses {
        several if named || one_vm => several.iter().map(text::render).collect::<Vec<_>>().join("\n"),
        several => table::render(several),
    }
}
