//! Flags over file over defaults.

use super::{
    ConfigError, OnCapWish, ProtectConfig, StandbyConfig, WitnessConfig,
    file::{ProtectSection, Sections, Setting, Source, StandbySection, WitnessSection, load, parse},
    least_commit_deadline, look, paths,
    units::{Kib, LEAST_MULTIPLIER, MULTIPLIERS, Mib, Millis},
};
use crate::cli::{ProtectArgs, StandbyArgs, WitnessArgs};
use mc_core::{
    detector::{MAX_INTERVAL, MIN_INTERVAL},
    id::Name,
};
use node::address::Listen;
use node::units::{size_text, time_text};
use serde::Serialize;
use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

/// This host's name, as a node's.
pub(crate) fn hostname() -> Result<Name, ConfigError> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim_end();
    Name::new(hostname).map_err(|_| ConfigError::Hostname { hostname: hostname.to_owned() })
}
/// Of `stall_after`.
const SHORTEST_STALL: Duration = Duration::from_millis(500);
/// Of `stall_after`.
const LONGEST_STALL: Duration = Duration::from_secs(600);

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The command line.
    Flag,
    /// The file, this line.
    Line(usize),
    /// Neither.
    Default,
    /// Nowhere, and it has no default.
    Missing,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Line(line) => write!(f, "line {line}"),
            Self::Default => f.write_str("default"),
            Self::Missing => f.write_str("not set"),
        }
    }
}

impl super::PathArgs {
    /// Flags alone, for a command without a file.
    pub fn resolve(self, staging_bytes: u64) -> Result<super::PathsConfig, ConfigError> {
        let (source, _) = load(None)?;
        let mut resolver = Resolver::new("keepalive", &source);
        let none = paths::PathSettings {
            transport: None,
            keepalive: None,
            beat_port: None,
            rdma_device: None,
            rdma_gid_index: None,
            rdma_timeout: None,
            rdma_retry: None,
        };
        paths::resolve(&mut resolver, self, none, staging_bytes)
    }
}

/// Resolves one command's settings, and remembers where each came from.
pub(super) struct Resolver<'a> {
    command: &'static str,
    file: &'a Source,
    trail: Vec<(&'static str, Option<String>, Origin)>,
    missing: Vec<&'static str>,
}

/// A setting that came as a flag, in a flag's words: a key says the unit of its value, a flag's value its own.
fn as_flag(key: &str, value: &str) -> String {
    let in_unit = |unit: &str| Some((key.strip_suffix(unit)?, value.parse::<f64>().ok()?));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was a size before, and in range")]
    let bytes = |n: f64, shift: u32| size_text((n * f64::from(1_u32 << shift)).round() as u64);
    let (name, value) = if let Some((name, ms)) = in_unit("_ms") {
        (name, time_text(Duration::from_secs_f64(ms / 1e3)))
    } else if let Some((name, mib)) = in_unit("_mib") {
        (name, bytes(mib, 20))
    } else if let Some((name, kib)) = in_unit("_kib") {
        (name, bytes(kib, 10))
    } else {
        (key, value.trim_matches('"').to_owned())
    };
    format!("--{} {value}", name.replace('_', "-"))
}

/// `value` as TOML writes it.
fn written(value: &impl Serialize) -> Option<String> {
    toml::Value::try_from(value).ok().map(|v| v.to_string())
}

impl<'a> Resolver<'a> {
    fn new(command: &'static str, file: &'a Source) -> Self {
        Self { command, file, trail: Vec::new(), missing: Vec::new() }
    }

