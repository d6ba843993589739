//! `mc-bench all`: every command that makes sense on this transport, one after the other, in one record. Each step is a command
//! line, which the record keeps with its section, so that any of them can be taken again alone.
//!
//! A step that needs what this machine has not (a device, QEMU, root) leaves a section that says what is missing and what to do;
//! one that fails leaves a section that says how. The others go on either way.

use crate::{
    cli::{AllArgs, Cli},
    commands::{Job, Prerequisite},
    interrupt,
    link::Network,
    progress::{Progress, say},
    record::Section,
};
use anyhow::{Context, Result, ensure};
use clap::Parser;

/// One command.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// On which transport it makes sense; none: on any.
    on: Option<Network>,
    /// Its command line. `PLACE` stands for the transport and both devices (and SoftRoCE's patience), `DEVICE` for the sender's device, and
    /// `YARDSTICKS` for `--no-yardsticks` where that was asked for.
    full: &'static str,
    /// With `--quick`. All of them together must take less than ten minutes, even where instructions are emulated.
    quick: &'static str,
}

/// In the order in which they run. A new command gets its line here.
const STEPS: &[Step] = &[
    Step {
        on: Some(Network::Rdma),
        full: "transport PLACE YARDSTICKS --slab 128KiB",
        quick: "transport PLACE YARDSTICKS --slab 128KiB --size 1MiB,16MiB --runs 3 --for 500ms \
                --latency-iterations 300 --yardstick-size 64KiB",
    },
    Step {
        on: Some(Network::Tcp),
        full: "transport PLACE YARDSTICKS --poll event",
        quick: "transport PLACE YARDSTICKS --poll event --size 4KiB,1MiB,16MiB --runs 3 --for 500ms",
    },
    // (A load warms up with more than twice what it has under way; emulated devices take minutes for 16 MiB at depth 4.)
    Step { on: Some(Network::Rdma), full: "beats PLACE --for 10s", quick: "beats PLACE --runs 3 --for 2s --size 4MiB" },
    Step { on: Some(Network::Tcp), full: "beats PLACE --for 10s", quick: "beats PLACE --runs 3 --for 2s" },
    Step {
        on: Some(Network::Tcp),
        full: "capture DEVICE YARDSTICKS",
        quick: "capture DEVICE YARDSTICKS --pages 4000 --ram 128MiB --runs 5",
    },
    // A device in software copies a thousandth of what the processor does.
    Step {
        on: Some(Network::Rdma),
        full: "capture DEVICE YARDSTICKS",
        quick: "capture DEVICE YARDSTICKS --pages 300 --ram 16MiB --runs 2 --for 300ms --yardstick-size 64KiB",
    },
    Step { on: Some(Network::Rdma), full: "register DEVICE", quick: "register DEVICE --size 64MiB --runs 3" },
    Step {
        on: None,
        full: "epoch PLACE",
        quick: "epoch PLACE --workload idle,uniform,database --rate 20000 --ram 32MiB --runs 2 --for 1s",
    },
    Step {
        on: Some(Network::Tcp),
        full: "detect PLACE --false-for 10m",
        quick: "detect PLACE --quick --interval 10ms --multiplier 5",
    },
    // Where instructions are emulated nobody keeps 10 ms (docs/LAB.md).
    Step {
        on: Some(Network::Rdma),
        full: "detect PLACE --false-for 10m",
        quick: "detect PLACE --quick --interval 100ms --multiplier 15",
    },
    // Real VMs: on this machine's QEMU, which the lab's virtual machines cannot run.
    Step { on: Some(Network::Tcp), full: "qemu YARDSTICKS --pages 64,1024", quick: "qemu YARDSTICKS --quick" },
    Step { on: Some(Network::Tcp), full: "takeover", quick: "takeover --quick" },
];

/// What came of it all.
#[derive(Debug)]
pub struct Outcome {
    /// In order, also of what could not run.
    pub sections: Vec<Section>,
    /// Steps that failed, rather than missed something.
    pub failed: usize,
    /// Steps that miss something on this machine.
    pub missing: usize,
}

impl Outcome {
    /// Whether there is nothing that could run here.
    #[must_use]
    pub fn is_all_missing(&self) -> bool {
        self.missing > 0 && self.missing == self.sections.len()
    }
}

/// The command lines that will be run, as words.
#[must_use]
pub fn lines(args: &AllArgs) -> Vec<Vec<String>> {
    let steps = STEPS.iter().filter(|step| step.on.is_none_or(|on| on == args.transport));
    let words = steps.map(|step| words(if args.quick { step.quick } else { step.full }, args));
    words.filter(|words| args.only.is_empty() || words.first().is_some_and(|kind| args.only.contains(kind))).collect()
}

/// The commands that make sense on that transport, for people.
fn kinds(transport: Network) -> String {
    let steps = STEPS.iter().filter(|step| step.on.is_none_or(|on| on == transport));
    steps.filter_map(|step| step.full.split(' ').next()).collect::<Vec<_>>().join(", ")
}

