//! The VM's network, from the human monitor's `info network`:
//!
//! ```text
//! hub 0
//!  \ h1: n4: index=0,type=socket,
//!  \ h0: ne2k_pci.0: index=0,type=nic,model=ne2k_pci,macaddr=52:54:00:12:34:5a
//! n5: index=0,type=stream,unix:/run/other.net                 <- no NIC uses it
//! nic0: index=0,type=nic,model=virtio-net-pci,macaddr=…
//!  \ n0: index=0,type=stream,unix:/run/vm.net                 <- the path only while somebody is connected
//! filters:
//!   - f0: type=filter-dump,…                                  <- an object: judged there
//! ```

use super::{Class, Output, line::CommandLine};
use std::collections::BTreeSet;

/// A NIC or a netdev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) name: String,
    /// "nic", "stream", "tap", "user", …
    pub(super) kind: String,
    /// Of a stream, its path.
    pub(super) path: Option<String>,
    /// What it is connected to.
    pub(super) peer: Peer,
}

/// What a client is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Nobody,
    /// A NIC, or a NIC's netdev, of that name.
    Client(String),
    Hub,
}

/// Reads `info network`.
pub(super) fn parse(text: &str) -> Result<Vec<Client>, String> {
    let (mut clients, mut hub): (Vec<Client>, bool) = (Vec::new(), false);
    let mut above = None;
    for text in text.lines().map(str::trim_end) {
        let trimmed = text.trim_start();
        if trimmed.is_empty() || trimmed == "filters:" || trimmed.starts_with("- ") {
            continue;
        }
        if trimmed.starts_with("hub ") {
            hub = true;
            continue;
        }
        let Some(below) = trimmed.strip_prefix("\\ ") else {
            hub = false;
            let client = client(trimmed, Peer::Nobody)?;
            above = Some(add(&mut clients, client));
            continue;
        };
        if hub {
            // The port's name first; alone, if nothing is plugged into it.
            if let Some((_, member)) = below.split_once(": ").filter(|(_, member)| member.contains(": index=")) {
                add(&mut clients, client(member, Peer::Hub)?);
            }
            continue;
        }
        let above = above.ok_or_else(|| format!("a line that belongs to none: {text:?}"))?;
        let peer = client(below, Peer::Client(clients[above].name.clone()))?;
        clients[above].peer = Peer::Client(peer.name.clone());
        add(&mut clients, peer);
    }
    Ok(clients)
}

/// A NIC with several queues has several lines: it is one.
fn add(clients: &mut Vec<Client>, client: Client) -> usize {
    if let Some(at) = clients.iter().position(|known| known.name == client.name) {
        return at;
    }
    clients.push(client);
    clients.len() - 1
}

fn client(text: &str, peer: Peer) -> Result<Client, String> {
    let read = || {
        let (name, rest) = text.split_once(": index=")?;
        let (_, rest) = rest.split_once(",type=")?;
        let (kind, info) = rest.split_once(',').unwrap_or((rest, ""));
        let path = info.strip_prefix("unix:").filter(|path| !path.is_empty()).map(str::to_owned);
        Some((name.to_owned(), kind.to_owned(), path))
    };
    let (name, kind, path) = read().ok_or_else(|| format!("a line that cannot be read: {text:?}"))?;
    Ok(Client { name, kind, path, peer })
}

/// The paths that QEMU may listen at for a NIC, as QEMU has them.
pub(super) fn socket_paths(clients: &[Client], line: &CommandLine) -> BTreeSet<String> {
    clients.iter().filter_map(|client| listens_at(client, line)).collect()
}

/// Where a stream listens: as the monitor says while it is connected, before that as the command line says. A stream that
/// connects to somebody else's socket listens nowhere.
fn listens_at(client: &Client, line: &CommandLine) -> Option<String> {
    let stream = line.streams.get(&client.name);
    if client.kind != "stream" || stream.is_some_and(|stream| !stream.listens) {
        return None;
    }
    client.path.clone().or_else(|| stream?.path.clone())
}

/// `held`: those of [`socket_paths`] that are sockets of `--nic`.
pub(super) fn outputs(clients: &[Client], line: &CommandLine, held: &BTreeSet<String>) -> Vec<Output> {
    let output = |client: &Client| match (client.kind.as_str(), &client.peer) {
        ("nic", Peer::Nobody) => {
            let class = Class::harmless("no netdev is connected to it: what the guest sends is dropped");
            Some(Output::new("nic", &client.name, class))
        }
        ("nic", _) => None, // judged by its netdev
        (_, Peer::Nobody) => Some(Output::new("netdev", &client.name, Class::harmless("no NIC uses it"))),
        _ => Some(Output::new("netdev", &client.name, class(client, line, held))),
    };
    clients.iter().filter_map(output).collect()
}

