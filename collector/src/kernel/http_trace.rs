//! The programs that read `traceparent` from HTTP requests: attached to the root of the control groups, where every segment
//! of every socket passes, with the ports of the servers.
//!
//! Attached only where ports are configured: otherwise no segment is read.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError},
};
use probes::control::Ports;

use crate::{
    kernel::{KernelError, btf::Types, explain, take},
    procfs::cgroup2_mounts,
};

/// The hook's name, for users.
pub const HOOK: &str = "cgroup_skb";
/// What is known through it.
pub const SEES: &str = "traceparent of open requests, from the wire";

const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [("http_sent", CgroupSkbAttachType::Egress), ("http_received", CgroupSkbAttachType::Ingress)];

/// The ports of the servers.
pub(super) struct HttpPorts(Array<MapData, [u64; 1024]>);

impl HttpPorts {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let map = take(programs, "HTTP_PORTS")?;
        Array::try_from(map).map(Self).map_err(|_| KernelError::Map("HTTP_PORTS"))
    }

    pub(super) fn set(&mut self, ports: &[u16]) -> Result<(), MapError> {
        let mut set = Ports::NONE;
        ports.iter().for_each(|port| set.add(*port));
        self.0.set(0, set.0, 0)
    }
}

/// Whether the kernel has what the programs need; where it lacks it, no program may even name what they keep.
pub(super) fn can_run(types: &Types) -> bool {
    types.enumerators("bpf_func_id", "BPF_FUNC_").iter().any(|(_, name)| name == "loop")
}

/// Attaches both programs; the error says why they cannot run here.
pub(super) fn attach(programs: &mut Ebpf, types: &Types, proc: &Path) -> Result<(), String> {
    if !can_run(types) {
        return Err("this kernel has no bpf_loop (Linux 5.17)".to_owned());
    }
    let path = root(proc)?;
    let root = File::open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    // Both are loaded before the first is attached: one direction alone is useless.
    for (name, _) in PROGRAMS {
        program(programs, name)?.load().map_err(|error| why_not("loaded", &error))?;
    }
    for (name, direction) in PROGRAMS {
        // A link stands beside others' programs whatever the mode says, and older kernels take no other.
        let attached = program(programs, name)?.attach(&root, direction, CgroupAttachMode::Single);
        attached.map_err(|error| why_not("attached", &error))?;
    }
    Ok(())
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSkb, String> {
    programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("the embedded object has no program {name}: rebuild it with `make probes`"))
}

fn why_not(step: &str, error: &ProgramError) -> String {
    let text = explain(HOOK, step, error);
    let refused = text.contains("not permitted") || text.contains("ermission denied");
    if refused { format!("{text}; to attach to control groups it takes CAP_NET_ADMIN too") } else { text }
}

/// The directory of the root control group (v2), by the mount tables of the host's first process and of this one.
fn root(proc: &Path) -> Result<PathBuf, String> {
    let host = proc.join("1");
    let of_host = cgroup2_mounts(&host.join("mountinfo"))
        .into_iter()
        .map(|point| host.join("root").join(point.strip_prefix("/").unwrap_or(&point)));
    let all: Vec<PathBuf> = of_host.chain(cgroup2_mounts(&proc.join("self/mountinfo"))).collect();
    // The root alone has no type (cgroup(7), Documentation/admin-guide/cgroup-v2.rst); what a container with a
    // namespace of its own sees as the root has one.
    let is_root = |path: &&PathBuf| path.join("cgroup.controllers").exists() && !path.join("cgroup.type").exists();
    if let Some(root) = all.iter().find(is_root) {
        return Ok(root.clone());
    }
    Err(if all.is_empty() {
        "cgroup v2 is not mounted here (mount -t cgroup2 none /sys/fs/cgroup)".to_owned()
    } else {
        "the root of the control groups is not to be seen from this container: share the host's processes (hostPID) or \
         mount the host's /sys/fs/cgroup into it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A procfs whose process 1 and whose own one have cgroup v2 mounted at these places.
    fn proc(name: &str, host: &[&Path], own: &[&Path]) -> PathBuf {
        let proc = std::env::temp_dir().join(format!("reset-collector-wire-{name}-{}", std::process::id()));
        for (process, mounts) in [("1", host), ("self", own)] {
            fs::create_dir_all(proc.join(process)).expect("mkdir");
            let lines = mounts.iter().map(|point| format!("35 31 0:34 / {} rw - cgroup2 c rw\n", point.display()));
            fs::write(proc.join(process).join("mountinfo"), lines.collect::<String>()).expect("write");
        }
        std::os::unix::fs::symlink("/", proc.join("1/root")).expect("symlink");
        proc
    }

    fn group(proc: &Path, name: &str, files: &[&str]) -> PathBuf {
        let path = proc.join(name);
        fs::create_dir_all(&path).expect("mkdir");
        files.iter().for_each(|file| fs::write(path.join(file), "").expect("write"));
        path
    }

    #[test]
    fn the_root_is_the_hosts_and_not_a_containers() {
        let directory = std::env::temp_dir().join(format!("reset-collector-groups-{}", std::process::id()));
        let of_container = group(&directory, "container", &["cgroup.controllers", "cgroup.type"]);
        let of_host = group(&directory, "host", &["cgroup.controllers"]);
        let seen = proc("seen", &[&of_host], &[&of_container]);
        assert!(root(&seen).expect("a root").ends_with(of_host.strip_prefix("/").expect("absolute")));
        let mounted = proc("mounted", &[&of_container], &[&of_container, &of_host]);
        assert_eq!(root(&mounted), Ok(of_host));
        let hidden = proc("hidden", &[&of_container], &[&of_container]);
        assert!(root(&hidden).expect_err("no root").contains("hostPID"));
        let none = proc("none", &[], &[]);
        assert!(root(&none).expect_err("no root").contains("not mounted"));
        for path in [directory, seen, mounted, hidden, none] {
            fs::remove_dir_all(path).expect("rm");
        }
    }
}
