//! Checks a standby's prerequisites at its start, because a takeover is too late to find one missing.

use super::settings::Settings;
use node::exit::{Code, ExitError};
use std::{
    collections::HashSet,
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use vmm_qemu::argv::{CommandLine, Item, Params};
use vmm_qemu::gate::NicSpec;

/// The first NIC that has a socket or a TAP device of another one, and which: it would never be connected.
#[must_use]
pub fn twice(nics: &[NicSpec]) -> Option<(&NicSpec, String)> {
    let mut seen = HashSet::new();
    nics.iter().find_map(|nic| {
        let names = [nic.socket.display().to_string(), nic.tap.clone()];
        names.into_iter().find(|name| !seen.insert(name.clone())).map(|name| (nic, name))
    })
}

/// One NIC for each socket, and for each TAP device: a second one would never be connected.
///
/// # Errors
/// Exit code 2.
pub(super) fn check_names(nics: &[NicSpec]) -> Result<(), ExitError> {
    let Some((nic, name)) = twice(nics) else { return Ok(()) };
    let what = format!("--nic {nic}: {name} is another NIC's already");
    Err(ExitError::usage(what).remedy("give each --nic a socket and a TAP device of its own"))
}

/// A NIC's socket is one that the VM's QEMU listens on. Of a program that is no QEMU by name, and of options in a file, nobody knows.
///
/// # Errors
/// Exit code 2.
pub(super) fn check_sockets(config: &Settings) -> Result<(), ExitError> {
    let line = CommandLine::parse(&config.qemu);
    let is_qemu = line.program.last().is_some_and(|program| {
        Path::new(program).file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu"))
    });
    if !is_qemu || line.named("readconfig").next().is_some() {
        return Ok(());
    }
    let sockets: Vec<_> = line.named("netdev").filter_map(socket).map(|path| absolute(Path::new(&path))).collect();
    let Some(nic) = config.nics.iter().find(|nic| !sockets.contains(&absolute(&nic.socket))) else { return Ok(()) };
    let what = format!("--nic {nic}: no -netdev of the standby's QEMU command has that socket");
    let remedy = format!(
        "give QEMU, after the `--`: -netdev stream,id=n0,server=on,addr.type=unix,addr.path={}",
        nic.socket.display()
    );
    Err(ExitError::usage(what).remedy(remedy))
}

/// Where a `-netdev stream` listens; in JSON its address may be an object of its own.
fn socket(netdev: &Item) -> Option<String> {
    let params = netdev.params()?;
    params.get("addr.path").or_else(|| Params::parse(&params.get("addr")?).get("path"))
}

/// Without a look at the disk: QEMU has not made its socket yet.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The program that the VM is started with.
///
/// # Errors
/// Exit code 6.
pub(super) fn check_program(config: &Settings) -> Result<(), ExitError> {
    let Some(program) = config.qemu.first() else { return Ok(()) };
    if find(program, env::var_os("PATH").as_deref()).is_some() {
        return Ok(());
    }
    let what = format!("the standby's QEMU command: there is no program {program} here that this user may run");
    let remedy = match program.contains(' ') {
        true => {
            "each word is an argument, and in a file an element, of its own: qemu = [\"qemu-system-x86_64\", \"-m\", \"2G\"]"
        }
        false => "install it (Debian: qemu-system-x86), or name it with its path, after the `--`",
    };
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
    use node::{arbiter::ArbiterSpec, paths::PathsConfig};
    use std::time::Duration;

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

    fn settings() -> Settings {
        Settings {
            vm: "web".parse().unwrap(),
            node: "web-b".parse().unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            arbiter: ArbiterSpec::Manual,
            accept_witness: false,
            nics: Vec::new(),
            ram_dir: "/dev/shm".into(),
            spill: None,
            no_rehearsal: false,
            staging_bytes: 64 << 20,
            beat_interval: Duration::from_millis(10),
            beat_min_rx: None,
            detect_multiplier: 5,
            stall_after: None,
            run_dir: "/run".into(),
            state_dir: "/state".into(),
            metrics: None,
            qemu: Vec::new(),
            paths: PathsConfig::tcp(64 << 20),
            config_file: None,
        }
    }

    #[test]
    fn a_socket_is_one_of_the_commands() {
        let config = |program: &str, options: &[&str]| {
            let qemu = [&[program], options].concat().into_iter().map(str::to_owned).collect();
            Settings { nics: vec!["/run/n0.net=t0".parse().unwrap()], qemu, ..settings() }
        };
        let stream = |path: &str| format!("stream,id=n0,server=on,addr.type=unix,addr.path={path}");
        let qemu = "/usr/bin/qemu-system-x86_64";
        let json = r#"{"type":"stream","id":"n0","server":true,"addr":{"type":"unix","path":"/run/n0.net"}}"#;
        for right in [&stream("/run/n0.net"), json] {
            check_sockets(&config(qemu, &["-netdev", right])).unwrap();
        }
        let error = check_sockets(&config(qemu, &["-netdev", &stream("/run/other.net")])).unwrap_err();
        assert!(
            error.code == Code::Usage && error.message.starts_with("--nic /run/n0.net=t0: no -netdev"),
            "{error:?}"
        );
        assert!(error.remedy.unwrap().ends_with("addr.path=/run/n0.net"));
        // Whose options nobody can see.
        check_sockets(&config("/usr/local/bin/web", &[])).unwrap();
        check_sockets(&config(qemu, &["-readconfig", "web.cfg"])).unwrap();
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
