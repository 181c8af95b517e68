//! A run from start to end: probes ([`crate::app::capture`]), pipeline, exporters, services ([`crate::app::services`]),
//! signals ([`crate::app::shutdown`]), and an orderly end.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use probes::COUNTERS;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::timeout_at,
};

use crate::{
    account::{Account, DropReason},
    app::{
        capture,
        services::{self, Services},
        shutdown,
    },
    config::settings::{self, Destination, Settings},
    correlate::Correlator,
    enrich::{Enricher, pods::Pods},
    event::EventBuilder,
    export::{
        Exporter,
        console::{self, Console},
        line_writer::LineWriter,
        orphaned_storage,
    },
    host::{core_dumps, descriptors, hardening::harden, report},
    kernel::{Counters, Kernel, clock, credentials::OwnerResolver},
    model::{Decoder, reason::ReasonNames},
    otlp::batch::Batcher,
    pipeline::{
        Output, Pipeline, Stages,
        reader::{self, Order, Orders},
    },
    sampler::Sampler,
    telemetry::{logging::Log, metrics::Sources, systemd::Notifier},
};

/// From the signal on, the reader may take this long to handle what it holds.
const READER_END_TIMEOUT: Duration = Duration::from_secs(3);
/// From the signal on, the queues may take this long to drain.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(4);
/// From the signal on, everything may take this long; the last metrics and lines have the rest.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// The reader of standard output may take this long for the last lines, as long as it reads.
const CONSOLE_DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Blocking work of the runtime (a name that does not resolve, a disk) is given up after this.
const RUNTIME_END_TIMEOUT: Duration = Duration::from_millis(200);
/// The host's processes.
pub(super) const PROC: &str = "/proc";

/// Options of a run beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The file that the settings came from: read again on SIGHUP.
    pub config: Option<PathBuf>,
    /// The kernel's type information, where it is not the running kernel's own.
    pub btf: Option<PathBuf>,
    /// Log the outcome of each reset and export nothing.
    pub dry_run: bool,
    /// Let a crash leave a core file, which holds tokens and what was read of other processes.
    pub core_dumps: bool,
}

/// Runs until a signal ends it.
///
/// # Errors
/// It cannot start: no probe attaches, a destination is invalid, an address is in use.
pub fn run(settings: &Settings, options: &Options, log: &Log) -> Result<()> {
    if !options.core_dumps
        && let Err(error) = core_dumps::forbid()
    {
        tracing::warn!(event = "core_dumps_allowed", %error, "cannot forbid core dumps");
    }
    if let Err(error) = descriptors::raise_limit() {
        tracing::warn!(event = "open_files_limited", %error, "cannot raise the limit of open files");
    }
    let account = Arc::new(Account::new());
    // Threads cannot give up capabilities for each other: until that is done this thread is the only one.
    let mut kernel = capture::attach(settings, options)?;
    if let Some(btf) = &options.btf {
        capture::self_test(&mut kernel, btf, &account)?;
    }
    let mut degraded = report::less_known(&report::Host::read(&capture::btf_of(options)));
    let notifier = Arc::new(Notifier::from_environment());
    let hardened = harden(settings, || kernel.self_check())?;
    account.health.set_hardening(hardened.steps.iter().map(|(step, done)| (*step, done.is_ok())).collect());
    log.spawn().context("cannot start the log's thread")?;
    let stdout = console::stdout_writer(settings.export.console).context("cannot use standard output")?;
    stdout.spawn("console").context("cannot start the console's thread")?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    let started = Started { settings, options, log, stdout, account, notifier, runtime: runtime.handle() };
    let outcome = started.run(kernel, move || {
        degraded.drain(..).for_each(|line| tracing::warn!(event = "degraded", "{line}"));
        hardened.announce();
    });
    // Dropping the runtime would wait for its blocking work.
    runtime.shutdown_timeout(RUNTIME_END_TIMEOUT);
    outcome
}

