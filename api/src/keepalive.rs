//! The keepalive settings in force between two sides, and the checks of an operator's change, with the numbers behind a refusal.

use crate::REPORT_SCHEMA;
use mc_core::{
    detector::Parameters,
    histogram::Percentiles,
    id::{Name, Time},
};
use node::{
    beats::Wish,
    clock::Clock,
    keepalive::{
        BeatHandle, Negotiation, Offer, PathStats,
        fit::{self, Unfit},
    },
    units::{spoken, time_text},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// What an operator wants. What is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// From one beat to the next, µs.
    pub interval_us: Option<u64>,
    /// Never receive more often, µs; without it, than the interval.
    pub min_rx_us: Option<u64>,
    /// Missed beats until suspicion.
    pub multiplier: Option<u8>,
    /// On this side only.
    pub this_side: bool,
    /// In spite of silences seen.
    pub force: bool,
}

impl Wanted {
    /// Whether nothing is wished.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.interval_us.is_none() && self.min_rx_us.is_none() && self.multiplier.is_none()
    }
}

/// `keepalive show`, of one side of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeepaliveReport {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The VM.
    pub vm: String,
    /// This host.
    pub node: String,
    /// "primary", "standby".
    pub side: String,
    /// The other one, and where; empty without one.
    pub peer: String,
    /// What beats go over: "ud", "udp", "both".
    pub keepalive: String,
    /// "waiting", "up", "late", "suspect"; "none" without a session; "gone" or "does-not-answer" of a process that says nothing.
    pub state: String,
    /// Since the other side was heard first, ms.
    pub up_for_ms: Option<u64>,
    /// This side's parameters.
    pub local: Local,
    /// The other side's, as it says.
    pub remote: Remote,
    /// The parameters in force, derived from both sides' parameters.
    pub in_force: InForce,
    /// Whether a change has yet to settle on either side.
    pub change_under_way: bool,
    /// Changes of this side's parameters in this session, by whichever side's operator.
    pub changes: u64,
    /// Since the last of them, ms.
    pub changed_ms_ago: Option<u64>,
    /// What this machine can time, and what it has seen.
    pub machine: Machine,
    /// Beats.
    pub counters: Counters,
    /// Between two received beats.
    pub gap_us: Percentiles,
    /// There and back: what RFC 5880 measures by echo packets, our beats carry.
    pub rtt_us: Percentiles,
    /// By path, where there are several.
    pub paths: Vec<PathStats>,
    /// The configuration file of this side's process.
    pub config_file: Option<PathBuf>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// One side's own parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Local {
    /// What the next session begins with.
    pub configured: Offer,
    /// What its beats say.
    pub advertised: Offer,
    /// The other side has yet to confirm them.
    pub polling: bool,
}

/// Parameters of the other side, as its beats say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remote {
    /// What its newest beat says; none before the first.
    pub advertised: Option<Offer>,
    /// Its newest beat asks for a confirmation, or gives one.
    pub polling: bool,
}

/// Both directions, µs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InForce {
    /// How often this side sends.
    pub transmit_interval_us: u64,
    /// Which side's parameter limits it: "local" or "remote".
    pub transmit_limited_by: String,
    /// How often the other side sends; none before its first beat.
    pub receive_interval_us: Option<u64>,
    /// Which side's parameter limits it: "local" or "remote".
    pub receive_limited_by: String,
    /// How long the other side may be silent; before its first beat, the start-up limit.
    pub detection_time_us: u64,
    /// How long the other side bears this one's silence; while a change is under way, the shortest that it may.
    pub remote_detection_time_us: u64,
}

/// What the machine can time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Shorter intervals are refused here, and not taken from the other side.
    pub shortest_interval_us: u64,
    /// Half of the timers were late by no more than this when the session began.
    pub timer_late_p50_us: u64,
    /// Largest lateness measured, µs.
    pub timer_late_max_us: u64,
    /// The longest that a beat of the other side came after it was due, in this session.
    pub overdue_max_us: u64,
    /// The longest that this side itself was late for a beat, in this session.
    pub self_late_max_us: u64,
}

