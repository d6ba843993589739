//! The faults, and what must hold under each.

use crate::{
    beats::MULTIPLIER,
    lab::{Heard, Lab},
    said::{Down, Up},
    session::{Remote, Session},
};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// 268 ms, seven times: the relay's two emulated hosts are silent for up to 0.7 s without any fault.
const TIMEOUT: u8 = 16;
/// 1.07 s, seven times: longer than beats take to tell.
const LONG_TIMEOUT: u8 = 18;
/// Less than all tries take, more than one.
const MOMENT: Duration = Duration::from_millis(500);

type Verb = &'static [&'static str];

/// One test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    queues: usize,
    on: Verb,
    off: Verb,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Everything arrives in the end, and the link stays: at least so many items each way while the fault lasts, or it lasts
    /// for a moment. The relay must have done this to some frames.
    Survives { items: Option<u64>, counter: Option<&'static str> },
    /// Each end goes down by itself, and these hosts suspect their peer.
    Dies { suspects: &'static [&'static str] },
    /// Beats tell first, and both ends revoke while their work requests are still under way, as a takeover does.
    Revokes,
    /// As `Dies`, for the host that lives; the other one is frozen, thawed, and learns it then.
    Freezes,
    /// The other one is gone, and comes back as a stranger.
    Kills,
}

const CLEAR: Verb = &["link", "both", "clear"];
const BOTH: &[&str] = &["a", "b"];

const fn survives(name: &'static str, on: Verb, off: Verb, items: Option<u64>, counter: Option<&'static str>) -> Case {
    Case { name, queues: 1, on, off, outcome: Outcome::Survives { items, counter } }
}

