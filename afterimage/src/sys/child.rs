//! Children that do not outlive us.

use std::{io, os::unix::process::CommandExt, process::Command};

/// Has the kernel kill the child when the *thread* that starts it ends, for whatever reason (prctl(2), PR_SET_PDEATHSIG).
pub fn ends_with_this_thread(command: &mut Command) {
    let ask = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal's number by value, and touches no memory.
        let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `ask` makes one system call: it allocates nothing, takes no lock, and shares no memory.
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process::Child, sync::mpsc, thread};

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
