//! What the data path does about the VM's outputs: status, changes, and when to have them looked at again.
//!
//! | the inventory | while somebody stands by | solo |
//! |---|---|---|
//! | has an output that nobody holds and nobody accepted | protection ends, through the arbiter, when that is there ([`super::unfit`]) | nobody is looked for |
//! | is another one | the standby rehearses; until that has passed the VM is not called protected | the next session begins with it |

use super::{channel::ToSupervisor, data_path::DataPath};
use anyhow::Result;
use api::OutputStatus;
use mc_core::{
    id::Epoch,
    primary::{Event, Role},
    wire::control::GoodbyeReason,
};
use node::primary::Trouble;
use node::{
    events::{Event as Told, GateOutputs, emit},
    exit::{Code, ExitError},
};
use vmm_qemu::inventory::{Changed, Class, Forced, Inventory, Output};

/// What becomes of an output that the gate would hold, while it passes everything.
const FLOWS: &str = "held while the VM is protected; it leaves at once now";

/// The VM's outputs as they are known.
#[derive(Debug)]
pub(super) struct Outputs {
    inventory: Inventory,
    forced: Forced,
    sizes: Sizes,
}

impl Outputs {
    pub(super) fn new(inventory: Inventory, forced: Forced) -> Self {
        Self { inventory, forced, sizes: Sizes::default() }
    }

    /// What has come and what has gone; `None` if nothing is different.
    fn update(&mut self, inventory: Inventory) -> Option<(Vec<String>, Vec<String>)> {
        if inventory == self.inventory {
            return None;
        }
        let before = std::mem::replace(&mut self.inventory, inventory).items();
        let now = self.inventory.items();
        let came = now.iter().filter(|item| !before.contains(item)).cloned().collect();
        Some((came, before.into_iter().filter(|item| !now.contains(item)).collect()))
    }

    /// A session is about to begin, with a device state of its own, and a rehearsal of its own.
    pub(super) fn begin_session(&mut self) {
        self.sizes = Sizes::default();
    }

    /// Why the VM cannot be protected as it is: outputs that nobody holds and nobody accepted.
    pub(super) fn left_open(&self) -> Option<String> {
        let open = self.forced.left_open(&self.inventory);
        let one = |output: &&Output| format!("{}; what to do: {}", output.told(), output.class.remedy());
        let told = open.iter().map(one).collect::<Vec<_>>().join(". ");
        (!open.is_empty()).then(|| format!("the VM has an output that is not held: {told}"))
    }

    /// `holds`: the gate does.
    pub(super) fn status(&self, holds: bool) -> Vec<OutputStatus> {
        let one = |output: &Output| {
            let flows = !holds && output.class == Class::Held;
            let why = if flows { FLOWS } else { output.class.why() }.to_owned();
            let class = output.class.word().to_owned();
            OutputStatus { name: output.name.clone(), kind: output.kind.clone(), class, why }
        };
        self.inventory.outputs.iter().map(one).collect()
    }

    /// What the operator should know of them.
    pub(super) fn notes(&self) -> Vec<String> {
        let open = self.forced.left_open(&self.inventory);
        let forced = self.inventory.unheld().filter(|output| !open.contains(output));
        let accepted = forced.map(|output| format!("not held, as --unheld allows: {}", output.told()));
        accepted.chain(self.left_open()).collect()
    }
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
    pub(super) fn vm_changed(&mut self, changed: Changed) {
        let remade = changed.make.is_some_and(|make| self.brief.profile.remake(make));
        self.brief.outputs = changed.outputs.clone();
        let news = self.outputs.update(changed.outputs);
        if remade || news.is_some() {
            self.run.seek.anew(self.run.host.now());
            self.run.look_no_more(); // of the VM as it was
        }
        let Some((came, went)) = news else { return };
        let unheld = self.outputs.inventory.unheld().map(|output| output.name.clone()).collect();
        emit(Told::Outputs(GateOutputs { unheld, came, went }));
        match self.outputs.left_open() {
            Some(why) => self.give_up_open(why),
            None => self.may_be_fit(),
        }
    }

    fn give_up_open(&mut self, why: String) {
        let role = self.run.driver.machine().role();
        let protecting = !matches!(role, Role::Solo | Role::Fenced | Role::Ended);
        tracing::error!(%why, protecting, "the VM cannot be protected as it is");
        if role == Role::Protected {
            self.run.driver.event(Event::Unfit);
            self.is_unfit(why);
        } else if protecting {
            emit(Told::GaveUp(why.as_str().into()));
            self.run.because(Trouble::lasting(why));
            self.run.driver.event(Event::Unprotect(GoodbyeReason::Unprotected));
        }
    }

    /// Has the outputs looked at when the device state has another size than it used to have: a device may have come.
    pub(super) fn watch_sizes(&mut self) -> Result<()> {
        let epoch = self.run.driver.machine().epochs().0;
        let bytes = self.run.driver.figures().device_bytes;
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
    use vmm_qemu::inventory::Class;

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
        assert_eq!(outputs.update(first.clone()), None);
        assert_eq!(outputs.left_open(), None);
        assert_eq!(outputs.notes(), ["not held, as --unheld allows: netdev n1: it leaves at once"]);

        let grown = inventory(first.outputs.clone(), &["b", "c"]);
        assert_eq!(outputs.update(grown), Some((vec!["b".into(), "c".into()], vec!["a".into()])));
        assert_eq!(outputs.left_open(), None);

        let open = inventory(vec![output("n0", false), output("n1", true), output("n2", true)], &["b", "c"]);
        assert_eq!(outputs.update(open), Some((vec!["netdev n2 (unheld)".into()], vec![])));
        let told = "the VM has an output that is not held: netdev n2: it leaves at once; what to do: remove it";
        assert_eq!(outputs.left_open().as_deref(), Some(told));
        assert_eq!(outputs.notes()[1], told);
    }

    #[test]
    fn an_output_that_is_another_one_now_is_news() {
        let held = inventory(vec![output("n0", false)], &["a"]);
        let mut outputs = Outputs::new(held, Forced::default());
        let news = outputs.update(inventory(vec![output("n0", true)], &["a"]));
        assert_eq!(news, Some((vec!["netdev n0 (unheld)".into()], vec!["netdev n0 (held)".into()])));
        assert!(outputs.left_open().is_some());
    }

    #[test]
    fn what_is_refused_is_named_with_its_remedy() {
        let open = inventory(vec![output("n2", true)], &[]);
        let refused = refuse(&Forced::default(), &open).unwrap_err();
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
