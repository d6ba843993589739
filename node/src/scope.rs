//! A scope of its own for a process that must outlive this one: a VM's QEMU on the standby, and its network keeper.
//!
//! Killing a parent does not kill its children, but whoever ends "us" seldom ends only one process: systemd ends a unit's whole
//! control group when the unit is stopped or restarted (`KillMode=control-group`, systemd.kill(5)), and so does a container
//! that is given up. So these processes leave our control group before they matter:
//!
//! | where | how |
//! |---|---|
//! | systemd runs (`sd_booted(3)`) and starts scopes for us | `systemd-run --scope`: it asks systemd for a scope, and then becomes the program |
//! | else, a cgroup2 hierarchy that we may write | a group `afterimage/VM.PART` at its root; the process is moved there after it was started |
//! | else | a process group only, and a warning: what ends our control group ends them too |
//!
//! Either way the child's pid is the program's, and it has a process group of its own, so that a ^C at our terminal is not
//! meant for it. Nothing forks twice: an orphan is adopted by init, whatever its parent was.

use crate::sys::child::in_its_own_session;
use std::{
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// For systemd to give us a scope, when it is asked for the first time.
const TRIAL: Duration = Duration::from_secs(5);

/// Begins to find out how this host sets processes apart, on a thread of its own: systemd may take its time, and whoever starts the
/// first process of that kind should not have to wait.
pub fn find_out() {
    let found = std::thread::Builder::new().name("scopes".to_owned()).spawn(Means::here);
    if let Err(error) = found {
        tracing::debug!(%error, "no thread; found out when it is needed");
    }
}

/// How this host sets processes apart. Found once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Means {
    /// systemd makes scopes: the system's, or this user's.
    Systemd {
        /// Of the user's own manager.
        user: bool,
    },
    /// Groups below this directory.
    Cgroup(PathBuf),
    /// Only process groups; why there is no more.
    Group(String),
}

impl Means {
    /// What this host has.
    #[must_use]
    pub fn here() -> &'static Self {
        static FOUND: OnceLock<Means> = OnceLock::new();
        FOUND.get_or_init(|| {
            let found = Self::find();
            match &found {
                Self::Group(why) => {
                    tracing::warn!(
                        why,
                        "processes that should outlive this one stay in its control group, and end \
                         when that group is ended"
                    );
                }
                other => tracing::debug!(means = %other, "scopes"),
            }
            found
        })
    }

    fn find() -> Self {
        let user = !rustix::process::geteuid().is_root();
        if Path::new("/run/systemd/system").is_dir() && systemd_answers(user) {
            return Self::Systemd { user };
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(root) = cgroup2_root(&mounts) else { return Self::Group("no cgroup2 hierarchy is mounted".into()) };
        let ours = root.join("afterimage");
        match fs::create_dir(&ours) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Self::Group(format!("{}: {error}", ours.display()))
            }
            _ => Self::Cgroup(ours),
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Systemd { user: false } => f.write_str("systemd's scopes"),
            Self::Systemd { user: true } => f.write_str("the user's systemd's scopes"),
            Self::Cgroup(path) => write!(f, "control groups in {}", path.display()),
            Self::Group(why) => write!(f, "process groups only ({why})"),
        }
    }
}

/// One part of one VM, set apart.
#[derive(Debug)]
pub struct Scope {
    means: Means,
    vm: String,
    part: &'static str,
}

impl Scope {
    /// For the `part` ("qemu", "keeper") of a VM.
    #[must_use]
    pub fn new(vm: &str, part: &'static str) -> Self {
        Self { means: Means::here().clone(), vm: vm.to_owned(), part }
    }

