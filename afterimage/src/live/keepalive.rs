//! `afterimage keepalive set` and `show`.

use super::{
    save::{Entry, prepare, save},
    text,
};
use crate::{
    cli::{KeepaliveSetArgs, KeepaliveShowArgs, StatusArgs},
    config::time_text,
    find::{find, left},
    print,
    status::{as_json, sockets},
};
use anyhow::{Result, bail};
use api::{
    ANSWER_PATIENCE, KeepaliveReport, NoAnswer, REPORT_SCHEMA, Request, Response, Side, Wanted, ask, ask_all, ask_one,
    keepalive::wished, side_of,
};
use mc_core::id::Name;
use node::{
    beats::Wish,
    exit::{Code, ExitError},
    keepalive::Offer,
    units::spoken,
};
use probe::{
    frequency,
    tune::{self, Assessment, Support, Verdict},
};
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long a change may take to settle: many of the longest beats that it has to wait for, within these bounds.
const SETTLE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// So much of a session may say something of its silences.
const ENOUGH: Duration = Duration::from_secs(60);
/// Interval at which the command checks whether the change is in force.
const LOOK: Duration = Duration::from_millis(10);

fn refused(message: String, remedy: &str) -> anyhow::Error {
    ExitError::new(Code::Failed, message).remedy(remedy).into()
}

fn report(path: &Path, request: Request) -> Result<KeepaliveReport> {
    match ask_one(path, request, ANSWER_PATIENCE)? {
        Response::Keepalive(report) => Ok(*report),
        other => bail!("{} answered a question about its keepalive with {other:?}", path.display()),
    }
}

/// `afterimage keepalive show`
pub fn show(args: &KeepaliveShowArgs) -> Result<Code> {
    let KeepaliveShowArgs { vm, role, run_dir, json } = args;
    let which = StatusArgs { vm: *vm, role: *role, run_dir: run_dir.clone(), json: *json, watch: None };
    if let Some(vm) = vm {
        left(run_dir, *vm, role.as_ref().map_or(&PAIR[..], std::slice::from_ref), "keepalive show")?;
    }
    // Without a word about it, keepers are not meant: they have no beats.
    let keeper = |path: &PathBuf| role.is_none() && side_of(path).is_some_and(|(_, side)| side == Side::Keeper);
    let paths: Vec<PathBuf> = sockets(&which)?.into_iter().filter(|path| !keeper(path)).collect();
    let reports: Vec<KeepaliveReport> =
        ask_all(&paths, &Request::Keepalive).into_iter().map(|(path, answer)| told_by(&path, answer)).collect();
    let heard = reports.iter().all(|report| matches!(report.state.as_str(), "up" | "late"));
    print(&if *json { as_json(&reports, vm.is_some())? } else { reports.iter().map(text::render).collect() })?;
    Ok(if heard { Code::Done } else { Code::Degraded })
}

/// What a process says; of one that says nothing, who it is and why.
fn told_by(path: &Path, answer: std::result::Result<Response, NoAnswer>) -> KeepaliveReport {
    let (state, why) = match answer {
        Ok(Response::Keepalive(report)) => return *report,
        Ok(Response::Refused { message, .. }) => ("none", message),
        Ok(other) => ("none", format!("it answered a question about its keepalive with {other:?}")),
        Err(NoAnswer { role, why }) => (role, why),
    };
    let named = |(vm, side): (Name, Side)| (vm.to_string(), side.as_str().to_owned());
    let (vm, side) = side_of(path).map_or_else(Default::default, named);
    KeepaliveReport {
        schema: REPORT_SCHEMA,
        vm,
        side,
        state: state.to_owned(),
        warnings: vec![why],
        ..KeepaliveReport::default()
    }
}

/// The sides that send beats.
const PAIR: [Side; 2] = [Side::Primary, Side::Standby];

