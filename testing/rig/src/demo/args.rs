//! The options of `rig demo`, and what they come to on which hosts.

use crate::{
    guest::{Accel, Kind},
    hosts::{Place, Topology},
    lab, netns,
    scenario::{Choice, Scenario},
};
use anyhow::Result;
use clap::{Args, Parser, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// Options of `rig demo`. Times are written as 20ms or 2s.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// The fault, or several with commas between them, or all: one a round, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kill-primary")]
    pub scenario: Vec<Choice>,
    /// What the hosts are [default: lab inside of scripts/lab pair --lan, else netns]
    #[arg(long, value_enum)]
    pub hosts: Option<Hosts>,
    /// The guest
    #[arg(long, value_enum, default_value = "linux")]
    pub guest: Kind,
    /// KVM or TCG; by default KVM if it boots this guest here, else TCG
    #[arg(long, value_parser = parse_accel, default_value = "auto")]
    pub accel: AccelChoice,
    /// Number of runs, each with everything new but the hosts. A run that is spoilt (a side suspects the other before
    /// anything is done, on a machine that is too busy) is told, counted apart, and repeated
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub repeat: u32,
    /// Keep so many processors busy meanwhile
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub busy: u32,
    /// Length of an epoch [default: 20ms; lab: 200ms]
    #[arg(long)]
    pub epoch: Option<String>,
    /// Time between beats [default: 10ms; lab: 100ms]
    #[arg(long)]
    pub beat_interval: Option<String>,
    /// Beats that may be missed before the peer is suspect [default: 5; lab: 15]
    #[arg(long)]
    pub detect_multiplier: Option<u32>,
    /// How checkpoints travel: rdma, tcp or auto [default: the program's; cut-rdma: auto]
    #[arg(long)]
    pub transport: Option<String>,
    /// How beats travel: ud, udp or both [default: the program's; cut-rdma: both]
    #[arg(long)]
    pub keepalive: Option<String>,
    /// How long RDMA waits for an answer: 4.096 us x 2^N, seven times [default: the program's; lab: 18, which makes 7.5
    /// s, so that beats decide]
    #[arg(long)]
    pub rdma_timeout: Option<u8>,
    /// Cap of the staging memory of each side [default: the program's]
    #[arg(long)]
    pub staging: Option<String>,
    /// Requests that the client has under way at a time (Linux guest, Redis)
    #[arg(long, default_value_t = 1)]
    pub pipeline: usize,
    /// Pages that the Linux guests rewrite every 100 ms
    #[arg(long, default_value_t = 64)]
    pub pages: u32,
    /// How long the client runs before the fault [default: 3s; 500ms with --repeat]
    #[arg(long, value_parser = parse_time)]
    pub before: Option<Duration>,
    /// How long it runs after the fault was dealt with [default: 3s; 300ms with --repeat]
    #[arg(long, value_parser = parse_time)]
    pub after: Option<Duration>,
    /// How long to measure the unprotected VM first, for the added delay [default: 2s; 0s with --repeat, or in the lab]
    #[arg(long, value_parser = parse_time)]
    pub baseline: Option<Duration>,
    /// How long to measure what the sidecars cost while no client asks [default: 2s; 0s with --repeat, or in the lab]
    #[arg(long, value_parser = parse_time)]
    pub idle: Option<Duration>,
    /// The program under test [default: `afterimage` next to this one]
    #[arg(long)]
    pub afterimage: Option<PathBuf>,
    /// Another version of it on one of the hosts: primary, standby, or client, where the witness runs
    #[arg(long, value_name = "HOST=PROGRAM", value_parser = parse_program)]
    pub afterimage_on: Vec<(Place, PathBuf)>,
    /// What scripts/guests built [default: testing/guests/build of this checkout]
    #[arg(long)]
    pub guests: Option<PathBuf>,
    /// Draw the takeover of a single run into this file, as an SVG
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Keep logs and files of all runs; those of a failed run are always kept
    #[arg(long)]
    pub keep: bool,
}

/// What hosts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Hosts {
    /// Network namespaces of this machine.
    Netns,
    /// The virtual machines of `scripts/lab pair --lan`, which have RDMA devices.
    Lab,
}

impl Hosts {
    pub(super) fn pace(self) -> Pace {
        match self {
            Self::Netns => PACE,
            Self::Lab => LAB_PACE,
        }
    }

    /// What is wanted, or what is there.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Lab => "lab",
        }
    }

    pub(super) fn create(self) -> Result<Box<dyn Topology>> {
        Ok(match self {
            Self::Netns => Box::new(netns::Topology::create()?),
            Self::Lab => Box::new(lab::Pair::take()?),
        })
    }
}