/// The base of a run: process, threads and outputs are set up.
pub(super) struct Started<'a> {
    pub(super) settings: &'a Settings,
    pub(super) options: &'a Options,
    log: &'a Log,
    stdout: LineWriter,
    pub(super) account: Arc<Account>,
    notifier: Arc<Notifier>,
    runtime: &'a Handle,
}

impl Started<'_> {
    fn run(&self, mut kernel: Kernel, announce_host: impl FnOnce()) -> Result<()> {
        let outputs = outputs(self)?;
        let correlator = Correlator::new(&self.settings.correlation, exports_traces(&outputs));
        correlator.start_search_thread().context("cannot start the span history thread")?;
        let mut sources = Sources {
            console: Some(self.stdout.clone()),
            log: Some(self.log.clone()),
            correlator: Some(Arc::clone(&correlator)),
            ..Sources::new(Arc::clone(&self.account))
        };
        let mut services = Services::new();
        sources.traffic = self.runtime.block_on(services.start_receivers(self, &correlator))?;
        sources.pods = self.runtime.block_on(services.watch_pods(self.settings))?;
        self.account.health.set_hooks(capture::coverage(&kernel));
        let listeners = self.runtime.block_on(async { shutdown::Listeners::new() })?;
        announce_host();
        let status = capture::announce(&kernel);
        let (counters, reasons) = (kernel.counters(), kernel.reasons().clone());
        let stages = stages(self, &mut kernel, sources.pods.clone(), outputs, correlator)?;
        (sources.enrichment, sources.sampling_overflow) =
            (Some(stages.enricher.counters()), Arc::clone(&stages.sampling_overflow));
        self.runtime.block_on(services.start_telemetry(self, Arc::new(sources)))?;
        let (orders, mut reader) = start_reader(kernel, stages)?;
        register_snapshot_hooks(&self.account, &counters, &orders);
        self.notifier.ready(&status);
        services.spawn_watchdog(&self.notifier, &self.account, self.runtime);
        let control = shutdown::Control {
            options: self.options,
            settings: self.settings,
            reasons: &reasons,
            counters: &counters,
            orders: &orders,
            notifier: &self.notifier,
            log: self.log,
            needs_stdout: self.stdout_is_all().then_some(&self.stdout),
        };
        self.runtime.block_on(control.run_until_shutdown(listeners));
        self.notifier.stopping();
        self.runtime.block_on(self.end(&orders, &mut reader, services));
        self.drain_console();
        shutdown::log_counts(&counters);
        Ok(())
    }

    /// Where resets are exported to.
    pub(super) fn destinations(&self) -> &[Destination] {
        if self.options.dry_run { &[] } else { &self.settings.export.otlp }
    }

    /// Whether standard output is all that a run is for: then its reader ends the run by closing it, as `head` does.
    fn stdout_is_all(&self) -> bool {
        let Settings { admin, correlation, export, .. } = self.settings;
        let prints = export.console != settings::Console::Off;
        prints
            && self.destinations().is_empty()
            && admin.is_none()
            && correlation.grpc.is_none()
            && correlation.http.is_none()
    }

    /// Waits a moment for the reader of the last lines.
    fn drain_console(&self) {
        self.stdout.drain(Instant::now() + CONSOLE_DRAIN_TIMEOUT);
        match self.stdout.dropped() {
            0 => {}
            dropped => tracing::warn!(
                event = "console_lines_dropped",
                dropped,
                "lines dropped because standard output was not read or could not be written"
            ),
        }
    }

    /// Sends what is left, within [`END_TIMEOUT`].
    async fn end(&self, orders: &Orders, reader: &mut Reader, services: Services) {
        let signalled = Instant::now();
        orders.give(Order::Stop);
        match timeout_at((signalled + READER_END_TIMEOUT).into(), reader).await {
            Ok(Ok(exporters)) => services::flush(exporters, signalled + FLUSH_TIMEOUT).await,
            Ok(Err(_)) => tracing::error!(event = "reader_failed", "the reader thread panicked"),
            Err(_) => {
                tracing::error!(event = "reader_stuck", "the reader thread does not end: what it holds is dropped");
                self.account.drop_unfinished(DropReason::Shutdown);
            }
        }
        services.stop(signalled + END_TIMEOUT).await;
    }
}

