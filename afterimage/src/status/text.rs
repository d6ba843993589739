//! A status as text: groups of aligned lines.

use api::{MUTE, OfSide, Status, WhyNot};
use mc_core::histogram::Percentiles;
use std::time::{Duration, SystemTime};

/// Lines of "key  value", in groups.
struct Lines(String);

impl Lines {
    fn group(&mut self, title: &str) {
        self.0.push_str(&format!("  {title}\n"));
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("    {key:<14} {value}\n"));
    }

    /// A histogram, unless it is empty.
    fn percentiles(&mut self, key: &str, p: &Percentiles) {
        if p.count > 0 {
            let [p50, p90, p99, p999, max] = [p.p50, p.p90, p.p99, p.p999, p.max].map(micros);
            self.line(key, format!("p50 {p50}  p90 {p90}  p99 {p99}  p99.9 {p999}  max {max}  ({} times)", p.count));
        }
    }
}

/// µs as a person reads them.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

/// Bytes as a person reads them.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{} KiB", n >> 10),
        _ => format!("{} MiB", n >> 20),
    }
}

/// Of a process that said nothing: a line about it.
pub(super) fn silence(s: &Status) -> Option<String> {
    let why = s.notes.first().map_or("", String::as_str);
    (!s.is_told()).then(|| format!("{} {}: {}: {why}\n", s.vm, s.side.word(), shown(&s.role)))
}

/// A role for people.
pub(super) fn shown(role: &str) -> &str {
    if role == MUTE { "does not answer" } else { role }
}

/// Several results as JSON: an array, unless one process of a VM was asked for by name and is the only one.
pub(crate) fn as_json<T: serde::Serialize>(all: &[T], named: bool) -> serde_json::Result<String> {
    let text = match all {
        [one] if named => serde_json::to_string_pretty(one),
        all => serde_json::to_string_pretty(all),
    };
    Ok(text? + "\n")
}

/// The text, ending in a newline.
pub(super) fn render(s: &Status) -> String {
    if let Some(line) = silence(s) {
        return line;
    }
    let mut out = Lines(format!("{} on {} ({}): {}{}\n", s.vm, s.node, s.side.word(), s.role, verdict(s)));
    if let Some(why) = &s.stalled {
        out.group(&format!("STALLED: {why}"));
    }
    if let Some(why) = &s.network {
        out.group(&format!("NETWORK: {why}; tried again"));
    }
    // A keeper has packets, and nothing else.
    let is_keeper = s.side == OfSide::Keeper;
    if !is_keeper {
        pair(&mut out, s);
    }
    if let Some(why) = &s.why_not_protected {
        out.group("not protected");
        why_not(&mut out, s, why);
    }
    if s.side.standby().is_none() {
        output(&mut out, s);
    }
    if !is_keeper {
        costs(&mut out, s);
        beats(&mut out, s);
        arbiter(&mut out, s);
    }
    if let Some(t) = s.side.standby().and_then(|standby| standby.takeover) {
        out.group("takeover");
        if t.silence_us > 0 {
            out.line("silence", micros(t.silence_us));
        }
        out.line(
            "from suspicion",
            format!("revoked {}, won {}, running {}", micros(t.revoked_us), micros(t.won_us), micros(t.running_us)),
        );
    }
    if !s.counters.is_empty() {
        out.group("counters");
        s.counters.iter().for_each(|(key, n)| out.line(key, n));
    }
    if !s.notes.is_empty() {
        out.group("notes");
        s.notes.iter().for_each(|note| out.0.push_str(&format!("    {note}\n")));
    }
    out.0
}

/// What has to be said of the protection beside the role, which says "protected" by itself.
fn verdict(s: &Status) -> String {
    match (s.protected, s.no_failover(), exceptions(s)) {
        (false, ..) => ", NOT PROTECTED".to_owned(),
        (true, None, exceptions) => exceptions,
        (true, Some(why), exceptions) => format!("{exceptions}, but NO FAILOVER: {why}"),
    }
}

/// What a protected VM is protected but for.
fn exceptions(s: &Status) -> String {
    let unheld: Vec<_> =
        s.outputs.iter().filter(|o| s.protected && o.class == "unheld").map(|o| o.name.as_str()).collect();
    if unheld.is_empty() { String::new() } else { format!(" but for {}, which nothing holds", unheld.join(", ")) }
}

