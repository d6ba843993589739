//! The page.

use crate::record::Record;

/// All of it.
#[must_use]
pub fn html(record: &Record) -> String {
    record.command.join(" ")
}
