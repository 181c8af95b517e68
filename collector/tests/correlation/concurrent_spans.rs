//! A call that failed at the time of a reset which was another's: whatever passes, in whatever order, it is not named.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::Span;
use reset_collector::model::{Connection, Reset};

use crate::{
    Said, correlator, finish, on, pass,
    sdk::{Build, MS, at_client, later, python_client},
    sender,
};

const NOBODY_KNOWS: &[Said] = &[Said::Ambiguous];

/// An upload to which the server said nothing: reset or closed, urllib3 tells the same.
fn cut_off(number: u8, from_ms: u64, to_ms: u64) -> Span {
    python_client(number, from_ms, to_ms).exception(
        "requests.exceptions.ConnectionError",
        "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))",
    )
}

fn says_reset(number: u8) -> Span {
    python_client(number, 0, 20)
        .exception("requests.exceptions.ConnectionError", "ConnectionResetError(104, 'Connection reset by peer')")
}

/// The reset of a connection established at 1 ms, on which a request was being sent and nothing had come.
fn of_unanswered(port: u16, at_ms: u64) -> Reset {
    let connection = Connection {
        bytes_sent: Some(4_000_000),
        bytes_received: Some(0),
        duration_ns: Some((at_ms - 1) * MS),
        unsent_bytes: Some(1_500_000),
        ..Connection::default()
    };
    Reset { connection, ..at_client(port, at_ms * 1_000) }
}

/// Resets at first, then each batch in its turn, one a second from the third on.
fn play(resets: &[Reset], batches: &[&[Span]]) -> (Vec<Said>, Vec<(u8, usize)>) {
    let (correlator, now) = (correlator(), Instant::now());
    resets.iter().for_each(|reset| correlator.submit(reset.clone(), now));
    let (mut ready, mut marked) = (Vec::new(), Vec::new());
    let mut at = now + Duration::from_secs(3);
    for batch in batches {
        marked.extend(pass(&correlator, &sender(), batch, at));
        ready.extend(correlator.take_ready(at));
        at += Duration::from_secs(1);
    }
    (finish(&correlator, at, ready), marked)
}

#[test]
fn the_true_span_comes_in_the_next_batch() {
    let resets = [of_unanswered(40_002, 19)];
    let (sibling, own) = (cut_off(1, 0, 20), cut_off(2, 0, 21));
    let [first, second] = [[sibling.clone()], [own.clone()]];
    let expected = (NOBODY_KNOWS.to_vec(), Vec::new());
    assert_eq!(play(&resets, &[&first, &second]), expected, "the sibling first");
    assert_eq!(play(&resets, &[&second, &first]), expected, "the true one first");
    assert_eq!(play(&resets, &[&[sibling, own, later()]]), expected, "both at once");
}

#[test]
fn the_only_one_is_named_and_marked_once_no_other_can_come() {
    let resets = [of_unanswered(40_001, 19)];
    let own = [cut_off(1, 0, 20)];
    let both = [own[0].clone(), later()];
    assert_eq!(play(&resets, &[&own]), (on(1), vec![]), "more may come: told after the wait, on a child");
    assert_eq!(play(&resets, &[&both]), (on(1), vec![(1, 1)]), "the process has ended calls since");
    assert_eq!(play(&resets, &[&own, &[later()]]), (on(1), vec![]), "the span had left");
}

#[test]
fn the_true_span_is_never_exported() {
    let sibling = [cut_off(1, 15, 20), later()];
    assert_eq!(play(&[of_unanswered(40_002, 19)], &[&sibling]).0, NOBODY_KNOWS, "it began before the sibling");
    let sent = Connection { unsent_bytes: Some(0), ..of_unanswered(1, 19).connection };
    let sent = Reset { connection: sent, ..of_unanswered(40_002, 19) };
    assert_eq!(play(&[sent], &[&[cut_off(1, 0, 20), later()]]).0, NOBODY_KNOWS, "a read would have met the reset");
    let unknown = Reset { connection: Connection::default(), ..of_unanswered(40_002, 19) };
    assert_eq!(play(&[unknown], &[&[cut_off(1, 0, 20), later()]]).0, NOBODY_KNOWS, "older than the collector");
    let other = python_client(1, 0, 20).exception("json.decoder.JSONDecodeError", "Expecting value");
    assert_eq!(
        play(&[of_unanswered(40_002, 19)], &[&[other, later()]]).0,
        NOBODY_KNOWS,
        "a failure that has nothing to do with it"
    );
}

#[test]
fn the_true_span_comes_after_the_wait() {
    let (correlator, now) = (correlator(), Instant::now());
    correlator.submit(of_unanswered(40_002, 19), now);
    assert!(pass(&correlator, &sender(), &[cut_off(1, 15, 20)], now + Duration::from_secs(3)).is_empty());
    let said = finish(&correlator, now, Vec::new());
    assert_eq!(said, NOBODY_KNOWS);
    let late = now + Duration::from_secs(21);
    assert!(pass(&correlator, &sender(), &[cut_off(2, 0, 20)], late).is_empty(), "its event was made already");
    assert!(finish(&correlator, late, Vec::new()).is_empty(), "one event only");
}

#[test]
fn two_that_say_reset_had_two_resets() {
    let both = [says_reset(1), says_reset(2)];
    let resets = [at_client(40_001, 19_000), at_client(40_002, 19_500)];
    assert_eq!(play(&resets, &[&both, &[later()]]), (vec![Said::Ambiguous; 2], vec![]));
    assert_eq!(play(&resets, &[&both[..1], &[later()]]), (vec![Said::Ambiguous; 2], vec![]), "one is never exported");
    let upstream = python_client(1, 0, 20).failed("upstream connect error. reset reason: connection reset");
    assert_eq!(play(&resets[..1], &[&[upstream, later()]]).0, [Said::Nothing], "a proxy's answer about another");
}

/// With more resets than may wait, the one that a span tells of may have gone out already.
#[test]
fn a_reset_that_did_not_wait_makes_spans_doubtful() {
    const MAX_OF_PROCESS: u16 = 256;
    let (correlator, now) = (correlator(), Instant::now());
    let elsewhere = |port: u16| Reset { peer: at_client(port, 0).local, ..at_client(port, 0) };
    (0..MAX_OF_PROCESS).for_each(|n| correlator.submit(elsewhere(1_000 + n), now));
    correlator.submit(at_client(40_001, 19_000), now);
    assert_eq!(correlator.take_ready(now).len(), 1, "too many wait");
    let after = now + Duration::from_secs(7);
    assert_eq!(correlator.take_ready(after).len(), usize::from(MAX_OF_PROCESS));
    correlator.submit(at_client(40_002, 19_500), after);
    pass(&correlator, &sender(), &[says_reset(1)], after);
    assert_eq!(finish(&correlator, after, Vec::new()), NOBODY_KNOWS);
}
