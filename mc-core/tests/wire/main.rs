//! Every record on every wire: round trips, the bytes of each version, and what damage and malice lead to.

mod golden;
mod records;
mod slabs;

use mc_core::{
    id::{Epoch, Generation, Incarnation, Name, Node, NodeId, WitnessId},
    register::{Mode, Owner, Register, Swap},
    wire::{
        arbiter::{Answer, Ask, Asker, Outcome, Refusal, Request, Standing, Stored},
        beat::{Beat, BeatKey, BeatState},
        control::{self, Body, Control, GoodbyeReason, NackReason},
        rdma,
        session::{Hello, Purpose},
        slab::SlabHeader,
    },
};
use proptest::prelude::*;

const KEY: BeatKey = BeatKey([42; 32]);

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9äß][ -.0-~ä]{0,20}".prop_map(|text| Name::new(&text).unwrap())
}

fn control() -> impl Strategy<Value = Control> {
    let nack = prop::sample::select(vec![
        NackReason::TooLarge,
        NackReason::OutOfOrder,
        NackReason::Malformed,
        NackReason::Storage,
        NackReason::Rehearsal,
    ]);
    let goodbye =
        prop::sample::select(vec![GoodbyeReason::Unprotected, GoodbyeReason::GuestGone, GoodbyeReason::Fenced]);
    let body = prop_oneof![
        any::<(u32, u64, u64, bool)>().prop_map(|(slabs, bytes, device_bytes, held)| Body::Commit {
            slabs,
            bytes,
            device_bytes,
            held
        }),
        any::<u32>().prop_map(|free_slabs| Body::Ack { free_slabs }),
        nack.prop_map(Body::Nack),
        Just(Body::Rehearse),
        Just(Body::Rehearsed),
        any::<[u8; 24]>().prop_map(Body::Words),
        goodbye.prop_map(Body::Goodbye),
        any::<u64>().prop_map(|received| Body::Rerouted { received }),
    ];
    (any::<[u64; 3]>(), body).prop_map(|([i, g, e], body)| Control {
        incarnation: Incarnation(i),
        generation: Generation(g),
        epoch: Epoch(e),
        body,
    })
}

