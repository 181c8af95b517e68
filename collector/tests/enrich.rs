//! Enrichment against real programs: what a reset's resource says of the process that owns its socket.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource as ProtoResource,
};
use prost::Message;
mod reset_of;
mod skip;

use reset_collector::{
    config::settings,
    enrich::{
        Enricher,
        pods::{Pod, Pods},
    },
    model::{
        Owner, OwnerSource,
        resource::{Resource, ResourceValue},
    },
};
use reset_of::{TICK_NS, owner, reset};
use skip::skip;

/// A program that says "ready" and then lives until it is dropped.
struct Program {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("the program says that it is ready");
        assert_eq!(line, "ready\n");
        Self { _stdin: child.stdin.take(), child }
    }

    /// Python without what the test's own environment holds; it ends when its input does.
    fn python(code: &str, environment: &[(&str, &str)]) -> Self {
        let code = format!("import sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()");
        let mut command = Command::new("/usr/bin/python3");
        Self::start(command.arg("-c").arg(code).env_clear().envs(environment.iter().copied()))
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn enricher(pods: Option<Arc<Pods>>) -> Enricher {
    let settings = settings::Enrichment { command_line: true, kubernetes: None, resource: Vec::new() };
    Enricher::new(&settings, PathBuf::from("/proc"), pods, Instant::now())
}

fn enriched(enricher: &mut Enricher, owner: Owner, now: Instant) -> Arc<Resource> {
    let mut reset = reset(Some(owner), None);
    enricher.enrich(&mut reset, now);
    reset.resource
}

fn text<'a>(resource: &'a Resource, name: &str) -> Option<&'a str> {
    match resource.get(name)? {
        ResourceValue::Text(text) => Some(text),
        other => panic!("{name} is {other:?}"),
    }
}

fn counter(enricher: &Enricher, name: &str) -> u64 {
    enricher.counters().each().find(|(known, _, _)| *known == name).expect("a counter").2
}

#[test]
fn static_attributes_are_on_every_resource() {
    let attributes = [("deployment.environment.name", "prod"), ("k8s.cluster.name", "eu-1")];
    let resource = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let settings = settings::Enrichment { resource, ..settings::Enrichment::default() };
    let mut enricher = Enricher::new(&settings, PathBuf::from("/proc"), None, Instant::now());
    assert_eq!(text(&enricher.host(), "deployment.environment.name"), Some("prod"));
    let program = Program::python("", &[("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,team=a")]);
    let resource = enriched(&mut enricher, owner(program.pid()), Instant::now());
    assert_eq!(text(&resource, "deployment.environment.name"), Some("prod"), "the file, not the process");
    assert_eq!((text(&resource, "team"), text(&resource, "k8s.cluster.name")), (Some("a"), Some("eu-1")));
}

#[test]
fn a_python_program_is_named_by_its_environment() {
    let attributes = "service.name=no,deployment.environment.name=prod,team=a%2Cb,broken";
    let variables = [("OTEL_SERVICE_NAME", "shop"), ("OTEL_RESOURCE_ATTRIBUTES", attributes), ("PASSWORD", "hunter2")];
    let program = Program::python("", &variables);
    let (mut enricher, now) = (enricher(None), Instant::now());
    let resource = enriched(&mut enricher, owner(program.pid()), now);

    assert_eq!(resource.get("process.pid"), Some(&ResourceValue::Integer(program.pid().into())));
    assert_eq!(resource.inner_pid, Some(program.pid()));
    assert_eq!(text(&resource, "service.name"), Some("shop"));
    assert_eq!(text(&resource, "deployment.environment.name"), Some("prod"));
    assert_eq!(text(&resource, "team"), Some("a,b"));
    let path = fs::read_link(format!("/proc/{}/exe", program.pid())).expect("exe");
    assert_eq!(text(&resource, "process.executable.path"), path.to_str());
    assert_eq!(text(&resource, "process.executable.name"), path.file_name().and_then(|name| name.to_str()));
    assert_eq!(text(&resource, "os.type"), Some("linux"));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    assert_eq!(text(&resource, "host.name"), Some(host.trim()));
    let Some(ResourceValue::List(arguments)) = resource.get("process.command_args") else { panic!("arguments") };
    assert_eq!(arguments[..2], ["/usr/bin/python3", "-c"]);
    assert!(!format!("{resource:?}").contains("hunter2"), "no other variable leaves the process");
    assert_eq!(counter(&enricher, "malformed"), 1);

    // The time of creation is now, within a few seconds.
    let created = text(&resource, "process.creation.time").expect("a time");
    let date = Command::new("date").args(["-d", created, "+%s"]).output().expect("date");
    let created: u64 = String::from_utf8_lossy(&date.stdout).trim().parse().expect("a time that date reads");
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!(unix.abs_diff(created) <= 5, "{created} {unix}");

    // And it is read once.
    for _ in 0..100 {
        assert!(Arc::ptr_eq(&resource, &enriched(&mut enricher, owner(program.pid()), now)));
    }
    assert_eq!((counter(&enricher, "misses"), counter(&enricher, "hits")), (1, 100));
}

