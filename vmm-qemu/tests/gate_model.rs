//! The gate against a reference model that is too simple to be wrong: random interleavings of frames cut anywhere,
//! polls, barriers, releases, blocked ports, and changes of mode, over two NICs.

mod gate_common;

use gate_common::{MemPort, Qemu, frame, open_gate};
use mc_core::{gate::OutputGate, id::Epoch};
use proptest::prelude::*;
use std::collections::VecDeque;
use vmm_qemu::gate::{Mode, NicGate};

const NICS: usize = 2;
type Frame = Vec<u8>;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The VM sends a frame of so many bytes; its bytes reach the socket later.
    Frame(usize, usize),
    /// So many bytes of what a NIC sent reach the socket.
    Bytes(usize, usize),
    Inbound(usize, usize),
    Poll,
    Barrier,
    /// Releases the newest barrier's epoch, or one so many before it.
    Release(u64),
    Block(usize),
    Heal(usize),
    Hold,
    Open,
    Shut,
}

fn op() -> impl Strategy<Value = Op> {
    let nic = 0..NICS;
    prop_oneof![
        8 => (nic.clone(), 0..1600usize).prop_map(|(n, b)| Op::Frame(n, b)),
        8 => (nic.clone(), prop_oneof![1..8usize, 1..3000usize]).prop_map(|(n, b)| Op::Bytes(n, b)),
        3 => (nic.clone(), 14..1600usize).prop_map(|(n, b)| Op::Inbound(n, b)),
        4 => Just(Op::Poll),
        4 => Just(Op::Barrier),
        4 => (0..4u64).prop_map(Op::Release),
        1 => nic.clone().prop_map(Op::Block),
        2 => nic.prop_map(Op::Heal),
        1 => Just(Op::Hold),
        1 => Just(Op::Open),
        1 => prop::bool::weighted(0.3).prop_map(|yes| if yes { Op::Shut } else { Op::Poll }),
    ]
}

/// What one NIC must do.
#[derive(Default)]
struct NicModel {
    /// Bytes that the VM has sent and the socket has not.
    pending: Vec<u8>,
    /// Frames in the order sent, with the count of bytes after which each is whole.
    sent: VecDeque<(usize, Frame)>,
    written: usize,
    queued: usize,
    /// Everything that may have left, in order.
    free: Vec<Frame>,
    blocked: bool,
    inbound: Vec<Frame>,
}

struct Model {
    mode: Mode,
    nics: [NicModel; NICS],
    open: Vec<(usize, Frame)>,
    batches: VecDeque<(u64, Vec<(usize, Frame)>)>,
    epoch: u64,
    tag: u16,
}

impl Model {
    fn new(mode: Mode) -> Self {
        Self { mode, nics: Default::default(), open: Vec::new(), batches: VecDeque::new(), epoch: 0, tag: 0 }
    }

    /// The gate reads every whole frame.
    fn read(&mut self) {
        for (i, nic) in self.nics.iter_mut().enumerate() {
            while nic.sent.front().is_some_and(|s| s.0 <= nic.written) {
                let (_, f) = nic.sent.pop_front().unwrap();
                match self.mode {
                    Mode::Holding => self.open.push((i, f)),
                    Mode::Open => nic.free.push(f),
                    Mode::Closed | Mode::Shut => {}
                }
            }
        }
    }

    fn free(&mut self, frames: Vec<(usize, Frame)>) {
        for (nic, f) in frames {
            self.nics[nic].free.push(f);
        }
    }

    fn release(&mut self, epoch: u64) {
        while self.batches.front().is_some_and(|b| b.0 <= epoch) {
            let (_, frames) = self.batches.pop_front().unwrap();
            self.free(frames);
        }
    }

    fn held(&self) -> usize {
        self.open.len() + self.batches.iter().map(|b| b.1.len()).sum::<usize>()
    }
}

struct World {
    gate: NicGate,
    qemu: Vec<Qemu>,
    ports: Vec<MemPort>,
    model: Model,
}

