//! The HTTP request that a reset breaks: each segment of the configured ports is read where it passes its socket's control
//! group, and the open requests are stored with the socket.
//!
//! Two programs, attached only where they are configured; every other packet leaves at the look at its ports. What the
//! bytes mean is decided in the library (`http`, `http_requests`).

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xchg},
    ptr::read_volatile,
};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_SK_STORAGE},
        bpf_sock,
    },
    helpers::generated::{bpf_loop, bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_load_bytes, bpf_tcp_sock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use reset_collector_probes::{
    ResetRecord,
    cause::segment::{FIN, RST, SYN},
    control::Ports,
    field::Field,
    flag,
    http_requests::{Alignment, HttpRequests, Position, Untracked, Window},
};

use crate::{connection::FullSocket, map::Map, read::load};

/// 1 where the two programs run. Its initial value is unique: see `read`.
#[unsafe(no_mangle)]
static HTTP_TRACE_ENABLED: u32 = 0xfc1a_0005;

/// The servers' ports.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static HTTP_PORTS: Map<u32, Ports, { BPF_MAP_TYPE_ARRAY as usize }, 1, 0> = Map::new();

/// The requests of each socket; a listener's children begin without any.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static HTTP_REQUESTS: Map<i32, HttpRequests, { BPF_MAP_TYPE_SK_STORAGE as usize }, 0, { BPF_F_NO_PREALLOC as usize }> =
    Map::new();

/// Requests of connections that a listener is about to create, by `early_key`: where it waits for the request
/// (TCP_DEFER_ACCEPT), and where the handshake's last segment was lost, the request comes to the listener. Bounded: the
/// oldest make room.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static EARLY_HTTP_REQUESTS: Map<u64, HttpRequests, { BPF_MAP_TYPE_LRU_HASH as usize }, 1_024, 0> = Map::new();

/// Zeros: the state is too large for the stack.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static NO_HTTP_REQUESTS: Map<u32, HttpRequests, { BPF_MAP_TYPE_ARRAY as usize }, 1, 0> = Map::new();

/// Steps for one segment: a step is a byte, or up to eight of a line without meaning here. Bodies take none.
const MAX_STEPS: u32 = 1 << 14;

const TCP_LISTEN: u32 = 10;
const IPPROTO_TCP: u8 = 6;
const IPV6_HEADER: u32 = 40;

/// Segments that sockets send.
#[cgroup_skb(egress)]
fn http_sent(context: SkBuffContext) -> i32 {
    passes::<true>(context.as_ptr().cast());
    1
}

/// Segments that come to sockets.
#[cgroup_skb(ingress)]
fn http_received(context: SkBuffContext) -> i32 {
    passes::<false>(context.as_ptr().cast());
    1
}

/// Looks at a segment if it is of a connection that is followed.
#[inline(always)]
fn passes<const SENT: bool>(skb: *mut __sk_buff) {
    // SAFETY: the verifier checks each access to the context and to the socket; every helper is a plain one.
    unsafe {
        let socket = read_volatile(&raw const (*skb).__bindgen_anon_2.sk);
        if socket.is_null() {
            return;
        }
        let socket = bpf_sk_fullsock(socket);
        if socket.is_null() {
            return;
        }
        let Some(ports) = HTTP_PORTS.get(&0) else { return };
        let local = read_volatile(&raw const (*socket).src_port) as u16;
        let peer = u16::from_be(read_volatile(&raw const (*socket).dst_port));
        let (is_server, is_client) = ((*ports).contains(local), (*ports).contains(peer));
        if !is_server && !is_client {
            return;
        }
        let Some(segment) = Segment::of(skb) else { return };
        if read_volatile(&raw const (*socket).state) == TCP_LISTEN {
            // A listener has no peer: its ports are not the segment's.
            if !SENT {
                come_early(skb, &segment, early_key(segment.sequence, local, segment.source_port));
            }
            return;
        }
        // Between two such ports, whoever speaks first is the client.
        let is_client = is_client && (!is_server || SENT);
        follow::<SENT>(skb, socket, &segment, is_client);
    }
}

/// Which of a segment's headers are needed.
struct Segment {
    source_port: u16,
    sequence: u32,
    acknowledgement: u32,
    /// Where the payload begins.
    offset: u32,
    length: u32,
    is_last: bool,
}

impl Segment {
    /// A segment with payload, or the last of its stream.
    #[inline(always)]
    unsafe fn of(skb: *mut __sk_buff) -> Option<Self> {
        // SAFETY: the verifier checks the accesses; the helper fails where there are not so many bytes.
        unsafe {
            let total = read_volatile(&raw const (*skb).len);
            let mut ip = [0u8; 10];
            if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut ip).cast(), 10) != 0 {
                return None;
            }
            let (header, protocol) = match ip[0] >> 4 {
                4 => (u32::from(ip[0] & 15) * 4, ip[9]),
                _ => (IPV6_HEADER, ip[6]),
            };
            let mut tcp = [0u8; 14];
            if protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb.cast(), header, (&raw mut tcp).cast(), 14) != 0 {
                return None;
            }
            let offset = header + u32::from(tcp[12] >> 4) * 4;
            let flags = tcp[13];
            let length = total.saturating_sub(offset);
            if flags & (SYN | RST) != 0 || length == 0 && flags & FIN == 0 {
                return None;
            }
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let acknowledgement = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
            let source_port = u16::from_be_bytes([tcp[0], tcp[1]]);
            Some(Self { source_port, sequence, acknowledgement, offset, length, is_last: flags & FIN != 0 })
        }
    }
}

