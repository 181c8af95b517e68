#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use probes::{COUNTERS, Cause, Direction, Origin, counter_index};

use super::*;

fn queue(account: &Account) -> (Snapshot, QueueSnapshot) {
    let snapshot = account.snapshot();
    let queue = snapshot.queues[0].clone();
    assert_eq!(snapshot.imbalance(&queue), 0);
    (snapshot, queue)
}

#[test]
fn a_reset_is_in_one_place_all_the_way() {
    let account = Account::new();
    let (id, _) = account.open_queue("http://backend:4317", Signal::Logs);
    let mut resets = [0; COUNTERS as usize];
    resets[counter_index(Cause::PortClosed, Origin::Passive, Direction::Transmit) as usize] = 100;
    account.ledger.set_kernel_counts(&resets, 0, &[(DropReason::RingBufferFull, 7)]);
    assert_eq!(queue(&account).1.queued, 93);
    account.ledger.add_captured(93);
    assert_eq!(queue(&account).0.in_ring_buffer, 0);
    account.ledger.filtered(3);
    account.ledger.sampled_out(20);
    account.ledger.dropped_in_pipeline(DropReason::InvalidRecord, 1);
    account.ledger.enqueued(id, 69);
    account.ledger.dropped_waiting(id, DropReason::QueueFull, 9);
    account.ledger.begin_export(id, 60);
    assert_eq!((queue(&account).1.in_flight, queue(&account).1.waiting), (60, 0));
    account.ledger.requeue(id, 60);
    account.ledger.begin_export(id, 60);
    account.ledger.exported(id, 60, 4);
    let (snapshot, queue) = queue(&account);
    assert_eq!((snapshot.captured, queue.queued, queue.exported), (100, 0, 56));
    assert_eq!(queue.dropped[DropReason::PartialSuccessRejected as usize], 4);
    assert_eq!(snapshot.resets, [(Direction::Transmit, Origin::Passive, Cause::PortClosed, 100)]);
}

#[test]
fn records_read_before_the_kernels_counters_balance() {
    let account = Account::new();
    account.open_queue("http://backend:4317", Signal::Logs);
    account.ledger.add_captured(5);
    assert_eq!((queue(&account).0.captured, queue(&account).1.queued), (5, 5));
}

#[test]
fn a_destination_that_comes_later_balances() {
    let account = Account::new();
    account.ledger.add_captured(10);
    account.ledger.filtered(4);
    account.open_queue("http://first:4317", Signal::Logs);
    account.ledger.add_captured(5);
    account.ledger.filtered(1);
    let (late, _) = account.open_queue("http://late:4317", Signal::Logs);
    account.ledger.enqueued(late, 4);
    let snapshot = account.snapshot();
    for queue in &snapshot.queues {
        assert_eq!(snapshot.imbalance(queue), 0, "{}", queue.destination);
    }
    assert_eq!(snapshot.queues[1].dropped[DropReason::DestinationAddedLater as usize], 6);
    assert_eq!(snapshot.queues[1].waiting, 4);
}

#[test]
fn resets_of_an_earlier_run_are_recovered_or_lost() {
    let account = Account::new();
    let (id, _) = account.open_queue("http://backend:4317", Signal::Logs);
    account.ledger.recovered(id, 10, &[(DropReason::StorageCorrupt, 2)]);
    account.ledger.add_captured(5);
    account.ledger.enqueued(id, 5);
    let (_, queue) = queue(&account);
    assert_eq!((queue.recovered, queue.waiting), (12, 15));
}

#[test]
fn what_a_reader_leaves_that_does_not_end_is_dropped_once() {
    let account = Account::new();
    let (id, _) = account.open_queue("http://backend:4317", Signal::Logs);
    account.ledger.set_kernel_counts(&[1; COUNTERS as usize], 0, &[]);
    account.ledger.add_captured(20);
    account.ledger.enqueued(id, 5);
    account.drop_unfinished(DropReason::Shutdown);
    let (snapshot, first) = queue(&account);
    assert_eq!((first.queued, first.waiting), (5, 5));
    assert_eq!(first.dropped[DropReason::Shutdown as usize], u64::from(COUNTERS) - 5);
    assert_eq!(snapshot.in_ring_buffer, 0);
}

#[test]
fn health_is_kept_by_queue() {
    let account = Account::new();
    let (logs, _) = account.open_queue("http://backend:4317", Signal::Logs);
    let (traces, _) = account.open_queue("http://backend:4317", Signal::Traces);
    account.health.update(traces, |health| health.degrade(Degradation::ExportFailing, "first"));
    account.health.update(traces, |health| health.degrade(Degradation::ExportFailing, "second"));
    account.health.update(traces, |health| health.degrade(Degradation::StorageFailing, "disk"));
    account.health.update(logs, |health| health.capacity = 7);
    let snapshot = account.snapshot();
    let degraded = |number: usize| {
        let degraded = snapshot.queues[number].health.degraded.iter();
        degraded.map(|degraded| (degraded.kind, degraded.error.as_str())).collect::<Vec<_>>()
    };
    assert_eq!((degraded(0), snapshot.queues[0].health.capacity), (vec![], 7));
    assert_eq!(degraded(1), [(Degradation::ExportFailing, "second"), (Degradation::StorageFailing, "disk")]);
    account.health.update(traces, |health| health.recovered_from(&[Degradation::ExportFailing]));
    assert_eq!(account.snapshot().queues[1].health.degraded.len(), 1);
}

#[test]
fn two_destinations_with_one_endpoint_are_two_queues() {
    let account = Account::new();
    let (first, name) = account.open_queue("http://backend:4317", Signal::Logs);
    let (second, second_name) = account.open_queue("http://backend:4317", Signal::Logs);
    assert_eq!((&*name, &*second_name), ("http://backend:4317", "http://backend:4317#2"));
    account.ledger.add_captured(10);
    account.ledger.enqueued(first, 10);
    account.ledger.enqueued(second, 10);
    let snapshot = account.snapshot();
    assert!(snapshot.queues.iter().all(|queue| snapshot.imbalance(queue) == 0 && queue.waiting == 10));
}
