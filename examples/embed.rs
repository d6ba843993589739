//! A VM counts, and says each number. Its process is killed; the standby's counts on, and says none twice (docs/EMBEDDING.md).
use anyhow::{Context, Result, ensure};
use node::{HostSettings, arbiter::ArbiterSpec, gate, primary, standby, sys::child::ends_with_this_thread};
use std::io::{BufRead, BufReader};
use std::{env, net::SocketAddr, net::TcpListener, process::Command, process::Stdio, thread, time::Duration};
use vmm_memory::{MemoryVm, SharedRam, Steps};

#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Counter(u64); // a register; it counts in RAM as well

impl Steps for Counter {
    type Message = u64;
    fn step(&mut self, ram: &mut SharedRam) -> Option<u64> {
        thread::sleep(Duration::from_millis(1));
        let mut number = [0; 8];
        ram.read(0x4000, &mut number);
        assert_eq!(u64::from_le_bytes(number), self.0, "RAM and register are of one moment");
        self.0 += 1;
        ram.write(0x4000, &self.0.to_le_bytes());
        Some(self.0)
    }
}

fn run_a_host(role: &str, standby_at: SocketAddr, arbiter: ArbiterSpec, dir: &str) -> Result<()> {
    let (out, gate) = gate::messages(|number: u64| println!("{number}"))?;
    let vm = MemoryVm::stepped(Counter::default(), 1 << 20, "counter 1", out)?;
    let us = HostSettings::new("counter".parse()?, role.parse()?, arbiter, dir).beating(Duration::from_millis(100), 10);
    let primary = primary::Settings::new(us.clone(), standby_at);
    if role == "standby" {
        let taken = standby::Runner::new(standby::Settings::new(us, standby_at), vm)?.run()?;
        return primary::Runner::after_takeover(primary, taken.right, taken.vm, gate)?.run().map(drop);
    }
    primary::Runner::new(primary, vm, gate)?.run().map(drop)
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [role, address, arbiter, dir] = &args[..] {
        return run_a_host(role, address.parse()?, arbiter.parse()?, dir);
    }
    let (dir, ip) = (tempfile::tempdir()?, args.first().map_or("127.0.0.1", String::as_str));
    let witness = witness::Witness::start(([127, 0, 0, 1], 0).into(), &dir.path().join("witness"))?;
    let (address, arbiter) = (TcpListener::bind((ip, 0))?.local_addr()?, format!("witness://{}", witness.local_addr()));
    let start = |role: &str| -> Result<_> {
        let mut command = Command::new(env::current_exe()?);
        command.args([role, &address.to_string(), &arbiter]).arg(dir.path().join(role)).stdout(Stdio::piped());
        let mut child = ends_with_this_thread(&mut command).spawn()?;
        let said = BufReader::new(child.stdout.take().context("its output")?).lines().map_while(Result::ok);
        Ok((child, said.inspect(|line| eprintln!("{line}"))))
    };
    let ((mut standby, after), (mut primary, mut before)) = (start("standby")?, start("primary")?);
    before.find(|line| line.contains(r#""event":"protected""#)).context("it was never protected")?;
    thread::sleep(Duration::from_secs(1));
    primary.kill()?;
    let last = before.flat_map(|line| line.parse::<u64>()).last().context("no number before")?;
    let next = after.flat_map(|line| line.parse::<u64>()).next().context("no number after")?;
    println!("killed; the last number heard before was {last}, the next one after is {next}");
    ensure!(next > last, "a number was forgotten");
    Ok(standby.kill()?)
}