fn beat() -> impl Strategy<Value = Beat> {
    let state = prop::sample::select(vec![BeatState::Waiting, BeatState::Up, BeatState::Suspect]);
    (any::<[u64; 7]>(), any::<[u32; 2]>(), 1_u8.., state, any::<(u8, u8, [bool; 3])>()).prop_map(
        |(n, us, detect_multiplier, state, (member, meant_for, [poll, is_final, for_both]))| Beat {
            incarnation: Incarnation(n[0]),
            generation: Generation(n[1]),
            committed: Epoch(n[2]),
            sequence: n[3],
            sent_at: n[4],
            echo: n[5],
            echo_delay: n[6],
            desired_tx_us: us[0],
            required_rx_us: us[1],
            detect_multiplier,
            state,
            member,
            meant_for,
            poll,
            is_final,
            for_both,
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    (name(), any::<[u8; 16]>()).prop_map(|(name, id)| Node { name, id: NodeId(id) })
}

fn owner() -> impl Strategy<Value = Owner> {
    (node(), any::<u64>()).prop_map(|(node, instance)| Owner { node, instance })
}

fn register() -> impl Strategy<Value = Register> {
    let mode = prop_oneof![Just(Mode::Solo), owner().prop_map(|standby| Mode::Protected { standby })];
    (1..=Generation::MAX.0, owner(), mode).prop_map(|(generation, owner, mode)| Register {
        generation: Generation(generation),
        owner,
        mode,
    })
}

fn request() -> impl Strategy<Value = Request> {
    let cas =
        register().prop_map(|new| Ask::Cas(Swap { expect: Generation(new.generation.0 - 1), new, contested: false }));
    let asker = (any::<[u8; 16]>(), prop::option::of(register()), any::<u64>());
    (any::<u64>(), name(), asker, prop_oneof![Just(Ask::Read), cas]).prop_map(|(id, vm, (node, seen, boot), ask)| {
        Request { id, vm, asker: Asker { node: NodeId(node), seen, boot }, ask }
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let refusals = [Refusal::StaleBoot, Refusal::Waiting, Refusal::Disputed, Refusal::NotEntitled];
    let standing = prop::sample::select(vec![Standing::Settled, Standing::Waiting, Standing::Disputed]);
    let found = prop_oneof![
        Just(Outcome::Holds),
        Just(Outcome::Lost),
        Just(Outcome::Failed),
        prop::sample::select(refusals.to_vec()).prop_map(Outcome::Refused),
    ];
    let outcome =
        prop_oneof![(found, prop::option::of(register())), register().prop_map(|won| (Outcome::Won, Some(won))),];
    let age = prop::option::of(0..u32::MAX);
    (any::<(u64, u64, [u8; 16])>(), name(), age, standing, outcome).prop_map(
        |((id, boot, witness), vm, probe_age_ms, standing, (outcome, held))| Answer {
            id,
            vm,
            witness: WitnessId(witness),
            boot,
            probe_age_ms,
            standing,
            outcome,
            held,
        },
    )
}

fn stored() -> impl Strategy<Value = Stored> {
    (name(), register()).prop_map(|(vm, register)| Stored { vm, register })
}

fn hello() -> impl Strategy<Value = Hello> {
    let timing = (1_u8.., any::<[u32; 2]>(), any::<u16>());
    let names = (name(), node(), any::<[u8; 16]>());
    (any::<[u16; 2]>(), 8192..=16_777_216_u32, any::<u32>(), any::<[u64; 2]>(), names, timing).prop_map(
        |(versions, slab_size, staging_slabs, n, (vm, node, witness), (detect_multiplier, us, beat_port))| Hello {
            versions: (versions[0], versions[1]),
            slab_size,
            staging_slabs,
            rdma: beat_port % 2 == 0,
            incarnation: Incarnation(n[0]),
            generation: Generation(n[1]),
            purpose: if n[0] % 5 == 0 { Purpose::Probe } else { Purpose::Protect(vm) },
            node,
            witness: WitnessId(witness),
            instance: n[1] ^ n[0],
            beat_key: KEY,
            beat_port,
            detect_multiplier,
            desired_tx_us: us[0],
            required_rx_us: us[1],
        },
    )
}

fn endpoint() -> impl Strategy<Value = rdma::Endpoint> {
    let small = 0..1_u32 << 24;
    let beats = (small.clone(), 0..1_u32 << 31, any::<Option<[u8; 16]>>());
    let numbers = proptest::collection::vec(small.clone(), 1..=rdma::MAX_QUEUES);
    (any::<[u8; 16]>(), any::<u16>(), 8..=12_u32, 2..=32_768_u32, small, numbers, proptest::option::of(beats)).prop_map(
        |(gid, lid, mtu, receives, psn, numbers, beats)| rdma::Endpoint {
            gid,
            lid,
            mtu: 1 << mtu,
            receives,
            psn,
            queues: rdma::Queues::new(&numbers).unwrap(),
            beats: beats.map(|(queue, qkey, group)| rdma::Beats { queue, qkey, group }),
            incarnation: Incarnation(u64::from(psn) << 20),
        },
    )
}

fn rdma_message() -> impl Strategy<Value = rdma::Message> {
    (any::<u16>(), any::<u32>(), 0..6_u8, any::<[u32; 3]>(), any::<u64>()).prop_map(
        |(credits, serial, kind, n, addr)| {
            let body = match kind {
                0 => rdma::Body::Control([n[0].to_le_bytes()[0]; control::LEN]),
                1 => rdma::Body::Slab { slot: n[0], len: n[1] },
                2 => rdma::Body::Slot(rdma::Slot { number: n[0], len: n[1], addr, rkey: n[2] }),
                3 => rdma::Body::Credits,
                4 => rdma::Body::Part { slot: n[0], len: n[1] },
                _ => rdma::Body::Bye,
            };
            rdma::Message { credits, serial, body }
        },
    )
}

fn slab_header() -> impl Strategy<Value = SlabHeader> {
    (any::<[u64; 3]>(), any::<[u32; 4]>(), 0..=8128_u32).prop_map(|(n, m, body_len)| SlabHeader {
        incarnation: Incarnation(n[0]),
        generation: Generation(n[1]),
        epoch: Epoch(n[2]),
        index: m[0],
        records: m[1],
        pages: m[2],
        body_crc: m[3],
        body_len,
    })
}