/// `afterimage keepalive set`
pub fn change(args: &KeepaliveSetArgs) -> Result<Code> {
    let wanted = args.role.as_ref().map_or(&PAIR[..], std::slice::from_ref);
    let (path, side) = find(&args.run_dir, args.vm, wanted, "keepalive set")?;
    let before = report(&path, Request::Keepalive)?;
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let wanted = Wanted {
        interval_us: args.interval.map(us),
        min_rx_us: args.min_rx.map(us),
        multiplier: args.multiplier,
        this_side: args.this_side,
        force: args.force,
    };
    let wish = wished(&before.local.advertised, &wanted);
    let edit = prepare(args.save.as_ref(), before.config_file.as_deref(), side, &entries(wish))?;
    let doubt = doubt(&path, &before, wish);
    if let Some(seen) =
        doubt.as_ref().and_then(|doubt| doubt.too_little).filter(|_| !args.force && wish.parameters().is_ok())
    {
        return Err(says_nothing_yet(seen, args.vm));
    }
    let tail = doubt.map(|doubt| doubt.words);
    let ordered = report(&path, Request::KeepaliveSet(wanted))?;
    let mut after = settle(&path, &before)?;
    after.warnings.splice(0..0, ordered.warnings.into_iter().chain(tail));
    expect(&after, &ordered.local.configured)?;
    let saved = save(edit);
    let where_to = saved.as_ref().ok().and_then(Option::as_deref);
    print(&if args.json { as_json(&[&after], true)? } else { told(&after, args.this_side, where_to) })?;
    saved?;
    Ok(Code::Done)
}

/// What was asked for, and what stays: what the next session begins with is what is in force now.
fn entries(wish: Wish) -> Vec<Entry> {
    let entry = |key: &str, value| (key.to_owned(), value);
    vec![
        entry("beat_interval", Some(time_text(wish.interval).into())),
        // Without a wish of its own it follows the interval.
        entry("beat_min_rx", wish.min_rx.map(|min_rx| time_text(min_rx).into())),
        entry("detect_multiplier", Some(i64::from(wish.multiplier).into())),
    ]
}

/// Why a wish may suspect a live peer.
#[derive(Clone, Debug, PartialEq)]
struct Doubt {
    words: String,
    /// After so short a session, in seconds, that it takes --force.
    too_little: Option<f64>,
}

/// What the tuner says of the wish, from what this session has measured so far; nothing if that carries it. Here and not in
/// the process, whose loop must not wait for statistics.
fn doubt(path: &Path, before: &KeepaliveReport, wish: Wish) -> Option<Doubt> {
    let Ok(Response::Measured(measured)) = ask(path, Request::Measured, ANSWER_PATIENCE) else { return None };
    let found = tune::assess(&measured, wish.interval, wish.multiplier);
    let own = before.local.advertised;
    let now = Duration::from_micros(own.interval_us.into()) * u32::from(own.multiplier);
    let shortens = wish.interval * u32::from(wish.multiplier) < now;
    doubted(&found, shortens, &before.vm)
}

fn doubted(found: &Assessment, shortens: bool, vm: &str) -> Option<Doubt> {
    if found.usual_verdict() == Verdict::Carries {
        return None;
    }
    let seen = found.observed_s;
    let more = format!("`afterimage keepalive tune --from live --vm {vm}` has the table");
    let words = if found.support == Support::Untold {
        format!(
            "{seen:.0} s of beats are too few to tell whether a live peer would be suspected at this setting: {more}"
        )
    } else {
        let (low, high) = (frequency(found.false_per_s.low), frequency(found.false_per_s.high));
        format!("by {seen:.0} s of this session's beats, a live peer would be suspected {low} to {high} (95 %): {more}")
    };
    // Who bears more than before risks nothing by not knowing.
    let too_little = (shortens && seen < ENOUGH.as_secs_f64()).then_some(seen);
    Some(Doubt { words, too_little })
}

fn says_nothing_yet(seen: f64, vm: Name) -> anyhow::Error {
    let what = format!(
        "{seen:.0} s of this session are too short to tell how often this detection time would suspect a live peer; \
         nothing was changed"
    );
    let remedy = format!(
        "wait until the session is {} s old (`afterimage keepalive tune --from live --vm {vm}` shows the estimate), \
         or use --force",
        ENOUGH.as_secs()
    );
    refused(what, &remedy)
}

