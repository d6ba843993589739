//! A number that makes no sense is refused by its name, before anything is asked for or made.

use anyhow::Result;
use mc_core::id::PAGE_SIZE;
use node::{
    HostSettings,
    arbiter::ArbiterSpec,
    gate::{MessageGate, messages},
    primary, standby,
};
use std::{path::Path, time::Duration};
use vmm_memory::{MemoryVm, SharedRam, Stepped, Steps};

#[derive(serde::Serialize, serde::Deserialize, Debug)]
struct Silent;

impl Steps for Silent {
    type Message = u64;

    fn step(&mut self, _: &mut SharedRam) -> Option<u64> {
        None
    }
}

fn host(dir: &Path) -> Result<HostSettings> {
    Ok(HostSettings::new("web".parse()?, "a".parse()?, ArbiterSpec::Other("own".to_owned()), dir.join("state")))
}

type Vm = MemoryVm<Stepped<Silent>, u64>;
type Change = fn(&mut primary::Settings);

fn vm() -> Result<(Vm, MessageGate<u64>)> {
    let (out, gate) = messages(drop)?;
    Ok((MemoryVm::stepped(Silent, PAGE_SIZE as u64, "silent", out)?, gate))
}

#[test]
fn a_primarys_setting_that_makes_no_sense_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let wrong: [(&str, Change); 11] = [
        ("window", |s| s.window = 0),
        ("window", |s| s.window = u64::MAX),
        ("epoch", |s| s.epoch = Duration::ZERO),
        ("epoch", |s| s.epoch = Duration::MAX),
        ("slab_bytes", |s| s.slab_bytes = 0),
        ("slab_bytes", |s| s.slab_bytes = 9000),
        ("staging_bytes", |s| s.host.staging_bytes = usize::MAX),
        ("staging_bytes", |s| s.host.staging_bytes = s.slab_bytes),
        ("beats", |s| s.host.beats.interval = Duration::MAX),
        ("beats", |s| s.host.beats.multiplier = 0),
        ("stall_after", |s| s.host.stall_after = Some(Duration::ZERO)),
    ];
    for (field, make_wrong) in wrong {
        let mut settings = primary::Settings::new(host(dir.path())?, std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        make_wrong(&mut settings);
        let (vm, gate) = vm()?;
        let error = format!("{:#}", primary::Runner::new(settings, vm, gate).expect_err(field));
        assert!(error.starts_with(field), "{field}: {error}");
    }
    assert!(!dir.path().join("state").exists(), "nothing was made");
    Ok(())
}

#[test]
fn a_standbys_setting_that_makes_no_sense_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut host = host(dir.path())?.beating(Duration::ZERO, 5);
    for field in ["beats", "staging_bytes"] {
        let settings = standby::Settings::new(host.clone(), "127.0.0.1:0".parse()?);
        let error = format!("{:#}", standby::Runner::new(settings, vm()?.0).expect_err(field));
        assert!(error.starts_with(field), "{field}: {error}");
        host = host.beating(Duration::from_millis(10), 5);
        host.staging_bytes = 0;
    }
    assert!(!dir.path().join("state").exists(), "nothing was made");
    Ok(())
}
