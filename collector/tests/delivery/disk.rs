//! The queue's directory: killed processes, full and read-only file systems, two collectors.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use reset_collector::{
    account::{Account, DropReason},
    config::settings::{Destination, FsyncPolicy, OnOverflow, Queue, Storage},
    export::{Exporter, orphaned_storage},
    otlp::batch::Batch,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tokio::runtime::Handle;

use crate::{
    backend::{Backend, Reply, logs, numbers},
    client::{LOGS, to},
    skip::skip,
};

const KILLS: u64 = 60;

fn stored(endpoint: &str, directory: &Path) -> Destination {
    let queue = Queue {
        size: 10_000_000,
        storage: Some(Storage { directory: directory.into(), max_bytes: 512 << 20, fsync: FsyncPolicy::Never }),
        on_overflow: OnOverflow::DropNewest,
        ..Queue::default()
    };
    let mut destination = Destination { queue, ..to(endpoint, reset_collector::config::settings::Protocol::Grpc) };
    destination.retry.max_elapsed_time = Duration::ZERO;
    destination
}

/// Runs in a process of its own, as the test below starts it: pushes batches and says so, until it is killed.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(task) = std::env::var("RESET_COLLECTOR_TEST_CHILD") else { return };
    let [endpoint, directory, first] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let account = Arc::new(Account::new());
    let exporter =
        Exporter::start(&stored(endpoint, Path::new(directory)), LOGS, account.clone(), &Handle::current()).unwrap();
    let mut next: u32 = first.parse().unwrap();
    loop {
        account.ledger.add_captured(10);
        exporter.push(&Batch { resets: 10, logs: Some(logs(next, 10)), traces: None });
        next += 10;
        eprintln!("pushed {next}");
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}

/// kill -9 at random instants: whatever was pushed arrives, at least once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    // Away half of the time, so that there is something to lose.
    let backend = Backend::with(|number, _| Reply::grpc(if number / 40 % 2 == 0 { 0 } else { 14 })).await;
    let mut random = StdRng::seed_from_u64(7);
    let mut next = 0;
    let mut said_to_be_pushed = HashSet::new();
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["disk::child_that_is_killed", "--exact", "--nocapture"])
            .env("RESET_COLLECTOR_TEST_CHILD", format!("{} {} {next}", backend.endpoint(), directory.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(20..120))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let last = said.filter_map(|line| line.strip_prefix("pushed ").and_then(|next| next.parse().ok())).last();
        let end = last.unwrap_or(next);
        said_to_be_pushed.extend(next..end);
        // The batch after the last word may be stored or not: its numbers are not used again.
        next = end + 10;
    }
    let account = Arc::new(Account::new());
    let destination = stored(&backend.endpoint(), directory.path());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    exporter.shutdown(Instant::now() + Duration::from_secs(60)).await;
    let snapshot = account.snapshot();
    let queue = &snapshot.queues[0];
    assert_eq!((snapshot.imbalance(queue), queue.queued), (0, 0));
    assert_eq!(queue.dropped[DropReason::StorageCorrupt as usize], 0);
    let mut arrived = HashSet::new();
    for (number, request) in backend.requests().iter().enumerate() {
        if number / 40 % 2 == 0 {
            arrived.extend(numbers(&request.message));
        }
    }
    let missing: Vec<_> = said_to_be_pushed.difference(&arrived).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), said_to_be_pushed.len());
    assert!(said_to_be_pushed.len() > 1000, "only {} were pushed", said_to_be_pushed.len());
}

/// Batches are stored as they come, and go out together as `batch` says, in their order.
#[tokio::test]
async fn small_batches_on_disk_go_out_together() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::with(|_, _| Reply::grpc(0)).await;
    let mut destination = stored(&backend.endpoint(), directory.path());
    destination.queue.consumers = 1;
    destination.batch.max_resets = 250;
    destination.batch.flush_timeout = Duration::from_secs(600);
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for first in (0..1_010).step_by(10) {
        account.ledger.add_captured(10);
        exporter.push(&Batch { resets: 10, logs: Some(logs(first, 10)), traces: None });
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while backend.requests().len() < 4 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(account.snapshot().queues[0].waiting, 10, "they wait for more");
    exporter.shutdown(Instant::now() + Duration::from_secs(20)).await;
    let sent: Vec<Vec<u32>> = backend.requests().iter().map(|request| numbers(&request.message)).collect();
    assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [250, 250, 250, 250, 10]);
    assert_eq!(sent.concat(), (0..1_010).collect::<Vec<_>>());
}

