//! What is asked of a primary before anything is started or allocated for it: things that cost nothing first, then the
//! register. Bytes of a hello are anybody's; that the sender owns the VM is the register's word alone.
//!
//! ```text
//! hello ── screen: names, slabs, profile, room ──> waiting (one, 3 s) ── the register's word ──> taken on
//!            └─ refused                              └─ no word: refused  └─ another's: refused
//! ```

use super::{main_loop::Node, vm::WaitingVm};
use crate::{report, room::Room};
use mc_core::{
    id::{self, Time},
    register::{Mode, Owner, Register},
    standby::Role,
    wire::session::{Hello, Purpose},
};
use node::{
    arbiter::{ArbiterSpec, Ask},
    events::{Event as Told, Refused, emit},
    exit, identity,
    primary::session::{BUSY, NOTHING_STARTED},
    repeated::{Repeated, and_more},
};
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use transport_tcp::session::{Offer, SessionError};
use vmm_qemu::{blocks, profile::Profile};

/// How long the arbiter may take to say what the register holds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a primary is turned away.
#[derive(Debug)]
pub(super) struct Refusal {
    /// In a word or two that no stranger chooses: lines of one kind are counted together.
    pub(super) kind: &'static str,
    /// What the primary is told.
    pub(super) why: String,
}

pub(super) fn refusal<T>(kind: &'static str, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { kind, why: why.into() })
}

/// Who has called.
#[derive(Debug, Default)]
pub(super) struct Callers {
    /// The primary about which the arbiter is being asked.
    waiting: Option<Waiting>,
    /// Primaries that were refused.
    refused: Repeated,
    /// Callers that were none.
    strangers: Repeated,
}

/// A primary that waits for the register's word.
#[derive(Debug)]
struct Waiting {
    offer: Offer,
    profile: Profile,
    until: Time,
}

/// Whether the register, as this node has read it, says that the sender of `hello` may offer this session: it owns the VM,
/// alone, in the generation before.
fn vouches(held: Option<&Register>, hello: &Hello) -> Result<(), Refusal> {
    let nothing = format!("{NOTHING_STARTED} for a primary that the register does not vouch for");
    let (vm, node) = (hello.purpose, hello.node);
    let Some(held) = held else {
        return refusal("register", format!("{nothing}: it knows no {vm}"));
    };
    let (owner, generation) = (held.owner.node, held.generation.0);
    let mode = match held.mode {
        Mode::Solo => "alone".to_owned(),
        Mode::Protected { standby } => format!("protected by {}", standby.node),
    };
    if owner.id != node.id || held.mode != Mode::Solo {
        let says = format!("it says that {vm} belongs to {owner}, {mode}, since generation {generation}");
        return refusal("register", format!("{nothing}: {says}; {node} is not its owner, or not alone"));
    }
    if !held.owner.names(&Owner { node, instance: hello.instance }) {
        let says = format!("it says that {vm} belongs to another QEMU process of {node} since generation {generation}");
        return refusal("register", format!("{nothing}: {says}"));
    }
    if held.generation.next() != hello.generation {
        let (next, offered) = (held.generation.next().0, hello.generation.0);
        let says = format!("it holds generation {generation}, so a session is of generation {next}");
        return refusal("register", format!("{nothing}: {says}, not of generation {offered}"));
    }
    Ok(())
}

impl Node {
    /// A primary has said who it is.
    pub(super) fn hear_offer(&mut self, offer: Offer) {
        match self.screen(&offer) {
            // An operator is the arbiter: there is nobody else to ask.
            Ok(profile) if *self.arbiter.spec() == ArbiterSpec::Manual => match self.pairs_with(&offer.hello) {
                Ok(()) => self.take_on(offer, &profile),
                Err(refusal) => self.turn_away(offer, &refusal),
            },
            Ok(profile) => {
                self.arbiter.ask(Ask::Read);
                self.callers.waiting = Some(Waiting { offer, profile, until: self.clock.now().after(PATIENCE) });
            }
            Err(refusal) => self.turn_away(offer, &refusal),
        }
    }

