//! Filters on random resets against the plainest reading of the rules; and what random rules and resets are.

use std::{borrow::Cow, net::IpAddr};

use proptest::prelude::*;

use super::*;
use crate::{
    model::resource::{Resource, ResourceValue},
    model::{Cause, Connection, Direction, Endpoint, Hook, Origin, State, attribute::Attribute},
};

/// A reset with the least in it.
pub(crate) fn plain_reset() -> Reset {
    Reset {
        time_unix_ns: 1_700_000_000_000_000_000,
        observed_unix_ns: 1_700_000_000_000_000_000,
        direction: Direction::Transmit,
        origin: Origin::Passive,
        cause: Cause::PortClosed,
        reason: Some("NO_SOCKET"),
        state: None,
        local: Endpoint { address: "192.0.2.1".parse().unwrap(), port: 8080 },
        peer: Endpoint { address: "10.0.0.7".parse().unwrap(), port: 40_000 },
        connection: Connection::default(),
        network_namespace: Some(4_026_531_840),
        owner: None,
        socket: 0,
        listener: 0,
        credential: 0,
        cgroup_id: None,
        actor: None,
        exit: None,
        segment_flags: 0,
        not_accepted: false,
        own_firewall: false,
        hook: Hook::SendReset,
        resource: Arc::default(),
        trace: None,
        adjusted_count: 1.0,
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop::sample::select(vec!["10.0.0.1", "10.1.0.1", "192.0.2.1", "::1", "fd00::1", "fd00:1::1", "2001:db8::1"])
        .prop_map(|text| text.parse().unwrap())
}

/// A member of a closed list.
fn member<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(all)
}

/// A reset from a small world, so that random rules often match it.
pub(crate) fn any_reset() -> impl Strategy<Value = Reset> {
    let facts = (
        member(Direction::ALL),
        member(Origin::ALL),
        member(&Cause::ALL[..4]),
        prop::option::of(member(&State::ALL[..3])),
        prop::option::of(prop::sample::select(vec!["NO_SOCKET", "TCP_STATE", "TCP_FLAGS"])),
    );
    let ends = (any_address(), any_address(), 0_u16..6, 0_u16..6, prop::option::of(0_u32..4));
    let resource = prop::option::of(prop::sample::select(vec!["checkout-1", "checkout-2", "cart"]));
    (facts, ends, resource, prop::option::of(0_u64..4)).prop_map(|(facts, ends, service, bytes_sent)| {
        let (direction, origin, cause, state, reason) = facts;
        let (local, peer, local_port, peer_port, network_namespace) = ends;
        let peer = if peer.is_ipv4() == local.is_ipv4() { peer } else { local };
        let attributes = service.map(|name| (Cow::from("service.name"), ResourceValue::Text(name.into())));
        Reset {
            direction,
            origin,
            cause,
            state,
            reason,
            local: Endpoint { address: local, port: local_port },
            peer: Endpoint { address: peer, port: peer_port },
            network_namespace,
            connection: Connection { bytes_sent, ..Connection::default() },
            resource: Resource::new(attributes.into_iter().collect()),
            ..plain_reset()
        }
    })
}

fn any_end() -> impl Strategy<Value = Side> {
    member(&[Side::Local, Side::Peer])
}

fn any_network() -> impl Strategy<Value = Network> {
    let texts = vec!["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0", "fd00::/16", "fd00::/8"];
    prop::sample::select(texts).prop_map(|text| {
        let (address, prefix) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), prefix.parse().unwrap()).unwrap()
    })
}

fn any_test() -> impl Strategy<Value = Condition> {
    let ports = prop::collection::vec((0_u16..6, 0_u16..6), 0..6).prop_map(Ports::new);
    let patterns = || {
        let texts = vec!["*", "checkout*", "cart", "NO_SOCKET", "TCP_*", "c?rt"];
        prop::collection::vec(prop::sample::select(texts).prop_map(Pattern::new), 0..3)
    };
    let range = (0_u8..4, 0_u8..4, any::<bool>()).prop_map(|(low, high, inside)| NumberRange {
        low: low.into(),
        high: high.into(),
        low_inside: true,
        high_inside: inside,
    });
    let ranges = prop::collection::vec(range, 0..3);
    let facts = (0_u32..16, 0_u16..16, 0_u8..4, 0_u8..16, 0_u8..4, 0_u8..32).prop_map(
        |(causes, states, directions, origins, ip_versions, which)| EnumSets {
            causes: if which & 1 == 0 { EnumSets::ALL.causes } else { causes },
            states: if which & 2 == 0 { EnumSets::ALL.states } else { states },
            directions: if which & 4 == 0 { EnumSets::ALL.directions } else { directions },
            origins: if which & 8 == 0 { EnumSets::ALL.origins } else { origins },
            ip_versions: if which & 16 == 0 { EnumSets::ALL.ip_versions } else { ip_versions },
        },
    );
    prop_oneof![
        4 => facts.prop_map(Condition::Facts),
        2 => (any_end(), ports).prop_map(|(end, ports)| Condition::Port { end, ports }),
        2 => (any_end(), prop::collection::vec(any_network(), 0..4))
            .prop_map(|(end, networks)| Condition::Address { end, networks }),
        1 => (member(&[Attribute::BytesSent, Attribute::NetworkNamespace]), ranges)
            .prop_map(|(attribute, ranges)| Condition::Number { attribute, ranges }),
        1 => patterns().prop_map(|patterns| Condition::Text { attribute: Attribute::Reason, patterns }),
        1 => patterns().prop_map(|patterns| {
            Condition::Resource(ResourceTest::new("service.name", patterns, Vec::new()))
        }),
    ]
}

