//! Explains to the operator how a session's checkpoints and beats go, and what is wrong with them.

use crate::{
    events::{self, Event, FellBack, PathSilence, emit, ms},
    keepalive::{BeatHandle, Measured, PathsReader, Proof},
};
use mc_core::{id::Time, transport::Transport};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};
use transport_tcp::UdpKeepalive;

/// How a session began.
#[derive(Clone, Debug)]
pub struct Report {
    /// "rdma" or "tcp".
    pub transport: &'static str,
    /// Why that one.
    pub why: String,
    /// Our side of RDMA.
    pub rdma: Option<RdmaInfo>,
    /// "ud", "udp" or "both".
    pub keepalive: &'static str,
    /// The figures of each, if both.
    pub beat_paths: Option<PathsReader>,
    /// With UDP: where beats are heard here, and where they go.
    pub udp: Option<UdpEnds>,
}

/// The ends of beats over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpEnds {
    /// This side's.
    pub here: SocketAddr,
    /// The other one's.
    pub there: SocketAddr,
}

impl UdpEnds {
    /// Of a keepalive that is connected; `None` where there is none.
    pub(super) fn of(udp: Option<&UdpKeepalive>) -> Option<Self> {
        let (here, there) = udp?.ends().ok()?;
        Some(Self { here, there })
    }
}

/// Why beats between this side and `peer` are not proven, and what to do: the words of a protection that is refused for it.
/// `by`: "udp", "ud" or "both"; `after`: for how long they were waited for.
#[must_use]
pub fn unproven(proof: Proof, peer: &str, (by, udp): (&str, Option<UdpEnds>), after: Duration) -> String {
    let way = if by == "both" { "ud or udp" } else { by };
    let open = udp.map_or_else(
        || "let RoCE's UDP port 4791 pass between the hosts".to_owned(),
        |ends| format!("open UDP port {} on {} for {}", ends.here.port(), ends.here.ip(), ends.there.ip()),
    );
    let dropped = udp.map_or_else(
        || "let RoCE's UDP port 4791 pass from here to there".to_owned(),
        |ends| format!("open UDP port {} on {} for {}", ends.there.port(), ends.there.ip(), ends.here.ip()),
    );
    match proof {
        Proof { heard: 0, .. } => format!("no beat from {peer} arrived by {way} in {after:.1?}: {open}"),
        Proof { echoed: 0, .. } => format!("{peer} does not hear this side's beats: {dropped}"),
        Proof { heard, echoed, .. } => format!(
            "beats between this host and {peer} have gaps longer than the detection time: in {after:.1?}, {heard} \
             arrived here, and {echoed} of them confirmed one of ours. Use a longer --beat-interval, or check the \
             network between the hosts"
        ),
    }
}

impl Report {
    /// What this session's beats measured; `None` before the first one was heard.
    #[must_use]
    pub fn measured(&self, beats: &BeatHandle) -> Option<Measured> {
        beats.measured(self.keepalive, self.beat_paths.as_ref())
    }

    /// The same, of a peer that has ended.
    #[must_use]
    pub fn measured_to_last_beat(&self, beats: &BeatHandle) -> Option<Measured> {
        beats.measured_to_last_beat(self.keepalive, self.beat_paths.as_ref())
    }
}

/// Our side of RDMA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RdmaInfo {
    /// The device.
    pub device: String,
    /// The entry of its GID table.
    pub gid_index: u8,
    /// What is there, as an address.
    pub gid: String,
    /// The queue pair that carries messages.
    pub queue_pair: u32,
    /// Local ACK timeout in force: 4.096 µs * 2^this.
    pub timeout: u8,
    /// Transport retries in force.
    pub retry: u8,
    /// Why this device.
    pub why: String,
}

/// Watches a link for its operator.
#[derive(Debug, Default)]
pub struct Watch {
    report: Option<Report>,
    /// Why the session is not on RDMA any more.
    fell_back: Option<String>,
    /// In all sessions.
    fallbacks: u64,
}

impl Watch {
    /// A session is up.
    pub fn begin(&mut self, report: Report) {
        let Report { transport, why, rdma, keepalive, .. } = &report;
        tracing::info!(transport, why, keepalive, "checkpoints go this way");
        emit(Event::Transport(events::Transport {
            transport: (*transport).to_owned(),
            why: why.clone(),
            keepalive: (*keepalive).to_owned(),
            rdma: rdma.clone(),
        }));
        self.report = Some(report);
        self.fell_back = None;
    }

