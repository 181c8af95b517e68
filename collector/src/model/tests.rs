use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::model::sample;

fn record() -> ResetRecord {
    let mut peer_address = [0; 16];
    peer_address[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 7]);
    let mut owner_comm = [0; probes::COMM_LEN];
    owner_comm[..5].copy_from_slice(b"nginx");
    ResetRecord {
        version: RECORD_VERSION,
        flags: 0,
        reason: 14,
        time_ns: 5_000,
        duration_ns: 7,
        closed_ns: 8,
        socket: 0xabcd,
        bytes_sent: 1,
        bytes_received: 2,
        cgroup_id: 3,
        listener: 0,
        credential: 4,
        owner_start_ns: 6,
        local_address: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
        peer_address,
        owner_comm,
        trace_id: [0; 16],
        span_id: [0; 8],
        owner_pid: 812,
        actor_pid: 0,
        actor_comm: [0; probes::COMM_LEN],
        thread_id: 0,
        exit_code: 0,
        network_namespace: 99,
        unread_bytes: 10,
        unsent_bytes: 11,
        unacked_bytes: 12,
        retransmits: 13,
        smoothed_rtt_us: 14,
        sequence: 0,
        local_port: 80,
        peer_port: 51514,
        direction: Direction::Receive as u8,
        origin: Origin::Peer as u8,
        cause: Cause::ResetByPeer as u8,
        state: State::Established as u8,
        ip_version: 6,
        hook: Hook::ReceiveReset as u8,
        owner_source: OwnerSource::Storage as u8,
        segment_flags: 0x14,
    }
}

fn decoder() -> Decoder {
    let names = ReasonNames::new([(14, "SK_RST_REASON_TCP_STATE".into())], [(14, "SKB_DROP_REASON_OTHER".into())]);
    Decoder::new(names, sample::resource(&[("host.name", "web-1")]))
}

fn decode(record: &ResetRecord) -> Result<Reset, RecordError> {
    decoder().decode(record, Clock { tai_offset_ns: 37, monotonic_offset_ns: 1_000, boot_offset_ns: 0 }, 9_000)
}

#[test]
fn every_field_has_its_place() {
    let reset = decode(&read_record(record().as_bytes()).unwrap()).unwrap();
    assert_eq!((reset.time_unix_ns, reset.observed_unix_ns), (6_000, 9_000));
    assert_eq!((reset.direction, reset.origin, reset.cause), (Direction::Receive, Origin::Peer, Cause::ResetByPeer));
    assert_eq!((reset.reason, reset.state), (Some("TCP_STATE"), Some(State::Established)));
    assert_eq!(reset.local, sample::endpoint("fd00::5", 80));
    assert_eq!(reset.peer, sample::endpoint("10.0.0.7", 51514), "IPv4-mapped is IPv4");
    let connection = Connection {
        bytes_sent: Some(1),
        bytes_received: Some(2),
        unread_bytes: Some(10),
        unsent_bytes: Some(11),
        unacked_bytes: Some(12),
        retransmits: Some(13),
        smoothed_rtt_us: Some(14),
        duration_ns: Some(7),
        closed_ns: Some(8),
        last_data: None,
    };
    assert_eq!(reset.connection, connection);
    assert_eq!((reset.network_namespace, reset.cgroup_id, reset.credential), (Some(99), Some(3), 4));
    let owner = reset.owner.unwrap();
    assert_eq!((owner.pid, owner.start_boot_ns, owner.source), (812, 6, OwnerSource::Storage));
    assert_eq!(&owner.comm[..6], b"nginx\0");
    assert_eq!((reset.socket, reset.hook, reset.segment_flags), (0xabcd, Hook::ReceiveReset, 0x14));
    assert_eq!((reset.actor, reset.not_accepted, reset.trace, reset.adjusted_count), (None, false, None, 1.0));
    assert!(reset.resource.get("host.name").is_some());
}

