//! What is asked of a primary before anything is started or allocated for it: things that cost nothing first, then the
//! register. Bytes of a hello are anybody's; that the sender owns the VM is the register's word alone.
//!
//! ```text
//! hello ── screen: names, slabs, profile, room ──> waiting (one, 3 s) ── the register's word ──> taken on
//!            └─ refused                              └─ no word: refused  └─ another's: refused
//! ```

use super::{Caller, Standby, StandbyLoop};
use crate::{
    arbiter::{ArbiterSpec, Ask},
    events::{Event as Told, Refused, Role as Word, emit},
    exit, identity, outside,
    primary::session::{BUSY, NOTHING_STARTED},
    repeated::{Repeated, and_more},
    units::spoken,
};
use mc_core::{
    id::{Node, Time},
    register::{Mode, Owner, Register},
    standby::Role,
    wire::session::{Hello, Purpose},
};
use std::{net::SocketAddr, time::Duration};
use transport_tcp::session::SessionError;

/// How long the arbiter may take to say what the register holds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a primary is turned away.
#[derive(Debug)]
pub struct Refusal {
    /// In a word or two that no stranger chooses: lines of one kind are counted together.
    pub kind: &'static str,
    /// What the primary is told.
    pub why: String,
}

/// A refusal.
///
/// # Errors
/// Always.
pub fn refusal<T>(kind: &'static str, why: impl Into<String>) -> Result<T, Refusal> {
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
    caller: Box<dyn Caller>,
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
        return refusal("register", format!("{nothing}: {says}; {node} must own it, alone"));
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

/// One caller a turn: whoever is slow has until the listener's deadline, and keeps nobody.
pub(super) fn hear_offers(node: &mut (impl StandbyLoop + ?Sized)) {
    node.standby_mut().look_after_waiting();
    node.standby_mut().callers.say_what_was_counted();
    if !node.takes_offers() {
        return;
    }
    match node.standby_mut().door.accept() {
        Ok(None) => {}
        Ok(Some(caller)) => hear_offer(node, caller),
        Err(error) => node.standby_mut().callers.hear_stranger(&error),
    }
}

/// A primary has said who it is.
fn hear_offer(node: &mut (impl StandbyLoop + ?Sized), caller: Box<dyn Caller>) {
    let screened = screen(node, &*caller);
    let standby = node.standby_mut();
    match screened {
        // An operator is the arbiter: there is nobody else to ask.
        Ok(()) if *standby.host.arbiter.spec() == ArbiterSpec::Manual => match standby.pairs_with(caller.hello()) {
            Ok(()) => take_on(node, caller),
            Err(refusal) => standby.callers.turn_away(caller, &refusal),
        },
        Ok(()) => {
            standby.host.arbiter.ask(Ask::Read);
            let until = standby.host.now().after(PATIENCE);
            standby.callers.waiting = Some(Waiting { caller, until });
        }
        Err(refusal) => standby.callers.turn_away(caller, &refusal),
    }
}

/// What can be told without asking anybody, and without allocating more than the hello itself has.
fn screen(node: &mut (impl StandbyLoop + ?Sized), caller: &dyn Caller) -> Result<(), Refusal> {
    let (standby, hello) = (node.standby(), caller.hello());
    if hello.purpose != Purpose::Protect(standby.vm) {
        let why = format!("this standby stands by for {}, not for {}", standby.vm, hello.purpose);
        return refusal("another VM", why);
    }
    standby.is_free()?;
    if standby.callers.waiting.is_some() {
        return refusal("busy", format!("{BUSY} asking the arbiter about another primary; try again"));
    }
    node.is_able()?;
    node.standby().has_room_for_slabs(hello)?;
    node.fits(caller.profile())
}

/// The arbiter has said what the register holds.
pub(super) fn hear_register(node: &mut (impl StandbyLoop + ?Sized), held: Option<&Register>) {
    let standby = node.standby_mut();
    let Some(Waiting { caller, .. }) = standby.callers.waiting.take() else { return };
    let paired = standby.is_free().and_then(|()| standby.pairs_with(caller.hello()));
    match paired.and_then(|()| vouches(held, caller.hello())) {
        Ok(()) => take_on(node, caller),
        Err(refusal) => standby.callers.turn_away(caller, &refusal),
    }
}

fn take_on(node: &mut (impl StandbyLoop + ?Sized), caller: Box<dyn Caller>) {
    let who = (caller.hello().node, caller.address());
    if let Err((caller, error)) = node.begin(caller) {
        if node.standby().role() != Role::Lost {
            node.unprepared();
        }
        let refusal = Refusal { kind: "session", why: exit::words(&error) };
        let callers = &mut node.standby_mut().callers;
        match caller {
            Some(caller) => callers.turn_away(caller, &refusal),
            None => callers.note_refusal(who, &refusal),
        }
    }
}

impl Standby {
    /// There is no session, and no copy that the register may name.
    fn is_free(&self) -> Result<(), Refusal> {
        match self.role() {
            Role::Idle | Role::Lost => Ok(()),
            role => refusal("busy", format!("{BUSY} ({})", Word::from(role))),
        }
    }

    fn has_room_for_slabs(&self, hello: &Hello) -> Result<(), Refusal> {
        let (slab, staging) = (hello.slab_size, self.staging_bytes);
        if u64::from(slab) * 2 > staging {
            let why = format!(
                "slabs of {slab} bytes: this standby's staging of {staging} bytes does not hold two; raise --staging here, or \
                 lower --slab there"
            );
            return refusal("slabs", why);
        }
        Ok(())
    }

    /// Two hosts that ask the same witness. (This one knows its witness once that has answered.)
    fn pairs_with(&self, hello: &Hello) -> Result<(), Refusal> {
        let ours = (self.this, self.host.arbiter.health().witness);
        identity::check_pair(ours, (hello.node, hello.witness)).or_else(|why| refusal("no pair", why))
    }

    /// A primary does not wait for ever for an arbiter that says nothing.
    fn look_after_waiting(&mut self) {
        let now = self.host.now();
        let Some(Waiting { caller, .. }) = self.callers.waiting.take_if(|waiting| now >= waiting.until) else { return };
        let arbiter = &self.host.arbiter;
        let why = arbiter.health().last_error.unwrap_or_else(|| format!("no answer within {}", spoken(PATIENCE)));
        let why = format!(
            "{NOTHING_STARTED} before the register vouches for the primary, and the arbiter {} does not answer this \
             standby: {why}",
            arbiter.spec()
        );
        self.callers.turn_away(caller, &Refusal { kind: "arbiter", why });
    }
}

impl Callers {
    fn turn_away(&mut self, caller: Box<dyn Caller>, refusal: &Refusal) {
        self.note_refusal((caller.hello().node, caller.address()), refusal);
        if let Err(error) = caller.refuse(&refusal.why) {
            tracing::debug!(%error, "the refusal was not heard");
        }
    }

    /// Says it; in a crowd, counts it.
    fn note_refusal(&mut self, (node, peer): (Node, SocketAddr), refusal: &Refusal) {
        let Refusal { kind, why } = refusal;
        if let Some(more) = self.refused.say(kind, outside::instant()) {
            tracing::warn!(%node, %peer, why, "refused{}", and_more(more));
            let (primary, peer, more) = (Some(node), Some(peer), Some(more));
            emit(Told::Refused(Refused { why: why.clone(), primary, peer, more, callers: None }));
        }
    }

    /// A caller that is no primary.
    fn hear_stranger(&mut self, error: &SessionError) {
        if let Some(more) = self.strangers.say(error.kind(), outside::instant()) {
            tracing::warn!(%error, "a caller was turned away{}", and_more(more));
        }
    }

    /// What was counted is said in the end, though nobody comes any more.
    fn say_what_was_counted(&mut self) {
        let now = outside::instant();
        while let Some((kind, more)) = self.refused.overdue(now) {
            tracing::warn!(kind, "refused {more} more callers");
            let why = format!("{more} more callers: {kind}");
            emit(Told::Refused(Refused { why, callers: Some(more), ..Refused::default() }));
        }
        while let Some((kind, more)) = self.strangers.overdue(now) {
            tracing::warn!(kind, "refused {more} more callers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mc_core::{
        id::{self, Generation, Incarnation, Name, NodeId, WitnessId},
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
            (Some(solo("c", 7)), "belongs to c, alone, since generation 7; a must own it, alone"),
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
