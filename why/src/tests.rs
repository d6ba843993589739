//! Stories from journals as the processes write them.

use super::{Kind, Report, facts::Output, look, text::render};
use mc_core::id::{Epoch, Name};
use node::events::Outcome;
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Adds all fields of `more`.
fn with(mut fields: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

/// How a side stands: `epochs`, and packets held, let out, dropped.
fn stands(event: Value, epochs: &Value, [held, released, dropped]: [u64; 3]) -> Value {
    let output = json!({ "held": held, "held_bytes": 0, "released": released, "dropped": dropped });
    let arbiter = json!({ "spec": "manual", "reachable": true });
    with(event, json!({ "role": "claiming", "epochs": epochs, "output": output, "arbiter": arbiter }))
}

fn standby_stands(event: Value) -> Value {
    let epochs = json!({ "generation": 2, "committed": 54, "last_commit_ago_ms": 60.0 });
    with(stands(event, &epochs, [2, 10, 0]), json!({ "registered": true, "revoked_ago_ms": 0.3 }))
}

fn journal(dir: &Path, side: &str, events: &[Value]) {
    let (side, file) = (side.trim_end_matches(".roles"), side);
    let process = if side == "primary" { "data-path" } else { side };
    let common = json!({ "schema": 1, "vm": "web", "side": side, "node": "host-b", "process": process, "pid": 7 });
    let whole = |event: &Value| with(common.clone(), event.clone()).to_string() + "\n";
    let text: String = events.iter().map(whole).collect();
    fs::write(dir.join(format!("web.{file}.journal")), text).unwrap();
}

fn told(dir: &Path) -> Report {
    look(dir, Some(Name::new("web").unwrap()), None, None).unwrap()
}

fn register(generation: u64, node: &str, mode: &Value) -> Value {
    json!({ "generation": generation, "owner": owner(node), "mode": mode })
}

fn owner(node: &str) -> Value {
    json!({ "node": host(node), "instance": 9 })
}

fn host(name: &str) -> Value {
    json!({ "name": name, "id": "0b".repeat(16) })
}

fn suspect(at_ms: f64) -> Value {
    let paths = json!([{ "name": "ud", "ago_ms": null, "heard": 0 }, { "name": "udp", "ago_ms": 50.9, "heard": 12 }]);
    let own_late = json!({ "times": 1, "max_ms": 3.5 });
    standby_stands(json!({ "event": "suspect", "at_ms": at_ms, "why": "missed beats", "silent_ms": 51.0, "missed": 5,
        "interval_ms": 8.0, "detection_ms": 50.0, "paths": paths, "own_late": own_late }))
}

fn syncing() -> Value {
    json!({ "event": "syncing", "at_ms": 1.0, "primary": host("host-a"), "peer_beats": { "interval_ms": 10.0, "multiplier": 5 } })
}

fn started(at_ms: f64) -> Value {
    let beats = json!({ "interval_ms": 10.0, "multiplier": 5 });
    json!({ "event": "started", "at_ms": at_ms, "version": "0.1.0", "arbiter": "manual", "beats": beats })
}

fn fell_back(at_ms: f64) -> Value {
    json!({ "event": "fell-back", "at_ms": at_ms, "from": "rdma", "to": "tcp", "why": "retries exceeded", "fallbacks": 1 })
}

/// A takeover, begun at `at_ms`.
fn takeover(at_ms: f64) -> [Value; 4] {
    let won = register(3, "host-b", &json!("solo"));
    let since_suspicion = json!({ "silence_us": 51_000, "revoked_us": 400, "won_us": 3600, "running_us": 9500 });
    [
        suspect(at_ms),
        standby_stands(json!({ "event": "asking", "at_ms": at_ms + 0.7, "expect": 2, "new": won, "contested": true })),
        json!({ "event": "cas", "at_ms": at_ms + 3.6, "outcome": "won", "register": won, "took_ms": 2.9 }),
        json!({ "event": "running", "at_ms": at_ms + 9.5, "epoch": 54, "generation": 3, "since_suspicion": since_suspicion }),
    ]
}

#[test]
fn the_keeper_is_told_after_the_takeover_that_it_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = vec![syncing()];
    events.extend(takeover(1000.0));
    events.insert(
        2,
        json!({ "event": "keeper-started", "at_ms": 1000.2, "keeper": 7, "generation": 3, "handed_over": false }),
    );
    journal(dir.path(), "standby", &events);
    let text = render(&told(dir.path()));
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words}: {text}"));
    assert!(
        at("was silent for") < at("The VM runs here") && at("The VM runs here") < at("A keeper was started"),
        "{text}"
    );
}

