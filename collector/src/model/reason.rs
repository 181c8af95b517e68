//! The kernel's own names for why a reset was sent, and why a received one was not accepted: numbers to names by the
//! running kernel's BTF, and what each name means.

/// Prefix of the names in `enum sk_rst_reason`.
const RESET_PREFIX: &str = "SK_RST_REASON_";
/// Prefix of the names in `enum skb_drop_reason`.
const DROP_PREFIX: &str = "SKB_DROP_REASON_";
/// Numbers from here on are not kept: subsystems' own drop reasons, none of them TCP's.
const NUMBERS: u32 = 4096;

/// The names of the running kernel's reasons by number, which moves from version to version.
#[derive(Clone, Debug, Default)]
pub struct ReasonNames {
    reset: Vec<Option<&'static str>>,
    dropped: Vec<Option<&'static str>>,
}

impl ReasonNames {
    /// Names out of the members (number, name) of `enum sk_rst_reason` and `enum skb_drop_reason`, with the enum's
    /// prefix or without. A kernel without one of them gives an empty list. Made once, for the life of the program.
    pub fn new(
        reset: impl IntoIterator<Item = (u32, String)>,
        dropped: impl IntoIterator<Item = (u32, String)>,
    ) -> Self {
        Self { reset: by_number(reset, RESET_PREFIX), dropped: by_number(dropped, DROP_PREFIX) }
    }

    /// The name of a number in `enum sk_rst_reason`.
    pub fn reset(&self, number: u16) -> Option<&'static str> {
        *self.reset.get(usize::from(number))?
    }

    /// The name of a number in `enum skb_drop_reason`.
    pub fn dropped(&self, number: u16) -> Option<&'static str> {
        *self.dropped.get(usize::from(number))?
    }
}

fn by_number(members: impl IntoIterator<Item = (u32, String)>, prefix: &str) -> Vec<Option<&'static str>> {
    let mut names = Vec::new();
    for (number, name) in members {
        if number >= NUMBERS {
            continue;
        }
        let place = number as usize;
        if names.len() <= place {
            names.resize(place + 1, None);
        }
        // Kept for the life of the program, so that every reset can carry its name without counting references.
        let name: &'static str = name.strip_prefix(prefix).unwrap_or(&name).to_owned().leak();
        names[place] = Some(name);
    }
    names
}

/// A kernel's reason, explained.
#[derive(Clone, Copy, Debug)]
pub struct Reason {
    /// The name without its enum's prefix.
    pub name: &'static str,
    /// Which enum it stands in.
    pub list: List,
    /// What it means.
    pub meaning: &'static str,
    /// Functions of the kernel that give it.
    pub kernel: &'static str,
    /// The causes that it comes with.
    pub causes: &'static str,
}

/// The kernel's two lists of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// `enum sk_rst_reason`: why a reset was sent.
    Reset,
    /// `enum skb_drop_reason`: why a received reset was dropped.
    Dropped,
}

impl List {
    /// The prefix of its names in the kernel.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Reset => RESET_PREFIX,
            Self::Dropped => DROP_PREFIX,
        }
    }
}

const fn reset(name: &'static str, meaning: &'static str, kernel: &'static str, causes: &'static str) -> Reason {
    Reason { name, list: List::Reset, meaning, kernel, causes }
}

const fn dropped(name: &'static str, meaning: &'static str, kernel: &'static str, causes: &'static str) -> Reason {
    Reason { name, list: List::Dropped, meaning, kernel, causes }
}

