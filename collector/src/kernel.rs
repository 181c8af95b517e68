//! The eBPF programs in the running kernel: loaded hook by hook, read, counted.
//!
//! What cannot run here is left out with the reason, and the others go on; [`Kernel::coverage`] says which. Decides
//! nothing about a reset: the programs do, and [`crate::reset`] reads what they wrote.

pub mod btf;
pub mod capability;
mod counters;
pub mod coverage;
pub(crate) mod namespace;
pub(crate) mod netlink;
pub mod plan;
pub mod selftest;
pub mod vintage;
pub mod wire;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
    time::Instant,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Iter, Program, ProgramError},
};
use probes::{
    cause::ReasonClass,
    control::Control,
    field::{Field, Place},
    rule::{MAX_RULES, Rule},
};
use zerocopy::IntoBytes;

use crate::{
    kernel::{
        btf::{BtfError, Types},
        plan::{PLANS, Plan, Step},
        wire::WirePorts,
    },
    pipeline::owners::{ByCredential, Credentials},
    pushdown,
};

pub use counters::{Counters, Counts, Tallies};

/// The programs, built from `probes/` (`make probes`).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../probes/reset.bpf.o");

/// The same without rules, for kernels that have no `bpf_loop` (before 5.17), or cannot verify such a program (6.2).
static OBJECT_WITHOUT_RULES: &[u8] = aya::include_bytes_aligned!("../../probes/reset-without-rules.bpf.o");

/// The running kernel's types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Bytes of a rule.
const RULE_LEN: usize = size_of::<Rule>();

/// Why nothing can be captured at all.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The object cannot be put into the kernel.
    #[error("cannot load the eBPF programs: {0}{hint}", hint = hint(.0))]
    Load(String),
    /// A map of ours is missing or of another shape: the embedded object is not what this program was built with.
    #[error("the embedded eBPF object has no usable map {0}: rebuild it with `make probes`")]
    Map(&'static str),
    /// No hook that sees resets could be attached.
    #[error("no hook can run here, so no reset would be seen:\n{0}")]
    NoHook(String),
}

fn hint(error: &str) -> &'static str {
    if error.contains("not permitted") || error.contains("ermission denied") {
        " (needs root, or CAP_BPF and CAP_PERFMON; `check` says what is missing)"
    } else {
        ""
    }
}

/// Whether a hook runs here.
#[derive(Clone, Debug)]
pub struct Coverage {
    /// The tracepoint.
    pub hook: &'static str,
    /// What is seen through it.
    pub sees: &'static str,
    /// Whether resets go unseen without it.
    pub sees_resets: bool,
    /// Why it does not run; `None` when it does.
    pub missing: Option<String>,
}

/// The programs in the kernel; dropped, they are gone.
pub struct Kernel {
    /// The programs and their links, until detached.
    programs: Option<Ebpf>,
    btf: Btf,
    credentials: Option<Credentials>,
    ring: RingBuf<MapData>,
    control: Array<MapData, [u32; 4]>,
    rules: Array<MapData, [u8; RULE_LEN]>,
    wire_ports: WirePorts,
    /// What the map holds, but for the programs' own writes.
    said: Control,
    /// Whether the kernel could look through all tasks.
    walks_tasks: bool,
    counters: Arc<Counters>,
    coverage: Vec<Coverage>,
    reasons: ReasonTables,
}

/// The kernel's names for its reasons, by number, without their prefixes.
#[derive(Clone, Debug, Default)]
pub struct ReasonTables {
    /// `enum sk_rst_reason`
    pub reset: Vec<(u32, String)>,
    /// `enum skb_drop_reason`
    pub drop: Vec<(u32, String)>,
}

/// Globals of the programs, found out from the kernel's types.
struct Globals {
    places: Vec<u32>,
    reset_classes: [u8; 64],
    drop_classes: [u8; 256],
    has_tai_clock: u32,
    has_rules: bool,
    has_typed_task: u32,
    knows_null: u32,
    reasons: ReasonTables,
}

