//! `demo`: real resets of each cause, each in a network namespace of its own, captured and shown as `run` would.
//!
//! A namespace belongs to the thread that made it and goes with it, also when the program is interrupted: nothing of
//! the host is touched and nothing is left to clean. Its inode says which scenario a captured reset belongs to.

mod actions;
mod scenario;
mod segment;
mod verdict;

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

pub use crate::app::demo::verdict::Outcome;
use crate::app::demo::{
    scenario::{Act, Family, SCENARIOS, Scenario},
    verdict::{Observed, judge, table},
};
use crate::{
    config::settings,
    enrich::host as host_resource,
    event::EventBuilder,
    export::console::Console,
    host::{
        namespace::{self, Namespace, NamespaceError},
        report,
    },
    kernel::clock,
    kernel::{KERNEL_BTF, Kernel, http_trace, plan},
    model::resource::Resource,
    model::{Decoder, Reset, read_record, reason::ReasonNames},
    pipeline::retraction::TentativeReceives,
};

/// How the demo runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel's types.
    pub btf: PathBuf,
    /// Size of the ring buffer, bytes: a power of two.
    pub ring_buffer_bytes: u32,
    /// How the resets are shown. The table goes to standard output, and with JSON lines to standard error.
    pub console: settings::Console,
    /// A command that runs until it is killed: it becomes the owner of a socket, as its standard input.
    pub idle_command: Vec<OsString>,
}

impl Options {
    /// Lines for a person; this very program as the idle_command of a socket, by a subcommand that calls [`hold`].
    ///
    /// # Errors
    /// The program's own file is not known.
    pub fn new(idle_subcommand: &str) -> io::Result<Self> {
        Ok(Self {
            btf: PathBuf::from(KERNEL_BTF),
            ring_buffer_bytes: 1 << 20,
            console: settings::Console::Pretty,
            idle_command: vec![std::env::current_exe()?.into(), idle_subcommand.into()],
        })
    }
}

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Nothing can be captured: why, and what to do.
    #[error("{0}")]
    Kernel(String),
    /// No scenario can be made.
    #[error("no reset can be made: {0}")]
    Namespace(NamespaceError),
    /// A thread could not be started, or ended before its time.
    #[error("cannot run a scenario: {0}")]
    Thread(io::Error),
    /// The lines or the table cannot be written.
    #[error("cannot write the demo's output: {0}")]
    Output(io::Error),
}

/// Makes every reset, shows each as it is captured, and ends with the table.
///
/// # Errors
/// Where not even a first scenario could be made and captured; a reset missed or wrong is in the outcome.
pub fn run(options: &Options, out: &mut impl Write, notes: &mut impl Write) -> Result<Outcome, DemoError> {
    let host = report::Host::read(&options.btf);
    let wanted = |hook: &str| hook != http_trace::HOOK && plan::has_use(hook);
    let kernel = Kernel::attach(&options.btf, options.ring_buffer_bytes, wanted)
        .map_err(|error| DemoError::Kernel(report::refusal(&host, &error)))?;
    let covered = report::report(&host, Ok((&kernel).into()), None);
    if !covered.is_complete() {
        write_all(notes, &format!("{}\n{}\n", covered.start_up_line(), covered.advice.join("\n")))?;
    }
    let mut watch = Watch::new(kernel, Console::for_stdout(options.console), out);
    let mut runs: Vec<Run> = SCENARIOS.iter().map(|_| Run::default()).collect();
    for slow in [true, false] {
        for (place, scenario) in SCENARIOS.iter().enumerate() {
            match scenario.act {
                Act::CannotMake(why) if slow => runs[place].observed.failure = Some(why.to_owned()),
                Act::MakeSlowly(make) if slow => runs[place].start(scenario, make, options)?,
                Act::Make(make) if !slow => {
                    runs[place].start(scenario, make, options)?;
                    watch.until_done(&mut runs, place)?;
                }
                _ => {}
            }
        }
    }
    for place in 0..runs.len() {
        watch.until_done(&mut runs, place)?;
    }
    watch.settle(&mut runs)?;
    let rows: Vec<_> = SCENARIOS.iter().zip(&runs).flat_map(|(scenario, run)| judge(scenario, &run.observed)).collect();
    let table = table(&rows);
    if options.console == settings::Console::Json {
        write_all(notes, &table)?;
    } else {
        write_all(out, &format!("\n{table}"))?;
    }
    Ok(Outcome::of(&rows))
}

/// Writes a text, unless its reader has gone: the outcome is still wanted.
fn write_all(out: &mut impl Write, text: &str) -> Result<(), DemoError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(DemoError::Output(error)),
        _ => Ok(()),
    }
}

/// The idle_command of a socket: does nothing until it is killed, or its parent dies, or a minute has passed.
pub fn hold() {
    // Where this fails the minute is still the end of it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    thread::sleep(Duration::from_secs(60));
}

/// A scenario under way.
#[derive(Default)]
struct Run {
    observed: Observed,
    /// Kept to the end, so that no later namespace gets this one's inode.
    namespace: Option<Namespace>,
    done: Option<Receiver<Done>>,
}

/// What a scenario's thread says at its end.
struct Done {
    outcome: io::Result<()>,
    counted: Option<u64>,
}

