//! How a record is shown. All faces show the same record, and nothing that is not in it.
//!
//! | file | face |
//! |---|---|
//! | [`grid`] | the tables, as rows of words: of the figures of one name, and of the times behind them |
//! | [`text`] | for a terminal |
//! | [`files`] | `--out DIR`: record.json, report.html, and an .hgrm of every histogram |
//! | [`page`] | report.html: one file, nothing fetched, no script; [`chart`] draws its charts, on [`axis`] |

pub mod axis;
pub mod chart;
pub mod files;
pub mod grid;
pub mod page;
pub mod text;

use crate::{cli::Effort, progress::say, record::Record};
use anyhow::Result;
use std::io::Write;

/// Shows a record as asked: tables or JSON on stdout, and files.
///
/// # Errors
/// Stdout or the files cannot be written.
pub fn show(record: &Record, effort: &Effort) -> Result<()> {
    let text = if effort.json { serde_json::to_string(record)? } else { text::lines(record).join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    if let Some(directory) = &effort.out {
        for written in files::write_all(record, directory)? {
            say(format_args!("wrote {}", written.display()));
        }
    }
    Ok(())
}
