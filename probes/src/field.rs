//! The kernel members that the probes read, by their BTF names: user space finds where each lies on the running kernel
//! and hands the offsets over as a read-only global (rustc has no CO-RE).

/// Defines the members once: name in code, BTF type, path of members inside it.
macro_rules! fields {
    ($($item:ident $type:literal $path:literal,)+) => {
        /// A member that the probes read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Field { $(#[doc = concat!($type, ".", $path)] $item,)+ }
        impl Field {
            /// Every member, in the order of the global.
            pub const ALL: &'static [Self] = &[$(Self::$item,)+];
            /// The BTF type that holds it, and the dotted path inside.
            pub const fn path(self) -> (&'static str, &'static str) {
                match self { $(Self::$item => ($type, $path),)+ }
            }
        }
    };
}

fields! {
    SkDaddr "sock" "__sk_common.skc_daddr",
    SkRcvSaddr "sock" "__sk_common.skc_rcv_saddr",
    SkV6Daddr "sock" "__sk_common.skc_v6_daddr",
    SkV6RcvSaddr "sock" "__sk_common.skc_v6_rcv_saddr",
    SkDport "sock" "__sk_common.skc_dport",
    SkNum "sock" "__sk_common.skc_num",
    SkFamily "sock" "__sk_common.skc_family",
    SkState "sock" "__sk_common.skc_state",
    SkNet "sock" "__sk_common.skc_net.net",
    SkFlags "sock" "__sk_common.skc_flags",
    SkShutdown "sock" "sk_shutdown",
    SkProtocol "sock" "sk_protocol",
    SkLingertime "sock" "sk_lingertime",
    SkLockOwned "sock" "sk_lock.owned",
    SkSocket "sock" "sk_socket",
    SkCgroup "sock" "sk_cgrp_data.cgroup",
    SkAckBacklog "sock" "sk_ack_backlog",
    SkMaxAckBacklog "sock" "sk_max_ack_backlog",
    TwSubstate "inet_timewait_sock" "tw_substate",
    InetSport "inet_sock" "inet_sport",
    UserTimeout "inet_connection_sock" "icsk_user_timeout",
    LastReceived "inet_connection_sock" "icsk_ack.lrcvtime",
    TcpBytesSent "tcp_sock" "bytes_sent",
    TcpBytesReceived "tcp_sock" "bytes_received",
    TcpSrttUs "tcp_sock" "srtt_us",
    TcpRcvNxt "tcp_sock" "rcv_nxt",
    TcpCopiedSeq "tcp_sock" "copied_seq",
    TcpWriteSeq "tcp_sock" "write_seq",
    TcpSndNxt "tcp_sock" "snd_nxt",
    TcpSndUna "tcp_sock" "snd_una",
    TcpTotalRetrans "tcp_sock" "total_retrans",
    TcpLastSent "tcp_sock" "lsndtime",
    TcpLinger2 "tcp_sock" "linger2",
    TcpIsMptcp "tcp_sock" "is_mptcp",
    SkbHead "sk_buff" "head",
    SkbData "sk_buff" "data",
    SkbNetworkHeader "sk_buff" "network_header",
    SkbTransportHeader "sk_buff" "transport_header",
    SkbProtocol "sk_buff" "protocol",
    SkbPktType "sk_buff" "pkt_type",
    SkbIpSummed "sk_buff" "ip_summed",
    SkbIif "sk_buff" "skb_iif",
    SkbSk "sk_buff" "sk",
    SkbDev "sk_buff" "dev",
    SkbRefdst "sk_buff" "_skb_refdst",
    DstDev "dst_entry" "dev",
    RtableType "rtable" "rt_type",
    Rt6Flags "rt6_info" "rt6i_flags",
    DevNet "net_device" "nd_net.net",
    NetInum "net" "ns.inum",
    CgroupNode "cgroup" "kn",
    NodeId "kernfs_node" "id",
    SocketFile "socket" "file",
    SocketSk "socket" "sk",
    FileCred "file" "f_cred",
    FileInode "file" "f_inode",
    FilePrivate "file" "private_data",
    InodeMode "inode" "i_mode",
    TaskFlags "task_struct" "flags",
    TaskExitCode "task_struct" "exit_code",
    TaskPid "task_struct" "pid",
    TaskTgid "task_struct" "tgid",
    TaskLeader "task_struct" "group_leader",
    TaskStart "task_struct" "start_boottime",
    TaskComm "task_struct" "comm",
    TaskCred "task_struct" "cred",
    TaskSignal "task_struct" "signal",
    SignalLive "signal_struct" "live.counter",
    SignalFlags "signal_struct" "flags",
    SignalExitCode "signal_struct" "group_exit_code",
    SignalOomMm "signal_struct" "oom_mm",
}

/// How many members there are: the length of the global.
pub const FIELDS: usize = Field::ALL.len();

/// Where a member lies, packed: byte offset (16 bits), then for a bit field its first bit (8) and its width (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

impl Place {
    /// The running kernel has no such member.
    pub const ABSENT: Self = Self(0xffff);

    /// A member at a byte offset below 65,535; `width` 0 is no bit field.
    pub const fn new(byte: u16, shift: u8, width: u8) -> Self {
        Self(byte as u32 | (shift as u32) << 16 | (width as u32) << 24)
    }

    /// Bytes from the start of the type.
    pub const fn byte(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// First bit inside the byte.
    pub const fn shift(self) -> u32 {
        (self.0 >> 16) & 0xff
    }

    /// Bits, 0 when it is no bit field.
    pub const fn width(self) -> u32 {
        self.0 >> 24
    }

    /// Whether the kernel has it.
    pub const fn is_present(self) -> bool {
        self.0 & 0xffff != Self::ABSENT.0
    }
}
