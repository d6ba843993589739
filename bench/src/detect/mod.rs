//! `mc-bench detect`: how long the product's detector takes to suspect a peer that dies, freezes or loses its link at a random moment; and
//! whether it ever suspects one that lives, under loss, jitter and full bulk load.
//!
//! A death's time is read just before it is brought about, the suspicion's by the beat thread that raises it; both of `CLOCK_MONOTONIC`
//! of one host. A peer that is killed is a process that gets SIGKILL, one that freezes gets SIGSTOP, one whose link is lost is cut
//! off by [`filter`]. Sessions of one batch die at one moment, but their beats are not in step: each has jitter of its own.

mod args;
mod dice;
mod filter;
mod pair;

pub use args::DetectArgs;
pub use filter::{Failing, Filter};
pub use pair::{Setting, serve};

use crate::{
    interrupt,
    link::{Network, Poll},
    load::Plan,
    record::{Better, Bound, Measure, Section, Timeline, Unit},
    side::Side,
    sys, units,
};
use anyhow::{Result, bail};
use dice::Dice;
use mc_core::{histogram::Histogram, id::Time};
use node::{clock::Clock, keepalive::Verdict};
use pair::Pair;
use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

/// The share of deaths to be detected in time, percent.
const IN_TIME: f64 = 99.9;
/// Runs that the deaths of each case are divided into.
const RUNS: u32 = 5;
/// Sessions that wait for false suspicions.
const LIVING: u32 = 4;
/// After so many intervals a death will never be detected.
const NEVER: u32 = 100;
/// Bytes of pages in the load's checkpoints, and how many are under way.
const LOAD: (usize, usize) = (16 << 20, 4);

/// How long a load goes on before it is looked whether somebody interrupted it.
const SLICE: Duration = Duration::from_secs(10);

/// How a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Killed,
    Frozen,
    Cut,
}

impl Death {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Frozen => "frozen",
            Self::Cut => "link lost",
        }
    }
}

/// What a case's deaths came to.
#[derive(Debug, Default)]
struct Found {
    /// Of each run.
    runs: Vec<Histogram>,
    all: Histogram,
    deaths: u64,
    in_time: u64,
    /// Suspected while they lived.
    early: u64,
    /// The last beat of one of them came so long after it.
    longest_after: Duration,
    /// A detector's own thread was so late: it lengthens detection, and is no fault of the peer's.
    own_late_us: u64,
    /// Seconds since the case began, µs.
    points: Vec<(f64, f64)>,
}

/// Runs it all.
///
/// # Errors
/// Devices or sockets are not to be had; a peer does not come up; a death is never detected.
pub fn run(args: &DetectArgs) -> Result<Section> {
    let args = args.settled();
    let start = Instant::now();
    let seed = args.seed.unwrap_or_else(|| Clock.now().0);
    let (over, ports) = match args.place.transport {
        Network::Rdma => ("UD", args.place.ports()?),
        Network::Tcp => ("UDP", None),
    };
    let mut section = Section::new("detect", format!("deaths detected by the product's beats over {over}"))
        .setting("deaths of the first setting", args.deaths)
        .setting("deaths of each other case", (args.deaths / 10).max(1))
        .setting("sessions that die together", args.parallel)
        .setting("false suspicions waited for", format!("{} s each, {LIVING} sessions", args.false_for.as_secs_f64()));
    section.seed = Some(seed);
    let mut dice = Dice::new(seed);
    let settings = args.interval.iter().flat_map(|interval| {
        args.multiplier.iter().map(|multiplier| Setting { interval: *interval, multiplier: *multiplier })
    });
    for (number, setting) in settings.enumerate().take_while(|(number, _)| *number == 0 || !interrupt::asked()) {
        let deaths = if number == 0 { args.deaths } else { (args.deaths / 10).max(1) };
        one_case(&mut section, &args, ports.as_ref(), setting, Death::Killed, deaths, &mut dice)?;
        if number == 0 && !interrupt::asked() {
            for death in [Death::Frozen, Death::Cut] {
                one_case(&mut section, &args, ports.as_ref(), setting, death, (deaths / 10).max(1), &mut dice)?;
            }
            living(&mut section, &args, ports.as_ref(), setting, &mut dice)?;
        }
    }
    section.notes.push("no other tool measures this: there is no yardstick".to_owned());
    section.took_s = start.elapsed().as_secs_f64();
    Ok(section)
}