    /// The file's whole path: the process that reads it may have another working directory.
    fn file_path(&self) -> Option<PathBuf> {
        let path = self.file.path();
        (!path.as_os_str().is_empty()).then(|| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// The flag, else what the file says.
    fn given<T: Serialize>(&mut self, key: &'static str, flag: Option<T>, file: Setting<T>) -> Option<T> {
        let line = file.as_ref().map(|s| Origin::Line(self.file.line(s)));
        let (value, origin) = match flag {
            Some(flag) => (flag, Origin::Flag),
            None => (file?.into_inner(), line?),
        };
        self.trail.push((key, written(&value), origin));
        Some(value)
    }

    pub(super) fn optional<T: Serialize>(&mut self, key: &'static str, flag: Option<T>, file: Setting<T>) -> Option<T> {
        let given = self.given(key, flag, file);
        if given.is_none() {
            self.trail.push((key, None, Origin::Default));
        }
        given
    }

    pub(super) fn or<T: Serialize>(&mut self, key: &'static str, flag: Option<T>, file: Setting<T>, default: T) -> T {
        self.given(key, flag, file).unwrap_or_else(|| {
            self.trail.push((key, written(&default), Origin::Default));
            default
        })
    }

    /// A setting without a default. `flag_form`: how to say it on the command line.
    fn need<T: Serialize>(
        &mut self,
        key: &'static str,
        flag_form: &'static str,
        flag: Option<T>,
        file: Setting<T>,
    ) -> Option<T> {
        let given = self.given(key, flag, file);
        if given.is_none() {
            self.trail.push((key, None, Origin::Missing));
            self.missing.push(flag_form);
        }
        given
    }

    /// The node: by default this host's name.
    fn node(&mut self, flag: Option<Name>, file: Setting<Name>) -> Result<Name, ConfigError> {
        if let Some(given) = self.given("node", flag, file) {
            return Ok(given);
        }
        let name = hostname()?;
        self.trail.push(("node", written(&name), Origin::Default));
        Ok(name)
    }

    /// Fails unless `ok`, naming the value and where it comes from.
    pub(super) fn check(&self, key: &'static str, ok: bool, allowed: impl fmt::Display) -> Result<(), ConfigError> {
        let entry = self.trail.iter().find(|(k, _, _)| *k == key && !ok);
        entry.map_or(Ok(()), |(_, value, origin)| {
            let value = value.as_deref().unwrap_or_default();
            let setting = match origin {
                Origin::Flag => as_flag(key, value),
                Origin::Line(line) => format!("{key} = {value} ({}:{line})", self.file.path().display()),
                other => format!("{key} = {value} ({other})"),
            };
            Err(ConfigError::Range { setting, allowed: allowed.to_string() })
        })
    }

    fn check_beats(&self, interval: Millis, min_rx: Option<Millis>, multiplier: u8) -> Result<(), ConfigError> {
        let allowed = "100us to 10s";
        let fits = |wish: Millis| (MIN_INTERVAL..=MAX_INTERVAL).contains(&wish.0);
        self.check("beat_interval_ms", fits(interval), allowed)?;
        self.check("beat_min_rx_ms", min_rx.is_none_or(fits), allowed)?;
        self.check("detect_multiplier", multiplier >= LEAST_MULTIPLIER, MULTIPLIERS)
    }

    /// Both loops turn ten times a second while there is nothing to do.
    fn check_stall(&self, limit: Option<Millis>) -> Result<(), ConfigError> {
        let fits = |limit: Millis| (SHORTEST_STALL..=LONGEST_STALL).contains(&limit.0);
        self.check("stall_after_ms", limit.is_none_or(fits), "500ms to 600s")
    }

    fn check_commit_deadline(&self, limit: Option<Millis>, least: Duration) -> Result<(), ConfigError> {
        let fits = |limit: Millis| (least..=LONGEST_STALL).contains(&limit.0);
        let allowed = format!("{} to 600s: the detection time and two epochs at least", time_text(least));
        self.check("commit_deadline_ms", limit.is_none_or(fits), allowed)
    }

    /// The settings as a section of a file, with comments that say where each comes from.
    fn print(&self, out: &mut String) {
        let lines = self.trail.iter().map(|(key, value, origin)| {
            let setting = value.as_ref().map_or_else(|| format!("# {key}"), |v| format!("{key} = {v}"));
            let origin = match (value, origin) {
                (None, Origin::Default) => "not set: optional".to_owned(),
                (None, _) => "not set: has to come from a flag".to_owned(),
                (Some(_), origin) => origin.to_string(),
            };
            format!("{setting:<44}  # {origin}\n")
        });
        out.push_str(&format!("\n[{}]\n", self.command));
        out.extend(lines);
    }

    fn incomplete(&self) -> ConfigError {
        let what = format!("{} (or the same in [{}] of --config FILE)", self.missing.join(", "), self.command);
        ConfigError::Missing { command: self.command, what }
    }
}

const RUN_DIR: &str = "/run/afterimage";
const STAGING: Mib = Mib(64 << 20);
const BEAT: Millis = Millis(Duration::from_millis(10));
const MULTIPLIER: u8 = 5;

fn loopback(port: u16) -> Listen {
    Listen((Ipv4Addr::LOCALHOST, port).into())
}

/// An absent list of flags is no list, not an empty one.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn witness(r: &mut Resolver<'_>, args: WitnessArgs, s: WitnessSection) -> Result<WitnessConfig, ConfigError> {
    let listen = r.or("listen", args.listen.map(Listen), s.listen, loopback(7400)).0;
    let state = r.need("state", "--state DIR", args.state, s.state);
    let metrics = r.optional("metrics", args.metrics.map(Listen), s.metrics).map(|listen| listen.0);
    state.map(|state| WitnessConfig { listen, state, metrics }).ok_or_else(|| r.incomplete())
}

fn protect(r: &mut Resolver<'_>, args: ProtectArgs, mut s: ProtectSection) -> Result<ProtectConfig, ConfigError> {
    let path_settings = s.take_paths();
    let vm = r.need("vm", "--vm NAME", args.vm, s.vm);
    let node = r.node(args.node, s.node)?;
    let qmp = r.need("qmp", "--qmp SOCKET", args.qmp, s.qmp);
    let to = r.need("to", "--to HOST:PORT", args.to, s.to);
    let arbiter = r.need("arbiter", "--arbiter SPEC", args.arbiter, s.arbiter);
    let epoch = r.or("epoch_ms", args.epoch.map(Millis), s.epoch_ms, Millis(Duration::from_millis(20)));
    let nics = r.or("nics", some(args.nics), s.nics, Vec::new());
    let beat = r.or("beat_interval_ms", args.beat_interval.map(Millis), s.beat_interval_ms, BEAT);
    let beat_min_rx = r.optional("beat_min_rx_ms", args.beat_min_rx.map(Millis), s.beat_min_rx_ms);
    let detect_multiplier = r.or("detect_multiplier", args.detect_multiplier, s.detect_multiplier, MULTIPLIER);
    let stall_after = r.optional("stall_after_ms", args.stall_after.map(Millis), s.stall_after_ms);
    let commit_deadline = r.optional("commit_deadline_ms", args.commit_deadline.map(Millis), s.commit_deadline_ms);
    let staging = r.or("staging_mib", args.staging.map(Mib), s.staging_mib, STAGING);
    let on_cap = r.or("on_cap", args.on_cap, s.on_cap, OnCapWish::default());
    let slab = r.or("slab_kib", args.slab.map(Kib), s.slab_kib, Kib(1 << 20));
    let window = r.or("window", args.window, s.window, 2);
    let held = r.or("held_limit_mib", args.held_limit.map(Mib), s.held_limit_mib, Mib(64 << 20));
    let run_dir = r.or("run_dir", args.run_dir, s.run_dir, RUN_DIR.into());
    let state_dir = r.or("state_dir", args.state_dir, s.state_dir, node::journal::STATE_DIR.into());
    let metrics = r.optional("metrics", args.metrics.map(Listen), s.metrics).map(|listen| listen.0);
    let bind = r.optional("bind", args.bind, s.bind);
    let force = args.force_writable_disks.then_some(true);
    let force_writable_disks = r.or("force_writable_disks", force, s.force_writable_disks, false);
    let once = r.or("once", args.once.then_some(true), s.once, false);
    let rejoin = r.or("rejoin", args.rejoin.then_some(true), s.rejoin, false);
    let unheld = r.or("unheld", some(args.unheld), s.unheld, Vec::new());
    // All that RDMA may have to pin.
    let paths = paths::resolve(r, args.paths, path_settings, staging.0.saturating_add(on_cap.extra_bytes()))?;

    r.check("epoch_ms", (Duration::from_millis(1)..=Duration::from_secs(60)).contains(&epoch.0), "1ms to 60s")?;
    r.check_beats(beat, beat_min_rx, detect_multiplier)?;
    r.check_stall(stall_after)?;
    r.check_commit_deadline(commit_deadline, least_commit_deadline(epoch.0, beat.0 * u32::from(detect_multiplier)))?;
    let whole_pages = slab.0.is_multiple_of(4096);
    let allowed = "256 to 16384 KiB, whole pages of 4 KiB";
    r.check("slab_kib", whole_pages && (256 << 10..=16 << 20).contains(&slab.0), allowed)?;
    r.check("staging_mib", staging.0 >= 2 * slab.0, format!("at least two slabs of {} KiB", slab.0 >> 10))?;
    r.check("window", (1..=64).contains(&window), "1 to 64 checkpoints")?;
    let (Some(vm), Some(qmp), Some(to), Some(arbiter)) = (vm, qmp, to, arbiter) else {
        return Err(r.incomplete());
    };
    Ok(ProtectConfig {
        vm,
        node,
        qmp,
        to,
        arbiter,
        accept_witness: args.accept_witness,
        epoch: epoch.0,
        nics,
        beat_interval: beat.0,
        beat_min_rx: beat_min_rx.map(|wish| wish.0),
        detect_multiplier,
        stall_after: stall_after.map(|limit| limit.0),
        commit_deadline: commit_deadline.map(|limit| limit.0),
        staging_bytes: staging.0,
        on_cap,
        slab_bytes: slab.0,
        window,
        held_limit_bytes: held.0,
        run_dir,
        state_dir,
        metrics,
        bind,
        force_writable_disks,
        once,
        rejoin,
        unheld,
        paths,
        config_file: r.file_path(),
    })
}

fn standby(r: &mut Resolver<'_>, args: StandbyArgs, mut s: StandbySection) -> Result<StandbyConfig, ConfigError> {
    let path_settings = s.take_paths();
    let vm = r.need("vm", "--vm NAME", args.vm, s.vm);
    let node = r.node(args.node, s.node)?;
    let listen = r.or("listen", args.listen.map(Listen), s.listen, loopback(7410)).0;
    let arbiter = r.need("arbiter", "--arbiter SPEC", args.arbiter, s.arbiter);
    let nics = r.or("nics", some(args.nics), s.nics, Vec::new());
    let ram_dir = r.or("ram_dir", args.ram_dir, s.ram_dir, "/dev/shm".into());
    let spill = r.optional("spill", args.spill, s.spill);
    let no_rehearsal = r.or("no_rehearsal", args.no_rehearsal.then_some(true), s.no_rehearsal, false);
    let staging = r.or("staging_mib", args.staging.map(Mib), s.staging_mib, STAGING);
    let beat = r.or("beat_interval_ms", args.beat_interval.map(Millis), s.beat_interval_ms, BEAT);
    let beat_min_rx = r.optional("beat_min_rx_ms", args.beat_min_rx.map(Millis), s.beat_min_rx_ms);
    let detect_multiplier = r.or("detect_multiplier", args.detect_multiplier, s.detect_multiplier, MULTIPLIER);
    let stall_after = r.optional("stall_after_ms", args.stall_after.map(Millis), s.stall_after_ms);
    let run_dir = r.or("run_dir", args.run_dir, s.run_dir, RUN_DIR.into());
    let state_dir = r.or("state_dir", args.state_dir, s.state_dir, node::journal::STATE_DIR.into());
    let metrics = r.optional("metrics", args.metrics.map(Listen), s.metrics).map(|listen| listen.0);
    let paths = paths::resolve(r, args.paths, path_settings, staging.0)?;
    let qemu = r.need("qemu", "-- QEMU ARGS...", some(args.qemu), s.qemu);

    r.check("staging_mib", staging.0 >= 512 << 10, "at least 0.5 MiB")?;
    r.check_beats(beat, beat_min_rx, detect_multiplier)?;
    r.check_stall(stall_after)?;
    r.check("qemu", qemu.as_ref().is_none_or(|q| !q.is_empty()), "QEMU's path, then its arguments")?;
    let (Some(vm), Some(arbiter), Some(qemu)) = (vm, arbiter, qemu) else {
        return Err(r.incomplete());
    };
    Ok(StandbyConfig {
        vm,
        node,
        listen,
        arbiter,
        accept_witness: args.accept_witness,
        nics,
        ram_dir,
        spill,
        no_rehearsal,
        staging_bytes: staging.0,
        beat_interval: beat.0,
        beat_min_rx: beat_min_rx.map(|wish| wish.0),
        detect_multiplier,
        stall_after: stall_after.map(|limit| limit.0),
        run_dir,
        state_dir,
        metrics,
        qemu,
        paths,
        config_file: r.file_path(),
    })
}

/// `--rejoin`: the standby that a fenced primary becomes, from the section `[standby]` of the same file.
///
/// # Errors
/// There is no file, no such section, or it is of another VM.
pub fn next_standby(config: &ProtectConfig) -> Result<StandbyConfig, ConfigError> {
    let needs = |what| ConfigError::Needs { setting: "--rejoin", what };
    let Some(path) = &config.config_file else {
        return Err(needs("--config FILE, with a section [standby] that says how to stand by here".to_owned()));
    };
    let (_, sections) = load(Some(path))?;
    if sections.standby.is_none() {
        return Err(needs(format!("a section [standby] in {}, which says how to stand by here", path.display())));
    }
    let standby = StandbyConfig::resolve(StandbyArgs { config: Some(path.clone()), ..StandbyArgs::default() })?;
    if standby.vm != config.vm {
        let (theirs, file) = (standby.vm, path.display());
        return Err(needs(format!("a section [standby] of {}; that of {file} stands by for {theirs}", config.vm)));
    }
    Ok(standby)
}

macro_rules! resolve {
    ($($config:ident $args:ident $command:ident;)*) => {$(
        impl $config {
            /// From the command line, and the file that it names.
            pub fn resolve(args: $args) -> Result<Self, ConfigError> {
                let (file, sections) = load(args.config.as_deref())?;
                if let Some(note) = look::has_nothing_for(stringify!($command), &file, &sections) {
                    tracing::warn!("{note}");
                }
                let mut resolver = Resolver::new(stringify!($command), &file);
                $command(&mut resolver, args, sections.$command.unwrap_or_default())
            }
        }
    )*

        /// `config check FILE`: the file's sections with every default filled in, each value with where it comes from. What
        /// has no default and may yet come as a flag is listed as not set; whatever is wrong is an error.
        pub fn check(path: &Path) -> Result<String, ConfigError> {
            checked(path, load(Some(path))?)
        }

        /// The same of a text that is to become the file `path`.
        pub fn check_text(path: &Path, text: &str) -> Result<String, ConfigError> {
            checked(path, parse(path, text.as_bytes().to_vec())?)
        }

        fn checked(path: &Path, (file, sections): (Source, Sections)) -> Result<String, ConfigError> {
            let mut out = format!("# {}\n", path.display());
            let closer = look::closer(&file, &sections);
            $(if let Some(section) = sections.$command {
                let mut resolver = Resolver::new(stringify!($command), &file);
                match $command(&mut resolver, $args::default(), section) {
                    Ok(_) | Err(ConfigError::Missing { .. }) => resolver.print(&mut out),
                    Err(wrong) => return Err(wrong),
                }
            })*
            closer.map(|()| out)
        }
    };
}
resolve! {
    WitnessConfig WitnessArgs witness;
    ProtectConfig ProtectArgs protect;
    StandbyConfig StandbyArgs standby;
}
