//! `afterimage why`: the stories are the crate `why`'s; here are its command line and `--since`.

use crate::{cli::WhyArgs, print};
use node::{
    exit::{Code, ExitError},
    units::parse_ago,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The command.
pub fn run(args: &WhyArgs) -> anyhow::Result<Code> {
    let since_ms = args.since.as_deref().map(|text| since(text, SystemTime::now())).transpose()?;
    let report = why::look(&args.state_dir, args.vm, since_ms, args.last)?;
    print(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { why::render(&report) })?;
    Ok(Code::Done)
}

/// Reads `--since`: how long ago, or when. Unix ms.
fn since(text: &str, now: SystemTime) -> Result<f64, ExitError> {
    let ago = parse_ago(text).ok().and_then(|ago| now.checked_sub(ago));
    let at = ago.or_else(|| humantime::parse_rfc3339_weak(text).ok()).ok_or_else(|| {
        ExitError::usage(format!("invalid --since {text:?}: not a duration or a time"))
            .remedy("write how long ago, such as 10m, 2h or 3d, or a time in UTC, such as \"2026-11-25 22:31:00\"")
    })?;
    Ok(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_so_long_ago_or_by_the_clock() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(since("10m", now).unwrap(), 999_400_000.0);
        assert_eq!(since("1970-01-02 00:00:00", now).unwrap(), 86_400_000.0);
        let error = since("yesterday", now).unwrap_err();
        assert!(error.remedy.unwrap().contains("3d"));
    }
}
