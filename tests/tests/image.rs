//! The program as the image has it: alone in a root that nothing may be written to, with four capabilities. As node agent,
//! as sidecar, and without each thing that it needs in turn.

#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::{Collector, program},
    container::{self, Container},
    network::{Layout, Network},
    owner::build_peer,
    poll::eventually,
    record::Record,
};
use serde_json::json;
use tempfile::TempDir;

const NEEDED: [&str; 4] = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"];
const TIMEOUT: Duration = Duration::from_secs(30);
const SERVER: &str = "127.0.1.1";
const CLIENT: &str = "127.0.6.1";
const PORT: &str = "7000";
const TIMES: usize = 20;
/// Where a configuration is mounted.
const DIRECTORY: &str = "/etc/reset-collector";

/// The program under test in a container that has what it needs, and the host's pids.
fn node_agent(arguments: &[&str]) -> Result<Container> {
    let mut container = Container::new(&program()?, arguments)?;
    container.set_capabilities(&NEEDED);
    container.join("pid", None);
    Ok(container)
}

/// The workload: clients that another user runs, so that looking at them takes the capabilities.
fn workload(peer: &Path) -> Result<Container> {
    // It lives until it has been looked at, however busy the machine is; the test ends it.
    let seconds = (2 * TIMEOUT.as_secs()).to_string();
    let mut container = Container::new(peer, &["demand", CLIENT, SERVER, PORT, &TIMES.to_string(), &seconds])?;
    container.set_variable("OTEL_SERVICE_NAME", "inside");
    container.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    Ok(container)
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(command: &mut Command) -> Result<Running> {
    Ok(Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// Runs the workload and returns the records of its end of the connections.
fn records_of_workload(collector: &Collector, network: &Network, workload: &Container) -> Result<Vec<Record>> {
    let _running = start(&mut workload.command()?)?;
    collector.awaited_records(network.server.inode, CLIENT, TIMES, TIMEOUT)
}

/// A directory with a configuration file.
fn with_configuration(text: &str) -> Result<TempDir> {
    let directory = TempDir::new()?;
    fs::write(directory.path().join("f.yaml"), text)?;
    Ok(directory)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn as_node_agent_it_knows_every_pods_owners_and_sends_to_a_name() -> Result<()> {
    container::require_runc()?;
    let (peer, network, backend) = (build_peer()?, Network::new(Layout::Loopback)?, Backend::start()?);
    let configuration =
        format!("export: {{ console: json, otlp: {{ endpoint: \"http://localhost:{}\" }} }}", backend.grpc.port());
    let directory = with_configuration(&configuration)?;
    let mut agent = node_agent(&["run", "--config", &format!("{DIRECTORY}/f.yaml")])?;
    // With the host's network here, so that the backend's port is there. Names are looked up as in every container: by
    // files that the runtime mounts.
    agent.join("network", None);
    agent.mount(directory.path(), DIRECTORY);
    agent.mount(Path::new("/etc/hosts"), "/etc/hosts");
    let collector = Collector::start_as(agent.command()?, |_| true)?;
    ensure!(!collector.said().contains("records lack"), "something is missing: {}", collector.said());

    let _server = start(network.server.command_of(&peer).args(["answer", SERVER, PORT]))?;
    std::thread::sleep(Duration::from_millis(500));
    let mut workload = workload(&peer)?;
    workload.join("network", Some(&network.server.file()));
    for record in records_of_workload(&collector, &network, &workload)? {
        ensure!(record.text("service.name") == "inside", "{record:?}");
        ensure!(record.text("container.id") == workload.id(), "{record:?}");
        ensure!(record.text("process.executable.name") == "reset-peer", "{record:?}");
    }
    let look = || -> Result<usize> {
        let logs = backend.logs()?;
        Ok(logs.iter().filter(|log| log.resource.get("service.name").is_some_and(|name| name == "inside")).count())
    };
    let arrived = eventually(TIMEOUT, "records of the workload at the backend", look, |arrived| *arrived >= TIMES)?;
    ensure!(arrived >= TIMES, "{arrived} of {TIMES} arrived: {}", collector.said());
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn as_sidecar_it_knows_the_owners_of_its_pod() -> Result<()> {
    container::require_runc()?;
    let (peer, network) = (build_peer()?, Network::new(Layout::Loopback)?);
    // The first container of the pod: its namespaces are the pod's, as with `shareProcessNamespace`.
    let mut server = Container::new(&peer, &["answer", SERVER, PORT])?;
    server.join("network", Some(&network.server.file()));
    let _server = start(&mut server.command()?)?;
    let deadline = Instant::now() + TIMEOUT;
    while server.pid().is_err() {
        ensure!(Instant::now() < deadline, "the first container of the pod does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pids = PathBuf::from(format!("/proc/{}/ns/pid", server.pid()?));

    let mut sidecar = node_agent(&["run"])?;
    sidecar.join("network", Some(&network.server.file()));
    sidecar.join("pid", Some(&pids));
    let collector = Collector::start_as(sidecar.command()?, |_| true)?;
    ensure!(collector.said().contains("hostPID: true"), "it does not say what it cannot know: {}", collector.said());
    let mut workload = workload(&peer)?;
    workload.join("network", Some(&network.server.file()));
    workload.join("pid", Some(&pids));
    for record in records_of_workload(&collector, &network, &workload)? {
        ensure!(record.text("service.name") == "inside", "{record:?}");
        ensure!(record.text("process.executable.name") == "reset-peer", "{record:?}");
    }
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "{status}: {said}");
    Ok(())
}

/// What is taken from the container.
struct Lack {
    what: &'static str,
    take: fn(&mut Container),
    configuration: &'static str,
    /// The exit code if the program does not start: 2 for a configuration that it refuses.
    exit: Option<i32>,
    /// What the message must have: what is missing, and how it is given by Docker and by Kubernetes.
    says: &'static [&'static str],
}

fn without(container: &mut Container, capability: &str) {
    let rest: Vec<&str> = NEEDED.into_iter().filter(|needed| *needed != capability).collect();
    container.set_capabilities(&rest);
}

const LACKS: [Lack; 9] = [
    Lack {
        what: "CAP_BPF",
        take: |container| without(container, "CAP_BPF"),
        configuration: "",
        exit: Some(1),
        says: &["CAP_BPF", "--cap-add BPF", "add: [BPF]"],
    },
    Lack {
        what: "CAP_PERFMON",
        take: |container| without(container, "CAP_PERFMON"),
        configuration: "",
        exit: Some(1),
        says: &["CAP_PERFMON", "--cap-add PERFMON", "add: [PERFMON]"],
    },
    Lack {
        what: "CAP_SYS_PTRACE",
        take: |container| without(container, "CAP_SYS_PTRACE"),
        configuration: "",
        exit: None,
        says: &["less is known of the owners", "CAP_SYS_PTRACE", "--cap-add SYS_PTRACE", "add: [SYS_PTRACE]"],
    },
    Lack {
        what: "CAP_DAC_READ_SEARCH",
        take: |container| without(container, "CAP_DAC_READ_SEARCH"),
        configuration: "",
        exit: None,
        says: &["less is known of the owners", "--cap-add DAC_READ_SEARCH", "add: [DAC_READ_SEARCH]"],
    },
    Lack {
        what: "the host's pids",
        take: |container| {
            container.join("pid", None);
            let namespaces = container.config["linux"]["namespaces"].as_array_mut();
            namespaces.into_iter().for_each(|namespaces| namespaces.push(json!({ "type": "pid" })));
        },
        configuration: "",
        exit: None,
        says: &["less is known of the owners", "--pid host", "hostPID: true"],
    },
    Lack {
        what: "/sys",
        take: |container| container.unmount("/sys"),
        configuration: "",
        exit: Some(1),
        says: &["/sys/kernel/btf/vmlinux", "in a container mount the host's, read-only, at /sys"],
    },
    Lack {
        what: "bpf(2), by seccomp",
        take: |container| {
            container.config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            });
        },
        configuration: "",
        exit: Some(1),
        says: &["seccomp filter", "--security-opt seccomp", "seccompProfile: { type: RuntimeDefault }"],
    },
    Lack {
        what: "a directory for the queue",
        take: |_| (),
        configuration: "export: { otlp: { endpoint: \"http://127.0.0.1:1\", sending_queue: { storage: { directory: /var/lib/queue } } } }",
        exit: Some(1),
        says: &["sending_queue.storage /var/lib/queue", "in a container mount a volume there"],
    },
    Lack {
        what: "certificate authorities",
        take: |_| (),
        configuration: "export: { otlp: { endpoint: \"https://127.0.0.1:1\" } }",
        exit: Some(2),
        says: &["no certificate authorities", "tls.ca_file"],
    },
];

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn without_each_thing_that_it_needs_it_says_which_and_how_to_give_it() -> Result<()> {
    container::require_runc()?;
    for lack in &LACKS {
        let directory = with_configuration(lack.configuration)?;
        let file = format!("{DIRECTORY}/f.yaml");
        let arguments: &[&str] =
            if lack.configuration.is_empty() { &["run"] } else { &["run", "--config", file.as_str()] };
        let mut container = node_agent(arguments)?;
        container.mount(directory.path(), DIRECTORY);
        (lack.take)(&mut container);
        let said = if lack.exit.is_none() {
            let (status, said) = Collector::start_as(container.command()?, |_| true)?.stop()?;
            ensure!(status.success(), "without {}: {status}: {said}", lack.what);
            said
        } else {
            let output = container.command()?.output()?;
            let said = String::from_utf8(output.stderr)?;
            ensure!(output.status.code() == lack.exit, "without {}: {}: {said}", lack.what, output.status);
            said
        };
        for word in lack.says {
            ensure!(said.contains(word), "without {}, no {word:?} in: {said}", lack.what);
        }
        println!("without {}: {}", lack.what, said.lines().next().unwrap_or_default());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_configuration_that_is_not_mounted_is_named() -> Result<()> {
    container::require_runc()?;
    let output = node_agent(&["run", "--config", "/etc/reset-collector/reset-collector.yaml"])?.command()?.output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    ensure!(said.contains("/etc/reset-collector/reset-collector.yaml") && said.contains("must be mounted"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn health_answers_for_the_image() -> Result<()> {
    container::require_runc()?;
    let network = Network::new(Layout::Loopback)?;
    let directory = with_configuration("admin: { endpoint: \"127.0.0.1:9464\" }")?;
    let mut container = node_agent(&["run", "--config", &format!("{DIRECTORY}/f.yaml")])?;
    container.join("network", Some(&network.client.file()));
    container.mount(directory.path(), DIRECTORY);
    // What HEALTHCHECK runs: the same program, in the same network.
    let health = || -> Result<bool> {
        let status = network.client.command_of(&program()?).arg("health").stdout(Stdio::null()).status();
        Ok(status.context("health")?.success())
    };
    ensure!(!health()?, "well, though nothing runs");
    let collector = Collector::start_as(container.command()?, |_| true)?;
    ensure!(health()?, "not well: {}", collector.said());
    Ok(())
}
