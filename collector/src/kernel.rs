//! The eBPF programs in the running kernel: loaded hook by hook, read, counted.
//!
//! A hook that cannot run here is left out, with the reason in [`Kernel::coverage`]. Decides
//! nothing about a reset: the programs do, and [`crate::model`] reads what they wrote.

pub mod btf;
pub mod clock;
mod counters;
pub mod credentials;
pub mod http_trace;
mod load;
mod missed_runs;
pub mod plan;
pub mod vintage;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf},
    programs::{Iter, ProgramError},
};
use probes::{
    control::Control,
    rule::{MAX_RULES, Rule},
};
use zerocopy::IntoBytes;

use crate::{
    kernel::{
        btf::{BtfError, Types},
        credentials::{Credentials, ProcessByKey},
        http_trace::HttpPorts,
        load::{Globals, StartupTimer, VerifierResults},
        missed_runs::MissedRuns,
        plan::{AttachStep, PROBES, ProbeSpec},
    },
    pushdown,
};

pub use crate::kernel::counters::{Counters, Counts, Tallies};

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
    credentials: Option<Credentials>,
    ring: RingBuf<MapData>,
    control: Array<MapData, [u32; 4]>,
    rules: Array<MapData, [u8; RULE_LEN]>,
    wire_ports: HttpPorts,
    /// What the map holds, but for the programs' own writes.
    control_words: Control,
    /// Whether the kernel could walk all tasks.
    walks_tasks: bool,
    counters: Arc<Counters>,
    coverage: Vec<Coverage>,
    reasons: ReasonTables,
    task_walk_duration: Duration,
}

/// The kernel's names for its reasons, by number, without their prefixes.
#[derive(Clone, Debug, Default)]
pub struct ReasonTables {
    /// `enum sk_rst_reason`
    pub reset: Vec<(u32, String)>,
    /// `enum skb_drop_reason`
    pub drop: Vec<(u32, String)>,
}

impl Kernel {
    /// Loads the programs and attaches every hook that can run here.
    ///
    /// `ring_buffer_bytes` is a power of two; `wanted` leaves out hooks by name, [`http_trace::HOOK`] among them.
    pub fn attach(btf: &Path, ring_buffer_bytes: u32, wanted: impl Fn(&str) -> bool) -> Result<Self, KernelError> {
        let mut watch = StartupTimer::start();
        let (types, loader) = thread::scope(|scope| {
            let loader = load::prepare(scope);
            (Types::from_file(btf), loader.join())
        });
        let types = types?;
        let loader = loader.map_err(|_| KernelError::Load("the loader failed; its message stands above".to_owned()))?;
        watch.lap("the kernel's types are read");
        let globals = Globals::from_types(&types);
        let with_companions = wanted(plan::COMPANION);
        let steps = |plan: &'static ProbeSpec| match plan.step(&types, with_companions) {
            AttachStep::NotNeeded => None,
            _ if !wanted(plan.hook) => Some((plan, Err("switched off in the configuration".to_owned()))),
            AttachStep::CannotRun(why) => Some((plan, Err(why))),
            AttachStep::Attach(names) => Some((plan, Ok(names))),
        };
        let steps: Vec<(&ProbeSpec, Result<Vec<_>, String>)> = PROBES.iter().filter_map(steps).collect();
        let http_trace = wanted(http_trace::HOOK);
        let mut programs = load::load(
            loader,
            &globals,
            ring_buffer_bytes,
            http_trace && http_trace::can_run(&types),
            with_companions,
        )?;
        watch.lap("the maps are there");
        let names: Vec<_> = steps.iter().filter_map(|(_, names)| names.as_ref().ok()).flatten().copied().collect();
        let mut results = VerifierResults::reach(&mut programs, &names, &types)?;
        watch.lap("the programs are verified");
        let ring = RingBuf::try_from(take(&mut programs, "RESETS")?).map_err(|_| KernelError::Map("RESETS"))?;
        let control = Array::try_from(take(&mut programs, "CONTROL")?).map_err(|_| KernelError::Map("CONTROL"))?;
        let rules = Array::try_from(take(&mut programs, "RULES")?).map_err(|_| KernelError::Map("RULES"))?;
        let suppressed =
            PerCpuArray::try_from(take(&mut programs, "SUPPRESSED")?).map_err(|_| KernelError::Map("SUPPRESSED"))?;
        let captured =
            PerCpuArray::try_from(take(&mut programs, "CAPTURED")?).map_err(|_| KernelError::Map("CAPTURED"))?;
        let mut by_key = |name| ProcessByKey::try_from(take(&mut programs, name)?).map_err(|_| KernelError::Map(name));
        let credentials =
            Credentials { processes: by_key("PROCESSES")?, ended: by_key("EXITED")?, listeners: by_key("LISTENERS")? };
        let lost = PerCpuArray::try_from(take(&mut programs, "RINGBUF_DROPS")?)
            .map_err(|_| KernelError::Map("RINGBUF_DROPS"))?;
        let wire_ports = HttpPorts::take(&mut programs)?;
        let mut missed_runs = MissedRuns::default();
        let mut coverage: Vec<Coverage> = steps
            .into_iter()
            .map(|(plan, names)| {
                let attach = |names: Vec<_>| load::attach(&mut programs, plan, &names, &mut results, &mut missed_runs);
                let missing = names.and_then(attach).err();
                Coverage { hook: plan.hook, sees: plan.sees, sees_resets: plan.sees_resets, missing }
            })
            .collect();
        watch.lap("the hooks are attached");
        if http_trace {
            let missing = http_trace::attach(&mut programs, &types, Path::new("/proc")).err();
            coverage.push(Coverage { hook: http_trace::HOOK, sees: http_trace::SEES, sees_resets: false, missing });
        }
        if coverage.iter().all(|hook| !hook.sees_resets || hook.missing.is_some()) {
            return Err(KernelError::NoHook(reasons_why_not(&coverage)));
        }
        for (name, _) in load::WALKS {
            if let Err(why) = results.take(name, name) {
                tracing::warn!(event = "walk_not_loaded", walk = name, error = %why, "owners of older sockets will not be known");
            }
        }
        let mut kernel = Self {
            programs: Some(programs),
            credentials: Some(credentials),
            ring,
            control,
            rules,
            wire_ports,
            control_words: Control::default(),
            walks_tasks: false,
            counters: Arc::new(Counters { captured, lost, suppressed, missed_runs }),
            coverage,
            reasons: globals.reasons,
            task_walk_duration: Duration::ZERO,
        };
        // After the hooks, so that none is missed in between.
        kernel.walk_tasks();
        kernel.walk_files();
        kernel.task_walk_duration = watch.lap("who is there already is known");
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

