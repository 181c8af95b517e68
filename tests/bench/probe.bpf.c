/*
 * What one would write by hand in C: the two tracepoints of resets, each reset counted and put as the same record of
 * 200 bytes (probes/src/lib.rs) into a ring buffer, with the socket's facts and its owner. Built with CO-RE against the
 * running kernel, it is what the collector's programs are measured next to.
 *
 * As theirs, the record has what is gone by the time of the reset (state, duration, who connected), kept with the socket at
 * changes of state. It does less than they do: no rules, no ceiling, no cause, no owner of accepted connections.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define AF_INET 2
#define PF_EXITING 0x4
#define PF_SIGNALED 0x400
#define SOCK_DONE (1 << 1)
#define UNKNOWN_U64 (~0ULL)
#define UNKNOWN_U32 (~0U)

enum { TRANSMIT, RECEIVE };
enum { ACTIVE, PASSIVE, FIREWALL, PEER };

struct record {
	u32 version;
	u16 flags;
	u16 reason;
	u64 time_ns, duration_ns, closed_ns, socket, bytes_sent, bytes_received, cgroup_id, credential, owner_start_ns;
	u32 local_address[4], peer_address[4];
	char owner_comm[16];
	u64 trace_id[2], span_id;
	u32 owner_pid, actor_pid, thread_id, exit_code, network_namespace;
	u32 unread_bytes, unsent_bytes, unacked_bytes, retransmits, smoothed_rtt_us, sequence;
	u16 local_port, peer_port;
	u8 direction, origin, cause, state, ip_version, hook, owner_source, segment_flags;
};
_Static_assert(sizeof(struct record) == 208, "the record of probes/src/lib.rs");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 << 20);
} resets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, u32);
	__type(value, u64);
} captured SEC(".maps");

/* What is kept with a socket. */
struct kept {
	u64 established_ns, owner_start_ns;
	char owner_comm[16];
	u32 owner_pid;
	u32 state_before;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct kept);
} sockets SEC(".maps");

/* Resets without a record: the ring buffer was full. */
unsigned long long lost;

static __always_inline struct record *reserve(u8 direction, u8 origin, u8 cause)
{
	u32 index = (cause * 4 + origin) * 2 + direction;
	u64 *count = bpf_map_lookup_elem(&captured, &index);
	if (count)
		(*count)++;
	struct record *record = bpf_ringbuf_reserve(&resets, sizeof(struct record), 0);
	if (!record) {
		__sync_fetch_and_add(&lost, 1);
		return NULL;
	}
	record->version = 0x52530002;
	record->flags = 1;
	record->reason = 0xffff;
	record->time_ns = bpf_ktime_get_tai_ns();
	record->duration_ns = record->closed_ns = record->bytes_sent = record->bytes_received = UNKNOWN_U64;
	record->unread_bytes = record->unsent_bytes = record->unacked_bytes = record->retransmits = UNKNOWN_U32;
	record->socket = record->cgroup_id = record->credential = record->owner_start_ns = 0;
	record->trace_id[0] = record->trace_id[1] = record->span_id = 0;
	__builtin_memset(record->owner_comm, 0, sizeof(record->owner_comm));
	record->owner_pid = record->actor_pid = record->thread_id = record->exit_code = 0;
	record->network_namespace = record->smoothed_rtt_us = record->sequence = 0;
	record->direction = direction;
	record->origin = origin;
	record->cause = cause;
	record->state = record->hook = record->owner_source = record->segment_flags = 0;
	return record;
}

static __always_inline void write_mapped(u32 *into, u32 address)
{
	into[0] = into[1] = 0;
	into[2] = bpf_htonl(0xffff);
	into[3] = address;
}

static __always_inline void write_ends(struct record *record, const struct sock *sk)
{
	record->local_port = sk->__sk_common.skc_num;
	record->peer_port = bpf_ntohs(sk->__sk_common.skc_dport);
	if (sk->__sk_common.skc_family == AF_INET) {
		record->ip_version = 4;
		write_mapped(record->local_address, sk->__sk_common.skc_rcv_saddr);
		write_mapped(record->peer_address, sk->__sk_common.skc_daddr);
		return;
	}
	record->ip_version = 6;
	for (int word = 0; word < 4; word++) {
		record->local_address[word] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[word];
		record->peer_address[word] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[word];
	}
}

static __always_inline void write_facts(struct record *record, struct sock *sk, struct kept *kept)
{
	record->socket = (u64)sk;
	record->state = sk->__sk_common.skc_state;
	if (kept && record->state == TCP_CLOSE)
		record->state = kept->state_before;
	if (kept && kept->established_ns)
		record->duration_ns = bpf_ktime_get_ns() - kept->established_ns;
	record->network_namespace = sk->__sk_common.skc_net.net->ns.inum;
	record->cgroup_id = sk->sk_cgrp_data.cgroup->kn->id;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	record->bytes_sent = tcp->bytes_sent;
	record->bytes_received = tcp->bytes_received;
	record->unread_bytes = tcp->rcv_nxt - tcp->copied_seq;
	record->retransmits = tcp->total_retrans;
	record->smoothed_rtt_us = tcp->srtt_us >> 3;
	record->unsent_bytes = tcp->write_seq - tcp->snd_nxt;
	record->unacked_bytes = tcp->snd_nxt - tcp->snd_una;
}

