//! Sockets that dead processes leave behind.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
};

/// Removes a socket that nobody listens at.
pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    let wrong = |kind, what| Err(io::Error::new(kind, format!("{}: {what}", path.display())));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            wrong(io::ErrorKind::AlreadyExists, "exists, but is not a socket")
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => wrong(io::ErrorKind::AddrInUse, "another process listens there"),
            Err(_) => fs::remove_file(path),
        },
    }
}
