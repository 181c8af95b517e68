//! The main job, wired together: kernel, pipeline, exporters, receivers, and the end. Signals are obeyed in
//! [`crate::app::shutdown`].

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use probes::{COUNTERS, rule::reason_key};
use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    time::timeout_at,
};

#[cfg(feature = "kubernetes")]
use crate::enrich::kubernetes;
use crate::{
    account::{Account, DropReason, HookCoverage},
    app::shutdown,
    config::{
        environment,
        settings::{self, Destination, Settings},
    },
    correlate::Correlator,
    enrich::{Enricher, host as host_resource, pods::Pods},
    event::EventBuilder,
    export::{
        Exporter,
        console::{self, Console},
        line_writer::LineWriter,
    },
    host::{core_dumps, descriptors, hardening::harden, report, selftest},
    kernel::clock,
    kernel::{Counters, KERNEL_BTF, Kernel, ReasonTables, credentials::OwnerResolver, http_trace, plan, vintage},
    model::{Decoder, reason::ReasonNames, resource::ResourceValue, signal::Signal},
    otlp::{batch::Batcher, client::Client},
    pipeline::{
        Output, Pipeline, Stages,
        reader::{self, Order, Orders},
    },
    pushdown::{self, Knowledge, Program},
    receiver::{Backends, Receivers, metrics::Traffic, peer_process::find_sender},
    sampler::Sampler,
    telemetry::{self, Telemetry, admin::Admin, logging::Log, metrics::Sources, systemd::Manager},
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
/// The status for the service manager where nothing is missing.
const SEES_ALL: &str = "sees every reset of this host";
/// Where the host's processes are seen.
const PROC: &str = "/proc";

/// How the main job is run, beside the configuration.
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
/// What keeps it from starting: no hook can run, a destination is wrong, an address is taken.
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
    let mut kernel = attach(settings, options)?;
    if let Some(btf) = &options.btf {
        try_hooks(&mut kernel, btf, &account)?;
    }
    let mut degraded = report::less_known(&report::Host::read(&btf_of(options)));
    let manager = Arc::new(Manager::from_environment());
    let hardened = harden(settings, || kernel.still_works())?;
    account.health.set_hardening(hardened.steps.iter().map(|(step, done)| (*step, done.is_ok())).collect());
    log.spawn().context("cannot start the log's thread")?;
    let stdout = console::stdout_writer(settings.export.console).context("cannot use standard output")?;
    stdout.spawn("console").context("cannot start the console's thread")?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    let started = Started { settings, options, log, stdout, account, manager, runtime: runtime.handle() };
    let outcome = started.run(kernel, move || {
        degraded.drain(..).for_each(|line| tracing::warn!(event = "degraded", "{line}"));
        hardened.announce();
    });
    // Dropping the runtime would wait for its blocking work.
    runtime.shutdown_timeout(RUNTIME_END_TIMEOUT);
    outcome
}

/// What the rest of the run is built on.
struct Started<'a> {
    settings: &'a Settings,
    options: &'a Options,
    log: &'a Log,
    stdout: LineWriter,
    account: Arc<Account>,
    manager: Arc<Manager>,
    runtime: &'a Handle,
}

impl Started<'_> {
    fn run(&self, mut kernel: Kernel, announce_host: impl FnOnce()) -> Result<()> {
        let outputs = outputs(self)?;
        let correlator = Correlator::new(&self.settings.correlation, traces_go_out(&outputs));
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
        self.account.health.set_hooks(hooks(&kernel));
        let listeners = self.runtime.block_on(async { shutdown::Listeners::new() })?;
        announce_host();
        let status = announce(&kernel);
        let (counters, reasons) = (kernel.counters(), kernel.reasons().clone());
        let stages = stages(self, &mut kernel, sources.pods.clone(), outputs, correlator)?;
        (sources.enrichment, sources.sampling_overflow) =
            (Some(stages.enricher.counters()), Arc::clone(&stages.sampling_overflow));
        self.runtime.block_on(services.start_telemetry(self, Arc::new(sources)))?;
        let (orders, mut reader) = start_reader(kernel, stages)?;
        look_after(&self.account, &counters, &orders);
        self.manager.ready(&status);
        services.watched_by(&self.manager, &self.account, self.runtime);
        let control = shutdown::Control {
            options: self.options,
            settings: self.settings,
            reasons: &reasons,
            counters: &counters,
            orders: &orders,
            manager: &self.manager,
            log: self.log,
            needs_stdout: self.stdout_is_all().then_some(&self.stdout),
        };
        self.runtime.block_on(control.run_until_shutdown(listeners));
        self.manager.stopping();
        self.runtime.block_on(self.end(&orders, &mut reader, services));
        self.drain_console();
        shutdown::print_counts(&counters);
        Ok(())
    }

    /// Where resets are exported to.
    fn destinations(&self) -> &[Destination] {
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
            Ok(Ok(exporters)) => flush(exporters, signalled + FLUSH_TIMEOUT).await,
            Ok(Err(_)) => tracing::error!(event = "reader_failed", "the reader thread panicked"),
            Err(_) => {
                tracing::error!(event = "reader_stuck", "the reader thread does not end: what it holds is dropped");
                self.account.drop_unfinished(DropReason::Shutdown);
            }
        }
        services.stop(signalled + END_TIMEOUT).await;
    }
}

