//! The accounting invariant, sampled continuously while everything fails at random.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use reset_collector::{
    account::{Account, DropReason},
    config::settings::{Destination, FsyncPolicy, OnOverflow, Protocol, Queue, Retry, Signals, Storage},
    export::Exporter,
    otlp::batch::Batch,
};
use tokio::runtime::Handle;

use crate::backend::{Backend, Reply, logs, numbers};

const BOTH: Signals = Signals { logs: true, traces: true, metrics: false };

/// Replies at random; the numbers of what was taken are in the backend's requests that got an acceptance.
async fn moody(protocol: Protocol, seed: u64, taken: Arc<std::sync::Mutex<HashSet<u32>>>) -> Backend {
    let random = std::sync::Mutex::new(StdRng::seed_from_u64(seed));
    Backend::with(move |_, request| {
        let accept = if protocol == Protocol::Grpc { Reply::grpc(0) } else { Reply::http(200) };
        let later = if protocol == Protocol::Grpc { Reply::grpc(14) } else { Reply::http(503) };
        let never = if protocol == Protocol::Grpc { Reply::grpc(3) } else { Reply::http(400) };
        match random.lock().unwrap().random_range(0..20) {
            0..4 => later,
            4 => never,
            5 => Reply::Hang,
            6 => Reply::Abort,
            mood => {
                if request.path.to_ascii_lowercase().contains("logs") {
                    taken.lock().unwrap().extend(numbers(&request.message));
                }
                if mood == 7 { Reply::Late(Duration::from_millis(40), Box::new(accept)) } else { accept }
            }
        }
    })
    .await
}

fn destination(backend: &Backend, protocol: Protocol, on_overflow: OnOverflow) -> Destination {
    let retry = Retry {
        initial_interval: Duration::from_millis(10),
        max_interval: Duration::from_millis(40),
        max_elapsed_time: Duration::from_millis(200),
        ..Retry::default()
    };
    let queue = Queue { size: 600, on_overflow, ..Queue::default() };
    Destination {
        endpoint: backend.endpoint(),
        protocol,
        retry,
        queue,
        timeout: Duration::from_millis(60),
        ..Destination::default()
    }
}