impl Globals {
    fn from_types(types: &Types) -> Self {
        let places = Field::ALL
            .iter()
            .map(|field| {
                let (structure, path) = field.path();
                types.place(structure, path).unwrap_or(Place::ABSENT).0
            })
            .collect();
        let reasons = ReasonTables {
            reset: types.enumerators("sk_rst_reason", "SK_RST_REASON_"),
            drop: types.enumerators("skb_drop_reason", "SKB_DROP_REASON_"),
        };
        let mut reset_classes = [ReasonClass::Unknown as u8; 64];
        for (number, name) in &reasons.reset {
            if let Some(class) = reset_classes.get_mut(*number as usize) {
                *class = ReasonClass::of_reset_reason(name) as u8;
            }
        }
        let mut drop_classes = [ReasonClass::NotTcp as u8; 256];
        for (number, name) in &reasons.drop {
            if let Some(class) = drop_classes.get_mut(*number as usize) {
                *class = ReasonClass::of_drop_reason(name) as u8;
            }
        }
        let helpers = types.enumerators("bpf_func_id", "BPF_FUNC_");
        let has = |helper: &str| u32::from(helpers.iter().any(|(_, name)| name == helper));
        Self {
            places,
            reset_classes,
            drop_classes,
            has_tai_clock: has("ktime_get_tai_ns"),
            // Before 6.2, which also brought `bpf_cgrp_storage_get`, the verifier gives up on a program of this size that
            // has a function of its own (`reg->precise = env->subprog_cnt > 1`, kernel/bpf/verifier.c).
            has_rules: has("loop") == 1 && has("cgrp_storage_get") == 1,
            has_typed_task: has("get_current_task_btf"),
            // Both came in 6.13 (6.12 has the former in some of its releases: not told apart).
            knows_null: u32::from(
                types.enumerators("bpf_attach_type", "BPF_").iter().any(|(_, name)| name == "TRACE_UPROBE_SESSION"),
            ),
            reasons,
        }
    }
}

impl Kernel {
    /// Loads the programs and attaches every hook that can run here.
    ///
    /// `ring_buffer_bytes` is a power of two; `wanted` leaves out hooks by name, [`wire::HOOK`] among them.
    pub fn attach(btf: &Path, ring_buffer_bytes: u32, wanted: impl Fn(&str) -> bool) -> Result<Self, KernelError> {
        let types = Types::from_file(btf)?;
        let aya_btf = Btf::parse_file(btf, Default::default()).map_err(|error| KernelError::Load(error.to_string()))?;
        let globals = Globals::from_types(&types);
        let reads_wire = wanted(wire::HOOK);
        let mut programs = load(&aya_btf, &globals, ring_buffer_bytes, reads_wire && wire::can_run(&types))?;
        let ring = RingBuf::try_from(take(&mut programs, "RESETS")?).map_err(|_| KernelError::Map("RESETS"))?;
        let control = Array::try_from(take(&mut programs, "CONTROL")?).map_err(|_| KernelError::Map("CONTROL"))?;
        let rules = Array::try_from(take(&mut programs, "RULES")?).map_err(|_| KernelError::Map("RULES"))?;
        let withheld =
            PerCpuArray::try_from(take(&mut programs, "WITHHELD")?).map_err(|_| KernelError::Map("WITHHELD"))?;
        let captured =
            PerCpuArray::try_from(take(&mut programs, "CAPTURED")?).map_err(|_| KernelError::Map("CAPTURED"))?;
        let mut by_credential =
            |name| ByCredential::try_from(take(&mut programs, name)?).map_err(|_| KernelError::Map(name));
        let credentials = Credentials { processes: by_credential("PROCESSES")?, ended: by_credential("ENDED")? };
        let lost = PerCpuArray::try_from(take(&mut programs, "LOST")?).map_err(|_| KernelError::Map("LOST"))?;
        let wire_ports = WirePorts::take(&mut programs)?;
        let mut coverage: Vec<Coverage> = PLANS
            .iter()
            .filter_map(|plan| {
                let missing = match plan.step(&types) {
                    Step::NotNeeded => return None,
                    _ if !wanted(plan.hook) => Some("switched off in the configuration".to_owned()),
                    Step::CannotRun(why) => Some(why),
                    Step::Attach(names) => attach(&mut programs, plan, &names, &aya_btf).err(),
                };
                Some(Coverage { hook: plan.hook, sees: plan.sees, sees_resets: plan.sees_resets, missing })
            })
            .collect();
        if reads_wire {
            let missing = wire::attach(&mut programs, &types, Path::new("/proc")).err();
            coverage.push(Coverage { hook: wire::HOOK, sees: wire::SEES, sees_resets: false, missing });
        }
        if coverage.iter().all(|hook| !hook.sees_resets || hook.missing.is_some()) {
            return Err(KernelError::NoHook(reasons_why_not(&coverage)));
        }
        let mut kernel = Self {
            programs: Some(programs),
            btf: aya_btf,
            credentials: Some(credentials),
            ring,
            control,
            rules,
            wire_ports,
            said: Control::default(),
            walks_tasks: false,
            counters: Arc::new(Counters { captured, lost, withheld }),
            coverage,
            reasons: globals.reasons,
        };
        // After the hooks: nobody is missed between.
        kernel.look_at_tasks();
        kernel.look_at_files();
        Ok(kernel)
    }