fn named(setting: Setting) -> String {
    format!("{} ms x {}", units::us(setting.interval) / 1e3, setting.multiplier)
}

fn one_case(
    section: &mut Section,
    args: &DetectArgs,
    ports: Option<&(crate::link::Port, crate::link::Port)>,
    setting: Setting,
    death: Death,
    deaths: u32,
    dice: &mut Dice,
) -> Result<()> {
    let case = format!("{}, {}", named(setting), death.name());
    let mut found = Found::default();
    let start = Instant::now();
    for run in interrupt::rounds(RUNS.min(deaths)) {
        let until = u64::from(deaths) * u64::from(run) / u64::from(RUNS.min(deaths));
        let mut times = Histogram::new();
        while found.deaths < until && (found.deaths == 0 || !interrupt::asked()) {
            let many = args.parallel.min(u32::try_from(until - found.deaths)?);
            batch(&mut found, &mut times, ports, setting, death, many, dice, start)?;
        }
        found.all.merge(&times);
        found.runs.push(times);
    }
    let at = |q: f64| found.all.at(q);
    eprintln!(
        "mc-bench: {case}: {} deaths, {} in time, p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms",
        found.deaths,
        found.in_time,
        units::us(at(0.5)) / 1e3,
        units::us(at(0.99)) / 1e3,
        units::us(found.all.max()) / 1e3
    );
    record(section, setting, &case, found);
    Ok(())
}

fn record(section: &mut Section, setting: Setting, case: &str, found: Found) {
    let beats = u32::from(setting.multiplier);
    let (least, most) = (units::us(setting.interval * beats), units::us(setting.interval * (beats + 1)));
    let share = 100.0 * found.in_time as f64 / (found.deaths as f64).max(1.0);
    section.measures.push(
        Measure::new("detected within K+1 beats", case, Unit::Percent, Better::Higher, vec![share])
            .bound(Bound::at_least(IN_TIME))
            .column("deaths", found.deaths as f64)
            .column("late", (found.deaths - found.in_time) as f64)
            .column("suspected alive", found.early as f64)
            .column("heard after death, at most[usec]", units::us(found.longest_after))
            .column("own thread late, at most[usec]", found.own_late_us as f64),
    );
    let runs = found.runs.iter().map(|run| units::us(run.at(0.5))).collect();
    section.measures.push(
        Measure::new("detection time", case, Unit::Usec, Better::Lower, runs)
            .column("K beats[usec]", least)
            .column("K+1 beats[usec]", most)
            .column("99%[usec]", units::us(found.all.at(0.99)))
            .column("99.9%[usec]", units::us(found.all.at(0.999)))
            .column("max[usec]", units::us(found.all.max()))
            .times(found.all),
    );
    let (name, case) = ("detection times".to_owned(), case.to_owned());
    section.timelines.push(Timeline { name, case, unit: Unit::Usec, points: found.points });
}

/// Brings a death about, as punctually as this host permits: a busy one would otherwise come between the clock and the signal, and
/// the detector be blamed for it. When it was.
fn bring_about(pair: &mut Pair, death: Death) -> Result<Time> {
    // Not permitted everywhere; the beats then are as unpunctual.
    let _ = sys::real_time();
    let died = Clock.now();
    match death {
        Death::Killed => pair.kill()?,
        Death::Frozen => pair.freeze()?,
        Death::Cut => pair.near.iter().for_each(|near| near.cut.store(true, Ordering::Release)),
    }
    Ok(died)
}

