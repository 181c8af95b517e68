use super::*;
use crate::model::{Actor, Connection, sample};
use proptest::prelude::*;

fn told(reset: &Reset) -> String {
    let mut out = String::new();
    render(reset, &mut out);
    out
}

/// A sent reset of an owner without losses, and the same without an owner.
fn sent(cause: Cause) -> Reset {
    Reset { cause, connection: Connection::default(), ..sample::reset() }
}

fn received(cause: Cause, state: State) -> Reset {
    Reset { direction: Direction::Receive, state: Some(state), reason: None, ..sent(cause) }
}

#[test]
fn sent_with_and_without_an_owner() {
    let table = [
        (
            Cause::Unknown,
            "this host reset the connection of nginx (pid 812) to 10.0.0.7:51514 in state established; why is not known \
             (kernel reason TCP_ABORT_ON_CLOSE)",
            "this host reset the connection to 10.0.0.7:51514 in state established; why is not known (kernel reason \
             TCP_ABORT_ON_CLOSE)",
        ),
        (
            Cause::PortClosed,
            "10.0.0.7:51514 was refused: nothing listens on 10.0.0.5:80",
            "10.0.0.7:51514 was refused: nothing listens on 10.0.0.5:80",
        ),
        (
            Cause::UnknownConnection,
            "a segment from 10.0.0.7:51514 to 10.0.0.5:80 belongs to no connection here: one side, or a device between, \
             has forgotten the connection",
            "a segment from 10.0.0.7:51514 to 10.0.0.5:80 belongs to no connection here: one side, or a device between, \
             has forgotten the connection",
        ),
        (
            Cause::ClosedWithUnreadData,
            "nginx (pid 812) closed its connection to 10.0.0.7:51514 before it had read everything: the peer's data are \
             lost",
            "this host closed its connection to 10.0.0.7:51514 before it had read everything: the peer's data are lost",
        ),
        (
            Cause::LingerZero,
            "nginx (pid 812) aborted its connection to 10.0.0.7:51514 on purpose (SO_LINGER with time 0)",
            "this host aborted its connection to 10.0.0.7:51514 on purpose (SO_LINGER with time 0)",
        ),
        (
            Cause::DataAfterClose,
            "10.0.0.7:51514 sent data on a connection that nginx (pid 812) had already closed: the data are lost",
            "10.0.0.7:51514 sent data on a connection that this host had already closed: the data are lost",
        ),
        (
            Cause::DisconnectSyscall,
            "nginx (pid 812) disconnected its connection to 10.0.0.7:51514 in state established",
            "this host disconnected its connection to 10.0.0.7:51514 in state established",
        ),
        (
            Cause::ListenerClosed,
            "nginx (pid 812) closed its listener on 10.0.0.5:80 before it accepted the connection from 10.0.0.7:51514",
            "this host closed its listener on 10.0.0.5:80 before it accepted the connection from 10.0.0.7:51514",
        ),
        (
            Cause::AcceptQueueOverflow,
            "the accept queue of nginx (pid 812) on 10.0.0.5:80 was full: the connection from 10.0.0.7:51514 was reset",
            "the accept queue on 10.0.0.5:80 was full: the connection from 10.0.0.7:51514 was reset",
        ),
        (
            Cause::ProcessKilled,
            "nginx (pid 812) died with its connection to 10.0.0.7:51514 open",
            "the owning process died with its connection to 10.0.0.7:51514 open",
        ),
        (
            Cause::SocketDestroyed,
            "the connection of nginx (pid 812) to 10.0.0.7:51514 was destroyed from outside (as `ss -K` does)",
            "the connection to 10.0.0.7:51514 was destroyed from outside (as `ss -K` does)",
        ),
        (
            Cause::KeepaliveTimeout,
            "10.0.0.7:51514 answered no keepalive probe: nginx (pid 812) lost its connection to it",
            "10.0.0.7:51514 answered no keepalive probe: this host lost its connection to it",
        ),
        (
            Cause::UserTimeout,
            "10.0.0.7:51514 did not answer within TCP_USER_TIMEOUT: nginx (pid 812) lost its connection to it",
            "10.0.0.7:51514 did not answer within TCP_USER_TIMEOUT: this host lost its connection to it",
        ),
        (
            Cause::OutOfMemory,
            "the kernel had too little memory or too many orphans: it reset the connection of nginx (pid 812) to \
             10.0.0.7:51514",
            "the kernel had too little memory or too many orphans: it reset the connection to 10.0.0.7:51514",
        ),
        (
            Cause::BadSegment,
            "a segment from 10.0.0.7:51514 was unacceptable to the connection of nginx (pid 812) on 10.0.0.5:80 in state \
             established: this host answered with a reset (kernel reason TCP_ABORT_ON_CLOSE)",
            "a segment from 10.0.0.7:51514 was unacceptable to the connection on 10.0.0.5:80 in state established: this \
             host answered with a reset (kernel reason TCP_ABORT_ON_CLOSE)",
        ),
        (
            Cause::Mptcp,
            "MPTCP reset the connection of nginx (pid 812) to 10.0.0.7:51514 (kernel reason TCP_ABORT_ON_CLOSE)",
            "MPTCP reset the connection to 10.0.0.7:51514 (kernel reason TCP_ABORT_ON_CLOSE)",
        ),
        (
            Cause::FirewallReject,
            "the firewall of this host rejected a segment from 10.0.0.7:51514 to 10.0.0.5:80",
            "the firewall of this host rejected a segment from 10.0.0.7:51514 to 10.0.0.5:80",
        ),
    ];
    for (cause, owned, unowned) in table {
        assert_eq!(told(&sent(cause)), owned, "{}", cause.word());
        assert_eq!(told(&Reset { owner: None, ..sent(cause) }), unowned, "{}", cause.word());
    }
}

