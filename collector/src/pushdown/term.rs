//! A term: tests that all must hold, each of which the kernel can make. A condition becomes a list of them, of which one
//! must hold.

use probes::rule::{self, MAX_NETWORKS, MAX_PORT_RANGES, MAX_REASONS};

use crate::pushdown::Knowledge;
use crate::{
    filter::{Condition, End, FactSets, Network, Pattern, Ports},
    model::attribute::Attribute,
};

/// Terms of a condition at most; of one that needs more the kernel knows nothing.
const MAX_TERMS: usize = 16;

/// Tests that all must hold.
#[derive(Clone, Debug)]
pub(super) struct Term {
    /// Facts of closed lists.
    pub(super) facts: FactSets,
    /// Whether the term says all that the condition asked; else only what must hold besides.
    pub(super) exact: bool,
    local: EndTests,
    peer: EndTests,
    reasons: Option<Listed<u32>>,
    network_namespace: Option<(u32, bool)>,
}

/// Tests of one end; `None` where there is none.
#[derive(Clone, Debug, Default)]
struct EndTests {
    ports: Option<Ports>,
    networks: Option<Listed<Network>>,
}

/// One of these, or with `negated` none of these.
#[derive(Clone, Debug)]
struct Listed<T> {
    members: Vec<T>,
    negated: bool,
}

/// The terms of which one holds wherever the condition does; where all are exact, only there.
pub(super) fn terms(condition: &Condition, knowledge: &Knowledge<'_>) -> Vec<Term> {
    let terms = Expansion { knowledge }.expand(condition, false).unwrap_or_else(|| vec![Term::anything()]);
    terms.into_iter().map(Term::bounded).collect()
}

struct Expansion<'a> {
    knowledge: &'a Knowledge<'a>,
}

impl Expansion<'_> {
    /// `None` where there would be more than [`MAX_TERMS`].
    fn expand(&self, condition: &Condition, negated: bool) -> Option<Vec<Term>> {
        match condition {
            Condition::Not(part) => self.expand(part, !negated),
            Condition::All(parts) if !negated => self.product(parts, negated),
            Condition::Any(parts) if negated => self.product(parts, negated),
            Condition::All(parts) | Condition::Any(parts) => self.sum(parts, negated),
            Condition::Facts(sets) => Some(facts_terms(*sets, negated)),
            Condition::Port { end, ports } => {
                let ports = if negated { ports.complement() } else { ports.clone() };
                Some(vec![end_term(*end, EndTests { ports: Some(ports), networks: None })])
            }
            Condition::Address { end, networks } => {
                let networks = Some(Listed { members: networks.clone(), negated });
                Some(vec![end_term(*end, EndTests { ports: None, networks })])
            }
            Condition::Text { attribute: Attribute::Reason, patterns } if !self.knowledge.reasons.is_empty() => {
                let reasons = Some(Listed { members: self.reasons(patterns), negated });
                Some(vec![Term { reasons, ..Term::of(FactSets::ALL) }])
            }
            Condition::Number { attribute: Attribute::NetworkNamespace, ranges } => {
                Some(vec![match ranges.as_slice() {
                    [range] if range.low == range.high && range.low >= 1.0 && range.low <= f64::from(u32::MAX) => {
                        // A number between two whole ones matches nothing; it is left to user space.
                        let inode = range.low as u32;
                        let exact = f64::from(inode) == range.low && !range.is_empty();
                        let network_namespace = exact.then_some((inode, negated));
                        Term { network_namespace, exact, ..Term::of(FactSets::ALL) }
                    }
                    _ => Term::anything(),
                }])
            }
            Condition::Number { .. } | Condition::Text { .. } | Condition::Resource(_) => Some(vec![Term::anything()]),
        }
    }

    fn sum(&self, parts: &[Condition], negated: bool) -> Option<Vec<Term>> {
        let mut all = Vec::new();
        for part in parts {
            all.extend(self.expand(part, negated)?);
            if all.len() > MAX_TERMS {
                return None;
            }
        }
        Some(all)
    }

    fn product(&self, parts: &[Condition], negated: bool) -> Option<Vec<Term>> {
        let mut all = vec![Term::of(FactSets::ALL)];
        for part in parts {
            // A part with too many terms is a part that the kernel knows nothing of.
            let terms = self.expand(part, negated).unwrap_or_else(|| vec![Term::anything()]);
            let pairs = all.iter().flat_map(|left| terms.iter().map(move |right| left.and(right)));
            all = pairs.filter(|term| !term.facts.is_empty()).take(MAX_TERMS + 1).collect();
            if all.len() > MAX_TERMS {
                return None;
            }
        }
        Some(all)
    }

    fn reasons(&self, patterns: &[Pattern]) -> Vec<u32> {
        let named = self.knowledge.reasons.iter();
        named.filter(|(_, name)| patterns.iter().any(|pattern| pattern.matches(name))).map(|(key, _)| *key).collect()
    }
}

