//! Signals and a changed file: reload, counts, shutdown.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{
    app::{capture, run::Options},
    config::{
        reload::{self, FileWatcher, NewSettings, POLL_INTERVAL, Reload},
        settings::Settings,
    },
    export::line_writer::LineWriter,
    kernel::{Counters, ReasonTables, Tallies},
    pipeline::reader::{Order, Orders, Rules},
    sampler::Sampler,
    telemetry::{logging::Log, systemd::Notifier},
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
    /// Begins to listen. Call it inside the runtime, and before the program reports that it is ready.
    ///
    /// # Errors
    /// The system refuses a handler.
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
    /// The settings in effect.
    pub settings: &'a Settings,
    /// The kernel's names.
    pub reasons: &'a ReasonTables,
    /// The kernel's counters.
    pub counters: &'a Counters,
    /// The reader thread.
    pub orders: &'a Orders,
    /// The service manager.
    pub notifier: &'a Notifier,
    /// The log.
    pub log: &'a Log,
    /// Standard output, if the run ends with its reader.
    pub needs_stdout: Option<&'a LineWriter>,
}

impl Control<'_> {
    /// Waits for the signal that ends the program (SIGTERM, SIGINT), and acts on the others: SIGHUP reads the file again,
    /// as a change of it does; SIGUSR1 logs the counts. From then on a second signal ends the process at once.
    pub async fn run_until_shutdown(&self, listeners: Listeners) {
        let Listeners { mut end, mut interrupt, mut counts, mut hangup } = listeners;
        let mut running = self.settings.clone();
        let mut watch = self.options.config.clone().map(FileWatcher::new);
        let ticker = |period| {
            let mut ticker = interval(period);
            ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticker
        };
        let (mut file, mut stdout) = (ticker(POLL_INTERVAL), ticker(STDOUT_INTERVAL));
        // The file is read by a thread that may block: on a hung file system the signals still work.
        let (mut reading, mut read_again) = (None, false);
        loop {
            if std::mem::take(&mut read_again) && reading.is_none() {
                self.notifier.reloading();
                let (path, running) = (self.options.config.clone(), running.clone());
                reading = Some(spawn_blocking(move || path.map(|path| reload::reload(&path, &running))));
            }
            tokio::select! {
                _ = end.recv() => break,
                _ = interrupt.recv() => break,
                _ = counts.recv() => log_counts(self.counters),
                _ = hangup.recv() => {
                    watch.iter_mut().for_each(FileWatcher::mark_seen);
                    read_again = true;
                }
                _ = file.tick(), if watch.is_some() => read_again |= watch.as_mut().is_some_and(FileWatcher::has_changed),
                read = async { reading.as_mut()?.await.ok() }, if reading.is_some() => {
                    reading = None;
                    self.notifier.ready(self.apply_reload(read.flatten(), &mut running));
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

    /// Puts new settings into effect; a bad file changes nothing. Returns the outcome, on one line.
    fn apply_reload(&self, read: Option<Reload>, running: &mut Settings) -> &'static str {
        const NO_FILE: &str = "no configuration file to reload: start with --config FILE";
        const UNCHANGED: &str = "configuration unchanged";
        const REJECTED: &str = "new configuration rejected, keeping the current one";
        const APPLIED: &str = "new configuration applied";
        let NewSettings { settings, after_restart, warnings } = match read {
            None => {
                tracing::warn!(event = "reload_without_file", "{NO_FILE}");
                return NO_FILE;
            }
            Some(Reload::Same) => {
                tracing::info!(event = "configuration_unchanged", "{UNCHANGED}");
                return UNCHANGED;
            }
            Some(Reload::Refused(errors)) => {
                tracing::error!(event = "configuration_rejected", "{REJECTED}:\n{errors}");
                return REJECTED;
            }
            Some(Reload::New(new)) => *new,
        };
        warnings.iter().for_each(|warning| tracing::warn!(event = "configuration_warning", "{warning}"));
        self.orders.give(Order::Reconfigure(Box::new(Rules {
            capture: settings.capture.clone(),
            filters: settings.filters.clone(),
            sampler: Sampler::new(settings.sampling.clone()),
            program: (!self.options.dry_run).then(|| capture::program(&settings, self.reasons)),
            wire_ports: settings.correlation.http_header_ports.iter().collect(),
        })));
        tracing::info!(event = "configuration_applied", "{APPLIED}");
        if !after_restart.is_empty() {
            let keys = after_restart.join(", ");
            tracing::warn!(event = "restart_required", keys, "some changes require a restart");
        }
        *running = settings;
        APPLIED
    }
}

/// Logs the counts of the kernel.
pub(crate) fn log_counts(counters: &Counters) {
    let Tallies { captured, filtered, rate_limited, lost, missed_runs } = counters.read();
    tracing::info!(
        event = "counts",
        filtered,
        rate_limited,
        "captured {} resets, lost {lost} (ring buffer full)",
        captured.total()
    );
    for (probe, runs) in missed_runs.iter().filter(|(_, runs)| *runs > 0) {
        tracing::warn!(
            event = "probe_runs_missed",
            probe,
            runs,
            "the kernel skipped probe runs, resets may be missing"
        );
    }
    for (cause, origin, direction, count) in captured.iter() {
        let (direction, origin, cause) = (direction.word(), origin.word(), cause.word());
        tracing::info!(event = "count", direction, origin, cause, count, "captured");
    }
}
