//! Writes values into a configuration file: comments, order, the ends of its lines and everything else stay, and the file is
//! whole at any moment.
//!
//! ```text
//!   read ──> edit ──> `config check` ──> (the change is made) ──> write beside it, fsync ──> still what was read? ──> rename
//! ```
//!
//! A file that is a mount point (one that a container was given) cannot be renamed over: it is then written in place, with its
//! whole new text beside it until that is on the disk.

use super::endings;
use crate::config;
use api::Side;
use node::exit::{Code, ExitError};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};
use toml_edit::{DocumentMut, Item, TableLike, Value};

/// One key of the section, and its value; `None`: the default again.
pub(super) type Entry = (String, Option<Value>);

/// A file's new text, that was checked, and not written yet.
#[derive(Debug)]
pub(super) struct Edit {
    path: PathBuf,
    before: Option<String>,
    after: String,
    section: &'static str,
    /// The other role's section, if the file has one: it stays as it is.
    other: Option<&'static str>,
}

/// What `--save` asks for: the file, edited and checked, and not written yet.
pub(super) fn prepare(
    save: Option<&Option<PathBuf>>,
    file: Option<&Path>,
    side: Side,
    entries: &[Entry],
) -> Result<Option<Edit>, ExitError> {
    let Some(named) = save else { return Ok(None) };
    let Some(file) = named.as_deref().or(file) else {
        let what = "--save needs a configuration file, and the process was started without one; nothing was changed";
        return Err(ExitError::usage(what).remedy("name one: --save=FILE"));
    };
    edit(file, side, entries).map(Some)
}

/// Writes what [`prepare`] made, after the change. What was written where.
///
/// # Errors
/// They say both: that the change is in force, and that the file does not have it.
pub(super) fn save(edit: Option<Edit>) -> Result<Option<String>, ExitError> {
    let Some(edit) = edit else { return Ok(None) };
    edit.write().map_err(|error| {
        let remedy = "run the command again, or write the change into the file yourself; otherwise it is lost when \
             the process ends";
        let message = format!("the change is in force, but it was not saved: {}", error.message);
        ExitError { message, remedy: error.remedy.or_else(|| Some(remedy.to_owned())), ..error }
    })?;
    Ok(Some(edit.told()))
}

fn failed(path: &Path, doing: &str, error: &io::Error) -> ExitError {
    ExitError::new(Code::Failed, format!("{}: {doing} failed: {error}; the file is unchanged", path.display()))
}

/// Puts the entries into the file's section for `side`. Nothing is written.
///
/// # Errors
/// The file cannot be read, or `config check` would refuse what comes of it.
fn edit(path: &Path, side: Side, entries: &[Entry]) -> Result<Edit, ExitError> {
    // What a symbolic link names is edited, and the link kept.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(&path, "reading it", &error)),
    };
    let text = before.as_deref().unwrap_or_default();
    config::check_text(&path, text)?;
    let (name, other) = match side {
        Side::Primary => ("protect", "standby"),
        Side::Standby => ("standby", "protect"),
        Side::Keeper => return Err(ExitError::usage("a keeper has no section in a configuration file")),
    };
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.as_str()).collect();
    let named = config::renamed(&path, &endings::plain(text), name, &keys)?;
    let mut document: DocumentMut =
        named.parse().map_err(|error| ExitError::usage(format!("{}: {error}", path.display())))?;
    let other = document.contains_key(other).then_some(other);
    let section = document.entry(name).or_insert(toml_edit::table());
    let Some(table) = section.as_table_like_mut() else {
        return Err(ExitError::usage(format!("{}: the section is not a TOML table", path.display())));
    };
    entries.iter().for_each(|(key, value)| put(table, key, value.clone()));
    let after = endings::like(text, &document.to_string());
    config::check_text(&path, &after)?;
    Ok(Edit { path, before, after, section: name, other })
}

/// What is beside a value, a comment above all, stays there.
fn put(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        table.remove(key);
        return;
    };
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
}

/// What rename(2) says of a mount point; and of one of another file system, which it cannot reach.
fn is_mount_point(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices)
}

impl Edit {
    /// Where it goes, and what that is for: a host that has changed its role has two sections, and only one was meant.
    fn told(&self) -> String {
        let Self { path, section, other, .. } = self;
        let stays = other.map_or_else(String::new, |other| {
            format!("; its [{other}], for when this host runs `afterimage {other}`, is as it was")
        });
        format!("saved in {} for `afterimage {section}`, section [{section}]{stays}", path.display())
    }