#[test]
fn a_process_that_has_gone_is_named_by_the_record_and_no_other_by_its_pid() {
    let program = Program::python("", &[("OTEL_SERVICE_NAME", "other")]);
    let mut before = owner(program.pid());
    // The same pid, another process: it started three ticks before the one that has the pid now.
    before.start_boot_ns -= 3 * TICK_NS;
    before.comm = *b"short\x1b\x07lived\0\0\0\0";
    let (mut enricher, now) = (enricher(None), Instant::now());
    let resource = enriched(&mut enricher, before, now);
    assert_eq!(text(&resource, "process.executable.name"), Some("short\\u{1b}\\u{7}lived"));
    assert_eq!(text(&resource, "service.name"), Some("unknown_service:short\\u{1b}\\u{7}lived"));
    assert_eq!(text(&resource, "process.executable.path"), None);
    assert_eq!(counter(&enricher, "reused"), 1);

    let gone = owner(program.pid());
    let pid = program.pid();
    drop(program);
    let resource = enriched(&mut enricher, gone, now);
    assert_eq!(resource.get("process.pid"), Some(&ResourceValue::Integer(pid.into())));
    assert!(text(&resource, "service.name").is_some_and(|name| name.starts_with("unknown_service:python3")));
    assert!(text(&resource, "process.creation.time").is_some());
    assert_eq!(counter(&enricher, "gone"), 1);
    let later = now + Duration::from_secs(3600);
    assert!(Arc::ptr_eq(&resource, &enriched(&mut enricher, gone, later)), "it is not looked for again");
    assert_eq!(counter(&enricher, "gone"), 1);
}

#[test]
fn what_was_read_outlives_the_process() {
    let program = Program::python("", &[("OTEL_SERVICE_NAME", "shop")]);
    let (mut enricher, now) = (enricher(None), Instant::now());
    let known = owner(program.pid());
    let resource = enriched(&mut enricher, known, now);
    let later = enriched(&mut enricher, known, now + Duration::from_secs(60));
    assert!(Arc::ptr_eq(&resource, &later), "a second look that finds nothing new keeps the resource");
    assert_eq!((counter(&enricher, "refreshes"), counter(&enricher, "gone")), (1, 0));
    drop(program);
    let later = enriched(&mut enricher, known, now + Duration::from_secs(120));
    assert!(Arc::ptr_eq(&resource, &later));
    assert_eq!((counter(&enricher, "refreshes"), counter(&enricher, "gone")), (2, 1));
}

