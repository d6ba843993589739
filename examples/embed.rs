//! A machine counts in its memory, and says each number. Its process is killed; another one goes on from the last number that was heard.
use anyhow::{Context, Result, bail};
use mc_core::ram::SharedRam;
use node::{gate::messages, inbox::Outbox, primary, standby};
use parking_lot::{Mutex, const_mutex};
use std::{env::args, io, io::BufRead, io::BufReader, process::Child, process::Command, sync::Arc, thread, time::Duration};
use vmm_memory::{Guest, Machine, MemoryVm, memory};

#[derive(Clone)]
struct Counter(Arc<Mutex<bool>>); // whether it runs

impl Guest for Counter {
    fn pause(&mut self) -> io::Result<()> {
        *self.0.lock() = false; // whoever has the lock is in the middle of a step
        Ok(())
    }
    fn resume(&mut self) -> io::Result<()> {
        *self.0.lock() = true;
        Ok(())
    }
    fn device(&mut self) -> io::Result<Vec<u8>> {
        Ok(b"a few bytes".to_vec())
    }
}
impl Machine for Counter {
    fn restore(&mut self, device: &[u8]) -> io::Result<()> {
        if device == b"a few bytes" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}
impl Counter {
    fn run(&self, mut ram: SharedRam, say: &Outbox<u64>) {
        loop {
            if *self.0.lock() {
                let mut number = [0; 8];
                ram.read(0x4000, &mut number);
                ram.write(0x4000, &(u64::from_le_bytes(number) + 1).to_le_bytes());
                say.put(u64::from_le_bytes(number) + 1);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