/// One that is damaged on disk after it was stored is lost alone.
#[tokio::test]
async fn a_damaged_batch_takes_no_other_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::with(|_, _| Reply::grpc(0)).await;
    let mut destination = stored(&backend.endpoint(), directory.path());
    destination.batch.flush_timeout = Duration::from_secs(600);
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for first in [0, 10, 20] {
        account.ledger.add_captured(10);
        exporter.push(&Batch { resets: 10, logs: Some(logs(first, 10)), traces: None });
    }
    damage_last_byte_of_second_record(directory.path(), logs(0, 10).len());
    exporter.shutdown(Instant::now() + Duration::from_secs(20)).await;
    let snapshot = account.snapshot();
    let queue = &snapshot.queues[0];
    assert_eq!((queue.exported, queue.dropped[DropReason::StorageCorrupt as usize]), (20, 10));
    assert_eq!((queue.queued, snapshot.imbalance(queue)), (0, 0));
    let arrived: HashSet<u32> = backend.requests().iter().flat_map(|request| numbers(&request.message)).collect();
    assert_eq!(arrived, (0..10).chain(20..30).collect());
}

fn damage_last_byte_of_second_record(directory: &Path, first_message: usize) {
    const HEADER: usize = 36;
    let queue = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path().join("logs");
    let files = std::fs::read_dir(queue).unwrap().map(|entry| entry.unwrap().path());
    let segment = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).last().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let header = HEADER + first_message;
    let length = u32::from_le_bytes(*bytes[header + 20..].first_chunk().unwrap()) as usize;
    bytes[header + HEADER + length - 1] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[tokio::test]
async fn two_collectors_on_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let destination = stored("http://127.0.0.1:1", directory.path());
    let start = || Exporter::start(&destination, LOGS, Arc::new(Account::new()), &Handle::current());
    let first = start().unwrap();
    let Err(error) = start() else { panic!("both have it") };
    assert!(error.to_string().contains("in use by another collector"), "{error}");
    first.shutdown(Instant::now()).await;
    assert!(start().is_ok(), "it is free after a shutdown");
}

#[tokio::test]
async fn what_waits_for_an_endpoint_that_is_gone_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["http://127.0.0.1:1", "http://127.0.0.1:2"].map(|endpoint| stored(endpoint, directory.path()));
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(&old, LOGS, account.clone(), &Handle::current()).unwrap();
    account.ledger.add_captured(10);
    exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: None });
    exporter.shutdown(Instant::now()).await;
    assert_eq!(account.snapshot().queues[0].queued, 10, "kept on disk");
    assert_eq!(orphaned_storage(&[old.clone(), new.clone()]), Vec::<std::path::PathBuf>::new());
    let forgotten = orphaned_storage(&[new]);
    assert!(forgotten.len() == 1 && forgotten[0].ends_with("logs"), "{forgotten:?}");
}

/// A small file system, unmounted when it goes out of scope. `None` without the right to mount.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        match mount("none", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")) {
            Ok(()) => Some(Self(directory)),
            Err(error) => {
                skip(&format!("no file system can be mounted: {error}"));
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_counted_and_what_fits_arrives() {
    let Some(tmpfs) = Tmpfs::new() else { return };
    let backend = Backend::with(|number, _| Reply::grpc(if number < 20 { 14 } else { 0 })).await;
    let account = Arc::new(Account::new());
    let destination = stored(&backend.endpoint(), tmpfs.0.path());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for first in (0..200_000).step_by(1000) {
        account.ledger.add_captured(1000);
        exporter.push(&Batch { resets: 1000, logs: Some(logs(first, 1000)), traces: None });
        let snapshot = account.snapshot();
        assert_eq!(snapshot.imbalance(&snapshot.queues[0]), 0);
    }
    exporter.shutdown(Instant::now() + Duration::from_secs(20)).await;
    let snapshot = account.snapshot();
    let queue = &snapshot.queues[0];
    let full = queue.dropped[DropReason::StorageFull as usize];
    assert!(full > 0 && queue.exported > 0, "{queue:?}");
    assert_eq!((queue.exported + full, snapshot.imbalance(queue)), (200_000, 0));
}

#[tokio::test]
async fn a_read_only_disk_is_a_clear_error() {
    let Some(tmpfs) = Tmpfs::new() else { return };
    mount_remount(tmpfs.0.path(), MountFlags::RDONLY, c"").unwrap();
    let destination = stored("http://127.0.0.1:1", &tmpfs.0.path().join("queue"));
    let Err(error) = Exporter::start(&destination, LOGS, Arc::new(Account::new()), &Handle::current()) else {
        panic!("started on a read-only file system")
    };
    let error = error.to_string();
    assert!(error.contains("Read-only file system") && error.contains("that this user can write"), "{error}");
}
