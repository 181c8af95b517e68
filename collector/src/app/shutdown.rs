//! What the program does on signals, and when its file changes: other rules, counts, the end.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    app::run::{self, Options},
    config::{
        reload::{self, NewSettings, POLL_INTERVAL, Reload, Watch},
        settings::Settings,
    },
    export::line_writer::LineWriter,
    kernel::{Counters, ReasonTables, Tallies},
    pipeline::reader::{Order, Orders, Rules},
    sampler::Sampler,
    telemetry::{logging::Log, systemd::Manager},
};

/// How often to check whether the reader of standard output has gone.
const STDOUT_INTERVAL: Duration = Duration::from_millis(500);
/// Exit code after a second signal: what was queued is lost.
pub const EXIT_AT_ONCE: i32 = 3;

/// The signals that the program listens to, from now on: until then they have their usual effect.
#[derive(Debug)]
pub struct Listeners {
    end: Signal,
    interrupt: Signal,
    counts: Signal,
    hangup: Signal,
}

impl Listeners {
    /// Begins to listen; call it inside the runtime, and before anybody is told that the program is ready.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn new() -> Result<Self> {
        let on = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            end: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            counts: on(SignalKind::user_defined1())?,
            hangup: on(SignalKind::hangup())?,
        })
    }
}

/// What signals act on.
pub struct Control<'a> {
    /// How the program was started.
    pub options: &'a Options,
    /// What runs.
    pub settings: &'a Settings,
    /// The kernel's names.
    pub reasons: &'a ReasonTables,
    /// The kernel's counters.
    pub counters: &'a Counters,
    /// The reader thread.
    pub orders: &'a Orders,
    /// The service manager.
    pub manager: &'a Manager,
    /// The log.
    pub log: &'a Log,
    /// Standard output, where the run ends with its reader.
    pub needs_stdout: Option<&'a LineWriter>,
}

impl Control<'_> {
    /// Waits for the signal that ends the program (SIGTERM, SIGINT), and acts on the others: SIGHUP reads the file again,
    /// as a change of it does; SIGUSR1 logs the counts. From then on a second signal ends the process at once.
    pub async fn run_until_shutdown(&self, listeners: Listeners) {
        let Listeners { mut end, mut interrupt, mut counts, mut hangup } = listeners;
        let mut running = self.settings.clone();
        let mut watch = self.options.config.clone().map(Watch::new);
        let ticker = |period| {
            let mut ticker = interval(period);
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticker
        };
        let (mut file, mut stdout) = (ticker(POLL_INTERVAL), ticker(STDOUT_INTERVAL));
        let mut read_again = || {
            self.manager.reloading();
            self.manager.ready(take_over(self.options, &mut running, self.reasons, self.orders));
        };
        loop {
            tokio::select! {
                _ = end.recv() => break,
                _ = interrupt.recv() => break,
                _ = counts.recv() => print_counts(self.counters),
                _ = hangup.recv() => {
                    watch.iter_mut().for_each(Watch::mark_seen);
                    read_again();
                }
                _ = file.tick(), if watch.is_some() => {
                    if watch.as_mut().is_some_and(Watch::has_changed) {
                        read_again();
                    }
                }
                _ = stdout.tick(), if self.needs_stdout.is_some() => {
                    if self.needs_stdout.is_some_and(LineWriter::is_closed) {
                        tracing::info!(event = "stdout_closed", "standard output is closed and nothing else is configured");
                        break;
                    }
                }
            }
        }
        let log = self.log.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = end.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!(event = "second_signal", "second signal, exiting now");
            log.drain();
            std::process::exit(EXIT_AT_ONCE);
        });
    }
}

/// Reads the file again; a bad one changes nothing. Returns what has come of it, in a line.
fn take_over(options: &Options, running: &mut Settings, reasons: &ReasonTables, orders: &Orders) -> &'static str {
    const NO_FILE: &str = "there is no file to read again: start with --config FILE";
    const SAME: &str = "the configuration means what runs already";
    const REFUSED: &str = "the new configuration is not taken, the old one goes on";
    const TAKEN: &str = "the new configuration runs";
    let Some(path) = &options.config else {
        tracing::warn!("{NO_FILE}");
        return NO_FILE;
    };
    let NewSettings { settings, after_restart, warnings } = match reload::reload(path, running) {
        Reload::Same => {
            tracing::info!("{SAME}");
            return SAME;
        }
        Reload::Refused(errors) => {
            tracing::error!("{REFUSED}:\n{errors}");
            return REFUSED;
        }
        Reload::New(new) => *new,
    };
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    orders.give(Order::Reconfigure(Box::new(Rules {
        capture: settings.capture.clone(),
        filters: settings.filters.clone(),
        sampler: Sampler::new(settings.sampling.clone()),
        program: (!options.dry_run).then(|| run::program(&settings, reasons)),
        wire_ports: settings.correlation.http_header_ports.iter().collect(),
    })));
    tracing::info!("{TAKEN}");
    if !after_restart.is_empty() {
        tracing::warn!("these take effect after a restart only: {}", after_restart.join(", "));
    }
    *running = settings;
    TAKEN
}

/// The kernel's counts, for a person.
pub(crate) fn print_counts(counters: &Counters) {
    let Tallies { captured, filtered, over_ceiling, lost, passed_over } = counters.read();
    tracing::info!("{} resets captured, {lost} lost for want of room in the ring buffer", captured.total());
    if filtered + over_ceiling > 0 {
        tracing::info!("{filtered} dropped by filters in the kernel, {over_ceiling} over the ceiling");
    }
    for (hook, runs) in passed_over.iter().filter(|(_, runs)| *runs > 0) {
        tracing::warn!("the kernel passed over {runs} runs of {hook}: each may have been a reset");
    }
    for (cause, origin, direction, count) in captured.iter() {
        tracing::info!("{count:>10}  {} {} {}", direction.word(), origin.word(), cause.word());
    }
}
