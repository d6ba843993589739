//! Every record on every wire: round trips, the bytes of version 1, and what damage and malice lead to.

mod golden;
mod records;
mod slabs;

use mc_core::{
    id::{Epoch, Generation, Incarnation, Name},
    register::{Mode, Owner, Register},
    wire::{
        arbiter,
        beat::{Beat, BeatKey, BeatState},
        control::{self, Body, Control, GoodbyeReason, NackReason},
        rdma,
        session::Hello,
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
    ]);
    let goodbye =
        prop::sample::select(vec![GoodbyeReason::Unprotected, GoodbyeReason::GuestGone, GoodbyeReason::Fenced]);
    let body = prop_oneof![
        any::<(u32, u64, u64)>().prop_map(|(slabs, bytes, device_bytes)| Body::Commit { slabs, bytes, device_bytes }),
        any::<u32>().prop_map(|free_slabs| Body::Ack { free_slabs }),
        nack.prop_map(Body::Nack),
        Just(Body::Registered),
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

fn register() -> impl Strategy<Value = Register> {
    let mode = prop_oneof![Just(Mode::Solo), name().prop_map(|standby| Mode::Protected { standby })];
    (1_u64.., name(), any::<u64>(), mode).prop_map(|(generation, node, instance, mode)| Register {
        generation: Generation(generation),
        owner: Owner { node, instance },
        mode,
    })
}

fn message() -> impl Strategy<Value = arbiter::Message> {
    use arbiter::Body;
    let cas = register().prop_map(|new| Body::Cas { expect: Generation(new.generation.0 - 1), new });
    let body = prop_oneof![
        Just(Body::Read),
        cas,
        prop::option::of(register()).prop_map(Body::Holds),
        register().prop_map(Body::Won),
        prop::option::of(register()).prop_map(Body::Lost),
        Just(Body::Failed),
    ];
    (any::<u64>(), name(), body).prop_map(|(id, vm, body)| arbiter::Message { id, vm, body })
}

fn hello() -> impl Strategy<Value = Hello> {
    let timing = (1_u8.., any::<[u32; 2]>(), any::<u16>());
    (any::<[u16; 2]>(), 8192..=16_777_216_u32, any::<u32>(), any::<[u64; 2]>(), [name(), name()], timing).prop_map(
        |(versions, slab_size, staging_slabs, n, [vm, node], (detect_multiplier, us, beat_port))| Hello {
            versions: (versions[0], versions[1]),
            slab_size,
            staging_slabs,
            rdma: beat_port % 2 == 0,
            incarnation: Incarnation(n[0]),
            generation: Generation(n[1]),
            vm,
            node,
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

fn offer() -> impl Strategy<Value = rdma::Offer> {
    endpoint().prop_map(|rdma::Endpoint { receives, beats, incarnation, .. }| rdma::Offer {
        receives,
        beats,
        incarnation,
    })
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
