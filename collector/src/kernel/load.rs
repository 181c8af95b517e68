//! Puts the eBPF programs into the running kernel: the object that fits it, and then program after program, several at a
//! time.
//!
//! Starting is the verifier's work and the reading of the kernel's types, which this does in parallel and once. What
//! each hook needs is defined in [`crate::kernel::plan`].

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Endianness,
    programs::{Program, ProgramError},
};
use probes::{
    cause::ReasonClass,
    field::{Field, Place},
};

use crate::kernel::{
    KernelError, ReasonTables,
    btf::Types,
    chain, explain,
    missed_runs::MissedRuns,
    plan::{self, ProbeSpec},
};

/// The programs, built from `probes/` (`make probes`).
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../probes/reset.bpf.o");

/// The same without rules, for kernels that have no `bpf_loop` (before 5.17), or cannot verify such a program (6.2).
static OBJECT_WITHOUT_RULES: &[u8] = aya::include_bytes_aligned!("../../../probes/reset-without-rules.bpf.o");

/// Threads that load programs; the verifier's work for each is its own.
const THREADS: usize = 2;

/// The programs that walk what there is already: name, and what is walked.
pub(super) const WALKS: [(&str, &str); 2] = [("every_task", "task"), ("every_file", "task_file")];

/// Globals of the programs, found out from the kernel's types.
pub(super) struct Globals {
    places: Vec<u32>,
    reset_classes: [u8; 64],
    drop_classes: [u8; 256],
    has_tai_clock: u32,
    has_rules: bool,
    has_typed_task: u32,
    knows_null: u32,
    pub(super) reasons: ReasonTables,
}

impl Globals {
    pub(super) fn from_types(types: &Types) -> Self {
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
        let attachments = types.enumerators("bpf_attach_type", "BPF_");
        Self {
            places,
            reset_classes,
            drop_classes,
            has_tai_clock: has("ktime_get_tai_ns"),
            // Before 6.2, which also brought `bpf_cgrp_storage_get`, the verifier gives up on a program of this size that
            // has a function of its own (`reg->precise = env->subprog_cnt > 1`, kernel/bpf/verifier.c).
            has_rules: has("loop") == 1 && has("cgrp_storage_get") == 1,
            has_typed_task: has("get_current_task_btf"),
            // Recognised by another feature of 6.13. Later releases of 6.12 have it too, and are not distinguished.
            knows_null: u32::from(attachments.iter().any(|(_, name)| name == "TRACE_UPROBE_SESSION")),
            reasons,
        }
    }
}

/// Times the steps of the start, for the log at debug level.
pub(super) struct StartupTimer(Instant);

impl StartupTimer {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Logs how long the step took that ends now, and begins the next.
    pub(super) fn lap(&mut self, step: &str) -> Duration {
        let took = self.0.elapsed();
        tracing::debug!(?took, "start: {step}");
        self.0 = Instant::now();
        took
    }
}

/// A loader, made in the background: it reads all types of the running kernel, whether they are used or not.
pub(super) fn prepare<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
) -> ScopedJoinHandle<'scope, EbpfLoader<'static>> {
    scope.spawn(|| {
        let mut loader = EbpfLoader::new();
        // The object has nothing to relocate. Its memory goes where it came from, in this thread's arena.
        loader.btf(None);
        loader
    })
}

/// Puts the object that fits this kernel into it; no program of it is loaded yet.
pub(super) fn load(
    loader: EbpfLoader<'static>,
    globals: &Globals,
    ring_buffer_bytes: u32,
    http_trace: bool,
    with_companions: bool,
) -> Result<Ebpf, KernelError> {
    // Tracing programs were given the storage of sockets and the running task's type by one series, in 5.11.
    let has_socket_storage = globals.has_typed_task;
    let (http_trace, with_companions) = (u32::from(http_trace), u32::from(with_companions));
    // Random, and other at each start.
    let seed = RandomState::new().build_hasher().finish() as u32;
    let mut loader: EbpfLoader<'_> = loader;
    loader
        .override_global("PLACES", globals.places.as_slice(), true)
        .override_global("RESET_CLASSES", globals.reset_classes.as_slice(), true)
        .override_global("DROP_CLASSES", globals.drop_classes.as_slice(), true)
        .override_global("HAS_TAI_CLOCK", &globals.has_tai_clock, true)
        .override_global("BTF_HAS_NULL_CTX", &globals.knows_null, true)
        .override_global("HAS_TYPED_TASK", &globals.has_typed_task, true)
        .override_global("HAS_SOCKET_STORAGE", &has_socket_storage, true)
        .override_global("HTTP_TRACE_ENABLED", &http_trace, true)
        .override_global("HAS_COMPANIONS", &with_companions, true)
        .override_global("HASH_SEED", &seed, true)
        .map_max_entries("RESETS", ring_buffer_bytes);
    if http_trace == 0 {
        loader.map_max_entries("EARLY_HTTP_REQUESTS", 1);
    }
    if with_companions == 0 {
        loader.map_max_entries("HANDLED", 1);
    }
    if has_socket_storage == 1 {
        // Never used there: no memory for it.
        loader.map_max_entries("SOCKETS_BY_ADDRESS", 1);
    }
    let object = if globals.has_rules { OBJECT } else { OBJECT_WITHOUT_RULES };
    loader.load(object).map_err(|error| KernelError::Load(chain(&error)))
}

