//! The floor: a primary whose checkpoints nobody keeps. What it stands still for then is QEMU's own, under any sidecar.
//!
//! ```text
//!   QEMU ── READY <─────────────────────────────── said at once: QEMU reads it when it comes to that
//!        ── REQUEST ──> (silence: it waits, the VM runs) ──> REPLY, RECEIVED, LOADED, all together
//!        ── the checkpoint ──> thrown away               QEMU finds every answer there already
//! ```
//!
//! Messages are u32, big endian. The checkpoint itself is not understood: a `REQUEST` is told from it by the silence after it.

use super::{
    stand::{await_colo, begin, primary},
    watch::Watched,
};
use anyhow::{Context, Result};
use rig::{hosts::Topology, scenario::Settings};
use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
    time::Duration,
};

const READY: u32 = 0;
const REQUEST: u32 = 1;
/// REPLY, VMSTATE_RECEIVED, VMSTATE_LOADED.
const ANSWERS: [u32; 3] = [2, 5, 6];
/// QEMU does not pause for so long within a checkpoint. The VM runs meanwhile, and the period does not change by it.
const SILENCE: Duration = Duration::from_millis(20);

/// Watches a primary for so long while a client asks.
///
/// # Errors
/// COLO does not engage, or ends; the message has QEMU's words.
pub(crate) fn run(
    settings: &Settings,
    topology: &dyn Topology,
    dir: &Path,
    (period, time): (Duration, Duration),
) -> Result<Watched> {
    let socket = dir.join("peer.sock");
    let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
    // It ends with QEMU; if QEMU never comes, with the next line but one.
    let peer = thread::spawn(move || listener.accept().and_then(|(stream, _)| discard(stream)));
    let watched = primary(settings, topology, dir, time, |monitor| {
        begin(monitor, &format!("unix:{}", socket.display()), period)?;
        await_colo(monitor)
    });
    let _ = UnixStream::connect(&socket);
    let _ = peer.join();
    watched
}

/// Answers as a secondary would, and keeps nothing, until the other end is gone.
fn discard(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(&READY.to_be_bytes())?;
    stream.set_read_timeout(Some(SILENCE))?;
    let (mut bytes, mut last) = (vec![0; 1 << 20], [0_u8; 4]);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                let news = &bytes[len.saturating_sub(4)..len];
                last.rotate_left(news.len());
                last[4 - news.len()..].copy_from_slice(news);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if u32::from_be_bytes(std::mem::take(&mut last)) == REQUEST {
                    stream.write_all(&ANSWERS.map(u32::to_be_bytes).concat())?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_is_answered() {
        let (mut qemu, peer) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || discard(peer));
        let mut said = [0; 16];
        qemu.read_exact(&mut said[..4]).unwrap();
        qemu.write_all(&[9; 70_000]).unwrap();
        qemu.set_read_timeout(Some(4 * SILENCE)).unwrap();
        assert_eq!(qemu.read(&mut said[4..]).unwrap_err().kind(), ErrorKind::WouldBlock);
        // In pieces.
        qemu.write_all(&[0, 0, 0]).unwrap();
        qemu.write_all(&[1]).unwrap();
        qemu.set_read_timeout(None).unwrap();
        qemu.read_exact(&mut said[4..]).unwrap();
        assert_eq!(said, [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 6]);
        drop(qemu);
        thread.join().unwrap().unwrap();
    }
}