static __always_inline void write_owner(struct record *record, struct sock *sk, struct kept *kept)
{
	if (sk->sk_lock.owned) {
		struct task_struct *task = bpf_get_current_task_btf();
		record->thread_id = task->pid;
		if (task->flags & PF_EXITING) {
			record->flags |= 1 << 3;
			record->exit_code = task->exit_code;
			if (task->flags & PF_SIGNALED)
				record->flags |= 1 << 4;
		}
		record->owner_pid = task->tgid;
		record->owner_start_ns = task->group_leader->start_boottime;
		bpf_probe_read_kernel(record->owner_comm, sizeof(record->owner_comm), task->group_leader->comm);
		record->owner_source = 1;
		return;
	}
	if (kept && kept->owner_pid) {
		record->owner_pid = kept->owner_pid;
		record->owner_start_ns = kept->owner_start_ns;
		__builtin_memcpy(record->owner_comm, kept->owner_comm, sizeof(record->owner_comm));
		record->owner_source = 2;
		return;
	}
	struct socket *socket = sk->sk_socket;
	if (socket && socket->file)
		record->credential = (u64)socket->file->f_cred;
}

/* The segment that is answered: addresses and ports are its own, turned round. */
static __always_inline void write_segment(struct record *record, const struct sk_buff *skb)
{
	struct iphdr ip;
	struct tcphdr tcp;
	bpf_probe_read_kernel(&ip, sizeof(ip), skb->head + skb->network_header);
	bpf_probe_read_kernel(&tcp, sizeof(tcp), skb->head + skb->transport_header);
	if (ip.version == 4) {
		record->ip_version = 4;
		write_mapped(record->local_address, ip.daddr);
		write_mapped(record->peer_address, ip.saddr);
	} else {
		struct ipv6hdr ip6;
		bpf_probe_read_kernel(&ip6, sizeof(ip6), skb->head + skb->network_header);
		record->ip_version = 6;
		__builtin_memcpy(record->local_address, &ip6.daddr, 16);
		__builtin_memcpy(record->peer_address, &ip6.saddr, 16);
	}
	record->local_port = bpf_ntohs(tcp.dest);
	record->peer_port = bpf_ntohs(tcp.source);
	record->segment_flags = ((u8 *)&tcp)[13];
	record->sequence = tcp.ack ? bpf_ntohl(tcp.ack_seq) : 0;
	record->network_namespace = skb->dev->nd_net.net->ns.inum;
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(c_send_reset, struct sock *sk, struct sk_buff *skb, enum sk_rst_reason reason)
{
	struct record *record = reserve(TRANSMIT, skb ? PASSIVE : ACTIVE, skb ? 1 : 4);
	if (!record)
		return 0;
	record->reason = reason;
	if (skb)
		write_segment(record, skb);
	else if (sk)
		write_ends(record, sk);
	/* Full sockets only: neither a request (NEW_SYN_RECV) nor TIME_WAIT. */
	if (sk && sk->__sk_common.skc_state != 12 && sk->__sk_common.skc_state != 6) {
		struct kept *kept = bpf_sk_storage_get(&sockets, sk, NULL, 0);
		write_facts(record, sk, kept);
		write_owner(record, sk, kept);
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(c_receive_reset, struct sock *sk)
{
	struct record *record = reserve(RECEIVE, PEER, 19);
	if (!record)
		return 0;
	record->hook = 1;
	write_ends(record, sk);
	struct kept *kept = bpf_sk_storage_get(&sockets, sk, NULL, 0);
	write_facts(record, sk, kept);
	write_owner(record, sk, kept);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(c_set_state, struct sock *sk, int old, int new)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new == TCP_CLOSE) {
		struct kept *kept = bpf_sk_storage_get(&sockets, sk, NULL, 0);
		if (kept)
			kept->state_before = old;
		return 0;
	}
	if (new != TCP_SYN_SENT && new != TCP_LISTEN && new != TCP_ESTABLISHED)
		return 0;
	struct kept *kept = bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return 0;
	if (new == TCP_ESTABLISHED) {
		kept->established_ns = bpf_ktime_get_ns();
		return 0;
	}
	struct task_struct *task = bpf_get_current_task_btf();
	kept->owner_pid = task->tgid;
	kept->owner_start_ns = task->group_leader->start_boottime;
	bpf_probe_read_kernel(kept->owner_comm, sizeof(kept->owner_comm), task->group_leader->comm);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
