//! Runs scenarios side by side, each in a network of its own, and tells what came of them as a table.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};

use crate::{
    capture::Capture,
    collector::Collector,
    compare::{self, TIME_TOLERANCE},
    network::Network,
    record::Record,
    scenario::{self, Scenario, Variant},
};

/// Scenarios at a time: most of their time is waiting.
const SIDE_BY_SIDE: usize = 4;
/// After the act, for what its last step set going.
const SETTLE: Duration = Duration::from_millis(150);
/// How long a record may take to be printed.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);
/// After the last record that is due, for records that are not.
const EXTRA_WAIT: Duration = Duration::from_millis(300);
/// One record in so many may be late in the capture's eyes, when this machine took the CPU away between the two.
const LATE_ALLOWED_OF: usize = 50;
/// None may be later than this.
const LATE_LIMIT: Duration = Duration::from_millis(50);

/// What came of one scenario in one variant.
#[derive(Debug)]
pub struct Outcome {
    /// The scenario.
    pub name: String,
    /// The variant.
    pub variant: Variant,
    /// What the table says beside it.
    pub what: String,
    /// Resets on the wire that a host sent, and that reached one.
    pub wire: (usize, usize),
    /// Records for them.
    pub records: usize,
    /// What went wrong, one text a fault; empty is right.
    pub faults: Vec<String>,
    /// Why it was not acted.
    pub skipped: Option<String>,
    time_differences: Vec<Duration>,
}

/// Acts every scenario whose name contains one of the filters in each of its variants. Without a collector, only the wire is
/// judged.
///
/// # Errors
/// The scenarios cannot be listed, or the directory for captures not made.
pub fn run(filters: &[&str], collector: Option<&Collector>) -> Result<Vec<Outcome>> {
    let scenarios = scenario::list()?;
    let own_machine = std::env::var_os("RESET_TESTS_OWN_MACHINE").is_some();
    let variants = std::env::var("RESET_TESTS_VARIANTS").unwrap_or_default();
    let wanted = |variant: &Variant| variants.is_empty() || variants.split(',').any(|name| name == variant.to_string());
    let chosen = scenarios
        .iter()
        .filter(|one| filters.iter().any(|filter| one.name.contains(filter)) && (own_machine || !one.own_machine));
    let acts: Vec<Act<'_>> =
        chosen.flat_map(|one| one.on.iter().filter(|on| wanted(on)).map(move |&variant| (one, variant))).collect();
    let directory = tempfile::Builder::new().prefix("reset-collector-").tempdir()?;
    // What changes the whole machine must not meet the others.
    let (alone, together): (Vec<Act<'_>>, Vec<Act<'_>>) = acts.iter().partition(|(scenario, _)| scenario.own_machine);
    let mut outcomes = act_all(&together, SIDE_BY_SIDE, collector, directory.path());
    outcomes.extend(act_all(&alone, 1, collector, directory.path()));
    if outcomes.iter().all(|outcome| outcome.faults.is_empty()) {
        std::fs::remove_dir_all(&directory)?;
    }
    let place = |outcome: &Outcome| acts.iter().position(|(one, v)| one.name == outcome.name && *v == outcome.variant);
    outcomes.sort_by_key(place);
    Ok(outcomes)
}

type Act<'a> = (&'a Scenario, Variant);

