//! Who holds a socket: never whoever was on the CPU.
//!
//! In process context the task that holds the socket's lock acts itself. Elsewhere the owner is the one that connected
//! or listened (kept with the socket), or the process whose credentials opened the socket's file: `file.f_cred` is the
//! `struct cred` of the process that called socket() or accept(), each process has its own (`copy_creds`,
//! kernel/cred.c), and it lives as long as the file does. So an accepted connection needs no hook of its own.
//!
//! Credentials are never changed, only replaced: a process that sets its user id has new ones that nobody has told us of,
//! perhaps where another's were. So an entry counts only while its task still has these credentials, and user space looks
//! through the tasks again when one is missing.

use core::ptr::NonNull;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_boot_ns};
use reset_collector_probes::{COMM_LEN, OwnerSource, ResetRecord, field::Field, flag};

use crate::{
    connection::{Full, Socket},
    map::{CREDENTIALS, ENDED, PROCESSES, kept, kept_or_new},
    read::{copy, has_typed_task, load, load_name},
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

impl Process {
    pub(crate) const NONE: Self = Self { start_ns: 0, pid: 0, _padding: 0, comm: [0; 2] };
}

/// A process as it is known by its credentials.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Known {
    pub(crate) process: Process,
    /// Its main thread's `task_struct`, whose memory tells whether the process still has these credentials.
    pub(crate) task: u64,
}

/// A process that has ended, with the credentials that are another's from then on.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Ended {
    pub(crate) process: Process,
    /// CLOCK_BOOTTIME, as the process's start.
    pub(crate) at_ns: u64,
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
        let task = Self::current()?;
        (task.load::<u32>(Field::TaskFlags) & PF_KTHREAD == 0).then_some(task)
    }

    /// The task on the CPU, whatever it has to do with anything.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: plain helpers.
        let task = if has_typed_task() {
            unsafe { bpf_get_current_task_btf() }.cast()
        } else {
            unsafe { bpf_get_current_task() as *mut u8 }
        };
        Some(Self(NonNull::new(task)?))
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

    /// The address of its credentials.
    #[inline(always)]
    fn credential(&self) -> u64 {
        copy(self.0.as_ptr(), Field::TaskCred)
    }

    /// The process that the task belongs to.
    #[inline(always)]
    pub(crate) fn process(&self) -> Process {
        let leader: *const u8 = self.load(Field::TaskLeader);
        let (start_ns, comm) = if has_typed_task() {
            (load(leader, Field::TaskStart), load_name(leader, Field::TaskComm))
        } else {
            (copy(leader, Field::TaskStart), copy(leader, Field::TaskComm))
        };
        Process { start_ns, pid: self.pid(), _padding: 0, comm }
    }
}

/// The process whose main thread this is.
#[inline(always)]
fn process_of_leader(leader: *const u8) -> Process {
    Process {
        start_ns: load(leader, Field::TaskStart),
        pid: load(leader, Field::TaskTgid),
        _padding: 0,
        comm: load_name(leader, Field::TaskComm),
    }
}

/// Whether the process has the credentials by which it is known, and has not given them up. The task is not held: its
/// memory may be another's, who has credentials of its own.
#[inline(always)]
fn still_has(known: &Known, credential: u64) -> bool {
    let task = known.task as *const u8;
    copy::<u64>(task, Field::TaskCred) == credential && copy::<u32>(task, Field::TaskTgid) == known.process.pid
}

/// Remembers a process by its credentials, and by no others of before.
#[inline(always)]
pub(crate) fn process_is(task: *const u8) {
    if task.is_null() || load::<u32>(task, Field::TaskPid) != load::<u32>(task, Field::TaskTgid) {
        return;
    }
    // Copied, here and below: see `Full::inner` for what a load would cost the start.
    let key: u64 = copy(task, Field::TaskCred);
    let process = process_of_leader(task);
    forget_other_credentials(process.pid, key);
    CREDENTIALS.set(&process.pid, &key);
    PROCESSES.set(&key, &Known { process, task: task as u64 });
}

/// Forgets a process by what it was known by, but for `kept`. Who has come to have those credentials stays known by them.
#[inline(always)]
fn forget_other_credentials(pid: u32, kept: u64) {
    let Some(before) = CREDENTIALS.get(&pid) else { return };
    // SAFETY: the value is a number; the LRU map keeps the memory, if not always this process's entry in it.
    let before = unsafe { *before };
    // SAFETY: as above.
    if before != kept && PROCESSES.get(&before).is_some_and(|known| unsafe { (*known).process.pid } == pid) {
        PROCESSES.remove(&before);
    }
}

