//! What must be so, at every moment and in the end. The code under test is looked at here, and never asked whether it is right.

use crate::{guest::Stands, host::Process, net::lock, observer::name, world::World};
use mc_core::{primary, register::Mode, standby};
use node::{primary::PrimaryLoop as _, standby::StandbyLoop as _};

/// After each turn of a host's loop.
pub(crate) fn after_a_turn(world: &mut World, number: usize) {
    caps(world, number);
    one_is_visible(world);
    image(world, number);
    boot(world, number);
}

/// Staging never exceeds its cap.
fn caps(world: &mut World, number: usize) {
    let stats = match &mut world.hosts[number].process {
        Process::Primary(runner) => Some(runner.primary_mut().driver.pool_stats()),
        Process::Standby(runner) => runner.standby().driver.pool_stats(),
        Process::None | Process::Starting(_) => None,
    };
    if let Some(stats) = stats.filter(|stats| stats.most_bytes > stats.limit_bytes) {
        world.observer().violated(format!("staging of {}: {stats:?}", name(number)));
    }
}

/// Never two copies whose output leaves as it is said.
fn one_is_visible(world: &World) {
    let visible = |number: &usize| {
        let host = &world.hosts[*number];
        let runs = host.room.borrow().as_ref().is_some_and(|guest| guest.runs);
        runs && host.stands.get() == Stands::Open && matches!(host.process, Process::Primary(_))
    };
    if (0..2).filter(visible).count() > 1 {
        world.observer().violated("two copies are visible at one moment".to_owned());
    }
}

/// The image is the guest as it was when the committed epoch was captured.
fn image(world: &mut World, number: usize) {
    let host = &mut world.hosts[number];
    let Process::Standby(runner) = &host.process else { return };
    let driver = &runner.standby().driver;
    let (generation, epoch) = driver.machine().committed();
    let (Some(image), true) = (driver.image(), driver.is_whole()) else { return };
    if epoch.0 == 0 || std::mem::replace(&mut host.compared, (generation.0, epoch.0)) == (generation.0, epoch.0) {
        return;
    }
    if let Err(wrong) = world.ledger.borrow().compare(host.session, epoch, image) {
        world.observer().violated(format!("{}: {wrong}", name(number)));
    }
}

/// A VM begins anew only where nobody had a copy that the register named.
fn boot(world: &mut World, number: usize) {
    if !world.hosts[number].boots.take() {
        return;
    }
    world.note(name(number), "the VM boots");
    let net = lock(&world.net);
    let history = &net.witness.history;
    let before = history.len().checked_sub(2).and_then(|index| history[index]);
    drop(net);
    match before.map(|register| register.mode) {
        Some(Mode::Protected { standby }) if world.remembers => {
            let lost = format!("{} boots the VM anew, which {} protected", name(number), standby.node);
            world.observer().violated(lost);
        }
        _ => world.observer().forgets(),
    }
}

/// After each question to the arbiter: nobody renounces a copy that it has.
pub(crate) fn of_the_register(world: &mut World) {
    let history: Vec<_> = {
        let net = lock(&world.net);
        net.witness.history[world.judged - 1..].to_vec()
    };
    world.judged += history.len() - 1;
    for pair in history.windows(2) {
        let [Some(before), Some(after)] = pair else { continue };
        let Mode::Protected { standby } = before.mode else { continue };
        let renounced = after.mode == Mode::Solo && after.owner == before.owner;
        let number = usize::from(standby.node.name.as_str() == name(1));
        let Process::Standby(runner) = &world.hosts[number].process else { continue };
        // The owner may have asked itself: then it runs.
        let owner_lives = world.hosts[1 - number].room.borrow().is_some();
        if renounced && !owner_lives && runner.standby().may_be_the_last() {
            world.observer().violated(format!("{} renounces a copy that it has", name(number)));
        }
    }
}

/// Nothing is about to change: who could be asked has answered.
pub(crate) fn is_at_rest(world: &World) -> bool {
    world.hosts.iter().all(|host| match &host.process {
        Process::None | Process::Starting(_) => false,
        Process::Primary(runner) => matches!(runner.primary().role(), primary::Role::Protected | primary::Role::Solo),
        Process::Standby(runner) => {
            use standby::Role::{Disputed, Idle, Lost, Protecting};
            matches!(runner.standby().role(), Idle | Lost | Protecting | Disputed)
        }
    })
}

/// Once everything is mended.
pub(crate) fn at_the_end(world: &mut World) -> Result<(), String> {
    let serving = world.serving();
    if world.remembers && serving.len() != 1 {
        let states: Vec<_> = (0..2).map(|number| state(world, number)).collect();
        let holds = lock(&world.net).witness.holds();
        return Err(format!(
            "{} hosts serve in the end: {}; the register: {holds:?}",
            serving.len(),
            states.join("; ")
        ));
    }
    if serving.len() > 1 {
        return Err("two hosts serve in the end".to_owned());
    }
    slabs(world)
}

/// Without a session every slab is in its pool.
fn slabs(world: &mut World) -> Result<(), String> {
    for host in &mut world.hosts {
        let used = match &mut host.process {
            Process::Primary(runner) if runner.primary().role() == primary::Role::Solo => {
                Some(runner.primary_mut().driver.pool_stats().used_bytes)
            }
            Process::Standby(runner) if runner.standby().role() == standby::Role::Idle => {
                runner.standby().driver.pool_stats().map(|stats| stats.used_bytes)
            }
            _ => None,
        };
        if let Some(used) = used.filter(|used| *used > 0) {
            return Err(format!("{used} bytes of slabs did not come back on {}", name(host.number)));
        }
    }
    Ok(())
}

fn state(world: &World, number: usize) -> String {
    let host = &world.hosts[number];
    let what = match &host.process {
        Process::None => "no process".to_owned(),
        Process::Starting(_) => "asks whose the VM is".to_owned(),
        Process::Primary(runner) => format!("primary, {:?}", runner.primary().role()),
        Process::Standby(runner) => format!("standby, {:?}", runner.standby().role()),
    };
    format!("{}: {what}", name(number))
}