/// A random condition, nested up to three times.
pub(crate) fn any_condition() -> impl Strategy<Value = Condition> {
    // Two tests of one thing, of which the kernel may hold one only.
    let networks = || prop::collection::vec(any_network(), 0..4);
    let pair = (any_end(), networks(), networks(), any::<bool>()).prop_map(|(end, networks, others, negated)| {
        let other = Condition::Address { end, networks: others };
        let other = if negated { Condition::Not(Box::new(other)) } else { other };
        Condition::All(vec![Condition::Address { end, networks }, other])
    });
    prop_oneof![4 => any_test(), 1 => pair].prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Condition::All),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Condition::Any),
            inner.prop_map(|inner| Condition::Not(Box::new(inner))),
        ]
    })
}

/// Random filters.
pub(crate) fn any_filters() -> impl Strategy<Value = Filters> {
    let rule = (any::<bool>(), any_condition()).prop_map(|(keep, condition)| Rule { keep, condition });
    prop::collection::vec(rule, 0..6).prop_map(Filters::new)
}

/// The condition's meaning, read without bits, slots or simplification.
fn plainly(condition: &Condition, reset: &Reset) -> bool {
    match condition {
        Condition::All(parts) => !parts.iter().any(|part| !plainly(part, reset)),
        Condition::Any(parts) => parts.iter().any(|part| plainly(part, reset)),
        Condition::Not(part) => !plainly(part, reset),
        Condition::Facts(sets) => {
            let state = reset.state.map_or(0, |state| state as u16);
            sets.causes >> reset.cause as u32 & 1 == 1
                && sets.states >> state & 1 == 1
                && sets.directions >> reset.direction as u8 & 1 == 1
                && sets.origins >> reset.origin as u8 & 1 == 1
                && sets.ip_versions & (if reset.local.address.is_ipv4() { IPV4 } else { IPV6 }) != 0
        }
        test => test.matches(&EvalContext::new(reset)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn first_match_decides(filters in prop::collection::vec((any::<bool>(), any_condition()), 0..6), reset in any_reset()) {
        let expected = filters.iter().position(|(_, condition)| plainly(condition, &reset));
        let rules = filters.iter().map(|(keep, condition)| Rule { keep: *keep, condition: condition.clone() });
        let decision = Filters::new(rules.collect()).decide(&reset);
        prop_assert_eq!(decision.rule, expected);
        prop_assert_eq!(decision.keep, expected.is_none_or(|rule| filters[rule].0));
    }

    #[test]
    fn analysis_never_claims_falsely(a in any_condition(), b in any_condition(), reset in any_reset()) {
        let (a, b) = (a.simplified(), b.simplified());
        let subject = EvalContext::new(&reset);
        let (meets_a, meets_b) = (a.matches(&subject), b.matches(&subject));
        let prover = SubsumptionProof::new(usize::MAX);
        prop_assert!(!prover.covers(&a, &b) || !meets_b || meets_a, "{:?} does not cover {:?}", a, b);
        prop_assert!(!(prover.excludes(&a, &b) && meets_a && meets_b), "{:?} does not exclude {:?}", a, b);
        prop_assert!(!prover.is_never(&a) || !meets_a);
        prop_assert!(!prover.is_always(&a) || meets_a);
    }
}

#[test]
fn not_of_an_unknown_value_matches() {
    let reset = plain_reset();
    let pod = Condition::Resource(ResourceTest::new("k8s.pod.name", vec![Pattern::new("*")], Vec::new()));
    assert!(!pod.matches(&EvalContext::new(&reset)));
    assert!(Condition::Not(Box::new(pod)).matches(&EvalContext::new(&reset)));
}

#[test]
fn more_names_than_slots_are_still_looked_up() {
    let names: Vec<_> = (0..40).map(|number| format!("label.{number}")).collect();
    let rules = names.iter().map(|name| Rule {
        keep: false,
        condition: Condition::Resource(ResourceTest::new(name, vec![Pattern::new("yes")], Vec::new())),
    });
    let filters = Filters::new(rules.collect());
    for (at, name) in names.iter().enumerate() {
        let attributes = vec![(Cow::from(name.clone()), ResourceValue::Text("yes".into()))];
        let resource = Resource::new(attributes);
        let reset = Reset { resource, ..plain_reset() };
        assert_eq!(filters.decide(&reset), FilterDecision { keep: false, rule: Some(at) });
    }
}

#[test]
fn shadowed_rules_are_found() {
    let ports = |ranges: &[(u16, u16)]| Condition::Port { end: Side::Local, ports: Ports::new(ranges.to_vec()) };
    let conditions = [ports(&[(8000, 8999)]), ports(&[(22, 22)]), ports(&[(8080, 8080)]), ports(&[(22, 23)])];
    let conditions: Vec<_> = conditions.iter().collect();
    assert_eq!(shadowed(&conditions), (vec![(0, 2)], true));
}

#[test]
fn a_prover_without_steps_proves_nothing() {
    let prover = SubsumptionProof::new(1);
    assert!(!prover.is_always(&Condition::All(Vec::new())) && prover.is_exhausted());
}
