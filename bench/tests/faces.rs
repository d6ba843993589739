//! Every face of one made-up record, with names as bad as they can be. The page must be one file that needs nothing else.

use mc_bench::{
    face::{files, page, text},
    record::{Begun, Better, Bound, Measure, Missing, Record, Section, Timeline, Unit},
};
use mc_core::histogram::Histogram;
use std::{fs, process::Command, time::Duration};

const BAD: &str = "</script><img src=x onerror=alert(1)> & \"quoted\" 'too' \u{1}";

fn times(offset: u64) -> Histogram {
    let mut times = Histogram::new();
    (1..=5000).for_each(|n| times.record(Duration::from_nanos(offset + n * n % 7919 * 100)));
    times
}

fn record() -> Record {
    let mut section = Section::new("epoch", format!("The whole loop {BAD}")).device("rxe0").setting(BAD, BAD).note(BAD);
    for (case, offset) in [("idle", 1000), ("zipf, 100 ms", 90_000), (BAD, 4_000_000)] {
        let measure = Measure::new("pause", case, Unit::Usec, Better::Lower, vec![10.0, 12.0, 11.0]);
        let measure = measure.beside(BAD, vec![Some(10.0), None, Some(12.0)]).bound(Bound::ratio_at_most(0.9));
        section.measures.push(measure.times(times(offset)).column("pages", 4.5).column(BAD, 1.0));
    }
    section.measures.push(Measure::new("slow-down", "zipf", Unit::Percent, Better::Lower, vec![3.0]));
    section.measures.push(Measure::new("nothing", "", Unit::Count, Better::Neither, vec![]).times(Histogram::new()));
    let points = |count: i32| (0..count).map(|n| (f64::from(n) / 10.0, f64::from(n % 17) * 50.0 + 3.0)).collect();
    for (name, points) in [("pauses", points(300)), (BAD, points(30_000)), ("none", vec![])] {
        section.timelines.push(Timeline { name: name.to_owned(), case: "idle".to_owned(), unit: Unit::Usec, points });
    }
    section.missing.push(Missing { what: BAD.to_owned(), why: BAD.to_owned(), package: None });
    section.failures.push(BAD.to_owned());
    section.seed = Some(42);
    Begun::now().done(vec![section, Section::new("detect", "nothing could be measured")])
}

/// As a browser would, every address that an element may fetch.
fn fetched(document: &roxmltree::Document<'_>) -> Vec<String> {
    let fetches = ["src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"];
    let elements = document.descendants().filter(roxmltree::Node::is_element);
    let attributes = elements.flat_map(|e| e.attributes());
    let addresses = attributes.filter(|a| fetches.contains(&a.name())).map(|a| a.value().to_owned());
    addresses.filter(|a| !a.starts_with('#')).collect()
}

#[test]
fn the_page_is_one_well_formed_file_that_fetches_nothing() {
    let record = record();
    let html = page::html(&record);
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(&html, options).expect("well-formed");
    assert_eq!(fetched(&document), [""; 0]);
    let elements: Vec<_> = document.descendants().filter(roxmltree::Node::is_element).collect();
    let named = |name: &str| elements.iter().filter(|e| e.has_tag_name(name)).count();
    assert_eq!((named("script"), named("img"), named("link"), named("iframe")), (0, 0, 0, 0));
    assert!(elements.iter().flat_map(|e| e.attributes()).all(|a| !a.name().starts_with("on")), "no handlers");
    let style = elements.iter().find(|e| e.has_tag_name("style")).and_then(|e| e.text()).unwrap();
    assert!(!style.contains("url(") && !style.contains("@import") && !style.contains("http"));
    assert!(style.contains("prefers-color-scheme:dark") && html.contains("name=\"viewport\""));
}

#[test]
fn the_page_has_every_figure_and_every_picture_can_be_read_aloud() {
    let record = record();
    let html = page::html(&record);
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(&html, options).expect("well-formed");
    let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
    let case = |measure: &Measure| measure.case.replace('\u{1}', "\u{FFFD}");
    for (section, measure) in record.measures() {
        assert!(texts.contains(&section.kind.as_str()) || texts.iter().any(|t| t.starts_with(&section.kind)));
        assert!(texts.contains(&measure.name.as_str()), "{}", measure.name);
        let rows = |n: &roxmltree::Node<'_, '_>| n.has_tag_name("th") && n.text().unwrap_or("") == case(measure);
        assert!(document.descendants().any(|n| rows(&n)), "{}", measure.case);
    }
    let pictures: Vec<_> = document.descendants().filter(|n| n.has_tag_name("svg")).collect();
    // Bars, tails and shapes of "pause"; two time lines.
    assert_eq!(pictures.len(), 5);
    let mut ids: Vec<&str> = document.descendants().filter_map(|n| n.attribute("id")).collect();
    for picture in &pictures {
        let part = |name| picture.children().find(|n| n.has_tag_name(name)).and_then(|n| n.text()).unwrap_or("");
        assert!(picture.attribute("role") == Some("img") && !part("title").is_empty() && !part("desc").is_empty());
        let labels = picture.attribute("aria-labelledby").unwrap();
        assert!(labels.split(' ').all(|id| ids.contains(&id)), "{labels}");
    }
    ids.sort_unstable();
    assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "no id twice: {ids:?}");
}

#[test]
fn a_stored_record_is_shown_again_by_the_program() {
    let directory = std::env::temp_dir().join(format!("mc-bench-faces-{}", std::process::id()));
    let written = files::write_all(&record(), &directory).unwrap();
    let stored = written[0].to_str().unwrap();
    let page = directory.join("again.html");
    let run =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_mc-bench")).args(args).output().expect("mc-bench starts");
    let shown = run(&["report", stored]);
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout).trim_end(),
        text::lines(&record_of(stored)).join("\n").trim_end()
    );
    let again = run(&["report", stored, "--json", "--html", page.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim_end(), fs::read_to_string(stored).unwrap());
    assert_eq!(fs::read_to_string(page).unwrap(), fs::read_to_string(directory.join("report.html")).unwrap());
    assert_eq!(run(&["report", stored, "--strict"]).status.code(), Some(5));
    fs::write(stored, "{\"schema\":9}").unwrap();
    let refused = run(&["report", stored]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && words.contains("schema is 9") && words.contains(stored), "{words}");
    fs::remove_dir_all(directory).unwrap();
}

fn record_of(path: &str) -> Record {
    mc_bench::stored::read(path.as_ref()).unwrap()
}