fn act_all(acts: &[Act<'_>], at_a_time: usize, collector: Option<&Collector>, directory: &Path) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(&(scenario, variant)) = acts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = act(scenario, variant, collector, directory);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn act(scenario: &Scenario, variant: Variant, collector: Option<&Collector>, directory: &Path) -> Outcome {
    let mut outcome = Outcome {
        name: scenario.name.clone(),
        variant,
        what: scenario.what.clone(),
        wire: (0, 0),
        records: 0,
        faults: Vec::new(),
        skipped: None,
        time_differences: Vec::new(),
    };
    if let Err(error) = judged(scenario, variant, collector, directory, &mut outcome) {
        outcome.faults.push(format!("{error:#}"));
    }
    outcome
}

fn judged(
    scenario: &Scenario,
    variant: Variant,
    collector: Option<&Collector>,
    directory: &Path,
    outcome: &mut Outcome,
) -> Result<()> {
    let network = Network::new(scenario.layout(variant))?;
    let file = |role: usize| -> PathBuf { directory.join(format!("{}-{variant}-{role}.pcap", scenario.name)) };
    let captures = network.hosts().into_iter().enumerate().map(|(role, host)| Capture::start(host, file(role)));
    let captures = captures.collect::<Result<Vec<_>>>()?;
    // The inode of a namespace that has gone is given to the next: what came before is another's.
    let captured_from = now_ns()?;
    let output = scenario.command(variant, &network).output()?;
    if output.status.code() == Some(scenario::SKIPPED) {
        outcome.skipped = Some(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        return Ok(());
    }
    ensure!(output.status.success(), "the act failed: {}", String::from_utf8_lossy(&output.stderr));
    std::thread::sleep(SETTLE);
    let captured_until = now_ns()?;
    let mut wired = Vec::new();
    for (host, capture) in network.hosts().into_iter().zip(captures) {
        wired.extend(compare::wired(host, &capture.finish()?));
    }
    let sent = wired.iter().filter(|one| one.direction == "transmit").count();
    outcome.wire = (sent, wired.len() - sent);
    outcome.faults = compare::check_wire(&scenario.due, &network, &wired);
    if let Some(collector) = collector {
        let records = awaited_records(collector, &network, wired.len(), captured_from..captured_until)?;
        outcome.records = records.len();
        let verdict = compare::judge(&scenario.due, &network, &wired, &records);
        outcome.faults.extend(verdict.faults);
        outcome.time_differences = verdict.time_differences;
    }
    Ok(())
}

fn now_ns() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos())?)
}

fn awaited_records(collector: &Collector, network: &Network, due: usize, within: Range<u64>) -> Result<Vec<Record>> {
    let namespaces: Vec<u32> = network.hosts().iter().map(|host| host.inode).collect();
    let records = || -> Result<Vec<Record>> {
        let mut records = collector.records(&namespaces)?;
        records.retain(|record| within.contains(&record.time_ns));
        Ok(records)
    };
    let deadline = Instant::now() + RECORD_TIMEOUT;
    while records()?.len() < due && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(EXTRA_WAIT);
    records()
}

/// The outcomes as a table, a line each, faults below their line.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!("{:<36} {:<6} {:>4} {:>8} {:>7}  what\n", "scenario", "over", "sent", "received", "records");
    for outcome in outcomes {
        let Outcome { name, variant, what, wire: (sent, received), records, faults, skipped, .. } = outcome;
        let verdict = match (skipped, faults.is_empty()) {
            (Some(_), _) => "skip",
            (None, true) => "ok",
            (None, false) => "FAULT",
        };

        text += &format!("{name:<36} {variant:<6} {sent:>4} {received:>8} {records:>7}  {verdict:<5} {what}\n");
        for fault in faults.iter().chain(skipped) {
            text += &format!("    {}\n", fault.trim().replace('\n', "\n    "));
        }
    }
    let count = |holds: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| holds(outcome)).count();
    let (wrong, skipped) = (count(|outcome| !outcome.faults.is_empty()), count(|outcome| outcome.skipped.is_some()));
    let sent: usize = outcomes.iter().map(|outcome| outcome.wire.0).sum();
    let received: usize = outcomes.iter().map(|outcome| outcome.wire.1).sum();
    let records: usize = outcomes.iter().map(|outcome| outcome.records).sum();
    let total = outcomes.len();
    text += &format!(
        "{total} acts, {wrong} wrong, {skipped} skipped; on the wire {sent} sent, {received} received; {records} records\n"
    );
    text
}

/// How far the records' times lay from the packets' over all outcomes: the median and the farthest.
///
/// # Errors
/// More of them than may be lie farther than [`TIME_TOLERANCE`], or there is none.
pub fn check_times(outcomes: &[Outcome]) -> Result<(Duration, Duration)> {
    let mut differences: Vec<Duration> = outcomes.iter().flat_map(|one| one.time_differences.iter().copied()).collect();
    differences.sort_unstable();
    let farthest = *differences.last().context("no record has been timed")?;
    let median = differences[differences.len() / 2];
    let late = differences.iter().filter(|&&difference| difference > TIME_TOLERANCE).count();
    ensure!(
        late <= differences.len() / LATE_ALLOWED_OF && farthest < LATE_LIMIT,
        "{late} of {} records lie more than {TIME_TOLERANCE:?} from their packets, the farthest {farthest:?}",
        differences.len()
    );
    Ok((median, farthest))
}