/// Forgets a process before its credentials' address can be another's, and notes that they were its own until now: a
/// reset of before may still wait for its owner.
#[inline(always)]
pub(crate) fn process_exits(task: *const u8) {
    if task.is_null() || load::<u32>(task, Field::TaskPid) != load::<u32>(task, Field::TaskTgid) {
        return;
    }
    let process = process_of_leader(task);
    forget_other_credentials(process.pid, 0);
    CREDENTIALS.remove(&process.pid);
    // SAFETY: a plain helper.
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    ENDED.set(&copy(task, Field::TaskCred), &Ended { process, at_ns });
}

/// A process has read from the connection: it holds it, whoever accepted it. Noted once, at the first read.
#[inline(always)]
pub(crate) fn socket_is_read(socket: Socket) {
    let Some(task) = Task::acting(socket) else { return };
    let Some(kept) = kept(socket.pointer()) else { return };
    if kept.socket == socket.pointer() as u64 && kept.owner.pid == task.pid() && kept.owner_is_guess == 0 {
        return;
    }
    kept.owner = task.process();
    kept.socket = socket.pointer() as u64;
    kept.owner_is_guess = 0;
    // Its other connections are known by its credentials; who has new ones, no hook told.
    // SAFETY: as in `forget_other_credentials`.
    let is_known = PROCESSES.get(&task.credential()).is_some_and(|known| unsafe { (*known).process.pid } == task.pid());
    if has_typed_task() && !is_known {
        process_is(task.load(Field::TaskLeader));
    }
}

/// Names the owner of a socket that was there before us, found in a task's file table.
#[inline(always)]
pub(crate) fn socket_is_held(socket: Socket, file: *const u8, task: *const u8) {
    let opened_by_task = load::<u64>(file, Field::FileCred) == load::<u64>(task, Field::TaskCred);
    let (Some(kept), Some(known)) = (kept_or_new(socket.pointer()), NonNull::new(task.cast_mut())) else { return };
    // Of several that hold it, the one that opened it; else the first.
    if kept.socket != socket.pointer() as u64 || (opened_by_task && kept.owner_is_guess != 0) {
        kept.owner = Task(known).process();
        kept.socket = socket.pointer() as u64;
        kept.owner_is_guess = u8::from(!opened_by_task);
    }
}

/// Writes that nobody owns the reset.
#[inline(always)]
pub(crate) fn write_none(record: &mut ResetRecord) {
    record.credential = 0;
    record.owner_start_ns = 0;
    record.owner_comm = [0; COMM_LEN];
    record.actor_comm = [0; COMM_LEN];
    record.owner_pid = 0;
    record.actor_pid = 0;
    record.thread_id = 0;
    record.exit_code = 0;
    record.owner_source = OwnerSource::None as u8;
}

/// Writes a process as the owner.
#[inline(always)]
pub(crate) fn write(record: &mut ResetRecord, process: &Process, source: OwnerSource) {
    record.owner_start_ns = process.start_ns;
    record.owner_pid = process.pid;
    record.owner_source = source as u8;
    write_comm(&mut record.owner_comm, &process.comm);
}

#[inline(always)]
fn write_comm(into: &mut [u8; COMM_LEN], comm: &[u64; COMM_LEN / 8]) {
    let into = into.as_mut_ptr().cast::<u64>();
    // SAFETY: 16 bytes are two words of 8, and a record's names lie on multiples of 8.
    unsafe {
        *into = comm[0];
        *into.add(1) = comm[1];
    }
}

/// Writes the task that acted, and that it owns the socket unless it is a killer from outside.
#[inline(always)]
pub(crate) fn write_acting(record: &mut ResetRecord, full: Full, task: Task, is_owner: bool) {
    if is_owner {
        write_none(record);
        write(record, &task.process(), OwnerSource::Current);
    } else {
        write_holder(record, full);
        let actor = task.process();
        record.actor_pid = actor.pid;
        write_comm(&mut record.actor_comm, &actor.comm);
    }
    record.thread_id = task.load(Field::TaskPid);
    if task.exiting() {
        record.flags |= flag::EXITING;
        record.exit_code = task.load(Field::TaskExitCode);
        if task.signaled() {
            record.flags |= flag::SIGNALED;
        }
    }
}

/// Writes the owner of a full socket outside process context.
#[inline(always)]
pub(crate) fn write_holder(record: &mut ResetRecord, full: Full) {
    write_none(record);
    let kept = full.kept;
    if kept.is_own != 0 && kept.owner.pid != 0 {
        write(record, &kept.owner, OwnerSource::Storage);
        return;
    }
    let credential = full.credential();
    record.credential = credential as u64;
    if !credential.is_null()
        && let Some(known) = PROCESSES.get(&(credential as u64))
    {
        // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this process in it.
        let known = unsafe { *known };
        if still_has(&known, credential as u64) {
            write(record, &known.process, OwnerSource::File);
            return;
        }
    }
    // Without a file it waits to be accepted, and is the listener's; with one, whoever listened may be another process.
    if credential.is_null() && kept.owner.pid != 0 {
        write(record, &kept.owner, OwnerSource::Listener);
    }
}