    /// Takes the programs out of the kernel; what they wrote can still be read.
    pub fn detach(&mut self) {
        self.programs = None;
    }

    /// Which hooks run here, and why the others do not.
    pub fn coverage(&self) -> &[Coverage] {
        &self.coverage
    }

    /// What is known of processes by their credentials; there is one, for one taker.
    pub fn take_credentials(&mut self) -> Option<Credentials> {
        self.credentials.take()
    }

    /// Whether the calling thread may still do what a running collector asks of the kernel: read counters, set rules, look
    /// through the tasks.
    pub fn still_works(&mut self) -> bool {
        let tasks = |programs| iterate(programs, "every_task", "task", &self.btf).is_ok();
        // Where the tasks could not be walked at the start, that proves nothing.
        let tasks = !self.walks_tasks || self.programs.as_mut().is_none_or(tasks);
        tasks && self.counters.captured.get(&0, 0).is_ok() && self.say(self.said).is_ok()
    }

    /// Looks through all tasks, so that processes are known by the credentials that they have now.
    pub fn look_at_tasks(&mut self) {
        self.walks_tasks = self.iterate("every_task", "task");
    }

    /// Looks through the open files of all tasks, so that sockets that are there already have an owner.
    fn look_at_files(&mut self) {
        let started = Instant::now();
        self.iterate("every_file", "task_file");
        tracing::debug!("sockets that were there already have their owners after {:?}", started.elapsed());
    }

    /// Whether it could.
    fn iterate(&mut self, program: &'static str, kind: &str) -> bool {
        let Some(programs) = &mut self.programs else { return false };
        let walked = iterate(programs, program, kind, &self.btf);
        if let Err(error) = &walked {
            tracing::warn!("owners of some sockets will not be known, the kernel's {kind} cannot be walked: {error}");
        }
        walked.is_ok()
    }

    /// The kernel's names for its reasons.
    pub fn reasons(&self) -> &ReasonTables {
        &self.reasons
    }

    /// Hands each waiting record to `on_record`, at most `limit`; returns how many there were.
    pub fn drain(&mut self, limit: usize, mut on_record: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(record) = self.ring.next()
        {
            on_record(&record);
            count += 1;
        }
        count
    }

    /// Asks the kernel to wake the reader for the next record; the caller drains once more before it sleeps, since a
    /// record may have come meanwhile.
    pub fn ask_for_wakeup(&mut self) {
        if let Err(error) = self.say(Control { reader_sleeps: 1, ..self.said }) {
            tracing::warn!("cannot ask the kernel for a wake-up, records wait for the next timer: {error}");
        }
    }

    /// Gives the kernel other rules, from one reset to the next: those of an old program are never mixed with a new one's.
    pub fn set_rules(&mut self, program: &pushdown::Program) -> Result<(), MapError> {
        if program.is_empty() {
            self.said.program = 0;
            return self.say(self.said);
        }
        let next = if self.said.program & 1 == 0 { 3 } else { 2 };
        let first = (next & 1) * MAX_RULES as u32;
        for (index, rule) in (first..).zip(program.rules()) {
            let mut bytes = [0; RULE_LEN];
            bytes.copy_from_slice(rule.as_bytes());
            self.rules.set(index, bytes, 0)?;
        }
        self.said.program = next;
        self.say(self.said)
    }

    /// Sets the ceiling on records a second; `None` is none.
    pub fn set_ceiling(&mut self, records_per_second: Option<u32>) -> Result<(), MapError> {
        self.said.interval_ns = records_per_second.map_or(0, |count| (1_000_000_000 / count.max(1)).max(1));
        self.say(self.said)
    }

    /// Sets the servers' ports on which `traceparent` is read; without [`wire::HOOK`] it is read on none.
    pub fn set_wire_ports(&mut self, ports: &[u16]) -> Result<(), MapError> {
        self.wire_ports.set(ports)
    }

    fn say(&mut self, control: Control) -> Result<(), MapError> {
        self.control.set(0, [control.reader_sleeps, control.program, control.interval_ns, control.reserved], 0)
    }

