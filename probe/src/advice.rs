//! What each setting would do, from what was measured; and which to use.
//!
//! Everything that was measured counts: each phase, and what either end heard. A setting is judged by the worst of them. The statistics
//! are [`crate::tune`]'s.

mod text;

pub use text::{frequency, render};

use crate::{
    ProbeFile,
    tune::{self, Assessment, Limit, Model, Support, Verdict},
};
use mc_core::detector::{MAX_INTERVAL, MIN_INTERVAL};
use node::{keepalive::Measured, units::time};
use serde::Serialize;
use std::{str::FromStr, time::Duration};

/// The version of the JSON.
const SCHEMA: u32 = 1;
/// Intervals to look at, ms, as far as they are near the measured one.
const INTERVALS_MS: [u64; 10] = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200];
/// And multipliers.
const MULTIPLIERS: [u8; 6] = [2, 3, 4, 5, 7, 10];
/// The default of what is bearable.
const ONE_A_YEAR: Frequency = Frequency { per_s: 1.0 / 31_557_600.0 };
/// Settings whose bounds differ by less than this are equal: then the longer interval costs less.
const ALIKE: f64 = 1.2;

/// One end's measurements of one phase.
#[derive(Clone, Debug)]
struct View<'a> {
    /// "loaded, heard here".
    name: String,
    model: Model<'a>,
    /// What the end measured that sent the beats.
    sender: Option<&'a Measured>,
    measured: &'a Measured,
}

/// A setting, by the worst view.
#[derive(Clone, Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    assessment: Assessment,
    verdict: Verdict,
    /// Of which view.
    worst: String,
    #[serde(skip)]
    view: usize,
}

/// What was fitted, for the record.
#[derive(Clone, Debug, Serialize)]
struct Fit {
    view: String,
    observed_s: f64,
    gaps: u64,
    longest_excess_s: f64,
    /// Generalised Pareto: threshold and scale in seconds, shape, values over the threshold.
    tail: Option<FitTail>,
    lost: u64,
    /// Runs from this length on are geometric, with this ratio.
    runs_from: u32,
    runs: u64,
    run_ratio: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct FitTail {
    threshold_s: f64,
    scale_s: f64,
    shape: f64,
    over: u64,
}

/// Everything that is said; as JSON, what `afterimage keepalive tune --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Advice {
    schema: u32,
    kind: &'static str,
    measured_interval_s: f64,
    bearable_per_s: f64,
    /// Whether that was said, and is not the default.
    #[serde(skip)]
    bearable_said: bool,
    detect_within_s: Option<f64>,
    rows: Vec<Row>,
    recommended: Option<Row>,
    /// Whether the measured tail carries the wish.
    pub carried: bool,
    limits: Vec<String>,
    warnings: Vec<String>,
    fits: Vec<Fit>,
}

/// What is wanted of a setting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// A dead peer is suspected within this time, in 99 of 100 cases.
    pub detect_within: Option<Duration>,
    /// A live peer is suspected at most this often; without a word about it once a year.
    pub false_failovers: Option<Frequency>,
    /// Only this interval and multiplier is assessed.
    pub what_if: Option<(Duration, u8)>,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frequency {
    /// Times per second.
    pub per_s: f64,
}

const DAY: f64 = 86_400.0;
const PERIODS: [(&str, f64); 5] =
    [("hour", 3600.0), ("day", DAY), ("week", 7.0 * DAY), ("month", 365.25 / 12.0 * DAY), ("year", 365.25 * DAY)];

impl FromStr for Frequency {
    type Err = String;

    /// Reads "1/year".
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || {
            format!("invalid frequency {text:?}: expected a number per hour, day, week, month or year, such as 1/year")
        };
        let (number, period) = text.split_once('/').ok_or_else(error)?;
        let number: f64 = number.parse().map_err(|_| error())?;
        let (_, seconds) = PERIODS.into_iter().find(|(name, _)| *name == period).ok_or_else(error)?;
        if !(number.is_finite() && number > 0.0) {
            return Err(error());
        }
        Ok(Self { per_s: number / seconds })
    }
}

fn views(file: &ProbeFile) -> Vec<View<'_>> {
    let mut views = vec![];
    for phase in &file.phases {
        let (here, there) = (Some(&phase.here), phase.there.as_ref());
        for (end, measured, sender) in [("here", here, there), ("there", there, here)] {
            let Some(measured) = measured else { continue };
            let name = format!("{}, heard {end}", phase.name);
            views.push(View { name, model: Model::fit(measured), sender, measured });
        }
    }
    views
}

