//! Several gates as one: what one of them holds back, all of them do.

use mc_core::{
    gate::{GateStats, Gates, OutputGate, WaitFd},
    id::{Epoch, Time},
};
use proptest::prelude::*;
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Holds numbers, and fails when it is told to.
#[derive(Debug)]
struct Numbers {
    holding: bool,
    shut: bool,
    fails: bool,
    open: Vec<u64>,
    closed: Vec<(Epoch, u64)>,
    out: Vec<u64>,
    now: Time,
    due: Option<Time>,
    fd: File,
}

impl Numbers {
    fn new() -> Self {
        Self {
            holding: false,
            shut: false,
            fails: false,
            open: Vec::new(),
            closed: Vec::new(),
            out: Vec::new(),
            now: Time(0),
            due: None,
            fd: tempfile::tempfile().unwrap(),
        }
    }

    fn send(&mut self, number: u64) {
        if self.holding { self.open.push(number) } else { self.out.push(number) }
    }

    fn works(&self) -> io::Result<()> {
        if self.fails || self.shut { Err(io::Error::other("told to fail")) } else { Ok(()) }
    }
}

impl OutputGate for Numbers {
    fn tick(&mut self, now: Time) {
        self.now = now;
    }

    fn poll(&mut self) -> io::Result<()> {
        self.works()
    }

    fn hold(&mut self) {
        self.holding = true;
    }

    fn barrier(&mut self, epoch: Epoch) -> io::Result<()> {
        self.works()?;
        self.closed.extend(self.open.drain(..).map(|number| (epoch, number)));
        Ok(())
    }

    fn release(&mut self, epoch: Epoch) -> io::Result<()> {
        self.works()?;
        let (go, stay) = std::mem::take(&mut self.closed).into_iter().partition(|(of, _)| *of <= epoch);
        let go: Vec<(Epoch, u64)> = go;
        self.out.extend(go.into_iter().map(|(_, number)| number));
        self.closed = stay;
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        self.works()?;
        self.release(Epoch::NEVER)?;
        self.out.append(&mut self.open);
        self.holding = false;
        Ok(())
    }

    fn shut(&mut self) {
        self.shut = true;
        self.open.clear();
        self.closed.clear();
    }

    fn stats(&self) -> GateStats {
        let held = self.open.len() + self.closed.len();
        GateStats { held_packets: held as u64, released_packets: self.out.len() as u64, ..GateStats::default() }
    }

    fn wait_fds<'a>(&'a self, each: &mut dyn FnMut(WaitFd<'a>)) {
        each(WaitFd { fd: self.fd.as_fd(), read: true, write: false });
    }

    fn deadline(&self) -> Option<Time> {
        self.due
    }
}

fn three() -> Gates<Numbers> {
    let mut gates = Gates::new(vec![Numbers::new(), Numbers::new(), Numbers::new()]);
    gates.hold();
    gates
}

fn send(gates: &mut Gates<Numbers>, number: u64) {
    gates.each_mut().for_each(|gate| gate.send(number));
}

fn fail(gates: &mut Gates<Numbers>, index: usize, fails: bool) {
    gates.each_mut().nth(index).unwrap().fails = fails;
}

fn out(gates: &Gates<Numbers>) -> Vec<Vec<u64>> {
    gates.each().map(|gate| gate.out.clone()).collect()
}

#[test]
fn all_of_them_let_an_epoch_go_and_no_later_one() {
    let mut gates = three();
    for epoch in 1..=3 {
        send(&mut gates, epoch);
        gates.barrier(Epoch(epoch)).unwrap();
    }
    gates.release(Epoch(2)).unwrap();
    assert_eq!(out(&gates), [[1, 2], [1, 2], [1, 2]]);
    let stats = gates.stats();
    assert_eq!((stats.held_packets, stats.released_packets), (3, 6));
    gates.open().unwrap();
    send(&mut gates, 4);
    assert_eq!(out(&gates), [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]);
}

