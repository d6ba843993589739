//! The operator's end of `keepalive set`, `keepalive show` and `set`.

use super::{
    SCHEMA,
    keepalive::{KeepaliveReport, Wanted},
    save::{Edit, Entry, edit, number},
    settings::{Settings, SettingsReport},
    text,
};
use crate::{
    cli::{KeepaliveSetArgs, KeepaliveShowArgs, SetArgs, Side, StatusArgs},
    exit::{Code, ExitError},
    keepalive::Offer,
    status::{NoAnswer, Request, Response, as_json as all_as_json, ask, ask_all, find, side, sockets, whose},
    tune::{self, Support, Verdict},
    tuner::frequency,
};
use anyhow::{Result, bail};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// For an answer over the control socket.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a change may take to settle: many of the longest beats that it has to wait for, within these bounds.
const SETTLE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn as_json(value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn refused(message: String, remedy: Option<String>) -> anyhow::Error {
    let error = ExitError::new(Code::Failed, message);
    remedy.into_iter().fold(error, |error, remedy| error.remedy(remedy)).into()
}

fn report(path: &Path, request: Request) -> Result<KeepaliveReport> {
    match ask(path, request, PATIENCE)? {
        Response::Keepalive(report) => Ok(*report),
        Response::Refused { message, remedy } => Err(refused(message, remedy)),
        other => bail!("{} answered a question about its keepalive with {other:?}", path.display()),
    }
}

/// `afterimage keepalive show`
pub fn show(args: &KeepaliveShowArgs) -> Result<Code> {
    let KeepaliveShowArgs { vm, role, run_dir, json } = args;
    let which = StatusArgs { vm: *vm, role: *role, run_dir: run_dir.clone(), json: *json, watch: None };
    if let Some(vm) = vm {
        find(run_dir, *vm, role.as_ref().map_or(&PAIR[..], std::slice::from_ref), "keepalive show")?;
    }
    // Without a word about it, keepers are not meant: they have no beats.
    let keeper = |path: &PathBuf| role.is_none() && side(path) == Some(Side::Keeper);
    let paths: Vec<PathBuf> = sockets(&which)?.into_iter().filter(|path| !keeper(path)).collect();
    let reports: Vec<KeepaliveReport> =
        ask_all(&paths, &Request::Keepalive).into_iter().map(|(path, answer)| told_by(&path, answer)).collect();
    let heard = reports.iter().all(|report| matches!(report.state.as_str(), "up" | "late"));
    print(&if *json { all_as_json(&reports, vm.is_some())? } else { reports.iter().map(text::render).collect() })?;
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
    let (vm, side) = whose(path);
    KeepaliveReport {
        schema: SCHEMA,
        vm,
        side,
        state: state.to_owned(),
        warnings: vec![why],
        ..KeepaliveReport::default()
    }
}

/// What has beats.
const PAIR: [Side; 2] = [Side::Primary, Side::Standby];

/// What `--save` asks for: the file, edited and checked, and not written yet.
fn prepare(
    save: Option<&Option<PathBuf>>,
    file: Option<&Path>,
    side: Side,
    entries: &[Entry],
) -> Result<Option<Edit>, ExitError> {
    let Some(named) = save else { return Ok(None) };
    let Some(file) = named.as_deref().or(file) else {
        let what = "--save: the process was started without a configuration file; nothing was changed";
        return Err(ExitError::usage(what).remedy("name one: --save=FILE"));
    };
    edit(file, side, entries).map(Some)
}

/// Writes what [`prepare`] made, after the change. What was written where.
///
/// # Errors
/// They say both: that the change is in force, and that the file does not have it.
fn save(edit: Option<Edit>) -> Result<Option<String>, ExitError> {
    let Some(edit) = edit else { return Ok(None) };
    edit.write().map_err(|error| {
        let remedy = "write it into the file by hand, or it is lost when the process ends; or run the command again";
        let message = format!("the change is in force, but it was not saved: {}", error.message);
        ExitError { message, remedy: error.remedy.or_else(|| Some(remedy.to_owned())), ..error }
    })?;
    Ok(Some(edit.told()))
}

// --- keepalive set ---

/// `afterimage keepalive set`
pub fn change(args: &KeepaliveSetArgs) -> Result<Code> {
    let wanted = args.role.as_ref().map_or(&PAIR[..], std::slice::from_ref);
    let (path, side) = find(&args.run_dir, args.vm, wanted, "keepalive set")?;
    let before = report(&path, Request::Keepalive)?;
    let edit = prepare(args.save.as_ref(), before.config_file.as_deref(), side, &entries(args))?;
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let wanted = Wanted {
        interval_us: args.interval.map(us),
        min_rx_us: args.min_rx.map(us),
        multiplier: args.multiplier,
        this_side: args.this_side,
        force: args.force,
    };
    let tail = tail(&path, &before, &wanted);
    let ordered = report(&path, Request::KeepaliveSet(wanted))?;
    let mut after = settle(&path, &before)?;
    after.warnings.splice(0..0, ordered.warnings.into_iter().chain(tail));
    expect(&after, &ordered.local.configured)?;
    let saved = save(edit);
    let where_to = saved.as_ref().ok().and_then(Option::as_deref);
    print(&if args.json { as_json(&after)? } else { told(&after, args.this_side, where_to) })?;
    saved?;
    Ok(Code::Done)
}

fn entries(args: &KeepaliveSetArgs) -> Vec<Entry> {
    let us = |d: Duration| number(u64::try_from(d.as_micros()).unwrap_or(u64::MAX), 1000);
    let mut entries: Vec<Entry> = Vec::new();
    entries.extend(args.interval.map(|interval| ("beat_interval_ms", Some(us(interval)))));
    // Without a wish of its own it follows the interval.
    if args.interval.is_some() || args.min_rx.is_some() {
        entries.push(("beat_min_rx_ms", args.min_rx.map(us)));
    }
    entries.extend(args.multiplier.map(|k| ("detect_multiplier", Some(i64::from(k).into()))));
    entries
}

/// What the tuner says of the wish, from what this session has measured so far; nothing if that carries it. Here and not in
/// the process, whose loop must not wait for statistics.
fn tail(path: &Path, before: &KeepaliveReport, wanted: &Wanted) -> Option<String> {
    let Ok(Response::Measured(measured)) = ask(path, Request::Measured, PATIENCE) else { return None };
    let own = before.local.advertised;
    let interval = Duration::from_micros(wanted.interval_us.unwrap_or(own.interval_us.into()));
    let multiplier = wanted.multiplier.unwrap_or(own.multiplier);
    let found = tune::assess(&measured, interval, multiplier);
    if found.usual_verdict() == Verdict::Carries {
        return None;
    }
    let (seen, more) = (found.observed_s, "`afterimage keepalive tune --from live` has the table");
    if found.support == Support::Untold {
        return Some(format!(
            "{seen:.0} s of beats as they were cannot tell whether a live peer keeps to this: {more}"
        ));
    }
    let (low, high) = (frequency(found.false_per_s.low), frequency(found.false_per_s.high));
    Some(format!(
        "by {seen:.0} s of this session's beats, a live peer would be suspected {low} to {high} (95 %): {more}"
    ))
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
            let what = format!("the session ended while the change was under way (it is {} now)", now.state);
            return Err(refused(what, Some("look at `afterimage status`".to_owned())));
        }
        if start.elapsed() > limit {
            let what = format!(
                "the other side has not confirmed within {limit:?}: it stays asked, nothing that it must confirm is in force, \
                 and protection goes on"
            );
            return Err(refused(what, Some("look at `afterimage keepalive show` until no poll is in progress".into())));
        }
        thread::sleep(LOOK);
    }
}

