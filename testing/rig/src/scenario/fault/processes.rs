//! Single processes and threads are killed, stopped, or asked to end.

use super::hosts;
use crate::{
    hosts::Place,
    netns,
    process::{self, Line, Proc, signal},
    scenario::{
        round::Round,
        status,
        watch::{WHILE, Watch},
    },
    timeline::{Entry, pass, poll},
};
use anyhow::{Context, Result, ensure};
use node::events::Event;
use rustix::process::Signal;

fn supervisor(round: &Round<'_>) -> Result<u32> {
    Ok(round.protect.as_ref().context("nothing protects the VM")?.pid())
}

fn standby(round: &Round<'_>) -> Result<u32> {
    Ok(round.standby.as_ref().context("there is no standby")?.pid())
}

pub(super) fn kill_sidecar(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let supervisor = supervisor(round)?;
    watch.strike(round, "data path dies");
    watch.due(round, "standby");
    round.topology.host(Place::Primary).kill_data_path(supervisor)?;
    watch.await_survivor(round)?;
    watch.await_fenced(round)
}

pub(super) fn kill_sidecar_and_vm(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let (data_path, qemu) = (netns::data_path(supervisor(round)?)?, round.qemu.pid());
    watch.strike(round, "data path and VM die");
    watch.due(round, "standby");
    [data_path, qemu].iter().for_each(|pid| signal(*pid, Signal::KILL));
    // Whoever wins must be able to run it: not only to say so.
    let running = |e: &Entry| matches!(e.told_by("standby"), Some(Event::Running(_)));
    let found = round.timeline.wait(watch.mark, round.topology.patience(), running)?;
    watch.survivor = found.map(|_| Place::Standby);
    Ok(())
}

pub(super) fn kill_survivor_sidecar(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    hosts::kill_primary(watch, round)?;
    watch.is_served(round, "after the takeover")?;
    // Until it says that its end takes nothing along, it does: it is the VM's network (docs/FAULTS.md).
    let keeps = |e: &Entry| matches!(e.told_by("standby"), Some(Event::KeeperStarted(_)));
    if round.timeline.wait(watch.mark, round.topology.patience(), keeps)?.is_none() {
        watch.complain("nobody keeps the VM's network for when the survivor's process dies");
    }
    round.timeline.note("the survivor's process dies");
    signal(standby(round)?, Signal::KILL);
    let ended = round.standby.as_mut().is_some_and(|s| s.wait(round.topology.patience()).is_some());
    ensure!(ended, "the standby's process does not die");
    // (Whatever it had let out is on the wire by now.)
    pass(WHILE)?;
    watch.is_served(round, "after the survivor's process died")
}

pub(super) fn stop_qemu(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let qemu = round.qemu.pid();
    watch.strike(round, "the primary's QEMU stops");
    watch.due(round, "standby");
    signal(qemu, Signal::STOP);
    // Either the VM goes on elsewhere, or everybody who asks is told that it stands still.
    let (mark, patience) = (watch.mark, round.topology.patience());
    let ran = |e: &Entry| matches!(e.told_by("standby"), Some(Event::Running(_)));
    let took_over = |round: &Round<'_>| round.timeline.since(mark).iter().any(ran);
    let stalled = |round: &Round<'_>| {
        let (code, told) = round.ask_status(Place::Primary);
        code == Some(3) && status::stalled(&told).is_some()
    };
    let mut is_told = false;
    poll(patience, || {
        is_told = stalled(round);
        is_told || took_over(round)
    })?;
    if is_told {
        // Told is not yet served: a standby that may take over does so before long.
        poll(4 * WHILE, || took_over(round))?;
    }
    if took_over(round) {
        watch.is_served(round, "while the primary's QEMU stood still")?;
    } else if !is_told {
        watch.complain("the VM stood still, nobody took it over, and status did not say so");
    }
    round.timeline.note("the primary's QEMU goes on");
    signal(qemu, Signal::CONT);
    let well = |round: &Round<'_>| round.ask_status(Place::Primary).0 == Some(0);
    poll(patience, || took_over(round) || well(round))?;
    if took_over(round) {
        watch.survivor = Some(Place::Standby);
        return watch.ends_with(round, "protect", 4);
    }
    watch.survivor = Some(Place::Primary);
    watch.status_exits(round, Place::Primary, 0)
}