#[test]
fn received_by_state() {
    let table = [
        (
            Cause::RefusedByPeer,
            State::SynSent,
            "10.0.0.7:51514 refused the connection of nginx (pid 812): nothing listens there, or a firewall rejects it",
        ),
        (Cause::ResetByPeer, State::Established, "10.0.0.7:51514 reset the connection of nginx (pid 812)"),
        (
            Cause::ResetByPeer,
            State::SynReceived,
            "10.0.0.7:51514 broke off its connection to 10.0.0.5:80 before it was established",
        ),
        (
            Cause::ResetByPeer,
            State::CloseWait,
            "10.0.0.7:51514 closed its end, then reset the connection of nginx (pid 812)",
        ),
        (
            Cause::ResetByPeer,
            State::FinWait2,
            "10.0.0.7:51514 reset the connection of nginx (pid 812), which this side had closed already",
        ),
        (Cause::Mptcp, State::Established, "10.0.0.7:51514 reset the MPTCP connection of nginx (pid 812)"),
    ];
    for (cause, state, expected) in table {
        assert_eq!(told(&received(cause, state)), expected, "{} in {}", cause.word(), state.word());
    }
}

#[test]
fn ignored_resets_say_so() {
    let ignored =
        |state| Reset { not_accepted: true, reason: Some("TCP_RESET"), ..received(Cause::ResetByPeer, state) };
    assert_eq!(
        told(&ignored(State::Established)),
        "a reset from 10.0.0.7:51514 to 10.0.0.5:80 was ignored (kernel reason TCP_RESET): the connection of nginx (pid \
         812) lives on"
    );
    assert_eq!(
        told(&ignored(State::Listen)),
        "a reset from 10.0.0.7:51514 to 10.0.0.5:80 was ignored (kernel reason TCP_RESET): the listener of nginx (pid \
         812) goes on"
    );
    let unmatched =
        Reset { owner: None, state: None, not_accepted: true, ..received(Cause::UnmatchedReset, State::Closed) };
    assert_eq!(
        told(&unmatched),
        "a reset came from 10.0.0.7:51514 to 10.0.0.5:80, where no connection is known: it was ignored"
    );
    assert_eq!(
        told(&Reset { reason: Some("NETFILTER_DROP"), ..unmatched }),
        "a reset came from 10.0.0.7:51514 to 10.0.0.5:80 and was ignored (kernel reason NETFILTER_DROP)"
    );
}