/// One process's death: of so many sessions.
#[expect(clippy::too_many_arguments, reason = "what a batch is made of")]
fn batch(
    found: &mut Found,
    times: &mut Histogram,
    ports: Option<&(crate::link::Port, crate::link::Port)>,
    setting: Setting,
    death: Death,
    many: u32,
    dice: &mut Dice,
    start: Instant,
) -> Result<()> {
    let mut pair = Pair::start(ports, setting, many, Failing::default(), dice.roll())?;
    // Anywhere in their beats: a whole number of them would be the same moment again and again.
    thread::sleep(setting.interval.mul_f64(3.0 + 4.0 * dice.share()));
    let alive: Vec<bool> = pair.near.iter().map(|near| near.beats.verdict() == Verdict::Up).collect();
    let died = thread::scope(|scope| scope.spawn(|| bring_about(&mut pair, death)).join());
    let died = died.unwrap_or_else(|_| bail!("the thread that kills has died itself"))?;
    let (since, beats) = (Instant::now(), u32::from(setting.multiplier));
    while pair.near.iter().any(|near| near.beats.verdict() != Verdict::Suspect) {
        if since.elapsed() > setting.interval * beats * NEVER {
            bail!("a death was not detected within {NEVER} times {}", named(setting));
        }
        thread::sleep(Duration::from_millis(1));
    }
    for (near, alive) in pair.near.iter().zip(alive) {
        found.deaths += 1;
        // A beat after it: the signal was on its way, or the beat was.
        let after = near.beats.last_heard().since(died);
        found.own_late_us = found.own_late_us.max(near.beats.stats().max_self_late_us);
        found.longest_after = found.longest_after.max(after);
        let took = near.beats.suspicion().map_or(Duration::MAX, |why| why.at.since(died));
        if !alive {
            found.early += 1;
            continue;
        }
        times.record(took);
        found.in_time += u64::from(took <= setting.interval * (beats + 1));
        found.points.push((start.elapsed().as_secs_f64(), units::us(took)));
    }
    Ok(())
}

/// Peers that live: whoever suspects one of them is wrong.
fn living(
    section: &mut Section,
    args: &DetectArgs,
    ports: Option<&(crate::link::Port, crate::link::Port)>,
    setting: Setting,
    dice: &mut Dice,
) -> Result<()> {
    let time = args.false_for;
    let jitter = setting.interval / 2;
    let cases = [
        ("5 % loss", Failing { loss: 0.05, jitter: Duration::ZERO }, false),
        ("late by up to half an interval", Failing { loss: 0.0, jitter }, false),
        ("full bulk load", Failing::default(), true),
    ];
    for (name, failing, load) in cases.into_iter().take_while(|_| !interrupt::asked()) {
        let start = Instant::now();
        let pair = Pair::start(ports, setting, LIVING, failing, dice.roll())?;
        let rate = if load { Some(bulk(args, time)?) } else { None };
        if rate.is_none() {
            interrupt::sleep(time);
        }
        let wrong = pair.near.iter().filter(|near| near.beats.verdict() == Verdict::Suspect).count();
        let mut gaps = Histogram::new();
        let (mut heard, mut missed) = (0, 0);
        for near in &pair.near {
            let stats = near.beats.stats();
            (heard, missed) = (heard + stats.received, missed + stats.missed);
            near.beats.measured("", None).iter().for_each(|measured| gaps.merge(&measured.gap));
        }
        // By its wish: `compare` knows it again. One that was cut short says so.
        let cut = if interrupt::asked() {
            format!(", cut short after {:.0} s", start.elapsed().as_secs_f64())
        } else {
            String::new()
        };
        let case = format!("{}, {name}, {LIVING} sessions for {} s{cut}", named(setting), time.as_secs_f64());
        eprintln!("mc-bench: {case}: {wrong} suspected; longest gap {:.1} ms", units::us(gaps.max()) / 1e3);
        let mut measure = Measure::new("false suspicions", case, Unit::Count, Better::Lower, vec![wrong as f64])
            .column("beats heard", heard as f64)
            .column("overdue", missed as f64)
            .column("longest gap[usec]", units::us(gaps.max()))
            .times(gaps);
        if let Some(rate) = rate {
            measure = measure.column("load[MB/sec]", rate).bound(Bound::at_most(0.0));
        }
        section.measures.push(measure);
    }
    Ok(())
}

/// Checkpoints as fast as they go, for so long, or until somebody interrupts it. MB/sec, over time.
fn bulk(args: &DetectArgs, time: Duration) -> Result<f64> {
    let mut side = Side::new(&args.place)?;
    let (start, mut sum, mut seconds) = (Instant::now(), 0.0, 0.0);
    while seconds == 0.0 || (start.elapsed() < time && !interrupt::asked()) {
        let time = time.saturating_sub(start.elapsed()).clamp(Duration::from_millis(100), SLICE);
        let plan = Plan { bytes: LOAD.0, depth: LOAD.1, every: None, time, poll: Poll::Event };
        let outcome = side.once(&plan, &mut || {})?;
        (sum, seconds) = (sum + outcome.average * time.as_secs_f64(), seconds + time.as_secs_f64());
    }
    Ok(sum / seconds)
}