/// Stops one thread of a process of this host, and no other, while the answer lives.
fn hold(round: &Round<'_>, place: Place, thread: u32) -> Result<Proc> {
    let mark = round.timeline.mark();
    let line = Line::new(&round.settings.rig).args(["hold"]).flag("--thread", thread.to_string());
    let host = round.topology.host(place);
    let mut holder = Proc::spawn(host, "hold", &line, &round.files.host(place), &round.timeline)?;
    let patience = round.topology.patience();
    let is_held = || round.timeline.since(mark).iter().any(|e| e.is("hold", "held"));
    poll(patience, || is_held() || !holder.is_alive())?;
    ensure!(is_held(), "the thread cannot be held: {}", holder.log_tail(3));
    Ok(holder)
}

/// As [`hold`], between two turns of the thread's loop: see [`hosts::freeze`].
fn hold_between_turns(round: &Round<'_>, place: Place, thread: u32) -> Result<Proc> {
    for _ in 0..hosts::TRIES {
        let holder = hold(round, place, thread)?;
        if process::waits(thread) {
            return Ok(holder);
        }
        drop(holder);
        pass(hosts::STEP)?;
    }
    Err(hosts::never_waits(&format!("thread {thread}")))
}

/// A process's first thread has the process's id.
pub(super) fn stop_loop(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let data_path = netns::data_path(supervisor(round)?)?;
    watch.strike(round, "the data path's main thread stops");
    watch.due(round, "standby");
    let holder = hold_between_turns(round, Place::Primary, data_path)?;
    watch.last_due_frame = Some(round.topology.host(Place::Primary).frames_out()?);
    watch.await_survivor(round)?;
    watch.is_served(round, "while the data path's main thread stood still")?;
    watch.due(round, "protect");
    round.timeline.note("the data path's main thread goes on");
    drop(holder);
    watch.await_fenced(round)
}

pub(super) fn stop_standby_loop(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let standby = standby(round)?;
    watch.strike(round, "the standby's main thread stops");
    watch.due(round, "protect");
    let holder = hold(round, Place::Standby, standby)?;
    watch.await_survivor(round)?;
    watch.is_served(round, "while the standby's main thread stood still")?;
    watch.due(round, "standby");
    round.timeline.note("the standby's main thread goes on");
    drop(holder);
    watch.await_fenced(round)
}

pub(super) fn sigterm_primary(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let supervisor = supervisor(round)?;
    watch.strike(round, "protect is asked to end");
    signal(supervisor, Signal::TERM);
    watch.ends_with(round, "protect", 0)?;
    let mark = round.timeline.mark();
    pass(WHILE)?;
    watch.stays();
    if round.timeline.since(mark).iter().any(|e| matches!(e.told, Some(Event::Suspect(_)))) {
        watch.complain("the standby was not told that protection ended");
    }
    Ok(())
}

pub(super) fn sigterm_standby(watch: &mut Watch, round: &mut Round<'_>) -> Result<()> {
    let standby = standby(round)?;
    watch.strike(round, "standby is asked to end");
    signal(standby, Signal::TERM);
    watch.ends_with(round, "standby", 0)?;
    watch.await_survivor(round)?;
    watch.is_served(round, "without a standby")?;
    watch.status_degrades(round, Place::Primary)?;
    let mark = round.timeline.mark();
    round.new_standby()?;
    round.timeline.note("there is a standby again");
    if let Err(error) = round.await_protected(mark) {
        watch.complain(format!("the VM did not protect itself again: {error:#}"));
    }
    watch.status_exits(round, Place::Primary, 0)
}
