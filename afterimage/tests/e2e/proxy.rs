//! A control connection to QEMU with somebody in the middle.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Mutex,
    thread::JoinHandle,
};

/// Serves one client at `listen`, until it leaves. `change` sees each command and the descriptor that comes with it,
/// may change both, and may answer in QEMU's stead.
pub(crate) fn qmp(
    listen: &Path,
    qemu: &Path,
    mut change: impl FnMut(&mut Value, &mut Option<OwnedFd>) -> Option<Value> + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(listen).unwrap();
    let qemu = UnixStream::connect(qemu).unwrap();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let answers = BufReader::new(qemu.try_clone().unwrap());
        let back = std::sync::Arc::new(Mutex::new(client.try_clone().unwrap()));
        let copy = back.clone();
        std::thread::spawn(move || {
            for line in answers.lines().map_while(Result::ok) {
                let _ = writeln!(copy.lock().unwrap(), "{line}");
            }
            let _ = copy.lock().unwrap().shutdown(Shutdown::Both);
        });
        let (mut buffer, mut fds) = (Vec::new(), Vec::new());
        while receive(&client, &mut buffer, &mut fds) > 0 {
            while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let mut command: Value = serde_json::from_slice(&line).unwrap();
                let mut fd = if command["execute"] == "getfd" { fds.pop() } else { None };
                match change(&mut command, &mut fd) {
                    Some(mut answer) => {
                        answer["id"] = command["id"].clone();
                        let _ = writeln!(back.lock().unwrap(), "{answer}");
                    }
                    None => send(&qemu, format!("{command}\n").as_bytes(), fd.as_ref()),
                }
            }
        }
        let _ = qemu.shutdown(Shutdown::Both);
    })
}

fn receive(from: &UnixStream, buffer: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> usize {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let received = received.map_or(0, |received| received.bytes);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    buffer.extend_from_slice(&bytes[..received]);
    received
}

fn send(to: &UnixStream, bytes: &[u8], fd: Option<&OwnedFd>) {
    let fds: Vec<_> = fd.map(AsFd::as_fd).into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let _ = sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}
