//! One process as `/proc` shows it: bounded reads of what it may have made hostile, and never of another process that has
//! got its pid.
//!
//! Every read goes through a handle on the process's own directory. The kernel binds that handle to the process and not to
//! the number (`fs/proc/base.c`, `proc_pid_make_inode`): once the process is gone each read fails, also when its pid is in
//! use again. So the start time is compared once. The reads may hang ([`crate::enrich::reader_thread`]).

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Dir, Mode, OFlags, openat, readlinkat},
    io::Errno,
};

use crate::text::sanitize;
use crate::{
    enrich::{
        ResourceValue,
        container::Placement,
        environ::Environment,
        otel_context::{self, ContextError},
        program,
    },
    model::resource::Program,
    procfs::{Stat, namespace_pids},
};

/// Longest name of an executable, bytes; file names end at 255 (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest path, bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Bytes read of the small files: `stat`, `status`.
const MAX_SMALL: u64 = 16 << 10;
/// Bytes read of `cgroup`: a dozen hierarchies of long paths.
const MAX_CGROUP: u64 = 128 << 10;
/// Bytes of the command line that are read, and arguments that are kept.
const MAX_COMMAND_LINE: u64 = 8 << 10;
const MAX_ARGUMENTS: usize = 64;
/// Threads looked at for one that lives.
const MAX_THREADS: usize = 256;
/// Processes looked at when the pid is foreign: a pod's.
const MAX_PROCESSES: usize = 4_096;

/// Which process, and what is wanted of it.
#[derive(Clone, Debug)]
pub struct ReadScope {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// The process, by the number that this procfs knows it by.
    pub pid: u32,
    /// Its start in clock ticks since boot, as `stat` shows it.
    pub start_ticks: u64,
}

/// A process's directory in procfs, for the reads that may hang.
pub type Handle = Arc<OwnedFd>;

/// What can be read of a process without waiting for its memory, and then what its memory holds. What could not be read is
/// left out and counted in `faults`.
#[derive(Debug, Default)]
pub struct Process {
    /// For [`read_memory`] and [`read_context`]; `None` where the process has no memory any more.
    pub handle: Option<Handle>,
    /// A read of its memory hung and was left behind.
    pub timed_out: bool,
    /// Name of its main thread, as it is.
    pub comm: Vec<u8>,
    /// Path of its executable in its own mount namespace.
    pub executable_path: Option<String>,
    /// Its pid in the innermost pid namespace that it is in.
    pub inner_pid: Option<u32>,
    /// Its arguments, where wanted.
    pub command_args: Vec<String>,
    /// The name that people know its program by.
    pub program: Option<Program>,
    /// What its control groups say.
    pub placement: Placement,
    /// What its environment says.
    pub environment: Environment,
    /// The resource that it publishes.
    pub context: Option<Vec<(String, ResourceValue)>>,
    /// Its memory has gone: it has ended, or is a kernel thread. Nothing more can be learnt of it.
    pub dead: bool,
    /// What went wrong on the way.
    pub faults: Faults,
}

/// Reads of a process that failed, by how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Not permitted: a capability is missing, or procfs hides it.
    pub denied: u64,
    /// Failed otherwise.
    pub failed: u64,
    /// The published context was not taken.
    pub context_refused: u64,
}

/// Why nothing can be said of a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is gone.
    #[error("the process is gone")]
    Gone,
    /// Another process has its pid.
    #[error("another process has its pid")]
    Reused,
    /// We may not look.
    #[error("not permitted to read it: give the collector CAP_SYS_PTRACE, and a procfs mounted without hidepid")]
    Denied,
    /// Reading failed otherwise.
    #[error("reading procfs failed: {0}")]
    Read(#[source] io::Error),
}

impl From<Errno> for ProcessError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::SRCH => Self::Gone,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            other => Self::Read(other.into()),
        }
    }
}

/// Reads a process, or says why it cannot be.
pub fn read(wanted: &ReadScope) -> Result<Process, ProcessError> {
    let directory = open_directory(rustix::fs::CWD, &wanted.proc.join(wanted.pid.to_string())).map_err(|errno| {
        // hidepid=2 hides a process as if it were gone; a signal's permission check still knows better.
        let exists = rustix::process::Pid::from_raw(wanted.pid.cast_signed())
            .is_some_and(|pid| matches!(rustix::process::test_kill_process(pid), Ok(()) | Err(Errno::PERM)));
        if errno == Errno::NOENT && exists { ProcessError::Denied } else { errno.into() }
    })?;
    let stat = read_stat(directory.as_fd())?;
    if stat.start_ticks.abs_diff(wanted.start_ticks) > 1 {
        return Err(ProcessError::Reused);
    }
    let living = if stat.dead { living_thread(directory.as_fd()) } else { None };
    let directory = living.unwrap_or(directory);
    let mut process = Process { comm: stat.comm, ..Process::default() };
    process.fill(directory.as_fd());
    process.handle = (!process.dead).then(|| Arc::new(directory));
    Ok(process)
}

/// The pid of the one process that started at this tick under this name, where there is only one: for a procfs whose
/// numbers are not the kernel's own, as in a container with a pid namespace.
pub fn find(proc: &Path, start_ticks: u64, comm: &[u8]) -> Option<u32> {
    let root = open_directory(rustix::fs::CWD, proc).ok()?;
    let mut found = None;
    for entry in Dir::read_from(&root).ok()?.take(MAX_PROCESSES).flatten() {
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) else { continue };
        let Ok(directory) = open_directory(&root, Path::new(OsStr::from_bytes(entry.file_name().to_bytes()))) else {
            continue;
        };
        let Ok(stat) = read_stat(directory.as_fd()) else { continue };
        if stat.start_ticks.abs_diff(start_ticks) <= 1 && stat.comm == comm && found.replace(pid).is_some() {
            return None;
        }
    }
    found
}

