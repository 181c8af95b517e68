//! Who owned each connection: real programs, both ends of each, never a wrong name.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use reset_collector_tests::{
    collector::Collector,
    network::{Layout, Network},
    owner::{DueOwner, Naming, OwnerCase, RunningCase, build_peer},
    record::Record,
    require_root,
};

/// Cases whose connections are older than the collector.
const OLDER: &str = "older_than_the_collector";
const RECORD_TIMEOUT: Duration = Duration::from_secs(20);
/// After the last record that is due, for records that are not.
const EXTRA_WAIT: Duration = Duration::from_millis(300);

const SHOWN_FAULTS: usize = 6;

/// What came of one case.
#[derive(Default)]
struct Row {
    ends: usize,
    right: usize,
    /// Of these: another true owner than the process that made it.
    by_acceptor: usize,
    nobody: usize,
    wrong: usize,
    faults: Vec<String>,
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn every_end_names_its_owner() -> Result<()> {
    require_root()?;
    let filter = std::env::var("RESET_TESTS_OWNERS").unwrap_or_default();
    let peer = build_peer()?;
    let cases: Vec<OwnerCase> = OwnerCase::list()?.into_iter().filter(|case| case.name.contains(&filter)).collect();
    let (older, others): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.name.ends_with(OLDER));
    let since = SystemTime::now();
    let mut begun: Vec<(OwnerCase, Network, RunningCase)> = Vec::new();
    for case in older {
        let network = Network::new(Layout::Loopback)?;
        let mut running = case.start(&network.server, &peer)?;
        running.wait_ready()?;
        begun.push((case, network, running));
    }
    let collector = Collector::start(&[], &[])?;
    let mut faulty = 0;
    let mut enter = |case: &OwnerCase, row: Row| {
        println!("{}", row.line(case));
        faulty += usize::from(!row.faults.is_empty());
    };
    println!("{:<40} {:>5} {:>6} {:>10} {:>7} {:>6}  what", "case", "ends", "right", "(acceptor)", "nobody", "wrong");
    for (case, network, running) in begun {
        enter(&case, judge(running, &network, &collector, since)?);
    }
    for case in others {
        let since = SystemTime::now();
        let network = Network::new(Layout::Loopback)?;
        let running = case.start(&network.server, &peer)?;
        enter(&case, judge(running, &network, &collector, since)?);
    }
    let (status, said) = collector.stop()?;
    ensure!(status.success(), "the collector ended with {status}: {said}");
    assert_eq!(faulty, 0, "{faulty} cases with a fault: see the table");
    Ok(())
}

fn judge(running: RunningCase, network: &Network, collector: &Collector, since: SystemTime) -> Result<Row> {
    let mut row = Row::default();
    let due = match running.finish() {
        Ok(due) => due,
        Err(error) => {
            row.faults.push(format!("{error:#}"));
            return Ok(row);
        }
    };
    row.ends = due.len();
    let records = awaited(collector, network.server.inode, since, due.len())?;
    let mut left: Vec<&Record> = records.iter().collect();
    for one in &due {
        // Where the port is any, several may be its record: all that are due are there if each finds one that names right.
        let place = left.iter().position(|record| one.is_of(record) && one.judge(record).is_right());
        let place = place.or_else(|| left.iter().position(|record| one.is_of(record)));
        let record = place.map(|place| left.swap_remove(place));
        let naming = record.map_or(Naming::NoRecord, |record| one.judge(record));
        row.enter(one, naming, record);
    }
    row.faults.extend(left.iter().map(|record| format!("not due: {record:?}")));
    Ok(row)
}

fn awaited(collector: &Collector, namespace: u32, since: SystemTime, due: usize) -> Result<Vec<Record>> {
    // The inode of a namespace that has gone is given to the next: what came before is another's.
    let since_ns = u64::try_from(since.duration_since(UNIX_EPOCH)?.as_nanos())?;
    let records = || -> Result<Vec<Record>> {
        let mut records = collector.records(&[namespace])?;
        records.retain(|record| record.time_ns >= since_ns);
        Ok(records)
    };
    let deadline = Instant::now() + RECORD_TIMEOUT;
    while records()?.len() < due && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(EXTRA_WAIT);
    records()
}

impl Row {
    fn enter(&mut self, due: &DueOwner, naming: Naming, record: Option<&Record>) {
        match naming {
            Naming::Right(0) | Naming::RightlyNobody => self.right += 1,
            Naming::Right(_) => {
                self.right += 1;
                self.by_acceptor += 1;
            }
            Naming::Nobody | Naming::NobodyAsKnown => self.nobody += 1,
            Naming::Wrong => self.wrong += 1,
            Naming::NoRecord => {}
        }
        if !naming.is_right() {
            let named = |record: &Record| {
                let cause = record.text("tcp.reset.cause");
                format!("{cause}, {:?} {}", record.number("process.pid"), record.text("process.executable.name"))
            };
            self.faults.push(format!("{naming:?}: {due:?}: {}", record.map(named).unwrap_or_default()));
        }
    }

    /// The row as it stands in the table, faults below it.
    fn line(&self, case: &OwnerCase) -> String {
        let Self { ends, right, by_acceptor, nobody, wrong, faults } = self;
        let row =
            format!("{:<40} {ends:>5} {right:>6} {by_acceptor:>10} {nobody:>7} {wrong:>6}  {}", case.name, case.what);
        let faults =
            faults.iter().take(SHOWN_FAULTS).map(|fault| format!("    {}", fault.trim().replace('\n', "\n    ")));
        std::iter::once(row).chain(faults).collect::<Vec<_>>().join("\n")
    }
}
