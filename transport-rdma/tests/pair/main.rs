//! A link between two hosts, under every fault that the lab's wire and power switch can make: `scripts/lab pair -- PROGRAM`.
//!
//! What arrives is, to the byte and in order, what was sent, and nothing twice. Faults that retries outlast cost time only.
//! The others end the link at each living end, with an error that says everything, all slabs home and the peer fenced.
//!
//! | file | runs | what |
//! |---|---|---|
//! | `main.rs` | | the roles, and the account of the tests |
//! | `cases.rs` | here | the faults, and what must hold under each |
//! | `session.rs`, `lab.rs` | here | both ends of a link, as seen from outside; the lab's verbs |
//! | `end.rs` | in a VM | one end: talks, and checks what it hears |
//! | `items.rs` | in a VM | what it talks of |
//! | `beats.rs` | in a VM | a detector beside the link, over UD |
//! | `said.rs` | | what a VM says to the program here |
//!
//! One program: here it has the tests as its arguments (part of a name; all without), and starts itself in the VMs with a role.

mod beats;
mod cases;
mod end;
mod items;
mod lab;
mod said;
mod session;

use anyhow::Context;
use cases::{CASES, Case};
use lab::Lab;
use mc_core::{id::Incarnation, testing::skip};
use std::{
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let role = match words[..] {
        ["--end", session, timeout, queues] => play_end(session, timeout, queues),
        ["--revenant", former, address] => play_revenant(former, address),
        _ => return outside(&words),
    };
    match role {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play_end(session: &str, timeout: &str, queues: &str) -> anyhow::Result<()> {
    let session = Incarnation(session.parse()?);
    end::run(end::Task { session, timeout: timeout.parse()?, queues: queues.parse()? })
}

fn play_revenant(former: &str, address: &str) -> anyhow::Result<()> {
    beats::revenant(&end::device()?, Incarnation(former.parse()?), serde_json::from_str(address)?)
}

/// Runs the tests that are named, and says so as Rust's own test programs do.
fn outside(words: &[&str]) -> ExitCode {
    let lab = match Lab::from_environment() {
        Ok(lab) => lab,
        Err(error) => {
            skip(format!("{error:#}"));
            return account(&[], &[], CASES.len());
        }
    };
    // (Options are for Rust's own test programs.)
    let wanted: Vec<&str> =
        words.iter().copied().filter(|word| !word.starts_with('-') && word.parse::<u32>().is_err()).collect();
    let is_wanted = |case: &&Case| wanted.is_empty() || wanted.iter().any(|part| case.name.contains(part));
    let (mut passed, mut failed) = (vec![], vec![]);
    // Sessions of an earlier run in the same lab have other numbers.
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    for (case, number) in CASES.iter().filter(is_wanted).zip(0_u64..) {
        let start = Instant::now();
        match case.run(&lab, (epoch << 8) + 2 * number).context(case.name) {
            Ok(()) => passed.push(case.name),
            Err(error) => {
                failed.push(case.name);
                println!("  {error:#}");
                case.mend(&lab);
            }
        }
        let outcome = if failed.last() == Some(&case.name) { "FAILED" } else { "ok" };
        println!("test {} ... {outcome} ({:.1?})", case.name, start.elapsed());
    }
    account(&passed, &failed, CASES.len() - passed.len() - failed.len())
}

fn account(passed: &[&str], failed: &[&str], filtered: usize) -> ExitCode {
    if !failed.is_empty() {
        println!("\nfailures:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    let (verdict, code) = if failed.is_empty() { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
    let (passed, failed) = (passed.len(), failed.len());
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out"
    );
    code
}
