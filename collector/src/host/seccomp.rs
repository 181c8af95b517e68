//! The system calls that a running collector makes; every other is refused with EPERM, in all threads.
//!
//! What it cannot do then: start a program, trace or signal another process, load programs into the kernel, mount, enter
//! namespaces, change users, open sockets of other families, load modules, use io_uring or keyrings.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// Calls with arguments of any value.
const ALLOWED: &[&[c_long]] = &[FILES, MEMORY, THREADS, SIGNALS, TIME, EVENTS, NETWORK, OLD];

const FILES: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_lseek,
    SYS_openat,
    SYS_openat2,
    SYS_close,
    SYS_close_range,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getdents64,
    SYS_getcwd,
    SYS_fcntl,
    SYS_flock,
    SYS_fsync,
    SYS_fdatasync,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_dup,
    SYS_dup3,
    SYS_pipe2,
    SYS_umask,
];
const MEMORY: &[c_long] =
    &[SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_brk, SYS_membarrier, SYS_mincore];
const THREADS: &[c_long] = &[
    SYS_futex,
    SYS_futex_waitv,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_exit,
    SYS_exit_group,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_gettid,
    SYS_getpid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrandom,
    SYS_uname,
    SYS_sysinfo,
    SYS_prlimit64,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_times,
    SYS_capget,
    SYS_restart_syscall,
    SYS_getcpu,
    SYS_clone3,
];
const SIGNALS: &[c_long] = &[
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend,
    SYS_sigaltstack,
];
const TIME: &[c_long] = &[
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
];
const EVENTS: &[c_long] =
    &[SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2];
const NETWORK: &[c_long] = &[
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_connect,
    SYS_getsockname,
    SYS_getpeername,
    SYS_setsockopt,
    SYS_getsockopt,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_recvmmsg,
    SYS_shutdown,
];

/// Older forms, that newer architectures have not.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_readlink,
    SYS_getdents,
    SYS_mkdir,
    SYS_unlink,
    SYS_rmdir,
    SYS_rename,
    SYS_dup2,
    SYS_pipe,
    SYS_poll,
    SYS_select,
    SYS_epoll_create,
    SYS_epoll_wait,
    SYS_eventfd,
    SYS_time,
    SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Families of sockets: OTLP, and the resolver, which asks for the host's addresses by netlink.
const FAMILIES: [c_int; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];
/// Commands of bpf(2) that need what is loaded already: maps, the walk through all tasks, detaching (uapi/linux/bpf.h).
/// BPF_MAP_LOOKUP_ELEM, _UPDATE_ELEM, _DELETE_ELEM, _GET_NEXT_KEY, BPF_OBJ_GET_INFO_BY_FD, BPF_MAP_LOOKUP_BATCH,
/// BPF_LINK_CREATE, BPF_ITER_CREATE, BPF_LINK_DETACH.
const BPF_COMMANDS: [c_int; 9] = [1, 2, 3, 4, 15, 24, 28, 33, 34];
/// Terminals, files, devices by name, and the detaching of programs on old kernels (uapi/linux/perf_event.h,
/// PERF_EVENT_IOC_DISABLE). Not TIOCSTI, which types into a terminal. TCGETS2 is newer C libraries' TCGETS.
#[allow(clippy::unnecessary_cast, reason = "C libraries differ in the type of these")]
const IOCTLS: [u64; 9] = [
    TCGETS as u64,
    TCGETS2,
    TIOCGWINSZ as u64,
    FIONREAD as u64,
    FIONBIO as u64,
    FIOCLEX as u64,
    SIOCGIFINDEX as u64,
    SIOCGIFNAME as u64,
    PERF_EVENT_IOC_DISABLE,
];
const TCGETS2: u64 = 0x802c_542a;
const PERF_EVENT_IOC_DISABLE: u64 = 0x2401;
/// Names of threads and of memory, and questions. PR_SET_VMA is malloc's.
const PRCTLS: [c_int; 6] = [PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, PR_SET_VMA];
const PR_SET_VMA: c_int = 0x5356_4d41;

/// Sets the filter, for good.
pub(super) fn filter() -> Result<(), String> {
    // Of two filters the stricter answer counts. The second is the one that lets no third be set.
    let all = calls().map_err(|error| error.to_string())?;
    let programs = [no_clone3()?, compile(all, SeccompAction::Errno(EPERM as u32), SeccompAction::Allow)?];
    programs.iter().try_for_each(|program| apply_filter_all_threads(program)).map_err(|error| error.to_string())
}

fn compile(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, String> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let filter = SeccompFilter::new(calls, otherwise, then, architecture).map_err(|error| error.to_string())?;
    filter.try_into().map_err(|error: BackendError| error.to_string())
}

/// An old kernel's answer to clone3, whose arguments a filter cannot see, makes the C library call clone.
fn no_clone3() -> Result<BpfProgram, String> {
    let clone3 = BTreeMap::from([(SYS_clone3, Vec::new())]);
    compile(clone3, SeccompAction::Allow, SeccompAction::Errno(ENOSYS as u32))
}

fn calls() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().flat_map(|group| group.iter()).map(|call| (*call, Vec::new())).collect();
    // Threads of this process, in its namespaces: no other processes.
    let namespaces =
        CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWUTS;
    let thread = SeccompCmpOp::MaskedEq((CLONE_THREAD | namespaces) as u32 as u64);
    calls.insert(SYS_clone, only(0, thread, [CLONE_THREAD as u64])?);
    let equal = || SeccompCmpOp::Eq;
    calls.insert(SYS_socket, only(0, equal(), FAMILIES.map(|family| family as u64))?);
    calls.insert(SYS_socketpair, only(0, equal(), [AF_UNIX as u64])?);
    calls.insert(SYS_bpf, only(0, equal(), BPF_COMMANDS.map(|command| command as u64))?);
    calls.insert(SYS_ioctl, only(1, equal(), IOCTLS)?);
    calls.insert(SYS_prctl, only(0, equal(), PRCTLS.map(|option| option as u64))?);
    // abort() and no signal to others; signal 0 asks whether a process is there.
    calls.insert(SYS_tgkill, only(0, equal(), [u64::from(std::process::id())])?);
    calls.insert(SYS_kill, only(1, equal(), [0])?);
    Ok(calls)
}

/// One argument has one of these values. All such arguments are 32 bits wide; the rest of the register is no matter.
fn only<const COUNT: usize>(
    argument: u8,
    compare: SeccompCmpOp,
    values: [u64; COUNT],
) -> Result<Vec<SeccompRule>, BackendError> {
    let condition = |value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare.clone(), value);
    values.into_iter().map(|value| SeccompRule::new(vec![condition(value)?])).collect()
}
