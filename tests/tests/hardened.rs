//! A hardened collector: it has given up what it does not need, and does everything all the same.

#![forbid(unsafe_code)]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::{Backend, Log},
    collector::Collector,
    flood,
    metrics::Metrics,
    network::{Layout, Network},
    poll::eventually,
    require_root,
};
use rustix::process::{Pid, Signal, kill_process};

const TIMEOUT: Duration = Duration::from_secs(20);
/// nobody, by its number.
const OTHER_USER: u32 = 65_534;
const CLOSED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3);
/// Its end aborts a connection and stays, so that there is an owner to be asked.
const ABORTS: &str = "
import socket, struct, time
there = socket.create_server(('127.0.0.1', 0))
end = socket.create_connection(there.getsockname())
end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
end.close()
time.sleep(30)
";

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn it_gives_up_what_it_does_not_need_and_does_everything() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    network.client.enter(|| hardened(&network))?
}

fn hardened(network: &Network) -> Result<()> {
    let backend = Backend::start()?;
    let directory = tempfile::tempdir()?;
    let storage = directory.path().join("storage");
    let configuration = |filters: &str| {
        format!(
            "hardening: required\nadmin: {{ endpoint: \"127.0.0.1:0\" }}\nfilters: [{filters}]\n\
             export: {{ signals: [logs], console: json, otlp: {{ endpoint: \"http://{}\", \
             sending_queue: {{ storage: {{ directory: \"{}\" }} }} }} }}\n",
            backend.grpc,
            storage.display()
        )
    };
    let file = versioned(directory.path(), "first", &configuration(""))?;
    let collector = Collector::start(&["--config", &file.to_string_lossy()], &[])?;
    let admin = collector.admin()?;
    check_threads(collector.pid())?;
    let metrics = Metrics::read(admin)?;
    ensure!(metrics.sum("reset_collector_hardening_active", &[]) == 3, "not all steps: {}", collector.said());

    // A process of another user: read through /proc, exported through the storage.
    let mut stranger = Stranger(
        Command::new("python3").args(["-c", ABORTS]).env("OTEL_SERVICE_NAME", "checkout").uid(OTHER_USER).spawn()?,
    );
    let pid = u64::from(stranger.0.id());
    let is_its = |log: &Log| {
        log.resource.get("process.pid").and_then(serde_json::Value::as_u64) == Some(pid)
            && log.attributes["tcp.reset.cause"] == "linger_zero"
    };
    let log =
        awaited(|| Ok(backend.logs()?.into_iter().find(is_its))).context("the reset of another user's process")?;
    let of_log = |name: &str| log.resource.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    ensure!(of_log("service.name") == "checkout", "its environment was not read: {:?}", log.resource);
    ensure!(of_log("process.executable.path").contains("python"), "its program is not known: {:?}", log.resource);
    stranger.0.kill()?;
    ensure!(fs::read_dir(&storage)?.count() > 0, "nothing was stored");

    // Other rules, by a file that a link is turned to, as Kubernetes does: the kernel takes them.
    versioned(directory.path(), "second", &configuration("{ drop: { network.local.port: 3 } }"))?;
    kill_process(Pid::from_raw(i32::try_from(collector.pid())?).context("pid 0")?, Signal::HUP)?;
    awaited(|| Ok(collector.said().contains("new configuration applied").then_some(())))?;
    let filtered = || -> Result<u64> { Ok(Metrics::read(admin)?.sum("reset_collector_filtered_resets_total", &[])) };
    let before = filtered()?;
    awaited(|| {
        flood::refused(CLOSED.into(), 1, 1);
        Ok((filtered()? > before).then_some(()))
    })
    .context("the new rules")?;
    Metrics::read(admin)?.check_accounting()?;
    ensure!(network.client.tcp_counter("OutRsts")? > 0, "nothing was sent here");
    check_threads(collector.pid())?;
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    Ok(())
}

struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `directory/file` through a link that is turned to a new version at one instant.
fn versioned(directory: &Path, version: &str, text: &str) -> Result<std::path::PathBuf> {
    let file = directory.join("file.yaml");
    fs::create_dir_all(directory.join(version))?;
    fs::write(directory.join(version).join("file.yaml"), text)?;
    symlink(version, directory.join("next"))?;
    fs::rename(directory.join("next"), directory.join("current"))?;
    if !file.is_symlink() {
        symlink("current/file.yaml", &file)?;
    }
    Ok(file)
}

/// Every thread has what it needs and no more.
fn check_threads(pid: u32) -> Result<()> {
    /// CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE; before Linux 5.19 also CAP_PERFMON and CAP_BPF.
    const MAX: u64 = 1 << 2 | 1 << 19 | 1 << 38 | 1 << 39;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name}"))
        };
        for set in ["CapEff:", "CapPrm:", "CapInh:"] {
            let held = u64::from_str_radix(value(set)?, 16)?;
            ensure!(held & !MAX == 0, "{set} {held:x} of {}", value("Name:")?);
        }
        ensure!(value("NoNewPrivs:")? == "1" && value("Seccomp:")? == "2", "{status}");
    }
    Ok(())
}

fn awaited<T: std::fmt::Debug>(look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    eventually(TIMEOUT, "a value", look, Option::is_some)?.context("nothing")
}
