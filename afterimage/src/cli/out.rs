//! The output file of a probe: opened before the measurement, so that a bad path is reported at once and not an hour later
//! written.

use node::exit::ExitError;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file that can be written, and is not yet.
#[derive(Debug)]
pub(crate) struct Out {
    path: PathBuf,
    file: File,
    /// Whether it was not there before.
    made: bool,
}

impl Out {
    /// Opens it; what it holds stays until it is written.
    ///
    /// # Errors
    /// With what to do.
    pub(crate) fn open(path: &Path) -> Result<Self, ExitError> {
        let open = |new| OpenOptions::new().write(true).create_new(new).open(path);
        let made = open(true).map(|file| (file, true));
        let opened = made.or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => open(false).map(|file| (file, false)),
            _ => Err(error),
        });
        let (file, made) = opened.map_err(|error| {
            let what = format!("--out {}: {error}; nothing was measured", path.display());
            ExitError::usage(what).remedy("choose a file in an existing directory that this user may write to")
        })?;
        Ok(Self { path: path.to_owned(), file, made })
    }

    /// Writes it.
    pub(crate) fn write(mut self, text: &str) -> io::Result<()> {
        self.made = false;
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(text.as_bytes())?;
        tracing::info!(file = %self.path.display(), "written");
        Ok(())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_file(&self.path);
        }
    }
}