/// The reasons that resets come with, in the kernel's order (Linux 6.18), sent before received.
pub const REASONS: &[Reason] = &[
    reset(
        "NOT_SPECIFIED",
        "The kernel did not say why. On Linux 6.10 and 6.11 every active reset (close, abort, timeout) says this.",
        "tcp_send_active_reset() up to 6.11",
        "any: the cause comes from the socket and the call path",
    ),
    reset(
        "NO_SOCKET",
        "No socket of any kind has the segment's addresses and ports.",
        "tcp_v4_rcv(), tcp_v6_rcv() -> no_tcp_socket -> tcp_v4_send_reset(), tcp_v6_send_reset()",
        "port_closed for a SYN, unknown_connection otherwise",
    ),
    reset(
        "TCP_INVALID_ACK_SEQUENCE",
        "An acknowledgement outside of the window while the handshake was not complete.",
        "tcp_rcv_synsent_state_process(), tcp_check_req()",
        "bad_segment",
    ),
    reset(
        "TCP_RFC7323_PAWS",
        "The segment's timestamp is older than the last one seen on the connection (protection against wrapped \
         sequence numbers).",
        "tcp_check_req(), tcp_rcv_synsent_state_process(): tcp_paws_reject()",
        "bad_segment",
    ),
    reset(
        "TCP_TOO_OLD_ACK",
        "The acknowledgement is older than the largest window ever offered: a stale or forged segment (RFC 5961 5.2).",
        "tcp_ack() in SYN_RECV -> tcp_rcv_state_process()",
        "bad_segment",
    ),
    reset(
        "TCP_ACK_UNSENT_DATA",
        "The segment acknowledges bytes that were never sent.",
        "tcp_ack() in SYN_RECV -> tcp_rcv_state_process()",
        "bad_segment",
    ),
    reset(
        "TCP_FLAGS",
        "The segment's flags fit nothing: mostly an ACK to a listener that knows of no handshake (a forgotten \
         connection, a bad SYN cookie).",
        "tcp_rcv_state_process() in LISTEN",
        "unknown_connection at a listener, bad_segment otherwise",
    ),
    reset(
        "TCP_OLD_ACK",
        "The acknowledgement was given before.",
        "tcp_ack() in SYN_RECV -> tcp_rcv_state_process()",
        "bad_segment",
    ),
    reset(
        "TCP_ABORT_ON_DATA",
        "Data came to a connection that this side had fully closed, before the close was over.",
        "tcp_rcv_state_process() in FIN_WAIT1, FIN_WAIT2, with RCV_SHUTDOWN",
        "data_after_close",
    ),
    reset(
        "TCP_TIMEWAIT_SOCKET",
        "A segment met a connection in TIME_WAIT that it does not fit: mostly data after this side's close.",
        "tcp_timewait_state_process() gives TCP_TW_RST -> tcp_v4_send_reset()",
        "data_after_close",
    ),
    reset(
        "INVALID_SYN",
        "A SYN in mid-handshake that is not a copy of the first; with a plain ACK the accept queue was full under \
         tcp_abort_on_overflow.",
        "tcp_check_req() -> embryonic_reset",
        "accept_queue_overflow, bad_segment",
    ),
    reset(
        "TCP_ABORT_ON_CLOSE",
        "close() while received data lay unread.",
        "__tcp_close(); MPTCP fastclose",
        "closed_with_unread_data; process_killed where the process was dying; mptcp",
    ),
    reset(
        "TCP_ABORT_ON_LINGER",
        "close() in FIN_WAIT2 with TCP_LINGER2 below 0: no waiting for the peer's close.",
        "__tcp_close()",
        "linger_zero",
    ),
    reset(
        "TCP_ABORT_ON_MEMORY",
        "Too many orphaned connections, or TCP's memory spent.",
        "tcp_check_oom() in __tcp_close(), tcp_out_of_resources()",
        "out_of_memory",
    ),
    reset(
        "TCP_STATE",
        "The connection was torn down in a state that needs a reset. The kernel gives this one name to SO_LINGER 0, \
         connect(AF_UNSPEC), a listener's close, a killed socket and an orphan's timeout.",
        "tcp_disconnect(), tcp_abort(), inet_csk_listen_stop(), tcp_keepalive_timer() of an orphan in FIN_WAIT2",
        "linger_zero, disconnect_syscall, listener_closed, socket_destroyed, process_killed",
    ),
    reset(
        "TCP_KEEPALIVE_TIMEOUT",
        "The peer answered none of the keepalive probes, or not within TCP_USER_TIMEOUT on an idle connection.",
        "tcp_keepalive_timer()",
        "keepalive_timeout, user_timeout",
    ),
    reset(
        "TCP_DISCONNECT_WITH_DATA",
        "Disconnected in CLOSING or LAST_ACK with data not yet sent.",
        "tcp_disconnect()",
        "disconnect_syscall",
    ),
    reset(
        "MPTCP_RST_EUNSPEC",
        "MPTCP reset a subflow and did not say why.",
        "mptcp_send_active_reset_reason(), mptcp_reset_option()",
        "mptcp",
    ),
    reset("MPTCP_RST_EMPTCP", "An MPTCP option or sequence mapping was in error.", "mptcp_subflow_reset()", "mptcp"),
    reset("MPTCP_RST_ERESOURCE", "No resources for another MPTCP subflow.", "subflow_v4_conn_request()", "mptcp"),
    reset(
        "MPTCP_RST_EPROHIBIT",
        "Policy forbids the MPTCP subflow.",
        "subflow_check_req(), check_fully_established()",
        "mptcp",
    ),
    reset(
        "MPTCP_RST_EWQ2BIG",
        "Too much data waits on the MPTCP subflow.",
        "mptcp_send_active_reset_reason()",
        "mptcp",
    ),
    reset("MPTCP_RST_EBADPERF", "The MPTCP subflow performs too badly.", "mptcp_send_active_reset_reason()", "mptcp"),
    reset(
        "MPTCP_RST_EMIDDLEBOX",
        "A device on the path changed MPTCP's options or data.",
        "get_mapping_status() -> mptcp_subflow_reset()",
        "mptcp",
    ),
    reset("ERROR", "Something else went wrong in the kernel.", "callers without a reason of their own", "unknown"),
    dropped(
        "NO_SOCKET",
        "No socket has the addresses and ports of the received reset.",
        "tcp_v4_rcv(), tcp_v6_rcv() -> no_tcp_socket",
        "unmatched_reset",
    ),
    dropped(
        "TCP_RESET",
        "The socket did not take the reset: a listener, a connect without a matching ACK, or a sequence number \
         inside the window but not exact, which is answered with a challenge ACK (RFC 5961 3.2).",
        "tcp_validate_incoming(), tcp_rcv_state_process(), tcp_rcv_synsent_state_process()",
        "reset_by_peer or refused_by_peer, not accepted",
    ),
    dropped(
        "NOT_SPECIFIED",
        "The kernel did not say; for a received reset mostly one for a request socket or TIME_WAIT.",
        "tcp_check_req(), tcp_timewait_state_process() -> kfree_skb()",
        "reset_by_peer, unmatched_reset",
    ),
    dropped(
        "TCP_OLD_SEQUENCE",
        "The reset's sequence number lies before the window: late, or forged.",
        "tcp_validate_incoming() -> tcp_sequence()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "TCP_INVALID_SEQUENCE",
        "The reset's sequence number lies outside of the window.",
        "tcp_validate_incoming() -> tcp_sequence()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "TCP_INVALID_END_SEQUENCE",
        "The reset's segment ends beyond the window.",
        "tcp_validate_incoming() -> tcp_sequence()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "TCP_INVALID_ACK_SEQUENCE",
        "The reset acknowledges something that the connect did not send: late, or forged.",
        "tcp_rcv_synsent_state_process()",
        "refused_by_peer, not accepted",
    ),
    dropped(
        "TCP_RFC7323_PAWS",
        "The reset's timestamp is older than the last one seen.",
        "tcp_validate_incoming() -> tcp_disordered_ack_check()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "NETFILTER_DROP",
        "A rule of this host's firewall dropped the received reset before a socket saw it.",
        "nf_hook_slow() -> kfree_skb_reason()",
        "unmatched_reset or reset_by_peer, not accepted",
    ),
    dropped(
        "TCP_CSUM",
        "The reset's checksum is wrong.",
        "tcp_v4_rcv(), tcp_v6_rcv() -> csum_error",
        "unmatched_reset",
    ),
    dropped(
        "SOCKET_FILTER",
        "A filter on the socket (SO_ATTACH_FILTER, eBPF) dropped the received reset.",
        "tcp_filter()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "XFRM_POLICY",
        "IPsec policy does not allow the segment.",
        "xfrm4_policy_check(), xfrm6_policy_check()",
        "reset_by_peer, not accepted",
    ),
    dropped(
        "SOCKET_BACKLOG",
        "The socket's backlog was full while its process was in the kernel.",
        "tcp_add_backlog()",
        "reset_by_peer, not accepted",
    ),
];