/// Another operator may have said something else on the other side, at the same moment.
fn expect(after: &KeepaliveReport, wish: &Offer) -> Result<()> {
    if after.local.advertised == *wish {
        return Ok(());
    }
    let what = "another change, made on the other side at the same time, took the place of this one; all of that is in force, \
                and nothing of this";
    Err(refused(what.to_owned(), Some("look at `afterimage keepalive show`, and agree on who sets what".to_owned())))
}

fn told(after: &KeepaliveReport, this_side: bool, saved: Option<&str>) -> String {
    let mut out = vec![format!("{} on {} ({}): in force now\n", after.vm, after.node, after.side)];
    text::both_ways(&mut out, after);
    let own = after.local.advertised;
    let mut say = |text: String| out.push(format!("  {text}\n"));
    if let Some(peer) = after.remote.advertised.filter(|peer| *peer != own && !this_side) {
        say(format!(
            "the other side did not take all of it: it keeps to {} x {}, receiving no faster than {}; either its machine \
             cannot time what was asked, or it is an older afterimage: run the command there, too",
            text::micros(peer.interval_us.into()),
            peer.multiplier,
            text::micros(peer.min_rx_us.into()),
        ));
    }
    after.warnings.iter().for_each(|warning| say(format!("warning: {warning}")));
    if let Some(saved) = saved {
        say(format!("{saved}; the other host has a file of its own: --save there, too"));
    }
    out.concat()
}

// --- set ---

/// `afterimage set`
pub fn set(args: &SetArgs) -> Result<Code> {
    let settings = Settings::new(&args.settings).map_err(ExitError::usage)?;
    let (path, side) = find(&args.run_dir, args.vm, &[Side::Primary], "set")?;
    let ask = |settings| match ask(&path, Request::Set(settings), PATIENCE)? {
        Response::Settings(report) => Ok(*report),
        Response::Refused { message, remedy } => Err(refused(message, remedy)),
        other => bail!("{} answered `set` with {other:?}", path.display()),
    };
    let edit = match &args.save {
        None => None,
        Some(_) => {
            let file = ask(Settings::default())?.config_file;
            let (epoch, staging) = (settings.epoch_us, settings.max_staging_bytes);
            let entries = [
                epoch.map(|us| ("epoch_ms", Some(number(us, 1000)))),
                staging.map(|bytes| ("staging_mib", Some(number(bytes, 1 << 20)))),
                settings.on_cap.map(|wish| ("on_cap", Some(wish.to_string().into()))),
            ];
            let entries: Vec<Entry> = entries.into_iter().flatten().collect();
            prepare(args.save.as_ref(), file.as_deref(), side, &entries)?
        }
    };
    let report: SettingsReport = ask(settings)?;
    let saved = save(edit);
    let mut out = if args.json { as_json(&report)? } else { report.text() };
    if let (Ok(Some(saved)), false) = (&saved, args.json) {
        out.push_str(&format!("  {saved}\n"));
    }
    print(&out)?;
    saved?;
    Ok(Code::Done)
}
