//! From a process to its workload: the resource of a reset.
//!
//! A cache keyed by pid and start time, which name one process for ever, stands before every read; see
//! [`crate::enrich::process`] for what is read and [`crate::enrich::resource`] for what comes of it.

pub mod cache;
pub mod cgroup;
pub mod container;
pub mod environ;
pub mod host;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod otel_context;
pub mod pods;
pub mod process;
pub mod program;
pub mod reader_thread;
pub mod resource;

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::{
    config::settings,
    enrich::{
        cache::Bounded,
        cgroup::Cgroups,
        container::Placement,
        pods::{Names, OwnPod, Pods},
        process::{Handle, Memory, Process, ProcessError, PublishedContext, ReadScope},
        reader_thread::ReaderThread,
        resource::{Identity, ResourceBuilder},
    },
    model::{
        Owner, Reset,
        resource::{Resource, ResourceValue, UNKNOWN_SERVICE},
    },
    procfs,
};

/// The resource with the metadata of its pod, which arrived after the resource was built.
fn with_pod(resource: &Resource, names: &Names) -> Arc<Resource> {
    let mut attributes = resource.attributes.clone();
    let unnamed =
        matches!(resource.get("service.name"), Some(ResourceValue::Text(name)) if name.starts_with(UNKNOWN_SERVICE));
    let service = names.service_name.iter().filter(|_| unnamed);
    let service = service.map(|name| (Cow::Borrowed("service.name"), ResourceValue::Text(name.clone())));
    for (name, value) in names.resource().chain(service) {
        match attributes.iter_mut().find(|(key, _)| *key == name) {
            Some(attribute) => attribute.1 = value,
            None => attributes.push((name, value)),
        }
    }
    Resource::for_process(attributes, resource.inner_pid, resource.program.clone())
}

