//! Prints the table of several VMs, one line each.

use super::text::{bytes, micros, shown, silence};
use api::{OfSide, Status};

const COLUMNS: usize = 12;
const HEAD: [&str; COLUMNS] =
    ["VM", "SIDE", "ROLE", "PROTECTED", "TROUBLE", "PEER", "OVER", "GEN", "EPOCH", "PAUSE", "HELD", "ARBITER"];

/// What is wrong here, in a word each; `status --vm` has the rest.
fn trouble(s: &Status) -> String {
    let stalled = s.stalled.as_ref().map(|_| "stalled");
    let network = s.network.as_ref().map(|_| "network");
    stalled.into_iter().chain(network).collect::<Vec<_>>().join(", ")
}

fn arbiter(s: &Status) -> &'static str {
    match (s.arbiter.reachable, &s.arbiter.failover_impossible) {
        (false, _) => "UNREACHABLE",
        (true, Some(_)) => "NO FAILOVER",
        (true, None) => "ok",
    }
}

fn row(s: &Status) -> [String; COLUMNS] {
    // A process that does not answer has nothing to say but why.
    let there = s.is_told();
    let or_dash = |text: String, known: bool| if known && !text.is_empty() { text } else { "-".to_owned() };
    let over = s.transport.split(' ').next().unwrap_or("");
    let over = if s.keepalive.is_empty() { over.to_owned() } else { format!("{over}, {}", s.keepalive) };
    let peer = s.peer.split(' ').next().unwrap_or("").to_owned();
    let pause = s.side.primary().map(|primary| primary.pause_us).filter(|pause| pause.count > 0);
    [
        s.vm.clone(),
        s.side.word().to_owned(),
        shown(&s.role).to_owned(),
        match (s.protected, s.no_failover(), s.unheld()) {
            (true, Some(_), _) => "no failover".to_owned(),
            (true, None, 0) => "yes".to_owned(),
            (true, None, unheld) => format!("yes, {unheld} unheld"),
            (false, ..) => "NO".to_owned(),
        },
        or_dash(trouble(s), there),
        or_dash(peer, there),
        or_dash(over, there),
        or_dash(s.generation.to_string(), there),
        or_dash(s.epoch.to_string(), there),
        or_dash(pause.map_or_else(String::new, |pause| micros(pause.p50)), pause.is_some()),
        or_dash(bytes(s.held_bytes), there && s.side.primary().is_some()),
        or_dash(arbiter(s).to_owned(), there && s.side != OfSide::Keeper),
    ]
}

/// The table, ending in a newline.
pub(super) fn render(statuses: &[Status]) -> String {
    let rows: Vec<[String; COLUMNS]> = [HEAD.map(str::to_owned)].into_iter().chain(statuses.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out.extend(statuses.iter().filter_map(silence));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{SCHEMA, Side};

    #[test]
    fn columns_are_aligned_and_what_is_not_known_is_a_dash() {
        let status = |vm: &str, side: Side, role: &str| Status {
            schema: SCHEMA,
            vm: vm.into(),
            side: side.into(),
            role: role.into(),
            ..Status::default()
        };
        let mut web = status("web", Side::Primary, "protected");
        (web.protected, web.peer, web.arbiter.reachable) = (true, "host-b at 10.0.0.2:7410".into(), true);
        (web.transport, web.keepalive) = ("tcp (fell back from RDMA: x; 1 times)".into(), "both".into());
        let mut gone = status("a-longer-name", Side::Standby, "gone");
        gone.notes = vec!["its process has ended".into()];
        let mut keeper = status("db", Side::Keeper, "keeping");
        keeper.network = Some("tap0 is gone".into());
        let text = render(&[web, gone, keeper]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[4..], ["a-longer-name standby: gone: its process has ended"]);
        assert_eq!(
            lines[0],
            "VM             SIDE     ROLE       PROTECTED  TROUBLE  PEER    OVER       GEN  EPOCH  PAUSE  HELD  ARBITER"
        );
        assert_eq!(
            lines[1],
            "web            primary  protected  yes        -        host-b  tcp, both  0    0      -      0 B   ok"
        );
        assert_eq!(
            lines[2],
            "a-longer-name  standby  gone       NO         -        -       -          -    -      -      -     -"
        );
        assert_eq!(
            lines[3],
            "db             keeper   keeping    NO         network  -       -          0    0      -      -     -"
        );
    }
    #[test]
    fn a_vm_that_stands_still_is_told_apart_from_one_that_is_well() {
        let mut web = Status { vm: "web".into(), role: "protected".into(), protected: true, ..Status::default() };
        (web.stalled, web.network) = (Some("QEMU is stopped".into()), Some("tap0 is gone".into()));
        (web.arbiter.reachable, web.arbiter.failover_impossible) = (true, Some("its disk is full".into()));
        let text = render(&[web]);
        assert!(text.contains("no failover  stalled, network") && text.contains("NO FAILOVER"), "{text}");
    }
}
