//! The NIC of a VM that nobody protects yet: carries frames between QEMU's socket and a TAP device.
//!
//! With it the rig measures what an unprotected VM's replies take. Frames on the socket are preceded by their length
//! (u32, big endian): QEMU's `-netdev stream`.

use crate::sys;
use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// QEMU's largest frame (`NET_BUFSIZE`), and ours.
const FRAME_MAX: usize = 4096 + 65536;

/// Runs until QEMU closes the socket.
///
/// # Errors
/// No TAP device, no socket within 10 s, or frames that cannot be.
pub fn run(socket: &Path, tap: &str) -> Result<()> {
    let mut tap = sys::open_tap(tap)?;
    let mut qemu = connect(socket)?;
    let (mut input, mut frame) = (Vec::new(), vec![0; FRAME_MAX]);
    loop {
        let mut fds = [PollFd::new(&qemu, PollFlags::IN), PollFd::new(&tap, PollFlags::IN)];
        poll(&mut fds, None).context("poll")?;
        let [from_qemu, from_tap] = fds.map(|fd| !fd.revents().is_empty());
        if from_tap {
            let len = tap.read(&mut frame).context("TAP device")?;
            send(&mut qemu, &frame[..len]).context("QEMU's socket")?;
        }
        if from_qemu {
            let len = qemu.read(&mut frame).context("QEMU's socket")?;
            if len == 0 {
                return Ok(());
            }
            input.extend_from_slice(&frame[..len]);
            let used = forward(&input, &mut tap)?;
            input.drain(..used);
        }
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if start.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).with_context(|| socket.display().to_string()),
        }
    }
}

fn send(qemu: &mut UnixStream, frame: &[u8]) -> Result<()> {
    let mut message = Vec::with_capacity(4 + frame.len());
    message.extend_from_slice(&u32::try_from(frame.len())?.to_be_bytes());
    message.extend_from_slice(frame);
    Ok(qemu.write_all(&message)?)
}

/// Writes all whole frames of `input` to the device; says how many bytes they took.
fn forward(input: &[u8], tap: &mut File) -> Result<usize> {
    let mut used = 0;
    while let Some(frame) = first_frame(&input[used..])? {
        // A device without carrier, or a frame that it does not like: frames get lost on a network.
        let _ = tap.write(frame);
        used += 4 + frame.len();
    }
    Ok(used)
}

fn first_frame(input: &[u8]) -> Result<Option<&[u8]>> {
    let Some((header, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*header) as usize;
    ensure!(len <= FRAME_MAX, "QEMU sent a frame of {len} bytes; {FRAME_MAX} is the most");
    Ok(rest.get(..len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole() {
        assert_eq!(first_frame(&[0, 0, 0]).unwrap(), None);
        assert_eq!(first_frame(&[0, 0, 0, 2, 7]).unwrap(), None);
        assert_eq!(first_frame(&[0, 0, 0, 2, 7, 8, 9]).unwrap(), Some(&[7, 8][..]));
        assert!(first_frame(&[0xff, 0, 0, 0]).is_err());
    }
}