impl Run {
    /// Starts a scenario; when this returns, its namespace is known.
    fn start(
        &mut self,
        scenario: &Scenario,
        make: fn(Family, &Options) -> io::Result<()>,
        options: &Options,
    ) -> Result<(), DemoError> {
        let (entered, namespace) = channel();
        let (finished, done) = channel();
        let (family, options) = (scenario.family, options.clone());
        thread::Builder::new()
            .name("demo".to_owned())
            .spawn(move || make_in_namespace(make, family, &options, &entered, &finished))
            .map_err(DemoError::Thread)?;
        let namespace = namespace.recv().map_err(|gone| DemoError::Thread(io::Error::other(gone)))?;
        self.namespace = Some(namespace.map_err(DemoError::Namespace)?);
        self.done = Some(done);
        Ok(())
    }

    /// Whether it is over; takes over what its thread said.
    fn is_done(&mut self) -> bool {
        use std::sync::mpsc::TryRecvError;
        let Some(done) = &self.done else { return true };
        match done.try_recv() {
            Err(TryRecvError::Empty) => return false,
            Err(TryRecvError::Disconnected) => self.observed.failure = Some("its thread ended too early".to_owned()),
            Ok(Done { outcome, counted }) => {
                self.observed.failure = outcome.err().map(|error| error.to_string());
                self.observed.counted = counted;
            }
        }
        self.done = None;
        true
    }
}

fn make_in_namespace(
    make: fn(Family, &Options) -> io::Result<()>,
    family: Family,
    options: &Options,
    entered: &Sender<Result<Namespace, NamespaceError>>,
    finished: &Sender<Done>,
) {
    let namespace = namespace::enter();
    let inside = namespace.is_ok();
    // Where nobody listens any more, the demo has ended.
    if entered.send(namespace).is_err() || !inside {
        return;
    }
    let outcome = make(family, options);
    finished.send(Done { outcome, counted: resets_sent() }).ok();
}

/// `TcpOutRsts` of this thread's network namespace: each reset that TCP sent, by the kernel's own count.
fn resets_sent() -> Option<u64> {
    out_rsts(&fs::read_to_string("/proc/thread-self/net/snmp").ok()?)
}

fn out_rsts(snmp: &str) -> Option<u64> {
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (tcp.next()?, tcp.next()?);
    let (_, value) = names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == "OutRsts")?;
    value.parse().ok()
}

/// Reads and shows what is captured in the demo's own namespaces.
struct Watch<'a, W> {
    kernel: Kernel,
    decoder: Decoder,
    builder: EventBuilder,
    console: Console,
    out: &'a mut W,
    tentative: TentativeReceives,
}

impl<'a, W: Write> Watch<'a, W> {
    /// Between two looks at the ring buffer.
    const DRAIN_INTERVAL: Duration = Duration::from_millis(5);
    /// How long after the last reset was made: longer than any record is held back.
    const SETTLE: Duration = Duration::from_millis(80);

    fn new(kernel: Kernel, console: Console, out: &'a mut W) -> Self {
        let reasons = kernel.reasons().clone();
        let reasons = ReasonNames::new(reasons.reset, reasons.drop);
        let host = Resource::new(host_resource::attributes(Path::new("/proc")));
        Self {
            decoder: Decoder::new(reasons, host),
            builder: EventBuilder::from_os(false),
            console,
            out,
            tentative: TentativeReceives::default(),
            kernel,
        }
    }

    /// Shows what comes until a scenario is over, and what it left in the ring buffer.
    fn until_done(&mut self, runs: &mut [Run], place: usize) -> Result<(), DemoError> {
        while !runs[place].is_done() {
            thread::sleep(Self::DRAIN_INTERVAL);
            self.look(runs)?;
        }
        self.look(runs)
    }

    /// Shows the last that comes.
    fn settle(&mut self, runs: &mut [Run]) -> Result<(), DemoError> {
        let end = Instant::now() + Self::SETTLE;
        while Instant::now() < end {
            thread::sleep(Self::DRAIN_INTERVAL);
            self.look(runs)?;
        }
        Ok(())
    }

    fn look(&mut self, runs: &mut [Run]) -> Result<(), DemoError> {
        let now = clock::now();
        let mut resets = Vec::new();
        let Self { kernel, decoder, tentative, .. } = self;
        kernel.drain(usize::MAX, |bytes| {
            // A record of a shape that is not ours shows in the table, as a reset missed.
            if let Ok(record) = read_record(bytes)
                && let Ok(reset) = decoder.decode(&record, now.clock, now.unix_ns)
            {
                resets.extend(tentative.admit(&record, reset, now.instant));
            }
        });
        resets.extend(std::iter::from_fn(|| tentative.take_due(now.instant)));
        for reset in &resets {
            self.show(reset, runs)?;
        }
        self.console.flush(self.out).map_err(DemoError::Output).map(drop)
    }

    /// Shows a reset of the demo's own; the host's others are not its business.
    fn show(&mut self, reset: &Reset, runs: &mut [Run]) -> Result<(), DemoError> {
        let is_own = |run: &&mut Run| {
            run.namespace.as_ref().is_some_and(|namespace| Some(namespace.inode) == reset.network_namespace)
        };
        let Some(run) = runs.iter_mut().find(is_own) else { return Ok(()) };
        run.observed.given.push((reset.direction, reset.cause));
        // A reader that goes away ends the lines in order; the outcome is still wanted.
        self.console.push(&self.builder.build(reset), self.out).map_err(DemoError::Output).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_kernels_count_of_resets() {
        let snmp =
            "Ip: Forwarding OutRsts\nIp: 1 7\nTcp: RtoAlgorithm InErrs OutRsts\nTcp: 1 0 42\nUdp: OutRsts\nUdp: 9\n";
        assert_eq!(out_rsts(snmp), Some(42));
        assert_eq!(out_rsts("Tcp: OutRsts\n"), None);
        assert_eq!(out_rsts(""), None);
    }
}
