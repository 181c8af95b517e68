//! What the program does on signals, and when its file changes: other rules, counts, the end.

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
    kernel::{Counters, ReasonTables, Tallies},
    pipeline::reader::{Order, Orders, Rules},
    sampler::Sampler,
    telemetry::systemd::Manager,
};

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

/// Waits for the signal that ends the program (SIGTERM, SIGINT), and does what the others ask for: SIGHUP reads the file
/// again, as a change of it does; SIGUSR1 prints the counts.
pub async fn obey(
    listeners: Listeners,
    options: &Options,
    settings: &Settings,
    reasons: &ReasonTables,
    counters: &Counters,
    orders: &Orders,
    manager: &Manager,
) -> Result<()> {
    let Listeners { mut end, mut interrupt, mut counts, mut hangup } = listeners;
    let mut running = settings.clone();
    let mut watch = options.config.clone().map(Watch::new);
    let mut look = interval(POLL_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut read_again = || {
        manager.reloading();
        manager.ready(take_over(options, &mut running, reasons, orders));
    };
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
            _ = counts.recv() => print_counts(counters),
            _ = hangup.recv() => {
                watch.iter_mut().for_each(Watch::mark_seen);
                read_again();
            }
            _ = look.tick(), if watch.is_some() => {
                if watch.as_mut().is_some_and(Watch::has_changed) {
                    read_again();
                }
            }
        }
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = end.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("a second signal: ending at once");
        std::process::exit(EXIT_AT_ONCE);
    });
    Ok(())
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
        wire_ports: settings.correlation.http_header_ports.clone(),
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