/// Feeds batches for a while and samples the account from another thread all the time.
async fn feed_and_sample(destinations: &[Destination], seed: u64, time_to_end: Duration) -> Arc<Account> {
    let account = Arc::new(Account::new());
    let over = Arc::new(AtomicBool::new(false));
    let sampler = {
        let (account, over) = (account.clone(), over.clone());
        std::thread::spawn(move || {
            let mut samples = 0;
            while !over.load(Ordering::Relaxed) {
                let snapshot = account.snapshot();
                for queue in &snapshot.queues {
                    assert_eq!(snapshot.imbalance(queue), 0, "seed {seed}: {queue:?}");
                }
                samples += 1;
            }
            samples
        })
    };
    let start = |destination| Exporter::start(destination, BOTH, account.clone(), &Handle::current()).unwrap();
    let exporters: Vec<_> = destinations.iter().map(start).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let mut next = 0;
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        let read = random.random_range(1..80);
        account.ledger.add_captured(u64::from(read));
        let filtered = random.random_range(0..=read / 4);
        account.ledger.filtered(u64::from(filtered));
        let sampled_out = random.random_range(0..=read / 4);
        account.ledger.sampled_out(u64::from(sampled_out));
        let resets = read - filtered - sampled_out;
        if resets > 0 {
            let message = logs(next, resets);
            let traces = random.random_bool(0.9).then(|| message.clone());
            let batch = Batch { resets, logs: Some(message), traces };
            exporters.iter().for_each(|exporter| exporter.push(&batch));
            next += resets;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..8))).await;
    }
    // A last burst, so that the end comes with something left.
    for _ in 0..50 {
        account.ledger.add_captured(5);
        let batch = Batch { resets: 5, logs: Some(logs(next, 5)), traces: Some(logs(next, 5)) };
        exporters.iter().for_each(|exporter| exporter.push(&batch));
        next += 5;
    }
    for exporter in exporters {
        exporter.shutdown(Instant::now() + time_to_end).await;
    }
    over.store(true, Ordering::Relaxed);
    assert!(sampler.join().unwrap() > 1000, "the sampler slept");
    account
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_in_memory_while_everything_fails() {
    for (seed, protocol, on_overflow) in [
        (1, Protocol::Grpc, OnOverflow::DropOldest),
        (2, Protocol::Grpc, OnOverflow::DropNewest),
        (3, Protocol::HttpProtobuf, OnOverflow::DropOldest),
        (4, Protocol::HttpProtobuf, OnOverflow::DropNewest),
    ] {
        let taken = Arc::default();
        let (first, second) =
            (moody(protocol, seed, Arc::clone(&taken)).await, moody(protocol, !seed, Arc::default()).await);
        let destinations = [&first, &second].map(|backend| destination(backend, protocol, on_overflow));
        let account = feed_and_sample(&destinations, seed, Duration::from_millis(100)).await;
        let snapshot = account.snapshot();
        assert_eq!(snapshot.queues.len(), 4);
        for queue in &snapshot.queues {
            assert_eq!((snapshot.imbalance(queue), queue.queued), (0, 0), "seed {seed}");
            assert!(queue.exported > 0 && queue.health.retries > 0, "seed {seed}: {queue:?}");
        }
        let refused: u64 =
            snapshot.queues.iter().map(|queue| queue.dropped[DropReason::NonRetryableError as usize]).sum();
        assert!(refused > 0, "seed {seed}: nothing was refused, nothing is shown");
        // What counts as exported is there; what is there more is answers that were lost.
        let there = taken.lock().unwrap().len() as u64;
        assert!(there >= snapshot.queues[0].exported, "seed {seed}: {there} there, {:?}", snapshot.queues[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_holds_on_disk_and_what_is_left_is_found_again() {
    for (seed, protocol) in [(5, Protocol::Grpc), (6, Protocol::HttpProtobuf)] {
        let directory = tempfile::tempdir().unwrap();
        let backend = moody(protocol, seed, Arc::default()).await;
        let mut destination = destination(&backend, protocol, OnOverflow::DropOldest);
        destination.queue.storage = Some(Storage {
            fsync: FsyncPolicy::Interval(Duration::from_millis(20)),
            ..Storage::in_directory(directory.path().into())
        });
        let account = feed_and_sample(&[destination.clone()], seed, Duration::ZERO).await;
        let before = account.snapshot();
        let again = Arc::new(Account::new());
        let exporter = Exporter::start(&destination, BOTH, again.clone(), &Handle::current()).unwrap();
        let after = again.snapshot();
        for (left, found) in before.queues.iter().zip(&after.queues) {
            assert_eq!(before.imbalance(left), 0, "seed {seed}");
            assert_eq!(left.dropped[DropReason::Shutdown as usize], 0, "seed {seed}");
            assert_eq!(found.recovered, left.queued, "seed {seed}");
        }
        assert!(before.queues.iter().any(|queue| queue.queued > 0), "seed {seed}: nothing was left, nothing is shown");
        exporter.shutdown(Instant::now() + Duration::from_secs(20)).await;
        let after = again.snapshot();
        for queue in &after.queues {
            assert_eq!((after.imbalance(queue), queue.queued), (0, 0), "seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_full_queue_drops_what_is_configured() {
    for (on_overflow, kept) in [(OnOverflow::DropOldest, 90..100), (OnOverflow::DropNewest, 10..20)] {
        // The first batch hangs in a request all the while; the queue has room for one more.
        let backend = Backend::with(|number, _| if number == 0 { Reply::Hang } else { Reply::grpc(0) }).await;
        let mut destination = destination(&backend, Protocol::Grpc, on_overflow);
        destination.queue = Queue { size: 20, consumers: 1, ..destination.queue };
        destination.timeout = Duration::from_secs(1);
        let account = Arc::new(Account::new());
        let signals = Signals { traces: false, ..BOTH };
        let exporter = Exporter::start(&destination, signals, account.clone(), &Handle::current()).unwrap();
        for first in (0..100).step_by(10) {
            account.ledger.add_captured(10);
            exporter.push(&Batch { resets: 10, logs: Some(logs(first, 10)), traces: None });
            while first == 0 && backend.requests().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let snapshot = account.snapshot();
        assert_eq!((snapshot.queues[0].in_flight, snapshot.queues[0].waiting), (10, 10));
        exporter.shutdown(Instant::now() + Duration::from_secs(5)).await;
        let snapshot = account.snapshot();
        assert_eq!(snapshot.queues[0].dropped[DropReason::QueueFull as usize], 80, "{on_overflow:?}");
        assert_eq!(snapshot.imbalance(&snapshot.queues[0]), 0);
        assert_eq!(numbers(&backend.requests().pop().unwrap().message), Vec::from_iter(kept));
    }
}

#[tokio::test]
async fn an_end_without_a_backend_is_counted() {
    let account = Arc::new(Account::new());
    let destination = Destination { endpoint: "http://127.0.0.1:1".into(), ..Destination::default() };
    let exporter = Exporter::start(&destination, BOTH, account.clone(), &Handle::current()).unwrap();
    account.ledger.add_captured(10);
    exporter.push(&Batch { resets: 10, logs: Some(logs(0, 10)), traces: Some(logs(0, 10)) });
    let started = Instant::now();
    exporter.shutdown(started + Duration::from_millis(200)).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let snapshot = account.snapshot();
    for queue in &snapshot.queues {
        assert_eq!((queue.dropped[DropReason::Shutdown as usize], queue.queued), (10, 0));
        assert_eq!(snapshot.imbalance(queue), 0);
    }
}

/// Backends that accept connections and never answer: the exporters end together, soon after the one deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_has_one_deadline_for_all_destinations() {
    let account = Arc::new(Account::new());
    let mut exporters = Vec::new();
    let mut backends = Vec::new();
    for _ in 0..4 {
        let backend = Backend::answering(vec![Reply::Hang]).await;
        let mut destination = destination(&backend, Protocol::Grpc, OnOverflow::DropOldest);
        destination.timeout = Duration::from_secs(600);
        exporters.push(Exporter::start(&destination, BOTH, account.clone(), &Handle::current()).unwrap());
        backends.push(backend);
    }
    account.ledger.add_captured(10);
    let batch = Batch { resets: 10, logs: Some(logs(0, 10)), traces: Some(logs(0, 10)) };
    exporters.iter().for_each(|exporter| exporter.push(&batch));
    let started = Instant::now();
    let deadline = started + Duration::from_millis(300);
    let ends: Vec<_> = exporters.into_iter().map(|exporter| tokio::spawn(exporter.shutdown(deadline))).collect();
    for end in ends {
        end.await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let snapshot = account.snapshot();
    for queue in &snapshot.queues {
        assert_eq!((queue.dropped[DropReason::Shutdown as usize], snapshot.imbalance(queue)), (10, 0));
    }
}