#[inline(always)]
unsafe fn follow<const SENT: bool>(skb: *mut __sk_buff, socket: *mut bpf_sock, segment: &Segment, is_client: bool) {
    // SAFETY: as in `passes`; the storage lives as long as the socket, and the verifier knows its size.
    unsafe {
        let known = bpf_sk_storage_get(HTTP_REQUESTS.pointer(), socket.cast(), core::ptr::null_mut(), 0);
        let http_requests = if known.is_null() { begin(socket, segment, is_client) } else { known.cast() };
        let Some(http_requests) = http_requests.as_mut() else { return };
        if http_requests.is_lost() {
            return;
        }
        if http_requests.is_client() == SENT {
            read_segment::<true>(skb, http_requests, segment);
        } else {
            read_segment::<false>(skb, http_requests, segment);
        }
    }
}

/// Begins to follow a connection at its first payload; null where it cannot be.
#[inline(always)]
unsafe fn begin(socket: *mut bpf_sock, segment: &Segment, is_client: bool) -> *mut HttpRequests {
    // SAFETY: as in `passes`.
    unsafe {
        let tcp = bpf_tcp_sock(socket);
        if segment.length == 0 || tcp.is_null() {
            return core::ptr::null_mut();
        }
        let received = read_volatile(&raw const (*tcp).bytes_received) as u32;
        let first_received = read_volatile(&raw const (*tcp).rcv_nxt).wrapping_sub(received);
        // The SYN counts as acknowledged where it was ours (tcp_rcv_synsent_state_process, tcp_snd_una_update).
        let acknowledged = (read_volatile(&raw const (*tcp).bytes_acked) as u32).wrapping_sub(is_client as u32);
        let first_sent = read_volatile(&raw const (*tcp).snd_una).wrapping_sub(acknowledged);
        let local = read_volatile(&raw const (*socket).src_port) as u16;
        let peer = u16::from_be(read_volatile(&raw const (*socket).dst_port));
        let early = early_key(first_received, local, peer);
        let asked = if received != 0 && !is_client { EARLY_HTTP_REQUESTS.get(&early) } else { None };
        let first = asked.unwrap_or(core::ptr::null_mut());
        let http_requests = bpf_sk_storage_get(
            HTTP_REQUESTS.pointer(),
            socket.cast(),
            first.cast(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        );
        let http_requests = http_requests.cast::<HttpRequests>();
        if !first.is_null() {
            EARLY_HTTP_REQUESTS.remove(&early);
        }
        if let Some(http_requests) = http_requests.as_mut()
            && !http_requests.has_begun()
        {
            http_requests.begin(is_client, first_sent, first_received);
        }
        http_requests
    }
}

/// A connection that is being made, among those of its ports: first sequence numbers are random.
#[inline(always)]
fn early_key(first_received: u32, local_port: u16, peer_port: u16) -> u64 {
    u64::from(first_received) << 32 | u64::from(local_port) << 16 | u64::from(peer_port)
}

/// A request comes to a listener, with the last segment of the handshake.
#[inline(always)]
unsafe fn come_early(skb: *mut __sk_buff, segment: &Segment, key: u64) {
    if segment.length == 0 {
        return;
    }
    // SAFETY: as in `passes`; the LRU map keeps the memory, if not always this connection in it.
    unsafe {
        if EARLY_HTTP_REQUESTS.get(&key).is_none()
            && let Some(nothing) = NO_HTTP_REQUESTS.get(&0)
        {
            EARLY_HTTP_REQUESTS.set(&key, &*nothing);
        }
        let Some(http_requests) = EARLY_HTTP_REQUESTS.get(&key).and_then(|http_requests| http_requests.as_mut()) else {
            return;
        };
        if !http_requests.has_begun() {
            http_requests.begin(false, segment.acknowledgement, segment.sequence);
        }
        read_segment::<true>(skb, http_requests, segment);
    }
}

/// A segment on its way through the parser.
#[repr(C)]
struct Walk {
    skb: *mut __sk_buff,
    http_requests: *mut HttpRequests,
}

#[inline(always)]
unsafe fn read_segment<const REQUESTS: bool>(skb: *mut __sk_buff, http_requests: &mut HttpRequests, segment: &Segment) {
    // Two CPUs may have segments of one direction at once: the later one then is a gap.
    // SAFETY: the lock is a word of the map's, on a multiple of eight.
    let busy = &raw mut http_requests.stream::<REQUESTS>().busy;
    if unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(busy, 1) } != 0 {
        return;
    }
    match http_requests.align::<REQUESTS>(segment.sequence, segment.length) {
        Alignment::From(seen) => {
            http_requests.stream::<REQUESTS>().window = Window {
                word: 0,
                held: 0,
                offset: segment.offset.wrapping_add(seen),
                left: segment.length.wrapping_sub(seen),
                reserved: 0,
            };
            let mut walk = Walk { skb, http_requests: &raw mut *http_requests };
            let step = if REQUESTS { step_of_request } else { step_of_response };
            // SAFETY: the helper calls `step` with this frame's `walk`.
            unsafe { bpf_loop(MAX_STEPS, step as *mut c_void, (&raw mut walk).cast(), 0) };
            if http_requests.stream::<REQUESTS>().window.left > 0 {
                http_requests.stop_tracking(Untracked::TooLong);
            }
        }
        Alignment::Seen | Alignment::Untracked => {}
    }
    if segment.is_last {
        http_requests.close::<REQUESTS>();
    }
    // SAFETY: as above.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(busy, 0) };
}

