//! Which request a method, a path, a query and a body are; and the way back, for this program's own questions.

use crate::{
    body::read,
    desk::Serves,
    keepalive::Wanted,
    problem::{Kind, Problem},
    request::Request,
    settings::Settings,
};
use mc_core::id::Name;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use witness::{NodeSpec, WitnessRequest};

/// Events that are answered unless `limit` says how many, and at most.
const EVENTS: (usize, usize) = (100, 1000);

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// "GET" or "POST".
    pub method: &'static str,
    /// Its path; `{vm}` stands for the name of a VM.
    pub path: &'static str,
    to: To,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Vms,
    Status,
    Events,
    Keepalive,
    KeepaliveSet,
    Measured,
    Settings,
    Set,
    Takeover,
    Solo,
    Unprotect,
    Protect,
    Handover,
    MakeWay,
    Export,
    Witness,
    Assign,
    Forget,
}

const fn get(path: &'static str, to: To) -> Route {
    Route { method: "GET", path, to }
}

const fn post(path: &'static str, to: To) -> Route {
    Route { method: "POST", path, to }
}

/// Every route. docs/API.md says what each is for.
pub const ROUTES: [Route; 18] = [
    get("/v1/vms", To::Vms),
    get("/v1/vms/{vm}", To::Status),
    get("/v1/vms/{vm}/events", To::Events),
    get("/v1/vms/{vm}/keepalive", To::Keepalive),
    post("/v1/vms/{vm}/keepalive", To::KeepaliveSet),
    get("/v1/vms/{vm}/keepalive/measured", To::Measured),
    get("/v1/vms/{vm}/settings", To::Settings),
    post("/v1/vms/{vm}/settings", To::Set),
    post("/v1/vms/{vm}/takeover", To::Takeover),
    post("/v1/vms/{vm}/solo", To::Solo),
    post("/v1/vms/{vm}/unprotect", To::Unprotect),
    post("/v1/vms/{vm}/protect", To::Protect),
    post("/v1/vms/{vm}/handover", To::Handover),
    post("/v1/vms/{vm}/make-way", To::MakeWay),
    post("/v1/vms/{vm}/export", To::Export),
    get("/v1/witness", To::Witness),
    post("/v1/witness/vms/{vm}/assign", To::Assign),
    post("/v1/witness/vms/{vm}/forget", To::Forget),
];

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Routed {
    /// Ask the loop.
    Ask(Request),
    /// Ask the loop for its status, and answer with a list of VMs.
    Vms,
    /// Answer with the newest events.
    Events {
        /// At most so many.
        limit: usize,
        /// None before that, ms since 1970.
        since_ms: u64,
    },
}

/// To where an image is exported.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportTo {
    dir: PathBuf,
}

/// Whose a VM is from now on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AssignTo {
    node: NodeSpec,
}

/// A request without parameters.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What is asked. `target` is the path with its query; `serves`, what stands behind the socket.
///
/// # Errors
/// It is no request of this API, or not of this socket.
pub fn route(serves: &Serves, method: &str, target: &str, body: &[u8]) -> Result<Routed, Problem> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    find(serves, method, path, query, body).map_err(|problem| problem.instance(path))
}

fn find(serves: &Serves, method: &str, path: &str, query: &str, body: &[u8]) -> Result<Routed, Problem> {
    let here: Vec<(&Route, &str)> =
        ROUTES.iter().filter_map(|route| Some((route, matches(route.path, path)?))).collect();
    let Some((_, vm)) = here.first() else { return Err(unknown(serves, path)) };
    let vm = named(serves, path, vm)?;
    // HEAD is GET whose answer has no body.
    let method = if method == "HEAD" { "GET" } else { method };
    let Some((route, _)) = here.iter().find(|(route, _)| route.method == method) else {
        let methods = allowed(path).join(" and ");
        return Err(Problem::new(Kind::MethodNotAllowed, format!("{path} has {methods}")));
    };
    if route.to != To::Events && !query.is_empty() {
        return Err(bad(format!("{path} takes no parameters in its query")));
    }
    request(route.to, vm, query, body)
}

/// What stands for `{vm}` in `path`, if it is of that pattern; empty if nothing does.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let Some((before, after)) = pattern.split_once("{vm}") else { return (pattern == path).then_some("") };
    let vm = path.strip_prefix(before)?.strip_suffix(after)?;
    (!vm.is_empty() && !vm.contains('/')).then_some(vm)
}

