//! How a record is shown. All faces show the same record, and nothing that is not in it.
//!
//! | file | face |
//! |---|---|
//! | [`grid`] | the tables, as rows of words: of the figures of one name, and of the times behind them |
//! | [`text`] | for a terminal |
//! | [`files`] | `--out DIR`: record.json, report.html, and an .hgrm of every histogram |
//! | [`page`] | report.html: one file, nothing fetched, no script; [`chart`] draws its charts, on [`axis`], as [`svg`] |

pub mod axis;
pub mod chart;
pub mod files;
pub mod grid;
pub mod page;
pub mod svg;
pub mod text;

use crate::{
    cli::{Output, ReportArgs},
    progress::say,
    record::Record,
};
use anyhow::Result;
use std::{io::Write, path::PathBuf};

/// Shows a record as asked: tables or JSON on stdout, and files.
///
/// # Errors
/// Stdout or the files cannot be written.
pub fn show(record: &Record, output: &Output) -> Result<()> {
    print(record, output.json)?;
    if let Some(directory) = &output.out {
        narrate(&files::write_all(record, directory)?);
    }
    Ok(())
}

/// Shows a stored record as asked: files, or tables or JSON on stdout.
///
/// # Errors
/// Stdout or the files cannot be written.
pub fn show_again(record: &Record, args: &ReportArgs) -> Result<()> {
    if let Some(file) = &args.html {
        narrate(&[files::write(file, &page::html(record))?]);
    }
    if let Some(directory) = &args.hgrm {
        narrate(&files::write_histograms(record, directory)?);
    }
    if args.json || (args.html.is_none() && args.hgrm.is_none()) {
        print(record, args.json)?;
    }
    Ok(())
}

fn print(record: &Record, json: bool) -> Result<()> {
    let text = if json { serde_json::to_string(record)? } else { text::lines(record).join("\n") };
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn narrate(written: &[PathBuf]) {
    written.iter().for_each(|file| say(format_args!("wrote {}", file.display())));
}