/// Defines the counters once: field, name on `/metrics`, meaning.
macro_rules! counters {
    ($($field:ident $name:literal $meaning:literal,)+) => {
        /// How enrichment goes; read from any thread.
        #[derive(Debug, Default)]
        pub struct Counters { $(#[doc = $meaning] pub $field: AtomicU64,)+ }
        impl Counters {
            /// Every counter: name, meaning, value.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($name, $meaning, self.$field.load(Ordering::Relaxed)),)+].into_iter()
            }
        }
    };
}

counters! {
    hits "hits" "Resets whose workload was known already",
    misses "misses" "Resets whose process or control group was looked at for the first time",
    refreshes "refreshes" "Processes looked at again: renamed, or not looked at for a minute",
    evictions "evictions" "Resources forgotten to make room",
    gone "gone" "Processes that had ended before they could be read; named by the kernel's record alone",
    reused "reused" "Pids that another process had by then; its facts were not taken",
    denied "denied" "Reads of procfs that were not permitted",
    timed_out "timed_out" "Processes of which a read hung and was left behind",
    failed "failed" "Reads of procfs that failed otherwise",
    context_refused "context_refused" "Published OpenTelemetry contexts that were malformed, lying or never at rest",
    malformed "malformed" "Pairs in OTEL_RESOURCE_ATTRIBUTES, and overlong variables, that were left out",
    left_out "left_out" "Attributes beyond the bounds of a resource",
    cgroup_unknown "cgroup_unknown" "Resets whose control group was not found under the cgroup v2 mount",
    pod_unknown "pod_unknown" "Resources in a pod that the Kubernetes API had not named by then",
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Resources remembered.
const MAX_WORKLOADS: usize = 8_192;
/// Bytes of them, of processes and of control groups each.
const MAX_BYTES: usize = 32 << 20;
/// A workload in use is looked at again after this time: it may have published its context or executed another program.
const REFRESH: Duration = Duration::from_secs(60);
/// The same when the record has another name for the process than was seen.
const REFRESH_RENAMED: Duration = Duration::from_secs(1);
/// Second looks of all processes together, a second.
const REFRESHES_PER_SECOND: u32 = 100;
/// How long a process may take to be read.
const TIMEOUT: Duration = Duration::from_millis(250);
/// Maximum threads that read processes, and their memory, hanging ones included.
const MAX_READERS: usize = 4;
/// The same for published contexts.
const MAX_CONTEXT_READERS: usize = 2;

/// Names the workloads of resets.
#[derive(Debug)]
pub struct Enricher {
    proc: PathBuf,
    command_line: bool,
    /// The numbers in this procfs are not the kernel's own: a pid namespace is between.
    foreign_pids: bool,
    ticks_per_second: u64,
    host: Arc<Resource>,
    own_pod: OwnPod,
    pods: Option<Arc<Pods>>,
    processes: Bounded<(u32, u64), Entry>,
    groups: Bounded<u64, Entry>,
    cgroups: Cgroups,
    /// Reads what is known without a process's memory, its memory, and the context in it: apart, so that a process that
    /// makes one kind of read hang costs the others nothing.
    process_reader: ReaderThread<ReadScope, Result<Process, ProcessError>>,
    memory_reader: ReaderThread<(Handle, bool), Memory>,
    context_reader: ReaderThread<Handle, PublishedContext>,
    refreshes: (Instant, u32),
    counters: Arc<Counters>,
}

/// A remembered workload.
#[derive(Debug)]
struct Entry {
    resource: Arc<Resource>,
    /// When the process started, ns since 1970; kept, so that a step of the clock does not make it another process.
    start_unix_ns: u64,
    /// Names that the process has been seen under: in the record, in procfs.
    comms: [Vec<u8>; 2],
    read: Instant,
    /// Nothing more can be learnt.
    settled: bool,
    /// Names of its pod are missing.
    awaited: Option<Awaited>,
}

#[derive(Debug)]
struct Awaited {
    generation: u64,
    pod_uid: String,
    container_id: Option<String>,
}

impl Enricher {
    /// `proc` is where the host's procfs is mounted, `/proc` unless in a container; `pods` are the names of pods where a
    /// watch provides them.
    pub fn new(settings: &settings::Enrichment, proc: PathBuf, pods: Option<Arc<Pods>>, now: Instant) -> Self {
        let own_pod = OwnPod::read(|name| std::env::var(name).ok(), &proc);
        let node = settings.kubernetes.as_ref().map(|kubernetes| kubernetes.node_name.as_str()).or(own_pod.node_name());
        let mut host = host::attributes(&proc);
        host.extend(
            node.filter(|name| !name.is_empty())
                .map(|name| (Cow::Borrowed("k8s.node.name"), ResourceValue::Text(name.to_owned()))),
        );
        for (name, value) in &settings.resource {
            if host.iter().all(|(known, _)| known != name) {
                host.push((Cow::Owned(name.clone()), ResourceValue::Text(value.clone())));
            }
        }
        Self {
            command_line: settings.command_line,
            foreign_pids: procfs::has_foreign_pids(&proc),
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            host: Resource::new(host),
            own_pod,
            pods,
            processes: Bounded::new(MAX_WORKLOADS, MAX_BYTES),
            groups: Bounded::new(MAX_WORKLOADS, MAX_BYTES),
            cgroups: Cgroups::new(&proc),
            process_reader: ReaderThread::new(|scope| process::read(&scope), TIMEOUT, MAX_READERS),
            memory_reader: ReaderThread::new(
                |(handle, args)| process::read_memory(&handle, args),
                TIMEOUT,
                MAX_READERS,
            ),
            context_reader: ReaderThread::new(|handle| process::read_context(&handle), TIMEOUT, MAX_CONTEXT_READERS),
            refreshes: (now, 0),
            counters: Arc::default(),
            proc,
        }
    }

    /// How it goes.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The host's own resource.
    pub fn host(&self) -> Arc<Resource> {
        Arc::clone(&self.host)
    }

    /// Sets the workload of a reset: of the process that owns the socket, else of the socket's control group, else the host.
    pub fn enrich(&mut self, reset: &mut Reset, now: Instant) {
        reset.resource = match (reset.owner, reset.cgroup_id) {
            (Some(owner), _) => self.process(&owner, reset, now),
            (None, Some(id)) => self.group(id, reset.network_namespace, now),
            (None, None) => Arc::clone(&self.host),
        };
    }

    fn process(&mut self, owner: &Owner, reset: &Reset, now: Instant) -> Arc<Resource> {
        let key = (owner.pid, owner.start_boot_ns);
        let comm = comm(owner);
        if let Some(entry) = self.processes.get_mut(&key) {
            let age = now.saturating_duration_since(entry.read);
            let renamed = entry.comms.iter().all(|known| known != comm);
            let due = !entry.settled && age >= if renamed { REFRESH_RENAMED } else { REFRESH };
            if !due || !allowed(&mut self.refreshes, now) {
                count(&self.counters.hits, 1);
                return entry.current(self.pods.as_deref());
            }
            count(&self.counters.refreshes, 1);
        } else {
            count(&self.counters.misses, 1);
        }
        let read = self.read(owner, comm);
        let settled = match &read {
            Ok(process) => process.dead,
            Err(error) => matches!(error, Some(ProcessError::Gone | ProcessError::Reused)),
        };
        let poorer = settled || read.as_ref().map_or(true, |process| process.timed_out);
        if let (true, Some(entry)) = (poorer, self.processes.get_mut(&key)) {
            // What was read while the process lived is better than nothing.
            entry.settled = settled;
            entry.read = now;
            entry.comms[0] = comm.to_vec();
            return entry.current(self.pods.as_deref());
        }
        let known = self.processes.get_mut(&key).map(|entry| (entry.start_unix_ns, Arc::clone(&entry.resource)));
        let start_unix_ns = known.as_ref().map(|(start, _)| *start);
        let start_unix_ns = start_unix_ns.unwrap_or_else(|| boot_unix_ns().saturating_add(owner.start_boot_ns));
        let mut entry = self.describe(owner, start_unix_ns, reset, read.ok(), now);
        entry.settled = settled;
        if let Some((_, resource)) = known.filter(|(_, resource)| *resource == entry.resource) {
            entry.resource = resource;
        }
        let resource = Arc::clone(&entry.resource);
        let bytes = resource.bytes() + size_of::<Entry>();
        count(&self.counters.evictions, self.processes.insert(key, entry, bytes));
        resource
    }

    /// Reads a process; the error is `None` when the reading hung.
    fn read(&mut self, owner: &Owner, comm: &[u8]) -> Result<Process, Option<ProcessError>> {
        let start_ticks = owner.start_boot_ns / (1_000_000_000 / self.ticks_per_second);
        let pid = if self.foreign_pids { process::find(&self.proc, start_ticks, comm) } else { Some(owner.pid) };
        let scope = |pid| ReadScope { proc: self.proc.clone(), pid, start_ticks };
        let mut result = match pid {
            None => Err(Some(ProcessError::Gone)),
            Some(pid) => self.process_reader.call(scope(pid)).map_or(Err(None), |result| result.map_err(Some)),
        };
        if let Ok(process) = &mut result {
            self.read_memory(process);
        }
        let counters = &self.counters;
        match &result {
            Ok(process) => {
                count(&counters.timed_out, u64::from(process.timed_out));
                count(&counters.denied, process.faults.denied);
                count(&counters.failed, process.faults.failed);
                count(&counters.context_refused, process.faults.context_refused);
                count(&counters.malformed, process.environment.malformed);
            }
            Err(None) => count(&counters.timed_out, 1),
            Err(Some(ProcessError::Gone)) => count(&counters.gone, 1),
            Err(Some(ProcessError::Reused)) => count(&counters.reused, 1),
            Err(Some(ProcessError::Denied)) => count(&counters.denied, 1),
            Err(Some(ProcessError::Read(_))) => count(&counters.failed, 1),
        }
        result
    }

    /// Reads what a process's memory holds, both kinds at the same time.
    fn read_memory(&mut self, process: &mut Process) {
        let Some(handle) = process.handle.take() else { return };
        let deadline = Instant::now() + TIMEOUT;
        let memory = self.memory_reader.start((Arc::clone(&handle), self.command_line));
        let context = self.context_reader.start(handle);
        process.add_memory(self.memory_reader.finish(memory, deadline));
        process.add_context(self.context_reader.finish(context, deadline));
    }

    fn describe(
        &mut self,
        owner: &Owner,
        start_unix_ns: u64,
        reset: &Reset,
        process: Option<Process>,
        now: Instant,
    ) -> Entry {
        let comm = comm(owner);
        let placement = match &process {
            Some(process) if !process.dead || !process.placement.is_empty() => process.placement.clone(),
            // The socket's control group is that of the process that made it: the same container. (On cgroup v1 a dead
            // process is in no group.)
            _ => reset.cgroup_id.and_then(|id| self.placement(id, now)).unwrap_or_default(),
        };
        let placement = self.verified(placement);
        let (names, awaited) = self.names(&placement, reset.network_namespace);
        let mut resource = ResourceBuilder::of_host(&self.host.attributes);
        resource.add_identity(Identity { pid: owner.pid, start_unix_ns, comm }, process.as_ref());
        resource.add_placement(&placement, names.as_ref());
        if let Some(process) = &process {
            resource.add_claims(process);
        }
        resource.name_service(&placement, names.as_ref(), process.as_ref());
        let (attributes, left_out) = resource.finish();
        count(&self.counters.left_out, left_out);
        let inner_pid = process.as_ref().and_then(|process| process.inner_pid);
        let program = process.as_ref().and_then(|process| process.program.clone());
        let resource = Resource::for_process(attributes, inner_pid, program);
        let seen = process.map(|process| process.comm).unwrap_or_default();
        Entry { resource, start_unix_ns, comms: [comm.to_vec(), seen], read: now, settled: false, awaited }
    }

    /// The workload of a socket without an owner, by its control group alone.
    fn group(&mut self, id: u64, network_namespace: Option<u32>, now: Instant) -> Arc<Resource> {
        if let Some(entry) = self.groups.get_mut(&id) {
            count(&self.counters.hits, 1);
            return entry.current(self.pods.as_deref());
        }
        let Some(placement) = self.placement(id, now) else { return Arc::clone(&self.host) };
        let placement = self.verified(placement);
        count(&self.counters.misses, 1);
        let (names, awaited) = self.names(&placement, network_namespace);
        let resource = if placement.is_empty() && names.is_none() {
            Arc::clone(&self.host)
        } else {
            let mut resource = ResourceBuilder::of_host(&self.host.attributes);
            resource.add_placement(&placement, names.as_ref());
            resource.name_service(&placement, names.as_ref(), None);
            let (attributes, left_out) = resource.finish();
            count(&self.counters.left_out, left_out);
            Resource::new(attributes)
        };
        let entry = Entry {
            resource: Arc::clone(&resource),
            start_unix_ns: 0,
            comms: Default::default(),
            read: now,
            settled: true,
            awaited,
        };
        let bytes = resource.bytes() + size_of::<Entry>();
        count(&self.counters.evictions, self.groups.insert(id, entry, bytes));
        resource
    }

    fn placement(&mut self, id: u64, now: Instant) -> Option<Placement> {
        let placement = self.cgroups.path(id, now).map(Placement::from_path);
        count(&self.counters.cgroup_unknown, u64::from(placement.is_none()));
        placement
    }

    /// The placement without a container and pod whose directory somebody else than root made.
    fn verified(&self, placement: Placement) -> Placement {
        let made_by_root = placement.group.as_deref().and_then(|group| self.cgroups.is_roots(group));
        if made_by_root == Some(false) { placement.without_container() } else { placement }
    }

    /// The names of the pod, and what to look for later where some are missing.
    fn names(&self, placement: &Placement, network_namespace: Option<u32>) -> (Option<Names>, Option<Awaited>) {
        let uid = placement.pod_uid.as_deref();
        let own = || self.own_pod.names(uid, network_namespace);
        let (Some(uid), Some(pods)) = (uid, &self.pods) else { return (own(), None) };
        let generation = pods.generation();
        let names = pods.names(uid, placement.container_id.as_deref());
        let complete = names.as_ref().is_some_and(|names| names.complete);
        count(&self.counters.pod_unknown, u64::from(names.is_none()));
        let container_id = placement.container_id.clone();
        let awaited = (!complete).then(|| Awaited { generation, pod_uid: uid.to_owned(), container_id });
        (names.or_else(own), awaited)
    }
}

impl Entry {
    /// The workload, with the names of its pod once they are known.
    fn current(&mut self, pods: Option<&Pods>) -> Arc<Resource> {
        if let (Some(awaited), Some(pods)) = (&mut self.awaited, pods) {
            let generation = pods.generation();
            if generation != awaited.generation {
                awaited.generation = generation;
                if let Some(names) = pods.names(&awaited.pod_uid, awaited.container_id.as_deref()) {
                    self.resource = with_pod(&self.resource, &names);
                    if names.complete {
                        self.awaited = None;
                    }
                }
            }
        }
        Arc::clone(&self.resource)
    }
}

/// The owner's name up to the closing zero.
fn comm(owner: &Owner) -> &[u8] {
    owner.comm.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Takes one second look out of this second's, if there is one left.
fn allowed(refreshes: &mut (Instant, u32), now: Instant) -> bool {
    if now.saturating_duration_since(refreshes.0) >= Duration::from_secs(1) {
        *refreshes = (now, 0);
    }
    let allowed = refreshes.1 < REFRESHES_PER_SECOND;
    refreshes.1 += u32::from(allowed);
    allowed
}

/// When the host booted, ns since 1970, by the clock of now.
fn boot_unix_ns() -> u64 {
    let ns = |clock| {
        let time = clock_gettime(clock);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    u64::try_from(ns(ClockId::Realtime) - ns(ClockId::Boottime)).unwrap_or(0)
}