#[test]
fn what_is_known_to_be_lost_is_said() {
    let with = |cause, connection| told(&Reset { connection, ..sent(cause) });
    let bytes = |unsent_bytes, unacked_bytes, unread_bytes| Connection {
        unsent_bytes,
        unacked_bytes,
        unread_bytes,
        ..Connection::default()
    };
    let table = [
        (
            Cause::ClosedWithUnreadData,
            bytes(None, None, Some(4096)),
            " with 4,096 bytes unread: the peer's data are lost",
        ),
        (Cause::ClosedWithUnreadData, bytes(None, None, Some(1)), " with 1 byte unread: the peer's data are lost"),
        (Cause::LingerZero, bytes(Some(1), Some(0), None), "time 0): 1 byte not yet delivered is lost"),
        (Cause::LingerZero, bytes(Some(1_000_000), Some(1), None), ": 1,000,001 bytes not yet delivered are lost"),
        (Cause::LingerZero, bytes(None, None, Some(5)), ": 5 bytes not yet read are lost"),
        (
            Cause::SocketDestroyed,
            bytes(Some(5), None, Some(6)),
            ": 5 bytes not yet delivered and 6 bytes not yet read are lost",
        ),
        (
            Cause::KeepaliveTimeout,
            bytes(Some(2), Some(1), Some(9)),
            ": nginx (pid 812) lost its connection to it; 3 bytes to it were not acknowledged",
        ),
    ];
    for (cause, connection, end) in table {
        let sentence = with(cause, connection);
        assert!(sentence.ends_with(end), "{sentence}");
    }
    let most = bytes(Some(u32::MAX), Some(u32::MAX), Some(u32::MAX));
    assert!(with(Cause::Mptcp, most).contains("8,589,934,590 bytes"));
}

#[test]
fn who_acted() {
    let actor = |pid, exiting, signal| Some(Actor { pid, thread_id: pid, comm: [0; 16], exiting, signal });
    let with = |cause, actor| told(&Reset { actor, ..sent(cause) });
    let killed = Cause::ProcessKilled;
    assert!(
        with(killed, actor(812, true, Some(9))).starts_with("nginx (pid 812) was killed by signal 9 (SIGKILL) with")
    );
    assert!(with(killed, actor(812, true, Some(64))).starts_with("nginx (pid 812) was killed by signal 64 with"));
    assert!(with(killed, actor(812, true, None)).starts_with("nginx (pid 812) exited with its connection"));
    assert!(with(Cause::SocketDestroyed, actor(99, false, None)).ends_with("from outside by pid 99 (as `ss -K` does)"));
    assert!(with(Cause::SocketDestroyed, actor(812, false, None)).ends_with("from outside (as `ss -K` does)"));
}

#[test]
fn linger_by_tcp_linger2() {
    let reset = Reset { reason: Some("TCP_ABORT_ON_LINGER"), ..sent(Cause::LingerZero) };
    assert!(told(&reset).ends_with("on purpose (TCP_LINGER2 below 0)"));
}

#[test]
fn the_owner_is_named_as_it_is_known() {
    let as_owner = |owner, service: &str| {
        let resource = sample::resource(&[("service.name", service)]);
        told(&Reset { owner: Some(owner), resource, ..received(Cause::ResetByPeer, State::Established) })
    };
    let bytes = |name: &[u8]| {
        let mut owner = sample::owner("", 7);
        owner.comm[..name.len()].copy_from_slice(name);
        owner
    };
    let start = "10.0.0.7:51514 reset the connection of ";
    let table: [(_, &str, &str); 6] = [
        (bytes(b"nginx"), "checkout", "nginx (pid 7, service checkout)"),
        (bytes(b"nginx"), "nginx", "nginx (pid 7)"),
        (bytes(b""), "checkout", "pid 7 (service checkout)"),
        (bytes(b"a\x1b[31m\n"), "\u{202e}x", "a\\u{1b}[31m\\n (pid 7, service \\u{202e}x)"),
        (bytes(b"caf\xc3\xa9"), "x", "café (pid 7, service x)"),
        (bytes(b"\xff\xfe full len 16 \x80"), "x", "\\xff\\xfe full len 16 \\x80 (pid 7, service x)"),
    ];
    for (owner, service, expected) in table {
        assert_eq!(as_owner(owner, service), format!("{start}{expected}"));
    }
}

#[test]
fn ipv6_in_brackets() {
    let reset =
        Reset { local: sample::endpoint("fd00::5", 80), peer: sample::endpoint("::1", 1), ..sent(Cause::PortClosed) };
    assert_eq!(told(&reset), "[::1]:1 was refused: nothing listens on [fd00::5]:80");
}

proptest! {
    #[test]
    fn any_reset_is_told_in_one_clean_line(reset in sample::any_reset()) {
        let sentence = told(&reset);
        prop_assert!(sentence.len() > 20);
        prop_assert!(!sentence.contains("  ") || reset.owner.is_some(), "{}", sentence);
        prop_assert!(!sentence.chars().any(char::is_control), "{}", sentence);
        let mut peer = String::new();
        push_endpoint(&mut peer, reset.peer);
        prop_assert!(sentence.contains(&peer), "{}", sentence);
        prop_assert!(reset.owner.is_some() || !sentence.contains("pid 812"), "{}", sentence);
    }
}
