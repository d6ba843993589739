//! The command line of `afterimage keepalive …`.

use super::{KeepaliveSetArgs, KeepaliveShowArgs, Side, help};
use crate::config::{PathArgs, parse_beat_interval, parse_duration, parse_multiplier};
use clap::{ArgGroup, Args, Subcommand};
use mc_core::id::Name;
use node::{
    address::{LocalAddr, parse_address},
    arbiter::HostPort,
};
use probe::Frequency;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// `afterimage keepalive …`
#[derive(Debug, Subcommand)]
pub enum KeepaliveCommand {
    /// Measure beats to another host, idle and under load; or read what a running session has measured
    #[command(after_long_help = help("afterimage keepalive probe --peer 10.0.0.2:7500 --for 60s --load --out probe.json"))]
    Probe(ProbeArgs),
    /// Answer probes of another host, until SIGTERM
    #[command(after_long_help = help("afterimage keepalive serve --listen 10.0.0.2:7500"))]
    Serve(ServeArgs),
    /// Compute from a measurement what each interval and multiplier would do, and recommend one; exits with 5 if none fits
    #[command(after_long_help = help("afterimage keepalive tune --from probe.json --detect-within 50ms"))]
    Tune(TuneArgs),
    /// Change a running pair's beat interval and detect multiplier, on both sides at once
    #[command(after_long_help = help("afterimage keepalive set --vm web --interval 5ms --multiplier 3 --save"))]
    Set(KeepaliveSetArgs),
    /// Show what a running pair has agreed on; exits with 3 if the other side is not heard
    #[command(after_long_help = help("afterimage keepalive show --vm web --json"))]
    Show(KeepaliveShowArgs),
}

/// `afterimage keepalive probe`
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["peer", "vm"])))]
pub struct ProbeArgs {
    /// Where `afterimage keepalive serve` listens
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: Option<HostPort>,
    /// Instead of --peer: read the measurements of this VM's running session on this host
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
    /// With --vm: which side [default: the one that runs here]
    #[arg(long, value_parser = super::sides(), requires = "vm")]
    pub role: Option<Side>,
    /// With --vm: directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Time between two beats
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10ms")]
    pub interval: Duration,
    /// Duration of each phase
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    pub duration: Duration,
    /// Add a second phase, with checkpoints of this size sent as fast as the link takes them [default size: 16MiB]
    #[arg(long, value_name = "SIZE", num_args = 0..=1, default_missing_value = "16MiB")]
    pub load: Option<String>,
    /// Local address for the connection to the peer and for beats [default: the route's]
    #[arg(long, value_name = "IP")]
    pub bind: Option<LocalAddr>,
    /// Which way checkpoints and beats go.
    #[command(flatten)]
    pub paths: PathArgs,
    /// Write the measurements into this probe file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print the probe file on stdout instead of text
    #[arg(long)]
    pub json: bool,
}

/// `afterimage keepalive serve`
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Address to listen at
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address, default_value = "127.0.0.1:7500")]
    pub listen: SocketAddr,
    /// Which way checkpoints and beats go.
    #[command(flatten)]
    pub paths: PathArgs,
}

/// `afterimage keepalive tune`
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("wish").required(true).multiple(true).args(["detect_within", "false_failovers", "what_if"])))]
pub struct TuneArgs {
    /// A probe file, or "live": a running session, with --vm
    #[arg(long, value_name = "FILE|live")]
    pub from: PathBuf,
    /// With --from live: the VM
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
    /// With --from live: directory of the control sockets
    #[arg(long, value_name = "DIR", default_value = api::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Suspect a dead peer within this time, in 99 of 100 cases
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub detect_within: Option<Duration>,
    /// Suspect a live peer at most this often: 1/year, 2/month, 1/day, 3/hour
    #[arg(long, value_name = "N/PERIOD")]
    pub false_failovers: Option<Frequency>,
    /// Assess only this setting: interval=5ms,k=3
    #[arg(long, value_name = "SETTING", value_parser = parse_setting, conflicts_with_all = ["detect_within", "false_failovers"])]
    pub what_if: Option<(Duration, u8)>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Reads "interval=5ms,k=3".
fn parse_setting(text: &str) -> Result<(Duration, u8), String> {
    let error = || format!("invalid setting {text:?}: expected interval=TIME,k=N, such as interval=5ms,k=3");
    let (mut interval, mut k) = (None, None);
    for part in text.split(',') {
        match part.split_once('=').ok_or_else(error)? {
            ("interval", value) => interval = Some(parse_beat_interval(value)?),
            ("k" | "K" | "multiplier", value) => k = Some(parse_multiplier(value)?),
            _ => return Err(error()),
        }
    }
    interval.zip(k).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_what_if() {
        assert_eq!(parse_setting("interval=5ms,k=3"), Ok((Duration::from_millis(5), 3)));
        for (text, words) in [
            ("5ms,k=3", "interval=TIME"),
            ("k=3", "interval=TIME"),
            ("interval=5ms,k=1", "2 to 255"),
            ("interval=5ms,k=256", "2 to 255"),
            ("interval=5us,k=3", "100"),
        ] {
            let error = parse_setting(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
