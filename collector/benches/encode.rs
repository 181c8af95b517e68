//! Resets a second on one core, from the kernel's record through decoding to each output.
#![allow(missing_docs, reason = "criterion_group! makes public items")]

use std::{hint::black_box, io, time::Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use probes::{COMM_LEN, RECORD_VERSION, ResetRecord};
use reset_collector::{
    config::settings::{self, Signals},
    event::EventBuilder,
    export::console::Console,
    model::resource::{Resource, ResourceValue},
    model::{
        Cause, Clock, Decoder, Direction, Hook, Origin, OwnerSource, Reset, State, read_record, reason::ReasonNames,
    },
    otlp::{batch::Batcher, encode},
};
use zerocopy::IntoBytes;

/// Records a round.
const RECORDS: usize = 1000;

/// Bytes of whole records, with every fact known, IPv4 or IPv6, of causes in turn.
fn records(ip_version: u8) -> Vec<Vec<u8>> {
    let mut address = [0; 16];
    match ip_version {
        4 => address[10..].copy_from_slice(&[0xff, 0xff, 10, 20, 130, 7]),
        _ => address[..].copy_from_slice(&[0xfd, 0, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0, 1, 0x10, 7]),
    }
    let mut owner_comm = [0; COMM_LEN];
    owner_comm[..5].copy_from_slice(b"nginx");
    let causes = [Cause::ClosedWithUnreadData, Cause::LingerZero, Cause::ProcessKilled, Cause::KeepaliveTimeout];
    (0..RECORDS)
        .map(|number| ResetRecord {
            version: RECORD_VERSION,
            flags: 0,
            reason: 11,
            time_ns: number as u64 * 1_000,
            duration_ns: 1_234_567_890,
            closed_ns: u64::MAX,
            socket: 1,
            bytes_sent: 123_456,
            bytes_received: 7_890_123,
            cgroup_id: 42,
            listener: 0,
            credential: 1,
            owner_start_ns: 1,
            local_address: address,
            peer_address: address,
            owner_comm,
            trace_id: [0; 16],
            span_id: [0; 8],
            owner_pid: 81_234,
            actor_pid: 0,
            actor_comm: [0; 16],
            thread_id: 0,
            exit_code: 0,
            network_namespace: 4_026_531_840,
            unread_bytes: 4_096,
            unsent_bytes: 100,
            unacked_bytes: 200,
            retransmits: 3,
            smoothed_rtt_us: 250,
            sequence: 0,
            local_port: 8_080,
            peer_port: 51_514,
            direction: Direction::Transmit as u8,
            origin: Origin::Active as u8,
            cause: causes[number % causes.len()] as u8,
            state: State::Established as u8,
            ip_version,
            hook: Hook::SendReset as u8,
            owner_source: OwnerSource::Storage as u8,
            segment_flags: 0,
        })
        .map(|record| record.as_bytes().to_vec())
        .collect()
}

fn decoder() -> Decoder {
    let reasons = ReasonNames::new([(11, "SK_RST_REASON_TCP_ABORT_ON_CLOSE".to_owned())], []);
    let text = |value: &str| ResourceValue::Text(value.to_owned());
    let resource = Resource::new(vec![
        ("host.name".into(), text("web-1.example.net")),
        ("service.name".into(), text("checkout")),
        ("process.pid".into(), ResourceValue::Integer(81_234)),
        ("process.executable.name".into(), text("nginx")),
        ("container.id".into(), text("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")),
        ("k8s.pod.name".into(), text("checkout-7d9c5b6f4-x2x7q")),
    ]);
    Decoder::new(reasons, resource)
}

/// Reads and decodes every record, and hands each reset on.
fn each_reset(decoder: &Decoder, records: &[Vec<u8>], mut take: impl FnMut(&Reset)) {
    for bytes in records {
        let record = read_record(black_box(bytes)).expect("a whole record");
        let clock = Clock { monotonic_offset_ns: 1_795_553_979_000_000_000, ..Clock::default() };
        take(&decoder.decode(&record, clock, 1_795_553_980_000_000_000).expect("a valid record"));
    }
}

fn bench(criterion: &mut Criterion) {
    let decoder = decoder();
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(RECORDS as u64));
    for ip_version in [4, 6] {
        let records = records(ip_version);
        let mut out = Vec::new();
        group.bench_function(format!("decode/v{ip_version}"), |bencher| {
            bencher.iter(|| {
                each_reset(&decoder, &records, |reset| {
                    black_box(reset);
                });
            });
        });
        let mut builder = EventBuilder::new(false, 1);
        group.bench_function(format!("log_record/v{ip_version}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                each_reset(&decoder, &records, |reset| encode::log_record(&builder.build(reset), &mut out));
                black_box(&out);
            });
        });
        let mut builder = EventBuilder::new(true, 1);
        group.bench_function(format!("log_record_and_span/v{ip_version}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                each_reset(&decoder, &records, |reset| {
                    let event = builder.build(reset);
                    let identity = event.contexts.span.expect("traces are on");
                    encode::log_record_and_span(&event, &identity, &mut out);
                });
                black_box(&out);
            });
        });
        for (name, signals) in [
            ("logs", Signals { logs: true, traces: false, metrics: false }),
            ("logs_and_traces", Signals { logs: true, traces: true, metrics: false }),
        ] {
            let mut builder = EventBuilder::new(signals.traces, 1);
            let mut batcher = Batcher::new(settings::Batch::default(), signals);
            let now = Instant::now();
            group.bench_function(format!("batch_{name}/v{ip_version}"), |bencher| {
                bencher.iter(|| {
                    each_reset(&decoder, &records, |reset| {
                        batcher.push(&builder.build(reset), now);
                        black_box(batcher.take_due(now));
                    });
                });
            });
        }
        let mut console = Console::new(settings::Console::Json, false, false);
        group.bench_function(format!("console_json/v{ip_version}"), |bencher| {
            bencher.iter(|| {
                each_reset(&decoder, &records, |reset| {
                    console.push(&builder.build(reset), &mut io::sink()).expect("a sink takes all");
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
