//! The directory of a queue's storage: made, taken for one process alone, and looked at for what it is on.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock, statfs},
    io::Errno,
};

use crate::export::storage::{StorageError, options};

/// The one who holds it owns the directory.
pub(crate) struct Lock(File);

impl Drop for Lock {
    /// Given back, not just closed: a child between fork and exec still has it open.
    fn drop(&mut self) {
        if let Err(errno) = flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!("the lock of sending_queue.storage is left to be closed: {errno}");
        }
    }
}

/// Makes the directory where it is not there, and takes it. One line where it is on a file server.
pub(crate) fn take(directory: &Path) -> Result<Lock, StorageError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(StorageError::at(directory, "cannot be made"))?;
    let lock = lock(directory)?;
    if let Some(kind) = statfs(directory).ok().and_then(|found| file_server(found.f_type.cast_unsigned())) {
        tracing::warn!(
            "sending_queue.storage {} is on {kind}: while its server is away nothing is stored or sent, and what \
             `fsync` keeps is the server's to say; give a directory on a local disk",
            directory.display()
        );
    }
    Ok(lock)
}

fn lock(directory: &Path) -> Result<Lock, StorageError> {
    let failed = |what| StorageError::at(directory, what);
    let path = directory.join("lock");
    let file = options().create(true).open(&path).map_err(failed("cannot be written"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            let holder = std::process::id().to_string();
            let written = file.set_len(0).and_then(|()| file.write_all_at(holder.as_bytes(), 0));
            written.map_err(failed("cannot be written"))?;
            Ok(Lock(file))
        }
        Err(Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path).ok().filter(|holder| !holder.is_empty());
            Err(StorageError::InUse { path: directory.to_owned(), holder: holder.unwrap_or_else(|| "unknown".into()) })
        }
        Err(errno) => Err(failed("cannot be locked")(errno.into())),
    }
}

/// File systems that another machine serves, by `statfs`'s type (include/uapi/linux/magic.h; fs/ceph/super.h,
/// fs/lustre of the out-of-tree client, fs/gfs2). FUSE is none: it is as often local.
fn file_server(kind: u64) -> Option<&'static str> {
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
    use super::file_server;

    #[test]
    fn a_file_server_is_known_whatever_the_sign_of_its_type() {
        let smb2 = i64::from(0xfe53_4d42_u32.cast_signed()).cast_unsigned();
        assert_eq!((file_server(0x6969), file_server(smb2)), (Some("NFS"), Some("SMB")));
        let (ext4, tmpfs, overlay, fuse) = (0xef53, 0x0102_1994, 0x794c_7630, 0x6573_5546);
        assert!([ext4, tmpfs, overlay, fuse].map(file_server).iter().all(Option::is_none));
    }
}