/// The facts, or where negated a term for each list in which they are some: one of the lists must differ.
fn facts_terms(sets: FactSets, negated: bool) -> Vec<Term> {
    if !negated {
        return vec![Term::of(sets)];
    }
    let all = FactSets::ALL;
    let opposites = [
        FactSets { causes: all.causes & !sets.causes, ..all },
        FactSets { states: all.states & !sets.states, ..all },
        FactSets { directions: all.directions & !sets.directions, ..all },
        FactSets { origins: all.origins & !sets.origins, ..all },
        FactSets { ip_versions: all.ip_versions & !sets.ip_versions, ..all },
    ];
    opposites.into_iter().filter(|facts| !facts.is_empty()).map(Term::of).collect()
}

fn end_term(end: End, tests: EndTests) -> Term {
    let all = Term::of(FactSets::ALL);
    match end {
        End::Local => Term { local: tests, ..all },
        End::Peer => Term { peer: tests, ..all },
    }
}

impl Term {
    /// These facts and nothing else.
    pub(super) fn of(facts: FactSets) -> Self {
        Self {
            facts,
            exact: true,
            local: EndTests::default(),
            peer: EndTests::default(),
            reasons: None,
            network_namespace: None,
        }
    }

    /// In place of a condition of which the kernel knows nothing.
    fn anything() -> Self {
        Self { exact: false, ..Self::of(FactSets::ALL) }
    }

    /// The same with other causes.
    pub(super) fn with_causes(&self, causes: u32) -> Self {
        Self { facts: FactSets { causes, ..self.facts }, ..self.clone() }
    }

    fn and(&self, other: &Self) -> Self {
        let mut exact = self.exact && other.exact;
        Self {
            facts: self.facts.intersection(other.facts),
            local: self.local.and(&other.local, &mut exact),
            peer: self.peer.and(&other.peer, &mut exact),
            reasons: either(&self.reasons, &other.reasons, &mut exact),
            network_namespace: either(&self.network_namespace, &other.network_namespace, &mut exact),
            exact,
        }
        .bounded()
    }

    /// Without the lists that no rule can hold: what is left still must hold, but is not all.
    fn bounded(mut self) -> Self {
        let exact = &mut self.exact;
        for networks in [&mut self.local.networks, &mut self.peer.networks] {
            leave_out(networks, exact, |list| {
                list.members.iter().any(|network| network.mapped().is_none())
                    || (list.negated && list.members.len() > MAX_NETWORKS)
            });
        }
        leave_out(&mut self.reasons, exact, |list| list.negated && list.members.len() > MAX_REASONS);
        self
    }