fn attach(settings: &Settings, options: &Options) -> Result<Kernel> {
    let btf = btf_of(options);
    let capture = &settings.capture;
    let ports: Vec<u16> = settings.correlation.http_header_ports.iter().collect();
    // The switches are the kernel's first rules; the hooks that see every packet are left out where they may be.
    let wanted = |hook: &str| match hook {
        "net_dev_queue" => capture.firewall,
        http_trace::HOOK => !ports.is_empty(),
        other => plan::has_use(other),
    };
    let mut kernel = Kernel::attach(&btf, capture.ring_buffer_bytes, wanted)
        .map_err(|error| anyhow!("{}", report::refusal(&report::Host::read(&btf), &error)))?;
    kernel.set_ceiling(capture.max_records_per_second).context("cannot set the ceiling")?;
    kernel.set_wire_ports(&ports).context("cannot tell the kernel the ports of correlation.http_headers")?;
    // A dry run shows the fate of every reset, so the kernel drops none.
    if !options.dry_run {
        kernel.set_rules(&program(settings, kernel.reasons())).context("cannot give the kernel its rules")?;
    }
    Ok(kernel)
}

fn btf_of(options: &Options) -> PathBuf {
    options.btf.clone().unwrap_or_else(|| KERNEL_BTF.into())
}

/// What of the filters the kernel applies.
pub fn program(settings: &Settings, reasons: &ReasonTables) -> Program {
    let keys = |table: &'_ [(u32, String)], is_drop| {
        let key = move |number: u32| Some(reason_key(u16::try_from(number).ok()?, is_drop));
        table.iter().filter_map(|(number, name)| Some((key(*number)?, name.clone()))).collect::<Vec<_>>()
    };
    let named: Vec<(u32, String)> = keys(&reasons.reset, false).into_iter().chain(keys(&reasons.drop, true)).collect();
    let reasons: Vec<(u32, &str)> = named.iter().map(|(key, name)| (*key, name.as_str())).collect();
    pushdown::compile(&settings.capture, &settings.filters, &Knowledge { undecided_causes: 0, reasons: &reasons })
}

/// With types that are not the running kernel's own: resets made for it must come out right, else the hooks misread.
fn try_hooks(kernel: &mut Kernel, btf: &Path, account: &Account) -> Result<()> {
    let difference = vintage::difference(btf);
    let lacks_hooks = kernel.coverage().iter().any(|hook| hook.sees_resets && hook.missing.is_some());
    if let Some(difference) = difference.as_ref().filter(|_| lacks_hooks) {
        return Err(anyhow!("--btf: {difference}, and the kernel refuses hooks that were made for it"));
    }
    let strangers = |_: &[u8]| account.ledger.add_captured_and_dropped(DropReason::SelfTest, 1);
    let tables = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), Arc::default());
    match selftest::run(kernel, &decoder, btf, Path::new(PROC), strangers)? {
        selftest::Outcome::Passed { resets } => {
            account.ledger.add_captured_and_dropped(DropReason::SelfTest, resets);
            tracing::info!("--btf: {resets} resets made to try the hooks came out right");
        }
        skipped => tracing::warn!("--btf: the hooks could not be tried: {skipped:?}"),
    }
    Ok(())
}

fn hooks(kernel: &Kernel) -> Vec<HookCoverage> {
    kernel
        .coverage()
        .iter()
        .map(|hook| HookCoverage {
            hook: hook.hook,
            active: hook.missing.is_none(),
            essential: hook.sees_resets,
            why: hook.missing.clone().unwrap_or_default(),
            missed_runs: 0,
        })
        .collect()
}