/// Beats so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Beats sent.
    pub sent: u64,
    /// Sends that failed.
    pub send_errors: u64,
    /// New ones of the other side.
    pub received: u64,
    /// Beats of the other side that were overdue.
    pub missed: u64,
    /// Duplicate, late or replayed.
    pub duplicates: u64,
    /// Datagrams that are no beats of this session.
    pub rejected: u64,
    /// Times this side was late itself.
    pub self_late: u64,
}

/// A side's process, as far as its beats go.
#[derive(Debug)]
pub struct Session<'a> {
    /// What the next session begins with.
    pub configured: Wish,
    /// None without a session.
    pub beats: Option<&'a BeatHandle>,
    /// The VM.
    pub vm: Name,
    /// This host.
    pub node: Name,
    /// "primary", "standby".
    pub side: &'static str,
    /// The other one, and where; empty without one.
    pub peer: String,
    /// What beats go over, and what came and went by each path.
    pub paths: (String, Vec<PathStats>),
    /// The configuration file that this process was started with.
    pub config_file: Option<PathBuf>,
}

fn us(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn ms_since(at: Option<Time>) -> Option<u64> {
    at.map(|at| us(Clock.now().since(at)) / 1000)
}

impl Session<'_> {
    /// What is in force.
    #[must_use]
    pub fn report(&self) -> KeepaliveReport {
        let (keepalive, paths) = self.paths.clone();
        let mut report = KeepaliveReport {
            schema: REPORT_SCHEMA,
            vm: self.vm.to_string(),
            node: self.node.to_string(),
            side: self.side.to_owned(),
            peer: self.peer.clone(),
            keepalive,
            state: "none".to_owned(),
            paths,
            config_file: self.config_file.clone(),
            ..KeepaliveReport::default()
        };
        report.local.configured = self.configured.parameters().map(Offer::from).unwrap_or_default();
        if let Some(beats) = self.beats {
            fill(&mut report, beats);
        }
        report
    }

    /// Refuses a wish, or gives the beat thread its order. What comes of it, [`Session::report`] tells later.
    ///
    /// # Errors
    /// In words, and what to do.
    pub fn change(&self, wanted: &Wanted) -> Result<(Wish, Vec<String>), Refusal> {
        let Some(beats) = self.beats else {
            return Err(Refusal::new(
                "there is no session, so no beats are sent",
                "protect the VM first, or edit the file",
            ));
        };
        let (now, under_way) = beats.negotiation();
        let Some(peer) = now.peer.filter(|_| now.state != "suspect") else {
            let what = format!("the other side is {}, so it cannot confirm a change", now.state);
            return Err(Refusal::new(what, "look at `afterimage status`"));
        };
        if under_way {
            let what = format!(
                "another change is in progress (advertised so far: {} here, {} there); nothing was changed",
                words(&now.own),
                words(&peer)
            );
            return Err(Refusal::new(what, "check its result with `afterimage keepalive show`, then try again"));
        }
        let wish = wished(&now.own, wanted);
        let parameters = wish.parameters().map_err(|error| Refusal::new(error, "give values within these bounds"))?;
        let mut warnings = Vec::new();
        judge(&now, parameters, beats, wanted, &mut warnings)?;
        if wanted.this_side {
            beats.set_parameters(parameters);
        } else {
            beats.propose(parameters);
        }
        Ok((wish, warnings))
    }
}

/// Why not, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason for the refusal.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    fn new(what: impl std::fmt::Display, remedy: &str) -> Self {
        Self { what: what.to_string(), remedy: remedy.to_owned() }
    }
}

impl From<Unfit> for Refusal {
    fn from(unfit: Unfit) -> Self {
        Self::new(unfit.what, unfit.remedy)
    }
}

fn words(offer: &Offer) -> String {
    format!("{} us x {}", offer.interval_us, offer.multiplier)
}

