use super::*;
use std::sync::Arc;

use crate::model::{
    Actor, Connection,
    resource::{Program, Resource},
    sample,
};
use proptest::prelude::*;

fn message(reset: &Reset) -> String {
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
            "this host reset the connection of nginx (pid 812) to 10.0.0.7:51514 in state established for an unknown \
             cause (kernel reason TCP_ABORT_ON_CLOSE)",
            "this host reset the connection to 10.0.0.7:51514 in state established for an unknown cause (kernel \
             reason TCP_ABORT_ON_CLOSE)",
        ),
        (
            Cause::PortClosed,
            "10.0.0.7:51514 was refused: no listener matches its SYN to 10.0.0.5:80",
            "10.0.0.7:51514 was refused: no listener matches its SYN to 10.0.0.5:80",
        ),
        (
            Cause::UnknownConnection,
            "a segment from 10.0.0.7:51514 to 10.0.0.5:80 fits no connection on this host: its connection was closed or \
             forgotten, or never existed here",
            "a segment from 10.0.0.7:51514 to 10.0.0.5:80 fits no connection on this host: its connection was closed or \
             forgotten, or never existed here",
        ),
        (
            Cause::ClosedWithUnreadData,
            "nginx (pid 812) closed its connection to 10.0.0.7:51514 before it had read everything: the peer's data are \
             lost",
            "this host closed its connection to 10.0.0.7:51514 before it had read everything: the peer's data are lost",
        ),
        (
            Cause::LingerZero,
            "nginx (pid 812) aborted its connection to 10.0.0.7:51514 (SO_LINGER with time 0)",
            "this host aborted its connection to 10.0.0.7:51514 (SO_LINGER with time 0)",
        ),
        (
            Cause::DataAfterClose,
            "10.0.0.7:51514 sent data on a connection that nginx (pid 812) had already closed: these data are lost",
            "10.0.0.7:51514 sent data on a connection that this host had already closed: these data are lost",
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
            "nginx (pid 812) was killed with its connection to 10.0.0.7:51514 open",
            "the owning process was killed with its connection to 10.0.0.7:51514 open",
        ),
        (
            Cause::SocketDestroyed,
            "the connection of nginx (pid 812) to 10.0.0.7:51514 was destroyed by the kernel's interface for it (sock_diag or eBPF)",
            "the connection to 10.0.0.7:51514 was destroyed by the kernel's interface for it (sock_diag or eBPF)",
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
    for (cause, owned, without_owner) in table {
        assert_eq!(message(&sent(cause)), owned, "{}", cause.word());
        assert_eq!(message(&Reset { owner: None, ..sent(cause) }), without_owner, "{}", cause.word());
    }
}