/// What the measurements of `file` say of a wish.
#[must_use]
pub fn advise(file: &ProbeFile, args: &Wish) -> Advice {
    let views = views(file);
    let bearable = args.false_failovers.unwrap_or(ONE_A_YEAR).per_s;
    let measured = views.iter().map(|v| v.measured.interval()).max().unwrap_or(MIN_INTERVAL);
    let within = args.detect_within.map(|d| d.as_secs_f64());
    let settings = args.what_if.map_or_else(|| settings(measured, args.detect_within), |one| vec![one]);
    let rows: Vec<Row> = settings.into_iter().map(|(interval, k)| worst(&views, interval, k, bearable)).collect();
    let recommended = recommend(&rows, within, bearable).cloned();
    // Of the one setting that was asked about everything is told, whatever comes of it.
    let judged = if args.what_if.is_some() { rows.first() } else { recommended.as_ref() };
    let carried = judged.is_some_and(|row| {
        row.verdict == Verdict::Carries && within.is_none_or(|within| row.assessment.detection_s.p99 <= within)
    });
    let mut warnings = warnings(&views, measured);
    warnings.extend(refusal(&rows, judged, within, bearable));
    if let Some(within) = within.filter(|_| !carried) {
        warnings.push(instead(&views, measured, within, bearable));
    }
    let told = judged.or_else(|| best(&rows, within));
    let limits = told.iter().flat_map(|row| limits(&views[row.view], &row.assessment)).collect();
    Advice {
        schema: SCHEMA,
        kind: "keepalive-tune",
        measured_interval_s: measured.as_secs_f64(),
        bearable_per_s: bearable,
        bearable_said: args.false_failovers.is_some(),
        detect_within_s: within,
        rows,
        recommended,
        carried,
        limits,
        warnings,
        fits: views.iter().map(fit).collect(),
    }
}

/// What to look at: intervals near the measured one, and for a wished time the most beats that fit into it.
fn settings(measured: Duration, within: Option<Duration>) -> Vec<(Duration, u8)> {
    let near = (measured / 4).max(MIN_INTERVAL)..=(measured * 10).min(MAX_INTERVAL);
    let mut intervals: Vec<Duration> = INTERVALS_MS.into_iter().map(Duration::from_millis).collect();
    intervals.push(measured);
    intervals.retain(|interval| near.contains(interval));
    intervals.sort();
    intervals.dedup();
    let mut settings = vec![];
    for interval in intervals {
        // 2 % for the way and the lateness.
        let most = within.map(|within| within.mul_f64(0.98).as_micros() / interval.as_micros().max(1));
        let mut multipliers: Vec<u8> = match most {
            None => MULTIPLIERS.to_vec(),
            Some(most) => {
                let most = u8::try_from(most).unwrap_or(u8::MAX);
                let mut few: Vec<u8> = MULTIPLIERS.into_iter().filter(|k| *k <= most).collect();
                few.extend([most.saturating_sub(1), most].into_iter().filter(|k| *k >= 2)); // with 1 nobody may begin
                few
            }
        };
        multipliers.sort_unstable();
        multipliers.dedup();
        settings.extend(multipliers.into_iter().map(|k| (interval, k)));
    }
    settings
}

