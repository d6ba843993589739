//! What happens, as lines of JSON on stdout: for scripts, for `afterimage why`, and for the demo. Narration goes to stderr.

use serde_json::{Map, Value, json};
use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

/// Milliseconds since 1970, so that the events of several hosts can be put in one order.
#[must_use]
pub fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

/// Writes one event. `fields` must be an object; a stdout that is gone is no reason to stop protecting a VM.
pub fn emit(event: &str, fields: Value) {
    let mut line = Map::new();
    line.insert("event".to_owned(), json!(event));
    line.insert("at_ms".to_owned(), json!((unix_ms() * 1e3).round() / 1e3));
    if let Value::Object(fields) = fields {
        line.extend(fields);
    }
    let mut text = Value::Object(line).to_string();
    text.push('\n');
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
