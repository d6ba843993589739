//! The primary's and the standby's machines, transition by transition. What holds over all orders of events is in
//! `tests/model`; here is what each answers to each, errors included.

mod claim;
mod primary;
mod standby;

use mc_core::{
    id::{Generation, Name, Node, NodeId, Time},
    machine::Machine,
    register::{Mode, Owner, Register},
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn owner(node: &str) -> Owner {
    Owner { node: Node { name: name(node), id: NodeId([node.as_bytes()[0]; 16]) }, instance: 1 }
}

fn solo(generation: u64, node: &str) -> Register {
    Register { generation: Generation(generation), owner: owner(node), mode: Mode::Solo }
}

fn protected(generation: u64, standby: &str) -> Register {
    let mode = Mode::Protected { standby: owner(standby) };
    Register { generation: Generation(generation), owner: owner("a"), mode }
}

/// Everything the machine asks for after an event.
fn at<M: Machine>(machine: &mut M, now: Time, event: M::Event) -> Vec<M::Action> {
    machine.handle(now, event);
    std::iter::from_fn(|| machine.poll_action()).collect()
}

/// Everything it asks for when a deadline has come.
fn timeout<M: Machine>(machine: &mut M, now: Time) -> Vec<M::Action> {
    machine.handle_timeout(now);
    std::iter::from_fn(|| machine.poll_action()).collect()
}
