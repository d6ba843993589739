//! What a machine cannot run.

use std::{env, fmt::Display, io::Write, thread};

/// Says that the test that runs cannot be run here, and why; the test returns then. The line passes by the capture of Rust's
/// test programs, since `scripts/test` counts such lines: to them a test that returns has passed.
///
/// # Panics
/// Where `AFTERIMAGE_NO_SKIP` is set: there everything is to be run.
pub fn skip(why: impl Display) {
    assert!(
        env::var_os("AFTERIMAGE_NO_SKIP").is_none(),
        "this test may not be skipped here (AFTERIMAGE_NO_SKIP): {why}"
    );
    let (program, thread) = (env::current_exe().unwrap_or_default(), thread::current());
    let program = program.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo adds a hash.
    let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
    // Whoever closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "skipped: {program} {}: {why}", thread.name().unwrap_or("main"));
}
