//! A flag that there is not: which one was meant. clap knows that of long words; here are those of two swapped letters, too.

use super::Cli;
use crate::config::nearest;
use clap::{
    CommandFactory, Error, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Reads this process's command line, or ends the process: with 2 on one that is none, with 0 on --help and --version.
#[must_use]
pub fn parse() -> Cli {
    let words = || std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    Cli::try_parse().unwrap_or_else(|error| with_guess(error, words()).exit())
}

fn with_guess(mut error: Error, words: impl Iterator<Item = String>) -> Error {
    let unknown = match (error.kind(), error.get(ContextKind::InvalidArg), error.get(ContextKind::SuggestedArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(unknown)), None) => unknown.clone(),
        _ => return error,
    };
    let root = Cli::command();
    let command = words.fold(&root, |command, word| command.find_subcommand(&word).unwrap_or(command));
    let flags: Vec<String> =
        command.get_arguments().filter_map(|arg| Some(arg.get_long()?.replace('-', "_"))).collect();
    if let Some(flag) = nearest(&unknown, flags.iter().map(String::as_str)) {
        let meant = format!("--{}", flag.replace('_', "-"));
        error.insert(ContextKind::SuggestedArg, ContextValue::String(meant));
    }
    error
}
