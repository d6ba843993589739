//! What a standby cannot do without. Looked at when it is started: found at the first session, or at a takeover, it is too late.

use crate::{
    config::{NicSpec, StandbyConfig},
    exit::{Code, ExitError},
};
use std::{
    collections::HashSet,
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// One NIC for each socket, and for each TAP device: a second one would never be connected.
///
/// # Errors
/// Exit code 2.
pub(super) fn check_names(nics: &[NicSpec]) -> Result<(), ExitError> {
    let mut seen = HashSet::new();
    for nic in nics {
        for name in [&nic.socket.display().to_string(), &nic.tap] {
            if !seen.insert(name.clone()) {
                let what = format!("--nic {nic}: {name} is another NIC's already");
                return Err(ExitError::usage(what).remedy("give each --nic a socket and a TAP device of its own"));
            }
        }
    }
    Ok(())
}

/// The program that the VM is started with.
///
/// # Errors
/// Exit code 6.
pub(super) fn check_program(config: &StandbyConfig) -> Result<(), ExitError> {
    let Some(program) = config.qemu.first() else { return Ok(()) };
    if find(program, env::var_os("PATH").as_deref()).is_some() {
        return Ok(());
    }
    let what = format!("the standby's QEMU command: there is no program {program} here that this user may run");
    let remedy = "install it (Debian: qemu-system-x86), or name it with its path, after the `--`";
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy))
}

/// As execvp(3) looks for it.
fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let runs = |path: &Path| fs::metadata(path).is_ok_and(|f| f.is_file() && f.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| runs(path));
    }
    env::split_paths(path?).map(|dir| dir.join(program)).find(|path| runs(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_the_kernel_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        fs::write(&good, "#!/bin/sh\n").unwrap();
        fs::write(&bad, "").unwrap();
        fs::set_permissions(&good, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&bad, fs::Permissions::from_mode(0o600)).unwrap();
        let path = Some(dir.path().as_os_str());
        assert_eq!(find("good", path), Some(good.clone()));
        assert_eq!(find(&good.display().to_string(), None), Some(good));
        assert_eq!((find("bad", path), find("none", path), find("good", None)), (None, None, None));
        assert_eq!(find(&dir.path().display().to_string(), path), None, "a directory");
    }

    #[test]
    fn a_device_has_one_nic() {
        let nics = |specs: &[&str]| specs.iter().map(|s| s.parse().unwrap()).collect::<Vec<NicSpec>>();
        check_names(&nics(&["/a=t0", "/b=t1"])).unwrap();
        for (twice, named) in [(["/a=t0", "/b=t0"], "--nic /b=t0: t0"), (["/a=t0", "/a=t1"], "--nic /a=t1: /a")] {
            let error = check_names(&nics(&twice)).unwrap_err();
            assert!(error.code == Code::Usage && error.message.starts_with(named), "{error:?}");
        }
    }
}