/// Waits until both sides have settled.
fn settle(path: &Path, before: &KeepaliveReport) -> Result<KeepaliveReport> {
    let f = &before.in_force;
    let slowest = f.transmit_interval_us.max(f.receive_interval_us.unwrap_or(0));
    let limit = Duration::from_micros(slowest * 20).clamp(SETTLE.0, SETTLE.1);
    let start = Instant::now();
    loop {
        let now = report(path, Request::Keepalive)?;
        if !now.change_under_way {
            return Ok(now);
        }
        if now.state == "suspect" || now.state == "none" {
            let what = format!("the session ended during the change (role now: {})", now.state);
            return Err(refused(what, "look at `afterimage status`"));
        }
        if start.elapsed() > limit {
            let what = format!(
                "the other side did not confirm within {}. The request stands, nothing that needs its \
                 confirmation is in force, and protection goes on",
                spoken(limit)
            );
            return Err(refused(what, "watch `afterimage keepalive show` until it shows no poll in progress"));
        }
        thread::sleep(LOOK);
    }
}

/// Another operator may have said something else on the other side, at the same moment.
fn expect(after: &KeepaliveReport, wish: &Offer) -> Result<()> {
    if after.local.advertised == *wish {
        return Ok(());
    }
    let what = "a change made on the other side at the same time replaced this one; that change is in force, this \
         one is not";
    Err(refused(what.to_owned(), "check `afterimage keepalive show`, and set values from one side only"))
}

fn told(after: &KeepaliveReport, this_side: bool, saved: Option<&str>) -> String {
    let mut out = vec![format!("{} on {} ({}): in force now\n", after.vm, after.node, after.side)];
    text::both_ways(&mut out, after);
    let own = after.local.advertised;
    let mut say = |text: String| out.push(format!("  {text}\n"));
    if let Some(peer) = after.remote.advertised.filter(|peer| *peer != own && !this_side) {
        say(format!(
            "the other side accepted only part of it: it uses {} x {}, receiving no faster than {}. Its machine \
             cannot keep that timing, or it runs an older afterimage; run the command there, too",
            text::micros(peer.interval_us.into()),
            peer.multiplier,
            text::micros(peer.min_rx_us.into()),
        ));
    }
    after.warnings.iter().for_each(|warning| say(format!("warning: {warning}")));
    if let Some(saved) = saved {
        say(format!("{saved}; the other host has its own file: use --save there, too"));
    }
    out.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::keepalive::Measured;

    #[test]
    fn what_stays_is_saved_beside_what_was_asked_for() {
        let own = Offer { interval_us: 20_000, min_rx_us: 20_000, multiplier: 10 };
        let saved = |wanted: Wanted| {
            let entry = |(key, value): Entry| {
                format!("{key} {}", value.map_or("-".to_owned(), |v| v.to_string().replace('"', "")))
            };
            entries(wished(&own, &wanted)).into_iter().map(entry).collect::<Vec<_>>()
        };
        let interval = Wanted { interval_us: Some(25_000), ..Wanted::default() };
        assert_eq!(saved(interval), ["beat_interval 25ms", "beat_min_rx -", "detect_multiplier 10"]);
        let multiplier = Wanted { multiplier: Some(7), ..Wanted::default() };
        assert_eq!(saved(multiplier), ["beat_interval 20ms", "beat_min_rx -", "detect_multiplier 7"]);
        let min_rx = Wanted { min_rx_us: Some(30_000), ..Wanted::default() };
        assert_eq!(saved(min_rx), ["beat_interval 20ms", "beat_min_rx 30ms", "detect_multiplier 10"]);
    }

    #[test]
    fn a_shorter_detection_time_after_a_short_session_takes_force() {
        let mut found = tune::assess(&Measured::default(), Duration::from_millis(5), 3);
        found.observed_s = 2.0;
        let doubt = doubted(&found, true, "web").unwrap();
        assert_eq!(doubt.too_little, Some(2.0));
        assert!(doubt.words.contains("`afterimage keepalive tune --from live --vm web`"), "{}", doubt.words);
        assert_eq!(doubted(&found, false, "web").unwrap().too_little, None, "it bears more than before");
        found.observed_s = 60.0;
        assert_eq!(doubted(&found, true, "web").unwrap().too_little, None);
    }
}