    /// Rules of the kernel's form of which one matches where the term holds; their verdict is still to be set.
    pub(super) fn rules(&self) -> Vec<rule::Rule> {
        let facts = self.facts;
        let mut rules = vec![rule::Rule {
            causes: facts.causes,
            states: facts.states,
            directions: facts.directions,
            origins: facts.origins,
            ip_versions: facts.ip_versions,
            ..rule::Rule::END
        }];
        if let Some((inode, negated)) = self.network_namespace {
            rules[0].network_namespace = inode;
            rules[0].tests |= rule::TEST_NAMESPACE;
            rules[0].negated |= if negated { rule::TEST_NAMESPACE } else { 0 };
        }
        if let Some(list) = &self.reasons {
            rules = spread(&rules, &list.members, MAX_REASONS, list.negated, rule::TEST_REASON, |rule, reasons| {
                rule.reasons = padded(reasons.iter().copied(), u32::MAX - 1);
            });
        }
        if let Some(ports) = &self.local.ports {
            rules = spread(&rules, ports.ranges(), MAX_PORT_RANGES, false, rule::TEST_LOCAL_PORT, |rule, ranges| {
                rule.local_ports = padded(ranges.iter().copied().map(port_range), rule::PortRange::EMPTY);
            });
        }
        if let Some(ports) = &self.peer.ports {
            rules = spread(&rules, ports.ranges(), MAX_PORT_RANGES, false, rule::TEST_PEER_PORT, |rule, ranges| {
                rule.peer_ports = padded(ranges.iter().copied().map(port_range), rule::PortRange::EMPTY);
            });
        }
        if let Some(list) = &self.local.networks {
            let test = rule::TEST_LOCAL_ADDRESS;
            rules = spread(&rules, &list.members, MAX_NETWORKS, list.negated, test, |rule, networks| {
                rule.local_networks = padded(networks.iter().filter_map(network), rule::Network::EMPTY);
            });
        }
        if let Some(list) = &self.peer.networks {
            let test = rule::TEST_PEER_ADDRESS;
            rules = spread(&rules, &list.members, MAX_NETWORKS, list.negated, test, |rule, networks| {
                rule.peer_networks = padded(networks.iter().filter_map(network), rule::Network::EMPTY);
            });
        }
        rules
    }
}

impl EndTests {
    fn and(&self, other: &Self, exact: &mut bool) -> Self {
        let ports = match (&self.ports, &other.ports) {
            (Some(mine), Some(theirs)) => Some(mine.intersection(theirs)),
            (mine, theirs) => mine.as_ref().or(theirs.as_ref()).cloned(),
        };
        Self { ports, networks: either(&self.networks, &other.networks, exact) }
    }
}

/// The one test that there is; of two, the first, which leaves out what the second asks.
fn either<T: Clone>(mine: &Option<T>, theirs: &Option<T>, exact: &mut bool) -> Option<T> {
    *exact &= mine.is_none() || theirs.is_none();
    mine.as_ref().or(theirs.as_ref()).cloned()
}

fn leave_out<T>(test: &mut Option<T>, exact: &mut bool, inexpressible: impl Fn(&T) -> bool) {
    if test.as_ref().is_some_and(inexpressible) {
        *test = None;
        *exact = false;
    }
}

/// The rules with a test of a list added. A list that one rule cannot hold is spread over several, of which one must
/// match; an empty list matches nothing, and negated everything.
fn spread<T>(
    rules: &[rule::Rule],
    members: &[T],
    width: usize,
    negated: bool,
    test: u8,
    set: impl Fn(&mut rule::Rule, &[T]),
) -> Vec<rule::Rule> {
    if negated && members.is_empty() {
        return rules.to_vec();
    }
    let with = |rule: &rule::Rule, part: &[T]| {
        let mut rule = *rule;
        set(&mut rule, part);
        rule.tests |= test;
        rule.negated |= if negated { test } else { 0 };
        rule
    };
    let with = &with;
    members
        .chunks(width)
        .flat_map(|part| rules.iter().map(move |rule| with(rule, part)))
        .take(rule::MAX_RULES + 1)
        .collect()
}

fn padded<T: Copy, const N: usize>(members: impl Iterator<Item = T>, empty: T) -> [T; N] {
    let mut places = [empty; N];
    places.iter_mut().zip(members).for_each(|(place, member)| *place = member);
    places
}

fn port_range((low, high): (u16, u16)) -> rule::PortRange {
    rule::PortRange { low, high }
}

fn network(network: &Network) -> Option<rule::Network> {
    let (value, mask) = network.mapped()?;
    Some(rule::Network { value: words(value), mask: words(mask) })
}

/// The 16 bytes in network order as four words as they stand in memory.
fn words(bits: u128) -> [u32; 4] {
    let bytes = bits.to_be_bytes();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
}
