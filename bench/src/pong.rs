//! The bare ping-pong over TCP: 64 bytes there and back, with nothing of ours in between. The yardstick of a commit record
//! and its ACK.

use crate::link::Poll;
use anyhow::{Context, Result, ensure};
use mc_core::histogram::Histogram;
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// As long as a control record.
const BYTES: usize = 64;
/// Round trips before the measurement.
const WARM_UP: u32 = 100;
/// A busy side gives up on a silent peer.
const SILENCE: Duration = Duration::from_secs(30);

fn prepare(stream: &TcpStream, poll: Poll) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(poll != Poll::Event)?;
    stream.set_read_timeout(Some(SILENCE))
}

/// Round trips for so long.
///
/// # Errors
/// The connection fails, or the peer is silent.
pub(crate) fn ping(mut stream: TcpStream, time: Duration, poll: Poll) -> Result<Histogram> {
    prepare(&stream, poll).context("setting up the ping-pong")?;
    let mut latencies = Histogram::new();
    let mut bytes = [0x5a; BYTES];
    for _ in 0..WARM_UP {
        stream.write_all(&bytes)?;
        ensure!(fill(&mut stream, &mut bytes, poll)?, "the peer closed the ping-pong");
    }
    let start = Instant::now();
    while start.elapsed() < time || latencies.is_empty() {
        let sent = Instant::now();
        stream.write_all(&bytes)?;
        ensure!(fill(&mut stream, &mut bytes, poll)?, "the peer closed the ping-pong");
        latencies.record(sent.elapsed());
    }
    Ok(latencies)
}

/// Answers until the peer closes.
///
/// # Errors
/// The connection fails, or the peer is silent.
pub(crate) fn echo(mut stream: TcpStream, poll: Poll) -> Result<()> {
    prepare(&stream, poll).context("setting up the ping-pong")?;
    let mut bytes = [0; BYTES];
    while fill(&mut stream, &mut bytes, poll)? {
        stream.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads exactly as much; false at the end of the stream.
fn fill(stream: &mut TcpStream, bytes: &mut [u8; BYTES], poll: Poll) -> Result<bool> {
    let (mut filled, mut idle) = (0, 0_u32);
    let start = Instant::now();
    while filled < BYTES {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                idle = idle.wrapping_add(1);
                // (A look at the clock costs as much as the read.)
                ensure!(poll != Poll::Event && (!idle.is_multiple_of(1024) || start.elapsed() < SILENCE), "silence");
                if poll == Poll::Yield {
                    std::thread::yield_now();
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