fn words(line: &str, args: &AllArgs) -> Vec<String> {
    let network = format!("{:?}", args.transport).to_lowercase();
    let device = ["--device", &args.device];
    let mut place = vec!["--transport", &network];
    if args.transport == Network::Rdma {
        place.extend(device);
        place.extend(["--peer-device", &args.peer_device]);
        if args.device.starts_with("rxe") {
            // On a busy machine SoftRoCE resends for no reason, and its resends are refused.
            place.extend(["--ack-timeout", "18"]);
        }
    }
    let yardsticks: &[&str] = if args.no_yardsticks { &["--no-yardsticks"] } else { &[] };
    let put = |word| match word {
        "PLACE" => place.clone(),
        "DEVICE" => device.to_vec(),
        "YARDSTICKS" => yardsticks.to_vec(),
        word => vec![word],
    };
    line.split_whitespace().flat_map(put).map(str::to_owned).collect()
}

/// Runs all of it.
///
/// # Errors
/// A command line of [`STEPS`] is wrong.
pub fn run(args: &AllArgs) -> Result<Outcome> {
    let lines = lines(args);
    ensure!(!lines.is_empty(), "there is nothing to run: over this transport there is {}", kinds(args.transport));
    let jobs = lines.iter().map(|words| job(words)).collect::<Result<Vec<_>>>()?;
    let mut outcome = Outcome { sections: vec![], failed: 0, missing: 0 };
    let progress = Progress::new("all", lines.len() as u64);
    for (words, job) in lines.into_iter().zip(jobs).take_while(|_| !interrupt::asked()) {
        progress.doing(&words[0]);
        let start = std::time::Instant::now();
        let mut section = job.run().unwrap_or_else(|error| outcome.without(&words[0], &error));
        section.took_s = start.elapsed().as_secs_f64();
        section.command = words;
        progress.step(format_args!("{} took {:.0} s", section.kind, section.took_s));
        outcome.sections.push(section);
    }
    Ok(outcome)
}

fn job(words: &[String]) -> Result<Job> {
    let line = || format!("mc-bench {}", words.join(" "));
    let words = std::iter::once("mc-bench").chain(words.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).with_context(line)?;
    Job::of(cli.command).with_context(|| format!("{}: it measures nothing", line()))
}

impl Outcome {
    /// The section of a step that gave none.
    fn without(&mut self, kind: &str, error: &anyhow::Error) -> Section {
        let mut section = Section::new(kind, "not measured");
        if let Some(prerequisite) = Prerequisite::of(error) {
            self.missing += 1;
            say(format_args!("{kind} cannot run here: {error:#}; {}", prerequisite.remedy));
            section.missing.push(prerequisite.missing(kind));
        } else {
            self.failed += 1;
            say(format_args!("{kind} failed: {error:#}"));
            section.failures.push(format!("given up: {error:#}"));
        }
        section
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn args(line: &str) -> AllArgs {
        let words = ["mc-bench", "all"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::All(args) => args,
            _ => unreachable!("not asked for"),
        }
    }

    #[test]
    fn every_step_is_a_command_line_that_measures() {
        for transport in ["rdma", "tcp"] {
            for more in ["", "--quick", "--no-yardsticks"] {
                let lines = lines(&args(&format!("--transport {transport} {more}")));
                assert!(!lines.is_empty());
                lines.iter().for_each(|words| drop(job(words).unwrap_or_else(|e| panic!("{words:?}: {e:#}"))));
            }
        }
    }

    #[test]
    fn the_transport_decides_what_makes_sense_and_devices_are_passed_on() {
        let tcp: Vec<String> = lines(&args("--transport tcp --quick")).into_iter().map(|w| w.join(" ")).collect();
        assert!(tcp.iter().any(|l| l.starts_with("transport --transport tcp --poll event")), "{tcp:?}");
        assert!(!tcp.iter().any(|l| l.contains("register") || l.contains("peer-device")), "{tcp:?}");
        let rdma = lines(&args("--transport rdma --device mlx5_0 --peer-device mlx5_1 --only register,beats"));
        let rdma: Vec<String> = rdma.into_iter().map(|w| w.join(" ")).collect();
        assert!(rdma[0].starts_with("beats --transport rdma --device mlx5_0 --peer-device mlx5_1"), "{rdma:?}");
        assert_eq!((rdma.len(), rdma[1].as_str()), (2, "register --device mlx5_0"));
        let error = run(&args("--transport tcp --only register")).unwrap_err().to_string();
        assert!(error.contains("there is transport, beats, capture"), "{error}");
    }

    #[test]
    fn what_is_missing_is_recorded_and_is_no_failure() {
        let mut outcome = Outcome { sections: vec![], failed: 0, missing: 0 };
        let lacking = outcome.without("qemu", &Prerequisite::package("there is no QEMU", "qemu-system-x86").into());
        assert_eq!(lacking.missing[0].package.as_deref(), Some("qemu-system-x86"));
        let failed = outcome.without("beats", &anyhow::anyhow!("the link went down"));
        assert_eq!((failed.failures[0].as_str(), outcome.failed), ("given up: the link went down", 1));
        assert!(!outcome.is_all_missing());
    }
}
