#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;

fn lane(account: &Account) -> (Snapshot, LaneSnapshot) {
    let snapshot = account.snapshot();
    let lane = snapshot.lanes[0].clone();
    assert_eq!(snapshot.imbalance(&lane), 0);
    (snapshot, lane)
}

#[test]
fn a_reset_is_in_one_place_all_the_way() {
    let account = Account::new();
    let (id, _) = account.open_lane("http://backend:4317", Signal::Logs);
    let mut resets = [0; COUNTERS as usize];
    resets[counter_index(Cause::PortClosed, Origin::Passive, Direction::Transmit) as usize] = 100;
    account.kernel_counted(&resets, 0, &[(DropReason::RingBufferFull, 7)]);
    assert_eq!(lane(&account).1.queued, 93);
    account.read(93);
    assert_eq!(lane(&account).0.in_ring_buffer, 0);
    account.filtered(3);
    account.sampled_out(20);
    account.dropped_in_pipeline(DropReason::InvalidRecord, 1);
    account.enqueued(id, 69);
    account.dropped_waiting(id, DropReason::QueueFull, 9);
    account.taken(id, 60);
    assert_eq!((lane(&account).1.in_flight, lane(&account).1.waiting), (60, 0));
    account.put_back(id, 60);
    account.taken(id, 60);
    account.exported(id, 60, 4);
    let (snapshot, lane) = lane(&account);
    assert_eq!((snapshot.captured, lane.queued, lane.exported), (100, 0, 56));
    assert_eq!(lane.dropped[DropReason::PartialSuccessRejected as usize], 4);
    assert_eq!(snapshot.resets, [(Direction::Transmit, Origin::Passive, Cause::PortClosed, 100)]);
}

#[test]
fn records_read_before_the_kernels_counters_balance() {
    let account = Account::new();
    account.open_lane("http://backend:4317", Signal::Logs);
    account.read(5);
    assert_eq!((lane(&account).0.captured, lane(&account).1.queued), (5, 5));
}

#[test]
fn a_destination_that_comes_later_balances() {
    let account = Account::new();
    account.read(10);
    account.filtered(4);
    account.open_lane("http://first:4317", Signal::Logs);
    account.read(5);
    account.filtered(1);
    let (late, _) = account.open_lane("http://late:4317", Signal::Logs);
    account.enqueued(late, 4);
    let snapshot = account.snapshot();
    for lane in &snapshot.lanes {
        assert_eq!(snapshot.imbalance(lane), 0, "{}", lane.destination);
    }
    assert_eq!(snapshot.lanes[1].dropped[DropReason::DestinationAddedLater as usize], 6);
    assert_eq!(snapshot.lanes[1].waiting, 4);
}

#[test]
fn what_a_reload_finds_in_storage_again_is_counted_once() {
    let account = Account::new();
    let (id, _) = account.open_lane("http://backend:4317", Signal::Logs);
    account.recovered(id, 10, &[(DropReason::StorageCorrupt, 2)]);
    account.read(5);
    account.enqueued(id, 5);
    account.release_lane(id);
    assert_eq!(account.open_lane("http://backend:4317", Signal::Logs).0, id);
    account.recovered(id, 15, &[]);
    let (_, lane) = lane(&account);
    assert_eq!((lane.recovered, lane.waiting), (12, 15));
}

#[test]
fn two_destinations_with_one_endpoint_are_two_lanes() {
    let account = Account::new();
    let (first, name) = account.open_lane("http://backend:4317", Signal::Logs);
    let (second, second_name) = account.open_lane("http://backend:4317", Signal::Logs);
    assert_eq!((&*name, &*second_name), ("http://backend:4317", "http://backend:4317#2"));
    account.read(10);
    account.enqueued(first, 10);
    account.enqueued(second, 10);
    let snapshot = account.snapshot();
    assert!(snapshot.lanes.iter().all(|lane| snapshot.imbalance(lane) == 0 && lane.waiting == 10));
    account.release_lane(second);
    account.forget_unused_lanes();
    assert_eq!(account.snapshot().lanes.len(), 1);
}