    /// Whether the calling thread can still do what a running collector needs: read counters, set rules, walk
    /// through the tasks.
    pub fn self_check(&mut self) -> bool {
        let tasks = |programs| iterate(programs, "every_task").is_ok();
        // Where the tasks could not be walked at the start, that proves nothing.
        let tasks = !self.walks_tasks || self.programs.as_mut().is_none_or(tasks);
        tasks && self.counters.captured.get(&0, 0).is_ok() && self.write_control(self.control_words).is_ok()
    }

    /// Walks all tasks, so that processes are known by their current credentials.
    pub fn walk_tasks(&mut self) {
        self.walks_tasks = self.iterate("every_task", "task");
    }

    /// Walks all files of all tasks, to find which process holds each listener now.
    pub fn walk_files(&mut self) {
        self.control_words.walk = self.control_words.walk.wrapping_add(1);
        if let Err(error) = self.write_control(self.control_words) {
            tracing::warn!(event = "control_failed", %error, "cannot number a walk through all files");
        }
        self.iterate("every_file", "task_file");
    }

    /// How long it took to name the owners of the sockets and the processes that were there already.
    pub fn task_walk_duration(&self) -> Duration {
        self.task_walk_duration
    }

    /// Whether it could.
    fn iterate(&mut self, program: &str, kind: &str) -> bool {
        let Some(programs) = &mut self.programs else { return false };
        let walked = iterate(programs, program);
        if let Err(error) = &walked {
            tracing::warn!(event = "walk_failed", kind, %error, "owners of some sockets will not be known");
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
    pub fn request_wakeup(&mut self) {
        if let Err(error) = self.write_control(Control { reader_sleeps: 1, ..self.control_words }) {
            tracing::warn!(event = "wakeup_failed", %error, "cannot request a wake-up, records wait for the next timer");
        }
    }

    /// Gives the kernel other rules, from one reset to the next: those of an old program are never mixed with a new one's.
    pub fn set_rules(&mut self, program: &pushdown::Program) -> Result<(), MapError> {
        if program.is_empty() {
            self.control_words.program = 0;
            return self.write_control(self.control_words);
        }
        let next = if self.control_words.program & 1 == 0 { 3 } else { 2 };
        let first = (next & 1) * MAX_RULES as u32;
        for (index, rule) in (first..).zip(program.rules()) {
            let mut bytes = [0; RULE_LEN];
            bytes.copy_from_slice(rule.as_bytes());
            self.rules.set(index, bytes, 0)?;
        }
        self.control_words.program = next;
        self.write_control(self.control_words)
    }

    /// Sets the maximum of records per second; `None` for no limit.
    pub fn set_rate_limit(&mut self, records_per_second: Option<u32>) -> Result<(), MapError> {
        self.control_words.interval_ns = records_per_second.map_or(0, |count| (1_000_000_000 / count.max(1)).max(1));
        self.write_control(self.control_words)
    }

    /// Sets the servers' ports on which `traceparent` is read; without [`http_trace::HOOK`] it is read on none.
    pub fn set_http_ports(&mut self, ports: &[u16]) -> Result<(), MapError> {
        self.wire_ports.set(ports)
    }

    fn write_control(&mut self, control: Control) -> Result<(), MapError> {
        self.control.set(0, [control.reader_sleeps, control.program, control.interval_ns, control.walk], 0)
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
fn iterate(programs: &mut Ebpf, name: &str) -> Result<(), String> {
    let program: Option<&mut Iter> = programs.program_mut(name).and_then(|program| program.try_into().ok());
    let program = program.ok_or("no such program")?;
    let link = program.attach().and_then(|id| program.take_link(id)).map_err(|error| chain(&error))?;
    let mut file = link.into_file().map_err(|error| chain(&error))?;
    io::copy(&mut file, &mut io::sink()).map_err(|error| error.to_string())?;
    Ok(())
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

/// A line for each reason, after the hooks that it holds for: mostly one for all.
fn reasons_why_not(coverage: &[Coverage]) -> String {
    let mut lines: Vec<(&str, Vec<&str>)> = Vec::new();
    for (hook, why) in coverage.iter().filter_map(|hook| Some((hook.hook, hook.missing.as_deref()?))) {
        match lines.iter_mut().find(|(reason, _)| *reason == why) {
            Some((_, hooks)) => hooks.push(hook),
            None => lines.push((why, vec![hook])),
        }
    }
    let lines = lines.iter().map(|(why, hooks)| format!("  {}: {why}", hooks.join(", ")));
    lines.collect::<Vec<_>>().join("\n")
}