#[test]
fn a_takeover_is_told_with_its_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = vec![syncing()];
    events.extend(takeover(1000.0));
    journal(dir.path(), "standby", &events);
    let report = told(dir.path());
    let [told] = &report.incidents[..] else { panic!("{report:?}") };
    assert_eq!((told.kind, told.began_ms, told.ended_ms), (Kind::TookOver, 1000.0, Some(1009.5)));
    assert_eq!((told.facts.peer.as_deref(), told.facts.from_epoch), (Some("host-a"), Some(Epoch(54))));
    let swap = told.facts.swap.as_ref().unwrap();
    assert_eq!((swap.outcome, swap.took_ms), (Some(Outcome::Won), Some(2.9)));
    let text = render(&report);
    for words in [
        "1970-01-01 00:00:01.000Z  web on host-b (standby): took the VM over\n",
        "host-a was silent for 51.0 ms, 5 beats overdue; 50.0 ms are allowed (it beats every 8.0 ms).",
        "heard last never by ud, 50.9 ms before by udp.",
        "late by 3.5 ms at most, which is discounted",
        "access to its memory had ended 0.4 ms after the suspicion",
        "generation 2 into generation 3 (host-b, alone): won after 2.9 ms",
        "from epoch 54, the last one committed, 9.5 ms after the suspicion",
        "+9.5 ms  standby     running  epoch=54",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(&words), "{words:?} is not in: {text}");
    }
}

#[test]
fn a_fenced_primary_tells_who_won_and_what_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let protected = register(2, "host-a", &json!({ "protected": { "standby": owner("host-b") } }));
    let epochs = json!({ "captured": 56, "acked": 54, "last_ack_ago_ms": 60.0 });
    let fenced = stands(json!({ "event": "fenced", "at_ms": 1003.0 }), &epochs, [0, 10, 3]);
    journal(
        dir.path(),
        "primary",
        &[
            json!({ "event": "cas", "at_ms": 2.0, "outcome": "won", "register": protected }),
            json!({ "event": "stalled", "at_ms": 990.0, "away_ms": 1065.5 }),
            suspect(1000.0),
            json!({ "event": "asking", "at_ms": 1001.0, "expect": 2, "new": register(3, "host-a", &json!("solo")), "contested": true }),
            json!({ "event": "cas", "at_ms": 1002.0, "outcome": "lost", "register": register(3, "host-b", &json!("solo")), "took_ms": 1.0 }),
            fenced,
            json!({ "event": "exit", "at_ms": 1004.0, "code": 4, "why": "another node owns the VM now" }),
        ],
    );
    let report = told(dir.path());
    let [told] = &report.incidents[..] else { panic!("{report:?}") };
    assert_eq!((told.kind, told.facts.stalled_ms), (Kind::Fenced, Some(1065.5)));
    assert_eq!(told.facts.output, Some(Output { dropped: 3, held: 2, released: 0 }));
    let story = told.story.join(" ");
    for words in [
        "this process had been away for 1065.5 ms",
        "generation 2 (host-a, protected by host-b) into generation 3 (host-a, alone): lost after 1.0 ms",
        "the register holds generation 3 (host-b, alone)",
        "3 packets that nobody had ACKed were dropped. Epoch 54 was the last ACKed one, 56 the last captured.",
        "exit code 4: another node owns the VM now.",
    ] {
        assert!(story.contains(words), "{words:?} is not in: {story}");
    }
}

#[test]
fn a_standby_that_lost_and_keeps_its_copy_has_an_end_of_its_story() {
    let held = register(3, "host-a", &json!("solo"));
    let asked = json!({ "event": "asking", "at_ms": 1001.0, "expect": 2, "new": register(3, "host-b", &json!("solo")), "contested": true });
    let refused = json!({ "event": "cas", "at_ms": 1002.0, "outcome": "lost", "register": held, "took_ms": 1.0 });
    let lost = standby_stands(json!({ "event": "lost", "at_ms": 1003.0, "register": held }));
    let waiting = json!({ "event": "waiting", "at_ms": 1003.1, "listen": "[::1]:7100", "keeps_lost_copy": true });
    for (asking, kind, words) in [
        (vec![asked, refused], Kind::LostSwap, "lost after 1.0 ms; the register holds generation 3 (host-a, alone)"),
        (vec![], Kind::Lost, "The register held generation 3 (host-a, alone)."),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut events = vec![syncing(), suspect(1000.0)];
        events.extend(asking);
        events.extend([lost.clone(), waiting.clone()]);
        journal(dir.path(), "standby", &events);
        let report = told(dir.path());
        let [told] = &report.incidents[..] else { panic!("{report:?}") };
        assert_eq!((told.kind, told.ended_ms), (kind, Some(1003.0)));
        let story = told.story.join(" ");
        for words in [words, "keeps its copy until a new session needs the room", "It had committed epoch 54."] {
            assert!(story.contains(words), "{words:?} is not in: {story}");
        }
    }
}