#[test]
fn another_program_in_the_same_process_is_seen() {
    let code = "read line; exec python3 -c 'import sys; print(\"ready\", flush=True); sys.stdin.read()'";
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("echo ready; {code}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.next().expect("a line").is_ok());
    let (mut enricher, now) = (enricher(None), Instant::now());
    let first = enriched(&mut enricher, owner(child.id()), now);
    assert!(!text(&first, "process.executable.name").expect("a name").contains("python"));
    child.stdin.as_mut().expect("piped").write_all(b"\n").expect("write");
    assert!(lines.next().expect("a line").is_ok());
    let at_once = enriched(&mut enricher, owner(child.id()), now);
    assert!(Arc::ptr_eq(&first, &at_once), "not more often than once a second");
    let second = enriched(&mut enricher, owner(child.id()), now + Duration::from_secs(1));
    assert!(text(&second, "process.executable.name").expect("a name").contains("python"));
    assert_eq!(text(&first, "process.creation.time"), text(&second, "process.creation.time"));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

#[test]
fn the_dead_and_the_half_dead() {
    // A zombie: its environment and executable are gone, its name is not.
    let mut zombie = Command::new("/bin/true").spawn().expect("true");
    let is_zombie =
        || fs::read_to_string(format!("/proc/{}/stat", zombie.id())).is_ok_and(|stat| stat.contains(") Z "));
    while !is_zombie() {
        thread::sleep(Duration::from_millis(1));
    }
    let (mut enricher, now) = (enricher(None), Instant::now());
    let resource = enriched(&mut enricher, owner(zombie.id()), now);
    assert_eq!(text(&resource, "service.name"), Some("unknown_service:true"));
    zombie.wait().expect("wait");

    // One that was known before: what it said while it lived stays.
    let mut program = Program::python("", &[("OTEL_SERVICE_NAME", "shop")]);
    let known = owner(program.pid());
    let resource = enriched(&mut enricher, known, now);
    program.child.kill().expect("kill");
    let is_zombie =
        || fs::read_to_string(format!("/proc/{}/stat", program.pid())).is_ok_and(|stat| stat.contains(") Z "));
    while !is_zombie() {
        thread::sleep(Duration::from_millis(1));
    }
    let later = enriched(&mut enricher, known, now + Duration::from_secs(60));
    assert!(Arc::ptr_eq(&resource, &later) && text(&later, "service.name") == Some("shop"));

    // The main thread has ended and another lives: SYS_exit ends one thread.
    let code = "import ctypes, os, platform, threading\n\
        def wait():\n    print('ready', flush=True)\n    sys.stdin.read()\n    os._exit(0)\n\
        threading.Thread(target=wait).start()\n\
        ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)";
    let program = Program::python(code, &[("OTEL_SERVICE_NAME", "headless")]);
    let resource = enriched(&mut enricher, owner(program.pid()), now);
    assert_eq!(text(&resource, "service.name"), Some("headless"));
    assert!(text(&resource, "process.executable.path").is_some());
}

#[test]
fn an_environment_of_two_megabytes() {
    let fill = "x".repeat(120 << 10);
    let names: Vec<String> = (0..15).map(|index| format!("FILL{index}")).collect();
    let mut variables: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), fill.as_str())).collect();
    variables.push(("OTEL_SERVICE_NAME", "heavy"));
    let program = Program::python("", &variables);
    let mut enricher = enricher(None);
    assert_eq!(text(&enriched(&mut enricher, owner(program.pid()), Instant::now()), "service.name"), Some("heavy"));
}

/// Publishes `payload` as OTEP 4719 says, in a memfd, then runs `then`, in which `at` is the address of the header.
fn publisher(payload: &[u8], then: &str) -> Program {
    let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    let code = format!(
        "import ctypes, mmap, os, struct, threading\n\
         payload = bytes.fromhex('{hex}')\n\
         fd = os.memfd_create('OTEL_CTX')\n\
         os.ftruncate(fd, 65536)\n\
         memory = mmap.mmap(fd, 65536)\n\
         at = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n\
         memory[32:32 + len(payload)] = payload\n\
         def header(size=len(payload), pointer=at + 32, time=1):\n    \
             memory[0:32] = struct.pack('=8sIIQQ', b'OTEL_CTX', 2, size, time, pointer)\n\
         header()\n{then}"
    );
    Program::python(&code, &[("OTEL_SERVICE_NAME", "from-environment"), ("OTEL_RESOURCE_ATTRIBUTES", "team=a")])
}

fn context_payload(service: &str) -> Vec<u8> {
    let pair = |key: &str, text: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(text.into())) }),
        ..KeyValue::default()
    };
    let attributes = vec![pair("service.name", service), pair("service.instance.id", "627cc493")];
    let resource = ProtoResource { attributes, ..ProtoResource::default() }.encode_to_vec();
    let mut payload = vec![0x0a, u8::try_from(resource.len()).expect("short")];
    payload.extend(resource);
    payload
}

