//! What is in force between the two sides, as this one sees it: for `keepalive show`, and for whoever changes it.

use mc_core::{
    detector::{Detector, Parameters, State},
    id::Time,
    wire::beat::Beat,
};
use std::time::Duration;

/// What one side says about itself in its beats, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Offer {
    /// How often it would like to send (RFC 5880: desired min TX interval).
    pub interval_us: u32,
    /// How often it is willing to receive (required min RX interval).
    pub min_rx_us: u32,
    /// After so many missed beats the *other* side suspects it.
    pub multiplier: u8,
}

fn us32(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

impl From<Parameters> for Offer {
    fn from(p: Parameters) -> Self {
        let (interval_us, min_rx_us) = (us32(p.desired_tx()), us32(p.required_rx()));
        Self { interval_us, min_rx_us, multiplier: p.detect_multiplier() }
    }
}

impl From<&Beat> for Offer {
    fn from(beat: &Beat) -> Self {
        Self { interval_us: beat.desired_tx_us, min_rx_us: beat.required_rx_us, multiplier: beat.detect_multiplier }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiation {
    /// What our beats advertise.
    pub own: Offer,
    /// What the peer's newest beat does.
    pub peer: Option<Offer>,
    /// How often we send, before jitter.
    pub transmit: Duration,
    /// How often the peer has agreed to send.
    pub receive: Option<Duration>,
    /// How long the peer may be silent; before its first beat, the start-up limit.
    pub detection: Duration,
    /// How long the peer bears our silence at least.
    pub patience: Duration,
    /// "waiting", "up", "late", "suspect".
    pub state: &'static str,
    /// The peer has yet to confirm our newest parameters.
    pub polling: bool,
    /// The peer's newest beat asks for a confirmation, or is one (then its next beat tells).
    pub peer_polling: bool,
    /// The longest that a beat came after it was due, in this session.
    pub overdue_max: Duration,
    /// When the peer was heard first.
    pub up_at: Option<Time>,
    /// How often our parameters changed in this session, and when they did last.
    pub changes: u64,
    /// See `changes`.
    pub changed_at: Option<Time>,
    /// Of the orders given, the last one taken.
    pub order: u64,
}

impl Negotiation {
    pub(super) fn note(&mut self, detector: &Detector, now: Time) {
        let own = Offer::from(detector.parameters());
        if own != self.own && self.own != Offer::default() {
            self.changes += 1;
            self.changed_at = Some(now);
        }
        self.own = own;
        self.peer = detector.peer().map(Offer::from);
        self.transmit = detector.transmit_interval();
        self.receive = detector.receive_interval();
        self.detection = detector.detection_time();
        self.patience = detector.patience();
        self.polling = detector.polling();
        self.peer_polling = detector.peer().is_some_and(|beat| beat.poll || beat.is_final);
        self.up_at = self.up_at.or_else(|| detector.peer().map(|_| now));
        self.state = match detector.state() {
            State::Waiting => "waiting",
            State::Up => "up",
            State::Late => "late",
            State::Suspect => "suspect",
        };
    }
}