/// I6.
#[test]
fn an_epoch_that_one_could_not_close_leaves_none_of_them() {
    for index in 0..3 {
        let mut gates = three();
        send(&mut gates, 1);
        gates.barrier(Epoch(1)).unwrap();
        send(&mut gates, 2);
        fail(&mut gates, index, true);
        gates.barrier(Epoch(2)).unwrap_err();
        fail(&mut gates, index, false);
        gates.release(Epoch(2)).unwrap();
        assert_eq!(out(&gates), [[1], [1], [1]], "the epoch before it may leave");

        // The next barrier covers what the one before should have.
        send(&mut gates, 3);
        gates.barrier(Epoch(3)).unwrap();
        gates.release(Epoch(2)).unwrap();
        assert_eq!(out(&gates), [[1], [1], [1]]);
        gates.release(Epoch(3)).unwrap();
        assert_eq!(out(&gates), [[1, 2, 3], [1, 2, 3], [1, 2, 3]]);
    }
}

#[test]
fn to_be_told_again_to_hold_forgets_no_failure() {
    let mut gates = three();
    send(&mut gates, 1);
    fail(&mut gates, 1, true);
    gates.barrier(Epoch(1)).unwrap_err();
    fail(&mut gates, 1, false);
    gates.hold();
    gates.release(Epoch(1)).unwrap();
    assert_eq!(out(&gates), [[], [], [] as [u64; 0]]);
}

#[test]
fn one_that_fails_keeps_its_own_and_the_others_are_served() {
    let mut gates = three();
    send(&mut gates, 1);
    gates.barrier(Epoch(1)).unwrap();
    fail(&mut gates, 0, true);
    gates.poll().unwrap_err();
    gates.release(Epoch(1)).unwrap_err();
    assert_eq!(out(&gates), [vec![], vec![1], vec![1]]);
    gates.open().unwrap_err();
    send(&mut gates, 2);
    assert_eq!(out(&gates), [vec![], vec![1, 2], vec![1, 2]]);
}

#[test]
fn shut_drops_what_all_of_them_hold() {
    let mut gates = three();
    send(&mut gates, 1);
    gates.barrier(Epoch(1)).unwrap();
    gates.shut();
    gates.release(Epoch(1)).unwrap_err();
    gates.open().unwrap_err();
    assert_eq!((out(&gates), gates.stats()), (vec![vec![]; 3], GateStats::default()));
}

#[test]
fn time_goes_to_all_and_the_first_deadline_and_every_descriptor_come_back() {
    let mut gates = three();
    gates.tick(Time(7));
    assert!(gates.each().all(|gate| gate.now == Time(7)));
    assert_eq!(gates.deadline(), None);
    for (gate, due) in gates.each_mut().zip([Some(Time(9)), None, Some(Time(8))]) {
        gate.due = due;
    }
    assert_eq!(gates.deadline(), Some(Time(8)));
    let mut fds = Vec::new();
    gates.wait_fds(&mut |wait| fds.push(wait.fd.as_raw_fd()));
    assert_eq!(fds, gates.each().map(|gate| gate.fd.as_raw_fd()).collect::<Vec<_>>());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    /// The gates whose bits are set fail.
    Barrier(u8),
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step =
        prop_oneof![Just(Step::Send), (0..8u8).prop_map(Step::Barrier), Just(Step::Barrier(0)), Just(Step::Release)];
    prop::collection::vec(step, 1..60)
}

proptest! {
    /// Whatever fails when: no number leaves before a barrier that held in all gates and came after it was released.
    #[test]
    fn nothing_leaves_that_no_whole_barrier_covers(steps in steps()) {
        let mut gates = three();
        let (mut epoch, mut number, mut covered) = (0, 0, vec![0]);
        for step in steps {
            match step {
                Step::Send => {
                    number += 1;
                    send(&mut gates, number);
                }
                Step::Barrier(failing) => {
                    epoch += 1;
                    (0..3).for_each(|i| fail(&mut gates, i, failing & (1 << i) != 0));
                    let whole = gates.barrier(Epoch(epoch)).is_ok();
                    (0..3).for_each(|i| fail(&mut gates, i, false));
                    covered.push(if whole { number } else { *covered.last().unwrap() });
                }
                Step::Release => gates.release(Epoch(epoch)).unwrap(),
            }
            for out in out(&gates) {
                prop_assert!(out.iter().all(|n| *n <= *covered.last().unwrap()));
                prop_assert!(out.is_sorted());
            }
        }
        epoch += 1;
        gates.barrier(Epoch(epoch)).unwrap();
        gates.release(Epoch(epoch)).unwrap();
        for out in out(&gates) {
            prop_assert_eq!(out.len() as u64, number, "nothing is lost");
        }
    }
}