#[test]
fn a_published_context_stands_before_the_environment() {
    let program = publisher(&context_payload("from-context"), "");
    let mut enricher = enricher(None);
    let resource = enriched(&mut enricher, owner(program.pid()), Instant::now());
    assert_eq!(text(&resource, "service.name"), Some("from-context"));
    assert_eq!(text(&resource, "service.instance.id"), Some("627cc493"));
    assert_eq!(text(&resource, "team"), Some("a"));
    assert_eq!(counter(&enricher, "context_refused"), 0);
}

#[test]
fn a_lying_context_is_refused_and_the_environment_counts() {
    let lies = [
        "header(pointer=8)",
        "header(pointer=2**64 - 1)",
        "header(size=2**32 - 1)",
        "header(size=0)",
        "header(time=0)",
        "memory[32:32 + len(payload)] = b'\\xff' * len(payload)",
        "memory[8] = 3",
    ];
    for lie in lies {
        let program = publisher(&context_payload("lie"), lie);
        let mut enricher = enricher(None);
        let start = Instant::now();
        let resource = enriched(&mut enricher, owner(program.pid()), start);
        assert_eq!(text(&resource, "service.name"), Some("from-environment"), "{lie}");
        assert_eq!(counter(&enricher, "context_refused"), 1, "{lie}");
        assert!(start.elapsed() < Duration::from_secs(2), "{lie}");
    }
}

/// A delegated control group can have any name.
#[test]
#[ignore = "needs root: run by `make e2e`"]
fn a_container_that_somebody_else_than_root_names_does_not_count() {
    let id = "3dcad4c4f7e0f0d0b6d1a7a6a0e0f3f57ce9ae0a23b1b3c9a9a3f2e4d5c6b7a8";
    let Some(group) = Group::make(&format!("reset-collector-claims/docker-{id}.scope")) else {
        skip("no cgroup v2 hierarchy is writable");
        return;
    };
    let mut enricher = enricher(None);
    let mut by_root = reset(None, Some(group.id()));
    enricher.enrich(&mut by_root, Instant::now());
    assert_eq!(text(&by_root.resource, "container.id"), Some(id));
    std::os::unix::fs::chown(&group.path, Some(65_534), None).expect("chown");
    let mut enricher = self::enricher(None);
    let mut by_nobody = reset(None, Some(group.id()));
    enricher.enrich(&mut by_nobody, Instant::now());
    assert_eq!(by_nobody.resource.get("container.id"), None);
}

#[test]
fn names_of_a_pod_come_when_the_watch_has_them() {
    let pods = Arc::new(Pods::default());
    let mut enricher = enricher(Some(Arc::clone(&pods)));
    let now = Instant::now();
    // No process of a pod is here: the pod's control group is, where this machine lets us make one.
    let uid = "b0f1a9e6-7c1d-4a53-9a1c-1f5a0c3d2e4b";
    let id = "3dcad4c4f7e0f0d0b6d1a7a6a0e0f3f57ce9ae0a23b1b3c9a9a3f2e4d5c6b7a8";
    let Some(group) = Group::make(&format!("kubepods-reset-collector-test/pod{uid}/{id}")) else {
        skip("no cgroup v2 hierarchy is writable");
        return;
    };
    let mut first = reset(None, Some(group.id()));
    enricher.enrich(&mut first, now);
    assert_eq!(text(&first.resource, "k8s.pod.uid"), Some(uid));
    assert_eq!(text(&first.resource, "container.id"), Some(id));
    assert_eq!(first.resource.get("k8s.pod.name"), None);
    assert_eq!(first.resource.get("process.pid"), None);

    let attributes = vec![("k8s.pod.name", "shop-0".to_owned())];
    pods.set(uid, Pod { attributes: attributes.clone(), containers: Vec::new(), service_name: Some("shop".into()) });
    enricher.enrich(&mut first, now);
    assert_eq!(text(&first.resource, "k8s.pod.name"), Some("shop-0"));
    pods.set(uid, Pod { attributes, containers: vec![(id.into(), "web".into())], service_name: None });
    enricher.enrich(&mut first, now);
    assert_eq!(text(&first.resource, "k8s.container.name"), Some("web"));
    assert_eq!(counter(&enricher, "misses"), 1);

    // A process that has gone is still in its socket's group.
    let owner = Owner {
        pid: 5_000_000,
        start_boot_ns: 1,
        comm: *b"gone\0\0\0\0\0\0\0\0\0\0\0\0",
        source: OwnerSource::Storage,
    };
    let mut gone = reset(Some(owner), Some(group.id()));
    enricher.enrich(&mut gone, now);
    let names = ["container.id", "k8s.pod.name", "k8s.container.name", "process.executable.name", "service.name"];
    assert_eq!(names.map(|name| text(&gone.resource, name)), [id, "shop-0", "web", "gone", "web"].map(Some));

    // A group that nobody knows is the host's, and does not make every reset walk the hierarchy.
    let mut unknown = reset(None, Some(u64::MAX));
    for _ in 0..100 {
        enricher.enrich(&mut unknown, now);
        assert!(Arc::ptr_eq(&unknown.resource, &enricher.host()));
    }
    assert_eq!(counter(&enricher, "cgroup_unknown"), 100);
}