/// The setting by the view that likes it least.
fn worst(views: &[View<'_>], interval: Duration, multiplier: u8, bearable: f64) -> Row {
    let rows = views.iter().enumerate().map(|(view, v)| {
        let assessment = v.model.assess(interval, multiplier);
        Row { assessment, verdict: assessment.verdict(bearable), worst: v.name.clone(), view }
    });
    let key = |row: &Row| (row.verdict, row.assessment.support == Support::Untold);
    let by = |a: &Row, b: &Row| {
        key(a).cmp(&key(b)).then(a.assessment.false_per_s.high.total_cmp(&b.assessment.false_per_s.high))
    };
    let mut worst = rows.clone().max_by(by).expect("a probe file has a phase");
    // A death may be seen by the slower end.
    for row in rows {
        let (most, other) = (&mut worst.assessment.detection_s, row.assessment.detection_s);
        (most.p50, most.p99, most.most) = (most.p50.max(other.p50), most.p99.max(other.p99), most.most.max(other.most));
    }
    worst
}

/// The rows that the measurement can tell of, and that detect in time.
fn told(rows: &[Row], within: Option<f64>) -> impl Iterator<Item = &Row> + Clone {
    rows.iter().filter(move |row| {
        let a = &row.assessment;
        a.support != Support::Untold && a.limit != Limit::OwnLateness && within.is_none_or(|w| a.detection_s.p99 <= w)
    })
}

/// Of those, the one with the fewest false suspicions, carried or not.
fn best(rows: &[Row], within: Option<f64>) -> Option<&Row> {
    told(rows, within).min_by(|a, b| a.assessment.false_per_s.high.total_cmp(&b.assessment.false_per_s.high))
}

/// The setting to use. One that is not carried for certain is none.
fn recommend(rows: &[Row], within: Option<f64>, bearable: f64) -> Option<&Row> {
    let told = told(rows, within).filter(|row| row.verdict != Verdict::Cannot);
    let high = |row: &Row| row.assessment.false_per_s.high;
    if within.is_some() {
        let least = told.clone().map(high).fold(f64::INFINITY, f64::min);
        // Of those that are as good, or good enough, the one with the fewest beats.
        let good = told.filter(|row| high(row) <= (least * ALIKE).max(bearable * 1e-3));
        return good.max_by(|a, b| {
            let (x, y) = (a.assessment, b.assessment);
            x.interval_s.total_cmp(&y.interval_s).then(high(b).total_cmp(&high(a)))
        });
    }
    let carried = told.clone().filter(|row| row.verdict == Verdict::Carries);
    let fastest = |a: &&Row, b: &&Row| a.assessment.detection_s.p99.total_cmp(&b.assessment.detection_s.p99);
    carried.min_by(fastest)
}

/// Why the wish is not carried, with the numbers.
fn refusal(rows: &[Row], recommended: Option<&Row>, within: Option<f64>, bearable: f64) -> Option<String> {
    let often = text::frequency;
    match (recommended, within) {
        (Some(row), _) if row.verdict == Verdict::Carries => None,
        (Some(row), _) => {
            let a = &row.assessment;
            let (rate, setting) = (&a.false_per_s, text::setting(a));
            let why = match a.support {
                Support::Untold => {
                    format!("not known from this measurement: probe with --interval {}", text::ms(a.interval_s))
                }
                _ if a.limit == Limit::OwnLateness => "a host does not keep that interval".to_owned(),
                _ => format!(
                    "false suspicions may be {} (95 % interval: {} to {})",
                    often(rate.estimate),
                    often(rate.low),
                    often(rate.high)
                ),
            };
            Some(format!("these measurements do not show that {setting} stays below {}: {why}", often(bearable)))
        }
        (None, _) => Some(match (best(rows, within), within) {
            (Some(best), _) => no_setting(best, within, bearable),
            (None, Some(within)) => format!(
                "no measured setting detects within {}: probe with a shorter --interval, or allow more time",
                text::ms(within)
            ),
            (None, None) => return None,
        }),
    }
}

fn no_setting(best: &Row, within: Option<f64>, bearable: f64) -> String {
    let (often, a) = (text::frequency, &best.assessment);
    let within = within.map_or_else(String::new, |within| format!(" that detects within {}", text::ms(within)));
    format!(
        "no setting{within} is shown to stay below {}: the best is {}, with {} (95 % interval: {} to {}); measure for longer, or find what \
         stalls ({})",
        often(bearable),
        text::setting(a),
        often(a.false_per_s.estimate),
        often(a.false_per_s.low),
        often(a.false_per_s.high),
        best.worst,
    )
}

/// Both wishes cannot be had: which one can, and at what price.
fn instead(views: &[View<'_>], measured: Duration, within: f64, bearable: f64) -> String {
    let all: Vec<Row> = settings(measured, None).into_iter().map(|(i, k)| worst(views, i, k, bearable)).collect();
    let often = text::frequency(bearable);
    match recommend(&all, None, bearable) {
        Some(row) if row.verdict == Verdict::Carries => format!(
            "without detection within {}, at most {often} can be had: {} detects in {} (p99)",
            text::ms(within),
            text::setting(&row.assessment),
            text::ms(row.assessment.detection_s.p99),
        ),
        _ => format!("no measured setting reaches at most {often}, however long detection may take"),
    }
}

fn warnings(views: &[View<'_>], measured: Duration) -> Vec<String> {
    let mut warnings = vec![];
    for view in views {
        let m = view.measured;
        if view.model.tail.is_none() && m.excess.count() > 0 {
            warnings.push(format!(
                "{}: no distribution fits the tail of its {} silences (at least {} beyond one threshold are needed); \
                 the figures are counts only",
                view.name,
                m.excess.count(),
                tune::FEWEST
            ));
        }
        if m.unrecorded > 0 {
            warnings.push(format!("{}: {} samples were not recorded", view.name, m.unrecorded));
        }
        if m.interval() != measured {
            warnings.push(format!(
                "{}: beats every {}, elsewhere every {}",
                view.name,
                text::ms(m.interval().as_secs_f64()),
                text::ms(measured.as_secs_f64())
            ));
        }
    }
    warnings
}

/// What limits a setting, in words with numbers.
fn limits(view: &View<'_>, a: &Assessment) -> Vec<String> {
    let slowest = |h: &mc_core::histogram::Histogram| time(h.at(0.999));
    let m = view.measured;
    let mut words = vec![];
    match a.limit {
        Limit::OwnLateness => words.push(format!(
            "own scheduling ({}): this end's thread is late by {} one time in a hundred, more than a quarter of the interval",
            view.name,
            time(m.lateness.at(0.99))
        )),
        Limit::Loss => words.push(format!(
            "loss ({}): {} of {} beats, the longest run {}",
            view.name,
            m.losses.lost(),
            m.losses.lost().saturating_add(m.received),
            m.losses.longest()
        )),
        Limit::Stalls => {
            let sender = view.sender.filter(|s| s.lateness.at(0.999) * 2 > m.excess.at(0.999));
            let whose = match sender {
                Some(sender) => format!("the other end's scheduling: its thread is late by {} (99.9 %)", slowest(&sender.lateness)),
                None if view.sender.is_some() => "the link, or what is between the threads and it".to_owned(),
                None => "the link or the other end's scheduling (a probe of the other end would tell)".to_owned(),
            };
            words.push(format!("{whose} ({}): silence beyond what was due: {} (99.9 %)", view.name, slowest(&m.excess)));
        }
    }
    if m.self_late > 0 && a.limit != Limit::OwnLateness {
        words.push(format!(
            "own scheduling, which only lengthens detection: late by more than a quarter of an interval {} times, {} at the worst; discounted",
            m.self_late,
            time(m.lateness.max())
        ));
    }
    words
}

fn fit(view: &View<'_>) -> Fit {
    let (m, model) = (view.measured, &view.model);
    let tail = |t: &tune::Tail| FitTail { threshold_s: t.threshold, scale_s: t.scale, shape: t.shape, over: t.over };
    Fit {
        view: view.name.clone(),
        observed_s: m.observed().as_secs_f64(),
        gaps: m.gap.count(),
        longest_excess_s: m.excess.max().as_secs_f64(),
        tail: model.tail.as_ref().map(tail),
        lost: m.losses.lost(),
        runs_from: model.losses.from,
        runs: model.losses.runs,
        run_ratio: model.losses.ratio.estimate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Phase, Settings};
    use node::units::parse_duration;

    /// As on a command line.
    fn args(words: &str) -> Wish {
        let mut wish = Wish::default();
        let words: Vec<&str> = words.split_whitespace().collect();
        for flag in words.chunks(2) {
            let said = flag[1];
            match flag[0] {
                "--detect-within" => wish.detect_within = Some(parse_duration(said).unwrap()),
                "--false-failovers" => wish.false_failovers = Some(said.parse().unwrap()),
                "--what-if" => {
                    let (interval, k) = said.split_once(',').unwrap();
                    let interval = parse_duration(interval.strip_prefix("interval=").unwrap()).unwrap();
                    wish.what_if = Some((interval, k.strip_prefix("k=").unwrap().parse().unwrap()));
                }
                other => unreachable!("{other}"),
            }
        }
        wish
    }

    #[test]
    fn frequencies_are_numbers_per_period() {
        let parse = |text: &str| text.parse::<Frequency>();
        assert_eq!(parse("1/year").unwrap().per_s, 1.0 / 31_557_600.0);
        assert_eq!(parse("0.5/hour").unwrap().per_s, 0.5 / 3600.0);
        for text in ["year", "0/year", "1/eon", "-1/day"] {
            assert!(parse(text).unwrap_err().contains("1/year"), "{text}");
        }
    }

    /// Beats every 10 ms for ten minutes; each is late by 0 to `us`, evenly, but for the last of a hundred: an exponential with mean `stall_us`.
    fn file(us: u32, stall_us: u32, lost: u64) -> ProbeFile {
        let mut here = Measured { interval_us: 10_000, detect_multiplier: 255, ..Measured::default() };
        let us_of = |us: f64| Duration::from_secs_f64(us / 1e6);
        for n in 0..72_000_u32 {
            let part = f64::from(n % 1000) / 1000.0;
            let beyond = if n % 100 == 99 {
                f64::from(stall_us) * -(f64::from(n + 1) / 72_001.0).ln()
            } else {
                part * f64::from(us)
            };
            here.excess.record(us_of(beyond));
            here.gap.record(us_of(8250.0 + beyond));
            here.lateness.record(us_of(part * 50.0));
        }
        here.rtt.record(Duration::from_micros(100));
        (0..lost).for_each(|_| here.losses.record(1));
        here.received = 72_000;
        let mut file = ProbeFile::new("b".into(), Settings::default());
        file.phases.push(Phase { name: "idle".into(), seconds: 600.0, load_mib_per_s: None, here, there: None });
        file
    }

    #[test]
    fn a_quiet_link_carries_the_wish_and_the_answer_keeps_to_it() {
        let outcome = advise(&file(40, 200, 0), &args("--detect-within 100ms"));
        let best = outcome.recommended.as_ref().unwrap();
        assert!(outcome.carried && outcome.warnings.is_empty(), "{:?}", outcome.warnings);
        assert!(best.assessment.detection_s.p99 <= 0.1 && best.assessment.support == Support::Extrapolated, "{best:?}");
        let outcome = advise(&file(40, 200, 0), &args("--false-failovers 1/year"));
        assert!(outcome.carried && outcome.recommended.unwrap().assessment.detection_s.p99 < 0.1);
        assert!(text::render(&outcome_of("--false-failovers 1/year")).contains("never seen"));
    }

    #[test]
    fn a_no_is_never_recommended() {
        for wish in ["--detect-within 30ms", "--detect-within 100ms", "--false-failovers 1/year"] {
            let outcome = advise(&file(40, 30_000, 0), &args(wish));
            assert!(outcome.recommended.is_none() && !outcome.carried, "{wish}: {:?}", outcome.recommended);
            let text = text::render(&outcome);
            assert!(!text.contains("recommended") && !text.contains("--beat-interval"), "{text}");
            assert!(
                text.contains(" is shown to stay below 1.0/year: the best is ") && text.contains("limited by"),
                "{text}"
            );
        }
        let outcome = advise(&file(40, 30_000, 0), &args("--what-if interval=10ms,k=3"));
        assert!(
            outcome.recommended.is_none()
                && outcome.warnings.iter().any(|w| w.contains("these measurements do not show that"))
        );
    }

    #[test]
    fn both_wishes_are_kept_or_it_is_said_which_cannot_be_had() {
        let both = |stall_us, words: &str| advise(&file(40, stall_us, 0), &args(words));
        let outcome = both(200, "--detect-within 100ms --false-failovers 1/month");
        let best = outcome.recommended.as_ref().unwrap();
        assert!(outcome.carried && best.assessment.detection_s.p99 <= 0.1, "{best:?}");
        assert!(best.assessment.false_per_s.high <= outcome.bearable_per_s);
        assert!(
            text::render(&outcome).contains("for detection within 100 ms and at most "),
            "{}",
            text::render(&outcome)
        );
        let outcome = both(2_000, "--detect-within 15ms --false-failovers 1/year");
        let said = outcome.warnings.join("\n");
        assert!(!outcome.carried && outcome.recommended.is_none(), "{said}");
        assert!(said.contains("without detection within 15 ms, at most 1.0/year can be had: "), "{said}");
        let said = both(30_000, "--detect-within 30ms --false-failovers 1/year").warnings.join("\n");
        assert!(said.contains("no measured setting reaches at most 1.0/year"), "{said}");
    }

    fn outcome_of(words: &str) -> Advice {
        advise(&file(40, 200, 0), &args(words))
    }

    #[test]
    fn a_tail_that_does_not_carry_the_wish_is_said_so_with_numbers() {
        let outcome = advise(&file(40, 30_000, 0), &args("--detect-within 30ms"));
        assert!(!outcome.carried);
        let text = text::render(&outcome);
        assert!(text.contains("no setting that detects within 30 ms is shown") && text.contains("95 %"), "{text}");
        let outcome = advise(&file(40, 30_000, 0), &args("--false-failovers 1/year"));
        assert!(
            !outcome.carried && outcome.warnings.iter().any(|w| w.contains("no setting is shown")),
            "{:?}",
            outcome.warnings
        );
    }

    #[test]
    fn one_setting_is_one_row_and_what_cannot_be_told_is_not_told() {
        let outcome = advise(&file(40, 200, 3), &args("--what-if interval=10ms,k=5"));
        assert_eq!(outcome.rows.len(), 1);
        let outcome = advise(&file(40, 200, 3), &args("--what-if interval=1ms,k=5"));
        assert_eq!(outcome.rows[0].assessment.support, Support::Untold);
        assert!(outcome.warnings.iter().any(|w| w.contains("--interval 1 ms")), "{:?}", outcome.warnings);
        let json = serde_json::to_value(&outcome).unwrap();
        assert_eq!((&json["schema"], &json["kind"]), (&1.into(), &"keepalive-tune".into()));
    }
}
