//! The main memory as QEMU's options: a backend over the RAM image.

use super::line::{Attach, Line};
use crate::{
    argv::{Item, Params},
    blocks::RamBlock,
};
use std::path::Path;

/// The main memory's backend: what it is called, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MainRam {
    pub(super) id: String,
    size: u64,
}

impl MainRam {
    /// Of the RAM block in the primary's profile. A backend of the board's own name gives the block that name; one of
    /// another id is called ID, or /objects/ID with machine types up to 4.0.
    pub(super) fn of(block: &RamBlock) -> Self {
        let id = block.name.strip_prefix("/objects/").unwrap_or(&block.name);
        Self { id: id.to_owned(), size: block.used_length }
    }

    /// The options that make the file the machine's memory.
    pub(super) fn over_file(&self, line: &Line, file: &Path, share: bool) -> Vec<Item> {
        let mut backend = self.backend("memory-backend-file");
        backend.set("mem-path", &file.display().to_string());
        backend.set("share", if share { "on" } else { "off" });
        self.attached(line, &backend)
    }

    /// The options that make ordinary memory the machine's; none, where the machine makes such memory by itself.
    pub(super) fn ordinary(&self, line: &Line) -> Vec<Item> {
        if line.named { self.attached(line, &self.backend("memory-backend-ram")) } else { Vec::new() }
    }

    fn backend(&self, kind: &str) -> Params {
        let mut backend = Params::parse(kind);
        backend.set("id", &self.id);
        backend.set("size", &self.size.to_string());
        backend
    }

    /// A second `-machine` adds to the first.
    fn attached(&self, line: &Line, backend: &Params) -> Vec<Item> {
        let mut items = vec![Item::option("object", backend.to_string())];
        if line.attach == Attach::Machine {
            let mut machine = Params::Keys(Vec::new());
            machine.set("memory-backend", &self.id);
            items.push(Item::option("machine", machine.to_string()));
        }
        items
    }
}
