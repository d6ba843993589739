//! A takeover as a picture: three lanes over one axis, and the moments below it. An SVG for light and dark pages.

use serde_json::Value;
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
/// The part of the width that is time.
const TIME: (f64, f64) = (104.0, 936.0);
/// The lanes of primary, standby and client, and the axis.
const LANES: [f64; 3] = [74.0, 122.0, 170.0];
const AXIS: f64 = 214.0;
const LABELS: f64 = 268.0;

const STYLE: &str = "text{font-family:ui-sans-serif,system-ui,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;fill:#1f2933}
.page{fill:#fff;stroke:#d5dbe1}.small{font-size:11.5px;fill:#616e7c}.big{font-size:16px;font-weight:600}
.runs{fill:#2f9e6e}.waits{fill:#dfe5ea}.takes{fill:#e8a33d}.on{fill:#fff;font-size:12px}.off{fill:#52606d;font-size:12px}
.dead{stroke:#d64545;stroke-width:3;stroke-linecap:round}.axis{stroke:#9aa5b1}.lead{stroke:#9aa5b1;fill:none}
.reply{fill:#2563a8}.mark{fill:#d64545}
@media (prefers-color-scheme:dark){text{fill:#e4e9ee}.page{fill:#161b22;stroke:#30363d}.small{fill:#9aa7b4}
.runs{fill:#2f8f66}.waits{fill:#2b333d}.takes{fill:#c98a2c}.on{fill:#fff}.off{fill:#b4bfca}
.dead{stroke:#f0716f}.axis,.lead{stroke:#5b6773}.reply{fill:#6cb2f5}.mark{fill:#f0716f}}";

/// Where a time is on the picture.
struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    fn x(&self, ms: f64) -> f64 {
        let share = ((ms - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        TIME.0 + share * (TIME.1 - TIME.0)
    }
}

/// Draws the takeover of a round's report. None if it has none.
pub(super) fn takeover(report: &Value) -> Option<String> {
    let listed = report.pointer("/takeover/moments")?.as_array()?;
    let moments: Vec<(&str, &str, f64)> =
        listed.iter().filter_map(|m| Some((m["what"].as_str()?, m["who"].as_str()?, m["ms"].as_f64()?))).collect();
    let at = |what: &str| moments.iter().find(|m| m.0 == what).map(|m| m.2);
    let (commit, suspected, runs, reply) = (at("last commit")?, at("suspected")?, at("VM runs")?, at("first reply")?);
    let margin = 0.16 * (reply - commit);
    let scale = Scale { from: commit - margin, to: reply + margin };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 344\" role=\"img\" aria-labelledby=\"t\">\n\
         <title id=\"t\">A takeover: the host dies at 0 ms, the VM runs on the standby at {runs:.1} ms, \
         the client has its first reply at {reply:.1} ms</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"959\" height=\"343\" rx=\"10\"/>\n"
    );
    text(&mut svg, (24.0, 34.0), "big", &format!("A takeover: {reply:.1} ms from the kill to the first reply"));
    let quiet = settings(report);
    let _ = writeln!(svg, "<text class=\"small\" x=\"936\" y=\"34\" text-anchor=\"end\">{quiet}</text>");
    hosts(&mut svg, &scale, suspected, runs);
    client(&mut svg, &scale, report);
    axis(&mut svg, &scale);
    labels(&mut svg, &scale, &moments);
    svg.push_str("</svg>\n");
    Some(svg)
}

fn settings(report: &Value) -> String {
    let word = |name: &str| escaped(report[name].as_str().unwrap_or("?"));
    format!("{} guest on {}, epochs of {}", word("guest"), word("accel"), word("epoch"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, what: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(what));
}

/// A bar of a lane, with words where there is room for them.
fn bar(svg: &mut String, (from, to): (f64, f64), lane: f64, class: &str, (words, inked): (&str, &str)) {
    let (y, width) = (lane - 14.0, (to - from).max(1.0));
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"28\" rx=\"4\"/>"
    );
    let room = width > 7.0 * words.len() as f64;
    if room {
        text(svg, (from + 8.0, lane + 4.5), inked, words);
    }
}

fn hosts(svg: &mut String, scale: &Scale, suspected: f64, runs: f64) {
    let [primary, standby, _] = LANES;
    let (begin, end) = TIME;
    text(svg, (24.0, primary + 4.5), "plain", "primary");
    text(svg, (24.0, standby + 4.5), "plain", "standby");
    let died = scale.x(0.0);
    bar(svg, (begin, died), primary, "runs", ("the VM runs", "on"));
    let _ = writeln!(svg, "<path class=\"dead\" d=\"M{:.1} {:.1}l14 14m0 -14l-14 14\"/>", died + 7.0, primary - 7.0);
    bar(svg, (begin, scale.x(suspected)), standby, "waits", ("the after-image waits", "off"));
    bar(svg, (scale.x(suspected), scale.x(runs)), standby, "takes", ("takes over", "on"));
    bar(svg, (scale.x(runs), end), standby, "runs", ("the VM runs", "on"));
}

fn client(svg: &mut String, scale: &Scale, report: &Value) {
    let lane = LANES[2];
    text(svg, (24.0, lane + 4.5), "plain", "client");
    let replies = report.pointer("/takeover/replies_ms").and_then(Value::as_array);
    let times = replies.into_iter().flatten().filter_map(Value::as_f64);
    for ms in times.filter(|ms| (scale.from..=scale.to).contains(ms)) {
        let _ = writeln!(svg, "<circle class=\"reply\" cx=\"{:.1}\" cy=\"{lane}\" r=\"4\"/>", scale.x(ms));
    }
    let lost = format!(
        "each dot is a reply; lost {}, duplicated {}{}",
        report["lost"],
        report["duplicated"],
        if report["same_connection"] == true { ", the connection stays open" } else { "" }
    );
    text(svg, (scale.x(0.0) + 14.0, lane + 4.5), "small", &lost);
}

fn axis(svg: &mut String, scale: &Scale) {
    let (begin, end) = TIME;
    let _ = writeln!(svg, "<path class=\"axis\" d=\"M{begin} {AXIS}H{end}\"/>");
    // Some eight steps of 1, 2 or 5 times a power of ten.
    let rough = (scale.to - scale.from) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| power * f >= rough).unwrap_or(10.0);
    let mut ms = (scale.from / step).ceil() * step;
    while ms <= scale.to {
        let x = scale.x(ms);
        let _ = writeln!(svg, "<path class=\"axis\" d=\"M{x:.1} {AXIS}v-5\"/>");
        let shown = if ms == 0.0 { "0 ms".to_owned() } else { format!("{ms:.0}") };
        let _ = writeln!(
            svg,
            "<text class=\"small\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{shown}</text>",
            AXIS - 9.0
        );
        ms += step;
    }
}

/// The moments side by side, each with a line to its place on the axis.
fn labels(svg: &mut String, scale: &Scale, moments: &[(&str, &str, f64)]) {
    let column = (WIDTH - 48.0) / moments.len() as f64;
    for (index, (what, who, ms)) in moments.iter().enumerate() {
        let (x, left) = (scale.x(*ms), 24.0 + column * index as f64);
        let (foot, bend) = (left + 4.0, AXIS + 38.0);
        let _ = writeln!(
            svg,
            "<path class=\"lead\" d=\"M{x:.1} {AXIS}C{x:.1} {bend} {foot:.1} {} {foot:.1} {LABELS}V322\"/>\
             <circle class=\"mark\" cx=\"{x:.1}\" cy=\"{AXIS}\" r=\"3\"/>",
            AXIS + 26.0
        );
        let shown = if *ms == 0.0 { "0 ms".to_owned() } else { format!("{ms:+.1} ms") };
        text(svg, (left + 12.0, LABELS + 14.0), "big", &shown);
        text(svg, (left + 12.0, LABELS + 34.0), "plain", what);
        text(svg, (left + 12.0, LABELS + 51.0), "small", who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_moment_is_drawn_and_text_is_escaped() {
        let names = ["last commit", "host dies", "suspected", "arbiter asked", "swap won", "VM runs", "first reply"];
        let moments: Vec<Value> =
            (0..7).map(|i| json!({ "what": names[i], "who": "standby", "ms": 10.0 * i as f64 - 10.0 })).collect();
        let report = json!({
            "guest": "linux", "accel": "kvm", "epoch": "<20ms>", "lost": 0, "duplicated": 0, "same_connection": true,
            "takeover": { "moments": moments, "replies_ms": [-3.0, 50.0, 1e9] },
        });
        let svg = takeover(&report).unwrap();
        for name in names {
            assert!(svg.contains(&format!(">{name}</text>")), "{name}");
        }
        assert!(svg.contains("+40.0 ms") && svg.contains("&lt;20ms&gt;") && svg.contains("prefers-color-scheme:dark"));
        assert_eq!(svg.matches("class=\"reply\"").count(), 2, "what is outside of the picture is left out");
        assert_eq!(takeover(&json!({ "takeover": null })), None);
    }
}
