//! What is known of the world from outside, and what must be true of it. Nothing here asks the code under test anything.

use crate::guest::Word;
use mc_core::{id::Epoch, image::Image};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

/// Snapshots kept of a session: more than its window, and what is staged.
const KEPT: usize = 24;

/// RAM and device state.
type Snapshot = (Vec<u8>, Vec<u8>);

/// Everything that guests did, and how they were when they were captured.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Of the session that begins next.
    pub(crate) session: usize,
    snapshots: HashMap<usize, BTreeMap<u64, Snapshot>>,
    drawn: u64,
}

/// One for the whole world.
pub(crate) type SharedLedger = Rc<RefCell<Ledger>>;

impl Ledger {
    /// A new life begins; its first link.
    pub(crate) fn boot(&mut self) -> Word {
        self.drawn += 1;
        (0, 0xB007_0000 + self.drawn)
    }

    /// A number that no other copy has.
    pub(crate) fn instance(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    pub(crate) fn captured(&mut self, session: usize, epoch: Epoch, ram: &[u8], device: &[u8]) {
        let of_session = self.snapshots.entry(session).or_default();
        of_session.insert(epoch.0, (ram.to_vec(), device.to_vec()));
        while of_session.len() > KEPT {
            of_session.pop_first();
        }
    }

    /// The image is the guest as it was when `epoch` was captured.
    pub(crate) fn compare(&self, session: usize, epoch: Epoch, image: &Image) -> Result<(), String> {
        let Some((ram, device)) = self.snapshots.get(&session).and_then(|epochs| epochs.get(&epoch.0)) else {
            return Err(format!("epoch {} was committed, and never captured", epoch.0));
        };
        let same = image.block(mc_core::id::BlockId(0)) == *ram && image.device() == *device;
        if same { Ok(()) } else { Err(format!("the image is not the guest of epoch {}", epoch.0)) }
    }
}

/// Who hears the VM.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    /// Who said which link, and after which one: the truth, kept apart from every copy.
    parents: HashMap<u64, Word>,
    /// The newest word that was heard.
    heard: Option<Word>,
    /// How many were.
    pub(crate) words: u64,
    pub(crate) last_heard: [u64; 2],
    pub(crate) takeovers: u64,
    /// What must not be.
    pub(crate) wrong: Option<String>,
}

impl Observer {
    /// A guest has said `word` after `before`; nobody need have heard it.
    pub(crate) fn said(&mut self, before: Word, word: Word) {
        self.parents.insert(word.1, before);
    }

    /// Whether `word` was said by one who had said `earlier`.
    fn follows(&self, mut word: Word, earlier: Word) -> bool {
        while word.0 > earlier.0 {
            match self.parents.get(&word.1) {
                Some(before) => word = *before,
                None => return false,
            }
        }
        word == earlier
    }

    pub(crate) fn violated(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// A word was heard from this host.
    pub(crate) fn hears(&mut self, now: u64, host: usize, word: Word) {
        if let Some(heard) = self.heard.filter(|heard| !self.follows(word, *heard) || word == *heard) {
            self.violated(format!(
                "host {} said word {} ({:x}), which does not follow word {} ({:x}) that was heard before",
                name(host),
                word.0,
                word.1,
                heard.0,
                heard.1
            ));
        }
        self.heard = Some(word);
        self.words += 1;
        self.last_heard[host] = now;
    }

    /// A copy is continued on this host from here.
    pub(crate) fn continues(&mut self, host: usize, from: Word) {
        self.takeovers += 1;
        if let Some(heard) = self.heard.filter(|heard| !self.follows(from, *heard)) {
            self.violated(format!(
                "{} continues the VM from word {}, and does not know word {} ({:x}) that was heard",
                name(host),
                from.0,
                heard.0,
                heard.1
            ));
        }
    }

    /// The VM was lost, rightly: it begins anew.
    pub(crate) fn forgets(&mut self) {
        self.heard = None;
    }
}

/// A host's.
pub(crate) fn name(host: usize) -> &'static str {
    ["a", "b"][host]
}
