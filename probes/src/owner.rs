//! Which process holds a socket: never the one that happened to run.
//!
//! In process context the task that holds the socket's lock acts itself. Elsewhere the owner is the one that connected
//! or listened (kept with the socket), or the process whose credentials opened the socket's file: `file.f_cred` is the
//! `struct cred` of the process that called socket() or accept(), each process has its own (`copy_creds`,
//! kernel/cred.c), and it lives as long as the file does. So an accepted connection needs no hook of its own.
//!
//! Credentials are never changed, only replaced: a process that sets its user id has new ones, which no hook
//! reports, perhaps at an address that another's had. So an entry is valid only while its task still has these credentials,
//! and user space walks all tasks when one is missing.

use core::ptr::NonNull;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_boot_ns};
use reset_collector_probes::{COMM_LEN, OwnerSource, ResetRecord, cause::ProcessEnd, field::Field};

use crate::{
    connection::{FullSocket, Socket},
    map::{CREDENTIALS, EXIT_STATUS, EXITED, PROCESSES, socket_state, socket_state_or_insert},
    read::{copy, has, has_typed_task, load, load_name},
};

/// Bits of `task_struct.flags` (include/linux/sched.h).
const PF_EXITING: u32 = 0x4;
const PF_KTHREAD: u32 = 0x0020_0000;
/// `SIGNAL_GROUP_EXIT` of `signal_struct.flags` (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 0x4;
/// How long after its end a process may be the one whose connection a thread of the kernel closes.
const LATE_CLOSE_TIMEOUT_NS: u64 = 60_000_000_000;

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
pub(crate) struct CredEntry {
    pub(crate) process: Process,
    /// Its main thread's `task_struct`, whose memory shows whether the process still has these credentials.
    pub(crate) task: u64,
}

/// A process that has ended, with the credentials that are another's from then on.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExitedProcess {
    pub(crate) process: Process,
    /// CLOCK_BOOTTIME, as the process's start.
    pub(crate) at_ns: u64,
}

/// How a process ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExitStatus {
    start_ns: u64,
    /// CLOCK_BOOTTIME, as the process's start.
    at_ns: u64,
    /// As `waitpid` returns it.
    status: u32,
    /// Not 0: the OOM killer chose it.
    oom_victim: u32,
}

impl ExitStatus {
    /// A process that lives.
    pub(crate) const NONE: Self = Self { start_ns: 0, at_ns: 0, status: 0, oom_victim: 0 };

    /// How it ended; `None` for a process that lives.
    #[inline(always)]
    pub(crate) fn end(&self) -> Option<ProcessEnd> {
        (self.at_ns != 0).then(|| ProcessEnd::of_status(self.status, self.oom_victim != 0))
    }

    #[inline(always)]
    pub(crate) fn status(&self) -> u32 {
        self.status
    }
}

/// A task of the kernel. Never null, so that `None` is one register that is 0, and none is unwritten.
#[derive(Clone, Copy)]
pub(crate) struct Task(NonNull<u8>);

impl Task {
    /// The task that acts on the socket, where that is certain: it holds the socket's lock, and is not a kernel thread.
    #[inline(always)]
    pub(crate) fn acting(socket: Socket) -> Option<Self> {
        if !socket.is_owned() {
            return None;
        }
        let task = Self::current()?;
        (!task.is_kernel_thread()).then_some(task)
    }

    /// The one at an address.
    #[inline(always)]
    pub(crate) fn at(address: *const u8) -> Option<Self> {
        Some(Self(NonNull::new(address.cast_mut())?))
    }

    /// The task on the CPU, related to the reset or not.
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

    /// How its process ends, if it does: the task is exiting, and no other of its threads lives.
    #[inline(always)]
    pub(crate) fn exit_status(&self) -> ExitStatus {
        if self.load::<u32>(Field::TaskFlags) & PF_EXITING == 0 {
            return ExitStatus::NONE;
        }
        exit_status(self.0.as_ptr(), self.load(Field::TaskLeader))
    }

