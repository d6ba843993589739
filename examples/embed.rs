//! A machine counts in its memory, and says each number. Its process is killed; another one goes on from the last number that was heard.
use anyhow::{Context, Result};
use mc_core::ram::SharedRam;
use node::{gate::messages, primary, standby};
use parking_lot::Mutex;
use std::{io, io::BufRead, process::Child, process::Command, process::Stdio, sync::Arc, thread, time::Duration};
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
    fn run(&self, mut ram: SharedRam, mut say: impl FnMut(u64)) -> ! {
        loop {
            let runs = self.0.lock();
            if *runs {
                let mut number = [0; 8];
                ram.read(0x4000, &mut number);
                ram.write(0x4000, &(u64::from_le_bytes(number) + 1).to_le_bytes());
                say(u64::from_le_bytes(number) + 1);
            }
            drop(runs);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, port, arbiter, dir] = &args[..] else { return story() };
    let (vm, node, address) = ("counter".parse()?, role.parse()?, format!("127.0.0.1:{port}"));
    let (counter, ram) = (Counter(Arc::new(Mutex::new(role == "primary"))), memory(1 << 20)?);
    let (mapped, whole) = (SharedRam::map(&ram, 1 << 20)?, MemoryVm::new(counter.clone(), ram, "counter 1"));
    if role == "primary" {
        let (say, gate) = messages(|number: u64| println!("{number}"))?;
        thread::spawn(move || {
            counter.run(mapped, |number| {
                say.put(number);
            })
        });
        let settings = primary::Settings::new(vm, node, address.parse()?, arbiter.parse()?, dir);
        primary::Runner::new(settings, whole, gate)?.run().map(drop)
    } else {
        let settings = standby::Settings::new(vm, node, address.parse()?, arbiter.parse()?, dir);
        standby::Runner::<MemoryVm<_, u64>>::new(settings, whole)?.run()?;
        counter.run(mapped, |number| println!("{number}"))
    }
}

/// Both processes and their arbiter, as somebody outside sees them.
fn story() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let witness = witness::Witness::start(([127, 0, 0, 1], 0).into(), &dir.path().join("witness"))?;
    let arbiter = format!("witness://{}", witness.local_addr());
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let start = |role: &str| -> Result<(Child, io::Lines<io::BufReader<std::process::ChildStdout>>)> {
        let mut command = Command::new(std::env::current_exe()?);
        let args = [role, &port, &arbiter, &dir.path().join(role).display().to_string()];
        let mut child = command.args(args).stdout(Stdio::piped()).spawn()?;
        let lines = io::BufReader::new(child.stdout.take().context("its output")?).lines();
        Ok((child, lines))
    };
    let ((mut standby, after), (mut primary, mut before)) = (start("standby")?, start("primary")?);
    before.by_ref().map_while(Result::ok).find(|line| line.contains("\"protected\"")).context("protected")?;
    thread::sleep(Duration::from_secs(1));
    primary.kill()?;
    let number = |line: io::Result<String>| line.ok()?.parse::<u64>().ok();
    let last = before.filter_map(number).last().context("a number before")?;
    let next = after.filter_map(number).next().context("a number after")?;
    println!("killed; the last number heard before was {last}, the next one after is {next}");
    standby.kill()?;
    anyhow::ensure!(next > last, "{next} was said twice");
    Ok(())
}
