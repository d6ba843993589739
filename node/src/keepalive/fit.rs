//! Whether beats can do what is asked of them: for a session that begins, for an operator who changes a running pair
//! (`keepalive set`), and for a primary before it relies on the detector.

use super::{BeatHandle, Offer, Timer};
use crate::units::{spoken, time_text};
use std::time::Duration;

/// No detection time is shorter. Linux lets its network code handle packets for 2 ms before a waiting one's turn comes
/// (`net.core.netdev_budget_usecs`): a shorter silence is what a live host's own kernel may do to a beat.
pub const SHORTEST_DETECTION: Duration = Duration::from_millis(2);

/// Why they cannot, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Unfit {
    /// Why not.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

fn unfit(what: String, remedy: &'static str) -> Unfit {
    Unfit { what, remedy }
}

/// A detection time, and what it is made of.
fn product(interval: Duration, multiplier: u8) -> String {
    let detection = interval * multiplier.into();
    format!("detection time {} ({} x {multiplier})", time_text(detection), time_text(interval))
}

/// Whether this machine can time beats so often.
///
/// # Errors
/// With the numbers that say why not.
pub fn can_time(interval: Duration, timer: Timer) -> Result<(), Unfit> {
    if interval >= timer.floor() {
        return Ok(());
    }
    let what = format!(
        "beat interval {} is too short for this machine: half of its timers were up to {} late (at worst {}). The shortest \
         interval here is {}",
        time_text(interval),
        spoken(timer.late_p50),
        spoken(timer.late_max),
        time_text(timer.floor())
    );
    Err(unfit(what, "use a longer interval, or make the machine more punctual (see the notes in `afterimage status`)"))
}

/// Whether a detection time of `multiplier` intervals is more than a live peer needs.
///
/// # Errors
/// With the reason why a live peer would be suspected.
pub fn can_bear(interval: Duration, multiplier: u8) -> Result<(), Unfit> {
    let detection = interval * multiplier.into();
    let remedy = "take a multiplier of 2 or more, and a longer interval";
    if multiplier < 2 {
        let what = format!(
            "{} is too short: a single lost beat, or one \
             late by a tenth of the interval, would count as the host's death",
            product(interval, multiplier)
        );
        return Err(unfit(what, remedy));
    }
    if detection < SHORTEST_DETECTION {
        let what = format!(
            "{} is too short: a live host's kernel may delay \
             a beat by {}",
            product(interval, multiplier),
            spoken(SHORTEST_DETECTION)
        );
        return Err(unfit(what, remedy));
    }
    Ok(())
}

/// Whether a detection time is more than what a live peer was seen to do: a beat came `overdue` after it was due.
///
/// # Errors
/// With the numbers.
pub fn has_borne(interval: Duration, multiplier: u8, overdue: Duration) -> Result<(), Unfit> {
    let (detection, worst) = (interval * multiplier.into(), interval + overdue);
    if overdue.is_zero() || worst < detection {
        return Ok(());
    }
    let what = format!(
        "{} is too short: the live peer was silent for up to \
         {} in this session",
        product(interval, multiplier),
        spoken(worst)
    );
    Err(unfit(what, "take a longer interval or a larger multiplier"))
}

impl BeatHandle {
    /// Whether what is in force between the two sides fits this machine, and the silences of this session so far. For a
    /// primary, before it registers a protection that rests on it.
    ///
    /// # Errors
    /// In words.
    pub fn fit(&self) -> Result<(), Unfit> {
        let (now, _) = self.negotiation();
        can_time(now.transmit, self.timer())?;
        can_bear(now.transmit, now.own.multiplier)?;
        let Some((receive, Offer { multiplier, .. })) = now.receive.zip(now.peer) else { return Ok(()) };
        can_bear(receive, multiplier)?;
        has_borne(receive, multiplier, now.overdue_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn what_bears_nothing_is_refused_with_the_numbers() {
        for (interval, multiplier, words) in [
            (us(1_000), 1, "(1ms x 1) is too short: a single lost beat"),
            (us(10_000), 1, "(10ms x 1) is too short: a single lost beat"),
            (us(10_000_000), 1, "(10s x 1) is too short: a single lost beat"),
            (us(100), 3, "300us (100us x 3) is too short: "),
        ] {
            let why = can_bear(interval, multiplier).expect_err("unfit").what;
            assert!(why.contains(words), "{why}");
        }
        for (interval, multiplier) in [(us(10_000), 5), (us(1_000), 2), (us(10_000_000), 255)] {
            assert_eq!(can_bear(interval, multiplier), Ok(()));
        }
    }

    #[test]
    fn what_the_machine_cannot_time_is_refused() {
        let timer = Timer { late_p50: us(60), late_max: us(900) };
        assert_eq!(can_time(us(240), timer), Ok(()));
        let why = can_time(us(239), timer).expect_err("unfit").what;
        assert!(
            why.contains("beat interval 239us") && why.contains("at worst 900 us") && why.contains("240us"),
            "{why}"
        );
    }

    #[test]
    fn what_was_seen_of_a_live_peer_must_fit() {
        assert_eq!(has_borne(us(5_000), 3, us(9_999)), Ok(()));
        let why = has_borne(us(5_000), 3, us(10_000)).expect_err("unfit").what;
        assert!(why.contains("15ms (5ms x 3)") && why.contains("silent for up to 15 ms"), "{why}");
    }
}
