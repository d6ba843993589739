//! Checks of `config check` across settings: values that are valid alone and contradict each other.

use super::{ConfigError, NicSpec, file::File, setting::SECTIONS};
use protection::standby::twice;
use toml::Value;
use vmm_qemu::standby::check_command;

/// Looks at everything that `protect` and `standby` would refuse at their start.
///
/// # Errors
/// The first that is wrong, with its line.
pub(super) fn closer(file: &File) -> Result<(), ConfigError> {
    nics(file, "protect")?;
    if let Some(rejoin) = file.said("protect", "rejoin").filter(|rejoin| rejoin.value == Value::Boolean(true)) {
        if file.section("standby").is_none() {
            let missing = "rejoin = true needs a section [standby]: this host becomes a standby with its settings";
            return Err(wrong(file, rejoin.line, missing));
        }
        if let (Some(ours), Some(theirs)) = (file.said("protect", "vm"), file.said("standby", "vm"))
            && ours.value != theirs.value
        {
            let [ours, named] = [ours, theirs].map(|said| said.value.as_str().unwrap_or_default());
            let what = format!("rejoin = true needs a section [standby] with vm = {ours}; this one has vm = {named}");
            return Err(wrong(file, theirs.line, &what));
        }
    }
    nics(file, "standby")?;
    let Some(said) = file.said("standby", "qemu") else { return Ok(()) };
    let qemu = texts(&said.value);
    let Some(program) = qemu.first() else { return Ok(()) };
    if let Some((name, _)) = program.split_once(" -") {
        let what = format!(
            "program {program:?} not found; write each word as its own element, qemu = [{name:?}, \"-machine\", \
             \"pc\", …]"
        );
        return Err(wrong(file, said.line, &what));
    }
    check_command(&qemu).map_err(|error| wrong(file, said.line, &error.to_string()))
}

fn wrong(file: &File, line: usize, what: &str) -> ConfigError {
    ConfigError::Syntax { path: file.path().into(), line, what: what.to_owned() }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|text| Some(text.as_str()?.to_owned())).collect()
}

fn nics(file: &File, section: &str) -> Result<(), ConfigError> {
    let Some(said) = file.said(section, "nics") else { return Ok(()) };
    let nics: Vec<NicSpec> = texts(&said.value).iter().filter_map(|nic| nic.parse().ok()).collect();
    match twice(&nics) {
        Some((nic, name)) => {
            let what = format!("nics: {nic}: {name} is used by two NICs; give each NIC its own socket and TAP device");
            Err(wrong(file, said.line, &what))
        }
        None => Ok(()),
    }
}

/// Of a file that was named to a command, and has nothing for it.
pub(super) fn has_nothing_for(command: &str, file: &File) -> Option<String> {
    let there = |(name, _): &(&str, u8)| file.section(name).is_some();
    let others: Vec<_> = SECTIONS.iter().filter(|s| there(s)).map(|(name, _)| format!("[{name}]")).collect();
    let nothing = !file.path().as_os_str().is_empty() && file.section(command).is_none();
    nothing.then(|| match others.is_empty() {
        true => format!("{} has no section [{command}], so it is ignored", file.path().display()),
        false => format!(
            "{} has only {}, and no section [{command}], so it is ignored",
            file.path().display(),
            others.join(" and ")
        ),
    })
}