fn outputs(started: &Started<'_>) -> Result<Vec<Output>> {
    for path in orphaned_storage(started.destinations()) {
        tracing::warn!(
            event = "storage_orphaned", path = %path.display(),
            "batches are stored for a destination that is not configured any more: they are not sent; configure it again, \
             or delete the directory"
        );
    }
    let start = |destination: &Destination| -> Result<Output> {
        let signals = started.settings.export.signals_of(destination);
        let exporter = Exporter::start(destination, signals, Arc::clone(&started.account), started.runtime)?;
        Ok(Output::new(Batcher::new(destination.batch.clone(), signals), exporter))
    };
    started.destinations().iter().map(start).collect()
}

/// Whether spans are exported: else a log record must not name a span of ours.
fn exports_traces(outputs: &[Output]) -> bool {
    outputs.iter().any(Output::takes_traces)
}

fn stages(
    started: &Started<'_>,
    kernel: &mut Kernel,
    pods: Option<Arc<Pods>>,
    outputs: Vec<Output>,
    correlator: Arc<Correlator>,
) -> Result<Stages> {
    let settings = started.settings;
    let credentials = kernel.take_credentials().context("the credentials map is already in use")?;
    let enrichment =
        settings::Enrichment { resource: services::static_attributes(settings), ..settings.enrichment.clone() };
    let enricher = Enricher::new(&enrichment, PROC.into(), pods, Instant::now());
    let tables = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), enricher.host());
    let spans = exports_traces(&outputs);
    Ok(Stages {
        decoder,
        owners: OwnerResolver::new(credentials),
        enricher,
        correlator,
        capture: settings.capture.clone(),
        filters: settings.filters.clone(),
        sampler: Sampler::new(settings.sampling.clone()),
        builder: EventBuilder::from_os(spans),
        console: Console::for_stdout(settings.export.console),
        stdout: started.stdout.clone(),
        outputs,
        account: Arc::clone(&started.account),
        sampling_overflow: Arc::default(),
        dry_run: started.options.dry_run,
    })
}

/// The reader thread's end: it hands back what sends.
type Reader = oneshot::Receiver<Vec<Exporter>>;

fn start_reader(mut kernel: Kernel, stages: Stages) -> Result<(Orders, Reader)> {
    let (orders, inbox) = reader::orders().context("cannot start the reader")?;
    let (ended, reader) = oneshot::channel();
    let read = move || {
        let exporters = reader::run(&mut kernel, Pipeline::new(stages), &inbox).finish(clock::now());
        if ended.send(exporters).is_err() {
            tracing::debug!(event = "reader_late", "the reader ended after its deadline");
        }
    };
    thread::Builder::new().name("reader".into()).spawn(read).context("cannot start the reader")?;
    Ok((orders, reader))
}

/// Every snapshot of the account has the kernel's counters of that moment, and requests a heartbeat of the reader.
fn register_snapshot_hooks(account: &Account, counters: &Arc<Counters>, orders: &Orders) {
    let (counters, orders) = (Arc::clone(counters), orders.clone());
    account.on_snapshot(move |account| {
        account.heartbeat.request();
        orders.wake();
        let tallies = counters.read();
        if let Ok(captured) = <&[u64; COUNTERS as usize]>::try_from(tallies.captured.as_slice()) {
            let lost = [(DropReason::RingBufferFull, tallies.lost), (DropReason::RateLimited, tallies.rate_limited)];
            account.ledger.set_kernel_counts(captured, tallies.filtered, &lost);
        }
        account.health.set_missed_runs(&tallies.missed_runs);
    });
}