    /// Replaces the file, unless somebody else has changed it since it was read.
    ///
    /// # Errors
    /// What the file is then.
    fn write(&self) -> Result<(), ExitError> {
        let temporary = self.temporary();
        let fail = |doing| move |error: io::Error| failed(&self.path, doing, &error);
        let replaced = self.successor(&temporary).and_then(|()| match fs::rename(&temporary, &self.path) {
            Err(error) if is_mount_point(&error) => Ok(false),
            renamed => renamed.map(|()| true).map_err(fail("putting its successor in its place")),
        });
        match replaced {
            Ok(true) => {}
            Ok(false) => self.overwrite(&temporary)?,
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
        }
        // The new name must outlive a power cut, too.
        let directory = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|dir| dir.sync_all()).map_err(|error| {
            ExitError::new(
                Code::Failed,
                format!("{}: written, but it may not survive a crash of this host: {error}", self.path.display()),
            )
        })
    }

    fn temporary(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{}", std::process::id()))
    }

    /// Writes the successor beside the file, and looks whether that is still what was read.
    fn successor(&self, temporary: &Path) -> Result<(), ExitError> {
        let like = fs::metadata(&self.path).ok();
        let written = self.write_to(temporary, like.as_ref());
        written.map_err(|error| failed(&self.path, "writing its successor", &error))?;
        let now = fs::read_to_string(&self.path).ok();
        if now != self.before {
            let what =
                format!("{}: another program changed the file meanwhile; it was left as it is", self.path.display());
            return Err(ExitError::new(Code::Failed, what)
                .remedy("run the command again to save; the change itself is in force"));
        }
        Ok(())
    }

    /// Writes the file in place. While it is neither the one text nor the other, the successor beside it is.
    fn overwrite(&self, temporary: &Path) -> Result<(), ExitError> {
        let mut file = OpenOptions::new().write(true).open(&self.path);
        let file = file.as_mut().map_err(|error| failed(&self.path, "opening it to write in place", error))?;
        let written = file.write_all(self.after.as_bytes()).and_then(|()| file.set_len(self.after.len() as u64));
        written.and_then(|()| file.sync_all()).map_err(|error| {
            let (path, whole) = (self.path.display(), temporary.display());
            let what = format!(
                "{path}: writing in place failed: {error}. The file may be incomplete; the new text is in {whole}"
            );
            ExitError::new(Code::Failed, what).remedy(format!("make room, then `cp {whole} {path}`"))
        })?;
        let _ = fs::remove_file(temporary);
        Ok(())
    }

    fn write_to(&self, temporary: &Path, like: Option<&Metadata>) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        let mode = like.map_or(0o644, |like| like.permissions().mode());
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(like) = like {
            // Whoever may write the file need not be able to give it away.
            let _ = fchown(&file, Some(like.uid()), Some(like.gid()));
        }
        file.write_all(self.after.as_bytes())?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# the web VM
[witness]
state = '/var/lib/w'

[protect]   # of this host
vm = \"web\"
# measured in May
beat_interval_ms = 10   # not less
beat_min_rx_ms = 9
epoch_ms = 20
";

    fn entry(key: &str, value: Option<Value>) -> Entry {
        (key.to_owned(), value)
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("afterimage.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn comments_and_order_stay_and_the_rest_is_as_it_was() {
        let (dir, path) = file(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let entries = [
            entry("beat_interval", Some("2500us".into())),
            entry("beat_min_rx", None),
            entry("detect_multiplier", Some(3.into())),
            entry("on_cap", Some("grow:64MiB".into())),
        ];
        edit(&link, Side::Primary, &entries).unwrap().write().unwrap();
        let expected =
            FILE.replace("_interval_ms = 10 ", "_interval = \"2500us\" ").replace("beat_min_rx_ms = 9\n", "")
                + "detect_multiplier = 3\non_cap = \"grow:64MiB\"\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert!(link.is_symlink());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn a_byte_order_mark_and_the_ends_of_lines_stay() {
        let windows = format!("\u{feff}{}", FILE.replace('\n', "\r\n"));
        let (_dir, path) = file(&windows);
        let entries = [entry("epoch", Some("5ms".into())), entry("window", Some(3.into()))];
        edit(&path, Side::Primary, &entries).unwrap().write().unwrap();
        let expected = windows.replace("epoch_ms = 20", "epoch = \"5ms\"") + "window = 3\r\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn what_config_check_would_refuse_is_not_written() {
        let (_dir, path) = file(FILE);
        let cases: [(Entry, &str); 3] = [
            (entry("detect_multiplier", Some(0.into())), "2 to 255"),
            (entry("beat_interval", Some("50us".into())), "100us to 10s"),
            (entry("staging", Some("1MiB".into())), "two slabs of 1MiB"),
        ];
        for (entry, why) in cases {
            let refused = edit(&path, Side::Primary, &[entry]).unwrap_err();
            assert!(refused.message.contains(why) && refused.code == Code::Usage, "{refused:?}");
        }
        fs::write(&path, "[protect]\nnonsense = 1\n").unwrap();
        let refused = edit(&path, Side::Primary, &[]).unwrap_err();
        assert!(refused.message.contains("afterimage.toml:2"), "{refused:?}");
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_left_alone() {
        let (dir, path) = file(FILE);
        let edit = edit(&path, Side::Primary, &[entry("epoch", Some("5ms".into()))]).unwrap();
        fs::write(&path, "# mine\n").unwrap();
        assert!(edit.write().unwrap_err().message.contains("another program"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_there_is_begun() {
        let (_dir, path) = file("");
        fs::remove_file(&path).unwrap();
        let edit_of = |side| edit(&path, side, &[entry("detect_multiplier", Some(4.into()))]).unwrap();
        let first = edit_of(Side::Standby);
        assert!(first.told().ends_with("for `afterimage standby`, section [standby]"), "{}", first.told());
        first.write().unwrap();
        // The same host once it has taken the VM over and protects it.
        let told = edit_of(Side::Primary).told();
        assert!(told.contains("section [protect]; its [standby], for when this host runs"), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "[standby]\ndetect_multiplier = 4\n");
    }
}