#[test]
fn what_is_not_known_is_left_out() {
    let record = ResetRecord {
        reason: UNKNOWN_REASON,
        duration_ns: UNKNOWN_U64,
        closed_ns: UNKNOWN_U64,
        bytes_sent: UNKNOWN_U64,
        bytes_received: UNKNOWN_U64,
        cgroup_id: 0,
        owner_pid: 0,
        network_namespace: 0,
        unread_bytes: UNKNOWN_U32,
        unsent_bytes: UNKNOWN_U32,
        unacked_bytes: UNKNOWN_U32,
        retransmits: UNKNOWN_U32,
        smoothed_rtt_us: 0,
        state: 0,
        cause: 200,
        ..record()
    };
    let reset = decode(&record).unwrap();
    assert_eq!(reset.connection, Connection::default());
    assert_eq!((reset.reason, reset.state, reset.cause), (None, None, Cause::Unknown));
    assert_eq!((reset.owner, reset.network_namespace, reset.cgroup_id), (None, None, None));
    assert_eq!(decode(&ResetRecord { reason: 999, ..record }).unwrap().reason, None);
    let rtt = decode(&ResetRecord { smoothed_rtt_us: UNKNOWN_U32, ..record }).unwrap().connection.smoothed_rtt_us;
    assert_eq!(rtt, None);
}

#[test]
fn the_flags_choose_clock_and_list_of_reasons() {
    let flags = flag::TIME_IS_TAI | flag::REASON_IS_DROP | flag::NOT_ACCEPTED;
    let reset = decode(&ResetRecord { flags, ..record() }).unwrap();
    assert_eq!((reset.time_unix_ns, reset.reason, reset.not_accepted), (4_963, Some("OTHER"), true));
}

#[test]
fn whose_data_moved_last() {
    let last = |flags| decode(&ResetRecord { flags, ..record() }).unwrap().connection.last_data;
    assert_eq!(last(flag::SENT_LAST), Some(Direction::Transmit));
    assert_eq!(last(flag::RECEIVED_LAST), Some(Direction::Receive));
    assert_eq!(last(0), None, "within one tick");
    assert_eq!(last(flag::SENT_LAST | flag::RECEIVED_LAST), None, "nonsense");
}

#[test]
fn who_acted() {
    let killed = ResetRecord {
        flags: flag::EXITING,
        thread_id: 813,
        exit_code: 0x80 | 11, // with a core dump
        ..record()
    };
    let actor = |record: &ResetRecord| decode(record).unwrap().actor;
    assert_eq!(
        actor(&killed),
        Some(Actor { pid: 812, thread_id: 813, comm: killed.owner_comm, exiting: true, signal: Some(11) })
    );
    assert_eq!(decode(&killed).unwrap().exit, Some(ProcessExit::Signal(11)));
    let exited = ResetRecord { flags: flag::EXITING, exit_code: 3 << 8, ..killed };
    assert_eq!(decode(&exited).unwrap().exit, Some(ProcessExit::Code(3)));
    let actor_comm = *b"ss\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let other = ResetRecord { flags: 0, actor_pid: 99, actor_comm, thread_id: 100, exit_code: 9, ..record() };
    assert_eq!(decode(&other).unwrap().exit, None);
    assert_eq!(actor(&other), Some(Actor { pid: 99, thread_id: 100, comm: actor_comm, exiting: false, signal: None }));
    assert_eq!(actor(&ResetRecord { owner_pid: 0, ..killed }), None);
}

#[test]
fn a_trace_in_the_record() {
    let wire = ResetRecord { flags: flag::TRACE_FROM_HTTP, trace_id: [1; 16], span_id: [2; 8], ..record() };
    let trace = |record: &ResetRecord| decode(record).unwrap().trace.map(|trace| (trace.span_id, trace.method));
    assert_eq!(trace(&wire), Some((Some([2; 8]), TraceMethod::Header)));
    assert_eq!(trace(&ResetRecord { span_id: [0; 8], ..wire }), Some((None, TraceMethod::Header)));
    assert_eq!(trace(&ResetRecord { trace_id: [0; 16], ..wire }), None);
}

#[test]
fn ipv4_lies_in_the_last_four_bytes() {
    let reset = decode(&ResetRecord { ip_version: 4, ..record() }).unwrap();
    assert_eq!((reset.local.address, reset.peer.address), ([0, 0, 0, 5].into(), [10, 0, 0, 7].into()));
}