extern "C" fn step_of_request(_: u32, walk: *mut Walk) -> i64 {
    step::<true>(walk)
}

extern "C" fn step_of_response(_: u32, walk: *mut Walk) -> i64 {
    step::<false>(walk)
}

/// One step through a segment; 1 ends the loop.
#[inline(always)]
fn step<const REQUESTS: bool>(walk: *mut Walk) -> i64 {
    // SAFETY: the helper passes the frame that `read_segment` gave it; the requests live as long as the socket.
    let (skb, http_requests) = unsafe { ((*walk).skb, &mut *(*walk).http_requests) };
    let Window { mut word, mut held, offset, left, .. } = http_requests.stream::<REQUESTS>().window;
    if left == 0 || http_requests.is_lost() {
        return 1;
    }
    let passed = http_requests.pass::<REQUESTS>(left);
    if passed > 0 {
        let window = &mut http_requests.stream::<REQUESTS>().window;
        window.held = 0;
        window.offset = offset.wrapping_add(passed);
        window.left = left.wrapping_sub(passed);
        return 0;
    }
    if held == 0 || held < 8 && held < left && http_requests.wants_words::<REQUESTS>() {
        let window = &mut http_requests.stream::<REQUESTS>().window;
        window.word = 0;
        let bytes = (&raw mut window.word).cast::<c_void>();
        // SAFETY: the word has room for eight bytes; the helper checks that the segment has as many.
        let failed = unsafe {
            if left >= 8 {
                held = 8;
                bpf_skb_load_bytes(skb.cast(), offset, bytes, 8)
            } else {
                held = left & 7;
                if held == 0 {
                    return 1;
                }
                bpf_skb_load_bytes(skb.cast(), offset, bytes, held)
            }
        };
        if failed != 0 {
            http_requests.stop_tracking(Untracked::Gap);
            return 1;
        }
        // SAFETY: volatile, since the helper wrote it.
        word = unsafe { read_volatile(&raw const http_requests.stream::<REQUESTS>().window.word) };
    }
    let taken = http_requests.take::<REQUESTS>(word, held);
    let window = &mut http_requests.stream::<REQUESTS>().window;
    window.word = if taken >= 8 { 0 } else { word >> (taken * 8) };
    window.held = held.wrapping_sub(taken);
    window.offset = offset.wrapping_add(taken);
    window.left = left.wrapping_sub(taken);
    0
}

