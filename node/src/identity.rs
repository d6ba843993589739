//! Which node this is: `STATE_DIR/node-id`, made once. Host names are for people, and clones share them; an identity is drawn at
//! random, and tied to the machine that drew it, so that a disk that was cloned does not make a second node of the same identity.
//!
//! The machine is told by its DMI product UUID, which a hypervisor draws anew for a cloned VM, else by `/etc/machine-id`. What
//! neither tells apart cannot be: two copies of one disk on machines that both hide their UUID and kept the machine-id are one
//! node to this program. (The handshake and the register refuse a pair of equal identities.)

use crate::{
    arbiter::file,
    events::{Event, NewIdentity, emit},
    exit::{Code, ExitError},
    outside,
};
use anyhow::{Context, Result};
use mc_core::id::{Name, Node, NodeId, WitnessId};
use rustix::{
    fs::{FlockOperation, flock},
    rand::GetRandomFlags,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::OnceLock,
};

const FILE: &str = "node-id";
/// What became of the identity of the machine that a disk was cloned from.
const FOREIGN: &str = "node-id.of-another-machine";
/// UUIDs that firmware has when nobody set one.
const BOGUS: [&str; 5] = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
];

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    id: NodeId,
    /// "dmi:UUID", "machine-id:ID", or none: then it is not known which machine drew it.
    machine: Option<String>,
}

/// What tells machines apart.
#[derive(Debug, Default)]
struct Machine {
    dmi: Option<String>,
    machine_id: Option<String>,
}

impl Machine {
    fn this() -> Self {
        // Readable by root only.
        let dmi = read("/sys/class/dmi/id/product_uuid").filter(|uuid| !BOGUS.contains(&uuid.as_str()));
        Self { dmi, machine_id: read("/etc/machine-id") }
    }

    /// The best that is known.
    fn label(&self) -> Option<String> {
        let dmi = self.dmi.as_ref().map(|uuid| format!("dmi:{uuid}"));
        dmi.or_else(|| self.machine_id.as_ref().map(|id| format!("machine-id:{id}")))
    }

    /// Whether `label` names another machine. What cannot be read now (by another user, say) contradicts nothing.
    fn contradicts(&self, label: &str) -> bool {
        let differs = |mine: &Option<String>, theirs: &str| mine.as_ref().is_some_and(|mine| mine != theirs);
        match label.split_once(':') {
            Some(("dmi", uuid)) => differs(&self.dmi, uuid),
            Some(("machine-id", id)) => differs(&self.machine_id, id),
            _ => false,
        }
    }
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_ascii_lowercase();
    (!text.is_empty()).then_some(text)
}

/// Which boot of this host it is. Asked of the kernel once: no process outlives a boot.
///
/// # Errors
/// The kernel does not say.
pub fn boot_id() -> io::Result<&'static str> {
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(boot);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT.get_or_init(|| boot))
}

/// This host, under the name that it has for people.
pub fn node(state_dir: &Path, name: Name) -> Result<Node> {
    Ok(Node { name, id: identity(state_dir, &Machine::this())? })
}

/// Whether two hosts can be a pair: each is another node, by name too, and both ask the same witness. Both sides look.
pub fn check_pair(ours: (Node, WitnessId), theirs: (Node, WitnessId)) -> Result<(), String> {
    let ((node, witness), (other, their_witness)) = (ours, theirs);
    if node.id == other.id {
        return Err(format!(
            "both sides have the same node identity ({}): they use the same --state-dir, or a copy of it",
            node.id
        ));
    }
    if node.name == other.name {
        return Err(format!("both nodes are named {node}: give one of them another name with --node"));
    }
    let asks = |witness: WitnessId| match witness {
        WitnessId::NONE => "knows no witness (--arbiter manual, or it has not reached its witness yet)".to_owned(),
        witness => format!("asks witness {witness}"),
    };
    if witness != their_witness {
        let (ours, theirs) = (asks(witness), asks(their_witness));
        return Err(format!(
            "the two sides use different arbiters: {node} {ours}, {other} {theirs}; check --arbiter on both"
        ));
    }
    Ok(())
}

fn identity(dir: &Path, machine: &Machine) -> Result<NodeId> {
    fs::create_dir_all(dir).with_context(|| format!("state directory {}", dir.display()))?;
    let _locked = lock(dir)?;
    let path = dir.join(FILE);
    let kept = load(&path)?;
    let Some(kept) = kept else { return make(dir, machine, None) };
    match kept.machine.as_deref().filter(|label| machine.contradicts(label)) {
        None => Ok(kept.id),
        Some(other) => {
            let aside = dir.join(FOREIGN);
            fs::rename(&path, &aside).with_context(|| format!("renaming {} to {}", path.display(), aside.display()))?;
            make(dir, machine, Some((kept.id, other)))
        }
    }
}

/// Until the file that is returned is dropped: two processes that start at once make one identity.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("node-id.lock");
    let open = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = open.with_context(|| format!("opening {}", path.display()))?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

fn load(path: &Path) -> Result<Option<Kept>> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("reading {}", path.display()))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| damaged(path, &error).into())
}

