//! The directory of one queue's storage: created, checked, locked for this process, and the only way to its files.
//!
//! The collector may run as root, so it opens nothing that another user could have put there: every file is opened
//! relative to the checked directory, without following links and without blocking, and must be a regular file of this
//! user (or root) with one link.

use std::{
    ffi::{OsStr, OsString},
    fs::{DirBuilder, File},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, FileExt},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, fstatfs, mkdirat, openat, statat,
        unlinkat,
    },
    io::Errno,
    process::{getegid, geteuid},
};

use crate::export::storage::StorageError;

const LOCK: &str = "lock";
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// No links, no terminal, no waiting for the other end of a FIFO, not inherited.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// A checked and locked directory.
#[derive(Debug)]
pub(crate) struct StorageDirectory {
    path: PathBuf,
    directory: OwnedFd,
    lock: File,
}

impl Drop for StorageDirectory {
    /// Unlocks explicitly: a child between fork and exec still has the file open.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            tracing::debug!(event = "storage_unlock_failed", path = %self.path.display(), %error, "cannot unlock storage");
        }
    }
}

impl StorageDirectory {
    /// Opens `below` in the configured directory `root`; creates what does not exist. Warns about network file systems.
    pub(crate) fn take(root: &Path, below: &Path) -> Result<Self, StorageError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(StorageError::at(root, "cannot be created"))?;
        let mut path = root.to_owned();
        let flags = SAFE | OFlags::DIRECTORY | OFlags::RDONLY;
        let opened = rustix::fs::open(root, flags, Mode::empty());
        let mut directory = opened.map_err(|errno| cannot_open_directory(root, errno))?;
        check_directory(&path, &directory, true)?;
        for name in below {
            path.push(name);
            match mkdirat(&directory, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(StorageError::at(&path, "cannot be created")(errno.into())),
            }
            let opened = openat(&directory, name, flags, Mode::empty());
            directory = opened.map_err(|errno| cannot_open_directory(&path, errno))?;
            check_directory(&path, &directory, false)?;
        }
        if let Some(kind) = fstatfs(&directory).ok().and_then(|found| network_file_system(found.f_type.cast_unsigned()))
        {
            tracing::warn!(
                event = "storage_on_network", path = %path.display(), kind,
                "storage is on a network file system: while its server is down nothing is stored or sent, and fsync \
                 depends on it; use a local disk"
            );
        }
        let lock = lock(&path, directory.as_fd())?;
        Ok(Self { path, directory, lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file, and creates it where it does not exist.
    pub(crate) fn open(&self, name: &str) -> Result<File, StorageError> {
        open_file(&self.path, self.directory.as_fd(), name, OFlags::CREATE)
    }

    /// Opens a file that exists.
    pub(crate) fn open_existing(&self, name: &str) -> Result<File, StorageError> {
        open_file(&self.path, self.directory.as_fd(), name, OFlags::empty())
    }

    /// Creates a file; fails with `AlreadyExists` where something has its name.
    pub(crate) fn create_new(&self, name: &str) -> io::Result<File> {
        let flags = SAFE | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(openat(&self.directory, name, flags, FILE_MODE)?.into())
    }

    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    /// The names with this ending, sorted. Names that are not UTF-8 are not ours.
    pub(crate) fn names(&self, ending: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let name = OsString::from(OsStr::from_bytes(entry?.file_name().to_bytes()));
            names.extend(name.into_string().ok().filter(|name| name.ends_with(ending)));
        }
        names.sort();
        Ok(names)
    }

    /// Syncs the names of its files to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

fn cannot_open_directory(path: &Path, errno: Errno) -> StorageError {
    match errno {
        Errno::LOOP | Errno::NOTDIR => StorageError::Unsafe {
            path: path.to_owned(),
            why: "is a symbolic link or not a directory: configure the directory itself".into(),
        },
        errno => StorageError::at(path, "cannot be opened")(errno.into()),
    }
}

/// Refuses a directory that another user owns or may write to. The configured one may be a shared one with the sticky
/// bit, such as /tmp: nobody else can rename or remove what is below it.
fn check_directory(path: &Path, directory: &OwnedFd, is_root: bool) -> Result<(), StorageError> {
    let found = fstat(directory).map_err(|errno| StorageError::at(path, "cannot be opened")(errno.into()))?;
    let refused = |why| Err(StorageError::Unsafe { path: path.to_owned(), why });
    if !is_trusted(&found) {
        return refused(format!(
            "belongs to user {}: give a directory that belongs to this user or to root",
            found.st_uid
        ));
    }
    let mode = Mode::from_raw_mode(found.st_mode);
    let by_group = mode.contains(Mode::WGRP) && found.st_gid != 0 && found.st_gid != getegid().as_raw();
    let sticky = is_root && mode.contains(Mode::SVTX);
    if (mode.contains(Mode::WOTH) || by_group) && !sticky {
        return refused(format!(
            "can be written by other users: run `chmod go-w {}`, or configure a directory below it that does not exist \
             yet",
            path.display()
        ));
    }
    Ok(())
}

fn lock(path: &Path, directory: BorrowedFd<'_>) -> Result<File, StorageError> {
    let failed = |what| StorageError::at(path, what);
    let file = open_file(path, directory, LOCK, OFlags::CREATE)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let owner = std::process::id().to_string();
            let written = file.set_len(0).and_then(|()| file.write_all_at(owner.as_bytes(), 0));
            written.map_err(failed("cannot be written"))?;
            Ok(file)
        }
        Err(Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let read = (&file).take(32).read_to_string(&mut owner);
            let owner = if read.is_ok() && !owner.is_empty() { owner } else { "unknown".into() };
            Err(StorageError::InUse { path: path.to_owned(), owner })
        }
        Err(errno) => Err(failed("cannot be locked")(errno.into())),
    }
}

