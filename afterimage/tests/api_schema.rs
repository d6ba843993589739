//! docs/openapi.json and docs/API.md have every route, and every answer is as they say.

use afterimage::{witness::RegisterReport, witness::WitnessReport, witness::WitnessRequest};
use api::{
    ArbiterStatus, ControlSocket, Desk, KeepaliveReport, Kind, OfSide, OutputStatus, Problem, ROUTES, ReplyTo, Request,
    Response, Route, Serves, SettingsReport, Side, Standby, Status, Takeover, WhyNot, done, keepalive::InForce,
    keepalive::Remote, socket_path,
};
use mc_core::{
    histogram::Histogram,
    id::{Generation, Name, Node, NodeId, WitnessId},
    register::{Mode, Owner, Register},
};
use node::{
    keepalive::{Measured, Offer, PathMeasured, PathStats},
    paths::RdmaInfo,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

fn document() -> Value {
    serde_json::from_str(&text("openapi.json")).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// What of JSON Schema the document uses. A field that it does not list is an error here, though readers ignore it.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let known = ["$ref", "type", "description", "properties", "required", "items", "additionalProperties"];
    let known = [&known[..], &["enum", "anyOf", "oneOf", "minimum", "maximum"]].concat();
    let schema = schema.as_object().ok_or(format!("{at}: the schema is no object"))?;
    if let Some(other) = schema.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("{at}: this test does not know {other:?}"));
    }
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = document.pointer(reference.trim_start_matches('#')).ok_or(format!("{at}: no {reference}"))?;
        check(document, target, value, at)?;
    }
    for key in ["anyOf", "oneOf"] {
        let Some(choices) = schema.get(key).and_then(Value::as_array) else { continue };
        let failed: Vec<String> =
            choices.iter().filter_map(|choice| check(document, choice, value, at).err()).collect();
        if failed.len() == choices.len() || (key == "oneOf" && failed.len() + 1 != choices.len()) {
            return Err(format!("{at}: {key}: {}", failed.join("; ")));
        }
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
        return Err(format!("{at}: {value} is none of the values"));
    }
    check_type(schema, value, at)?;
    for (bound, outside) in [("minimum", f64::lt as fn(&f64, &f64) -> bool), ("maximum", f64::gt)] {
        let bound = schema.get(bound).and_then(Value::as_f64);
        if value.as_f64().zip(bound).is_some_and(|(value, bound)| outside(&value, &bound)) {
            return Err(format!("{at}: {value} is out of bounds"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        values.iter().try_for_each(|value| check(document, items, value, &format!("{at}[]")))?;
    }
    check_fields(document, schema, value, at)
}

fn check_type(schema: &serde_json::Map<String, Value>, value: &Value, at: &str) -> Result<(), String> {
    let Some(types) = schema.get("type") else { return Ok(()) };
    let is = |name: &Value| match name.as_str() {
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        _ => false,
    };
    let fits = types.as_array().map_or_else(|| is(types), |types| types.iter().any(is));
    if fits { Ok(()) } else { Err(format!("{at}: {value} is no {types}")) }
}

fn check_fields(
    document: &Value,
    schema: &serde_json::Map<String, Value>,
    value: &Value,
    at: &str,
) -> Result<(), String> {
    let Some(fields) = value.as_object().filter(|_| schema.contains_key("type")) else { return Ok(()) };
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
        return Err(format!("{at}: {missing:?} is missing"));
    }
    for (name, value) in fields {
        let property = schema.get("properties").and_then(|properties| properties.get(name));
        match property.or(schema.get("additionalProperties")) {
            Some(Value::Bool(true)) => {}
            Some(schema) => check(document, schema, value, &format!("{at}.{name}"))?,
            None => return Err(format!("{at}: {name:?} is not in the document")),
        }
    }
    Ok(())
}

// --- Everything that an answer can have ---

/// `side`: with all that only that one has.
fn status(side: OfSide) -> Status {
    Status {
        schema: 2,
        side,
        vm: "web".into(),
        stalled: Some("it stands".into()),
        network: Some("tap0 is gone".into()),
        qemu: Some(7),
        rdma: Some(RdmaInfo::default()),
        beat_paths: vec![PathStats { last_heard_ns: Some(1), ..PathStats::default() }],
        last_ack_age_ms: Some(1),
        beats: api::Beats { last_heard_ago_ms: Some(3), ..Default::default() },
        arbiter: ArbiterStatus { probe_age_ms: Some(9), fault: Some("it forgot".into()), ..ArbiterStatus::default() },
        why_not_protected: Some(WhyNot { next_try_in_ms: Some(1), ..WhyNot::default() }),
        counters: [("stalls".to_owned(), 2)].into(),
        outputs: vec![OutputStatus::default()],
        notes: vec!["a note".into()],
        ..Status::default()
    }
}

fn taken_over() -> OfSide {
    let (qmp, takeover) = (Some("/run/qmp".into()), Some(Takeover::default()));
    OfSide::Standby(Standby { qmp, takeover, ..Standby::default() })
}

fn keepalive() -> KeepaliveReport {
    KeepaliveReport {
        schema: 1,
        up_for_ms: Some(5),
        remote: Remote { advertised: Some(Offer::default()), polling: true },
        in_force: InForce { receive_interval_us: Some(5), ..InForce::default() },
        paths: vec![PathStats::default()],
        config_file: Some("/etc/afterimage.toml".into()),
        warnings: vec!["late".into()],
        ..KeepaliveReport::default()
    }
}

fn measured() -> Measured {
    let mut gap = Histogram::new();
    gap.record(Duration::from_millis(5));
    Measured { interval_us: 5000, gap, paths: vec![PathMeasured::default()], ..Measured::default() }
}

fn witness() -> WitnessReport {
    let owner = Owner { node: Node { name: name("a"), id: NodeId([1; 16]) }, instance: 1 };
    let registers = [Mode::Solo, Mode::Protected { standby: owner }].map(|mode| RegisterReport {
        vm: name("web"),
        register: Some(Register { generation: Generation(3), owner, mode }),
        standing: "settled".into(),
        awaited: vec!["b".into()],
        last_told_ms: Some(7),
    });
    WitnessReport { witness: WitnessId::NONE, probe_age_ms: Some(9), registers: registers.into() }
}

fn answer(request: &Request, full: bool) -> Response {
    match request {
        Request::Status if full => Response::Status(Box::new(status(taken_over()))),
        Request::Status => Response::Status(Box::new(Status { schema: 2, ..Status::default() })),
        Request::Keepalive | Request::KeepaliveSet(_) if full => Response::Keepalive(Box::new(keepalive())),
        Request::Keepalive | Request::KeepaliveSet(_) => Response::Keepalive(Box::default()),
        Request::Set(_) => {
            let config_file = full.then(|| "/etc/afterimage.toml".into());
            Response::Settings(Box::new(SettingsReport { config_file, ..SettingsReport::default() }))
        }
        Request::Measured if full => Response::Measured(Box::new(measured())),
        Request::Measured => Response::Measured(Box::default()),
        Request::Witness(WitnessRequest::List) => Response::Witness(Box::new(witness())),
        request => done(&format!("{request:?}")),
    }
}

fn serve(dir: &Path, serves: Serves, full: bool) -> (ControlSocket, PathBuf) {
    let path = match &serves {
        Serves::Vm { vm, side, .. } => socket_path(dir, *vm, *side),
        Serves::Witness => dir.join("control.sock"),
    };
    let handler = move |request: Request, reply: ReplyTo| reply.give(answer(&request, full));
    (ControlSocket::spawn(&path, Desk::new(serves, Arc::new(handler))).unwrap(), path)
}

/// The status, the content type and the body.
fn ask(path: &Path, route: Route, body: Option<&Value>) -> (u16, String, Value) {
    ask_at(path, route.method, &route.path.replace("{vm}", "web"), body)
}

fn ask_at(path: &Path, method: &str, target: &str, body: Option<&Value>) -> (u16, String, Value) {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(path).unwrap();
    let head = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap().to_owned();
    (status, kind, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}")))
}

#[test]
fn every_answer_is_as_the_document_says() {
    let (document, dir) = (document(), tempfile::tempdir().unwrap());
    let journal = dir.path().join("web.primary.journal");
    fs::write(&journal, "{\"schema\":1,\"event\":\"arbiter-mended\",\"at_ms\":1.5}\n").unwrap();
    for full in [false, true] {
        let vm = Serves::Vm { vm: name("web"), side: Side::Primary, journal: Some(journal.clone()) };
        let (_vm, vm_path) = serve(dir.path(), vm, full);
        let (_witness, witness_path) = serve(dir.path(), Serves::Witness, full);
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            let (at, path) = (format!("{} {}", route.method, route.path), &vm_path);
            let path = if route.path.starts_with("/v1/witness") { &witness_path } else { path };
            let body = operation.get("requestBody").map(|body| &body["content"]["application/json"]);
            if let Some(body) = body {
                check(&document, &body["schema"], &body["example"], &at).unwrap();
            }
            let (status, kind, value) = ask(path, route, body.map(|body| &body["example"]));
            assert_eq!((status, kind.as_str()), (200, "application/json"), "{at}: {value}");
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            check(&document, schema, &value, &at).unwrap();
            // On the other's socket it is a problem.
            let other = if path == &vm_path { &witness_path } else { &vm_path };
            let (status, kind, value) = ask(other, route, None);
            assert_eq!((status, kind.as_str()), (404, "application/problem+json"), "{at}");
            check(&document, &document["components"]["schemas"]["Problem"], &value, &at).unwrap();
        }
    }
}

