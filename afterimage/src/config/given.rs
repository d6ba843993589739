//! What a command line says: the flags of [`super::table`], as clap takes them.

use super::{
    setting::{Kind, PROBE, PROTECT, SECTIONS, STANDBY, Setting, Usual, WITNESS},
    table,
};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, error::Error, value_parser};
use std::{collections::BTreeMap, path::PathBuf};
use toml::Value;

/// The heading of flags without a default.
const REQUIRED: &str = "Required, here or in the file of --config";

/// The flags of the commands that the bits name, each of which may be there.
#[derive(Clone, Debug, Default)]
pub struct Given<const ON: u8> {
    pub(super) values: BTreeMap<&'static str, Value>,
    /// The file that holds what no flag says.
    pub config: Option<PathBuf>,
}

/// `afterimage witness`
pub type WitnessArgs = Given<WITNESS>;
/// `afterimage protect`
pub type ProtectArgs = Given<PROTECT>;
/// `afterimage standby`
pub type StandbyArgs = Given<STANDBY>;
/// `afterimage keepalive probe`, `serve`: which way checkpoints and beats go.
pub type PathArgs = Given<PROBE>;

/// `--config` of a command that has a section.
fn config(on: u8) -> Option<Arg> {
    let (section, _) = SECTIONS.into_iter().find(|(_, bit)| *bit == on)?;
    let help = format!("TOML file; a flag wins over its section `[{section}]`");
    Some(Arg::new("config").long("config").value_name("FILE").value_parser(value_parser!(PathBuf)).help(help))
}

impl Setting {
    fn arg(&'static self) -> Arg {
        let arg = Arg::new(self.key).help(self.help());
        let arg = match self.usual {
            Usual::Needed(_) => arg.help_heading(REQUIRED),
            Usual::Is(_) | Usual::Follows(_) | Usual::Nothing => arg,
        };
        let valued = |arg: Arg| arg.value_name(self.form).value_parser(|said: &str| self.read(said));
        match self.kind {
            Kind::Switch => arg.long(self.flag()).action(ArgAction::SetTrue),
            Kind::List(..) if self.key == "qemu" => valued(arg).last(true).num_args(1..).action(ArgAction::Append),
            Kind::List(_, Some(between)) => {
                valued(arg).long(self.flag()).value_delimiter(between).action(ArgAction::Append)
            }
            Kind::List(_, None) => valued(arg).long(self.flag()).action(ArgAction::Append),
            _ => valued(arg).long(self.flag()),
        }
    }

    fn given(&self, matches: &mut ArgMatches) -> Option<Value> {
        match self.kind {
            Kind::Switch => matches.get_flag(self.key).then_some(true.into()),
            Kind::List(..) => Some(Value::Array(matches.remove_many(self.key)?.collect())),
            _ => matches.remove_one(self.key),
        }
    }
}

impl<const ON: u8> Args for Given<ON> {
    fn augment_args(command: Command) -> Command {
        command.args(table::of(ON).map(Setting::arg)).args(config(ON))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ON: u8> FromArgMatches for Given<ON> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Self::from_arg_matches_mut(&mut matches.clone())
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        let given = table::of(ON).filter_map(|setting| Some((setting.key, setting.given(matches)?)));
        let values = given.collect();
        let config = config(ON).and_then(|_| matches.remove_one("config"));
        Ok(Self { values, config })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
