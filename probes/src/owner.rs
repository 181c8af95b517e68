//! Who holds a socket: never whoever was on the CPU.
//!
//! In process context the task that holds the socket's lock acts itself. Elsewhere the owner is the one that connected
//! or listened (kept with the socket), or the process whose credentials opened the socket's file: `file.f_cred` is the
//! `struct cred` of the process that called socket() or accept(), each process has its own (`copy_creds`,
//! kernel/cred.c), and it lives as long as the file does. So an accepted connection needs no hook of its own.

use core::ptr::NonNull;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};
use reset_collector_probes::{COMM_LEN, OwnerSource, ResetRecord, field::Field, flag};

use crate::{
    connection::Socket,
    map::{PROCESSES, kept},
    read::{copy, has_typed_task, load},
    write::zero,
};

/// Bits of `task_struct.flags` (include/linux/sched.h).
const PF_EXITING: u32 = 0x4;
const PF_SIGNALED: u32 = 0x400;
const PF_KTHREAD: u32 = 0x0020_0000;

/// A process: with its start, one for ever.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Process {
    pub(crate) start_ns: u64,
    pub(crate) pid: u32,
    pub(crate) _padding: u32,
    pub(crate) comm: [u64; COMM_LEN / 8],
}

/// A task of the kernel. Never null, so that no task at all is one register that is 0, and none that nobody wrote.
#[derive(Clone, Copy)]
pub(crate) struct Task(NonNull<u8>);

impl Task {
    /// The task that acts on the socket, where the kernel says truly who that is: it holds the socket's lock.
    #[inline(always)]
    pub(crate) fn acting(socket: Socket) -> Option<Self> {
        if !socket.is_owned() {
            return None;
        }
        // SAFETY: plain helpers.
        let task = if has_typed_task() {
            unsafe { bpf_get_current_task_btf() }.cast()
        } else {
            unsafe { bpf_get_current_task() as *mut u8 }
        };
        let task = Self(NonNull::new(task)?);
        (task.load::<u32>(Field::TaskFlags) & PF_KTHREAD == 0).then_some(task)
    }

    /// Loads a member: where the verifier does not know the running task's type, by copying.
    #[inline(always)]
    fn load<T: Copy>(&self, field: Field) -> T {
        let task = self.0.as_ptr().cast_const();
        if has_typed_task() { load(task, field) } else { copy(task, field) }
    }

    #[inline(always)]
    pub(crate) fn exiting(&self) -> bool {
        self.load::<u32>(Field::TaskFlags) & PF_EXITING != 0
    }

    #[inline(always)]
    fn signaled(&self) -> bool {
        self.load::<u32>(Field::TaskFlags) & PF_SIGNALED != 0
    }

    #[inline(always)]
    fn pid(&self) -> u32 {
        self.load(Field::TaskTgid)
    }

    /// The process that the task belongs to.
    #[inline(always)]
    pub(crate) fn process(&self) -> Process {
        let leader: *const u8 = self.load(Field::TaskLeader);
        Process {
            start_ns: copy(leader, Field::TaskStart),
            pid: self.pid(),
            _padding: 0,
            comm: copy(leader, Field::TaskComm),
        }
    }
}

/// Remembers a process by its new credentials.
#[inline(always)]
pub(crate) fn process_starts(task: *const u8) {
    let Some(known) = NonNull::new(task.cast_mut()) else { return };
    if load::<u32>(task, Field::TaskPid) != load::<u32>(task, Field::TaskTgid) {
        return;
    }
    PROCESSES.set(&load::<u64>(task, Field::TaskCred), &Task(known).process());
}

/// Forgets a process, before its credentials' address can be another's.
#[inline(always)]
pub(crate) fn process_exits(task: *const u8) {
    if task.is_null() || load::<u32>(task, Field::TaskPid) != load::<u32>(task, Field::TaskTgid) {
        return;
    }
    PROCESSES.remove(&load::<u64>(task, Field::TaskCred));
}

/// Writes that nobody owns the reset.
#[inline(always)]
pub(crate) fn write_none(record: &mut ResetRecord) {
    record.credential = 0;
    record.owner_start_ns = 0;
    zero::<_, 4>(&mut record.owner_comm);
    zero::<_, 1>(&mut record.owner_pid);
    zero::<_, 1>(&mut record.actor_pid);
    zero::<_, 1>(&mut record.thread_id);
    zero::<_, 1>(&mut record.exit_code);
    record.owner_source = OwnerSource::None as u8;
}

#[inline(always)]
fn write(record: &mut ResetRecord, process: &Process, source: OwnerSource) {
    record.owner_start_ns = process.start_ns;
    record.owner_pid = process.pid;
    record.owner_source = source as u8;
    let comm = record.owner_comm.as_mut_ptr().cast::<u64>();
    // SAFETY: 16 bytes are two words of 8, and the record's name lies on a multiple of 8.
    unsafe {
        *comm = process.comm[0];
        *comm.add(1) = process.comm[1];
    }
}

/// Writes the task that acted, and that it owns the socket unless it is a killer from outside.
#[inline(always)]
pub(crate) fn write_acting(record: &mut ResetRecord, socket: Socket, task: Task, is_owner: bool) {
    record.thread_id = task.load(Field::TaskPid);
    if task.exiting() {
        record.flags |= flag::EXITING;
        record.exit_code = task.load(Field::TaskExitCode);
        if task.signaled() {
            record.flags |= flag::SIGNALED;
        }
    }
    if is_owner {
        write(record, &task.process(), OwnerSource::Current);
    } else {
        record.actor_pid = task.pid();
        write_holder(record, socket);
    }
}

/// Writes the owner of a full socket outside process context.
#[inline(always)]
pub(crate) fn write_holder(record: &mut ResetRecord, socket: Socket) {
    let kept = kept(socket.pointer());
    if let Some(kept) = &kept
        && kept.socket == socket.pointer() as u64
        && kept.owner.pid != 0
    {
        write(record, &kept.owner, OwnerSource::Storage);
        return;
    }
    let of_socket: *const u8 = load(socket.pointer(), Field::SkSocket);
    let file: *const u8 = load(of_socket, Field::SocketFile);
    let credential: u64 = load(file, Field::FileCred);
    record.credential = credential;
    if credential != 0
        && let Some(process) = PROCESSES.get(&credential)
    {
        // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this process in it.
        write(record, &unsafe { *process }, OwnerSource::File);
        return;
    }
    if let Some(kept) = kept
        && kept.owner.pid != 0
    {
        write(record, &kept.owner, OwnerSource::Listener);
    }
}