fn outputs(started: &Started<'_>) -> Result<Vec<Output>> {
    let start = |destination: &Destination| -> Result<Output> {
        let signals = started.settings.export.signals_of(destination);
        let exporter = Exporter::start(destination, signals, Arc::clone(&started.account), started.runtime)?;
        Ok(Output::new(Batcher::new(destination.batch.clone(), signals), exporter))
    };
    started.destinations().iter().map(start).collect()
}

/// The resource attributes of everything that is exported: the file's, and those of the environment that it does not name.
fn static_attributes(settings: &Settings) -> Vec<(String, String)> {
    let mut attributes = settings.enrichment.resource.clone();
    for (name, value) in environment::static_attributes(|name| std::env::var(name).ok()) {
        if attributes.iter().all(|(known, _)| *known != name) {
            attributes.push((name, value));
        }
    }
    attributes
}

/// Whether anybody gets spans: else a log record must name none of ours, and no application's span an event.
fn traces_go_out(outputs: &[Output]) -> bool {
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
    let credentials = kernel.take_credentials().context("what the kernel knows of processes is taken")?;
    let enrichment = settings::Enrichment { resource: static_attributes(settings), ..settings.enrichment.clone() };
    let enricher = Enricher::new(&enrichment, PROC.into(), pods, Instant::now());
    let tables = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), enricher.host());
    let spans = traces_go_out(&outputs);
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
            tracing::debug!("the reader ended too late");
        }
    };
    thread::Builder::new().name("reader".into()).spawn(read).context("cannot start the reader")?;
    Ok((orders, reader))
}

/// Whoever looks at the account sees the kernel's counters of that moment, and whether the reader lives.
fn look_after(account: &Account, counters: &Arc<Counters>, orders: &Orders) {
    let (counters, orders) = (Arc::clone(counters), orders.clone());
    account.on_snapshot(move |account| {
        account.heartbeat.request();
        orders.wake();
        let tallies = counters.read();
        if let Ok(captured) = <&[u64; COUNTERS as usize]>::try_from(tallies.captured.as_slice()) {
            let lost = [(DropReason::RingBufferFull, tallies.lost), (DropReason::RateLimited, tallies.over_ceiling)];
            account.ledger.set_kernel_counts(captured, tallies.filtered, &lost);
        }
        account.health.set_missed_runs(&tallies.passed_over);
    });
}

/// The start-up lines: what is not covered, and ready. Returns them in one, for the service manager.
fn announce(kernel: &Kernel) -> String {
    let mut unseen = Vec::new();
    let missing = kernel.coverage().iter().filter(|hook| hook.missing.is_some());
    for hook in missing {
        let why = hook.missing.as_deref().unwrap_or_default();
        if hook.sees_resets {
            tracing::warn!("not covered: {} ({}): {why}", hook.sees, hook.hook);
            unseen.push(hook.sees);
        } else {
            tracing::warn!("less is known of each reset ({}; {}): {why}", hook.sees, hook.hook);
        }
    }
    let seen = kernel.coverage().iter().filter(|hook| hook.sees_resets && hook.missing.is_none());
    let hooks: Vec<&str> = seen.map(|hook| hook.hook).collect();
    let walked = kernel.walk_took().as_millis();
    tracing::info!(
        "ready: every reset on this host, through {}; owners of open sockets in {walked} ms",
        hooks.join(", ")
    );
    if unseen.is_empty() { SEES_ALL.to_owned() } else { format!("sees resets, but not {}", unseen.join(", ")) }
}

/// What runs beside the pipeline on the runtime.
struct Services {
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    telemetry: Vec<Telemetry>,
}

impl Services {
    fn new() -> Self {
        let (stop, _) = watch::channel(false);
        Self { stop, tasks: Vec::new(), telemetry: Vec::new() }
    }

