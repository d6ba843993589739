//! A record under way.

use super::{Measure, Record, SCHEMA, Section};
use crate::{
    interrupt,
    machine::{self, Device, Machine},
};
use std::time::{Instant, SystemTime};

/// A record that is being made: when it began, and by which command line.
#[derive(Debug)]
pub struct Begun {
    command: Vec<String>,
    wall: SystemTime,
    clock: Instant,
    machine: Machine,
}

impl Begun {
    /// Now; the command line is this process's.
    #[must_use]
    pub fn now() -> Self {
        let command = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        Self { command, wall: SystemTime::now(), clock: Instant::now(), machine: Machine::here() }
    }

    /// Done, with these sections.
    #[must_use]
    pub fn done(self, mut sections: Vec<Section>) -> Record {
        sections.iter_mut().flat_map(|s| &mut s.measures).for_each(Measure::keep_finite);
        let mut devices: Vec<Device> = Vec::new();
        for name in sections.iter().flat_map(|s| &s.devices) {
            if !devices.iter().any(|d| d.name == *name) {
                devices.push(Device::here(name));
            }
        }
        let mut caveats = machine::caveats(&self.machine, &devices);
        caveats.extend(interrupt::asked().then(|| interrupt::CAVEAT.to_owned()));
        let started = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Record {
            schema: SCHEMA,
            command: self.command,
            started_unix_s: started.as_secs_f64(),
            took_s: self.clock.elapsed().as_secs_f64(),
            caveats,
            machine: self.machine,
            devices,
            sections,
        }
    }
}
