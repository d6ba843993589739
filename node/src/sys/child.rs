//! Children that do not outlive us, and children that do.

use std::{io, os::unix::process::CommandExt, process::Command};

/// Has the kernel kill the child when the *thread* that starts it ends, for whatever reason (prctl(2), PR_SET_PDEATHSIG).
pub fn ends_with_this_thread(command: &mut Command) -> &mut Command {
    let ask = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal's number by value, and touches no memory.
        let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `ask` makes one system call: it allocates nothing, takes no lock, and shares no memory.
    unsafe { command.pre_exec(ask) }
}

/// Has the child begin a session of its own (setsid(2)): a ^C or a hang-up of our terminal is not meant for it; nor is the SIGHUP that the
/// kernel sends to a process group that loses its last parent in the session while one of its members is stopped.
pub fn in_its_own_session(command: &mut Command) {
    let begin = || rustix::process::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec `begin` makes one system call: it allocates nothing, takes no lock, and shares no memory.
    unsafe { command.pre_exec(begin) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process::Child, sync::mpsc, thread};

    #[test]
    fn a_child_has_a_session_of_its_own() {
        let mut command = Command::new("sleep");
        in_its_own_session(command.arg("600"));
        let mut child = command.spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let session = stat.rsplit_once(')').unwrap().1.split(' ').nth(4).unwrap().parse();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(session, Ok(child.id()), "{stat}");
    }

    #[test]
    fn a_child_ends_with_its_thread() {
        let (sender, receiver) = mpsc::channel::<Child>();
        let starter = thread::spawn(move || {
            let mut command = Command::new("sleep");
            ends_with_this_thread(command.arg("600"));
            sender.send(command.spawn().unwrap()).unwrap();
        });
        let mut child = receiver.recv().unwrap();
        starter.join().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
