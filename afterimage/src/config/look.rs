//! What `config check` finds and a reader of values does not: that they cannot be meant together.

use super::{
    ConfigError, NicSpec,
    file::{Sections, Setting, Source},
};
use std::collections::HashSet;
use vmm_qemu::standby::check_command;

/// Looks at everything that `protect` and `standby` would refuse at their start.
///
/// # Errors
/// The first that is wrong, with its line.
pub(super) fn closer(file: &Source, sections: &Sections) -> Result<(), ConfigError> {
    if let Some(protect) = &sections.protect {
        nics(file, &protect.nics)?;
        if let Some(rejoin) = protect.rejoin.as_ref().filter(|rejoin| *rejoin.get_ref()) {
            let missing = "rejoin = true needs a section [standby], which says how to stand by here";
            let Some(standby) = &sections.standby else { return Err(wrong(file, file.line(rejoin), missing)) };
            if let (Some(ours), Some(theirs)) = (&protect.vm, &standby.vm)
                && ours.get_ref() != theirs.get_ref()
            {
                let (ours, named) = (ours.get_ref(), theirs.get_ref());
                let what = format!("rejoin = true needs a section [standby] of {ours}; this one stands by for {named}");
                return Err(wrong(file, file.line(theirs), &what));
            }
        }
    }
    let Some(standby) = &sections.standby else { return Ok(()) };
    nics(file, &standby.nics)?;
    let Some(qemu) = &standby.qemu else { return Ok(()) };
    let Some(program) = qemu.get_ref().first() else { return Ok(()) };
    if let Some((name, _)) = program.split_once(" -") {
        let what = format!(
            "there is no program {program:?}: each word is an element of its own, qemu = [{name:?}, \"-machine\", \"pc\", …]"
        );
        return Err(wrong(file, file.line(qemu), &what));
    }
    check_command(qemu.get_ref()).map_err(|error| wrong(file, file.line(qemu), &error.to_string()))
}

fn wrong(file: &Source, line: usize, what: &str) -> ConfigError {
    ConfigError::Syntax { path: file.path().into(), line, what: what.to_owned() }
}

fn nics(file: &Source, nics: &Setting<Vec<NicSpec>>) -> Result<(), ConfigError> {
    let Some(nics) = nics else { return Ok(()) };
    match twice(nics.get_ref()) {
        Some((nic, name)) => {
            let what =
                format!("nics: {nic}: {name} is another NIC's already; give each a socket and a TAP device of its own");
            Err(wrong(file, file.line(nics), &what))
        }
        None => Ok(()),
    }
}

/// The first NIC that has a socket or a TAP device of another one, and which: it would never be connected.
pub(crate) fn twice(nics: &[NicSpec]) -> Option<(&NicSpec, String)> {
    let mut seen = HashSet::new();
    nics.iter().find_map(|nic| {
        let names = [nic.socket.display().to_string(), nic.tap.clone()];
        names.into_iter().find(|name| !seen.insert(name.clone())).map(|name| (nic, name))
    })
}

/// Of a file that was named to a command, and has nothing for it.
pub(super) fn has_nothing_for(command: &str, file: &Source, sections: &Sections) -> Option<String> {
    let there = [
        ("witness", sections.witness.is_some()),
        ("protect", sections.protect.is_some()),
        ("standby", sections.standby.is_some()),
    ];
    let others: Vec<_> = there.iter().filter(|(_, there)| *there).map(|(name, _)| format!("[{name}]")).collect();
    let nothing = !file.path().as_os_str().is_empty() && !there.contains(&(command, true));
    nothing.then(|| match others.is_empty() {
        true => format!("{} has no section [{command}]: nothing of it counts", file.path().display()),
        false => format!(
            "{} has no section [{command}], only {}: nothing of it counts",
            file.path().display(),
            others.join(" and ")
        ),
    })
}