impl Process {
    fn fill(&mut self, directory: BorrowedFd<'_>) {
        let executable = executable(directory);
        self.dead = executable.as_ref().is_err_and(is_gone);
        self.executable_path = self.faults.note(executable).flatten();
        let status = self.faults.note(read_file(directory, "status", MAX_SMALL));
        self.inner_pid = status.and_then(|text| namespace_pids(&text).last());
        let cgroup = self.faults.note(read_file(directory, "cgroup", MAX_CGROUP));
        self.placement = cgroup.map(|text| Placement::from_cgroup_file(&text)).unwrap_or_default();
    }

    /// Takes in what its memory holds; `None` where the read hung.
    pub fn add_memory(&mut self, memory: Option<Memory>) {
        let Some(Memory { environment, arguments, keep_arguments, faults }) = memory else {
            self.timed_out = true;
            return;
        };
        self.environment = environment;
        let program = program::name(&arguments, self.executable_path.as_deref());
        self.program = program.map(|name| Program { name, comm: self.comm.clone() });
        if keep_arguments {
            self.command_args = arguments;
        }
        self.faults.add(faults);
    }

    /// Takes in the context that it publishes; `None` where the read hung.
    pub fn add_context(&mut self, context: Option<PublishedContext>) {
        let Some(PublishedContext { attributes, faults }) = context else {
            self.timed_out = true;
            return;
        };
        self.context = attributes;
        self.faults.add(faults);
    }
}

/// What is read of a process's memory through procfs. The kernel reads anonymous pages only for these files; another
/// thread can still hold the map's lock for long.
#[derive(Debug, Default)]
pub struct Memory {
    environment: Environment,
    arguments: Vec<String>,
    /// They are exported, and not only give the program's name.
    keep_arguments: bool,
    faults: Faults,
}

/// Reads the environment and the arguments of a process.
pub fn read_memory(handle: &Handle, keep_arguments: bool) -> Memory {
    let (directory, mut memory) = (handle.as_fd(), Memory { keep_arguments, ..Memory::default() });
    let environment = open_file(directory, "environ").and_then(Environment::read);
    memory.environment = memory.faults.note(environment).unwrap_or_default();
    let text = memory.faults.note(read_file(directory, "cmdline", MAX_COMMAND_LINE));
    memory.arguments = text.map(|text| arguments(&text)).unwrap_or_default();
    memory
}

/// The context that a process publishes.
#[derive(Debug, Default)]
pub struct PublishedContext {
    attributes: Option<Vec<(String, ResourceValue)>>,
    faults: Faults,
}

/// Reads the context that a process publishes.
pub fn read_context(handle: &Handle) -> PublishedContext {
    let (directory, mut context) = (handle.as_fd(), PublishedContext::default());
    if let Some(memory) = context.faults.note(open_file(directory, "mem")) {
        match otel_context::read(|| open_file(directory, "maps"), &memory) {
            Ok(attributes) => context.attributes = attributes,
            Err(ContextError::Read(error)) if is_gone(&error) => {}
            Err(ContextError::Read(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                context.faults.denied += 1;
            }
            Err(_) => context.faults.context_refused += 1,
        }
    }
    context
}

impl Faults {
    fn add(&mut self, other: Self) {
        self.denied += other.denied;
        self.failed += other.failed;
        self.context_refused += other.context_refused;
    }

    /// The result's value; a failure is counted, except that the process is gone, which is nobody's fault.
    fn note<T>(&mut self, result: io::Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::PermissionDenied => self.denied += 1,
            _ if is_gone(&error) => {}
            _ => self.failed += 1,
        }
        None
    }
}

/// Whether a read failed because there is no process, or no memory of it, any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

fn read_stat(directory: BorrowedFd<'_>) -> Result<Stat, ProcessError> {
    let text = read_file(directory, "stat", MAX_SMALL).map_err(|error| match Errno::from_io_error(&error) {
        Some(errno) => errno.into(),
        None => ProcessError::Read(error),
    })?;
    Stat::parse(&text).ok_or_else(|| ProcessError::Read(io::Error::other("stat is not as proc_pid_stat(5) says")))
}

/// A thread that lives on after the main thread has ended: only through it can memory and executable still be read.
fn living_thread(directory: BorrowedFd<'_>) -> Option<OwnedFd> {
    let threads = open_directory(directory, Path::new("task")).ok()?;
    Dir::read_from(&threads).ok()?.take(MAX_THREADS).flatten().find_map(|entry| {
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        let thread = open_directory(&threads, name).ok()?;
        read_stat(thread.as_fd()).is_ok_and(|stat| !stat.dead).then_some(thread)
    })
}

/// The target of `exe`; kernel threads and the dead have none.
fn executable(directory: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let target = readlinkat(directory, "exe", Vec::new())?;
    let target = target.to_bytes();
    let path = target.strip_suffix(b" (deleted)").unwrap_or(target);
    Ok((!path.is_empty()).then(|| sanitize(path, MAX_PATH)))
}

fn arguments(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).take(MAX_ARGUMENTS).map(|argument| sanitize(argument, MAX_PATH)).collect()
}

fn open_directory(parent: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    openat(parent, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_file(directory: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    Ok(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

fn read_file(directory: BorrowedFd<'_>, name: &str, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open_file(directory, name)?.take(max_bytes).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        assert_eq!(arguments(b"python3\0-c\0\0a\nb\0"), ["python3", "-c", "", "a\\nb"]);
        assert_eq!(arguments(b""), [""; 0]);
        assert_eq!(arguments(&b"x\0".repeat(5000)).len(), MAX_ARGUMENTS);
    }
}
