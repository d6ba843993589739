//! Appends lines, and turns a full journal over. See the module above for why several processes may do so at once.

use super::{FULL, LONGEST, older};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// One process's end of a journal.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: Option<File>,
}

impl Writer {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line (its newline included) durably. After an error the file is opened anew.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        let appended = self.try_append(line);
        if appended.is_err() {
            self.file = None;
        }
        appended
    }

    fn try_append(&mut self, line: &str) -> io::Result<()> {
        let shortened;
        let line = if line.len() > LONGEST {
            shortened = shorten(line);
            &shortened
        } else {
            line
        };
        let file = self.file_with_room()?;
        // One write for the whole line; a short one (the disk is full) leaves a torn line, which the next opening ends.
        if (&*file).write(line.as_bytes())? != line.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        file.sync_data()
    }

    /// The file that the path names, and which is not full.
    fn file_with_room(&mut self) -> io::Result<&File> {
        if let Some(file) = &self.file {
            let meta = file.metadata()?;
            if meta.nlink() == 0 {
                self.file = None; // somebody removed it
            } else if meta.size() >= FULL {
                self.turn_over()?;
                self.file = None;
            }
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => open(&self.path)?,
        };
        if file.metadata()?.size() >= FULL {
            self.file = Some(file);
            self.turn_over()?;
            return Ok(self.file.insert(open(&self.path)?));
        }
        Ok(self.file.insert(file))
    }

    /// Renames the open file, unless another process did. The lock is the full file's own.
    fn turn_over(&self) -> io::Result<()> {
        let Some(full) = &self.file else { return Ok(()) };
        flock(full, FlockOperation::LockExclusive)?;
        let (ours, named) = (full.metadata()?, fs::metadata(&self.path));
        let renamed = match named {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => {
                fs::rename(&self.path, older(&self.path))
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        flock(full, FlockOperation::Unlock)?;
        renamed
    }
}

/// Opens it for appending, and ends a line that somebody's death has torn.
fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = File::options().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if file.metadata()?.size() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

/// An event that is too long, without what made it so.
fn shorten(line: &str) -> String {
    let fields: Map<String, Value> = serde_json::from_str(line).unwrap_or_default();
    let short = |value: &Value| value.to_string().len() <= 256;
    let mut kept: Map<String, Value> = fields.into_iter().filter(|(_, value)| short(value)).take(32).collect();
    kept.insert("shortened".to_owned(), Value::Bool(true));
    let mut text = Value::Object(kept).to_string();
    text.push('\n');
    text
}
