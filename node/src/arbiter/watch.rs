//! Tells how the arbiter is.

use super::Health;
use crate::events::{ArbiterFault, Event, emit};

/// What the arbiter's absence means where it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// The VM is protected.
    Protects,
    /// A primary whose standby fell silent.
    Claims,
    /// A standby whose primary fell silent.
    TakesOver,
    /// Nothing is protected here.
    Idle,
}

impl Stance {
    fn unreachable(self) -> &'static str {
        match self {
            Self::Protects => "the arbiter cannot be reached: protection goes on, failover is impossible",
            Self::Claims => {
                "this host cannot reach the arbiter: the standby may have taken the VM over. Output stays held; look at the other \
                 host first"
            }
            Self::TakesOver => "the arbiter cannot be reached: the takeover waits for it",
            Self::Idle => "the arbiter cannot be reached: nothing can be protected here until it is",
        }
    }
}

/// Tells how the arbiter is, once per change. Its loss stops nothing but failover; that must be heard.
#[derive(Debug, Default)]
pub struct ArbiterWatch {
    /// What it meant that it was unreachable, and why a failover was impossible although it was not.
    told: (Option<Stance>, Option<String>),
}

impl ArbiterWatch {
    /// Looks at it.
    pub fn look(&mut self, health: &Health, stance: Stance) {
        if !health.reachable && health.last_error.is_none() {
            return; // before its first try it is neither
        }
        let unable = health.failover_possible().err().filter(|_| health.reachable);
        let now = ((!health.reachable).then_some(stance), unable);
        let before = std::mem::replace(&mut self.told, now.clone());
        match now.0 {
            Some(stance) if before.0.is_none() => unreachable(health, stance),
            // The same absence, and it means something else now.
            Some(Stance::Claims) if before.0 != now.0 => tracing::warn!("{}", Stance::Claims.unreachable()),
            None if before.0.is_some() => {
                tracing::info!("the arbiter can be reached");
                emit(Event::ArbiterReachable);
            }
            _ => {}
        }
        match now.1 {
            why if why == before.1 => {}
            Some(why) => unfit(&why, health),
            None if health.reachable => {
                tracing::info!("the arbiter has recovered: failover is possible");
                emit(Event::ArbiterMended);
            }
            None => {}
        }
    }
}

fn unreachable(health: &Health, stance: Stance) {
    let why = health.last_error.as_deref().unwrap_or("no answer");
    tracing::warn!(why, "{}", stance.unreachable());
    emit(Event::ArbiterUnreachable(why.into()));
}

fn unfit(why: &str, health: &Health) {
    let remedy = health.remedy();
    tracing::error!(why, remedy, "the arbiter answers, but a failover is impossible");
    let (why, remedy) = (why.to_owned(), remedy.map(str::to_owned));
    emit(Event::ArbiterFault(Box::new(ArbiterFault { why, remedy, fault: health.fault })));
}
