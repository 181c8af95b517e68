//! What each cause means: its severity, the kernel's path to it, what the standards say, and what to do about it.
//! One table, read by the encoder (severity) and by `explain`.

use crate::model::{Cause, ProcessExit, Reset, State};

/// The severity of a reset, by what was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Intended, or noise: nothing is known to be lost.
    Info,
    /// Data or a request were lost.
    Warn,
    /// A working connection was lost against this side's will.
    Error,
}

impl Severity {
    /// The word on the wire and on the terminal.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// The severity of this reset: its cause's, corrected by what the record shows to be lost.
pub fn severity(reset: &Reset) -> Severity {
    if reset.not_accepted {
        return Severity::Info;
    }
    let connection = &reset.connection;
    let undelivered = connection.pending_bytes() > 0;
    let unread = connection.unread_bytes.is_some_and(|bytes| bytes > 0);
    let lost = if undelivered || unread { Severity::Warn } else { Severity::Info };
    let given = explanation(reset.cause).severity;
    match reset.cause {
        // Half open (a port scan ends so), or closed by this side already; what it had read no longer matters.
        Cause::ResetByPeer if reset.state.is_some_and(|state| !lives(state)) => {
            if undelivered {
                Severity::Warn
            } else {
                Severity::Info
            }
        }
        // A check of the port: nothing was ever sent either way.
        Cause::ResetByPeer
            if connection.bytes_sent == Some(0) && connection.bytes_received == Some(0) && !undelivered =>
        {
            Severity::Warn
        }
        Cause::ProcessExited => match (reset.exit, lost) {
            (Some(ProcessExit::Code(0)), lost) => lost,
            (_, Severity::Info) => given,
            _ => Severity::Error,
        },
        _ => given.max(lost),
    }
}

/// Whether this side still uses a connection in this state.
const fn lives(state: State) -> bool {
    matches!(state, State::Established | State::CloseWait | State::SynSent)
}

/// A cause, explained.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// The cause.
    pub cause: Cause,
    /// Its severity where nothing else is known.
    pub severity: Severity,
    /// What happened.
    pub meaning: &'static str,
    /// The kernel's path to it, by function.
    pub kernel: &'static str,
    /// What the standards say.
    pub standard: &'static str,
    /// What to look at, and the usual fix.
    pub fix: &'static str,
}

/// The explanation of a cause.
pub fn explanation(cause: Cause) -> &'static Explanation {
    // In the order of the causes' numbers, as a test checks.
    &EXPLANATIONS[cause as usize]
}

