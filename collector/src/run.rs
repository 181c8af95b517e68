//! The main job, wired together: kernel, pipeline, exporters, signals, and the end.

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
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    account::{Account, DropReason, HookCoverage},
    batch::Batcher,
    console::Console,
    enrich::Enricher,
    export::Exporter,
    kernel::{Counters, KERNEL_BTF, Kernel},
    pipeline::{Output, Pipeline},
    reader::{self, Order},
    reason::ReasonNames,
    reset::Decoder,
    sampler::Sampler,
    settings::{Destination, Settings},
    told::Teller,
};

/// How long the queues may take to empty at the end.
const FLUSH_TIME: Duration = Duration::from_secs(5);
/// Where the host's processes are seen.
const PROC: &str = "/proc";

/// How the main job is run, beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The kernel's type information, where it is not the running kernel's own.
    pub btf: Option<PathBuf>,
    /// Show what each reset would meet, and export nothing.
    pub dry_run: bool,
}

/// Runs until a signal ends it.
///
/// # Errors
/// What keeps it from starting: no hook can run, a destination is wrong.
pub fn run(settings: &Settings, options: &Options) -> Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    let account = Arc::new(Account::new());
    let mut kernel = attach(settings, options)?;
    account.set_hooks(hooks(&kernel));
    let outputs = if options.dry_run { Vec::new() } else { outputs(settings, &account, runtime.handle())? };
    let pipeline = pipeline(settings, options, &kernel, outputs, Arc::clone(&account));
    let counters = kernel.counters();
    let (orders, inbox) = reader::orders().context("cannot start the reader")?;
    announce(&kernel);
    let thread = thread::Builder::new()
        .name("reader".into())
        .spawn(move || {
            let pipeline = reader::run(&mut kernel, pipeline, &inbox);
            pipeline.finish(reader::now())
        })
        .context("cannot start the reader")?;
    runtime.block_on(obey_signals(&counters, &account))?;
    orders.give(Order::Stop);
    let exporters = thread.join().map_err(|_| anyhow::anyhow!("the reader failed; its message stands above"))?;
    runtime.block_on(flush(exporters))?;
    refresh(&counters, &account);
    print_counts(&counters);
    Ok(())
}

fn attach(settings: &Settings, options: &Options) -> Result<Kernel> {
    let btf = options.btf.clone().unwrap_or_else(|| KERNEL_BTF.into());
    let capture = &settings.capture;
    let wanted = |hook: &str| match hook {
        "tcp_send_reset" => capture.sent,
        "tcp_receive_reset" => capture.received,
        "kfree_skb" => capture.received || capture.unowned,
        "net_dev_queue" => capture.firewall,
        _ => true,
    };
    Ok(Kernel::attach(&btf, capture.ring_buffer_bytes, wanted)?)
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
        })
        .collect()
}

fn outputs(settings: &Settings, account: &Arc<Account>, runtime: &Handle) -> Result<Vec<Output>> {
    let signals = settings.export.signals;
    let start = |destination: &Destination| -> Result<Output> {
        let exporter = Exporter::start(destination, signals, Arc::clone(account), runtime)?;
        Ok(Output { batcher: Batcher::new(destination.batch.clone(), signals), exporter })
    };
    settings.export.otlp.iter().map(start).collect()
}

fn pipeline(
    settings: &Settings,
    options: &Options,
    kernel: &Kernel,
    outputs: Vec<Output>,
    account: Arc<Account>,
) -> Pipeline {
    let enricher = Enricher::new(&settings.enrichment, PROC.into(), None, Instant::now());
    let tables = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), enricher.host());
    let spans = settings.export.signals.traces && !outputs.is_empty();
    Pipeline::new(
        decoder,
        enricher,
        settings.filters.clone(),
        Sampler::new(settings.sampling.clone()),
        Teller::from_os(spans),
        Console::for_stdout(settings.export.console),
        outputs,
        account,
        options.dry_run,
    )
}

/// The start-up line: ready, and what is not covered.
fn announce(kernel: &Kernel) {
    let missing = kernel.coverage().iter().filter(|hook| hook.missing.is_some());
    for hook in missing {
        let why = hook.missing.as_deref().unwrap_or_default();
        if hook.sees_resets {
            tracing::warn!("not covered: {} ({}): {why}", hook.sees, hook.hook);
        } else {
            tracing::warn!("less is known of each reset ({}; {}): {why}", hook.sees, hook.hook);
        }
    }
    let seen = kernel.coverage().iter().filter(|hook| hook.sees_resets && hook.missing.is_none());
    let hooks: Vec<&str> = seen.map(|hook| hook.hook).collect();
    tracing::info!("ready: every reset on this host, through {}", hooks.join(", "));
}

/// Waits for the signal that ends the program, and does what the others ask for.
async fn obey_signals(counters: &Counters, account: &Account) -> Result<()> {
    let on = |kind| signal(kind).context("cannot listen to signals");
    let (mut end, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut counts: Signal = on(SignalKind::user_defined1())?;
    loop {
        tokio::select! {
            _ = end.recv() => break,
            _ = interrupt.recv() => break,
            _ = counts.recv() => {
                refresh(counters, account);
                print_counts(counters);
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

/// Exit code after a second signal: what was queued is lost.
pub const EXIT_AT_ONCE: i32 = 3;

async fn flush(exporters: Vec<Exporter>) -> Result<()> {
    let deadline = Instant::now() + FLUSH_TIME;
    let ends: Vec<_> = exporters.into_iter().map(|exporter| tokio::spawn(exporter.shutdown(deadline))).collect();
    for end in ends {
        end.await.context("an exporter failed")?;
    }
    Ok(())
}

/// Takes the kernel's counters over into the account.
fn refresh(counters: &Counters, account: &Account) {
    let (captured, lost) = counters.read();
    if let Ok(captured) = <&[u64; COUNTERS as usize]>::try_from(captured.as_slice()) {
        account.kernel_counted(captured, &[(DropReason::RingBufferFull, lost.total())]);
    }
}

/// The kernel's counts, for a person.
fn print_counts(counters: &Counters) {
    let (captured, lost) = counters.read();
    tracing::info!("{} resets captured, {} lost for want of room in the ring buffer", captured.total(), lost.total());
    for (cause, origin, direction, count) in captured.iter() {
        tracing::info!("{count:>10}  {} {} {}", direction.word(), origin.word(), cause.word());
    }
}