/// What of a side's parameters an operator's wish leaves, and what it changes.
#[must_use]
pub fn wished(own: &Offer, wanted: &Wanted) -> Wish {
    let now = Duration::from_micros(own.interval_us.into());
    let interval = wanted.interval_us.map_or(now, Duration::from_micros);
    // A bound that was never wished for itself follows the interval.
    let kept = (wanted.interval_us.is_none() && own.min_rx_us != own.interval_us).then_some(own.min_rx_us.into());
    let min_rx = wanted.min_rx_us.or(kept).map(Duration::from_micros);
    Wish { interval, min_rx, multiplier: wanted.multiplier.unwrap_or(own.multiplier) }
}

/// What this machine cannot do, and what this session has seen.
fn judge(
    now: &Negotiation,
    wish: Parameters,
    beats: &BeatHandle,
    wanted: &Wanted,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let interval = wish.desired_tx();
    // The other side takes the same, unless it is not asked to.
    let peer = now.peer.filter(|_| wanted.this_side).unwrap_or(Offer::from(wish));
    let receive = wish.required_rx().max(Duration::from_micros(peer.interval_us.into()));
    // As at the start of a session, where nobody can force them: what is saved must be what can be started.
    fit::can_time(interval, beats.timer())?;
    fit::can_bear(interval, wish.detect_multiplier())?;
    fit::can_bear(receive, peer.multiplier)?;
    let late = Duration::from_micros(beats.stats().max_self_late_us);
    if late > interval / 4 {
        warnings.push(format!(
            "this side's own beat thread was late by up to {} in this session, more than a quarter of \
             {}; that lengthens detection",
            spoken(late),
            time_text(interval)
        ));
    }
    let Err(doubt) = fit::has_borne(receive, peer.multiplier, now.overdue_max) else { return Ok(()) };
    if !wanted.force {
        let more = "or accept false suspicions with `force` (--force): each one ends protection or causes a takeover";
        return Err(Refusal { remedy: format!("{}; {more}", doubt.remedy), what: doubt.what });
    }
    warnings.push(doubt.what);
    Ok(())
}

fn fill(report: &mut KeepaliveReport, beats: &BeatHandle) {
    let (now, under_way) = beats.negotiation();
    let (stats, timer) = (beats.stats(), beats.timer());
    report.state = now.state.to_owned();
    report.up_for_ms = ms_since(now.up_at);
    report.local.advertised = now.own;
    report.local.polling = now.polling;
    report.remote = Remote { advertised: now.peer, polling: now.peer_polling };
    report.in_force = in_force(&now);
    report.change_under_way = under_way;
    report.changes = now.changes;
    report.changed_ms_ago = ms_since(now.changed_at);
    report.machine = Machine {
        shortest_interval_us: us(timer.floor()),
        timer_late_p50_us: us(timer.late_p50),
        timer_late_max_us: us(timer.late_max),
        overdue_max_us: us(now.overdue_max),
        self_late_max_us: stats.max_self_late_us,
    };
    report.counters = Counters {
        sent: stats.sent,
        send_errors: stats.send_errors,
        received: stats.received,
        missed: stats.missed,
        duplicates: stats.duplicates,
        rejected: stats.rejected,
        self_late: stats.self_late,
    };
    (report.gap_us, report.rtt_us) = (stats.gap_us, stats.rtt_us);
    report.warnings.extend(beats.notes().iter().cloned());
}

/// RFC 5880, 6.8.2 and 6.8.4: of each direction the slower wish.
fn in_force(now: &Negotiation) -> InForce {
    let limit = |sender: (&str, u32), receiver: (&str, u32)| match sender.1.cmp(&receiver.1) {
        std::cmp::Ordering::Greater => format!("{} sends no faster", sender.0),
        std::cmp::Ordering::Less => format!("{} accepts no faster", receiver.0),
        std::cmp::Ordering::Equal => "both agree".to_owned(),
    };
    let (own, peer) = (now.own, now.peer.unwrap_or(now.own));
    InForce {
        transmit_interval_us: us(now.transmit),
        transmit_limited_by: limit(("this side", own.interval_us), ("the other side", peer.min_rx_us)),
        receive_interval_us: now.receive.map(us),
        receive_limited_by: limit(("the other side", peer.interval_us), ("this side", own.min_rx_us)),
        detection_time_us: us(now.detection),
        remote_detection_time_us: us(now.patience),
    }
}