/// The methods that a path has.
pub(crate) fn allowed(path: &str) -> Vec<&'static str> {
    ROUTES.iter().filter(|route| matches(route.path, path).is_some()).map(|route| route.method).collect()
}

fn unknown(serves: &Serves, path: &str) -> Problem {
    let detail = match path.strip_prefix("/v").and_then(|rest| rest.split('/').next()?.parse::<u32>().ok()) {
        Some(version) if version != 1 => format!("version {version} of the API is not known here, only version 1"),
        _ => format!("nothing is at {path}"),
    };
    Problem::new(Kind::NotFound, detail).remedy(listed(serves))
}

/// Where to begin at this socket.
fn listed(serves: &Serves) -> &'static str {
    match serves {
        Serves::Witness => "GET /v1/witness lists what is kept here; docs/API.md lists every route",
        Serves::Vm { .. } => "GET /v1/vms lists what is served here; docs/API.md lists every route",
    }
}

/// A name as one segment of a path (RFC 3986, 2.1): names may have spaces, and letters of any language.
pub(crate) fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The name that a segment stands for.
fn decoded(segment: &str) -> Option<String> {
    let mut parts = segment.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2).filter(|hex| !hex.starts_with('+'))?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// The VM, if it is served here.
fn named(serves: &Serves, path: &str, vm: &str) -> Result<Option<Name>, Problem> {
    let vm = &decoded(vm).ok_or_else(|| bad(format!("{path}: the name of the VM is not percent-encoded UTF-8")))?;
    let of_witness = path.starts_with("/v1/witness");
    let elsewhere = |what: String| Problem::new(Kind::NotFound, what).remedy(listed(serves));
    match serves {
        Serves::Witness if !of_witness => {
            Err(elsewhere(format!("this is a witness; ask `protect` or `standby` for {path}")))
        }
        Serves::Vm { side, .. } if of_witness => {
            Err(elsewhere(format!("this is the {}; ask the witness for {path}", side.as_str())))
        }
        _ if vm.is_empty() => Ok(None),
        Serves::Witness => vm.parse().map(Some).map_err(bad),
        Serves::Vm { vm: here, .. } if here.as_str() == vm => Ok(Some(*here)),
        Serves::Vm { vm: here, .. } => Err(elsewhere(format!("this socket is of the VM {here}"))),
    }
}

fn bad(why: impl std::fmt::Display) -> Problem {
    Problem::new(Kind::BadRequest, why)
}

fn request(to: To, vm: Option<Name>, query: &str, body: &[u8]) -> Result<Routed, Problem> {
    let plain = |request: Request| nothing(body).map(|()| Routed::Ask(request));
    let witness = |request: WitnessRequest| Routed::Ask(Request::Witness(request));
    let vm = || vm.ok_or_else(|| bad("no VM is named"));
    match to {
        To::Vms => nothing(body).map(|()| Routed::Vms),
        To::Events => nothing(body).and_then(|()| events(query)),
        To::Status => plain(Request::Status),
        To::Keepalive => plain(Request::Keepalive),
        To::Measured => plain(Request::Measured),
        To::Settings => plain(Request::Set(Settings::default())),
        To::Takeover => plain(Request::Takeover),
        To::Solo => plain(Request::Solo),
        To::Unprotect => plain(Request::Unprotect),
        To::Protect => plain(Request::Protect),
        To::Handover => plain(Request::Handover),
        To::MakeWay => plain(Request::MakeWay),
        To::KeepaliveSet => {
            let wanted: Wanted = read(body).map_err(bad)?;
            if wanted.changes_nothing() {
                return Err(bad("nothing is to be changed: give interval_us, min_rx_us or multiplier"));
            }
            Ok(Routed::Ask(Request::KeepaliveSet(wanted)))
        }
        To::Set => {
            let settings: Settings = read(body).map_err(bad)?;
            if settings == Settings::default() {
                return Err(bad("nothing is to be changed: give epoch_us, max_staging_bytes or on_cap"));
            }
            settings.bounds().map_err(bad)?;
            Ok(Routed::Ask(Request::Set(settings)))
        }
        To::Export => {
            let ExportTo { dir } = read(body).map_err(bad)?;
            if !dir.is_absolute() {
                return Err(bad(format!("dir: {}: an absolute path is needed", dir.display())));
            }
            Ok(Routed::Ask(Request::Export { dir }))
        }
        To::Witness => nothing(body).map(|()| witness(WitnessRequest::List)),
        To::Assign => {
            let AssignTo { node } = read(body).map_err(bad)?;
            Ok(witness(WitnessRequest::Assign { vm: vm()?, node }))
        }
        To::Forget => nothing(body).and_then(|()| Ok(witness(WitnessRequest::Forget { vm: vm()? }))),
    }
}

