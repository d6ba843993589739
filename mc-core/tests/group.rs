//! Three members on a virtual clock, every beat heard by all of them: who suspects whom.

use mc_core::{
    detector::{Action, Config, Event, Group, Parameters, State},
    id::{Incarnation, Time},
    machine::Machine,
    wire::beat::Beat,
};
use std::time::Duration;

const MEMBERS: [u8; 3] = [1, 2, 3];
const STEP: Duration = Duration::from_micros(500);

fn parameters(ms: u64) -> Parameters {
    let interval = Duration::from_millis(ms);
    Parameters::new(interval, interval, 5).unwrap()
}

struct World {
    now: Time,
    groups: Vec<Group>,
    silenced: Option<u8>,
    /// On their way, to all others, twice: as if by two paths.
    flying: Vec<Beat>,
    rtts: Vec<Duration>,
    suspected: Vec<(u8, u8)>,
}

impl World {
    fn new() -> Self {
        let now = Time(1_000_000_000);
        let config = |member| Config { incarnation: Incarnation(5), member, parameters: parameters(10), startup: None };
        let groups = MEMBERS.iter().map(|member| Group::new(config(*member), &MEMBERS, now)).collect();
        Self { now, groups, silenced: None, flying: vec![], rtts: vec![], suspected: vec![] }
    }

    fn act(&mut self, index: usize) {
        let member = MEMBERS[index];
        while let Some(what) = self.groups[index].poll_action() {
            match what.action {
                Action::SendBeat(beat) if self.silenced != Some(member) => self.flying.push(beat),
                Action::Drain => self.groups[index].handle(self.now, Event::Drained),
                Action::Heard { rtt, .. } => self.rtts.extend(rtt),
                Action::Suspect(_) => self.suspected.push((member, what.peer)),
                _ => {}
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(STEP);
            let arrived = std::mem::take(&mut self.flying);
            for index in 0..MEMBERS.len() {
                for beat in &arrived {
                    // (Each member hears itself too, as by multicast.)
                    self.groups[index].handle(self.now, Event::BeatReceived(*beat));
                    self.act(index);
                }
                self.groups[index].handle_timeout(self.now);
                self.act(index);
            }
        }
    }
}

#[test]
fn the_silent_member_is_suspected_by_all_and_nobody_else_is() {
    let mut world = World::new();
    world.run(Duration::from_millis(300));
    assert!(world.suspected.is_empty());
    for group in &world.groups {
        assert!(group.detectors().all(|(_, d)| d.state() == State::Up && d.stats().duplicates == 0), "{group:?}");
        assert!(group.own() > 0 && group.foreign() == 0);
    }
    world.silenced = Some(3);
    world.run(Duration::from_millis(500));
    world.suspected.sort_unstable();
    assert_eq!(world.suspected, [(1, 3), (2, 3)], "who suspects whom");
    assert_eq!(world.groups[0].detector(2).unwrap().state(), State::Up);
    assert_eq!(world.groups[2].detector(1).unwrap().state(), State::Up, "it is not deaf");
}

/// An echo for another member, taken for ours, would be the difference of two clocks.
#[test]
fn round_trips_are_measured_with_one_s_own_echo_only() {
    let mut world = World::new();
    world.run(Duration::from_millis(300));
    assert!(world.rtts.len() > 60, "{}", world.rtts.len());
    assert!(world.rtts.iter().all(|rtt| *rtt <= 4 * STEP), "{:?}", world.rtts.iter().max());
}

#[test]
fn a_live_change_is_confirmed_by_each_peer_for_itself() {
    let mut world = World::new();
    world.run(Duration::from_millis(100));
    world.groups[0].handle(world.now, Event::SetParameters(parameters(40)));
    world.act(0);
    assert!(world.groups[0].detectors().all(|(_, d)| d.polling()));
    world.run(Duration::from_millis(300));
    for (peer, detector) in world.groups[0].detectors() {
        assert!(!detector.polling(), "member {peer} has not confirmed");
        assert_eq!(detector.transmit_interval(), Duration::from_millis(40));
    }
    world.run(Duration::from_secs(1));
    assert!(world.suspected.is_empty(), "{:?}", world.suspected);
}

#[test]
fn a_member_that_nobody_watches_is_foreign() {
    let mut world = World::new();
    world.run(Duration::from_millis(50));
    let mut stranger =
        world.flying.first().copied().unwrap_or_else(|| *world.groups[0].detector(2).unwrap().peer().unwrap());
    stranger.member = 9;
    world.groups[0].handle(world.now, Event::BeatReceived(stranger));
    assert_eq!(world.groups[0].foreign(), 1);
    assert!(world.groups[0].detector(9).is_none());
    let config = Config { incarnation: Incarnation(5), member: 1, parameters: parameters(10), startup: None };
    assert_eq!(Group::new(config, &[1, 2, 2, 3], world.now).detectors().count(), 2, "ourselves, and one twice");
}