fn damaged(path: &Path, error: &serde_json::Error) -> ExitError {
    let what = format!("{}: damaged ({error}): this node's identity is not known", path.display());
    let remedy = "restore the file; or remove it: then this host is another node, to which the register of its VMs is foreign \
                  until `afterimage witness assign`";
    ExitError::new(Code::Prerequisite, what).remedy(remedy)
}

fn make(dir: &Path, machine: &Machine, instead: Option<(NodeId, &str)>) -> Result<NodeId> {
    let mut bytes = [0; 16];
    outside::random(&mut bytes, GetRandomFlags::empty())?;
    let kept = Kept { id: NodeId(bytes), machine: machine.label() };
    file::replace(dir, FILE, format!("{}\n", serde_json::to_string(&kept)?).as_bytes())?;
    match instead {
        None => tracing::info!(id = %kept.id, "this node's identity was made: {}", dir.join(FILE).display()),
        Some((former, other)) => tracing::warn!(
            id = %kept.id, %former, "this machine is not the one that the identity in {} belongs to ({other}): a cloned disk? A \
             new one was made; what the register gave to the other machine is foreign to this one", dir.display()
        ),
    }
    let former = instead.map(|(former, _)| former);
    emit(Event::NewIdentity(NewIdentity { id: kept.id, machine: kept.machine, instead_of: former }));
    Ok(kept.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn machine(dmi: Option<&str>, machine_id: Option<&str>) -> Machine {
        Machine { dmi: dmi.map(str::to_owned), machine_id: machine_id.map(str::to_owned) }
    }

    #[test]
    fn it_is_made_once_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made");
        let here = machine(Some("u1"), Some("m1"));
        let id = identity(&state, &here).unwrap();
        assert_ne!(id, NodeId::NONE);
        assert_eq!(identity(&state, &here).unwrap(), id);
        assert_eq!(fs::metadata(state.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(identity(&dir.path().join("other"), &here).unwrap(), id);
    }

    #[test]
    fn of_several_that_start_at_once_all_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let start = || identity(dir.path(), &machine(None, Some("m1"))).unwrap();
        let ids: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8).map(|_| s.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_cloned_disk_is_another_node_and_keeps_the_file_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let id = identity(dir.path(), &machine(Some("u1"), Some("m1"))).unwrap();
        let clone = machine(Some("u2"), Some("m1"));
        let other = identity(dir.path(), &clone).unwrap();
        assert_ne!(other, id);
        assert_eq!(identity(dir.path(), &clone).unwrap(), other);
        let kept = fs::read_to_string(dir.path().join(FOREIGN)).unwrap();
        assert!(kept.contains(&id.to_string()) && kept.contains("dmi:u1"), "{kept}");
    }

    #[test]
    fn what_cannot_be_read_now_makes_no_new_node() {
        let dir = tempfile::tempdir().unwrap();
        let id = identity(dir.path(), &machine(Some("u1"), Some("m1"))).unwrap();
        assert_eq!(
            identity(dir.path(), &machine(None, Some("m2"))).unwrap(),
            id,
            "by a user who may not read the UUID"
        );
        let dir = tempfile::tempdir().unwrap();
        let id = identity(dir.path(), &machine(None, Some("m1"))).unwrap();
        assert_eq!(identity(dir.path(), &machine(Some("u1"), Some("m1"))).unwrap(), id, "and then by root");
        assert_ne!(identity(dir.path(), &machine(Some("u1"), Some("m2"))).unwrap(), id);
        let dir = tempfile::tempdir().unwrap();
        let id = identity(dir.path(), &machine(None, None)).unwrap();
        assert_eq!(identity(dir.path(), &machine(Some("u1"), None)).unwrap(), id);
    }

    #[test]
    fn a_pair_has_two_nodes_two_names_and_one_witness() {
        let node = |name: &str, id| Node { name: Name::new(name).unwrap(), id: NodeId([id; 16]) };
        let (one, two) = (WitnessId([1; 16]), WitnessId([2; 16]));
        let ours = (node("a", 1), one);
        assert_eq!(check_pair(ours, (node("b", 2), one)), Ok(()));
        let no = |theirs, expected: &str| {
            for (ours, theirs) in [(ours, theirs), (theirs, ours)] {
                let why = check_pair(ours, theirs).unwrap_err();
                assert!(why.contains(expected), "{why}");
            }
        };
        no((node("b", 1), one), "the same node");
        no((node("a", 2), one), "both nodes are named a");
        no((node("b", 2), two), "use different arbiters");
        no((node("b", 2), WitnessId::NONE), "knows no witness");
        let manual = WitnessId::NONE;
        assert_eq!(check_pair((node("a", 1), manual), (node("b", 2), manual)), Ok(()));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", "{\"id\":\"12\",\"machine\":null}", "\u{0}"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = identity(dir.path(), &machine(None, None)).unwrap_err();
            let (code, words) = crate::exit::explain(&error);
            assert!(code == Code::Prerequisite && words.contains("node-id: damaged"), "{words}");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        }
    }

    #[test]
    fn firmware_that_nobody_gave_a_uuid_tells_nothing() {
        assert!(BOGUS.iter().all(|uuid| *uuid == uuid.to_ascii_lowercase() && uuid.len() == 36));
        let this = Machine::this();
        assert!(this.dmi.is_none_or(|uuid| !BOGUS.contains(&uuid.as_str())));
    }
}
