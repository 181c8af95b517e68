//! A clause: a conjunction of tests that the kernel supports. A condition becomes a disjunction of clauses.

use probes::rule::{self, MAX_NETWORKS, MAX_PORT_RANGES, MAX_REASONS};

use crate::pushdown::KernelFacts;
use crate::{
    filter::{Condition, EnumSets, Network, Pattern, Ports, Side},
    model::attribute::Attribute,
};

/// Maximum number of clauses of a condition; one that needs more is left to user space.
const MAX_CLAUSES: usize = 16;

/// A conjunction of tests.
#[derive(Clone, Debug)]
pub(super) struct Clause {
    /// Facts of closed lists.
    pub(super) facts: EnumSets,
    /// Whether the clause is equivalent to the condition, or only necessary for it.
    pub(super) exact: bool,
    local: SideTests,
    peer: SideTests,
    reasons: Option<SetTest<u32>>,
    network_namespace: Option<(u32, bool)>,
}

/// Tests of one end; `None` where there is none.
#[derive(Clone, Debug, Default)]
struct SideTests {
    ports: Option<Ports>,
    networks: Option<SetTest<Network>>,
}

/// One of these, or with `negated` none of these.
#[derive(Clone, Debug)]
struct SetTest<T> {
    members: Vec<T>,
    negated: bool,
}

/// The clauses of which one matches wherever the condition does; if all are exact, only there.
pub(super) fn clauses(condition: &Condition, kernel: &KernelFacts<'_>) -> Vec<Clause> {
    let clauses = ClauseExpansion { kernel }.expand(condition, false).unwrap_or_else(|| vec![Clause::anything()]);
    clauses.into_iter().map(Clause::bounded).collect()
}

struct ClauseExpansion<'a> {
    kernel: &'a KernelFacts<'a>,
}

impl ClauseExpansion<'_> {
    /// `None` where there would be more than [`MAX_CLAUSES`].
    fn expand(&self, condition: &Condition, negated: bool) -> Option<Vec<Clause>> {
        match condition {
            Condition::Not(part) => self.expand(part, !negated),
            Condition::All(parts) if !negated => self.product(parts, negated),
            Condition::Any(parts) if negated => self.product(parts, negated),
            Condition::All(parts) | Condition::Any(parts) => self.sum(parts, negated),
            Condition::Facts(sets) => Some(enum_clauses(*sets, negated)),
            Condition::Port { end, ports } => {
                let ports = if negated { ports.complement() } else { ports.clone() };
                Some(vec![side_clause(*end, SideTests { ports: Some(ports), networks: None })])
            }
            Condition::Address { end, networks } => {
                let networks = Some(SetTest { members: networks.clone(), negated });
                Some(vec![side_clause(*end, SideTests { ports: None, networks })])
            }
            Condition::Text { attribute: Attribute::Reason, patterns } if !self.kernel.reasons.is_empty() => {
                let reasons = Some(SetTest { members: self.reasons(patterns), negated });
                Some(vec![Clause { reasons, ..Clause::of(EnumSets::ALL) }])
            }
            Condition::Number { attribute: Attribute::NetworkNamespace, ranges } => {
                Some(vec![match ranges.as_slice() {
                    [range] if range.low == range.high && range.low >= 1.0 && range.low <= f64::from(u32::MAX) => {
                        // A number between two whole ones matches nothing; it is left to user space.
                        let inode = range.low as u32;
                        let exact = f64::from(inode) == range.low && !range.is_empty();
                        let network_namespace = exact.then_some((inode, negated));
                        Clause { network_namespace, exact, ..Clause::of(EnumSets::ALL) }
                    }
                    _ => Clause::anything(),
                }])
            }
            Condition::Number { .. } | Condition::Text { .. } | Condition::Resource(_) => {
                Some(vec![Clause::anything()])
            }
        }
    }

    fn sum(&self, parts: &[Condition], negated: bool) -> Option<Vec<Clause>> {
        let mut all = Vec::new();
        for part in parts {
            all.extend(self.expand(part, negated)?);
            if all.len() > MAX_CLAUSES {
                return None;
            }
        }
        Some(all)
    }

    fn product(&self, parts: &[Condition], negated: bool) -> Option<Vec<Clause>> {
        let mut all = vec![Clause::of(EnumSets::ALL)];
        for part in parts {
            // A part with too many clauses is left to user space.
            let clauses = self.expand(part, negated).unwrap_or_else(|| vec![Clause::anything()]);
            let pairs = all.iter().flat_map(|left| clauses.iter().map(move |right| left.and(right)));
            all = pairs.filter(|clause| !clause.facts.is_empty()).take(MAX_CLAUSES + 1).collect();
            if all.len() > MAX_CLAUSES {
                return None;
            }
        }
        Some(all)
    }

    fn reasons(&self, patterns: &[Pattern]) -> Vec<u32> {
        let named = self.kernel.reasons.iter();
        named.filter(|(_, name)| patterns.iter().any(|pattern| pattern.matches(name))).map(|(key, _)| *key).collect()
    }
}

/// The facts, or where negated a clause for each list in which they are some: one of the lists must differ.
fn enum_clauses(sets: EnumSets, negated: bool) -> Vec<Clause> {
    if !negated {
        return vec![Clause::of(sets)];
    }
    let all = EnumSets::ALL;
    let opposites = [
        EnumSets { causes: all.causes & !sets.causes, ..all },
        EnumSets { states: all.states & !sets.states, ..all },
        EnumSets { directions: all.directions & !sets.directions, ..all },
        EnumSets { origins: all.origins & !sets.origins, ..all },
        EnumSets { ip_versions: all.ip_versions & !sets.ip_versions, ..all },
    ];
    opposites.into_iter().filter(|facts| !facts.is_empty()).map(Clause::of).collect()
}

fn side_clause(end: Side, tests: SideTests) -> Clause {
    let all = Clause::of(EnumSets::ALL);
    match end {
        Side::Local => Clause { local: tests, ..all },
        Side::Peer => Clause { peer: tests, ..all },
    }
}

impl Clause {
    /// These facts and nothing else.
    pub(super) fn of(facts: EnumSets) -> Self {
        Self {
            facts,
            exact: true,
            local: SideTests::default(),
            peer: SideTests::default(),
            reasons: None,
            network_namespace: None,
        }
    }

    /// In place of a condition that the kernel cannot evaluate.
    fn anything() -> Self {
        Self { exact: false, ..Self::of(EnumSets::ALL) }
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

    /// Without the lists that do not fit into a rule: the rest is still necessary, but not sufficient.
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

    /// Rules in the kernel's format of which one matches where the clause does; their verdict is not set yet.
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

impl SideTests {
    fn and(&self, other: &Self, exact: &mut bool) -> Self {
        let ports = match (&self.ports, &other.ports) {
            (Some(mine), Some(theirs)) => Some(mine.intersection(theirs)),
            (mine, theirs) => mine.as_ref().or(theirs.as_ref()).cloned(),
        };
        Self { ports, networks: either(&self.networks, &other.networks, exact) }
    }
}

/// The existing test; of two only the first, so that the result is not exact.
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

/// The rules with a test of a list added. A list that does not fit into one rule is spread over several, of which one must
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

/// The 16 bytes in network order as four words of memory.
fn words(bits: u128) -> [u32; 4] {
    let bytes = bits.to_be_bytes();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte])))
}