    /// What can be told without asking anybody, and without allocating more than the hello itself has.
    fn screen(&mut self, offer: &Offer) -> Result<Profile, Refusal> {
        let role = self.driver.machine().role();
        let hello = &offer.hello;
        if hello.purpose != Purpose::Protect(self.config.vm) {
            return refusal(
                "another VM",
                format!("this standby stands by for {}, not for {}", self.config.vm, hello.purpose),
            );
        }
        if !matches!(role, Role::Idle | Role::Lost) {
            return refusal("busy", format!("{BUSY} ({})", super::report::word(role)));
        }
        if self.callers.waiting.is_some() {
            return refusal("busy", format!("{BUSY}: it asks the arbiter about another primary; try again"));
        }
        if let Err(error) = self.gate.mend_ports(&report::nics(&self.config.nics)) {
            return refusal("network", format!("a NIC of the VM would not work on the standby's host: {error}"));
        }
        if u64::from(hello.slab_size) * 2 > self.config.staging_bytes {
            let (slab, staging) = (hello.slab_size, self.config.staging_bytes);
            let why = format!(
                "slabs of {slab} bytes: this standby's staging of {staging} bytes does not hold two; raise --staging here, or \
                 lower --slab there"
            );
            return refusal("slabs", why);
        }
        let profile = Profile::from_json(&offer.profile);
        let profile = profile.or_else(|error| refusal("profile", format!("the primary: {error}")))?;
        self.room_for(&profile, self.vm.as_ref().map(WaitingVm::ram_path))?;
        Ok(profile)
    }

    /// Two hosts that ask the same witness. (This one knows its witness once that has answered.)
    fn pairs_with(&self, hello: &Hello) -> Result<(), Refusal> {
        let ours = (self.this, self.arbiter.health().witness);
        identity::check_pair(ours, (hello.node, hello.witness)).or_else(|why| refusal("no pair", why))
    }

    /// `replaced`: a file that makes way.
    pub(super) fn room_for(&self, profile: &Profile, replaced: Option<&Path>) -> Result<(), Refusal> {
        let main = blocks::main_block(&profile.blocks).map_or(0, |id| usize::from(id.0));
        let sum = |blocks: &[blocks::RamBlock]| blocks.iter().fold(0, |sum: u64, b| sum.saturating_add(b.used_length));
        let file = profile.blocks.get(main).map_or(0, |block| block.used_length);
        let dir = &self.config.ram_dir;
        let room = Room::look(dir, replaced);
        let room = room.or_else(|error| refusal("room", format!("directory {}: {error}", dir.display())))?;
        room.fits(file, sum(&profile.blocks) - file).or_else(|why| refusal("room", why))
    }

    /// The arbiter has said what the register holds.
    pub(super) fn hear_register(&mut self, held: Option<&Register>) {
        let Some(Waiting { offer, profile, .. }) = self.callers.waiting.take() else { return };
        match self.pairs_with(&offer.hello).and_then(|()| vouches(held, &offer.hello)) {
            Ok(()) => self.take_on(offer, &profile),
            Err(refusal) => self.turn_away(offer, &refusal),
        }
    }

    /// A primary does not wait for ever for an arbiter that says nothing.
    pub(super) fn look_after_waiting(&mut self) {
        let now = self.clock.now();
        let Some(Waiting { offer, .. }) = self.callers.waiting.take_if(|waiting| now >= waiting.until) else { return };
        let why = self.arbiter.health().last_error.unwrap_or_else(|| format!("no answer within {PATIENCE:?}"));
        let why = format!(
            "{NOTHING_STARTED} before the register vouches for the primary, and the arbiter {} does not answer this \
             standby: {why}",
            self.arbiter.spec()
        );
        self.turn_away(offer, &Refusal { kind: "arbiter", why });
    }

    fn take_on(&mut self, offer: Offer, profile: &Profile) {
        let who = (offer.hello.node, offer.peer_addr);
        if let Err((offer, error)) = self.begin(offer, profile) {
            if self.driver.machine().role() != Role::Lost {
                self.vm = None;
            }
            let refusal = Refusal { kind: "session", why: exit::words(&error) };
            match offer {
                Some(offer) => self.turn_away(*offer, &refusal),
                None => self.note_refusal(who, &refusal),
            }
        }
    }

