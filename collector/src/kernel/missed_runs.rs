//! Missed runs of programs. It does not enter a program on a processor where the same one is under
//! way (`bpf_prog_get_recursion_context`), as when that was interrupted or, since Linux 7.0, preempted. Each such run may
//! have been a reset, so they are counted. Where a companion is attached, a reset was lost only if both were missed
//! over: no more often than the one of them that was so less.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::ProgramFd;

/// Programs with their hooks' names; their counts outlive their attachment.
#[derive(Debug, Default)]
pub(crate) struct MissedRuns(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    hook: &'static str,
    /// The program and its companion.
    programs: Vec<ProgramFd>,
}

impl MissedRuns {
    /// Counts the missed runs of a hook's program and of its companion from now on.
    pub(crate) fn watch<'a>(&mut self, hook: &'static str, programs: impl Iterator<Item = &'a ProgramFd>) {
        match programs.map(ProgramFd::try_clone).collect() {
            Ok(programs) => self.0.push(Watched { hook, programs }),
            Err(error) => tracing::debug!("{hook}: missed runs are not counted: {error}"),
        }
    }

    /// Upper bound of the missed runs so far, once for each program; 0 where the kernel does not count them (before 5.12).
    pub(crate) fn read(&self) -> Vec<(&'static str, u64)> {
        let of = |program: &ProgramFd| {
            let information = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
            fs::read_to_string(information).map_or(0, |text| misses(&text))
        };
        self.0.iter().map(|watched| (watched.hook, watched.programs.iter().map(of).min().unwrap_or(0))).collect()
    }
}

/// `recursion_misses` of `bpf_prog_show_fdinfo` (kernel/bpf/syscall.c).
fn misses(information: &str) -> u64 {
    let value = information.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::misses;

    #[test]
    fn reads_the_kernels_text() {
        let text = "pos:\t0\nprog_type:\t26\nrun_cnt:\t0\nrecursion_misses:\t17\nverified_insns:\t900\n";
        assert_eq!((misses(text), misses("pos:\t0\n")), (17, 0));
    }
}
