//! The probes of a run: attach, load the rules, test, and report what they cover.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use probes::rule::reason_key;

use crate::{
    account::{Account, DropReason, HookCoverage},
    app::run::{Options, PROC},
    config::settings::Settings,
    host::{report, selftest},
    kernel::{KERNEL_BTF, Kernel, ReasonTables, http_trace, plan, vintage},
    model::{Decoder, reason::ReasonNames},
    pushdown::{self, KernelFacts, Program},
};

pub(super) fn attach(settings: &Settings, options: &Options) -> Result<Kernel> {
    let btf = btf_of(options);
    let capture = &settings.capture;
    let ports: Vec<u16> = settings.correlation.http_header_ports.iter().collect();
    // The switches are the kernel's first rules. Probes that run for every packet are attached only if they are needed.
    let wanted = |hook: &str| match hook {
        "net_dev_queue" => capture.firewall,
        http_trace::HOOK => !ports.is_empty(),
        other => plan::has_use(other),
    };
    let mut kernel = Kernel::attach(&btf, capture.ring_buffer_bytes, wanted)
        .map_err(|error| anyhow!("{}", report::refusal(&report::Host::read(&btf), &error)))?;
    kernel.set_rate_limit(capture.max_records_per_second).context("cannot set the rate limit")?;
    kernel.set_http_ports(&ports).context("cannot set the ports of correlation.http_headers")?;
    // A dry run reports the outcome of every reset, so the kernel drops none.
    if !options.dry_run {
        kernel.set_rules(&program(settings, kernel.reasons())).context("cannot load the filters into the kernel")?;
    }
    Ok(kernel)
}

pub(super) fn btf_of(options: &Options) -> PathBuf {
    options.btf.clone().unwrap_or_else(|| KERNEL_BTF.into())
}

/// The part of the filters that runs in the kernel.
pub(super) fn program(settings: &Settings, reasons: &ReasonTables) -> Program {
    let keys = |table: &'_ [(u32, String)], is_drop| {
        let key = move |number: u32| Some(reason_key(u16::try_from(number).ok()?, is_drop));
        table.iter().filter_map(|(number, name)| Some((key(*number)?, name.clone()))).collect::<Vec<_>>()
    };
    let named: Vec<(u32, String)> = keys(&reasons.reset, false).into_iter().chain(keys(&reasons.drop, true)).collect();
    let reasons: Vec<(u32, &str)> = named.iter().map(|(key, name)| (*key, name.as_str())).collect();
    pushdown::compile(&settings.capture, &settings.filters, &KernelFacts { reasons: &reasons })
}

/// With BTF that is not the running kernel's own: provokes resets that must be decoded correctly, else the probes misread.
pub(super) fn self_test(kernel: &mut Kernel, btf: &Path, account: &Account) -> Result<()> {
    let difference = vintage::difference(btf);
    let lacks_hooks = kernel.coverage().iter().any(|hook| hook.sees_resets && hook.missing.is_some());
    if let Some(difference) = difference.as_ref().filter(|_| lacks_hooks) {
        return Err(anyhow!("--btf: {difference}, and the kernel rejects probes built for it"));
    }
    let strangers = |_: &[u8]| account.ledger.add_captured_and_dropped(DropReason::SelfTest, 1);
    let tables = kernel.reasons().clone();
    let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), Arc::default());
    match selftest::run(kernel, &decoder, btf, Path::new(PROC), strangers)? {
        selftest::Outcome::Passed { resets } => {
            account.ledger.add_captured_and_dropped(DropReason::SelfTest, resets);
            tracing::info!(event = "self_test_passed", resets, "--btf: the probes decode provoked resets correctly");
        }
        skipped => tracing::warn!(event = "self_test_skipped", reason = ?skipped, "--btf: the probes were not tested"),
    }
    Ok(())
}

pub(super) fn coverage(kernel: &Kernel) -> Vec<HookCoverage> {
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

/// The status for the service manager if no probe is missing.
const COMPLETE: &str = "captures every TCP reset of this host";

/// Logs which probes are missing, and that the run is ready. Returns the outcome on one line, for the service manager.
pub(super) fn announce(kernel: &Kernel) -> String {
    let (mut unseen, mut probes) = (Vec::new(), Vec::new());
    for probe in kernel.coverage() {
        match &probe.missing {
            None if probe.sees_resets => probes.push(probe.hook),
            None => {}
            Some(error) if probe.sees_resets => {
                unseen.push(probe.sees);
                tracing::warn!(event = "probe_not_attached", probe = probe.hook, error, "not captured: {}", probe.sees);
            }
            Some(error) => {
                tracing::warn!(event = "probe_not_attached", probe = probe.hook, error, "records lack: {}", probe.sees);
            }
        }
    }
    let (probes, walk_ms) =
        (probes.join(", "), u64::try_from(kernel.task_walk_duration().as_millis()).unwrap_or(u64::MAX));
    tracing::info!(event = "ready", probes, walk_ms, "ready: capturing TCP resets");
    if unseen.is_empty() { COMPLETE.to_owned() } else { format!("captures resets, except {}", unseen.join(", ")) }
}