fn open_file(path: &Path, directory: BorrowedFd<'_>, name: &str, create: OFlags) -> Result<File, StorageError> {
    let at = || path.join(name);
    // Before it is opened: opening a device may do something.
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => check_file(at, &found)?,
        Err(Errno::NOENT) if create.contains(OFlags::CREATE) => {}
        Err(errno) => return Err(StorageError::at(&at(), "cannot be opened")(errno.into())),
    }
    let opened = openat(directory, name, SAFE | OFlags::RDWR | create, FILE_MODE);
    let file: File = opened.map_err(|errno| StorageError::at(&at(), "cannot be opened")(errno.into()))?.into();
    let found = fstat(&file).map_err(|errno| StorageError::at(&at(), "cannot be opened")(errno.into()))?;
    check_file(at, &found)?;
    Ok(file)
}

fn check_file(path: impl Fn() -> PathBuf, found: &Stat) -> Result<(), StorageError> {
    let what = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile if found.st_nlink > 1 => format!("has {} hard links", found.st_nlink),
        FileType::RegularFile if !is_trusted(found) => format!("belongs to user {}", found.st_uid),
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => "is a symbolic link".into(),
        FileType::Fifo => "is a FIFO".into(),
        _ => "is not a regular file".into(),
    };
    let why = format!("{what}, and the collector did not put it there: move it out of the storage directory");
    Err(StorageError::Unsafe { path: path(), why })
}

fn is_trusted(found: &Stat) -> bool {
    found.st_uid == 0 || found.st_uid == geteuid().as_raw()
}

/// Network file systems by the type of `statfs` (include/uapi/linux/magic.h; fs/ceph/super.h, fs/lustre of the out-of-tree
/// client, fs/gfs2). FUSE is not among them: it is as often local.
fn network_file_system(kind: u64) -> Option<&'static str> {
    Some(match kind & 0xffff_ffff {
        0x6969 => "NFS",
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => "SMB",
        0x00c3_6400 => "CephFS",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0102_1997 => "9P",
        0x7375_7245 => "Coda",
        0x0bd0_0bd0 => "Lustre",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::network_file_system;

    #[test]
    fn a_network_file_system_is_known_whatever_the_sign_of_its_type() {
        let smb2 = i64::from(0xfe53_4d42_u32.cast_signed()).cast_unsigned();
        assert_eq!((network_file_system(0x6969), network_file_system(smb2)), (Some("NFS"), Some("SMB")));
        let (ext4, tmpfs, overlay, fuse) = (0xef53, 0x0102_1994, 0x794c_7630, 0x6573_5546);
        assert!([ext4, tmpfs, overlay, fuse].map(network_file_system).iter().all(Option::is_none));
    }
}
