//! What filters cost for one reset that none of the rules matches, the dearest case: 1 to 1,000 rules of mixed kinds.
#![allow(missing_docs, reason = "criterion's macro makes public functions")]
#![allow(clippy::unwrap_used, reason = "a bench that fails says where")]

use std::{borrow::Cow, hint::black_box};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use reset_collector::{
    config,
    filter::Filters,
    model::resource::{Resource, ResourceValue},
    model::{Endpoint, Reset, State},
};

#[path = "../tests/reset_of/blank.rs"]
mod blank;

fn filters(count: usize) -> Filters {
    let rules = (0..count).map(|at| match at % 5 {
        0 => format!("drop: {{ tcp.reset.cause: port_closed, network.local.port: [{at}, \"20000-20999\"] }}"),
        1 => format!("keep: {{ service.name: \"checkout-{at}-*\" }}"),
        2 => format!("drop: {{ network.peer.address: [172.16.{}.0/24, \"fd00:{at}::/32\"] }}", at % 256),
        3 => format!("drop: {{ not: {{ network.connection.state: established }}, k8s.namespace.name: n{at} }}"),
        _ => format!("drop: {{ any: [{{ process.executable.name: p{at} }}, {{ network.peer.port: {at} }}] }}"),
    });
    let text: String = rules.map(|rule| format!("- {rule}\n")).collect();
    config::parse(&format!("filters:\n{text}"), "bench", &|_| None).unwrap().settings.filters
}

fn reset() -> Reset {
    let texts = [
        ("service.name", "checkout"),
        ("service.namespace", "shop"),
        ("container.id", "0123456789abcdef"),
        ("k8s.pod.uid", "6b1f"),
        ("k8s.pod.name", "checkout-5d9f"),
        ("k8s.namespace.name", "prod"),
        ("process.executable.name", "java"),
        ("host.name", "node-1"),
    ];
    let attributes = texts.map(|(name, text)| (Cow::from(name), ResourceValue::Text(text.into())));
    Reset {
        state: Some(State::Established),
        local: Endpoint { address: "192.0.2.1".parse().unwrap(), port: 48_000 },
        peer: Endpoint { address: "10.0.0.7".parse().unwrap(), port: 5_432 },
        resource: Resource::new(attributes.into()),
        ..blank::reset()
    }
}

fn decide(criterion: &mut Criterion) {
    let reset = reset();
    let mut group = criterion.benchmark_group("filter");
    for count in [1, 10, 100, 1_000] {
        let filters = filters(count);
        assert_eq!(filters.decide(&reset).rule, None, "the bench is of resets that no rule matches");
        group.bench_with_input(BenchmarkId::new("rules", count), &filters, |bencher, filters| {
            bencher.iter(|| filters.decide(black_box(&reset)));
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