/// The explanations of a name, with its enum's prefix or without, in any case; a name may stand in both lists.
pub fn find(name: &str) -> impl Iterator<Item = &'static Reason> {
    let name = name.to_ascii_uppercase();
    REASONS.iter().filter(move |reason| match name.strip_prefix(reason.list.prefix()) {
        Some(bare) => bare == reason.name,
        None => name == reason.name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_number_without_their_prefix() {
        let member = |number, name: &str| (number, name.to_owned());
        let names = ReasonNames::new(
            [member(14, "SK_RST_REASON_TCP_STATE"), member(0, "NOT_SPECIFIED"), member(u32::MAX, "SK_RST_REASON_FAR")],
            [member(45, "SKB_DROP_REASON_TCP_RESET")],
        );
        assert_eq!(names.reset(14), Some("TCP_STATE"));
        assert_eq!(names.reset(0), Some("NOT_SPECIFIED"));
        assert_eq!((names.reset(1), names.reset(15), names.reset(u16::MAX)), (None, None, None));
        assert_eq!(names.dropped(45), Some("TCP_RESET"));
        assert_eq!(names.dropped(14), None);
    }

    #[test]
    fn found_with_and_without_prefix_in_any_case() {
        let lists = |name| find(name).map(|reason| reason.list).collect::<Vec<_>>();
        assert_eq!(lists("tcp_state"), [List::Reset]);
        assert_eq!(lists("SK_RST_REASON_NO_SOCKET"), [List::Reset]);
        assert_eq!(lists("skb_drop_reason_no_socket"), [List::Dropped]);
        assert_eq!(lists("No_Socket"), [List::Reset, List::Dropped]);
        assert_eq!(lists("SK_RST_REASON_TCP_RESET"), []);
    }

    #[test]
    fn each_name_stands_once_in_its_list() {
        for reason in REASONS {
            assert_eq!(find(&format!("{}{}", reason.list.prefix(), reason.name)).count(), 1, "{}", reason.name);
        }
    }
}
