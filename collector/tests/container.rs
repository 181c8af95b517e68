//! Enrichment of processes that stand apart: in a real container, behind a procfs that hides them, in a pid namespace,
//! and one that makes its reader hang.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

mod reset_of;
mod skip;

use reset_collector::{
    config::settings,
    enrich::{Enricher, process},
    model::resource::ResourceValue,
};
use reset_of::{owner, owner_in, reset};
use skip::skip;

const CONTAINER_ID: &str = "3dcad4c4f7e0f0d0b6d1a7a6a0e0f3f57ce9ae0a23b1b3c9a9a3f2e4d5c6b7a8";
const POD_UID: &str = "b0f1a9e6-7c1d-4a53-9a1c-1f5a0c3d2e4b";

/// Whether all these programs are installed; reports the one that is not.
fn has(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        skip(&format!("{program} is not installed"));
    }
    missing.is_none()
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    line.trim().to_owned()
}

fn enricher(proc: &Path) -> Enricher {
    Enricher::new(&settings::Enrichment::default(), proc.to_owned(), None, Instant::now())
}

fn text(resource: &reset_collector::model::resource::Resource, name: &str) -> String {
    match resource.get(name) {
        Some(ResourceValue::Text(text)) => text.clone(),
        other => panic!("{name} is {other:?}"),
    }
}

fn counter(enricher: &Enricher, name: &str) -> u64 {
    enricher.counters().each().find(|(known, _, _)| *known == name).expect("a counter").2
}

/// A container's runtime and how it is called: on the host's own hierarchies, and in a mount namespace with cgroup v2
/// alone (crun refuses a host with v1 and v2 side by side).
struct Runtime {
    name: &'static str,
    prelude: &'static str,
}

const V2_ALONE: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup &&";
const RUNTIMES: [Runtime; 3] = [
    Runtime { name: "crun", prelude: V2_ALONE },
    Runtime { name: "runc", prelude: V2_ALONE },
    Runtime { name: "runc", prelude: "" },
];

impl Runtime {
    fn command(&self, directory: &Path, arguments: &str) -> Command {
        let script = format!("{} exec {} --root state {arguments}", self.prelude, self.name);
        let mut command = Command::new("unshare");
        command.args(["-m", "/bin/sh", "-c", &script]).current_dir(directory);
        command
    }
}

/// Stops and removes the container however the test ends.
struct Container<'a> {
    runtime: &'a Runtime,
    directory: &'a Path,
    run: Running,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.runtime.command(self.directory, &format!("delete --force {CONTAINER_ID}")).output().ok();
        self.run.0.wait().ok();
        // The runtime removes the container's own group and leaves those above it.
        let below = container_cgroup();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            for group in Path::new(&below).ancestors().take(5) {
                fs::remove_dir(hierarchy.join(group)).ok();
            }
        }
    }
}

/// The container's control group, relative to a hierarchy.
fn container_cgroup() -> String {
    format!("kubepods-reset-collector-container/burstable/pod{POD_UID}/{CONTAINER_ID}")
}

/// A root file system of busybox, and a configuration whose shell starts another that says its pid and becomes `sleep`:
/// so that the pid inside is not the usual 1.
fn make_bundle(bundle: &Path, runtime: &Runtime) {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin).expect("mkdir");
    fs::copy("/usr/bin/busybox", bin.join("busybox")).expect("busybox");
    assert!(Command::new(runtime.name).arg("spec").current_dir(bundle).status().expect("the runtime").success());
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
    let shell = "/bin/busybox sh -c 'echo $$; exec /bin/busybox sleep 1000'; true";
    config["process"]["args"] = serde_json::json!(["/bin/busybox", "sh", "-c", shell]);
    config["process"]["terminal"] = false.into();
    config["process"]["env"] = serde_json::json!(["PATH=/bin", "OTEL_SERVICE_NAME=inside"]);
    config["linux"]["cgroupsPath"] = format!("/{}", container_cgroup()).into();
    fs::write(&path, config.to_string()).expect("write");
}

