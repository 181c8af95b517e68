//! Who sent a request, and what its spans may claim.

use crate::{
    correlate::pending_reset::START_TICK_NS,
    model::{Owner, Reset},
};

/// The process behind a connection to a receiver, as far as the kernel's tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// This process holds the connection's other end. Its spans may match every reset of its own.
    Process(Owner),
    /// A process of the collector's own pid namespace, whose pids are not those in the kernel's records. Its spans may
    /// match resets of processes that started at the same time, where they name the connection.
    ForeignPid {
        /// Start, ns of CLOCK_BOOTTIME.
        start_boot_ns: u64,
    },
    /// The address is this host's, and no socket has it: it was translated on the way (SNAT), so the sender is in another
    /// network namespace. Its spans may match resets there, where they name the connection.
    Translated {
        /// Inode of the receiver's network namespace, whose resets it may not claim.
        network_namespace: u32,
    },
    /// Another host. None of its sockets are here: its spans may match only a trace context that was read from the
    /// connection itself.
    Remote,
    /// The socket is here and no process holds it, or more than one does, or not the one that opened it. Its spans match
    /// nothing.
    Unattributed,
}

impl Sender {
    /// The process, where it is known by its pid.
    pub fn process(&self) -> Option<&Owner> {
        if let Self::Process(owner) = self { Some(owner) } else { None }
    }

    /// Whether it is this process.
    pub(crate) fn is_process(&self, owner: &Owner) -> bool {
        self.process().is_some_and(|sender| is_same_process(sender, owner))
    }

    /// Whether spans of this sender may be about the reset at all, apart from what they say.
    pub(crate) fn may_claim(&self, reset: &Reset, owner: Option<&Owner>) -> bool {
        match self {
            Self::Process(_) => owner.is_none_or(|owner| self.is_process(owner)),
            Self::ForeignPid { start_boot_ns } => {
                owner.is_some_and(|owner| owner.start_boot_ns.abs_diff(*start_boot_ns) <= START_TICK_NS)
            }
            Self::Translated { network_namespace } => {
                reset.network_namespace.is_some_and(|of_reset| of_reset != *network_namespace)
                    && !reset.local.address.is_loopback()
            }
            Self::Remote => reset.trace.is_some(),
            Self::Unattributed => false,
        }
    }
}

/// Whether two records name one process; starts are compared where both are known.
pub(crate) fn is_same_process(one: &Owner, other: &Owner) -> bool {
    let known = one.start_boot_ns != 0 && other.start_boot_ns != 0;
    one.pid == other.pid && (!known || one.start_boot_ns.abs_diff(other.start_boot_ns) <= START_TICK_NS)
}
