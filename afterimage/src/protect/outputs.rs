//! What the data path does about the VM's outputs: status, changes, and when to have them looked at again.

use super::{channel::ToSupervisor, data_path::DataPath};
use crate::{
    events::emit,
    exit::{Code, ExitError},
    qemu::inventory::{Forced, Inventory, Output},
    status::OutputStatus,
};
use anyhow::Result;
use mc_core::{
    id::Epoch,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use serde_json::json;

/// The VM's outputs as they are known.
#[derive(Debug)]
pub(super) struct Outputs {
    inventory: Inventory,
    forced: Forced,
    /// They have changed since the session began: the standby has not proven that it can load what the VM has now.
    needs_rehearsal: bool,
    sizes: Sizes,
}

/// What a new inventory means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    None,
    /// Devices came or went.
    Changed,
    /// There is an output that nobody holds and nobody accepted.
    LeftOpen(String),
}

impl Outputs {
    pub(super) fn new(inventory: Inventory, forced: Forced) -> Self {
        Self { inventory, forced, needs_rehearsal: false, sizes: Sizes::default() }
    }

    fn update(&mut self, inventory: Inventory) -> News {
        if inventory == self.inventory {
            return News::None;
        }
        self.inventory = inventory;
        self.needs_rehearsal = true;
        let open = self.forced.left_open(&self.inventory);
        if open.is_empty() { News::Changed } else { News::LeftOpen(told(&open)) }
    }

    /// A session is about to begin, with a device state of its own, and a rehearsal of its own.
    pub(super) fn begin_session(&mut self) -> Result<(), ExitError> {
        (self.sizes, self.needs_rehearsal) = (Sizes::default(), false);
        refuse(&self.forced, &self.inventory)
    }

    /// Whether they have changed since the session began.
    pub(super) fn needs_rehearsal(&self) -> bool {
        self.needs_rehearsal
    }

    pub(super) fn status(&self) -> Vec<OutputStatus> {
        self.inventory.outputs.iter().map(OutputStatus::from).collect()
    }

    /// What the operator should know of them.
    pub(super) fn notes(&self) -> Vec<String> {
        let open = self.forced.left_open(&self.inventory);
        let forced = self.inventory.unheld().filter(|output| !open.contains(output));
        let mut notes: Vec<String> =
            forced.map(|output| format!("not held, as --unheld allows: {}", output.told())).collect();
        if !open.is_empty() {
            notes.push(format!("not protected: {}", told(&open)));
        }
        notes
    }
}

/// Each with what to do about it.
fn told(open: &[&Output]) -> String {
    let one = |output: &&Output| format!("{}; what to do: {}", output.told(), output.class.remedy());
    open.iter().map(one).collect::<Vec<_>>().join(". ")
}

/// Refuses a VM with an output that nobody holds and nobody accepted, or a name that no output has.
pub(super) fn refuse(forced: &Forced, inventory: &Inventory) -> Result<(), ExitError> {
    let strangers = forced.strangers(inventory);
    if !strangers.is_empty() {
        let names: Vec<_> = inventory.outputs.iter().map(|output| output.name.as_str()).collect();
        let what = format!("--unheld: the VM has no output called {}", strangers.join(", "));
        return Err(ExitError::usage(what).remedy(format!("its outputs are {}", names.join(", "))));
    }
    let open = forced.left_open(inventory);
    if open.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the VM has outputs that are not held: {}",
        open.iter().map(|output| output.told()).collect::<Vec<_>>().join("; ")
    );
    let remedies: Vec<_> = open.iter().map(|o| format!("{}: {}", o.name, o.class.remedy())).collect();
    let names: Vec<_> = open.iter().map(|output| output.name.as_str()).collect();
    let remedy = format!(
        "{}. Or accept that a takeover may take back what left by them: --unheld {}",
        remedies.join("; "),
        names.join(",")
    );
    Err(ExitError::new(Code::Prerequisite, what).remedy(remedy))
}

