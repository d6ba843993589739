//! QEMU's own command line (`/proc/PID/cmdline`): what uses which chardev, and where NICs' streams listen. QMP tells
//! neither.
//!
//! Options are `key=value,…` with `,,` for a comma, or JSON.

use serde_json::Value;
use std::collections::BTreeMap;

/// What is known from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CommandLine {
    /// By the chardev's id.
    pub(super) users: BTreeMap<String, Vec<User>>,
    /// `-netdev stream`, by id.
    pub(super) streams: BTreeMap<String, Stream>,
}

/// What uses a chardev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum User {
    Monitor,
    Debugger,
    /// A serial port or the like: `-serial`, `-parallel`, `-debugcon`.
    Console,
    Tpm(String),
    Netdev(String),
    /// Its type, and what the guest calls the port.
    Device {
        kind: String,
        port: String,
    },
    Object(String),
}

/// One `-netdev stream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    /// Of a unix socket.
    pub(super) path: Option<String>,
    pub(super) listens: bool,
}

type Options = BTreeMap<String, String>;

impl CommandLine {
    pub(super) fn parse(arguments: &[String]) -> Self {
        let mut line = Self::default();
        for pair in arguments.windows(2) {
            let Some(option) = pair[0].strip_prefix("--").or(pair[0].strip_prefix('-')) else { continue };
            line.option(option, &pair[1]);
        }
        line
    }

    fn option(&mut self, option: &str, value: &str) {
        let user = match option {
            "serial" | "parallel" | "debugcon" => User::Console,
            "monitor" | "qmp" | "qmp-pretty" => User::Monitor,
            "gdb" => User::Debugger,
            _ => return self.structured(option, &options(value)),
        };
        if let Some(id) = value.strip_prefix("chardev:") {
            self.uses(id, user);
        }
    }

    /// Several may share one.
    fn uses(&mut self, id: &str, user: User) {
        self.users.entry(id.to_owned()).or_default().push(user);
    }

    fn structured(&mut self, option: &str, options: &Options) {
        let get = |key: &str| options.get(key).cloned().unwrap_or_default();
        let user = match option {
            "mon" => {
                // The key may be left out.
                let id = options.get("chardev").unwrap_or(&options[FIRST]);
                return self.uses(id, User::Monitor);
            }
            "device" => User::Device { kind: kind(options, "driver"), port: get("name") },
            "tpmdev" => User::Tpm(get("id")),
            "object" => User::Object(kind(options, "qom-type")),
            "netdev" => {
                self.netdev(options);
                User::Netdev(get("id"))
            }
            _ => return,
        };
        for key in ["chardev", "outdev", "indev"] {
            if let Some(id) = options.get(key) {
                self.uses(id, user.clone());
            }
        }
    }

    fn netdev(&mut self, options: &Options) {
        if kind(options, "type") != "stream" {
            return;
        }
        let listens = options.get("server").is_some_and(|server| matches!(server.as_str(), "on" | "true" | "yes"));
        let path = options.get("addr.path").cloned();
        self.streams.insert(options.get("id").cloned().unwrap_or_default(), Stream { path, listens });
    }
}

/// The key under which [`options`] puts a first value that has none.
const FIRST: &str = "";

fn kind(options: &Options, key: &str) -> String {
    options.get(key).unwrap_or(&options[FIRST]).clone()
}

fn options(text: &str) -> Options {
    let mut found = Options::from([(FIRST.to_owned(), String::new())]);
    if text.starts_with('{') {
        if let Ok(value) = serde_json::from_str(text) {
            flatten("", &value, &mut found);
        }
        return found;
    }
    for (index, part) in split(text).into_iter().enumerate() {
        match part.split_once('=') {
            Some((key, value)) => found.insert(key.to_owned(), value.to_owned()),
            None if index == 0 => found.insert(FIRST.to_owned(), part),
            None => found.insert(part, "on".to_owned()),
        };
    }
    found
}

/// At single commas; two stand for one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.last_mut().expect("one at least");
        match c {
            ',' if chars.next_if_eq(&',').is_some() => last.push(','),
            ',' => parts.push(String::new()),
            c => last.push(c),
        }
    }
    parts
}

fn flatten(prefix: &str, value: &Value, into: &mut Options) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, into);
            }
        }
        Value::String(text) => drop(into.insert(prefix.to_owned(), text.clone())),
        other => drop(into.insert(prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> CommandLine {
        CommandLine::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn says_what_uses_a_chardev() {
        let line = parse(
            "qemu -mon chardev=a,mode=control -mon b -qmp chardev:c -serial chardev:d -gdb chardev:e \
             -device virtserialport,chardev=f,name=org.qemu.guest_agent.0 -tpmdev emulator,id=t,chardev=g \
             -object filter-mirror,id=m,netdev=n0,outdev=h,queue=all -netdev vhost-user,id=v,chardev=i \
             -device {\"driver\":\"isa-serial\",\"chardev\":\"j\",\"index\":0} -serial mon:stdio",
        );
        let device = |kind: &str, port: &str| User::Device { kind: kind.into(), port: port.into() };
        let expected = [
            ("a", User::Monitor),
            ("b", User::Monitor),
            ("c", User::Monitor),
            ("d", User::Console),
            ("e", User::Debugger),
            ("f", device("virtserialport", "org.qemu.guest_agent.0")),
            ("g", User::Tpm("t".into())),
            ("h", User::Object("filter-mirror".into())),
            ("i", User::Netdev("v".into())),
            ("j", device("isa-serial", "")),
        ];
        assert_eq!(line.users, expected.map(|(id, user)| (id.to_owned(), vec![user])).into());
    }

    #[test]
    fn says_where_streams_listen() {
        let stream = |path: Option<&str>, listens| Stream { path: path.map(str::to_owned), listens };
        let line = parse(
            "qemu -netdev stream,id=a,server=on,addr.type=unix,addr.path=/run/a,,b --netdev stream,id=b,addr.type=unix,addr.path=x \
             -netdev {\"type\":\"stream\",\"id\":\"c\",\"server\":true,\"addr\":{\"type\":\"unix\",\"path\":\"/run/c\"}} \
             -netdev stream,id=d,server=on,addr.type=inet,addr.host=::1,addr.port=7 -netdev user,id=e",
        );
        let expected = [
            ("a", stream(Some("/run/a,b"), true)),
            ("b", stream(Some("x"), false)),
            ("c", stream(Some("/run/c"), true)),
            ("d", stream(None, true)),
        ];
        assert_eq!(line.streams, expected.map(|(id, stream)| (id.to_owned(), stream)).into());
    }

    #[test]
    fn whatever_it_reads_is_no_panic() {
        for text in ["", "-", "-device", "qemu -device {", "qemu -device ,", "qemu -mon =", "qemu -netdev stream"] {
            parse(text);
        }
    }
}