fn pair(out: &mut Lines, s: &Status) {
    out.group("pair");
    let peer = match (s.peer.as_str(), s.transport.as_str()) {
        ("", _) => "none".to_owned(),
        (peer, "") => format!("{peer} (the session has ended)"),
        (peer, transport) => format!("{peer} over {transport}"),
    };
    out.line("peer", peer);
    if !s.transport_why.is_empty() {
        let over = if s.transport.is_empty() { String::new() } else { format!("over {} ", s.transport) };
        out.line("", format!("{over}because {}", s.transport_why));
    }
    if let Some(r) = &s.rdma {
        let at = format!("{}, GID {} ({}), queue pair {:#x}", r.device, r.gid_index, r.gid, r.queue_pair);
        out.line("RDMA", format!("{at}, timeout {}, retry {}", r.timeout, r.retry));
    }
    if let Some(qmp) = s.side.standby().and_then(|standby| standby.qmp.as_ref()) {
        out.line("QMP", format!("{qmp} (for `afterimage protect --qmp`)"));
    }
    out.line("generation", s.generation);
    let age = s
        .last_ack_age_ms
        .map_or_else(|| "no ACK yet".to_owned(), |ms| format!("ACK of {} {ms} ms ago", s.last_ack_epoch));
    out.line("epoch", format!("{}, {age}", s.epoch));
}

fn why_not(out: &mut Lines, s: &Status, w: &WhyNot) {
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(w.since_ms)).unwrap_or(SystemTime::UNIX_EPOCH);
    out.line("because", &w.why);
    let times = if w.times > 1 { format!(", met {} times", w.times) } else { String::new() };
    out.line("since", format!("{}{times}", humantime::format_rfc3339_seconds(since)));
    if let Some(todo) = &w.what_to_do {
        return out.line("what to do", todo);
    }
    if s.side.standby().is_some() {
        return; // it waits for others
    }
    out.line(
        "next try",
        w.next_try_in_ms.map_or_else(
            || "when an operator says so: `afterimage reprotect`".to_owned(),
            |ms| format!("in {}", micros(ms.saturating_mul(1000))),
        ),
    );
}

fn output(out: &mut Lines, s: &Status) {
    out.group("output");
    out.line("held", format!("{} packets, {}", s.held_packets, bytes(s.held_bytes)));
    out.line("released", format!("{} packets", s.released_packets));
    out.line("dropped", format!("{} packets", s.dropped_packets));
    if !s.outputs.is_empty() {
        out.group("outputs of the VM");
    }
    for o in &s.outputs {
        out.line(&o.name, format!("{} {}: {}", o.class, o.kind, o.why));
    }
}

fn costs(out: &mut Lines, s: &Status) {
    out.group("checkpoints");
    if let Some(primary) = s.side.primary() {
        out.percentiles("pause", &primary.pause_us);
        out.percentiles("commit", &primary.commit_us);
    }
    out.percentiles("hold", &s.hold_us);
    if let Some(standby) = s.side.standby() {
        out.percentiles("apply", &standby.apply_us);
    }
    let (used, live, cap) = (bytes(s.staging_used_bytes), bytes(s.staging_live_bytes), bytes(s.staging_cap_bytes));
    out.line("staging", format!("{used} used, {live} allocated, cap {cap}, hit {} times", s.staging_cap_hits));
    if let Some(p) = s.side.primary().filter(|primary| !primary.on_cap.is_empty()) {
        let sooner = if p.run_us < p.epoch_us {
            format!(", every {} now, for staging", micros(p.run_us))
        } else {
            String::new()
        };
        out.line("epoch", format!("{}{sooner}", micros(p.epoch_us)));
        out.line("when full", format!("{} (at {})", p.on_cap, bytes(s.staging_limit_bytes)));
    }
}

fn beats(out: &mut Lines, s: &Status) {
    let b = &s.beats;
    out.group(&if s.keepalive.is_empty() { "beats".to_owned() } else { format!("beats over {}", s.keepalive) });
    out.line(
        "count",
        format!("{} sent, {} received, {} missed, {} self-late", b.sent, b.received, b.missed, b.self_late),
    );
    for path in &s.beat_paths {
        let (errors, heard) = (path.send_errors + path.receive_errors, path.heard);
        out.line(&path.name, format!("{} sent, {heard} heard ({} first), {errors} errors", path.sent, path.first));
    }
    out.percentiles("gap", &b.gap_us);
    out.percentiles("round trip", &b.rtt_us);
    if b.detection_time_us > 0 {
        out.line("suspect after", micros(b.detection_time_us));
    }
}

fn arbiter(out: &mut Lines, s: &Status) {
    out.group("arbiter");
    out.line("spec", &s.arbiter.spec);
    out.line(
        "reachable",
        match s.arbiter.reachable {
            true => "yes",
            false if is_cut_off(s) => "NO, from this host: the standby may have taken the VM over",
            false => "NO: there is no failover until it is",
        },
    );
    let more = [
        ("FAILOVER IMPOSSIBLE", &s.arbiter.failover_impossible),
        ("what to do", &s.arbiter.remedy),
        ("last error", &s.arbiter.last_error),
        ("witness", &s.arbiter.witness),
    ];
    for (key, value) in more.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
        out.line(key, value);
    }
    if let Some(ms) = s.arbiter.probe_age_ms {
        out.line("stored a test", format!("{ms} ms before its last answer"));
    }
}