    /// Readable when a record waits.
    pub fn ring_buffer(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// The counters, also for others to read.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

fn take(programs: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, KernelError> {
    programs.take_map(name).ok_or(KernelError::Map(name))
}

/// Runs an iterator's program over all that it iterates.
fn iterate(programs: &mut Ebpf, name: &'static str, kind: &str, btf: &Btf) -> Result<(), String> {
    let program: &mut Iter = programs
        .program_mut(name)
        .ok_or_else(|| format!("the embedded object has no program {name}: rebuild it with `make probes`"))?
        .try_into()
        .map_err(|error: ProgramError| error.to_string())?;
    match program.load(kind, btf) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(explain(name, "loaded", &error)),
    }
    let link = program.attach().and_then(|id| program.take_link(id)).map_err(|error| chain(&error))?;
    let mut file = link.into_file().map_err(|error| chain(&error))?;
    io::copy(&mut file, &mut io::sink()).map_err(|error| error.to_string())?;
    Ok(())
}

/// Puts the object that fits this kernel into it; no program of it is loaded yet.
fn load(btf: &Btf, globals: &Globals, ring_buffer_bytes: u32, reads_wire: bool) -> Result<Ebpf, KernelError> {
    // Tracing programs were given the storage of sockets and the running task's type by one series, in 5.11.
    let has_socket_storage = globals.has_typed_task;
    let reads_wire = u32::from(reads_wire);
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("PLACES", globals.places.as_slice(), true)
        .override_global("RESET_CLASSES", globals.reset_classes.as_slice(), true)
        .override_global("DROP_CLASSES", globals.drop_classes.as_slice(), true)
        .override_global("HAS_TAI_CLOCK", &globals.has_tai_clock, true)
        .override_global("KNOWS_NULL", &globals.knows_null, true)
        .override_global("HAS_TYPED_TASK", &globals.has_typed_task, true)
        .override_global("HAS_SOCKET_STORAGE", &has_socket_storage, true)
        .override_global("READS_WIRE", &reads_wire, true)
        .map_max_entries("RESETS", ring_buffer_bytes);
    if reads_wire == 0 {
        loader.map_max_entries("EARLY_EXCHANGES", 1);
    }
    if has_socket_storage == 1 {
        // Never used there: no memory for it.
        loader.map_max_entries("SOCKETS_BY_ADDRESS", 1);
    }
    let object = if globals.has_rules { OBJECT } else { OBJECT_WITHOUT_RULES };
    loader.load(object).map_err(|error| KernelError::Load(chain(&error)))
}

/// Attaches the programs of one hook, all or none, or says why it cannot run here.
fn attach(programs: &mut Ebpf, plan: &Plan, names: &[(&str, &str)], btf: &Btf) -> Result<(), String> {
    // All are loaded before the first is attached: half a hook would see half of its resets.
    for (place, name) in names {
        let program = programs
            .program_mut(name)
            .ok_or_else(|| format!("the embedded object has no program {name}: rebuild it with `make probes`"))?;
        let loaded = match program {
            Program::BtfTracePoint(program) => program.load(place, btf),
            Program::FEntry(program) => program.load(place, btf),
            _ => return Err(format!("the embedded object's program {name} is of another type")),
        };
        loaded.map_err(|error| explain(plan.hook, "loaded", &error))?;
    }
    for (_, name) in names {
        let attached = match programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.attach().map(drop),
            Some(Program::FEntry(program)) => program.attach().map(drop),
            _ => continue,
        };
        if let Err(error) = attached {
            unload(programs, names);
            return Err(explain(plan.hook, "attached", &error));
        }
    }
    Ok(())
}

/// Takes a hook's programs out again.
fn unload(programs: &mut Ebpf, names: &[(&str, &str)]) {
    for (_, name) in names {
        let unloaded = match programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::FEntry(program)) => program.unload(),
            _ => continue,
        };
        if let Err(error) = unloaded {
            tracing::debug!("{name} cannot be unloaded: {error}");
        }
    }
}

/// One line on a program that was refused; the verifier's own words go to the log at debug level.
fn explain(hook: &str, step: &str, error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            tracing::debug!(hook, "the verifier says: {verifier_log}");
            format!("cannot be {step}: {io_error}{}", hint(&io_error.to_string()))
        }
        other => {
            let text = chain(other);
            format!("cannot be {step}: {text}{}", hint(&text))
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn reasons_why_not(coverage: &[Coverage]) -> String {
    coverage
        .iter()
        .filter_map(|hook| Some(format!("  {}: {}", hook.hook, hook.missing.as_ref()?)))
        .collect::<Vec<_>>()
        .join("\n")
}