    /// Its address.
    #[inline(always)]
    pub(crate) fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Whether it is a thread of the kernel.
    #[inline(always)]
    fn is_kernel_thread(&self) -> bool {
        self.load::<u32>(Field::TaskFlags) & PF_KTHREAD != 0
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

/// How the process of an exiting task ends (`wait_task_zombie`, kernel/exit.c).
#[inline(always)]
fn exit_status(task: *const u8, leader: *const u8) -> ExitStatus {
    // Copied: see `FullSocket::inner`.
    let signal: *const u8 = copy(task, Field::TaskSignal);
    if copy::<u32>(signal, Field::SignalLive) != 0 {
        return ExitStatus::NONE;
    }
    let by_group = copy::<u32>(signal, Field::SignalFlags) & SIGNAL_GROUP_EXIT != 0;
    let status = if by_group { copy(signal, Field::SignalExitCode) } else { copy(leader, Field::TaskExitCode) };
    let oom_victim = has(Field::SignalOomMm) && copy::<u64>(signal, Field::SignalOomMm) != 0;
    ExitStatus {
        start_ns: copy(leader, Field::TaskStart),
        // SAFETY: a plain helper.
        at_ns: unsafe { bpf_ktime_get_boot_ns() },
        status,
        oom_victim: oom_victim.into(),
    }
}

/// The process with the name that it has now: it may have executed another program since it was stored.
#[inline(always)]
pub(crate) fn with_current_name(process: &Process) -> Process {
    let mut process = *process;
    if let Some(credential) = CREDENTIALS.get(&process.pid)
        // SAFETY: the value is a number; the LRU map keeps the memory, if not always this process's entry in it.
        && let Some(entry) = PROCESSES.get(unsafe { &*credential })
    {
        // SAFETY: the verifier knows the value's size.
        let entry = unsafe { *entry };
        // SAFETY: as above.
        if entry.process.start_ns == process.start_ns && still_has(&entry, unsafe { *credential }) {
            process.comm = copy(entry.task as *const u8, Field::TaskComm);
        }
    }
    process
}

/// The process that opened the socket's file or is known to hold it, if it has ended within the last minute, and how. For a
/// socket that a thread of the kernel closes: an io_uring or a Unix socket had the last reference to it.
#[inline(always)]
pub(crate) fn ended_owner(full: &FullSocket) -> Option<(Process, ExitStatus)> {
    let process = if full.stored.is_own != 0 && full.stored.owner.pid != 0 {
        full.stored.owner
    } else {
        let credential = full.credential() as u64;
        // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this process in it.
        unsafe { (*EXITED.get(&credential)?).process }
    };
    // SAFETY: as above.
    let status = unsafe { *EXIT_STATUS.get(&process.pid)? };
    // SAFETY: a plain helper.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let is_late = now.wrapping_sub(status.at_ns) < LATE_CLOSE_TIMEOUT_NS;
    (is_late && status.start_ns == process.start_ns).then_some((process, status))
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
fn still_has(known: &CredEntry, credential: u64) -> bool {
    let task = known.task as *const u8;
    copy::<u64>(task, Field::TaskCred) == credential && copy::<u32>(task, Field::TaskTgid) == known.process.pid
}

/// Remembers a process by its credentials, and by no others of before.
#[inline(always)]
pub(crate) fn process_is(task: *const u8) {
    if task.is_null() || load::<u32>(task, Field::TaskPid) != load::<u32>(task, Field::TaskTgid) {
        return;
    }
    // Copied, here and below: see `FullSocket::inner` for what a load would cost the start.
    let key: u64 = copy(task, Field::TaskCred);
    let process = process_of_leader(task);
    forget_other_credentials(process.pid, key);
    CREDENTIALS.set(&process.pid, &key);
    PROCESSES.set(&key, &CredEntry { process, task: task as u64 });
}

/// Forgets a process by what it was known by, but for `kept`. Who has come to have those credentials stays known by them.
#[inline(always)]
fn forget_other_credentials(pid: u32, stored: u64) {
    let Some(before) = CREDENTIALS.get(&pid) else { return };
    // SAFETY: the value is a number; the LRU map keeps the memory, if not always this process's entry in it.
    let before = unsafe { *before };
    // SAFETY: as above.
    if before != stored && PROCESSES.get(&before).is_some_and(|known| unsafe { (*known).process.pid } == pid) {
        PROCESSES.remove(&before);
    }
}

/// Forgets a process before its credentials' address can be another's, and notes that they were its own until now: a
/// reset of before may still wait for its owner.
#[inline(always)]
pub(crate) fn process_exits(task: *const u8) {
    if task.is_null() {
        return;
    }
    let pid = load::<u32>(task, Field::TaskTgid);
    let status = exit_status(task, copy(task, Field::TaskLeader));
    if status.at_ns != 0 {
        EXIT_STATUS.set(&pid, &status);
    }
    if load::<u32>(task, Field::TaskPid) != pid {
        return;
    }
    let process = process_of_leader(task);
    forget_other_credentials(process.pid, 0);
    CREDENTIALS.remove(&process.pid);
    // SAFETY: a plain helper.
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    EXITED.set(&copy(task, Field::TaskCred), &ExitedProcess { process, at_ns });
}

/// A process has read from the connection: it holds it, whichever process accepted it. Stored once, at the first read.
#[inline(always)]
pub(crate) fn socket_is_read(socket: Socket) {
    let Some(task) = Task::acting(socket) else { return };
    let Some(stored) = socket_state(socket.pointer()) else { return };
    if stored.socket == socket.pointer() as u64 && stored.owner.pid == task.pid() && stored.owner_is_guess == 0 {
        return;
    }
    stored.owner = task.process();
    stored.socket = socket.pointer() as u64;
    stored.owner_is_guess = 0;
    // Its other connections are known by its credentials; no hook reports new ones.
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
    let (Some(stored), Some(known)) = (socket_state_or_insert(socket.pointer()), NonNull::new(task.cast_mut())) else {
        return;
    };
    // Of several that hold it, the one that opened it; else the first.
    if stored.socket != socket.pointer() as u64 || (opened_by_task && stored.owner_is_guess != 0) {
        stored.owner = Task(known).process();
        stored.socket = socket.pointer() as u64;
        stored.owner_is_guess = u8::from(!opened_by_task);
    }
}

/// Writes that the reset has no owner.
#[inline(always)]
pub(crate) fn write_none(record: &mut ResetRecord) {
    record.credential = 0;
    record.owner_start_ns = 0;
    record.owner_comm = [0; COMM_LEN];
    record.actor_comm = [0; COMM_LEN];
    record.owner_pid = 0;
    record.actor_pid = 0;
    record.thread_id = 0;
    record.listener = 0;
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
pub(crate) fn write_acting(record: &mut ResetRecord, full: FullSocket, task: Task, is_owner: bool) {
    if is_owner {
        write_none(record);
        write(record, &task.process(), OwnerSource::Current);
    } else {
        write_owner(record, full);
        let actor = task.process();
        record.actor_pid = actor.pid;
        write_comm(&mut record.actor_comm, &actor.comm);
    }
    record.thread_id = task.load(Field::TaskPid);
}

/// Writes the owner of a full socket, where it is not the running task.
#[inline(always)]
pub(crate) fn write_owner(record: &mut ResetRecord, full: FullSocket) {
    write_none(record);
    let stored = full.stored;
    if stored.is_own != 0 && stored.owner.pid != 0 {
        write(record, &with_current_name(&stored.owner), OwnerSource::Storage);
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
    // Without a file it waits to be accepted, and is the listener's; with one, the process that listened may be another.
    if credential.is_null() && stored.owner.pid != 0 {
        write(record, &with_current_name(&stored.owner), OwnerSource::Listener);
        record.listener = stored.socket;
    }
}
