//! Prints the tuner's table, recommendation and warnings.

use super::{Advice, Fit, Row};
use crate::tune::{Assessment, Limit, Support, Verdict};
use node::units::time;
use std::{fmt::Write, time::Duration};

const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;
const YEAR: f64 = 365.25 * DAY;

/// So often, in the unit that suits.
#[must_use]
pub fn frequency(per_s: f64) -> String {
    let with = |seconds: f64, unit: &str| {
        let n = per_s * seconds;
        if n >= 99.5 { format!("{n:.0}/{unit}") } else { format!("{}/{unit}", digits(n)) }
    };
    match per_s {
        _ if per_s <= 0.0 => "never".to_owned(),
        _ if per_s * HOUR >= 1.0 => with(HOUR, "hour"),
        _ if per_s * DAY >= 1.0 => with(DAY, "day"),
        _ if per_s * YEAR >= 1e-9 => with(YEAR, "year"),
        _ => "<1e-9/year".to_owned(),
    }
}

/// Two digits that count.
fn digits(n: f64) -> String {
    if n >= 9.95 {
        format!("{n:.0}")
    } else if n >= 0.995 {
        format!("{n:.1}")
    } else if n >= 0.001 {
        // 0.0123: the first digit that counts is the second one, so three are shown.
        let places = (1..).find(|places| n * 10_f64.powi(*places) >= 0.995).map_or(3, |first| first + 1);
        let places = usize::try_from(places).unwrap_or(3);
        format!("{n:.places$}")
    } else {
        format!("{n:.0e}")
    }
}

pub(super) fn ms(seconds: f64) -> String {
    let text = format!("{:.1}", seconds * 1e3);
    format!("{} ms", text.strip_suffix(".0").unwrap_or(&text))
}

pub(super) fn setting(a: &Assessment) -> String {
    format!("{} x {}", ms(a.interval_s), a.multiplier)
}

/// The whole of it.
#[must_use]
pub fn render(outcome: &Advice) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "interval x K   detected in p50       p99   false suspicions        95 % interval   rests on        limited by      carried"
    );
    for row in &outcome.rows {
        let mark = outcome.recommended.as_ref().is_some_and(|r| setting(&r.assessment) == setting(&row.assessment));
        line(&mut out, row, mark && outcome.rows.len() > 1);
    }
    let _ = writeln!(out);
    for fit in &outcome.fits {
        fit_line(&mut out, fit);
    }
    support(&mut out, outcome);
    recommendation(&mut out, outcome);
    out
}

fn line(out: &mut String, row: &Row, mark: bool) {
    let a = &row.assessment;
    let rate = &a.false_per_s;
    let (estimate, interval) = if a.support == Support::Untold {
        ("?".to_owned(), "?".to_owned())
    } else {
        (frequency(rate.estimate), format!("{} to {}", frequency(rate.low), frequency(rate.high)))
    };
    let rests = match a.support {
        Support::Counted => "counted",
        Support::Extrapolated => "extrapolated",
        Support::RuleOfThree => "rule of three",
        Support::Untold => "not measured",
    };
    let limit = match (a.limit, row.verdict) {
        (Limit::Loss, _) => "loss",
        (Limit::Stalls, _) => "stalls",
        (Limit::OwnLateness, _) => "own scheduling",
    };
    let carries = match row.verdict {
        Verdict::Carries => "yes",
        Verdict::Unproven => "unproven",
        Verdict::Cannot => "no",
    };
    let _ = writeln!(
        out,
        "{:<14} {:>15} {:>9}   {estimate:>16}   {interval:>22}   {rests:<14}  {limit:<14}  {carries}{}",
        setting(a),
        ms(a.detection_s.p50),
        ms(a.detection_s.p99),
        if mark { "  <- recommended" } else { "" },
    );
}

fn fit_line(out: &mut String, fit: &Fit) {
    let seconds = |s: f64| time(Duration::from_secs_f64(s.max(0.0)));
    let tail = fit.tail.map_or_else(
        || "no tail fits".to_owned(),
        |t| {
            format!(
                "{} over {}: generalised Pareto, shape {:.2}, scale {}",
                t.over,
                seconds(t.threshold_s),
                t.shape,
                seconds(t.scale_s)
            )
        },
    );
    let losses = match (fit.lost, fit.runs) {
        (0, _) => "none lost".to_owned(),
        (lost, runs) => {
            format!(
                "{lost} lost: {runs} runs of {} or more, each loss followed by another with {:.2}",
                fit.runs_from, fit.run_ratio
            )
        }
    };
    let _ = writeln!(
        out,
        "{}: {:.0} s, {} gaps; longest silence beyond what was due {}; {tail}; {losses}",
        fit.view,
        fit.observed_s,
        fit.gaps,
        seconds(fit.longest_excess_s)
    );
}

/// Where the answer goes beyond what was seen.
fn support(out: &mut String, outcome: &Advice) {
    let row = outcome.recommended.as_ref().or(outcome.rows.first());
    let Some(Row { assessment: a, worst, .. }) = row else { return };
    if matches!(a.support, Support::Extrapolated | Support::RuleOfThree) {
        let fit = if a.support == Support::Extrapolated {
            "; the figures come from the fit, and hold if longer silences have the same causes as those seen"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "a silence that makes {} suspect was never seen in {:.0} s ({worst}): counting alone says at most {} (rule of three){fit}",
            setting(a),
            a.observed_s,
            frequency(a.counted_high_per_s),
        );
    }
}

fn recommendation(out: &mut String, outcome: &Advice) {
    if let Some(row) = outcome.recommended.as_ref().filter(|_| outcome.rows.len() > 1) {
        let a = &row.assessment;
        let wish = match outcome.detect_within_s {
            Some(within) if outcome.bearable_said => {
                let often = frequency(outcome.bearable_per_s);
                format!("detection within {} and at most {often} false suspicions", ms(within))
            }
            Some(within) => format!("detection within {}", ms(within)),
            None => format!("at most {} false suspicions", frequency(outcome.bearable_per_s)),
        };
        let _ = writeln!(
            out,
            "\nfor {wish}: --beat-interval {} --detect-multiplier {}\n  detects in {} (p50), {} (p99); false suspicions {}, with 95 % at most {}",
            ms(a.interval_s).replace(' ', ""),
            a.multiplier,
            ms(a.detection_s.p50),
            ms(a.detection_s.p99),
            frequency(a.false_per_s.estimate),
            frequency(a.false_per_s.high),
        );
    }
    for limit in &outcome.limits {
        let _ = writeln!(out, "  limited by {limit}");
    }
    for warning in &outcome.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_have_a_unit_that_suits() {
        let texts =
            [0.0, 1.0, 1.0 / 3600.0, 1.0 / DAY, 0.5 / DAY, 1.0 / YEAR, 0.034 / YEAR, 2e-7 / YEAR, 1e-30].map(frequency);
        let wanted = [
            "never",
            "3600/hour",
            "1.0/hour",
            "1.0/day",
            "183/year",
            "1.0/year",
            "0.034/year",
            "2e-7/year",
            "<1e-9/year",
        ];
        assert_eq!(texts, wanted);
        assert_eq!((ms(0.01), ms(0.0025)), ("10 ms".to_owned(), "2.5 ms".to_owned()));
    }
}