/// Every cause, in the order of its number.
pub const EXPLANATIONS: &[Explanation; Cause::ALL.len()] = &[
    Explanation {
        cause: Cause::Unknown,
        severity: Severity::Warn,
        meaning: "None of the other causes. `tcp.reset.reason` has the kernel's reason, if it gives one.",
        kernel: "tcp_send_active_reset() or tcp_v4_send_reset() by a path that the probes do not distinguish",
        standard: "RFC 9293 3.5.2 (reset generation)",
        fix: "Look at the kernel's reason and the connection's state, and report both with the kernel's version.",
    },
    Explanation {
        cause: Cause::PortClosed,
        severity: Severity::Info,
        meaning: "A SYN met no listener that takes it: the peer's connect() fails with \"connection refused\".",
        kernel: "tcp_v4_rcv() / tcp_v6_rcv() -> __inet_lookup_skb() finds nothing -> tcp_v4_send_reset() / \
                 tcp_v6_send_reset()",
        standard: "RFC 9293 3.5.2, group 1; 3.10.7.1 (CLOSED state)",
        fix: "Compare `ss -ltn` in the same network namespace: the service is not running, or it listens on another \
              address (127.0.0.1 only), on another port, or on another device or VRF (`%eth0` in the output, \
              SO_BINDTODEVICE; for VRFs net.ipv4.tcp_l3mdev_accept). Also health checks before the service is ready; from \
              many peers or to many ports it is a port scan.",
    },
    Explanation {
        cause: Cause::UnknownConnection,
        severity: Severity::Info,
        meaning: "A segment other than a SYN met no socket, a listener, or a closed connection: it fits no connection here.",
        kernel: "tcp_v4_rcv() -> no_tcp_socket, or tcp_rcv_state_process() in LISTEN -> tcp_v4_send_reset()",
        standard: "RFC 9293 3.5.1 (half-open connections) and 3.5.2, groups 1 and 2",
        fix: "By pattern: a burst after a restart or failover of this host is normal. After a long silence, the entry of a \
              NAT, load balancer or connection tracking has expired: set keepalives below its timeout. At a listener, \
              the service closed the connection long ago, or a reload replaced the listener in mid-handshake. A SYN-ACK, or \
              replies to ports of other connections: replies were not translated back (conntrack INVALID): drop INVALID \
              packets, or set net.netfilter.nf_conntrack_tcp_be_liberal=1; else two hosts share an address.",
    },
    Explanation {
        cause: Cause::ClosedWithUnreadData,
        severity: Severity::Warn,
        meaning: "The process called close() while received data were unread in the socket: the data are lost, and the \
                  peer gets a reset instead of a FIN. It may lose data on their way to it as well.",
        kernel: "__tcp_close(): data_was_unread -> tcp_send_active_reset() (TCP_ABORT_ON_CLOSE)",
        standard: "RFC 2525 2.17; RFC 9293 3.6.1; RFC 1122 4.2.2.13",
        fix: "In state established or close_wait: read to the end of the request before closing. Typical are a server that \
              answers early (413, 401, a redirect) while the body still arrives, and a client that closes without \
              reading the response, or with TLS session tickets unread; shutdown(SHUT_WR), read until 0, then close \
              (nginx: lingering_close). In state fin_wait_1 or fin_wait_2 this side had shut down before, mostly at its idle \
              timeout, and the unread data are the next request: the client's pool must retire connections sooner.",
    },
    Explanation {
        cause: Cause::LingerZero,
        severity: Severity::Info,
        meaning: "The process closed the connection under SO_LINGER with time 0 (or, in FIN_WAIT2, with TCP_LINGER2 \
                  below 0), which asks for a reset. Unsent data are discarded.",
        kernel: "__tcp_close(): SOCK_LINGER and sk_lingertime 0 -> tcp_disconnect() -> tcp_send_active_reset() \
                 (TCP_STATE; TCP_ABORT_ON_LINGER for TCP_LINGER2)",
        standard: "RFC 9293 3.9.1.6 (ABORT); socket(7), SO_LINGER",
        fix: "None, if intended: load balancers, health checks and benchmarks close this way, and some servers end idle \
              sessions or reject clients with it (MariaDB: wait_timeout; then let the client's pool retire connections \
              sooner). Otherwise remove SO_LINGER; where it was set to avoid TIME_WAIT, tcp_tw_reuse is safer.",
    },
    Explanation {
        cause: Cause::DataAfterClose,
        severity: Severity::Warn,
        meaning: "The peer sent data to a connection that this side had fully closed already: they are lost.",
        kernel: "tcp_rcv_state_process() in FIN_WAIT1/FIN_WAIT2 (TCP_ABORT_ON_DATA), tcp_timewait_state_process() -> \
                 TCP_TW_RST (TCP_TIMEWAIT_SOCKET), or an orphan's timeout",
        standard: "RFC 1122 4.2.2.13; RFC 9293 3.6.1",
        fix: "This side closes too early: an idle keep-alive connection closed just as the next request arrived (make the \
              server's idle timeout longer than the client's pool's), or a response cut short.",
    },
    Explanation {
        cause: Cause::DisconnectSyscall,
        severity: Severity::Info,
        meaning: "The process dissolved the connection by connect(AF_UNSPEC), or it ended in CLOSING or LAST_ACK with \
                  unsent data, which are lost.",
        kernel: "tcp_disconnect(): tcp_need_reset(), or TCP_DISCONNECT_WITH_DATA -> tcp_send_active_reset()",
        standard: "RFC 9293 3.9.1.6 (ABORT); connect(2), AF_UNSPEC",
        fix: "None, if intended. Otherwise close() the socket instead of reusing it.",
    },
    Explanation {
        cause: Cause::ListenerClosed,
        severity: Severity::Info,
        meaning: "A listener closed while connections waited to be accepted: each of them is reset. A request that one of \
                  them had sent already is lost (then WARN).",
        kernel: "inet_csk_listen_stop() -> inet_child_forget() -> tcp_disconnect() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.9.1.6 (ABORT)",
        fix: "At shutdown and reload, take the service out of the load balancer first, then accept what waits, then close. \
              With SO_REUSEPORT set net.ipv4.tcp_migrate_req=1, so that other listeners inherit the waiting ones.",
    },
    Explanation {
        cause: Cause::AcceptQueueOverflow,
        severity: Severity::Warn,
        meaning: "The listener's accept queue was full. Under net.ipv4.tcp_abort_on_overflow the connection is reset at \
                  once; without it the half-open request expires, and its data then meet the listener.",
        kernel: "tcp_check_req() -> tcp_v4_syn_recv_sock() fails, sk_acceptq_is_full() -> embryonic_reset \
                 (INVALID_SYN); or tcp_rcv_state_process() in LISTEN (TCP_FLAGS)",
        standard: "none; tcp(7), tcp_abort_on_overflow; listen(2)",
        fix: "Accept faster (more workers, no work in the accept loop), and raise the listen() backlog and \
              net.core.somaxconn. `ss -lt` shows the queue (Recv-Q, Send-Q), `nstat TcpExtListenOverflows` counts.",
    },
    Explanation {
        cause: Cause::ProcessKilled,
        severity: Severity::Error,
        meaning: "A signal ended the process that held the connection, with the connection open.",
        kernel: "do_exit() -> exit_files() -> task_work_run() -> __fput() -> tcp_close() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "Find out who sent the signal (`process.exit.signal`): a crash (SIGSEGV, SIGABRT), an administrator, a \
              supervisor's request timeout, or a stop that did not wait (SIGKILL after terminationGracePeriodSeconds or \
              TimeoutStopSec). Handle SIGTERM, drain, and give the process time.",
    },
    Explanation {
        cause: Cause::SocketDestroyed,
        severity: Severity::Warn,
        meaning: "A process destroyed the socket from outside: `ss -K`, sock_diag, or an eBPF program.",
        kernel: "tcp_diag_destroy() or bpf_sock_destroy() -> tcp_abort() -> tcp_send_active_reset()",
        standard: "none; sock_diag(7), SOCK_DESTROY",
        fix: "`tcp.reset.actor.name` and `tcp.reset.actor.pid` name the process. Network agents (Cilium at a backend's end, \
              Android's netd) and scripts do this on purpose.",
    },
    Explanation {
        cause: Cause::KeepaliveTimeout,
        severity: Severity::Error,
        meaning: "The peer answered none of the keepalive probes: its host is down or unreachable, or it lost the \
                  connection without a reset.",
        kernel: "tcp_keepalive_timer(): icsk_probes_out >= keepalive_probes() -> tcp_send_active_reset() \
                 (TCP_KEEPALIVE_TIMEOUT)",
        standard: "RFC 1122 4.2.3.6; RFC 9293 3.8.4",
        fix: "Check the path and the peer's host; a NAT or firewall that silently drops idle connections needs \
              keepalives sooner (TCP_KEEPIDLE below its timeout).",
    },
    Explanation {
        cause: Cause::UserTimeout,
        severity: Severity::Error,
        meaning: "The peer did not answer within the application's TCP_USER_TIMEOUT.",
        kernel: "tcp_keepalive_timer() or tcp_write_timeout(): icsk_user_timeout -> tcp_send_active_reset() or \
                 tcp_write_err()",
        standard: "RFC 9293 3.8.3 (connection failures); RFC 5482; tcp(7), TCP_USER_TIMEOUT",
        fix: "Check the path and the peer's host; make the timeout (gRPC sets it to its keepalive timeout) longer than a \
              failover takes.",
    },
    Explanation {
        cause: Cause::ProcessExited,
        severity: Severity::Warn,
        meaning: "The process that held the connection ended by itself, with the connection open. With exit code 0 and \
                  nothing lost it is INFO, with another code and data lost ERROR.",
        kernel: "do_exit() -> exit_files() -> task_work_run() -> __fput() -> tcp_close() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "An exit code other than 0 (`process.exit.code`) is a failure, or a server that ends a session on request (a \
              PostgreSQL backend after pg_terminate_backend or a bad startup packet): see the program's log. Otherwise \
              close connections before the program ends, and read what the peer sent.",
    },
    Explanation {
        cause: Cause::OutOfMemory,
        severity: Severity::Error,
        meaning: "The kernel had too many orphaned connections, or TCP's memory was exhausted: it reset this one to save \
                  the rest.",
        kernel: "tcp_check_oom() in __tcp_close(), tcp_out_of_resources() -> tcp_send_active_reset() \
                 (TCP_ABORT_ON_MEMORY)",
        standard: "none; tcp(7), tcp_max_orphans, tcp_mem, tcp_orphan_retries",
        fix: "Compare /proc/net/sockstat (orphan, mem) with net.ipv4.tcp_max_orphans and tcp_mem; find out what closes \
              connections to peers that do not read, and what holds large socket buffers.",
    },
    Explanation {
        cause: Cause::BadSegment,
        severity: Severity::Warn,
        meaning: "A segment arrived that the connection cannot accept in its state: a wrong acknowledgement, a bad SYN, an \
                  old timestamp, impossible flags. `tcp.reset.reason` says which.",
        kernel: "tcp_rcv_state_process(), tcp_rcv_synsent_state_process(), tcp_check_req() -> tcp_v4_send_reset()",
        standard: "RFC 9293 3.10.7 (segment arrives); RFC 5961; RFC 7323 5 (PAWS)",
        fix: "In state syn_sent the peer still had an old connection of the same ports: its challenge ACK was answered \
              with this reset, and the next SYN succeeds (wait longer before a port is reused). Otherwise look at the reason: \
              two hosts or NATs share an address, a middlebox rewrites sequence numbers or timestamps, segments of an old \
              connection arrive late, or someone probes.",
    },
    Explanation {
        cause: Cause::Mptcp,
        severity: Severity::Warn,
        meaning: "Multipath TCP reset a subflow or the whole connection; its own reason is in `tcp.reset.reason`. \
                  Other subflows may continue.",
        kernel: "mptcp_subflow_reset(), mptcp_do_fastclose(), subflow_syn_recv_sock() -> tcp_send_active_reset() or \
                 tcp_v4_send_reset()",
        standard: "RFC 8684 3.5 (fast close), 3.6 (subflow reset, MP_TCPRST)",
        fix: "See `ip mptcp monitor` and `nstat MPTcp*`; a middlebox that strips MPTCP options causes \
              MPTCP_RST_EMIDDLEBOX.",
    },
    Explanation {
        cause: Cause::FirewallReject,
        severity: Severity::Warn,
        meaning: "A firewall rule of this host answered the segment with a reset: no socket saw it. The segment came in, was \
                  forwarded, or was sent by this host itself (an egress rule).",
        kernel: "nft_reject_inet_eval() or reject_tg() -> nf_send_reset() / nf_send_reset6()",
        standard: "none; nft(8), `reject with tcp reset`; iptables-extensions(8), REJECT",
        fix: "Find the rule in `nft list ruleset` (or iptables-save): `reject with tcp reset`, `--reject-with tcp-reset`. \
              Other rejects answer with ICMP: the client gets the same \"connection refused\", but there is no reset.",
    },
    Explanation {
        cause: Cause::RefusedByPeer,
        severity: Severity::Warn,
        meaning: "A connection attempt of this host was answered with a reset: connect() fails with \
                  ECONNREFUSED.",
        kernel: "tcp_rcv_synsent_state_process() -> tcp_reset(): sk_err = ECONNREFUSED",
        standard: "RFC 9293 3.10.7.3 (SYN-SENT state), 3.5.3",
        fix: "Check that the peer's service runs and listens on that address, port and device. Otherwise a firewall on the \
              way rejects (this host's own too: then a firewall_reject is beside it), or the peer's accept queue is full \
              under tcp_abort_on_overflow. A collector on the peer's host shows which.",
    },
    Explanation {
        cause: Cause::ResetByPeer,
        severity: Severity::Error,
        meaning: "The peer, or a device that speaks for it, reset an existing connection: the application gets \
                  ECONNRESET, or EPIPE after the peer's FIN.",
        kernel: "tcp_validate_incoming() -> tcp_reset(): sk_err = ECONNRESET, EPIPE in CLOSE_WAIT",
        standard: "RFC 9293 3.5.3 (reset processing); RFC 5961 3",
        fix: "The cause is at the other end: run the collector there. Without it: unacked_bytes and unsent_bytes show what was \
              lost; a reset right after a request on a connection that had long been unused is an idle timeout of the peer or of \
              a device between; many at once after a deployment are a peer that was stopped.",
    },
    Explanation {
        cause: Cause::UnmatchedReset,
        severity: Severity::Info,
        meaning: "A reset arrived that fits no connection here: its connection is closed already, was never here, or \
                  belonged to a container that is gone. Also the backscatter of an attack with forged addresses.",
        kernel: "tcp_v4_rcv() -> no_tcp_socket -> kfree_skb_reason(NO_SOCKET)",
        standard: "RFC 9293 3.10.7.1 (CLOSED state: a reset is discarded)",
        fix: "Mostly none. Many from one peer: this host sends to connections that the peer has closed.",
    },
    Explanation {
        cause: Cause::ProcessOomKilled,
        severity: Severity::Error,
        meaning: "The kernel's OOM killer ended the process that held the connection, with the connection open.",
        kernel: "oom_kill_process() -> SIGKILL; do_exit() -> exit_files() -> __fput() -> tcp_close() -> \
                 tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "Raise the memory limit (resources.limits.memory, MemoryMax), or find out what the process holds; dmesg and \
              memory.events of its cgroup (oom_kill) show the limit that was hit.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Connection, sample};

    #[test]
    fn the_table_is_in_the_order_of_the_causes() {
        for cause in Cause::ALL {
            assert_eq!(explanation(*cause).cause, *cause);
        }
    }

    /// Cause, severity with nothing lost, with data undelivered, with data unread.
    #[test]
    fn severity_follows_what_was_lost() {
        use Severity::{Error, Info, Warn};
        let table = [
            (Cause::LingerZero, [Info, Warn, Warn]),
            (Cause::ListenerClosed, [Info, Warn, Warn]),
            (Cause::DisconnectSyscall, [Info, Warn, Warn]),
            (Cause::PortClosed, [Info, Warn, Warn]),
            (Cause::UnknownConnection, [Info, Warn, Warn]),
            (Cause::UnmatchedReset, [Info, Warn, Warn]),
            (Cause::ClosedWithUnreadData, [Warn; 3]),
            (Cause::RefusedByPeer, [Warn; 3]),
            (Cause::DataAfterClose, [Warn; 3]),
            (Cause::AcceptQueueOverflow, [Warn; 3]),
            (Cause::SocketDestroyed, [Warn; 3]),
            (Cause::FirewallReject, [Warn; 3]),
            (Cause::KeepaliveTimeout, [Error; 3]),
            (Cause::UserTimeout, [Error; 3]),
            (Cause::ProcessKilled, [Error; 3]),
            (Cause::ProcessOomKilled, [Error; 3]),
            (Cause::OutOfMemory, [Error; 3]),
            (Cause::ResetByPeer, [Error; 3]),
        ];
        let losses = [(0, 0), (1, 0), (0, 1)].map(|(unacked, unread)| Connection {
            unacked_bytes: Some(unacked),
            unread_bytes: Some(unread),
            ..Connection::default()
        });
        for (cause, expected) in table {
            let given = losses.map(|connection| severity(&Reset { cause, connection, ..sample::reset() }));
            assert_eq!(given, expected, "{}", cause.word());
        }
    }

    #[test]
    fn an_exit_with_nothing_lost_is_no_error() {
        let of = |exit, unread| {
            let connection = Connection { unread_bytes: Some(unread), ..Connection::default() };
            severity(&Reset { cause: Cause::ProcessExited, exit, connection, ..sample::reset() })
        };
        let code = |code| Some(ProcessExit::Code(code));
        assert_eq!([of(code(0), 0), of(code(0), 5)], [Severity::Info, Severity::Warn]);
        assert_eq!([of(code(1), 0), of(code(1), 5)], [Severity::Warn, Severity::Error]);
        assert_eq!(of(None, 0), Severity::Warn);
    }

    #[test]
    fn a_reset_that_ends_no_working_connection_is_no_error() {
        let received = |state, unacked| {
            let connection = Connection { unacked_bytes: Some(unacked), ..sample::reset().connection };
            severity(&Reset { cause: Cause::ResetByPeer, state, connection, ..sample::reset() })
        };
        for state in [State::SynReceived, State::FinWait1, State::FinWait2, State::TimeWait, State::LastAck] {
            assert_eq!(received(Some(state), 0), Severity::Info, "{}", state.word());
            assert_eq!(received(Some(state), 9), Severity::Warn, "a response that did not arrive, {}", state.word());
        }
        assert_eq!(received(Some(State::CloseWait), 0), Severity::Error);
        assert_eq!(received(None, 0), Severity::Error);
        let reset = Reset { cause: Cause::ResetByPeer, ..sample::reset() };
        assert_eq!(severity(&Reset { not_accepted: true, ..reset.clone() }), Severity::Info);
        let unused = Connection { bytes_sent: Some(0), bytes_received: Some(0), ..Connection::default() };
        assert_eq!(severity(&Reset { connection: unused, ..reset }), Severity::Warn, "no request was lost");
    }

    /// Words that were wrong or misleading, each for a case that was tried.
    #[test]
    fn fixes_do_not_mislead() {
        let fix = |cause| explanation(cause).fix;
        assert!(fix(Cause::PortClosed).contains("device or VRF"), "a listener bound to another device");
        assert!(fix(Cause::UnknownConnection).contains("INVALID"), "conntrack did not translate the reply back");
        assert!(!fix(Cause::FirewallReject).contains("kube-proxy"), "its rejects are ICMP, no resets");
        assert!(
            !fix(Cause::ResetByPeer).contains("duration"),
            "a connection that was reused is older than its idle time"
        );
        assert!(fix(Cause::LingerZero).contains("wait_timeout"), "servers that end idle sessions by SO_LINGER 0");
        assert!(fix(Cause::ClosedWithUnreadData).contains("fin_wait_2"), "shut down before, then closed");
        assert!(fix(Cause::ProcessKilled).contains("administrator"));
    }
}
