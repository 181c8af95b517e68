//! Listeners: which process holds one, and which closes one with connections waiting.

use reset_collector_probes::{State, field::Field};

use crate::{
    connection::{FullSocket, Socket},
    map::{CLOSING_LISTENERS, LISTENERS, socket_state},
    owner::{ExitStatus, Process, Task},
    read::copy,
};

/// A listener that is being closed, and by whom: its children are reset under the lock of the bottom half, so that the task
/// that closes the listener is not seen to act on them (`inet_csk_listen_stop`).
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ClosingListener {
    listener: u64,
    process: Process,
    status: ExitStatus,
}

impl ClosingListener {
    /// Remembers who closes a listener, which is locked.
    #[inline(always)]
    pub(crate) fn begin(listener: Socket) {
        let Some(task) = Task::current() else { return };
        let closing = match Task::acting(listener) {
            Some(task) => {
                Self { listener: listener.pointer() as u64, process: task.process(), status: task.exit_status() }
            }
            None => Self { listener: listener.pointer() as u64, process: Process::NONE, status: ExitStatus::NONE },
        };
        CLOSING_LISTENERS.set(&task.address(), &closing);
    }

    /// Who closes the listener of a child that the running task resets, if it does.
    #[inline(always)]
    pub(crate) fn of_child(child: &FullSocket) -> Option<(Process, ExitStatus)> {
        let task = Task::current()?;
        // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this task in it.
        let closing = unsafe { *CLOSING_LISTENERS.get(&task.address())? };
        // The entry outlives the closing, and the listener: what it was must still be there.
        let listener = Socket::at(closing.listener as *const u8);
        let is_closing = copy::<u8>(listener.pointer(), Field::SkState) == State::Closed as u8
            && copy::<u32>(listener.pointer(), Field::SkLockOwned) & 1 != 0
            && listener.port() == Socket::at(child.tcp()).port();
        (is_closing && closing.process.pid != 0).then_some((closing.process, closing.status))
    }
}

/// Who holds a listener.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ListenerHolder {
    process: Process,
    /// `Control::walk` when it was found.
    walk: u32,
    /// Of several that hold it the one with the highest rank.
    rank: u16,
    local_port: u16,
}

/// Stores which process holds a listener, found in a task's file table: of several, the one that called listen(), but not the
/// init process, which holds the listeners of the services that it starts.
#[inline(always)]
pub(crate) fn is_held(listener: Socket, task: *const u8, walk: u32) {
    const INIT: u32 = 1;
    let Some(current) = Task::at(task) else { return };
    let process = current.process();
    let listened = socket_state(listener.pointer())
        .is_some_and(|stored| stored.owner.pid == process.pid && stored.owner.start_ns == process.start_ns);
    let rank = if process.pid == INIT { 0 } else { 1 + u16::from(listened) };
    let key = listener.pointer() as u64;
    // SAFETY: the verifier knows the value's size; the LRU map keeps the memory.
    if LISTENERS.get(&key).is_some_and(|found| unsafe { (*found).walk == walk && (*found).rank >= rank }) {
        return;
    }
    LISTENERS.set(&key, &ListenerHolder { process, walk, rank, local_port: listener.port() });
}
