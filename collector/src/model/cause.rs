//! What each cause means: how bad it is, how the kernel comes to it, what the standards say, and what to do about it.
//! One table, read by the encoder (severity) and by `explain`.

use crate::model::{Cause, Reset, State};

/// How bad a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Somebody's choice, or noise: no connection of ours failed.
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

/// How bad this reset is: its cause's severity, except where the facts show that no connection of this side was lost.
pub fn severity(reset: &Reset) -> Severity {
    if reset.not_accepted {
        return Severity::Info;
    }
    match (reset.cause, reset.state) {
        // Half open (a port scan ends so), or closed by this side already: the peer only cuts the farewell short.
        (Cause::ResetByPeer, Some(state)) if !lives(state) => Severity::Info,
        (cause, _) => explanation(cause).severity,
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
    /// How bad it is.
    pub severity: Severity,
    /// What happened.
    pub meaning: &'static str,
    /// The kernel's path to it, by function.
    pub kernel: &'static str,
    /// What the standards say.
    pub standard: &'static str,
    /// The usual fix.
    pub fix: &'static str,
}

/// The explanation of a cause.
pub fn explanation(cause: Cause) -> &'static Explanation {
    // In the order of the causes' numbers, which a test holds it to.
    &EXPLANATIONS[cause as usize]
}