/// Writes the trace of the request that a full socket's reset breaks, where HTTP is read. `sends`: this end sends
/// the reset.
#[inline(always)]
pub(crate) fn write_context(record: &mut ResetRecord, full: FullSocket, sends: bool) {
    // SAFETY: the global is read-only; volatile keeps the compiler from folding it.
    if unsafe { read_volatile(&raw const HTTP_TRACE_ENABLED) } != 1 {
        return;
    }
    let tcp = full.tcp();
    // SAFETY: the verifier knows the socket as a trusted one; the storage lives as long as it does.
    let http_requests = unsafe {
        bpf_sk_storage_get(HTTP_REQUESTS.pointer(), full.pointer().cast_mut().cast(), core::ptr::null_mut(), 0)
            .cast::<HttpRequests>()
            .as_ref()
    };
    let rcv_nxt: u32 = load(tcp, Field::TcpRcvNxt);
    let http_requests = http_requests.or_else(|| {
        let first = rcv_nxt.wrapping_sub(load::<u64>(tcp, Field::TcpBytesReceived) as u32);
        let early = early_key(first, record.local_port, record.peer_port);
        // SAFETY: as in `come_early`.
        EARLY_HTTP_REQUESTS.get(&early).and_then(|http_requests| unsafe { http_requests.as_ref() })
    });
    let Some(http_requests) = http_requests else { return };
    let at = Position {
        rcv_nxt,
        copied_seq: load(tcp, Field::TcpCopiedSeq),
        snd_nxt: load(tcp, Field::TcpSndNxt),
        snd_una: load(tcp, Field::TcpSndUna),
    };
    let Some(context) = http_requests.broken(&at, sends) else { return };
    record.flags |= flag::TRACE_FROM_HTTP | if http_requests.is_client() { 0 } else { flag::TRACE_INCOMING };
    let (trace, span) = (record.trace_id.as_mut_ptr().cast::<u64>(), record.span_id.as_mut_ptr().cast::<u64>());
    // SAFETY: a record's ids lie on multiples of eight.
    unsafe {
        *trace = context.trace[0].to_be();
        *trace.add(1) = context.trace[1].to_be();
        *span = context.span.to_be();
    }
}