#[test]
fn received_by_state() {
    let table = [
        (
            Cause::RefusedByPeer,
            State::SynSent,
            "the connection of nginx (pid 812) to 10.0.0.7:51514 was refused: a reset answered its SYN",
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
        assert_eq!(message(&received(cause, state)), expected, "{} in {}", cause.word(), state.word());
    }
}

#[test]
fn ignored_resets_say_so() {
    let ignored =
        |state| Reset { not_accepted: true, reason: Some("TCP_RESET"), ..received(Cause::ResetByPeer, state) };
    assert_eq!(
        message(&ignored(State::Established)),
        "a reset from 10.0.0.7:51514 to 10.0.0.5:80 was ignored (kernel reason TCP_RESET): the connection of nginx (pid \
         812) lives on"
    );
    assert_eq!(
        message(&ignored(State::Listen)),
        "a reset from 10.0.0.7:51514 to 10.0.0.5:80 was ignored (kernel reason TCP_RESET): the listener of nginx (pid \
         812) goes on"
    );
    let unmatched =
        Reset { owner: None, state: None, not_accepted: true, ..received(Cause::UnmatchedReset, State::Closed) };
    assert_eq!(
        message(&unmatched),
        "a reset came from 10.0.0.7:51514 to 10.0.0.5:80, which is no open connection here: it was ignored"
    );
    assert_eq!(
        message(&Reset { reason: Some("NETFILTER_DROP"), ..unmatched }),
        "a reset came from 10.0.0.7:51514 to 10.0.0.5:80 and was ignored (kernel reason NETFILTER_DROP)"
    );
}

#[test]
fn what_is_known_to_be_lost_is_said() {
    let with = |cause, connection| message(&Reset { connection, ..sent(cause) });
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
            ": nginx (pid 812) lost its connection to it; 3 bytes to the peer were not acknowledged",
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
fn how_the_owner_ended() {
    let with = |cause, exit| message(&Reset { exit, ..sent(cause) });
    let killed = |signal| with(Cause::ProcessKilled, Some(ProcessExit::Signal(signal)));
    let exited = |code| with(Cause::ProcessExited, Some(ProcessExit::Code(code)));
    let open = "with its connection to 10.0.0.7:51514 open";
    assert_eq!(killed(9), format!("nginx (pid 812) was killed by signal 9 (SIGKILL) {open}"));
    assert_eq!(killed(64), format!("nginx (pid 812) was killed by signal 64 {open}"));
    assert_eq!(exited(0), format!("nginx (pid 812) exited with code 0 {open}"));
    assert_eq!(with(Cause::ProcessExited, None), format!("nginx (pid 812) exited {open}"));
    assert_eq!(with(Cause::ProcessKilled, None), format!("nginx (pid 812) was killed {open}"));
    let oom = with(Cause::ProcessOomKilled, Some(ProcessExit::Signal(9)));
    assert_eq!(oom, format!("nginx (pid 812) was killed by the kernel's OOM killer {open}"));
}

/// A process that dies resets the connections that wait at its listener: it did not close the listener.
#[test]
fn connections_that_wait_at_the_listener_of_a_killed_process() {
    let owner = Owner { source: OwnerSource::Listener, ..sample::owner("shop", 7) };
    let exit = Some(ProcessExit::Signal(9));
    let connection = Connection { unread_bytes: Some(27), ..Connection::default() };
    let reset = Reset { owner: Some(owner), exit, connection, ..sent(Cause::ProcessKilled) };
    assert_eq!(
        message(&reset),
        "shop (pid 7) was killed by signal 9 (SIGKILL) before it accepted the connection from 10.0.0.7:51514: 27 bytes not \
         yet read are lost"
    );
}

#[test]
fn who_destroyed_a_socket() {
    let with = |actor| message(&Reset { actor, ..sent(Cause::SocketDestroyed) });
    let actor = |pid, name: &str| {
        let comm = sample::owner(name, pid).comm;
        Some(Actor { pid, thread_id: pid, comm, exiting: false, signal: None })
    };
    let start = "the connection of nginx (pid 812) to 10.0.0.7:51514 was destroyed by";
    assert_eq!(with(actor(99, "ss")), format!("{start} ss (pid 99)"));
    assert_eq!(with(actor(99, "")), format!("{start} pid 99"));
    let unknown = format!("{start} the kernel's interface for it (sock_diag or eBPF)");
    assert_eq!([with(None), with(actor(812, "nginx"))], [unknown.clone(), unknown]);
}

/// Each kind of message that was false or misleading in a public report, as it is now.
#[test]
fn messages_state_what_is_known() {
    let unknown =
        |segment_flags, state| message(&Reset { segment_flags, state, owner: None, ..sent(Cause::UnknownConnection) });
    assert_eq!(
        unknown(SYN | ACK, None),
        "a SYN-ACK from 10.0.0.7:51514 to 10.0.0.5:80 answers no connection attempt that is open on this host",
        "nothing was forgotten: a forged or untranslated answer"
    );
    assert_eq!(
        unknown(ACK, Some(State::Listen)),
        "a segment from 10.0.0.7:51514 fits no handshake and no connection of the listener on 10.0.0.5:80: its connection \
         was closed or forgotten, or never existed here"
    );
    assert!(unknown(FIN | ACK, None).starts_with("a FIN from 10.0.0.7:51514 to "));
    let connection = Connection { unread_bytes: Some(90), ..Connection::default() };
    let idle = Reset { state: Some(State::FinWait2), connection, ..sent(Cause::ClosedWithUnreadData) };
    assert_eq!(
        message(&idle),
        "nginx (pid 812) had shut down its side of the connection to 10.0.0.7:51514, then closed it with 90 bytes unread: \
         the peer's data are lost"
    );
    let connection = Connection { unread_bytes: Some(510), unacked_bytes: Some(112), ..Connection::default() };
    assert!(
        message(&Reset { connection, ..sent(Cause::ClosedWithUnreadData) })
            .ends_with("with 510 bytes unread: the peer's data are lost; 112 bytes to the peer were not acknowledged"),
        "its own data"
    );
    let connection = Connection { unread_bytes: Some(27), ..Connection::default() };
    assert_eq!(
        message(&Reset { connection, ..sent(Cause::ListenerClosed) }),
        "nginx (pid 812) closed its listener on 10.0.0.5:80 before it accepted the connection from 10.0.0.7:51514: 27 bytes \
         not yet read are lost"
    );
    let connection = Connection { closed_ns: Some(2_305_999_999), ..Connection::default() };
    assert_eq!(
        message(&Reset { connection, ..sent(Cause::DataAfterClose) }),
        "10.0.0.7:51514 sent data on a connection that nginx (pid 812) had already closed (2.305 s before): these data are \
         lost"
    );
}

#[test]
fn the_own_firewall_is_named() {
    let own = Reset { own_firewall: true, ..received(Cause::RefusedByPeer, State::SynSent) };
    assert_eq!(
        message(&own),
        "the firewall of this host rejected the connection of nginx (pid 812) to 10.0.0.7:51514",
        "the peer was never asked"
    );
    let rejected = Reset { owner: None, own_firewall: true, ..sent(Cause::FirewallReject) };
    assert_eq!(
        message(&rejected),
        "the firewall of this host rejected a segment that this host sent from 10.0.0.5:80 to 10.0.0.7:51514"
    );
    assert_eq!((rejected.source(), rejected.destination()), (rejected.peer, rejected.local), "in the peer's name");
}

#[test]
fn linger_by_tcp_linger2() {
    let reset = Reset { reason: Some("TCP_ABORT_ON_LINGER"), ..sent(Cause::LingerZero) };
    assert!(message(&reset).ends_with(" (TCP_LINGER2 below 0)"));
}

#[test]
fn the_owner_is_named_as_it_is_known() {
    let as_owner = |owner, service: &str| {
        let resource = sample::resource(&[("service.name", service)]);
        message(&Reset { owner: Some(owner), resource, ..received(Cause::ResetByPeer, State::Established) })
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
fn the_program_is_named_as_people_know_it() {
    let named = |comm: &str, name: &str, service: &str| {
        let program = Program { name: name.to_owned(), comm: b"python3".to_vec() };
        let attributes = sample::resource(&[("service.name", service)]).attributes.clone();
        let resource = Resource::for_process(attributes, None, Some(program));
        let owner = Some(sample::owner(comm, 7));
        message(&Reset { owner, resource, ..received(Cause::ResetByPeer, State::Established) })
    };
    let start = "10.0.0.7:51514 reset the connection of ";
    assert_eq!(named("python3", "gunicorn", "shop"), format!("{start}gunicorn (pid 7, service shop)"));
    let unnamed = named("python3", "gunicorn", "unknown_service:gunicorn");
    assert_eq!(unnamed, format!("{start}gunicorn (pid 7)"), "a service that no one has named");
    assert_eq!(named("sh", "gunicorn", "x"), format!("{start}sh (pid 7, service x)"), "another program runs by now");
    let resource = Arc::clone(&sample::reset().resource);
    assert_eq!(resource.program, None);
}

#[test]
fn ipv6_in_brackets() {
    let reset =
        Reset { local: sample::endpoint("fd00::5", 80), peer: sample::endpoint("::1", 1), ..sent(Cause::PortClosed) };
    assert_eq!(message(&reset), "[::1]:1 was refused: no listener matches its SYN to [fd00::5]:80");
}

proptest! {
    #[test]
    fn any_reset_is_told_in_one_clean_line(reset in sample::any_reset()) {
        let sentence = message(&reset);
        prop_assert!(sentence.len() > 20);
        prop_assert!(!sentence.contains("  ") || reset.owner.is_some(), "{}", sentence);
        prop_assert!(!sentence.chars().any(char::is_control), "{}", sentence);
        let mut peer = String::new();
        push_endpoint(&mut peer, reset.peer);
        prop_assert!(sentence.contains(&peer), "{}", sentence);
        prop_assert!(reset.owner.is_some() || !sentence.contains("pid 812"), "{}", sentence);
    }
}