/// Every cause, in the order of its number.
pub const EXPLANATIONS: &[Explanation; Cause::ALL.len()] = &[
    Explanation {
        cause: Cause::Unknown,
        severity: Severity::Warn,
        meaning: "None of the other causes; nothing is guessed. `tcp.reset.reason` holds what the kernel said.",
        kernel: "tcp_send_active_reset() or tcp_v4_send_reset() by a path that is not told apart",
        standard: "RFC 9293 3.5.2 (reset generation)",
        fix: "Look at the kernel's reason and at the connection's state; report it with `reset-collector check`'s output.",
    },
    Explanation {
        cause: Cause::PortClosed,
        severity: Severity::Info,
        meaning: "A SYN met no listener: the peer sees \"connection refused\".",
        kernel: "tcp_v4_rcv() / tcp_v6_rcv() -> __inet_lookup_skb() finds nothing -> tcp_v4_send_reset() / \
                 tcp_v6_send_reset()",
        standard: "RFC 9293 3.5.2, group 1; 3.10.7.1 (CLOSED state)",
        fix: "Start the service, or let it listen on this address and not on localhost only; check the port and the \
              health checks that send traffic before the service is ready. From many peers or ports it is a port scan.",
    },
    Explanation {
        cause: Cause::UnknownConnection,
        severity: Severity::Info,
        meaning: "A segment that is no SYN met no socket, a listener, or a closed connection: one side, or a device \
                  between, has forgotten a connection that the other still uses.",
        kernel: "tcp_v4_rcv() -> no_tcp_socket, or tcp_rcv_state_process() in LISTEN -> tcp_v4_send_reset()",
        standard: "RFC 9293 3.5.1 (half-open connections) and 3.5.2, groups 1 and 2",
        fix: "Make idle timeouts longer from the client towards the server (load balancer, NAT, conntrack), or use \
              keepalive; after a restart of this host or a failover a short burst is normal.",
    },
    Explanation {
        cause: Cause::ClosedWithUnreadData,
        severity: Severity::Warn,
        meaning: "The process called close() while received data lay unread in the socket: the data are lost, and the \
                  peer is told by a reset instead of a FIN. It may lose what was on its way to it, too.",
        kernel: "__tcp_close(): data_was_unread -> tcp_send_active_reset() (TCP_ABORT_ON_CLOSE)",
        standard: "RFC 2525 2.17; RFC 9293 3.6.1; RFC 1122 4.2.2.13",
        fix: "Read to the end of the request before closing: typical are a server that answers early (413, 401, a \
              redirect) while the body still comes, and a client that closes without reading the response. \
              shutdown(SHUT_WR), read until 0, then close (nginx: lingering_close).",
    },
    Explanation {
        cause: Cause::LingerZero,
        severity: Severity::Info,
        meaning: "The process closed the connection under SO_LINGER with time 0 (or, in FIN_WAIT2, with TCP_LINGER2 \
                  below 0): it asked for a reset. What was not yet sent is discarded.",
        kernel: "__tcp_close(): SOCK_LINGER and sk_lingertime 0 -> tcp_disconnect() -> tcp_send_active_reset() \
                 (TCP_STATE; TCP_ABORT_ON_LINGER for TCP_LINGER2)",
        standard: "RFC 9293 3.9.1.6 (ABORT); socket(7), SO_LINGER",
        fix: "Nothing, if it is meant (load balancers, health checks, benchmarks). Else take the SO_LINGER out; it is \
              often set to be rid of TIME_WAIT, for which tcp_tw_reuse is the better way.",
    },
    Explanation {
        cause: Cause::DataAfterClose,
        severity: Severity::Warn,
        meaning: "The peer sent data to a connection that this side had fully closed already: nobody can read them.",
        kernel: "tcp_rcv_state_process() in FIN_WAIT1/FIN_WAIT2 (TCP_ABORT_ON_DATA), tcp_timewait_state_process() -> \
                 TCP_TW_RST (TCP_TIMEWAIT_SOCKET), or an orphan's timeout",
        standard: "RFC 1122 4.2.2.13; RFC 9293 3.6.1",
        fix: "This side closes too early: an idle keep-alive connection closed just as the next request came (make the \
              server's idle timeout longer than the client's pool's), or a response cut short.",
    },
    Explanation {
        cause: Cause::DisconnectSyscall,
        severity: Severity::Info,
        meaning: "The process dissolved the connection by connect(AF_UNSPEC), or it ended in CLOSING or LAST_ACK with \
                  data not yet sent, which are lost.",
        kernel: "tcp_disconnect(): tcp_need_reset(), or TCP_DISCONNECT_WITH_DATA -> tcp_send_active_reset()",
        standard: "RFC 9293 3.9.1.6 (ABORT); connect(2), AF_UNSPEC",
        fix: "Nothing, if it is meant. Else close() the socket instead of using it again.",
    },
    Explanation {
        cause: Cause::ListenerClosed,
        severity: Severity::Info,
        meaning: "A listener was closed with connections waiting to be accepted: each of them is reset.",
        kernel: "inet_csk_listen_stop() -> inet_child_forget() -> tcp_disconnect() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.9.1.6 (ABORT)",
        fix: "At shutdown, take the service out of the load balancer first, then accept what waits, then close. With \
              SO_REUSEPORT set net.ipv4.tcp_migrate_req=1, so that other listeners inherit the waiting ones.",
    },
    Explanation {
        cause: Cause::AcceptQueueOverflow,
        severity: Severity::Warn,
        meaning: "The listener's queue of connections to be accepted was full: under net.ipv4.tcp_abort_on_overflow the \
                  new connection was reset.",
        kernel: "tcp_check_req() -> tcp_v4_syn_recv_sock() fails, sk_acceptq_is_full() -> embryonic_reset \
                 (INVALID_SYN)",
        standard: "none; tcp(7), tcp_abort_on_overflow; listen(2)",
        fix: "Accept faster (more workers, no work in the accept loop), raise the listen() backlog and \
              net.core.somaxconn; with tcp_abort_on_overflow=0 the client tries again instead. See `ss -lt`, Recv-Q.",
    },
    Explanation {
        cause: Cause::ProcessKilled,
        severity: Severity::Error,
        meaning: "A signal ended the process that held the connection, with the connection open.",
        kernel: "do_exit() -> exit_files() -> task_work_run() -> __fput() -> tcp_close() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "Find out who sent the signal: a crash (SIGSEGV, SIGABRT), or a stop that did not wait (SIGKILL after \
              terminationGracePeriodSeconds or TimeoutStopSec). Handle SIGTERM, drain, and give the process time.",
    },
    Explanation {
        cause: Cause::SocketDestroyed,
        severity: Severity::Warn,
        meaning: "Somebody destroyed the socket from outside: `ss -K`, sock_diag, or an eBPF program.",
        kernel: "tcp_diag_destroy() or bpf_sock_destroy() -> tcp_abort() -> tcp_send_active_reset()",
        standard: "none; sock_diag(7), SOCK_DESTROY",
        fix: "Find who did it: agents of networks (Cilium at a backend's end, Android's netd) and scripts use it on \
              purpose.",
    },
    Explanation {
        cause: Cause::KeepaliveTimeout,
        severity: Severity::Error,
        meaning: "The peer answered none of the keepalive probes: its host is down, unreachable, or has forgotten the \
                  connection in silence.",
        kernel: "tcp_keepalive_timer(): icsk_probes_out >= keepalive_probes() -> tcp_send_active_reset() \
                 (TCP_KEEPALIVE_TIMEOUT)",
        standard: "RFC 1122 4.2.3.6; RFC 9293 3.8.4",
        fix: "Check the path and the peer's host; a NAT or firewall that drops idle connections in silence needs \
              keepalives sooner (TCP_KEEPIDLE below its timeout).",
    },
    Explanation {
        cause: Cause::UserTimeout,
        severity: Severity::Error,
        meaning: "The peer did not answer within the application's TCP_USER_TIMEOUT.",
        kernel: "tcp_keepalive_timer() or tcp_write_timeout(): icsk_user_timeout -> tcp_send_active_reset() or \
                 tcp_write_err()",
        standard: "RFC 9293 3.8.3 (connection failures); RFC 5482; tcp(7), TCP_USER_TIMEOUT",
        fix: "Check the path and the peer's host; is the timeout (gRPC sets it to its keepalive timeout) longer than a \
              failover takes?",
    },
    Explanation {
        cause: Cause::ProcessExited,
        severity: Severity::Warn,
        meaning: "The process that held the connection ended by itself, with the connection open.",
        kernel: "do_exit() -> exit_files() -> task_work_run() -> __fput() -> tcp_close() -> tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "An exit code other than 0 is a failure: see the program's log. Otherwise close connections in order \
              before the program ends, and read what the peer sent.",
    },
    Explanation {
        cause: Cause::OutOfMemory,
        severity: Severity::Error,
        meaning: "The kernel had too many orphaned connections, or TCP's memory was spent: it reset this one to save \
                  the rest.",
        kernel: "tcp_check_oom() in __tcp_close(), tcp_out_of_resources() -> tcp_send_active_reset() \
                 (TCP_ABORT_ON_MEMORY)",
        standard: "none; tcp(7), tcp_max_orphans, tcp_mem, tcp_orphan_retries",
        fix: "See /proc/net/sockstat (orphan, mem) against net.ipv4.tcp_max_orphans and tcp_mem; find who closes \
              connections to peers that do not read, and who holds large socket buffers.",
    },
    Explanation {
        cause: Cause::BadSegment,
        severity: Severity::Warn,
        meaning: "A segment came that the connection cannot accept in its state: a wrong acknowledgement, a bad SYN, an \
                  old timestamp, impossible flags. `tcp.reset.reason` says which.",
        kernel: "tcp_rcv_state_process(), tcp_rcv_synsent_state_process(), tcp_check_req() -> tcp_v4_send_reset()",
        standard: "RFC 9293 3.10.7 (segment arrives); RFC 5961; RFC 7323 5 (PAWS)",
        fix: "Look at the reason: two hosts or NATs share an address, a middlebox rewrites sequence numbers or \
              timestamps, an old connection's segments come late, or somebody probes.",
    },
    Explanation {
        cause: Cause::Mptcp,
        severity: Severity::Warn,
        meaning: "Multipath TCP reset a subflow or the whole connection; its own reason stands in `tcp.reset.reason`. \
                  The other subflows may go on.",
        kernel: "mptcp_subflow_reset(), mptcp_do_fastclose(), subflow_syn_recv_sock() -> tcp_send_active_reset() or \
                 tcp_v4_send_reset()",
        standard: "RFC 8684 3.5 (fast close), 3.6 (subflow reset, MP_TCPRST)",
        fix: "See `ip mptcp monitor` and `nstat MPTcp*`; a middlebox that takes MPTCP options out gives \
              MPTCP_RST_EMIDDLEBOX.",
    },
    Explanation {
        cause: Cause::FirewallReject,
        severity: Severity::Warn,
        meaning: "A firewall rule of this host answered the segment with a reset: no socket saw it.",
        kernel: "nft_reject_inet_eval() or reject_tg() -> nf_send_reset() / nf_send_reset6()",
        standard: "none; nft(8), `reject with tcp reset`; iptables-extensions(8), REJECT",
        fix: "`nft list ruleset` (or iptables-save) and look for the rule; on Kubernetes a service without endpoints \
              is rejected by kube-proxy.",
    },
    Explanation {
        cause: Cause::RefusedByPeer,
        severity: Severity::Warn,
        meaning: "A connection that this host wanted to open was answered with a reset: connect() fails with \
                  ECONNREFUSED.",
        kernel: "tcp_rcv_synsent_state_process() -> tcp_reset(): sk_err = ECONNREFUSED",
        standard: "RFC 9293 3.10.7.3 (SYN-SENT state), 3.5.3",
        fix: "Is the peer's service running and listening on that address and port? Else a firewall between rejects, \
              or its accept queue is full under tcp_abort_on_overflow. The peer's own collector says which.",
    },
    Explanation {
        cause: Cause::ResetByPeer,
        severity: Severity::Error,
        meaning: "The peer, or a device that speaks for it, reset an existing connection: the application gets \
                  ECONNRESET, or EPIPE after the peer's FIN.",
        kernel: "tcp_validate_incoming() -> tcp_reset(): sk_err = ECONNRESET, EPIPE in CLOSE_WAIT",
        standard: "RFC 9293 3.5.3 (reset processing); RFC 5961 3",
        fix: "The reason is at the other end: run the collector there. Without it: unread_bytes and unacked_bytes say \
              what was lost; a round duration (60 s, 350 s) is an idle timeout; an instant reset after a deploy is a \
              peer that was stopped.",
    },
    Explanation {
        cause: Cause::UnmatchedReset,
        severity: Severity::Info,
        meaning: "A reset came that fits no connection here: its connection is closed already, was never here, or is a \
                  container's that is gone. Also the backscatter of an attack under forged addresses.",
        kernel: "tcp_v4_rcv() -> no_tcp_socket -> kfree_skb_reason(NO_SOCKET)",
        standard: "RFC 9293 3.10.7.1 (CLOSED state: a reset is discarded)",
        fix: "Nothing, mostly. Many from one peer: it still resets connections that this host has forgotten.",
    },
    Explanation {
        cause: Cause::ProcessOomKilled,
        severity: Severity::Error,
        meaning: "The kernel's OOM killer ended the process that held the connection, with the connection open.",
        kernel: "oom_kill_process() -> SIGKILL; do_exit() -> exit_files() -> __fput() -> tcp_close() -> \
                 tcp_send_active_reset()",
        standard: "RFC 9293 3.6.1",
        fix: "Raise the memory limit (resources.limits.memory, MemoryMax), or find what the process holds; dmesg and \
              memory.events of its cgroup (oom_kill) show the limit that was hit.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample;

    #[test]
    fn the_table_is_in_the_order_of_the_causes() {
        for cause in Cause::ALL {
            assert_eq!(explanation(*cause).cause, *cause);
        }
    }

    #[test]
    fn severity_follows_the_cause() {
        let table = [
            (Cause::LingerZero, Severity::Info),
            (Cause::ListenerClosed, Severity::Info),
            (Cause::PortClosed, Severity::Info),
            (Cause::UnknownConnection, Severity::Info),
            (Cause::UnmatchedReset, Severity::Info),
            (Cause::ClosedWithUnreadData, Severity::Warn),
            (Cause::RefusedByPeer, Severity::Warn),
            (Cause::DataAfterClose, Severity::Warn),
            (Cause::KeepaliveTimeout, Severity::Error),
            (Cause::UserTimeout, Severity::Error),
            (Cause::ProcessKilled, Severity::Error),
            (Cause::ProcessOomKilled, Severity::Error),
            (Cause::OutOfMemory, Severity::Error),
            (Cause::ResetByPeer, Severity::Error),
        ];
        for (cause, expected) in table {
            let reset = Reset { cause, ..sample::reset() };
            assert_eq!(severity(&reset), expected, "{}", cause.word());
        }
    }

    #[test]
    fn a_reset_that_ends_no_working_connection_is_no_error() {
        let received = |state| Reset { cause: Cause::ResetByPeer, state, ..sample::reset() };
        for state in [State::SynReceived, State::FinWait1, State::FinWait2, State::TimeWait, State::LastAck] {
            assert_eq!(severity(&received(Some(state))), Severity::Info, "{}", state.word());
        }
        assert_eq!(severity(&received(Some(State::CloseWait))), Severity::Error);
        assert_eq!(severity(&received(None)), Severity::Error);
        let ignored = Reset { not_accepted: true, ..received(Some(State::Established)) };
        assert_eq!(severity(&ignored), Severity::Info);
    }
}