const fn dies(name: &'static str, on: Verb, off: Verb, suspects: &'static [&'static str]) -> Case {
    Case { name, queues: 1, on, off, outcome: Outcome::Dies { suspects } }
}

const fn striped(case: Case) -> Case {
    Case { queues: 3, ..case }
}

/// The killed host is last: it boots meanwhile.
pub(crate) const CASES: [Case; 18] = [
    survives("loss_of_1_percent", &["link", "both", "drop=1"], CLEAR, Some(150), Some("dropped")),
    survives("loss_of_5_percent", &["link", "both", "drop=5"], CLEAR, Some(60), Some("dropped")),
    striped(survives("loss_of_5_percent_striped", &["link", "both", "drop=5"], CLEAR, Some(60), Some("dropped"))),
    survives("loss_of_20_percent", &["link", "both", "drop=20"], CLEAR, Some(20), Some("dropped")),
    survives("delay_with_jitter", &["link", "both", "delay=20", "jitter=10"], CLEAR, Some(60), None),
    survives("doubles_and_flipped_bits", &["link", "both", "dup=10", "corrupt=2"], CLEAR, Some(60), Some("duplicated")),
    survives("short_cut_of_one_way", &["link", "a>b", "cut=1"], CLEAR, None, Some("cut")),
    survives("short_cut_of_both_ways", &["link", "both", "cut=1"], CLEAR, None, Some("cut")),
    survives("short_cut_of_port_4791", &["link", "both", "port=4791", "cut=1"], CLEAR, None, Some("cut")),
    survives("carrier_off_for_a_moment", &["carrier", "a", "down"], &["carrier", "a", "up"], None, None),
    survives("host_frozen_for_a_moment", &["freeze", "b"], &["thaw", "b"], None, None),
    dies("cut_of_one_way", &["link", "a>b", "cut=1"], CLEAR, &["b"]),
    striped(dies("cut_of_both_ways_striped", &["link", "both", "cut=1"], CLEAR, BOTH)),
    dies("cut_of_port_4791", &["link", "both", "port=4791", "cut=1"], CLEAR, BOTH),
    dies("carrier_off", &["carrier", "a", "down"], &["carrier", "a", "up"], BOTH),
    Case { outcome: Outcome::Revokes, ..dies("cut_of_both_ways_and_revoked", &["link", "both", "cut=1"], CLEAR, BOTH) },
    Case { name: "frozen_host", queues: 1, on: &["freeze", "b"], off: &["thaw", "b"], outcome: Outcome::Freezes },
    Case { name: "killed_host", queues: 1, on: &["kill", "b"], off: &["start", "b"], outcome: Outcome::Kills },
];

impl Case {
    /// Runs it, in sessions from `number` on.
    pub(crate) fn run(&self, lab: &Lab, number: u64) -> anyhow::Result<()> {
        let timeout = if matches!(self.outcome, Outcome::Kills | Outcome::Revokes) { LONG_TIMEOUT } else { TIMEOUT };
        let session = Session::start(lab, number, timeout, self.queues)?;
        match self.outcome {
            Outcome::Survives { items, counter } => self.survive(lab, session, items, counter),
            Outcome::Dies { suspects } => self.die(lab, session, suspects),
            Outcome::Revokes => self.revoke(lab, session),
            Outcome::Freezes => self.freeze(lab, session),
            Outcome::Kills => self.kill(lab, session),
        }
    }

    /// The wire and the hosts as they were before, whatever happened.
    pub(crate) fn mend(&self, lab: &Lab) {
        // What was not done need not be undone.
        for verb in [self.off, CLEAR] {
            let _ = lab.call(verb);
        }
    }

    fn survive(
        &self,
        lab: &Lab,
        mut session: Session,
        items: Option<u64>,
        counter: Option<&str>,
    ) -> anyhow::Result<()> {
        let (before, start) = (stats(lab)?, Instant::now());
        lab.call(self.on)?;
        match items {
            Some(items) => session.flows(items)?,
            None => sleep(MOMENT),
        }
        lab.call(self.off)?;
        let (lasted, after) = (start.elapsed(), stats(lab)?);
        session.flows(20)?;
        let resumed = start.elapsed().saturating_sub(lasted);
        let [a, b] = session.finish(lab)?;
        print!("  {} + {} items; the fault lasted {lasted:.1?}, 20 more each way {resumed:.1?} later", a.sent, b.sent);
        let frames = sum(&after, "in") - sum(&before, "in");
        let touched = |counter: &str| sum(&after, counter) - sum(&before, counter);
        println!("; {} of {frames} frames {}", counter.map_or(0, touched), counter.unwrap_or("touched"));
        ensure!(counter.is_none_or(|counter| touched(counter) > 0), "the fault touched nothing: it proves nothing");
        Ok(())
    }

    fn die(&self, lab: &Lab, mut session: Session, suspects: &[&str]) -> anyhow::Result<()> {
        let fault = Instant::now();
        lab.call(self.on)?;
        for end in &mut session.ends {
            died(end, fault)?;
            if suspects.contains(&end.host) {
                suspected(end, fault)?;
            }
        }
        lab.call(self.off)?;
        prefixes(&session)?;
        session.quit(lab)?;
        session.ends.iter_mut().try_for_each(|end| end.end().map(drop))
    }

    fn revoke(&self, lab: &Lab, mut session: Session) -> anyhow::Result<()> {
        let fault = Instant::now();
        lab.call(self.on)?;
        session.ends.iter_mut().try_for_each(|end| suspected(end, fault).map(drop))?;
        session.quit(lab)?;
        for end in &mut session.ends {
            let (_, down) = end.down()?;
            println!("  {}: {}", end.host, down.words);
            ensure!(down.orderly, "{}: revoked too late, RC told first: {}", end.host, down.words);
            end.check_safe(&down)?;
            end.end()?;
        }
        lab.call(self.off)?;
        prefixes(&session)
    }

    fn freeze(&self, lab: &Lab, mut session: Session) -> anyhow::Result<()> {
        let fault = Instant::now();
        lab.call(self.on)?;
        died(&mut session.ends[0], fault)?;
        suspected(&mut session.ends[0], fault)?;
        lab.call(self.off)?;
        let thawed = Instant::now();
        died(&mut session.ends[1], thawed).context("after the thaw")?;
        prefixes(&session)?;
        session.quit(lab)?;
        session.ends.iter_mut().try_for_each(|end| end.end().map(drop))
    }

    /// Beats tell first. The host that comes back is not taken for the one that died; with a new session all is well.
    fn kill(&self, lab: &Lab, mut session: Session) -> anyhow::Result<()> {
        let fault = Instant::now();
        lab.call(self.on)?;
        let [a, _] = &mut session.ends;
        let suspicion = suspected(a, fault)?;
        let death = died(a, fault)?;
        ensure!(suspicion < death, "RC ({death:.1?}) told before the beats ({suspicion:.1?})");
        lab.call(self.off)?;
        let address = serde_json::to_string(&a.up.beats)?;
        let job = lab.start("b", &["--revenant", &session.number.to_string(), &address])?;
        let how = loop {
            match job.heard.recv()? {
                Heard::Line(_, line) => println!("  {line}"),
                Heard::Over(how) => break how,
            }
        };
        ensure!(how.starts_with("exit code 0."), "the host that came back cannot beat: {how}");
        session.quit(lab)?;
        let beats = session.ends[0].end()?;
        println!("  a, of the host that came back: {beats:?}");
        let only_strays = beats.foreign > 0 && beats.unauthentic > 0 && beats.after_suspicion == 0;
        ensure!(only_strays && beats.state == "Suspect", "{beats:?}");
        Session::start(lab, session.number + 1, TIMEOUT, 1)?.finish(lab).context("the session with the new host")?;
        Ok(())
    }
}

/// The end's link goes down by itself, and as it must. How long after the fault.
fn died(end: &mut Remote, fault: Instant) -> anyhow::Result<Duration> {
    let (at, down) = end.down()?;
    let after = at.saturating_duration_since(fault);
    let Up { gives_up_ms, .. } = end.up;
    let Down { quiet_ms, words, .. } = &down;
    println!(
        "  {}: RC's error {after:.1?} after the fault ({quiet_ms} ms after the last sign); gives_up_after {gives_up_ms} ms",
        end.host
    );
    println!("     {words}");
    end.check_safe(&down)?;
    end.check_words(&down)?;
    Ok(after)
}

/// The end's detector suspects the peer. How long after the fault.
fn suspected(end: &mut Remote, fault: Instant) -> anyhow::Result<Duration> {
    let (at, silent_ms, missed) = end.suspicion()?;
    let after = at.saturating_duration_since(fault);
    println!("  {}: beats suspect {after:.1?} after the fault: {missed} missed in {silent_ms} ms", end.host);
    ensure!(missed == u32::from(MULTIPLIER), "{missed} missed, and K is {MULTIPLIER}");
    Ok(after)
}

/// What arrived is the beginning of what was sent (each item was compared when it came).
fn prefixes(session: &Session) -> anyhow::Result<()> {
    let [a, b] = session.counts();
    println!("  a {a:?}, b {b:?}");
    ensure!(a.received <= b.sent && b.received <= a.sent, "more arrived than was sent");
    Ok(())
}

fn stats(lab: &Lab) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&lab.call(&["stats"])?)?)
}

/// Of both directions.
fn sum(stats: &Value, counter: &str) -> u64 {
    ["a>b", "b>a"].iter().filter_map(|way| stats[way][counter].as_u64()).sum()
}