#[test]
fn a_primary_that_asked_for_nothing_tells_what_it_read() {
    let dir = tempfile::tempdir().unwrap();
    let held = register(3, "host-b", &json!("solo"));
    let yielding = json!({ "event": "yielding", "at_ms": 1001.0, "expect": 2, "why": "was stopped by a signal" });
    let older = json!({ "event": "register", "at_ms": 1001.5, "register": register(2, "host-a", &json!("solo")) });
    let fenced = json!({ "event": "fenced", "at_ms": 1002.0, "register": held });
    let exit = json!({ "event": "exit", "at_ms": 1003.0, "code": 4, "why": null });
    journal(dir.path(), "primary", &[suspect(1000.0), yielding, older, fenced, exit]);
    let report = told(dir.path());
    let [told] = &report.incidents[..] else { panic!("{report:?}") };
    assert_eq!((told.kind, json!(told.facts.read)), (Kind::Fenced, held));
    let story = told.story.join(" ");
    assert!(story.contains("The register held generation 3 (host-b, alone)."), "{story}");
}

#[test]
fn incidents_are_told_apart_and_the_last_or_newest_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = vec![syncing()];
    events.push(json!({ "event": "arbiter-unreachable", "at_ms": 100.0, "why": "refused" }));
    events.push(json!({ "event": "arbiter-reachable", "at_ms": 350.0 }));
    events.push(fell_back(400.0));
    events.extend(takeover(1000.0));
    events.push(started(2000.0));
    events.push(json!({ "event": "refused", "at_ms": 9000.0, "primary": host("host-c"), "why": "slabs too large" }));
    events.push(suspect(20_000.0));
    journal(dir.path(), "standby", &events);
    let report = told(dir.path());
    let kinds: Vec<Kind> = report.incidents.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::ArbiterLost, Kind::FellBack, Kind::TookOver, Kind::Refused, Kind::Open]);
    assert!(report.incidents[0].story.join(" ").contains("answered again 250.0 ms later"));
    assert!(report.incidents[4].ended_ms.is_none());
    let some = |since, last| look(dir.path(), None, since, last).unwrap().incidents.len();
    assert_eq!(
        (some(None, Some(2)), some(Some(1000.0), None), some(Some(1e6), None), some(None, Some(9))),
        (2, 3, 0, 5)
    );
}

/// As of a boot: what `events` says of the wall clock is off by so much, as after a step.
fn in_boot(boot: &str, step_ms: f64, events: &[Value]) -> Vec<Value> {
    let of = |event: &Value| {
        let at_ms = event["at_ms"].as_f64().unwrap();
        with(event.clone(), json!({ "boot": boot, "boot_ms": at_ms, "at_ms": at_ms + step_ms }))
    };
    events.iter().map(of).collect()
}

#[test]
fn a_clock_that_is_set_back_does_not_turn_stories_round() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = in_boot("one", 9e6, &takeover(1000.0));
    events.extend(in_boot("one", 0.0, &[started(50_000.0)]));
    // The wall clock is behind by hours now, and in the next boot by a little more.
    events.extend(in_boot("one", 0.0, &[fell_back(60_000.0)]));
    events.extend(in_boot("two", -500.0, &[vec![started(700.0)], vec![suspect(900.0)]].concat()));
    journal(dir.path(), "standby", &events);
    journal(dir.path(), "primary", &in_boot("two", 5e6, &[fell_back(800.0)]));
    let report = told(dir.path());
    let kinds: Vec<(Kind, &str)> = report.incidents.iter().map(|t| (t.kind, t.side.as_str())).collect();
    let expected = [
        (Kind::TookOver, "standby"),
        (Kind::FellBack, "standby"),
        (Kind::FellBack, "primary"),
        (Kind::Open, "standby"),
    ];
    assert_eq!(kinds, expected);
    let last = look(dir.path(), None, None, Some(1)).unwrap();
    assert_eq!(last.incidents[0].kind, Kind::Open, "the newest by time, not by the clock");

    // A step in mid-takeover: what came after what, and how much later, stays.
    let mut events = in_boot("one", 0.0, &takeover(1000.0)[..2]);
    events.extend(in_boot("one", -700.0, &takeover(1000.0)[2..]));
    journal(dir.path(), "primary", &events);
    let text = render(&look(dir.path(), None, None, None).unwrap());
    assert!(text.contains("+9.5 ms  data-path   running  epoch=54"), "{text}");
}

