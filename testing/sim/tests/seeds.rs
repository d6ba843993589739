//! A slice of seeds, and what makes a seed worth keeping: it says the same each time.

use mc_core::testing::Sabotage;
use sim::{hardship::Hardships, run::Plan};
use std::path::PathBuf;

fn room(name: &str) -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    base.join(format!("afterimage-sim-test-{name}-{}", std::process::id()))
}

#[test]
fn a_slice_of_seeds_goes_well() {
    let dir = room("slice");
    let (mut takeovers, mut words) = (0, 0);
    for seed in 0..500 {
        let plan = Plan::new(seed, None);
        let outcome = plan.run(&dir, false).expect("a directory");
        assert_eq!(outcome.wrong, None, "seed {seed} ({})", plan.hardships);
        (takeovers, words) = (takeovers + outcome.takeovers, words + outcome.words);
    }
    std::fs::remove_dir_all(&dir).expect("a directory");
    assert!(takeovers > 10 && words > 10_000, "{takeovers} takeovers, {words} words");
}

#[test]
fn a_seed_says_the_same_twice() {
    let (first, second) = (room("first"), room("second"));
    for seed in 0..50 {
        let plan = Plan::new(seed, None);
        let [one, two] = [&first, &second].map(|dir| plan.run(dir, true).expect("a directory").trace);
        let parts = one.iter().zip(&two).position(|(one, two)| one != two);
        assert_eq!(parts.map(|index| (&one[index], &two[index])), None, "seed {seed}");
        assert_eq!(one.len(), two.len(), "seed {seed}");
    }
    [first, second].iter().for_each(|dir| std::fs::remove_dir_all(dir).expect("a directory"));
}

#[test]
fn output_that_leaves_too_early_is_found_and_its_schedule_is_short() {
    let dir = room("bug");
    let plan = (0..200).map(|seed| Plan { bug: Some(Sabotage::ReleaseUnacked), ..Plan::new(seed, None) });
    let found = plan.into_iter().find(|plan| plan.run(&dir, false).expect("a directory").wrong.is_some());
    let shrunk = found.expect("it is found").shrunk(&dir).expect("a directory");
    assert!(shrunk.run(&dir, false).expect("a directory").wrong.is_some() && shrunk.schedule.len() <= 3);
    std::fs::remove_dir_all(&dir).expect("a directory");
}

#[test]
fn hardships_have_names_and_an_unknown_one_is_told() {
    let both: Hardships = "one-way-cut+slow-arbiter".parse().expect("both are known");
    assert_eq!(both.to_string(), "one-way-cut+slow-arbiter");
    let error = "one-way-cut+slow-disk".parse::<Hardships>().expect_err("that one is not").to_string();
    assert!(error.contains("no hardship \"slow-disk\""), "{error}");
}