    /// Ends when the services are to stop.
    fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut stopped = self.stop.subscribe();
        async move {
            // The sender's end means the same.
            drop(stopped.wait_for(|stop| *stop).await);
        }
    }

    async fn start_receivers(
        &mut self,
        started: &Started<'_>,
        correlator: &Arc<Correlator>,
    ) -> Result<Option<Arc<Traffic>>> {
        let settings = started.settings;
        if settings.correlation.grpc.is_none() && settings.correlation.http.is_none() {
            return Ok(None);
        }
        let receivers = receivers(settings, started.destinations(), correlator).await?;
        let traffic = receivers.traffic();
        self.tasks.push(tokio::spawn(receivers.run(self.stopped())));
        Ok(Some(traffic))
    }

    async fn start_telemetry(&mut self, started: &Started<'_>, sources: Arc<Sources>) -> Result<()> {
        if let Some(address) = started.settings.admin {
            let admin = Admin::bind(address, Arc::clone(&sources)).await?;
            self.tasks.push(tokio::spawn(admin.run(self.stopped())));
        }
        let fixed = static_attributes(started.settings).into_iter();
        let fixed = fixed.map(|(name, value)| (Cow::Owned(name), ResourceValue::Text(value)));
        let resource = telemetry::own_resource(host_resource::attributes(Path::new(PROC)).into_iter().chain(fixed));
        for destination in started.destinations() {
            if started.settings.export.signals_of(destination).metrics {
                let telemetry = Telemetry::start(destination, &sources, resource.clone(), None, &Handle::current())?;
                self.telemetry.push(telemetry);
            }
        }
        Ok(())
    }

    /// Lets the service manager know that the program lives, where it wants to.
    fn watched_by(&mut self, manager: &Arc<Manager>, account: &Arc<Account>, runtime: &Handle) {
        let signs = Arc::clone(manager).give_signs_of_life(Arc::clone(account));
        let mut stopped = self.stop.subscribe();
        self.tasks.push(runtime.spawn(async move {
            tokio::select! {
                () = signs => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }));
    }

    /// Watches the names of this node's pods, where that is configured.
    #[cfg(feature = "kubernetes")]
    async fn watch_pods(&mut self, settings: &Settings) -> Result<Option<Arc<Pods>>> {
        let Some(kubernetes) = &settings.enrichment.kubernetes else { return Ok(None) };
        let config = kubernetes::cluster().await?;
        let pods = Arc::new(Pods::default());
        let (watched, node) = (Arc::clone(&pods), kubernetes.node_name.clone());
        let mut stopped = self.stop.subscribe();
        self.tasks.push(tokio::spawn(async move {
            tokio::select! {
                ended = kubernetes::watch(config, &node, &watched) => {
                    if let Err(error) = ended {
                        tracing::error!("pods are not named any more: {error}");
                    }
                }
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        }));
        Ok(Some(pods))
    }

    /// This program was built without the Kubernetes API.
    #[cfg(not(feature = "kubernetes"))]
    async fn watch_pods(&mut self, settings: &Settings) -> Result<Option<Arc<Pods>>> {
        match settings.enrichment.kubernetes {
            None => Ok(None),
            Some(_) => Err(anyhow!(
                "enrichment.kubernetes needs a program built with `--features kubernetes`; without it leave the key out"
            )),
        }
    }

    /// Sends the last metrics, to all destinations at once, and stops the rest.
    async fn stop(self, deadline: Instant) {
        self.stop.send_replace(true);
        let telemetry = self.telemetry.into_iter().map(|telemetry| tokio::spawn(telemetry.shutdown(deadline)));
        for task in telemetry.collect::<Vec<_>>().into_iter().chain(self.tasks) {
            match timeout_at(deadline.into(), task).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => tracing::error!(event = "service_failed", "a service panicked"),
                Err(_) => tracing::warn!(event = "service_stuck", "a service did not end in time"),
            }
        }
    }
}

async fn receivers(
    settings: &Settings,
    destinations: &[Destination],
    correlator: &Arc<Correlator>,
) -> Result<Receivers> {
    let mut clients = Vec::new();
    for destination in destinations {
        let client = Client::for_forwarding(destination)
            .with_context(|| format!("export.otlp {} cannot take what applications send", destination.endpoint))?;
        clients.push((destination, client));
    }
    let first = clients.first().context(
        "correlation.otlp_receiver passes on to export.otlp, and that has no destination: give it an endpoint",
    )?;
    // What nobody wants of ours may be an application's: then the first says what it thinks of it.
    let takes = |signal| {
        let takes = clients.iter().find(|(destination, _)| settings.export.signals_of(destination).has(signal));
        takes.unwrap_or(first)
    };
    let onward = takes(Signal::Traces).0;
    let onward = onward.signal_endpoints.traces.as_ref().unwrap_or(&onward.endpoint);
    let of_signal = Backends::new(|signal| takes(signal).1.clone());
    let receivers =
        Receivers::listen(&settings.correlation, of_signal, Arc::clone(correlator), Arc::new(find_sender)).await?;
    for address in receivers.addresses() {
        tracing::info!("applications may send their OTLP to {address}; their traces go on to {onward}");
    }
    Ok(receivers)
}

async fn flush(exporters: Vec<Exporter>, deadline: Instant) {
    let ends: Vec<_> = exporters.into_iter().map(|exporter| tokio::spawn(exporter.shutdown(deadline))).collect();
    for end in ends {
        if end.await.is_err() {
            tracing::error!(event = "exporter_failed", "an exporter panicked");
        }
    }
}
