//! Flags over file over what is usual.

use super::{
    ConfigError, KeepaliveWish, PathsConfig, TransportWish, WitnessConfig,
    file::{File, load, parse},
    given::{PathArgs, ProtectArgs, StandbyArgs, WitnessArgs},
    look,
    setting::{PROBE, PROTECT, STANDBY, Setting, Usual, WITNESS},
    table,
};
use api::two_slabs;
use mc_core::id::Name;
use node::units::time_text;
use protection::{
    primary::{self, least_commit_deadline},
    processes::Rejoin,
    standby as stand_by,
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// This host's name, as a node's.
pub(crate) fn hostname() -> Result<Name, ConfigError> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim_end();
    Name::new(hostname).map_err(|_| ConfigError::Hostname { hostname: hostname.to_owned() })
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The command line.
    Flag,
    /// The file: this line, and the key of before if it has that.
    Line(usize, Option<&'static str>),
    /// Neither a flag nor the file sets it: the default applies.
    Default,
}

/// One command's settings, each with where it comes from.
pub(super) struct Resolved<'a> {
    /// Its name, and section.
    command: &'static str,
    file: &'a File,
    values: Vec<(&'static Setting, Option<Value>, Origin)>,
}

/// What a command runs with, made of its settings.
trait Resolve: DeserializeOwned {
    /// What follows from several of them, and how they fit each other.
    fn complete(&mut self, r: &Resolved<'_>) -> Result<(), ConfigError>;
}

impl<'a> Resolved<'a> {
    fn new(
        (command, on): (&'static str, u8),
        mut flags: BTreeMap<&'static str, Value>,
        file: &'a File,
    ) -> Result<Self, ConfigError> {
        let mut all = Self { command, file, values: Vec::new() };
        for setting in table::of(on) {
            let said = file.said(command, setting.key);
            let (value, origin) = match (flags.remove(setting.key), said) {
                (Some(flag), _) => (Some(flag), Origin::Flag),
                (None, Some(said)) => {
                    (Some(said.value.clone()), Origin::Line(said.line, said.old.as_ref().map(|(old, _)| *old)))
                }
                (None, None) => (all.usual(setting)?, Origin::Default),
            };
            all.values.push((setting, value, origin));
        }
        Ok(all)
    }

    fn usual(&self, setting: &Setting) -> Result<Option<Value>, ConfigError> {
        Ok(match setting.key {
            "node" => Some(hostname()?.to_string().into()),
            "keepalive" => {
                let transport = self.values.iter().find(|(setting, ..)| setting.key == "transport");
                let usual = match transport.and_then(|(_, value, _)| value.as_ref()?.as_str()) {
                    Some("rdma") => "ud",
                    Some("tcp") => "udp",
                    _ => "both",
                };
                Some(usual.into())
            }
            _ => setting.usual_value(),
        })
    }

    /// What has to be said and was not: as a command line says it.
    fn missing(&self) -> Vec<String> {
        let missing = |value: &Option<Value>, usual| value.is_none() && matches!(usual, Usual::Needed(_));
        let missing = self.values.iter().filter(|(setting, value, _)| missing(value, setting.usual));
        missing.map(|(setting, ..)| setting.on_command_line()).collect()
    }

    /// Of all the values; of an example where one is missing.
    fn configuration<T: Resolve>(&self) -> Result<T, ConfigError> {
        let (mut own, mut paths) = (Table::new(), Table::new());
        for (setting, value, _) in &self.values {
            let table = if setting.on & PROBE == 0 { &mut own } else { &mut paths };
            table.extend(value.clone().or_else(|| setting.example()).map(|value| (setting.key.to_owned(), value)));
        }
        paths.insert("staging_bytes".to_owned(), 0.into()); // follows from others
        match self.command {
            "keepalive" => own = paths,
            "witness" => {}
            _ => drop(own.insert("paths".to_owned(), paths.into())),
        }
        let mut configuration: T = Value::Table(own).try_into().map_err(ConfigError::Table)?;
        configuration.complete(self)?;
        Ok(configuration)
    }

    fn resolve<T: Resolve>(&self) -> Result<T, ConfigError> {
        let configuration = self.configuration()?;
        let missing = self.missing();
        if missing.is_empty() {
            return Ok(configuration);
        }
        let what = format!("{} (or the same in [{}] of --config FILE)", missing.join(", "), self.command);
        Err(ConfigError::Missing { command: self.command, what })
    }

    /// The file's whole path: the process that reads it may have another working directory.
    fn file_path(&self) -> Option<PathBuf> {
        let path = self.file.path();
        (!path.as_os_str().is_empty()).then(|| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }

    /// Fails unless `ok`, naming the value and where it comes from.
    fn check(&self, key: &'static str, ok: bool, allowed: impl fmt::Display) -> Result<(), ConfigError> {
        let entry = self.values.iter().find(|(setting, ..)| setting.key == key && !ok);
        entry.map_or(Ok(()), |(setting, value, origin)| {
            let value = value.as_ref().map(Value::to_string).unwrap_or_default();
            let setting = match origin {
                Origin::Flag => format!("--{} {}", setting.flag(), value.trim_matches('"')),
                Origin::Line(line, _) => format!("{key} = {value} ({}:{line})", self.file.path().display()),
                Origin::Default => format!("{key} = {value} (default)"),
            };
            Err(ConfigError::Range { setting, allowed: allowed.to_string() })
        })
    }

    /// The settings as a section of a file, with comments that say where each comes from.
    fn print(&self, out: &mut String) {
        out.push_str(&format!("\n[{}]\n", self.command));
        for (setting, value, origin) in self.values.iter().filter(|(setting, ..)| !setting.once) {
            let key = setting.key;
            let line = value.as_ref().map_or_else(|| format!("# {key}"), |value| format!("{key} = {value}"));
            let origin = match (value, origin) {
                (None, _) if matches!(setting.usual, Usual::Needed(_)) => "not set: has to come from a flag".to_owned(),
                (None, _) => match setting.usual {
                    Usual::Follows(words) => format!("default: {words}"),
                    _ => "not set: optional".to_owned(),
                },
                (_, Origin::Flag) => "flag".to_owned(),
                (_, Origin::Line(line, None)) => format!("line {line}"),
                (_, Origin::Line(line, Some(old))) => format!("line {line}, by its old key {old}: call it {key}"),
                (_, Origin::Default) => "default".to_owned(),
            };
            out.push_str(&format!("{line:<44}  # {origin}\n"));
        }
    }
}

fn check_paths(paths: &PathsConfig, r: &Resolved<'_>) -> Result<(), ConfigError> {
    let (has_ud, is_tcp) = (paths.keepalive != KeepaliveWish::Udp, paths.transport == TransportWish::Tcp);
    r.check("keepalive", !(has_ud && is_tcp), "udp, because transport = tcp; ud and both need RDMA")?;
    let only_ud = paths.keepalive == KeepaliveWish::Ud && paths.transport == TransportWish::Auto;
    r.check("keepalive", !only_ud, "udp or both, because transport = auto may end up with TCP")?;
    let without = "only with transport = rdma or auto";
    r.check("rdma_device", !(is_tcp && paths.rdma_device.is_some()), without)?;
    r.check("rdma_gid_index", !(is_tcp && paths.rdma_gid_index.is_some()), without)
}

impl Resolve for PathsConfig {
    fn complete(&mut self, r: &Resolved<'_>) -> Result<(), ConfigError> {
        check_paths(self, r)
    }
}

impl Resolve for WitnessConfig {
    fn complete(&mut self, _: &Resolved<'_>) -> Result<(), ConfigError> {
        Ok(())
    }
}

impl Resolve for primary::Settings {
    fn complete(&mut self, r: &Resolved<'_>) -> Result<(), ConfigError> {
        self.config_file = r.file_path();
        // All that RDMA may have to pin.
        self.paths.staging_bytes = self.staging_bytes.saturating_add(self.on_cap.extra_bytes());
        check_paths(&self.paths, r)?;
        let least = least_commit_deadline(self.epoch, self.beat_interval * u32::from(self.detect_multiplier));
        let allowed = format!("{} to 600s: the detection time and two epochs at least", time_text(least));
        r.check("commit_deadline", self.commit_deadline.is_none_or(|limit| limit >= least), allowed)?;
        r.check("slab", self.slab_bytes.is_multiple_of(4096), "256KiB to 16MiB, whole pages of 4KiB")?;
        r.check("staging", self.staging_bytes >= 2 * self.slab_bytes, two_slabs(self.slab_bytes))
    }
}

impl Resolve for stand_by::Settings {
    fn complete(&mut self, r: &Resolved<'_>) -> Result<(), ConfigError> {
        self.config_file = r.file_path();
        self.paths.staging_bytes = self.staging_bytes;
        check_paths(&self.paths, r)?;
        r.check("qemu", !self.qemu.is_empty(), "QEMU's path, then its arguments")
    }
}

/// Flags alone, for a command without a file.
pub fn paths(args: PathArgs, staging_bytes: u64) -> Result<PathsConfig, ConfigError> {
    let file = File::default();
    let paths: PathsConfig = Resolved::new(("keepalive", PROBE), args.values, &file)?.resolve()?;
    Ok(PathsConfig { staging_bytes, ..paths })
}

/// `--rejoin`: the standby that a fenced primary becomes, from the section `[standby]` of the same file.
///
/// # Errors
/// There is no file, no such section, or it is of another VM.
pub fn rejoin(config: &primary::Settings) -> Result<Option<Rejoin>, ConfigError> {
    if !config.rejoin {
        return Ok(None);
    }
    let needs = |what| ConfigError::Needs { setting: "--rejoin", what };
    let Some(path) = &config.config_file else {
        return Err(needs("--config FILE, with a section [standby] that says how to stand by here".to_owned()));
    };
    if load(Some(path))?.section("standby").is_none() {
        return Err(needs(format!("a section [standby] in {}, which says how to stand by here", path.display())));
    }
    let next = standby(StandbyArgs { config: Some(path.clone()), ..StandbyArgs::default() })?;
    if next.vm != config.vm {
        let (theirs, file) = (next.vm, path.display());
        return Err(needs(format!("a section [standby] of {}; that of {file} stands by for {theirs}", config.vm)));
    }
    let arguments = vec!["standby".into(), "--config".into(), path.into()];
    Ok(Some(Rejoin { arguments, vm: next.vm, listen: next.listen }))
}

macro_rules! resolve {
    ($($name:ident $config:ty, $args:ident $command:literal $on:ident;)*) => {$(
        /// From the command line, and the file that it names.
        pub fn $name(args: $args) -> Result<$config, ConfigError> {
            let file = load(args.config.as_deref())?;
            if let Some(note) = look::has_nothing_for($command, &file) {
                tracing::warn!("{note}");
            }
            Resolved::new(($command, $on), args.values, &file)?.resolve()
        }
    )*

        fn checked(path: &Path, file: &File) -> Result<String, ConfigError> {
            let mut out = format!("# {}\n", path.display());
            $(if file.section($command).is_some() {
                let resolved = Resolved::new(($command, $on), BTreeMap::new(), file)?;
                resolved.configuration::<$config>()?;
                resolved.print(&mut out);
            })*
            look::closer(file).map(|()| out)
        }
    };
}
resolve! {
    witness WitnessConfig, WitnessArgs "witness" WITNESS;
    protect primary::Settings, ProtectArgs "protect" PROTECT;
    standby stand_by::Settings, StandbyArgs "standby" STANDBY;
}

/// `config check FILE`: the file's sections with every default filled in, each value with where it comes from. What has no default
/// and may yet come as a flag is listed as not set; whatever is wrong is an error.
pub fn check(path: &Path) -> Result<String, ConfigError> {
    checked(path, &load(Some(path))?)
}

/// The same of a text that is to become the file `path`.
pub fn check_text(path: &Path, text: &str) -> Result<String, ConfigError> {
    checked(path, &parse(path, text)?)
}
