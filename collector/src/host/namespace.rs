//! A network namespace of one thread's own: its loopback is nobody else's, and it is gone when the thread is.

use std::{fs::File, io, os::unix::fs::MetadataExt};

use nix::sched::{CloneFlags, unshare};

use crate::host::netlink;

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a thread could not get a network namespace of its own.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Not permitted, or none left.
    #[error("cannot make a network namespace: {0} (needs root, or CAP_SYS_ADMIN)")]
    Unshare(io::Error),
    /// Its loopback device stays down.
    #[error("cannot set the loopback device of a new network namespace up: {0} (needs CAP_NET_ADMIN)")]
    Loopback(io::Error),
    /// It cannot be told from others.
    #[error("cannot read {OWN}: {0}")]
    Inode(io::Error),
}

/// A network namespace. While this value lives, its inode names no other.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// `network.namespace.inode`
    pub(crate) inode: u32,
    _held: File,
}

/// Moves the calling thread into a new network namespace with its loopback up. The thread cannot go back: call it on
/// one made for the purpose.
///
/// # Errors
/// Each step's.
pub(crate) fn enter() -> Result<Namespace, NamespaceError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NamespaceError::Unshare(errno.into()))?;
    netlink::set_loopback_up().map_err(NamespaceError::Loopback)?;
    let held = File::open(OWN).map_err(NamespaceError::Inode)?;
    let inode = held.metadata().map_err(NamespaceError::Inode)?.ino();
    let inode = u32::try_from(inode).map_err(|error| NamespaceError::Inode(io::Error::other(error)))?;
    Ok(Namespace { inode, _held: held })
}
