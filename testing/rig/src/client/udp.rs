//! The tiny guest: one request at a time, repeated until it is answered.

use super::{
    Diary, Plan, Stop,
    books::{DatagramBooks, Message},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

pub(super) fn run(plan: &Plan, stop: &Stop, diary: &mut Diary<'_>) -> Result<()> {
    let any = if plan.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("UDP socket")?;
    socket.connect(plan.address).with_context(|| plan.address.to_string())?;
    socket.set_read_timeout(Some(plan.repeat_after))?;
    diary.say("connected", json!({ "address": plan.address.to_string() }))?;
    let mut books = DatagramBooks::default();
    while !stop.is_stopped() {
        if !ask(plan, &socket, &mut books, diary)? {
            return diary.stuck(&format!("no reply for {:?} to request {}", plan.patience, books.next()));
        }
        diary.think(plan.think);
    }
    Ok(())
}

/// One request, to its reply. False: there is none.
fn ask(plan: &Plan, socket: &UdpSocket, books: &mut DatagramBooks, diary: &mut Diary<'_>) -> Result<bool> {
    let seq = books.next();
    let request = Message { seq, ..Message::default() }.encode();
    let asked = Instant::now();
    while asked.elapsed() < plan.patience {
        // While a host is dead its address cannot be resolved, and the kernel says so: no more than another lost
        // packet.
        let _ = socket.send(&request);
        let sent = Instant::now();
        while sent.elapsed() < plan.repeat_after {
            let Some(reply) = receive(socket) else { continue };
            let (answers, findings) = books.reply(reply);
            diary.wrong(findings)?;
            if answers {
                diary.reply(u64::from(seq), u64::from(reply.count), asked)?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn receive(socket: &UdpSocket) -> Option<Message> {
    let mut bytes = [0; 256];
    match socket.recv(&mut bytes) {
        Ok(len) => Message::decode(&bytes[..len]),
        Err(_) => {
            // Not only a time-out: "host unreachable" comes at once, and would make this a busy loop.
            std::thread::sleep(Duration::from_micros(500));
            None
        }
    }
}