#[test]
fn the_document_has_the_routes_and_the_problems_and_no_other() {
    let document = document();
    let operations = |(path, item): (&String, &Value)| {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        methods.map(|method| format!("{} {path}", method.to_uppercase())).collect::<Vec<_>>()
    };
    let listed: BTreeSet<String> = document["paths"].as_object().unwrap().iter().flat_map(operations).collect();
    let routes: BTreeSet<String> = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(listed, routes);
    let problem = &document["components"]["schemas"]["Problem"];
    let mut types = BTreeSet::new();
    for kind in Kind::ALL {
        let value = json!(Problem::new(kind, "why").remedy("wait").instance("/v1/vms"));
        check(&document, problem, &value, "a problem").unwrap();
        types.insert(value["type"].as_str().unwrap().to_owned());
    }
    let listed = problem["properties"]["type"]["enum"].as_array().unwrap().iter();
    assert_eq!(listed.map(|v| v.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), types);
    let manual = text("API.md");
    for words in routes.iter().chain(&types) {
        assert!(manual.contains(&format!("`{words}`")), "API.md does not have {words}");
    }
}

/// A slip in a name must not pass for a wish that was left out; and whoever reads the document knows that.
#[test]
fn what_is_asked_has_no_other_fields_than_the_documents() {
    fn closed(document: &Value, schema: &Value, at: &str) -> usize {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return closed(document, document.pointer(reference.trim_start_matches('#')).unwrap(), reference);
        }
        if schema["type"] != "object" {
            return 0;
        }
        assert_eq!(schema["additionalProperties"], false, "{at}");
        let fields = schema["properties"].as_object().unwrap();
        1 + fields.values().map(|field| closed(document, field, at)).sum::<usize>()
    }
    let (document, dir) = (document(), tempfile::tempdir().unwrap());
    let vm = Serves::Vm { vm: name("web"), side: Side::Primary, journal: None };
    let (_vm, vm_path) = serve(dir.path(), vm, false);
    let (_witness, witness_path) = serve(dir.path(), Serves::Witness, false);
    let mut objects = 0;
    for route in ROUTES.iter().filter(|route| route.method == "POST") {
        let path = if route.path.starts_with("/v1/witness") { &witness_path } else { &vm_path };
        let body = &document["paths"][route.path]["post"]["requestBody"]["content"]["application/json"];
        objects += body.get("schema").map_or(0, |schema| closed(&document, schema, route.path));
        let mut example = if body["example"].is_object() { body["example"].clone() } else { json!({}) };
        let mut slips = vec![];
        if let Some(node) = example.get("node").cloned() {
            let mut slip = example.clone();
            slip["node"] = node;
            slip["node"]["idd"] = 1.into();
            slips.push(slip);
        }
        example["slip"] = 1.into();
        slips.push(example);
        for slip in slips {
            let (status, _, value) = ask(path, *route, Some(&slip));
            assert!(status == 400 && value["detail"].as_str().unwrap().contains("unknown field"), "{slip}: {value}");
        }
    }
    assert_eq!(objects, 5, "the four bodies, and the node");
}