#[test]
fn what_noise_pushed_out_of_one_journal_is_told_from_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let noise = json!({ "event": "refused", "at_ms": 9e6, "primary": host("host-c"), "why": "another VM" });
    journal(dir.path(), "standby", std::slice::from_ref(&noise));
    let in_both = fell_back(5e6);
    let roles: Vec<Value> = takeover(1000.0).into_iter().chain([in_both.clone()]).collect();
    journal(dir.path(), "standby.roles", &roles);
    let common = fs::read_to_string(dir.path().join("web.standby.roles.journal")).unwrap();
    let shared = common.lines().last().unwrap().to_owned() + "\n";
    let main = dir.path().join("web.standby.journal");
    fs::write(&main, shared + &fs::read_to_string(&main).unwrap()).unwrap();
    let kinds: Vec<Kind> = told(dir.path()).incidents.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::TookOver, Kind::FellBack, Kind::Refused], "each once");
    fs::remove_file(&main).unwrap();
    assert_eq!(told(dir.path()).incidents.len(), 2, "a journal of roles alone is one");
}

#[test]
fn a_lost_standby_an_arbiters_fault_and_a_keeper_have_stories() {
    let dir = tempfile::tempdir().unwrap();
    let [suspect, asking, _, _] = takeover(1000.0);
    let register = register(3, "host-a", &json!("solo"));
    let lost = json!({ "event": "cas", "at_ms": 1004.0, "outcome": "lost", "register": register, "took_ms": 3.3 });
    let keeps = standby_stands(json!({ "event": "lost", "at_ms": 1005.0, "register": register }));
    let fault =
        json!({ "event": "arbiter-fault", "at_ms": 20_000.0, "why": "its disk is full", "remedy": "make room" });
    let mended = json!({ "event": "arbiter-mended", "at_ms": 21_500.0 });
    let unloadable = json!({ "event": "rehearsal-failed", "at_ms": 40_000.0, "why": "Unknown savevm section" });
    let away = json!({ "event": "stalled", "at_ms": 19_900.0, "away_ms": 6500.0 });
    journal(dir.path(), "standby", &[suspect, asking, lost, keeps, away, fault, mended, unloadable]);
    let keeping = json!({ "event": "keeping", "at_ms": 50_000.0, "generation": 3, "nics": 2, "handed_over": 2 });
    let nic = json!({ "event": "nic-lost", "at_ms": 51_000.0, "why": "tap0 is gone" });
    let exit = json!({ "event": "exit", "at_ms": 60_000.0, "code": 0, "why": "the VM has ended" });
    journal(dir.path(), "keeper", &[keeping, nic, exit]);
    let report = told(dir.path());
    let kinds: Vec<Kind> = report.incidents.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::LostSwap, Kind::ArbiterFault, Kind::Unloadable, Kind::KeptNetwork]);
    let stories = [
        "the register holds generation 3 (host-a, alone). This standby keeps its copy until a new session needs the room, and lets nothing out.",
        "a failover was impossible: its disk is full. What to do: make room. It recovered 1500.0 ms later. \
         This process had been away for 6500.0 ms.",
        "this host's QEMU could not load the VM: Unknown savevm section.",
        "A keeper passed the packets of 2 NICs, which were handed over by the process before it. A NIC was lost: tap0 is gone.",
    ];
    for (told, words) in report.incidents.iter().zip(stories) {
        assert!(told.story.join(" ").contains(words), "{words:?} is not in {:?}", told.story);
    }
}

#[test]
fn a_vm_that_died_where_it_was_taken_over_has_a_story() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = takeover(1000.0).to_vec();
    events.push(json!({ "event": "vm-gone", "at_ms": 9_000.0, "orderly": false }));
    events.push(
        json!({ "event": "exit", "at_ms": 9_001.0, "code": 1, "why": "the VM's QEMU died, and no standby had a copy of the VM" }),
    );
    journal(dir.path(), "standby", &events);
    let report = told(dir.path());
    let kinds: Vec<Kind> = report.incidents.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::TookOver, Kind::VmGone]);
    let story = report.incidents[1].story.join(" ");
    assert!(story.contains("The VM's QEMU died. It ended with exit code 1: the VM's QEMU died"), "{story}");
}

