//! What a process costs, as `/proc` tells: processor time, memory, switches, file descriptors.

use std::time::Duration;

use anyhow::{Context, Result};

/// What is read of a process at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time of all its threads, in user mode and in the kernel.
    pub processor: Duration,
    /// `VmRSS` without the pages of eBPF maps, which the kernel holds anyway, bytes.
    pub resident_bytes: u64,
    /// Times that a thread which lives now went to sleep of its own will.
    pub voluntary_switches: u64,
    /// Threads.
    pub threads: u64,
    /// File descriptors.
    pub descriptors: u64,
}

/// Reads the usage of a process.
///
/// # Errors
/// There is no such process, or it is another's.
pub fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| path.clone())
    };
    let stat = read("stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_ascii_whitespace().collect();
    // utime and stime are fields 14 and 15 (proc_pid_stat(5)); two stand before these.
    let ticks = fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?;
    let processor = Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second());
    let kib = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let maps = read("smaps")?;
    let mut in_map = false;
    let mut map_kib = 0;
    for line in maps.lines() {
        let is_header = line.split(' ').next().is_some_and(|word| word.contains('-'));
        if is_header {
            in_map = line.contains("anon_inode:bpf-map");
        } else if in_map {
            map_kib += kib(line, "Rss:");
        }
    }
    let resident_kib = kib(&read("status")?, "VmRSS:").saturating_sub(map_kib);
    let mut usage = Usage { processor, resident_bytes: resident_kib << 10, ..Usage::default() };
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        usage.voluntary_switches += kib(&status, "voluntary_ctxt_switches:");
        usage.threads += 1;
    }
    usage.descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_itself() -> Result<()> {
        let usage = usage(std::process::id())?;
        assert!(usage.resident_bytes > 100 << 10, "{usage:?}");
        assert!(usage.threads >= 2 && usage.descriptors >= 3 && usage.voluntary_switches > 0, "{usage:?}");
        Ok(())
    }
}
