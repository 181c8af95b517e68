//! The container of each reset through the whole program: the layouts of control groups that runtimes make, and a real
//! container of runc.

#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    container::{self, Container},
    network::{Layout, Network},
    owner::build_peer,
    record::Record,
    require_root,
};

const PORT: &str = "7000";
const SERVER: &str = "127.0.1.1";
/// Enough that the process lives while it is looked at.
const TIMES: &str = "200";
const TIMEOUT: Duration = Duration::from_secs(30);
const ID: &str = "3dcad4c4f7e0f0d0b6d1a7a6a0e0f3f57ce9ae0a23b1b3c9a9a3f2e4d5c6b7a8";
const POD: &str = "b0f1a9e6-7c1d-4a53-9a1c-1f5a0c3d2e4b";

/// A runtime, the path that it makes, and what a record must say.
struct Group {
    runtime: &'static str,
    path: String,
    container: Option<&'static str>,
    pod: Option<&'static str>,
    service: Option<&'static str>,
}

fn groups() -> Vec<Group> {
    let pod_slice = POD.replace('-', "_");
    let group = |runtime, path, pod| Group { runtime, path, container: Some(ID), pod, service: None };
    vec![
        group("docker, cgroupfs", format!("docker/{ID}"), None),
        group("docker, systemd", format!("system.slice/docker-{ID}.scope"), None),
        group("podman", format!("machine.slice/libpod-{ID}.scope/container"), None),
        group("containerd, cgroupfs", format!("kubepods/burstable/pod{POD}/{ID}"), Some(POD)),
        group(
            "containerd, systemd",
            format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_slice}.slice/cri-containerd-{ID}.scope"
            ),
            Some(POD),
        ),
        group(
            "cri-o",
            format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{pod_slice}.slice/crio-{ID}.scope"
            ),
            Some(POD),
        ),
        Group {
            runtime: "systemd",
            path: "system.slice/shop.service".into(),
            container: None,
            pod: None,
            service: Some("shop"),
        },
    ]
}

/// Directories of control groups, removed at the end, the deepest first.
struct Directories(Vec<PathBuf>);

impl Directories {
    fn make(&mut self, mount: &Path, path: &str) -> Result<PathBuf> {
        let whole = mount.join(path);
        let missing: Vec<PathBuf> =
            whole.ancestors().take_while(|above| !above.exists()).map(Path::to_path_buf).collect();
        fs::create_dir_all(&whole)?;
        self.0.extend(missing.into_iter().rev());
        Ok(whole)
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            drop(fs::remove_dir(path));
        }
    }
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn unified_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields.get(2) == Some(&"cgroup2"));
    Ok(PathBuf::from(mount.context("cgroup v2 is not mounted")?[1]))
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn each_runtimes_layout() -> Result<()> {
    require_root()?;
    let (peer, mount) = (build_peer()?, unified_mount()?);
    let network = Network::new(Layout::Loopback)?;
    let start = |command: &mut Command| -> Result<Running> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Running(network.server.enter(|| command.spawn())??))
    };
    let collector = Collector::start(&[], &[])?;
    let _server = start(Command::new(&peer).args(["answer", SERVER, PORT]))?;
    std::thread::sleep(Duration::from_millis(500));
    let mut directories = Directories(Vec::new());
    for (number, group) in groups().iter().enumerate() {
        let from = format!("127.0.5.{}", number + 1);
        let directory = directories.make(&mount, &group.path)?;
        let script = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
        let mut program = start(
            Command::new("/bin/sh")
                .args(["-c", script])
                .arg(&directory)
                .arg(&peer)
                .args(["demand", &from, SERVER, PORT, TIMES]),
        )?;
        let pid = i64::from(program.0.id());
        let status = program.0.wait()?;
        ensure!(status.success(), "{}: {status}", group.runtime);
        let records = awaited(&collector, network.server.inode, &from)?;
        for record in &records {
            ensure!(record.number("process.pid") == Some(pid), "{}: {record:?}", group.runtime);
            for (name, due) in [("container.id", group.container), ("k8s.pod.uid", group.pod)] {
                ensure!(record.text(name) == due.unwrap_or_default(), "{}: {name} in {record:?}", group.runtime);
            }
            if let Some(service) = group.service {
                ensure!(record.text("service.name") == service, "{}: {record:?}", group.runtime);
            }
        }
        println!("{:<22} {:>4} records right, {}", group.runtime, records.len(), group.path);
    }
    Ok(())
}

/// The records of an address, once all are there: each connection ends in one at its end.
fn awaited(collector: &Collector, namespace: u32, from: &str) -> Result<Vec<Record>> {
    collector.awaited_records(namespace, from, TIMES.parse()?, TIMEOUT)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_real_container() -> Result<()> {
    container::require_runc()?;
    let peer = build_peer()?;
    let network = Network::new(Layout::Loopback)?;
    let from = "127.0.6.1";
    let mut container = Container::new(&peer, &["demand", from, SERVER, PORT, TIMES])?;
    container.set_variable("OTEL_SERVICE_NAME", "inside");
    container.join("network", Some(&network.server.file()));
    let collector = Collector::start(&[], &[])?;
    let mut server = Command::new(&peer);
    server.args(["answer", SERVER, PORT]).stdin(Stdio::null()).stdout(Stdio::null());
    let _server = Running(network.server.enter(|| server.spawn())??);
    std::thread::sleep(Duration::from_millis(500));
    let output = container.command()?.output()?;
    ensure!(output.status.success(), "runc: {}", String::from_utf8_lossy(&output.stderr));
    let records = awaited(&collector, network.server.inode, from)?;
    for record in &records {
        ensure!(record.text("container.id") == container.id(), "{record:?}");
        ensure!(record.text("service.name") == "inside", "{record:?}");
        ensure!(record.text("process.executable.name") == "reset-peer", "{record:?}");
        ensure!(record.number("process.pid").is_some_and(|pid| pid > 1), "{record:?}");
    }
    println!("runc: {} records right", records.len());
    Ok(())
}