/// The problems that the manual shows are those that the program gives.
#[test]
fn the_manuals_problems_are_real() {
    let (manual, dir) = (text("API.md"), tempfile::tempdir().unwrap());
    let vm = Serves::Vm { vm: name("web"), side: Side::Primary, journal: None };
    let (_vm, path) = serve(dir.path(), vm, false);
    let lines: Vec<&str> = manual.lines().collect();
    let shown = lines.windows(2).filter(|pair| pair[1].starts_with("    {\"type\":"));
    let mut seen = 0;
    for pair in shown {
        let target = pair[0].split_once("http://localhost").unwrap().1;
        let (_, _, value) = ask_at(&path, "GET", target, None);
        assert_eq!(value.to_string(), serde_json::from_str::<Value>(pair[1]).unwrap().to_string(), "{}", pair[0]);
        seen += 1;
    }
    assert_eq!(seen, 1);
}

#[test]
fn the_check_finds_what_is_wrong() {
    let document = document();
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let full = json!(status(Side::Primary.into()));
    let with = |name: &str, value: Value| {
        let mut changed = full.clone();
        changed[name] = value;
        check(&document, &schema("Status"), &changed, "status").unwrap_err()
    };
    assert!(with("new", 1.into()).contains("\"new\" is not in the document"));
    assert!(with("epoch", "x".into()).contains("status.epoch"));
    assert!(with("epoch", (-1).into()).contains("out of bounds"));
    assert!(with("rdma", 1.into()).contains("status.rdma"));
    let mut less = full.clone();
    less.as_object_mut().unwrap().remove("role");
    assert!(check(&document, &schema("Status"), &less, "").unwrap_err().contains("\"role\" is missing"));
}