/// What became of each program that was to be loaded, by name.
pub(super) struct VerifierResults(HashMap<String, Result<(), ProgramError>>);

impl VerifierResults {
    /// Loads these programs, each a place and a name, and what walks the kernel; `types` are the running kernel's.
    pub(super) fn reach(programs: &mut Ebpf, names: &[(&str, &str)], types: &Types) -> Result<Self, KernelError> {
        let places: HashMap<&str, &str> =
            names.iter().chain(&WALKS.map(|(name, kind)| (kind, name))).map(|(place, name)| (*name, *place)).collect();
        let btf = skeleton(&places, types)?;
        // The last go first: they are the largest, and the end should not wait for one of them.
        let waiting: Vec<_> = names.iter().map(|(_, name)| *name).chain(WALKS.map(|(name, _)| name)).collect();
        let order = |name: &str| waiting.iter().position(|other| *other == name);
        let mut queue: Vec<_> = programs
            .programs_mut()
            .filter_map(|(name, program)| Some((order(name)?, name.to_owned(), program)))
            .collect();
        queue.sort_by_key(|(order, ..)| *order);
        let (queue, results) = (Mutex::new(queue), Mutex::new(HashMap::new()));
        let work = || {
            // In a statement of its own: the queue is free while the verifier works.
            while let Some((_, name, program)) = { lock(&queue).pop() } {
                let verdict = load_program(program, places.get(name.as_str()).copied().unwrap_or_default(), &btf);
                lock(&results).insert(name, verdict);
            }
        };
        thread::scope(|scope| {
            for _ in 1..THREADS {
                scope.spawn(work);
            }
            work();
        });
        Ok(Self(results.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Whether a program is loaded; else why not, for this hook.
    pub(super) fn take(&mut self, hook: &str, name: &str) -> Result<(), String> {
        match self.0.remove(name) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(explain(hook, "loaded", &error)),
            None => Err(format!("the embedded object has no program {name}: rebuild it with `make probes`")),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names under which the loader looks for what the programs are loaded for, in types of their own: to read all the
/// kernel's once more would take longer than the verifier.
fn skeleton(places: &HashMap<&str, &str>, types: &Types) -> Result<Btf, KernelError> {
    let names: Vec<String> = places
        .values()
        .flat_map(|place| [format!("btf_trace_{place}"), format!("bpf_iter_{place}"), (*place).to_owned()])
        .collect();
    Btf::parse(&types.skeleton(&names), Endianness::default()).map_err(|error| KernelError::Load(error.to_string()))
}

fn load_program(program: &mut Program, place: &str, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.load(place, btf),
        Program::FEntry(program) => program.load(place, btf),
        Program::FExit(program) => program.load(place, btf),
        Program::Iter(program) => program.load(place, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Attaches the programs of one hook, all or none; the error says why it cannot run here.
pub(super) fn attach(
    programs: &mut Ebpf,
    plan: &ProbeSpec,
    names: &[(&str, &str)],
    results: &mut VerifierResults,
    missed_runs: &mut MissedRuns,
) -> Result<(), String> {
    // All are loaded before the first is attached: half a hook would see half of its resets.
    let refused = names.iter().filter_map(|(_, name)| results.take(plan.hook, name).err()).last();
    if let Some(why) = refused {
        unload(programs, names);
        return Err(why);
    }
    for (_, name) in names {
        let attached = match programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.attach().map(drop),
            Some(Program::FEntry(program)) => program.attach().map(drop),
            Some(Program::FExit(program)) => program.attach().map(drop),
            _ => continue,
        };
        if let Err(error) = attached {
            unload(programs, names);
            return Err(explain(plan.hook, "attached", &error));
        }
    }
    let descriptor = |name: &str| programs.program(name)?.fd().ok();
    for (_, name) in names.iter().filter(|(_, name)| plan.sees_resets && !plan::is_companion(name)) {
        // A companion is loaded only where it is used.
        missed_runs.watch(plan.hook, [Some(*name), plan::companion(name)].into_iter().flatten().filter_map(descriptor));
    }
    Ok(())
}

/// Unloads a hook's programs.
fn unload(programs: &mut Ebpf, names: &[(&str, &str)]) {
    for (_, name) in names {
        let unloaded = match programs.program_mut(name) {
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::FEntry(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            _ => continue,
        };
        if let Err(error) = unloaded {
            tracing::debug!("{name} cannot be unloaded: {error}");
        }
    }
}