    /// The session is over.
    pub fn end(&mut self) {
        (self.report, self.fell_back) = (None, None);
    }

    /// Why this session's beats are not proven by now, and what to do: see [`unproven`]. `None` if they are.
    #[must_use]
    pub fn unproven(&self, beats: &BeatHandle, peer: &str, now: Time) -> Option<String> {
        let way = self.report.as_ref().map_or(("udp", None), |report| (report.keepalive, report.udp));
        let proof = beats.proof();
        (!proof.proven).then(|| unproven(proof, peer, way, now.since(beats.started())))
    }

    /// Looks whether it still goes the way that it began.
    pub fn look(&mut self, link: Option<&dyn Transport>) {
        let Some(why) = link.and_then(Transport::fell_back).filter(|_| self.fell_back.is_none()) else { return };
        self.fell_back = Some(why.to_owned());
        self.fallbacks += 1;
        tracing::warn!(why, fallbacks = self.fallbacks, "RDMA failed; checkpoints go over TCP");
        let (from, to) = ("rdma".to_owned(), "tcp".to_owned());
        emit(Event::FellBack(FellBack { from, to, why: why.to_owned(), fallbacks: self.fallbacks }));
    }

    /// Whether the session began on RDMA, and still pins memory for it.
    #[must_use]
    pub fn has_rdma(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.rdma.is_some())
    }

    /// How long ago the peer was heard by each path.
    #[must_use]
    pub fn heard(&self, beats: &BeatHandle, now: Time) -> Vec<PathSilence> {
        let report = self.report.as_ref();
        let path = |name: &str, heard: u64, at: Option<Time>| PathSilence {
            name: name.to_owned(),
            heard,
            ago_ms: at.map(|at| ms(now.since(at))),
        };
        let paths = report.and_then(|r| r.beat_paths.as_ref()).map(PathsReader::stats);
        match paths {
            Some(paths) => paths.iter().map(|p| path(&p.name, p.heard, p.last_heard_ns.map(Time))).collect(),
            None => {
                let (_, _, heard) = beats.lateness();
                let at = (heard > 0).then(|| beats.last_heard());
                vec![path(report.map_or("", |r| r.keepalive), heard, at)]
            }
        }
    }

    /// How long ago the peer was heard by each path, seconds; one that never was is not there.
    #[must_use]
    pub fn silence_seconds(&self, beats: &BeatHandle, now: Time) -> Vec<(String, f64)> {
        let heard = self.heard(beats, now).into_iter();
        heard.filter_map(|path| Some((path.name, path.ago_ms? / 1e3))).collect()
    }

    /// The session's way, if there is a session.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// Why the session is not on RDMA any more.
    #[must_use]
    pub fn fell_back(&self) -> Option<&str> {
        self.fell_back.as_deref()
    }

    /// How often RDMA failed and TCP went on, in all sessions.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_named_with_its_port() {
        let ends = Some(UdpEnds { here: ([10, 0, 0, 1], 40_001).into(), there: ([10, 0, 0, 2], 40_002).into() });
        let say = |heard, echoed, way| {
            let proof = Proof { heard, echoed, ..Proof::default() };
            unproven(proof, "host-b", way, Duration::from_secs(5))
        };
        for (words, said) in [
            (
                "no beat from host-b arrived by udp in 5.0s: open UDP port 40001 on 10.0.0.1 for 10.0.0.2",
                say(0, 0, ("udp", ends)),
            ),
            (
                "host-b does not hear this side's beats: open UDP port 40002 on 10.0.0.2 for 10.0.0.1",
                say(9, 0, ("udp", ends)),
            ),
            ("by ud or udp in 5.0s", say(0, 0, ("both", ends))),
            ("by ud in 5.0s: let RoCE's UDP port 4791 pass", say(0, 0, ("ud", None))),
            ("let RoCE's UDP port 4791 pass from here to there", say(9, 0, ("ud", None))),
            ("in 5.0s, 9 arrived here, and 4 of them confirmed one of ours", say(9, 4, ("udp", ends))),
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