    /// A command that becomes `program`; add its arguments, then [`Scope::spawn`] it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.means {
            Means::Systemd { user } => {
                let mut command = Command::new("systemd-run");
                command.args(scope_arguments(*user, &self.vm, self.part)).arg(program);
                command
            }
            Means::Cgroup(_) | Means::Group(_) => Command::new(program),
        };
        in_its_own_session(&mut command);
        command
    }

    /// Starts it where it belongs. A group that cannot be had is a warning: the process runs all the same.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let child = command.spawn()?;
        if let Means::Cgroup(root) = &self.means {
            let group = root.join(format!("{}.{}", self.vm, self.part));
            if let Err(error) = join(&group, child.id()) {
                tracing::warn!(group = %group.display(), %error, "{} of {} stays in our control group", self.part, self.vm);
            }
        }
        Ok(child)
    }
}

/// Moves a process into a group, which is made if need be. Groups are one per VM and part, and are used again; an empty one
/// costs nothing.
fn join(group: &Path, pid: u32) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// Of `systemd-run`, up to the program. (It escapes what a unit's name cannot have.)
fn scope_arguments(user: bool, vm: &str, part: &str) -> Vec<OsString> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    // A scope of this name may still be there for a process that just died.
    let unit = format!("--unit=afterimage-{vm}-{part}-{}-{number}", std::process::id());
    let description = format!("--description=afterimage: {part} of {vm}");
    let scope = ["--scope", "--collect", "--quiet", "--no-ask-password"];
    let words = user.then_some("--user").into_iter().chain(scope).map(OsString::from);
    words.chain([unit.into(), description.into(), "--".into()]).collect()
}

/// Whether it makes scopes for us: asked once, with a program that does nothing.
fn systemd_answers(user: bool) -> bool {
    let mut trial = Command::new("systemd-run");
    trial.args(scope_arguments(user, "trial", "of scopes")).arg("true");
    let started = trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = started else { return false };
    let deadline = Instant::now() + TRIAL;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Where a cgroup2 file system is mounted, from `/proc/self/mountinfo` (proc_pid_mountinfo(5): the mount point is field 5, the
/// type follows a field of a single dash; blanks in paths are written `\040`).
fn cgroup2_root(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let kind = rest.split(' ').next()?;
        let point = mount.split(' ').nth(4)?;
        (kind == "cgroup2" && !point.contains('\\')).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &Command) -> Vec<String> {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|w| w.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn where_systemd_runs_it_makes_the_scope() {
        let scope = Scope { means: Means::Systemd { user: false }, vm: "my web".into(), part: "keeper" };
        let line = words(scope.command("/usr/bin/afterimage").arg("keeper"));
        assert_eq!(line[0], "systemd-run");
        assert!(line[1..5] == ["--scope", "--collect", "--quiet", "--no-ask-password"], "{line:?}");
        assert!(line[5].starts_with("--unit=afterimage-my web-keeper-"), "{line:?}");
        assert_eq!(line[6..], ["--description=afterimage: keeper of my web", "--", "/usr/bin/afterimage", "keeper"]);
        let again = words(scope.command("/usr/bin/afterimage").arg("keeper"));
        assert_ne!(line[5], again[5], "two scopes cannot share a name");
        let user = Scope { means: Means::Systemd { user: true }, ..scope };
        assert_eq!(words(&user.command("x"))[1], "--user");
    }

    #[test]
    fn elsewhere_the_program_is_started_as_it_is() {
        for means in [Means::Cgroup("/nowhere".into()), Means::Group("why".into())] {
            let scope = Scope { means, vm: "web".into(), part: "qemu" };
            assert_eq!(words(scope.command("qemu-system-x86_64").arg("-S")), ["qemu-system-x86_64", "-S"]);
        }
    }

    #[test]
    fn a_group_that_cannot_be_had_stops_nothing() {
        let scope = Scope { means: Means::Cgroup("/nowhere/at/all".into()), vm: "web".into(), part: "qemu" };
        assert!(scope.spawn(&mut scope.command("true")).unwrap().wait().unwrap().success());
    }

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let mounts = "31 25 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro\n\
                      32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_root(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_root("31 25 0:27 / /sys/fs/cgroup ro - cgroup cgroup rw\n"), None);
        assert_eq!(cgroup2_root("- \n\n31 - cgroup2"), None);
    }
}
