//! Files that are this program's own: made anew or found to be ours, locked while they are in use, and removed by their inode,
//! never by their name alone. Directories such as /dev/shm are everybody's: a name there proves nothing.

use rustix::fs::{FlockOperation, flock, statfs};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

/// Makes a file that was not there (`O_EXCL`, `O_NOFOLLOW`), mode 0600, open for reading and writing.
///
/// # Errors
/// `AlreadyExists` when there is anything of that name, a symbolic link included.
pub fn create(path: &Path) -> io::Result<File> {
    options().create_new(true).open(path)
}

/// Opens a file that is there, or makes it, mode 0600.
///
/// # Errors
/// A symbolic link; [`check`].
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let file = options().create(true).truncate(false).open(path)?;
    check(&file)?;
    Ok(file)
}

/// Opens a file that is there.
///
/// # Errors
/// A symbolic link; [`check`].
pub fn open(path: &Path) -> io::Result<File> {
    // A FIFO must not hold us up.
    let file = options().custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    check(&file)?;
    Ok(file)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Whether an open file is a regular file of this user's, under one name at most.
///
/// # Errors
/// `InvalidInput` says what it is instead.
pub fn check(file: &File) -> io::Result<()> {
    let (meta, us) = (file.metadata()?, rustix::process::geteuid().as_raw());
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if !meta.is_file() {
        return wrong("not a regular file".into());
    }
    if meta.uid() != us {
        return wrong(format!("it belongs to user {}, this process runs as {us}", meta.uid()));
    }
    if meta.nlink() > 1 {
        return wrong(format!("it has {} hard links", meta.nlink()));
    }
    Ok(())
}

/// Locks a file (flock(2)) until it is closed; false while another process, or another opening of it, has the lock.
pub fn lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `statfs(2)`: the files of such a directory are memory.
const TMPFS: i64 = 0x0102_1994;

/// Whether the files of this directory are memory.
pub fn is_memory(dir: &Path) -> io::Result<bool> {
    Ok(statfs(dir)?.f_type as i64 == TMPFS)
}

/// Whether the path names this very file.
pub fn names(path: &Path, file: &File) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(same(&found, &file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the path if it names this very file; another one of that name is not ours.
pub fn remove(path: &Path, file: &File) -> io::Result<()> {
    if names(path, file)? { fs::remove_file(path) } else { Ok(()) }
}

/// Removes the socket at `path` if it is the one that `bound` was read from.
pub fn remove_socket(path: &Path, bound: &Metadata) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.file_type().is_socket() && same(&found, bound) { fs::remove_file(path) } else { Ok(()) }
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Opens and locks the file at `path`, which is made if need be; `None` while another process has it. The name is then this
/// file's: whoever removes such a file holds its lock.
pub fn open_locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = open_or_create(path)?;
        if !lock(&file)? {
            return Ok(None);
        }
        if names(path, &file)? {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn only_ours_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = create(&at("a")).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(create(&at("a")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        symlink(at("a"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        for link in ["link", "dangling"] {
            assert!(
                create(&at(link)).is_err() && open(&at(link)).is_err() && open_or_create(&at(link)).is_err(),
                "{link}"
            );
        }
        assert!(!at("nowhere").exists());
        open(&at("a")).unwrap();
        fs::hard_link(at("a"), at("b")).unwrap();
        assert!(open(&at("a")).unwrap_err().to_string().contains("2 hard links"));
        assert!(
            Path::new("/dev/null").exists()
                && open(Path::new("/dev/null")).unwrap_err().to_string().contains("regular")
        );
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(open(&at("fifo")).unwrap_err().to_string().contains("regular"));
    }

    #[test]
    fn one_owner_at_a_time_and_only_its_own_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = open_locked(&path).unwrap().unwrap();
        assert!(open_locked(&path).unwrap().is_none());
        remove(&path, &first).unwrap();
        let second = open_locked(&path).unwrap().unwrap();
        assert!(!names(&path, &first).unwrap() && names(&path, &second).unwrap());
        remove(&path, &first).unwrap();
        assert!(path.exists(), "another's file was removed");
        drop(second);
        drop(open_locked(&path).unwrap().unwrap());

        let socket = dir.path().join("socket");
        let old = UnixListener::bind(&socket).map(|_| fs::metadata(&socket).unwrap()).unwrap();
        fs::rename(&socket, dir.path().join("moved")).unwrap();
        let _new = UnixListener::bind(&socket).unwrap();
        remove_socket(&socket, &old).unwrap();
        assert!(socket.exists(), "another's socket was removed");
    }
}
