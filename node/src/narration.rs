//! Narration: the log, on stderr. A line waits in a bounded queue for a thread that writes it ([`LineWriter`]), so a terminal that
//! was stopped, or a pipe that nobody reads, makes no loop wait. What finds the queue full is lost and counted, and the count is
//! the next line that gets through.

use crate::journal::LineWriter;
use std::{
    io::{self, IsTerminal, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
    prelude::*,
};

/// A panic's message gets so long to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

static NARRATOR: OnceLock<LineWriter> = OnceLock::new();

/// From now on this process's log goes to stderr, at the level of `AFTERIMAGE_LOG`. Called once.
///
/// # Errors
/// There is no thread to be had.
pub fn begin() -> io::Result<()> {
    let told = AtomicU64::new(0);
    let narrator = LineWriter::spawn("narration", move |line| {
        let lost = lost();
        let more = lost.saturating_sub(told.swap(lost, Ordering::Relaxed));
        let mut stderr = io::stderr().lock();
        if more > 0 {
            writeln!(stderr, "({more} lines were lost here because stderr was not read)")?;
        }
        stderr.write_all(line.as_bytes())
    })?;
    let _ = NARRATOR.set(narrator);
    let asked = std::env::var("AFTERIMAGE_LOG").ok().and_then(|levels| levels.parse().ok());
    let levels = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(Lines);
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let trace = std::backtrace::Backtrace::capture();
        let name = thread.name().unwrap_or("<unnamed>");
        say(format!("thread '{name}' {panic}\n{}", shown(&trace)));
        flush(LAST_WORDS);
    }));
    Ok(())
}

fn shown(trace: &std::backtrace::Backtrace) -> String {
    match trace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("{trace}\n"),
        _ => String::new(),
    }
}

/// Hands over text that ends in a newline. Never waits. Before [`begin`] it is written at once.
pub fn say(text: String) {
    match NARRATOR.get() {
        Some(narrator) => narrator.put(text),
        // Nobody may be listening.
        None => drop(io::stderr().lock().write_all(text.as_bytes())),
    }
}

/// Lines that stderr did not get.
#[must_use]
pub fn lost() -> u64 {
    NARRATOR.get().map_or(0, LineWriter::lost)
}

/// Before the process ends: waits until everything is written, `patience` at most.
pub fn flush(patience: Duration) {
    if let Some(narrator) = NARRATOR.get() {
        narrator.flush(patience);
    }
}

/// Hands every event, which is formatted in one piece, to [`say`].
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