#[test]
fn foreign_records_are_errors() {
    let whole = record();
    let bytes = whole.as_bytes();
    for length in [0, 1, RECORD_LEN - 1] {
        assert_eq!(read_record(&bytes[..length]), Err(RecordError::Length(length)));
    }
    assert_eq!(read_record(&[bytes, &[0]].concat()), Err(RecordError::Length(RECORD_LEN + 1)));
    let foreign = ResetRecord { version: 1, ..whole };
    assert_eq!(read_record(foreign.as_bytes()), Err(RecordError::Version(1)));
    let error = |record: ResetRecord| decode(&record).map(|_| ());
    assert_eq!(error(ResetRecord { direction: 2, ..whole }), Err(RecordError::Direction(2)));
    assert_eq!(error(ResetRecord { origin: 9, ..whole }), Err(RecordError::Origin(9)));
    assert_eq!(error(ResetRecord { hook: 77, ..whole }), Err(RecordError::Hook(77)));
    assert_eq!(error(ResetRecord { ip_version: 5, ..whole }), Err(RecordError::IpVersion(5)));
}

proptest! {
    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..RECORD_LEN + 8)) {
        prop_assert!(read_record(&bytes).is_err(), "no random bytes have the version");
    }

    /// Bytes of the right length and version, the enums' numbers within reach, go all the way to the outputs.
    #[test]
    fn any_record_is_decoded_told_and_encoded_or_an_error(
        bytes: [[u8; 8]; RECORD_LEN / 8],
        numbers in (0_u8..3, 0_u8..5, 0_u8..30, 0_u8..14, 3_u8..8, 0_u8..6),
    ) {
        let mut record = ResetRecord::new_zeroed();
        record.as_mut_bytes().copy_from_slice(bytes.as_flattened());
        record.version = RECORD_VERSION;
        let (direction, origin, cause, state, ip_version, hook) = numbers;
        let record = ResetRecord { direction, origin, cause, state, ip_version, hook, ..record };
        let record = read_record(record.as_bytes()).unwrap();
        let valid = direction < 2 && origin < 4 && hook < 5 && (ip_version == 4 || ip_version == 6);
        match decode(&record) {
            Err(_) => prop_assert!(!valid),
            Ok(reset) => {
                prop_assert!(valid);
                let mut builder = crate::event::EventBuilder::new(true, 1);
                let event = builder.build(&reset);
                let mut out = Vec::new();
                crate::otlp::encode::log_record(&event, &mut out);
                prop_assert!(!out.is_empty());
            }
        }
    }
}

#[test]
fn how_the_owner_ended_and_who_acted_are_attributes() {
    use attribute::{Attribute, Value};
    let value = |reset: &Reset, attribute: Attribute| match attribute.value(reset) {
        Some(Value::Integer(number)) => Some(number.to_string()),
        Some(Value::Text(text)) => Some(text.to_owned()),
        other => other.map(|value| format!("{value:?}")),
    };
    let all = [Attribute::ExitCode, Attribute::ExitSignal, Attribute::ActorPid, Attribute::ActorName];
    let of = |record: ResetRecord| {
        let reset = decode(&record).unwrap();
        all.map(|attribute| value(&reset, attribute)).map(Option::unwrap_or_default)
    };
    let acting = ResetRecord { thread_id: 5, ..record() };
    assert_eq!(of(acting), ["", "", "", ""], "the owner itself");
    let exited = ResetRecord { flags: flag::EXITING, exit_code: 3 << 8, ..acting };
    assert_eq!(of(exited), ["3", "", "", ""]);
    let killed = ResetRecord { flags: flag::EXITING, exit_code: 9, ..acting };
    assert_eq!(of(killed), ["", "9", "", ""]);
    let mut actor_comm = [0; probes::COMM_LEN];
    actor_comm[..5].copy_from_slice(b"ss\x1b\xffK");
    let other = ResetRecord { actor_pid: 99, actor_comm, ..acting };
    assert_eq!(of(other), ["", "", "99", "ss??K"], "control characters and invalid UTF-8 are replaced");
    actor_comm[..5].copy_from_slice("s\u{fc}s\0".as_bytes());
    assert_eq!(of(ResetRecord { actor_comm, ..other })[3], "s\u{fc}s");
}
