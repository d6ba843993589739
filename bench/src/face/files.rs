//! `--out DIR`: record.json, report.html, and an .hgrm of every histogram.

use super::page;
use crate::record::Record;
use anyhow::{Context, Result};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// The longest name of an .hgrm, without its ending: some file systems stop at 143 bytes.
const LONGEST_NAME: usize = 100;

/// Writes everything; the directory is made. What was written, in order.
///
/// # Errors
/// A file cannot be written.
pub fn write_all(record: &Record, directory: &Path) -> Result<Vec<PathBuf>> {
    make(directory)?;
    let mut written = vec![write(&directory.join("record.json"), &serde_json::to_string(record)?)?];
    written.push(write(&directory.join("report.html"), &page::html(record))?);
    written.extend(write_histograms(record, directory)?);
    Ok(written)
}

/// Writes an .hgrm of every histogram; the directory is made. What was written, in order.
///
/// # Errors
/// A file cannot be written.
pub fn write_histograms(record: &Record, directory: &Path) -> Result<Vec<PathBuf>> {
    make(directory)?;
    let timed = record.measures().filter_map(|(s, m)| Some((s, m, m.times.as_ref().filter(|t| !t.is_empty())?)));
    let mut taken = HashSet::new();
    timed
        .map(|(section, measure, times)| {
            let name = name(&[&section.kind, &measure.name, &measure.case], &mut taken);
            write(&directory.join(name), &times.hgrm())
        })
        .collect()
}

/// Writes one file.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> Result<PathBuf> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.to_owned())
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making the directory {}", directory.display()))
}

/// A file name out of those parts, another one than those that are taken: lower-case letters, digits and single hyphens.
fn name(parts: &[&str], taken: &mut HashSet<String>) -> String {
    let slug = |text: &str| {
        let plain = text.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        plain.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
    };
    let parts: Vec<String> = parts.iter().map(|p| slug(p)).filter(|p| !p.is_empty()).collect();
    let mut name = parts.join("-");
    name.truncate(LONGEST_NAME);
    if name.is_empty() {
        "histogram".clone_into(&mut name);
    }
    let mut number = 1;
    let mut whole = format!("{name}.hgrm");
    while !taken.insert(whole.clone()) {
        number += 1;
        whole = format!("{name}-{number}.hgrm");
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Begun, Better, Measure, Section, Unit};
    use mc_core::histogram::Histogram;
    use std::time::Duration;

    #[test]
    fn names_are_sane_and_no_two_are_the_same() {
        let mut taken = HashSet::new();
        let mut name = |parts: &[&str]| name(parts, &mut taken);
        assert_eq!(name(&["transport", "goodput", "1 MiB, depth 4"]), "transport-goodput-1-mib-depth-4.hgrm");
        assert_eq!(name(&["transport", "goodput", "1 MiB; depth 4"]), "transport-goodput-1-mib-depth-4-2.hgrm");
        assert_eq!(name(&["../..", "/etc", "µ"]), "etc.hgrm");
        assert_eq!(name(&["", "..", "/"]), "histogram.hgrm");
        assert!(name(&[&"x".repeat(500)]).len() < 120);
    }

    #[test]
    fn every_histogram_gets_a_file() {
        let mut times = Histogram::new();
        times.record(Duration::from_micros(20));
        let measure = |times| Measure::new("pause", "idle", Unit::Usec, Better::Lower, vec![1.0]).times(times);
        let section = Section::new("epoch", "").measure(measure(times.clone())).measure(measure(times));
        let record = Begun::now().done(vec![section.measure(measure(Histogram::new()))]);
        let directory = std::env::temp_dir().join(format!("mc-bench-files-{}", std::process::id()));
        let written = write_all(&record, &directory).unwrap();
        let names: Vec<_> = written.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["record.json", "report.html", "epoch-pause-idle.hgrm", "epoch-pause-idle-2.hgrm"]);
        assert!(fs::read_to_string(&written[2]).unwrap().contains("Percentile"));
        fs::remove_dir_all(directory).unwrap();
    }
}
