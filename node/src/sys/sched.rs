//! Real-time priority and locked memory, for threads that must be punctual.

use rustix::mm::{MlockFlags, mlock, mlock_with};
use std::{collections::BTreeSet, ffi::c_void, fs, io, ops::Range, ptr};

/// How far around the caller's stack frame memory is locked, bytes.
const STACK_BELOW: usize = 192 * 1024;
const STACK_ABOVE: usize = 64 * 1024;

/// Makes the calling thread `SCHED_FIFO` with `priority` (1 to 99); children that it forks are not. Needs `CAP_SYS_NICE`
/// or `RLIMIT_RTPRIO`.
pub fn real_time(priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` lives until the call returns, and the kernel only reads it; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Locks the program's code, its heap and the calling thread's stack in memory. Returns the bytes covered. Needs
/// `CAP_IPC_LOCK` or a `RLIMIT_MEMLOCK` of that size.
///
/// Not `mlockall`: that would also pin the guest's RAM, which is mapped here too, and which may be larger than what the
/// host can spare. Code is read in now, because the path that accuses a peer is not run before it is needed; of the
/// heap, only what is touched gets locked (it is also where a client of ours may keep much more).
pub fn lock_code_heap_and_stack() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let here = ptr::from_ref(&maps).expose_provenance();
    let mut locked = 0;
    for (range, eager) in worth_locking(&maps, here) {
        locked += range.len();
        let start: *mut c_void = ptr::with_exposed_provenance_mut(range.start);
        if eager {
            // SAFETY: `mlock` makes pages resident and neither reads nor writes them for us; a range that has been unmapped
            // since is an error, not undefined behaviour.
            unsafe { mlock(start, range.len()) }?;
        } else {
            // SAFETY: as above.
            unsafe { mlock_with(start, range.len(), MlockFlags::ONFAULT) }?;
        }
    }
    Ok(locked)
}

/// One line of `/proc/self/maps` (proc_pid_maps(5)).
struct Mapping<'a> {
    range: Range<usize>,
    executable: bool,
    private: bool,
    path: &'a str,
}

fn parse(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let permissions = fields.next()?;
    let path = fields.nth(3).unwrap_or("").trim_start();
    Some(Mapping { range, executable: permissions.contains('x'), private: permissions.ends_with('p'), path })
}

/// What to lock, and whether to read it in at once: the files that hold code, `[heap]`, and the stack around `here`.
fn worth_locking(maps: &str, here: usize) -> Vec<(Range<usize>, bool)> {
    let mappings: Vec<_> = maps.lines().filter_map(parse).collect();
    let code: BTreeSet<_> =
        mappings.iter().filter(|m| m.executable && m.path.starts_with('/')).map(|m| m.path).collect();
    let mut chosen = vec![];
    for mapping in mappings {
        if mapping.range.contains(&here) {
            let window = here.saturating_sub(STACK_BELOW)..here.saturating_add(STACK_ABOVE);
            chosen.push((mapping.range.start.max(window.start)..mapping.range.end.min(window.end), true));
        } else if mapping.private && code.contains(mapping.path) {
            chosen.push((mapping.range, true));
        } else if mapping.path == "[heap]" {
            chosen.push((mapping.range, false));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0010000 r--p 00000000 fe:01 131 /usr/bin/after image
55d0c0010000-55d0c0050000 r-xp 00010000 fe:01 131 /usr/bin/after image
55d0c0050000-55d0c0052000 rw-p 00050000 fe:01 131 /usr/bin/after image
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0040000000 rw-s 00000000 00:01 77                         /memfd:pc.ram (deleted)
7f0050000000-7f0050100000 rw-p 00000000 fe:01 140 /var/lib/state.bin
7f0060000000-7f0060800000 rw-p 00000000 00:00 0
not a line of it
";

    #[test]
    fn code_heap_and_stack_are_locked_and_guest_ram_is_not() {
        let here = 0x7f00_6040_0000;
        let expected = vec![
            (0x55d0_c000_0000..0x55d0_c001_0000, true),
            (0x55d0_c001_0000..0x55d0_c005_0000, true),
            (0x55d0_c005_0000..0x55d0_c005_2000, true),
            (0x55d0_c100_0000..0x55d0_c102_1000, false),
            (here - STACK_BELOW..here + STACK_ABOVE, true),
        ];
        assert_eq!(worth_locking(MAPS, here), expected);
    }

    #[test]
    fn a_window_never_leaves_its_mapping() {
        let chosen = worth_locking(MAPS, 0x7f00_607f_fff0);
        assert_eq!(chosen.last().map(|(range, _)| range.end), Some(0x7f00_6080_0000));
    }

    /// Whether it is permitted depends on the machine; that a refusal is an error does not.
    #[test]
    fn a_thread_that_may_becomes_real_time_and_locked() {
        std::thread::spawn(|| {
            match real_time(1) {
                // SAFETY: no pointers; 0 is the calling thread.
                Ok(()) => assert_eq!(unsafe { libc::sched_getscheduler(0) } & 0xff, libc::SCHED_FIFO),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
            }
            match lock_code_heap_and_stack() {
                Ok(bytes) => assert!(bytes > STACK_ABOVE),
                Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOMEM | libc::EAGAIN))),
            }
        })
        .join()
        .expect("the thread's own assertions");
    }
}
