//! The command line of `mc-bench detect`.

use crate::{
    cli::{Output, Where},
    units::parse_time,
};
use clap::Args;
use std::time::Duration;

/// `mc-bench detect`.
#[derive(Clone, Debug, Args)]
pub struct DetectArgs {
    /// Where: beats go over UD with rdma, over UDP with tcp
    #[command(flatten)]
    pub place: Where,
    /// Intervals between beats; the first one, with the first multiplier, is the one that is to hold
    #[arg(long, value_name = "TIME,...", value_delimiter = ',', value_parser = parse_time, default_value = "10ms,5ms,20ms")]
    pub interval: Vec<Duration>,
    /// Detect multipliers
    #[arg(long, value_name = "K,...", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..),
          default_value = "5,3")]
    pub multiplier: Vec<u8>,
    /// Killed peers of the first setting; a tenth as many of each other setting, and of each other death
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub deaths: u32,
    /// Sessions that die together, in one process; each has threads, sockets and jitter of its own
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,
    /// How long false suspicions are waited for, in each of: loss, jitter, full bulk load
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "30s")]
    pub false_for: Duration,
    /// Of the random moments [default: from the clock; it is recorded]
    #[arg(long)]
    pub seed: Option<u64>,
    /// 40 deaths of the first setting, 3 s for false suspicions: to see that it works
    #[arg(long, conflicts_with_all = ["deaths", "false_for"])]
    pub quick: bool,
    /// How it is shown
    #[command(flatten)]
    pub output: Output,
}

impl DetectArgs {
    /// With `--quick` applied.
    #[must_use]
    pub fn settled(&self) -> Self {
        let mut args = self.clone();
        if args.quick {
            (args.deaths, args.false_for) = (40, Duration::from_secs(3));
        }
        args
    }
}
