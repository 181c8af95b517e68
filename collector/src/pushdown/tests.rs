//! Kernel and user space together against user space alone, on random rules and resets.

use std::net::IpAddr;

use probes::rule::{Facts, Verdict, evaluate, reason_key};
use proptest::prelude::*;

use super::*;
use crate::filter::{
    Condition, Pattern, Ports, ResourceTest, Rule, Side,
    tests::{any_filters, any_reset, plain_reset},
};

const REASONS: &[(u32, &str)] =
    &[(reason_key(3, false), "NO_SOCKET"), (reason_key(3, true), "TCP_FLAGS"), (reason_key(9, false), "TCP_STATE")];

/// What the probes would know of the reset.
fn facts(reset: &Reset) -> Facts {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    let words = |address| {
        let bytes = bytes(address);
        std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
    };
    let named = |reason| REASONS.iter().find(|(_, name)| *name == reason).map(|(key, _)| *key);
    Facts {
        reason: reset.reason.and_then(named).unwrap_or(u32::MAX),
        network_namespace: reset.network_namespace.unwrap_or(0),
        local_address: words(reset.local.address),
        peer_address: words(reset.peer.address),
        local_port: reset.local.port,
        peer_port: reset.peer.port,
        cause: reset.cause as u8,
        state: reset.state.map_or(0, |state| state as u8),
        direction: reset.direction as u8,
        origin: reset.origin as u8,
        ip_version: if reset.local.address.is_ipv4() { 4 } else { 6 },
        reserved: [0; 3],
    }
}

fn any_capture() -> impl Strategy<Value = Capture> {
    any::<[bool; 4]>().prop_map(|[sent, received, firewall, unmatched]| Capture {
        sent,
        received,
        firewall,
        unmatched,
        ..Capture::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn kernel_then_user_is_user_alone(
        filters in any_filters(), capture in any_capture(), reset in any_reset(), with_reasons in any::<bool>(),
    ) {
        let kernel = KernelFacts { reasons: if with_reasons { REASONS } else { &[] } };
        let program = compile(&capture, &filters, &kernel);
        prop_assert!(program.len() <= MAX_RULES);
        let facts = facts(&reset);
        let user = captured(&capture, &reset) && filters.decide(&reset).keep;
        match evaluate(&program.rules(), &facts).map(|outcome| outcome.verdict) {
            Some(Verdict::Drop) => prop_assert!(!user, "dropped by the kernel alone: {:?}", program),
            Some(Verdict::Keep) => prop_assert!(filters.decide(&reset).keep, "kept by the kernel: {:?}", program),
            Some(Verdict::Stop) | None => {}
        }
        if capture == Capture::default() && program.places().iter().all(|place| *place == RunsIn::Kernel) {
            let kernel = !matches!(evaluate(&program.rules(), &facts), Some(outcome) if outcome.verdict == Verdict::Drop);
            prop_assert_eq!(kernel, user, "all in the kernel: {:?}", program);
        }
    }
}

fn drop(condition: Condition) -> Rule {
    Rule { keep: false, condition }
}

fn local_port(low: u16, high: u16) -> Condition {
    Condition::Port { end: Side::Local, ports: Ports::new(vec![(low, high)]) }
}

fn service(name: &str) -> Condition {
    Condition::Resource(ResourceTest::new("service.name", vec![Pattern::new(name)], Vec::new()))
}

#[test]
fn a_rule_that_the_kernel_cannot_decide_holds_back_only_what_it_may_match() {
    let filters = Filters::new(vec![
        Rule { keep: true, condition: Condition::All(vec![service("checkout"), local_port(80, 80)]) },
        drop(local_port(0, 9_999)),
    ]);
    let program = compile(&Capture::default(), &filters, &KernelFacts::default());
    assert_eq!(program.places(), [RunsIn::User, RunsIn::Kernel]);
    let verdict = |port| {
        let reset = Reset { local: crate::model::Endpoint { port, ..plain_reset().local }, ..plain_reset() };
        evaluate(&program.rules(), &facts(&reset)).map(|outcome| outcome.verdict)
    };
    assert_eq!(verdict(80), Some(Verdict::Stop));
    assert_eq!(verdict(81), Some(Verdict::Drop));
    assert_eq!(verdict(10_000), None);
}

#[test]
fn nothing_to_drop_is_an_empty_program() {
    let filters = Filters::new(vec![
        Rule { keep: true, condition: local_port(80, 80) },
        drop(Condition::Not(Box::new(service("checkout")))),
    ]);
    let program = compile(&Capture::default(), &filters, &KernelFacts::default());
    assert!(program.is_empty());
    assert_eq!(program.places(), [RunsIn::NothingToDrop, RunsIn::User]);
}

#[test]
fn a_program_that_is_too_long_ends_in_user_space() {
    let rules: Vec<_> = (0..100).map(|port| drop(local_port(port * 2, port * 2))).collect();
    let filters = Filters::new(rules);
    let program = compile(&Capture::default(), &filters, &KernelFacts::default());
    assert_eq!(program.len(), MAX_RULES - 1);
    assert_eq!(program.places()[0], RunsIn::Kernel);
    assert_eq!(program.places()[99], RunsIn::Full);
    assert!(program.report().contains("filters[99] in user space: the kernel's program is full"));
}

#[test]
fn long_lists_are_spread_over_rules() {
    let ports = Ports::new((0..20).map(|port| (port * 10, port * 10)).collect());
    let filters = Filters::new(vec![drop(Condition::Port { end: Side::Peer, ports })]);
    let program = compile(&Capture::default(), &filters, &KernelFacts::default());
    assert_eq!((program.len(), program.places()), (5, &[RunsIn::Kernel][..]));
}