/// A primary that knows of neither of the others.
fn is_cut_off(s: &Status) -> bool {
    s.side.primary().is_some() && s.role == "claiming"
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{OutputStatus, Primary, Side};
    use node::exit::Code;

    #[test]
    fn says_what_matters_first() {
        let mut status = Status { vm: "web".into(), node: "a".into(), ..Status::default() };
        status.role = "syncing".into();
        let pause_us = Percentiles { count: 7, p50: 900, p90: 1_250, p99: 2_000, p999: 2_500, max: 3_000_000 };
        status.side = OfSide::Primary(Primary { pause_us, ..Primary::default() });
        status.staging_cap_bytes = 64 << 20;
        status.notes = vec!["the serial console is not held".into()];
        let text = render(&status);
        assert!(text.starts_with("web on a (primary): syncing, NOT PROTECTED\n"), "{text}");
        assert!(
            text.contains("pause          p50 900 us  p90 1.2 ms  p99 2.0 ms  p99.9 2.5 ms  max 3.0 s  (7 times)"),
            "{text}"
        );
        assert!(text.contains("cap 64 MiB") && text.contains("    the serial console is not held\n"), "{text}");
        assert!(text.contains("NO: there is no failover"), "{text}");
        assert!(!text.contains("STALLED"), "{text}");
        status.stalled = Some("the main loop has made no progress for 7 s".into());
        assert!(
            render(&status).contains("NOT PROTECTED\n  STALLED: the main loop has made no progress for 7 s\n"),
            "{text}"
        );
        assert!(!text.contains("commit "), "an empty histogram says nothing: {text}");
        assert!(!text.contains("next try"), "{text}");
        let why = "cannot connect to 10.0.1.2:7410: Connection refused (os error 111)".to_owned();
        status.why_not_protected =
            Some(WhyNot { why, since_ms: 1_764_000_000_000, times: 3, next_try_in_ms: Some(4_900), what_to_do: None });
        let text = render(&status);
        assert!(text.contains("    because        cannot connect to 10.0.1.2:7410"), "{text}");
        assert!(
            text.contains("    since          2025-11-24T16:00:00Z, met 3 times\n    next try       in 4.9 s\n"),
            "{text}"
        );
        (status.side, status.released_packets) = (OfSide::Keeper, 7);
        let text = render(&status);
        assert!(text.contains("released       7 packets") && !text.contains("arbiter"), "{text}");
    }

    #[test]
    fn an_output_that_nothing_holds_is_in_the_first_line() {
        let output = |name: &str, class: &str| OutputStatus {
            name: name.into(),
            kind: "disk".into(),
            class: class.into(),
            why: "because".into(),
        };
        let mut status = Status { vm: "web".into(), node: "a".into(), ..Status::default() };
        (status.role, status.protected) = ("protected".into(), true);
        assert_eq!(status.code(), Code::Done);
        status.outputs = vec![output("d0", "unheld"), output("d1", "harmless")];
        assert_eq!(status.code(), Code::Degraded);
        let text = render(&status);
        assert!(text.starts_with("web on a (primary): protected but for d0, which nothing holds\n"), "{text}");
        assert!(text.contains("d1             harmless disk: because"), "{text}");
    }

    #[test]
    fn protected_without_a_failover_is_in_the_first_line_of_both_sides() {
        for (side, role) in [(Side::Primary, "protected"), (Side::Standby, "protecting")] {
            let mut status = Status { vm: "web".into(), node: "a".into(), side: side.into(), ..Status::default() };
            (status.role, status.protected) = (role.into(), true);
            status.arbiter.failover_impossible = Some("the arbiter cannot be reached: refused".into());
            let side = side.as_str();
            let first = format!("web on a ({side}): {role}, but NO FAILOVER: the arbiter cannot be reached: refused\n");
            assert!(render(&status).starts_with(&first), "{}", render(&status));
        }
    }

    #[test]
    fn a_primary_that_is_cut_off_says_what_it_does_not_know() {
        let mut status = Status { vm: "web".into(), node: "a".into(), ..Status::default() };
        status.role = "claiming".into();
        status.arbiter.failover_impossible = Some("the arbiter cannot be reached: refused".into());
        status.arbiter.last_error = Some("refused".into());
        api::report::fill_claim(
            &mut status,
            "the standby was silent for longer than the detection time",
            1_764_000_000_000,
        );
        let text = render(&status);
        for words in [
            "claiming, NOT PROTECTED\n",
            "the standby was silent for longer than the detection time, and this host cannot reach the arbiter \
             (refused): the standby may have taken the VM over. Output is held: the VM has no network\n",
            "since          2025-11-24T16:00:00Z\n",
            "what to do     look at the other host first",
            "afterimage solo --vm web --yes-the-other-side-is-stopped`",
            "NO, from this host: the standby may have taken the VM over",
        ] {
            assert!(text.contains(words), "{words:?} is not in {text}");
        }
        for words in ["no failover", "FAILOVER IMPOSSIBLE", "next try", "look at the witness"] {
            assert!(!text.contains(words), "{words:?} is in {text}");
        }
    }
}