impl World {
    fn apply(&mut self, op: Op) {
        let Self { gate, qemu, ports, model } = self;
        match op {
            Op::Frame(n, bytes) => {
                model.tag += 1;
                let f = frame(model.tag, bytes);
                let (nic, wire) = (&mut model.nics[n], Qemu::wire(&f));
                nic.queued += wire.len();
                nic.pending.extend(wire);
                nic.sent.push_back((nic.queued, f));
            }
            Op::Bytes(n, bytes) => {
                let nic = &mut model.nics[n];
                let bytes = bytes.min(nic.pending.len());
                let wrote = qemu[n].try_raw(&nic.pending[..bytes]);
                nic.pending.drain(..wrote);
                nic.written += wrote;
            }
            Op::Inbound(n, bytes) => {
                model.tag += 1;
                ports[n].push(frame(model.tag, bytes));
                model.nics[n].inbound.push(frame(model.tag, bytes));
            }
            Op::Poll => {
                model.read();
                gate.poll().unwrap();
            }
            Op::Barrier => {
                model.read();
                model.epoch += 1;
                if model.mode == Mode::Holding {
                    model.batches.push_back((model.epoch, std::mem::take(&mut model.open)));
                }
                gate.barrier(Epoch(model.epoch)).unwrap();
            }
            Op::Release(back) => {
                let epoch = model.epoch.saturating_sub(back);
                model.release(epoch);
                gate.release(Epoch(epoch)).unwrap();
            }
            Op::Block(n) => {
                model.nics[n].blocked = true;
                ports[n].fail_after(0, libc::EAGAIN);
            }
            Op::Heal(n) => {
                model.nics[n].blocked = false;
                ports[n].heal();
            }
            Op::Hold => {
                model.mode = Mode::Holding;
                gate.hold();
            }
            Op::Open => {
                model.release(u64::MAX);
                let open = std::mem::take(&mut model.open);
                model.free(open);
                model.mode = Mode::Open;
                gate.open().unwrap();
            }
            Op::Shut => unreachable!("handled by the caller"),
        }
    }

    /// Nothing early, nothing late, nothing out of order.
    fn check(&mut self, polled: bool) {
        let settled = polled && self.model.nics.iter().all(|n| !n.blocked);
        let mut late = 0;
        for (nic, port) in self.model.nics.iter().zip(&self.ports) {
            let out = port.out();
            assert!(nic.free.starts_with(&out), "a frame left early, twice, or out of order");
            late += nic.free.len() - out.len();
        }
        assert!(!settled || late == 0, "{late} released frames did not leave");
        assert_eq!(self.gate.stats().held_packets, (self.model.held() + late) as u64);
        if polled {
            for (nic, qemu) in self.model.nics.iter_mut().zip(&mut self.qemu) {
                let expected = std::mem::take(&mut nic.inbound);
                let passed = if self.model.mode == Mode::Closed { Vec::new() } else { expected };
                assert!(qemu.receive() == passed, "inbound frames lost, cut or moved");
            }
        }
    }

    /// Fenced: whatever comes, nothing more leaves.
    fn shut(mut self, rest: Vec<Op>) {
        self.gate.shut();
        let before: Vec<_> = self.ports.iter().map(MemPort::out).collect();
        for (i, op) in rest.into_iter().enumerate() {
            let _ = match op {
                Op::Barrier => self.gate.barrier(Epoch(1000 + i as u64)),
                Op::Release(_) => self.gate.release(Epoch(u64::MAX)),
                Op::Open => self.gate.open(),
                Op::Hold => {
                    self.gate.hold();
                    Ok(())
                }
                _ => self.gate.poll(),
            };
        }
        drop(self.gate);
        assert!(before.iter().eq(self.ports.iter().map(MemPort::out).collect::<Vec<_>>().iter()));
    }
}

fn run(mode: Mode, ops: Vec<Op>) {
    let (gate, qemu, ports) = open_gate(NICS, mode);
    let mut world = World { gate, qemu, ports, model: Model::new(mode) };
    let mut ops = ops.into_iter();
    while let Some(op) = ops.next() {
        if matches!(op, Op::Shut) {
            return world.shut(ops.collect());
        }
        let polled = matches!(op, Op::Poll);
        world.apply(op);
        world.check(polled);
    }
    (0..NICS).for_each(|n| world.apply(Op::Heal(n)));
    world.apply(Op::Poll);
    world.check(true);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_gate_is_its_model(
        mode in prop_oneof![1 => Just(Mode::Closed), 4 => Just(Mode::Holding), 1 => Just(Mode::Open)],
        ops in prop::collection::vec(op(), 1..150),
    ) {
        run(mode, ops);
    }
}
