//! Prints the keepalive settings in force, in the layout of FRR's `show bfd peers`.

use api::KeepaliveReport;
use node::keepalive::Offer;

/// µs as a person reads them, to the µs.
pub(super) fn micros(us: u64) -> String {
    if us < 1_000 { format!("{us} us") } else { format!("{} ms", us as f64 / 1e3) }
}

fn age(ms: Option<u64>) -> String {
    ms.map_or_else(|| "never".to_owned(), |ms| format!("{}.{} s ago", ms / 1_000, ms % 1_000 / 100))
}

fn offer(offer: &Offer) -> String {
    let Offer { interval_us, min_rx_us, multiplier } = *offer;
    format!(
        "transmit {}, receive no faster than {}, multiplier {multiplier}",
        micros(interval_us.into()),
        micros(min_rx_us.into())
    )
}

struct Lines(String);

impl Lines {
    fn group(&mut self, title: &str) {
        self.0.push_str(&format!("    {title}\n"));
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        self.0.push_str(&format!("      {key:<22} {value}\n"));
    }
}

/// The text, ending in a newline.
pub(super) fn render(r: &KeepaliveReport) -> String {
    if r.node.is_empty() {
        // Its process said nothing.
        let why = r.warnings.first().map_or("", String::as_str);
        return format!("{} ({}): {}: {why}\n", r.vm, r.side, r.state.replace('-', " "));
    }
    let mut out = Lines(format!("{} on {} ({})\n", r.vm, r.node, r.side));
    let peer = if r.peer.is_empty() { "none" } else { &r.peer };
    if r.state == "none" {
        out.0.push_str("  no session: no beats are sent\n");
        out.group("the next one begins with");
        out.line("local, configured", offer(&r.local.configured));
        r.warnings.iter().for_each(|warning| out.line("note", warning));
        return out.0;
    }
    out.0.push_str(&format!("  peer {peer}\n"));
    session(&mut out, r);
    out.group("in force");
    both_ways(&mut out, r);
    out.group("parameters");
    out.line("local, configured", offer(&r.local.configured));
    out.line("local, advertised", offer(&r.local.advertised));
    out.line("remote, advertised", r.remote.advertised.as_ref().map_or_else(|| "not heard yet".to_owned(), offer));
    measured(&mut out, r);
    for warning in &r.warnings {
        out.line("note", warning);
    }
    out.0
}

fn session(out: &mut Lines, r: &KeepaliveReport) {
    out.group("session");
    out.line(
        "status",
        if r.keepalive.is_empty() { r.state.clone() } else { format!("{}, over {}", r.state, r.keepalive) },
    );
    if let Some(ms) = r.up_for_ms {
        out.line("uptime", format!("{}.{} s", ms / 1_000, ms % 1_000 / 100));
    }
    let poll = match (r.local.polling, r.remote.polling, r.change_under_way) {
        (true, _, _) => "waiting for the other side to confirm this side's parameters",
        (_, true, _) => "the other side waits for a confirmation",
        (_, _, true) => "a change was requested",
        _ => "none",
    };
    out.line("poll in progress", poll);
    out.line("last change", format!("{} ({} in this session)", age(r.changed_ms_ago), r.changes));
}

/// Both directions: what `keepalive set` prints as well.
pub(super) fn both_ways(out: &mut impl Extend<String>, r: &KeepaliveReport) {
    let f = &r.in_force;
    let line = |key: &str, value: String| format!("      {key:<22} {value}\n");
    let receive = f.receive_interval_us.map_or_else(|| "not heard yet".to_owned(), micros);
    out.extend([
        line("transmit interval", format!("{} ({})", micros(f.transmit_interval_us), f.transmit_limited_by)),
        line("receive interval", format!("{receive} ({})", f.receive_limited_by)),
        line("detection time", format!("{} of the other side's silence", micros(f.detection_time_us))),
        line("remote detection time", format!("{} of this side's silence", micros(f.remote_detection_time_us))),
    ]);
}

impl Extend<String> for Lines {
    fn extend<T: IntoIterator<Item = String>>(&mut self, lines: T) {
        self.0.extend(lines);
    }
}

fn measured(out: &mut Lines, r: &KeepaliveReport) {
    out.group("measured");
    let (c, m) = (&r.counters, &r.machine);
    out.line("beats", format!("{} sent, {} received, {} overdue", c.sent, c.received, c.missed));
    out.line("strays", format!("{} duplicate or late, {} not of this session", c.duplicates, c.rejected));
    for path in &r.paths {
        out.line(
            &format!("by {}", path.name),
            format!("{} sent, {} heard ({} first)", path.sent, path.heard, path.first),
        );
    }
    for (key, p) in [("gap", &r.gap_us), ("echo round trip", &r.rtt_us)] {
        let [p50, p99, max] = [p.p50, p.p99, p.max].map(micros);
        out.line(key, format!("p50 {p50}, p99 {p99}, max {max} ({} times)", p.count));
    }
    out.line("most overdue", format!("{} after it was due", micros(m.overdue_max_us)));
    out.line("late itself", format!("{} times, at most {}", c.self_late, micros(m.self_late_max_us)));
    let timers = format!("{} at the median, {} at most", micros(m.timer_late_p50_us), micros(m.timer_late_max_us));
    out.line("timers late by", timers);
    out.line("shortest interval", format!("{} on this machine", micros(m.shortest_interval_us)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_session_no_figure_is_shown() {
        let mut report =
            KeepaliveReport { vm: "web".into(), node: "a".into(), side: "primary".into(), ..Default::default() };
        report.state = "none".into();
        report.local.configured = Offer { interval_us: 10_000, min_rx_us: 10_000, multiplier: 5 };
        let text = render(&report);
        assert!(text.contains("no session: no beats are sent") && text.contains("transmit 10 ms"), "{text}");
        assert!(!text.contains("detection time") && !text.contains("0 us"), "{text}");
    }
}