/// The pid of the container's `sleep` on the host.
fn sleeping_pid(container: &Container<'_>) -> u32 {
    let start = Instant::now();
    loop {
        let output =
            container.runtime.command(container.directory, &format!("ps --format json {CONTAINER_ID}")).output();
        let pids: Vec<u32> = serde_json::from_slice(&output.expect("ps").stdout).expect("a list of pids");
        let is_sleep = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"/bin/busybox\0sleep\x001000\0")
        };
        if let Some(pid) = pids.iter().copied().find(is_sleep) {
            return pid;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no sleep among {pids:?}");
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_process_in_a_real_container() {
    let (mut ran, mut refusals) = (0, Vec::new());
    for runtime in &RUNTIMES {
        if !has(&["unshare", "busybox", runtime.name]) {
            continue;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        make_bundle(directory.path(), runtime);
        let mut run = runtime.command(directory.path(), &format!("run {CONTAINER_ID}"));
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let running = Running(run.spawn().expect("unshare"));
        let mut container = Container { runtime, directory: directory.path(), run: running };
        let inner = first_line(&mut container.run.0);
        let Ok(inner) = inner.parse::<u32>() else {
            let mut error = inner;
            container.run.0.stderr.take().expect("piped").read_to_string(&mut error).ok();
            // crun raises RLIMIT_MEMLOCK, which takes CAP_SYS_RESOURCE, and refuses a host without it.
            eprintln!("not run: {} cannot make a container here: {}", runtime.name, error.trim());
            refusals.push(format!("{}: {}", runtime.name, error.trim()));
            continue;
        };
        ran += 1;
        let outer = sleeping_pid(&container);

        let mut enricher = enricher(Path::new("/proc"));
        let mut reset = reset(Some(owner(outer)), None);
        enricher.enrich(&mut reset, Instant::now());
        let resource = &reset.resource;
        assert_eq!(resource.get("process.pid"), Some(&ResourceValue::Integer(outer.into())));
        assert_eq!(resource.inner_pid, Some(inner));
        assert_ne!(inner, outer);
        assert_eq!(text(resource, "container.id"), CONTAINER_ID);
        assert_eq!(text(resource, "k8s.pod.uid"), POD_UID);
        assert_eq!(text(resource, "process.executable.path"), "/bin/busybox");
        assert_eq!(text(resource, "service.name"), "inside");
        eprintln!("{}: pid {outer} outside, {inner} inside", runtime.name);
    }
    if ran == 0 {
        skip(&format!("no runtime makes a container here: {}", refusals.join("; ")));
    }
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_procfs_that_hides_processes_is_counted_and_the_record_names_them() {
    if !has(&["unshare", "setpriv"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let proc = directory.path().join("proc");
    fs::create_dir(&proc).expect("mkdir");
    // Where nobody may run it.
    let program = directory.path().join("test");
    fs::copy(std::env::current_exe().expect("this test"), &program).expect("copy");
    let hidden =
        Running(Command::new("/bin/sleep").arg("1000").env("OTEL_SERVICE_NAME", "hidden").spawn().expect("sleep"));
    for hidepid in ["1", "2"] {
        let script = "mount -t proc -o hidepid=$HIDE proc \"$P\" && exec setpriv --reuid=65534 --regid=65534 --clear-groups \
            --inh-caps=-all --bounding-set=-all \"$T\" --exact read_by_nobody --nocapture --ignored";
        let output = Command::new("unshare")
            .args(["-m", "/bin/sh", "-c", script])
            .envs([("P", &proc), ("T", &program)])
            .envs([("HIDE", hidepid), ("HIDDEN", &hidden.0.id().to_string())])
            .output()
            .expect("unshare");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if said.contains("mount: ") {
            skip(&format!("no procfs can be mounted here: {said}"));
            return;
        }
        assert!(output.status.success() && said.contains("read by nobody"), "hidepid={hidepid}: {said}");
    }
}

/// The other half of the test above, run by it without any privilege.
#[test]
#[ignore = "run by a_procfs_that_hides_processes_is_counted_and_the_record_names_them"]
fn read_by_nobody() {
    let variable = |name: &str| std::env::var(name).expect("set by the test above");
    let pid: u32 = variable("HIDDEN").parse().expect("a pid");
    assert!(!rustix::process::geteuid().is_root());
    let mut enricher = enricher(Path::new(&variable("P")));
    let mut reset = reset(Some(owner_in(Path::new("/proc"), pid)), None);
    enricher.enrich(&mut reset, Instant::now());
    assert_eq!(reset.resource.get("process.pid"), Some(&ResourceValue::Integer(pid.into())));
    assert_eq!(text(&reset.resource, "service.name"), "unknown_service:sleep");
    assert!(counter(&enricher, "denied") >= 1 && counter(&enricher, "gone") == 0, "{:?}", enricher.counters());
    eprintln!("read by nobody");
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_process_is_found_by_its_start_where_pids_are_foreign() {
    let name = format!("find-{}", std::process::id());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join(&name);
    fs::copy("/bin/sleep", &program).expect("copy");
    let running = Running(Command::new(&program).arg("1000").spawn().expect("sleep"));
    let owner = owner(running.0.id());
    let ticks = owner.start_boot_ns / 10_000_000;
    let proc = Path::new("/proc");
    assert_eq!(process::find(proc, ticks, name.as_bytes()), Some(running.0.id()));
    assert_eq!(process::find(proc, ticks, b"another"), None);
    assert_eq!(process::find(proc, ticks + 100, name.as_bytes()), None);
    // Two that cannot be told apart are neither: those of one tick, which a busy machine may take a few tries for.
    let start = || Running(Command::new(&program).arg("1000").spawn().expect("sleep"));
    let tick = |running: &Running| owner_in(proc, running.0.id()).start_boot_ns / 10_000_000;
    let pair = (0..100).map(|_| (start(), start())).find(|(one, other)| tick(one) == tick(other));
    let (one, _other) = pair.expect("two of one tick");
    assert_eq!(process::find(proc, tick(&one), name.as_bytes()), None);
}

/// A procfs in which opening `environ` waits for ever, as it does on a process whose memory map is locked.
#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_process_that_makes_its_reader_hang_is_left_behind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let process = |pid: u32, service: Option<&str>| {
        let path = directory.path().join(pid.to_string());
        fs::create_dir(&path).expect("mkdir");
        std::os::unix::fs::symlink("/bin/trap", path.join("exe")).expect("symlink");
        let stat = format!("{pid} (trap) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 0 20 0 1 0 100 1000 5\n");
        fs::write(path.join("stat"), stat).expect("write");
        match service {
            Some(service) => fs::write(path.join("environ"), format!("OTEL_SERVICE_NAME={service}\0")).expect("write"),
            None => assert!(Command::new("mkfifo").arg(path.join("environ")).status().expect("mkfifo").success()),
        }
    };
    process(7, None);
    process(8, Some("other"));
    let (mut enricher, now) = (enricher(directory.path()), Instant::now());
    let mut hanging = reset(Some(owner_in(directory.path(), 7)), None);
    enricher.enrich(&mut hanging, now);
    assert!(now.elapsed() < Duration::from_secs(2), "{:?}", now.elapsed());
    assert_eq!(counter(&enricher, "timed_out"), 1);
    assert_eq!(text(&hanging.resource, "service.name"), "unknown_service:trap");
    // Others are read as ever.
    let mut other = reset(Some(owner_in(directory.path(), 8)), None);
    enricher.enrich(&mut other, now);
    assert_eq!(text(&other.resource, "service.name"), "other");
    // And the hanging one is not tried at every reset.
    let start = Instant::now();
    for _ in 0..100 {
        enricher.enrich(&mut hanging, now);
    }
    assert!(start.elapsed() < Duration::from_millis(200) && counter(&enricher, "timed_out") == 1);
    // Once it answers, it is named.
    fs::write(directory.path().join("7/environ"), "OTEL_SERVICE_NAME=late\0")
        .expect("the thread left behind reads this");
    fs::remove_file(directory.path().join("7/environ")).expect("unlink");
    fs::write(directory.path().join("7/environ"), "OTEL_SERVICE_NAME=late\0").expect("write");
    enricher.enrich(&mut hanging, now + Duration::from_secs(61));
    assert_eq!(text(&hanging.resource, "service.name"), "late");
}

/// A process that publishes its context in a file on FUSE, under the name that a memfd has: no read of it may be tried,
/// since none could be taken back.
#[test]
#[ignore = "needs root and /dev/fuse: run by `make e2e`"]
fn memory_that_a_file_system_serves_is_never_read() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/fuse_context.py");
    let mut server = Command::new("python3")
        .arg(script)
        .env("OTEL_SERVICE_NAME", "from-environment")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let input = server.stdin.take();
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines().map(|line| line.expect("a line"));
    let _server = Running(server);
    let ready = lines.next().expect("FUSE can be mounted");
    assert!(ready.ends_with(" /memfd:OTEL_CTX"), "{ready}");
    let pid = ready.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
    let mut enricher = enricher(Path::new("/proc"));
    let mut reset = reset(Some(owner(pid)), None);
    enricher.enrich(&mut reset, Instant::now());
    assert_eq!(text(&reset.resource, "service.name"), "from-environment");
    assert!(text(&reset.resource, "process.executable.path").contains("python"));
    assert_eq!((counter(&enricher, "timed_out"), counter(&enricher, "context_refused")), (0, 1));
    drop(input);
    assert_eq!(lines.next().as_deref(), Some("0"), "reads that came to the file system");
}