/// Times that suit the hosts: emulated machines stall for half a second now and then, which is no death.
pub(super) struct Pace {
    pub(super) epoch: &'static str,
    pub(super) beat_interval: &'static str,
    pub(super) detect_multiplier: u32,
    pub(super) repeat_after: Duration,
}

const PACE: Pace =
    Pace { epoch: "20ms", beat_interval: "10ms", detect_multiplier: 5, repeat_after: Duration::from_millis(20) };
const LAB_PACE: Pace =
    Pace { epoch: "200ms", beat_interval: "100ms", detect_multiplier: 15, repeat_after: Duration::from_millis(500) };

impl Default for DemoArgs {
    /// As without any option.
    fn default() -> Self {
        #[derive(Parser)]
        struct Bare {
            #[command(flatten)]
            args: DemoArgs,
        }
        Bare::parse_from(["rig"]).args
    }
}

impl DemoArgs {
    /// What is wanted, or what is there.
    pub(super) fn hosts(&self) -> Hosts {
        self.hosts.unwrap_or(if lab::is_here() { Hosts::Lab } else { Hosts::Netns })
    }

    /// The scenarios, in order, each once.
    pub(super) fn scenarios(&self) -> Vec<Scenario> {
        let is_lab = self.hosts() == Hosts::Lab;
        let mut scenarios = Vec::new();
        for scenario in self.scenario.iter().flat_map(|choice| choice.scenarios(is_lab)) {
            if !scenarios.contains(&scenario) {
                scenarios.push(scenario);
            }
        }
        scenarios
    }

    /// What was asked for, as on the command line.
    pub(super) fn scenario_names(&self) -> String {
        let names: Vec<&str> = self.scenario.iter().map(|choice| choice.name()).collect();
        names.join(",")
    }

    /// Flags of both sidecars that are left out if nobody asks for them.
    pub(super) fn flags(&self, hosts: Hosts, scenario: Scenario) -> Vec<(&'static str, String)> {
        let cut_rdma = scenario == Scenario::CutRdma;
        let usual = |given: &Option<String>, value: &str| given.clone().or_else(|| cut_rdma.then(|| value.to_owned()));
        let transport = usual(&self.transport, "auto");
        let is_rdma = transport.as_ref().is_some_and(|t| t != "tcp");
        let patient = (hosts == Hosts::Lab && is_rdma && !cut_rdma).then_some(18);
        let flags = [
            ("--transport", transport),
            ("--keepalive", usual(&self.keepalive, "both")),
            ("--rdma-timeout", self.rdma_timeout.or(patient).map(|n| n.to_string())),
            ("--staging", self.staging.clone()),
        ];
        flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Which accelerator is wanted; None: whichever works best.
pub type AccelChoice = Option<Accel>;

fn parse_accel(text: &str) -> Result<AccelChoice, String> {
    match text {
        "auto" => Ok(None),
        "kvm" => Ok(Some(Accel::Kvm)),
        "tcg" => Ok(Some(Accel::Tcg)),
        _ => Err("auto, kvm or tcg".to_owned()),
    }
}

fn parse_program(text: &str) -> Result<(Place, PathBuf), String> {
    let (host, program) = text.split_once('=').ok_or("expected HOST=PROGRAM")?;
    let place = match host {
        "primary" => Place::Primary,
        "standby" => Place::Standby,
        "client" => Place::Client,
        _ => return Err(format!("no such host: {host}")),
    };
    Ok((place, program.into()))
}

/// A duration: a whole number and `us`, `ms` or `s`.
///
/// # Errors
/// Says what is expected.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let expected = || format!("invalid time '{text}': write 500us, 20ms or 2s");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    match &text[digits..] {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_listed_with_commas() {
        let scenario =
            vec![Choice::One(Scenario::StopLoop), Choice::One(Scenario::CutLink), Choice::One(Scenario::StopLoop)];
        let args = DemoArgs { scenario, hosts: Some(Hosts::Netns), ..DemoArgs::default() };
        assert_eq!(args.scenarios(), [Scenario::StopLoop, Scenario::CutLink]);
        assert_eq!(args.scenario_names(), "stop-loop,cut-link,stop-loop");
        assert_eq!(DemoArgs::default().scenario_names(), "kill-primary");
    }

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(parse_time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_time("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_time("500us"), Ok(Duration::from_micros(500)));
        for wrong in ["", "20", "ms", "-1s", "1.5s", "20 ms", "99999999999999999999s", "2m"] {
            assert!(parse_time(wrong).unwrap_err().contains("20ms"), "{wrong}");
        }
    }
}