/// No body, or an empty object.
fn nothing(body: &[u8]) -> Result<(), Problem> {
    if body.is_empty() { Ok(()) } else { read::<Nothing>(body).map(drop).map_err(bad) }
}

fn events(query: &str) -> Result<Routed, Problem> {
    let (mut limit, mut since_ms) = (EVENTS.0, 0);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = value.parse::<u64>().map_err(|_| bad(format!("{key}={value}: a whole number is needed")))?;
        match key {
            "limit" => limit = usize::try_from(number).unwrap_or(EVENTS.1).min(EVENTS.1),
            "since_ms" => since_ms = number,
            _ => return Err(bad(format!("the parameter {key:?} is not known; limit and since_ms are"))),
        }
    }
    Ok(Routed::Events { limit, since_ms })
}

/// How a request is asked of the process that serves `vm`: method, path and body. The way back is [`route`].
#[must_use]
pub fn line(request: &Request, vm: &str) -> (&'static str, String, Option<Value>) {
    let (to, vm, body) = match request {
        Request::Status => (To::Status, vm.to_owned(), None),
        Request::Takeover => (To::Takeover, vm.to_owned(), None),
        Request::Solo => (To::Solo, vm.to_owned(), None),
        Request::Unprotect => (To::Unprotect, vm.to_owned(), None),
        Request::Protect => (To::Protect, vm.to_owned(), None),
        Request::Handover => (To::Handover, vm.to_owned(), None),
        Request::MakeWay => (To::MakeWay, vm.to_owned(), None),
        Request::Keepalive => (To::Keepalive, vm.to_owned(), None),
        Request::Measured => (To::Measured, vm.to_owned(), None),
        Request::KeepaliveSet(wanted) => (To::KeepaliveSet, vm.to_owned(), Some(json!(wanted))),
        Request::Set(settings) if *settings == Settings::default() => (To::Settings, vm.to_owned(), None),
        Request::Set(settings) => (To::Set, vm.to_owned(), Some(json!(settings))),
        Request::Export { dir } => (To::Export, vm.to_owned(), Some(json!(ExportTo { dir: dir.clone() }))),
        Request::Witness(WitnessRequest::List) => (To::Witness, String::new(), None),
        Request::Witness(WitnessRequest::Assign { vm, node }) => {
            (To::Assign, vm.to_string(), Some(json!(AssignTo { node: *node })))
        }
        Request::Witness(WitnessRequest::Forget { vm }) => (To::Forget, vm.to_string(), None),
    };
    let route = ROUTES.iter().find(|route| route.to == to);
    let (method, path) = route.map_or(("GET", "/"), |route| (route.method, route.path));
    (method, path.replace("{vm}", &encoded(&vm)), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::id::NodeId;
    use node::events::Side;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn vm() -> Serves {
        Serves::Vm { vm: name("web"), side: Side::Primary, journal: None }
    }

    fn ask(method: &str, target: &str, body: &str) -> Result<Routed, Problem> {
        route(&vm(), method, target, body.as_bytes())
    }

    #[test]
    fn names_of_any_letters_are_segments_of_a_path() {
        for text in ["web", "a b", "a<b", "a?b#c", "é", "100%", "%2F"] {
            let (method, path, _) = line(&Request::Status, text);
            let serves = Serves::Vm { vm: name(text), side: Side::Primary, journal: None };
            assert_eq!(route(&serves, method, &path, b""), Ok(Routed::Ask(Request::Status)), "{path}");
        }
        for path in ["/v1/vms/a%", "/v1/vms/a%+1", "/v1/vms/%zz", "/v1/vms/%FF"] {
            assert_eq!(ask("GET", path, "").unwrap_err().status, 400, "{path}");
        }
    }

    #[test]
    fn every_request_has_a_route_and_comes_back_the_same() {
        let node = NodeSpec { name: name("a"), id: Some(NodeId([7; 16])) };
        let vm_requests = [
            Request::Status,
            Request::Takeover,
            Request::Solo,
            Request::Unprotect,
            Request::Keepalive,
            Request::KeepaliveSet(Wanted { interval_us: Some(5000), force: true, ..Wanted::default() }),
            Request::Set(Settings::default()),
            Request::Set(Settings { epoch_us: Some(9000), ..Settings::default() }),
            Request::Handover,
            Request::MakeWay,
            Request::Protect,
            Request::Measured,
            Request::Export { dir: "/tmp/a b".into() },
        ];
        let of_witness = [
            WitnessRequest::List,
            WitnessRequest::Assign { vm: name("db.1"), node },
            WitnessRequest::Assign { vm: name("db.1"), node: NodeSpec { id: None, ..node } },
            WitnessRequest::Forget { vm: name("db.1") },
        ];
        let of_witness = of_witness.map(|request| (Serves::Witness, Request::Witness(request)));
        for (serves, request) in vm_requests.map(|request| (vm(), request)).into_iter().chain(of_witness) {
            let (method, path, body) = line(&request, "web");
            let body = body.map_or(String::new(), |body| body.to_string());
            assert_eq!(route(&serves, method, &path, body.as_bytes()), Ok(Routed::Ask(request)), "{method} {path}");
        }
    }

    #[test]
    fn no_two_routes_are_the_same() {
        for (index, route) in ROUTES.iter().enumerate() {
            let same = |other: &&Route| (other.method, other.path) == (route.method, route.path);
            assert_eq!(ROUTES.iter().position(|other| same(&other)), Some(index), "{route:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_named() {
        let long = format!("/v1/vms/{}", "x".repeat(1000));
        let cases: &[(&str, &str, &str, Kind, &str)] = &[
            ("GET", "/", "", Kind::NotFound, "nothing is at /"),
            ("GET", "/v2/vms", "", Kind::NotFound, "version 2 of the API is not known here"),
            ("GET", "/v1/vms/db", "", Kind::NotFound, "this socket is of the VM web"),
            ("GET", &long, "", Kind::NotFound, "this socket is of the VM web"),
            ("GET", "/v1/vms/web/", "", Kind::NotFound, "nothing is at"),
            ("GET", "/v1/vms//keepalive", "", Kind::NotFound, "nothing is at"),
            ("GET", "/v1/vms/../vms/web", "", Kind::NotFound, "nothing is at"),
            ("GET", "/v1/witness", "", Kind::NotFound, "this is the primary; ask the witness for /v1/witness"),
            ("POST", "/v1/vms", "", Kind::MethodNotAllowed, "/v1/vms has GET"),
            ("DELETE", "/v1/vms/web/keepalive", "", Kind::MethodNotAllowed, "has GET and POST"),
            ("GET", "/v1/vms/web/takeover", "", Kind::MethodNotAllowed, "has POST"),
            ("GET", "/v1/vms/web?x=1", "", Kind::BadRequest, "takes no parameters"),
            ("POST", "/v1/vms/web/settings", "", Kind::BadRequest, "not JSON"),
            ("POST", "/v1/vms/web/settings", "[]", Kind::BadRequest, "not a JSON object"),
            (
                "POST",
                "/v1/vms/web/settings",
                "{\"epok\":5}",
                Kind::BadRequest,
                "unknown field `epok`, expected one of `epoch_us`",
            ),
            (
                "POST",
                "/v1/vms/web/settings",
                "{\"epoch_us\":-5}",
                Kind::BadRequest,
                "epoch_us: invalid value: integer `-5`",
            ),
            ("POST", "/v1/vms/web/settings", "{\"epoch_us\":5}", Kind::BadRequest, "expected 1ms to 60s"),
            (
                "POST",
                "/v1/vms/web/settings",
                "{\"epoch_us\":9000,\"epoch_us\":8000}",
                Kind::BadRequest,
                "duplicate field",
            ),
            ("POST", "/v1/vms/web/keepalive", "{\"force\":true,\"force\":false}", Kind::BadRequest, "duplicate field"),
            ("POST", "/v1/vms/web/export", "{\"dir\":\"/a\",\"dir\":\"/b\"}", Kind::BadRequest, "duplicate field"),
            ("POST", "/v1/vms/web/takeover", "{\"force\":true}", Kind::BadRequest, "unknown field `force`"),
            ("POST", "/v1/vms/web/export", "{\"dir\":\"tmp\"}", Kind::BadRequest, "absolute"),
            ("GET", "/v1/vms/web/events?limit=x", "", Kind::BadRequest, "limit=x"),
            ("GET", "/v1/vms/web/events?last=1", "", Kind::BadRequest, "\"last\""),
        ];
        for (method, target, body, kind, words) in cases {
            let problem = ask(method, target, body).unwrap_err();
            assert!(problem.is(*kind) && problem.detail.contains(words), "{method} {target} {body}: {problem:?}");
            assert!(target.starts_with(&problem.instance), "{problem:?}");
        }
        let problem = route(&Serves::Witness, "GET", "/v1/vms", b"").unwrap_err();
        assert!(problem.is(Kind::NotFound) && problem.detail.contains("this is a witness"), "{problem:?}");
        assert!(problem.remedy.unwrap().starts_with("GET /v1/witness "));
        assert!(ask("GET", "/v1/vm", "").unwrap_err().remedy.unwrap().starts_with("GET /v1/vms "));
    }

    #[test]
    fn a_field_that_is_wrong_is_named_without_the_words_of_a_programming_language() {
        let why = |path: &str, body: &str| {
            let serves = if path.starts_with("/v1/witness") { Serves::Witness } else { vm() };
            route(&serves, "POST", path, body.as_bytes()).unwrap_err().detail
        };
        let (keepalive, settings) = ("/v1/vms/web/keepalive", "/v1/vms/web/settings");
        let (export, assign) = ("/v1/vms/web/export", "/v1/witness/vms/web/assign");
        for (path, body, words) in [
            (keepalive, "{}", "give interval_us, min_rx_us or multiplier"),
            (keepalive, "{\"force\":true}", "nothing is to be changed"),
            (
                keepalive,
                "{\"multiplier\":300}",
                "multiplier: invalid value: integer `300`, expected a number from 0 to 255",
            ),
            (
                keepalive,
                "{\"interval_us\":\"5\"}",
                "interval_us: invalid type: string \"5\", expected a whole number, 0 or more",
            ),
            (keepalive, "{\"interval_us\":{}}", "interval_us: invalid type: an object, expected a whole number"),
            (keepalive, "{\"this_side\":1}", "this_side: invalid type: integer `1`, expected true or false"),
            (settings, "{}", "give epoch_us, max_staging_bytes or on_cap"),
            (
                settings,
                "{\"max_staging_bytes\":1}",
                "max_staging_bytes: 1 byte is out of range: expected 512KiB to 1024GiB",
            ),
            (settings, "{\"max_staging_bytes\":1025}", "max_staging_bytes: 1025 bytes is out of range"),
            (settings, "{\"on_cap\":\"hold\"}", "on_cap: invalid policy for full staging"),
            (export, "{\"dir\":[]}", "dir: invalid type: an array, expected a path"),
            (export, "{}", "missing field `dir`"),
            (export, "{\"dir\":\"/a\",\"to\":1}", "unknown field `to`, expected `dir`"),
            (assign, "{\"node\":{\"name\":\"a\",\"idd\":1}}", "node: unknown field `idd`, expected `name` or `id`"),
            (assign, "{\"node\":\"a\"}", "node: invalid type: string \"a\", expected an object with `name`, and `id`"),
            (assign, "{\"node\":{\"name\":\"a\",\"id\":\"12\"}}", "32 hexadecimal digits"),
            (assign, "{\"node\":{\"name\":\"a\"},\"vm\":\"b\"}", "unknown field `vm`, expected `node`"),
        ] {
            let said = why(path, body);
            assert!(said.contains(words), "{body}: {said}");
        }
    }

    #[test]
    fn events_are_bounded() {
        let events = |query: &str| ask("GET", &format!("/v1/vms/web/events{query}"), "");
        assert_eq!(events(""), Ok(Routed::Events { limit: 100, since_ms: 0 }));
        assert_eq!(events("?since_ms=7&limit=3"), Ok(Routed::Events { limit: 3, since_ms: 7 }));
        assert_eq!(events("?limit=99999999999"), Ok(Routed::Events { limit: 1000, since_ms: 0 }));
        assert_eq!(ask("HEAD", "/v1/vms", "{}"), Ok(Routed::Vms));
    }
}