impl DataPath {
    /// The VM's outputs, or its devices, are others than before.
    pub(super) fn outputs_changed(&mut self, inventory: Inventory) {
        let news = self.outputs.update(inventory);
        if news == News::None {
            return;
        }
        let unheld: Vec<_> = self.outputs.inventory.unheld().map(|output| output.name.clone()).collect();
        emit("outputs", json!({ "unheld": unheld, "needs_rehearsal": self.outputs.needs_rehearsal() }));
        let News::LeftOpen(why) = news else { return };
        let protecting = !matches!(self.driver.machine().role(), Role::Solo | Role::Fenced | Role::Ended);
        tracing::error!(%why, protecting, "an output of the VM is not held: the VM cannot be protected");
        if protecting {
            emit("gave-up", json!({ "why": why }));
            self.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        }
    }

    /// Has the outputs looked at when the device state has another size than it used to have: a device may have come.
    pub(super) fn watch_sizes(&mut self) -> Result<()> {
        let epoch = self.driver.machine().epochs().0;
        let bytes = self.driver.figures().device_bytes;
        if self.outputs.sizes.is_strange(epoch, bytes) {
            self.supervisor.say(&ToSupervisor::LookAgain)?;
        }
        Ok(())
    }
}

/// The sizes that the device state has had in this session.
#[derive(Debug, Default)]
struct Sizes {
    newest: Epoch,
    usual: Option<(u64, u64)>,
}

impl Sizes {
    /// Whether this epoch's device state is smaller or larger than all before it.
    fn is_strange(&mut self, epoch: Epoch, bytes: u64) -> bool {
        if epoch <= std::mem::replace(&mut self.newest, epoch) || bytes == 0 {
            return false;
        }
        let (least, most) = *self.usual.get_or_insert((bytes, bytes));
        self.usual = Some((least.min(bytes), most.max(bytes)));
        !(least..=most).contains(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::inventory::Class;

    fn output(name: &str, unheld: bool) -> Output {
        let class = match unheld {
            true => Class::Unheld { why: "it leaves at once".into(), remedy: "remove it".into() },
            false => Class::Held,
        };
        Output { name: name.into(), kind: "netdev".into(), class }
    }

    fn inventory(outputs: Vec<Output>, shape: &[&str]) -> Inventory {
        Inventory { outputs, shape: shape.iter().map(|s| (*s).to_owned()).collect() }
    }

    #[test]
    fn a_new_output_that_nobody_holds_is_told_with_its_remedy() {
        let forced = Forced { names: vec!["n1".into()], disks: false };
        let first = inventory(vec![output("n0", false), output("n1", true)], &["a"]);
        let mut outputs = Outputs::new(first.clone(), forced);
        assert_eq!(outputs.update(first.clone()), News::None);
        assert!(!outputs.needs_rehearsal());
        assert!(outputs.begin_session().is_ok());
        assert_eq!(outputs.notes(), ["not held, as --unheld allows: netdev n1: it leaves at once"]);

        let grown = inventory(first.outputs.clone(), &["a", "b"]);
        assert_eq!(outputs.update(grown), News::Changed);
        assert!(outputs.needs_rehearsal());

        let open = inventory(vec![output("n0", false), output("n1", true), output("n2", true)], &["a"]);
        let told = "netdev n2: it leaves at once; what to do: remove it";
        assert_eq!(outputs.update(open), News::LeftOpen(told.into()));
        assert_eq!(outputs.notes()[1], format!("not protected: {told}"));
        let refused = outputs.begin_session().unwrap_err();
        assert_eq!(refused.code, Code::Prerequisite);
        assert!(refused.message.contains("netdev n2: it leaves at once"), "{refused:?}");
        assert!(refused.remedy.unwrap().contains("--unheld n2"));
    }

    #[test]
    fn a_name_of_no_output_is_refused_with_the_names() {
        let forced = Forced { names: vec!["n7".into()], disks: false };
        let refused = refuse(&forced, &inventory(vec![output("n0", false)], &[])).unwrap_err();
        assert_eq!(refused.code, Code::Usage);
        assert!(refused.message.contains("n7") && refused.remedy.unwrap().contains("n0"));
    }

    #[test]
    fn a_size_that_was_never_seen_is_strange_once() {
        let mut sizes = Sizes::default();
        let found: Vec<_> = [100, 100, 120, 110, 120, 121, 90, 95, 0]
            .iter()
            .enumerate()
            .map(|(at, bytes)| sizes.is_strange(Epoch(at as u64 + 1), *bytes))
            .collect();
        assert_eq!(found, [false, false, true, false, false, true, true, false, false]);
        assert!(!sizes.is_strange(Epoch(9), 7), "an epoch counts once");
    }
}
