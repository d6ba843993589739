//! What strangers send to a control socket: never a panic; whatever is a request is sent by our own client in the same words.

use api::{Head, Routed, Serves, Side, line, look, route};
use mc_core::id::Name;

const LIMIT: usize = 1 << 10;

/// Fails by a panic.
pub fn run(bytes: &[u8]) {
    // More bytes never make a whole head half again.
    if look(bytes, LIMIT, false) == Head::More {
        assert!(matches!(look(bytes, LIMIT, true), Head::Bad(_) | Head::Nobody));
    }
    let (head, body) = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let Ok(head) = std::str::from_utf8(head) else { return };
    let (method, target) = head.split_once(' ').unwrap_or((head, ""));
    let vm = Serves::Vm { vm: Name::new("web").expect("a name"), side: Side::Primary, journal: None };
    for serves in [vm, Serves::Witness] {
        match route(&serves, method, target, body) {
            Ok(Routed::Ask(request)) => {
                let (method, path, body) = line(&request, "web");
                let body = body.map_or(String::new(), |body| body.to_string());
                assert_eq!(route(&serves, method, &path, body.as_bytes()), Ok(Routed::Ask(request)));
            }
            Ok(Routed::Events { limit, .. }) => assert!(limit <= 1000),
            Ok(_) => {}
            Err(problem) => assert!((400..600).contains(&problem.status)),
        }
    }
}