#[test]
fn without_owner_and_group_the_host_alone() {
    let mut enricher = enricher(None);
    let mut reset = reset(None, None);
    enricher.enrich(&mut reset, Instant::now());
    assert!(Arc::ptr_eq(&reset.resource, &enricher.host()));
    assert_eq!(text(&reset.resource, "os.type"), Some("linux"));
    assert!(reset.resource.get("process.pid").is_none() && reset.resource.get("service.name").is_none());
}

#[test]
fn a_storm_of_short_lived_processes_is_remembered_within_bounds() {
    const PROCESSES: u32 = 20_000;
    let (mut enricher, now) = (enricher(None), Instant::now());
    // Above pid_max (4,194,304): such a process is gone for sure.
    let gone = |index: u32| Owner {
        pid: 5_000_000 + index,
        start_boot_ns: 1,
        comm: *b"short-lived\0\0\0\0\0",
        source: OwnerSource::Storage,
    };
    for index in 0..PROCESSES {
        let resource = enriched(&mut enricher, gone(index), now);
        assert_eq!(resource.get("process.pid"), Some(&ResourceValue::Integer((5_000_000 + index).into())));
    }
    let held = u64::from(PROCESSES) - counter(&enricher, "evictions");
    assert!((1..=8192).contains(&held), "{held} are held");
    assert_eq!((counter(&enricher, "misses"), counter(&enricher, "gone")), (PROCESSES.into(), PROCESSES.into()));
}

/// The cost of a reset whose workload is known, and of a process seen for the first time.
#[test]
#[ignore = "measures: run it alone, optimised, with --nocapture"]
fn cost() {
    const RESETS: u32 = 1_000_000;
    let programs: Vec<Program> = (0..20).map(|_| Program::python("", &[("OTEL_SERVICE_NAME", "shop")])).collect();
    let owners: Vec<Owner> = programs.iter().map(|program| owner(program.pid())).collect();
    let (mut enricher, now) = (enricher(None), Instant::now());
    let start = Instant::now();
    for owner in &owners {
        enriched(&mut enricher, *owner, now);
    }
    eprintln!("{:?} a process read for the first time", start.elapsed() / 20);
    let mut reset = reset(None, None);
    let start = Instant::now();
    for index in 0..RESETS {
        reset.owner = Some(owners[index as usize % owners.len()]);
        enricher.enrich(&mut reset, now);
    }
    eprintln!("{:?} a reset of a known process", start.elapsed() / RESETS);
    assert_eq!((counter(&enricher, "misses"), counter(&enricher, "hits")), (20, RESETS.into()));
    let start = Instant::now();
    for index in 0..10_000 {
        reset.owner = Some(Owner { pid: 5_000_000 + index, ..owners[0] });
        enricher.enrich(&mut reset, now);
    }
    eprintln!("{:?} a process that has gone", start.elapsed() / 10_000);
}

/// A control group under the v2 mount, removed with its parents up to the test's own.
struct Group {
    path: PathBuf,
}

impl Group {
    fn make(below: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let path = Path::new(&mount).join(below);
        fs::create_dir_all(&path).ok()?;
        Some(Self { path })
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("the group is there").ino()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for group in self.path.ancestors().take(4) {
            fs::remove_dir(group).ok();
        }
    }
}