fn class(client: &Client, line: &CommandLine, held: &BTreeSet<String>) -> Class {
    if listens_at(client, line).is_some_and(|path| held.contains(&path)) {
        return Class::Held;
    }
    let nic = match &client.peer {
        Peer::Client(nic) => format!("NIC {nic}"),
        _ => "a hub".to_owned(),
    };
    let (kind, stream) = (&client.kind, client.kind == "stream");
    let why = match stream {
        true => format!("{nic} sends through a stream that --nic does not name, so its output is not held"),
        false => format!("{nic} sends through a netdev of type {kind}, which lets everything out at once"),
    };
    let remedy = match stream {
        true => "name the socket that it listens at with --nic SOCKET=TAP",
        false => {
            "connect the NIC to `-netdev stream,id=…,server=on,addr.type=unix,addr.path=SOCKET`, and name that socket with \
             --nic SOCKET=TAP"
        }
    };
    Class::unheld(why, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::collect::captured;

    fn classes(text: &str, line: &CommandLine, held: &[&str]) -> Vec<(String, String, &'static str)> {
        let held = held.iter().map(|path| (*path).to_owned()).collect();
        let outputs = outputs(&parse(text).unwrap(), line, &held);
        outputs.into_iter().map(|output| (output.kind, output.name, output.class.word())).collect()
    }

    #[test]
    fn every_netdev_of_a_real_vm_is_judged() {
        for version in captured::VERSIONS {
            let (captured, line) = (captured::read(version), captured::line(version));
            // Before the gate has connected, QEMU does not say where it listens; then it does.
            for text in ["info network", "connected network"] {
                let text = captured[text].as_str().unwrap();
                assert_eq!(
                    classes(text, &line, &["/run/vm/n0.sock"]),
                    [
                        ("netdev", "n4", "unheld"), // in a hub
                        ("netdev", "n5", "harmless"),
                        ("netdev", "n0", "held"),
                        ("netdev", "n1", "unheld"), // tap
                        ("netdev", "n2", "unheld"), // user
                        ("netdev", "n3", "unheld"), // dgram
                        ("nic", "pcnet.0", "harmless"),
                    ]
                    .map(|(kind, name, class)| (kind.to_owned(), name.to_owned(), class)),
                    "{version}"
                );
                assert!(classes(text, &line, &[]).iter().all(|(_, _, class)| *class != "held"));
            }
        }
    }

    #[test]
    fn a_stream_that_connects_to_another_program_is_not_the_gates() {
        let text =
            "nic0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\n \\ n0: index=0,type=stream,unix:/run/x\n";
        let client = |server: &str| {
            let netdev = format!("stream,id=n0{server},addr.type=unix,addr.path=/run/x");
            CommandLine::parse(&["qemu".into(), "-netdev".into(), netdev])
        };
        assert_eq!(classes(text, &client(",server=on"), &["/run/x"])[0].2, "held");
        assert_eq!(classes(text, &client(",server=off"), &["/run/x"])[0].2, "unheld");
        assert_eq!(classes(text, &client(""), &["/run/x"])[0].2, "unheld");
        // Added while it runs: the command line knows nothing of it.
        assert_eq!(classes(text, &CommandLine::default(), &["/run/x"])[0].2, "held");
        assert_eq!(classes(text, &CommandLine::default(), &["/run/y"])[0].2, "unheld");
    }

    #[test]
    fn queues_are_one_netdev_and_other_texts_are_errors() {
        let text = "nic0: index=0,type=nic,model=virtio-net-pci,macaddr=x\n \\ t0: index=0,type=tap,fd=3\n\
                    nic0: index=1,type=nic,model=virtio-net-pci,macaddr=x\n \\ t0: index=1,type=tap,fd=4\n";
        assert_eq!(parse(text).unwrap().len(), 2);
        assert!(parse("surprise\n").unwrap_err().contains("surprise"));
        assert!(parse(" \\ n0: index=0,type=tap\n").is_err());
        assert_eq!(parse("hub 0\n \\ port\n").unwrap(), []);
    }
}