#[test]
fn a_swap_without_an_answer_is_not_told_as_won_or_lost() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), "standby", &[syncing(), suspect(10.0), takeover(10.0)[1].clone()]);
    let report = told(dir.path());
    assert_eq!((report.incidents[0].kind, report.incidents[0].ended_ms), (Kind::Open, None));
    let story = report.incidents[0].story.join(" ");
    assert!(story.contains("no answer was recorded") && !story.contains("won") && !story.contains("lost"), "{story}");
}

#[test]
fn hostile_bytes_are_named_and_no_terminal_obeys_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut refused = json!({ "event": "refused", "at_ms": 5.0, "why": "\u{1b}[2Jgone" });
    refused["register"] = json!({ "generation": "x" });
    journal(
        dir.path(),
        "standby",
        &[refused, json!({ "event": "suspect", "at_ms": 6.0, "paths": { "a": [1] }, "own_late": 3 })],
    );
    let path = dir.path().join("web.standby.journal");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"torn");
    fs::write(&path, bytes).unwrap();
    let text = render(&told(dir.path()));
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains("web.standby.journal:3: not a JSON object"), "{text}");
}

#[test]
fn a_directory_without_journals_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    for dir in [dir.path(), Path::new("/nonexistent/x")] {
        let error = look(dir, None, None, None).unwrap_err();
        assert!(error.message.contains("journal") && error.remedy.unwrap().contains("--state-dir"));
    }
}

#[test]
fn a_refused_order_is_told_by_itself_and_begins_no_other_story() {
    let dir = tempfile::tempdir().unwrap();
    let order = json!({ "command": "unprotect" });
    let mut events = vec![
        syncing(),
        json!({ "event": "operator", "at_ms": 100.0, "request": order, "role": "protected" }),
        json!({ "event": "operator-refused", "at_ms": 101.0, "request": order, "why": "the arbiter does not answer" }),
    ];
    events.extend(takeover(900.0));
    journal(dir.path(), "standby", &events);
    let report = told(dir.path());
    let kinds: Vec<Kind> = report.incidents.iter().map(|t| t.kind).collect();
    assert_eq!(kinds, [Kind::OrderRefused, Kind::TookOver]);
    let story = report.incidents[0].story.join(" ");
    assert!(story.contains("asked for `unprotect`. It was refused: the arbiter does not answer."), "{story}");
    assert!(!report.incidents[1].story.join(" ").contains("unprotect"), "{:?}", report.incidents[1].story);
    // An order that was obeyed is a part of what came of it.
    let obeyed = json!({ "event": "operator", "at_ms": 100.0, "request": { "command": "takeover" } });
    let events: Vec<Value> = [syncing(), obeyed].into_iter().chain(takeover(200.0)).collect();
    journal(dir.path(), "standby", &events);
    assert_eq!(told(dir.path()).incidents.len(), 1);
}

#[test]
fn a_heading_names_this_host_and_not_who_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = json!({ "event": "refused", "at_ms": 5.0, "why": "busy", "primary": host("host-a") });
    journal(dir.path(), "standby", &[started(1.0), refused]);
    let text = render(&told(dir.path()));
    assert!(text.contains("web on host-b (standby): no session"), "{text}");
    assert!(text.contains("host-a wanted to be protected"), "{text}");
}

#[test]
fn what_this_version_does_not_know_is_shown_and_changes_no_story() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = vec![syncing()];
    events.extend(takeover(1000.0));
    events.insert(2, json!({ "event": "rained", "at_ms": 1000.2, "mm": 3 }));
    // As later versions may tell it: a field more, and one that is something else.
    events[3]["weather"] = json!("fair");
    events.push(json!({ "event": "nic-lost", "at_ms": 1100.0, "why": { "nic": 3 } }));
    journal(dir.path(), "standby", &events);
    let report = told(dir.path());
    assert_eq!(report.incidents[0].kind, Kind::TookOver);
    let text = render(&report);
    for words in ["+0.2 ms  standby     rained  mm=3", "weather=fair", "+100.0 ms  standby     nic-lost"] {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
}

#[test]
fn an_orderly_end_is_not_said_to_be_the_guests() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), "primary", &[json!({ "event": "vm-gone", "at_ms": 5.0, "orderly": true })]);
    let text = render(&told(dir.path()));
    assert!(text.contains("The VM was shut down: by its guest, or because its QEMU was told to end."), "{text}");
}