    fn turn_away(&mut self, offer: Offer, refusal: &Refusal) {
        self.note_refusal((offer.hello.node, offer.peer_addr), refusal);
        if let Err(error) = offer.refuse(&refusal.why) {
            tracing::debug!(%error, "the refusal was not heard");
        }
    }

    /// Says it; in a crowd, counts it.
    fn note_refusal(&mut self, (node, peer): (id::Node, SocketAddr), refusal: &Refusal) {
        let Refusal { kind, why } = refusal;
        if let Some(more) = self.callers.refused.say(kind, Instant::now()) {
            tracing::warn!(%node, %peer, why, "refused{}", and_more(more));
            let (primary, peer, more) = (Some(node), Some(peer), Some(more));
            emit(Told::Refused(Refused { why: why.clone(), primary, peer, more, callers: None }));
        }
    }

    /// A caller that is no primary.
    pub(super) fn hear_stranger(&mut self, error: &SessionError) {
        if let Some(more) = self.callers.strangers.say(error.kind(), Instant::now()) {
            tracing::warn!(%error, "a caller was turned away{}", and_more(more));
        }
    }

    /// What was counted is said in the end, though nobody comes any more.
    pub(super) fn say_what_was_counted(&mut self) {
        let now = Instant::now();
        while let Some((kind, more)) = self.callers.refused.overdue(now) {
            tracing::warn!(kind, "refused {more} more callers");
            let why = format!("{more} more callers: {kind}");
            emit(Told::Refused(Refused { why, callers: Some(more), ..Refused::default() }));
        }
        while let Some((kind, more)) = self.callers.strangers.overdue(now) {
            tracing::warn!(kind, "turned {more} more callers away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{Generation, Incarnation, Name, NodeId, WitnessId},
        wire::{beat::BeatKey, session::VERSIONS},
    };

    fn node(text: &str) -> id::Node {
        id::Node { name: Name::new(text).unwrap(), id: NodeId([text.as_bytes()[0]; 16]) }
    }

    fn hello(generation: u64) -> Hello {
        Hello {
            versions: VERSIONS,
            slab_size: 1 << 20,
            staging_slabs: 2,
            rdma: false,
            incarnation: Incarnation(1),
            generation: Generation(generation),
            purpose: Purpose::Protect(Name::new("web").unwrap()),
            node: node("a"),
            witness: WitnessId::NONE,
            instance: 1,
            beat_key: BeatKey([7; 32]),
            beat_port: 1,
            detect_multiplier: 5,
            desired_tx_us: 10_000,
            required_rx_us: 10_000,
        }
    }

    #[test]
    fn only_the_owner_alone_and_of_the_generation_before_is_vouched_for() {
        let owner = |name| Owner { node: node(name), instance: 1 };
        let solo = |name, generation| {
            let owner = owner(name);
            Register { generation: Generation(generation), owner, mode: Mode::Solo }
        };
        let other = Register { owner: Owner { instance: 2, ..owner("a") }, ..solo("a", 7) };
        let assigned = Register { owner: Owner { instance: Owner::ANY, ..owner("a") }, ..solo("a", 7) };
        assert!(vouches(Some(&assigned), &hello(8)).is_ok(), "an operator's word: whichever runs there");
        let protected = Register { mode: Mode::Protected { standby: owner("b") }, ..solo("a", 7) };
        assert!(vouches(Some(&solo("a", 7)), &hello(8)).is_ok());
        for (held, words) in [
            (None, "it knows no web"),
            (Some(solo("c", 7)), "belongs to c, alone, since generation 7; a is not its owner"),
            (Some(other), "belongs to another QEMU process of a since generation 7"),
            (Some(protected), "belongs to a, protected by b, since generation 7"),
            (Some(solo("a", 8)), "it holds generation 8, so a session is of generation 9, not of generation 8"),
            (Some(solo("a", 6)), "it holds generation 6, so a session is of generation 7, not of generation 8"),
        ] {
            let Refusal { kind, why } = vouches(held.as_ref(), &hello(8)).unwrap_err();
            assert!(kind == "register" && why.contains(words), "{why}");
            assert!(
                why.starts_with("nothing is started for a primary that the register does not vouch for: "),
                "{why}"
            );
        }
    }
}
