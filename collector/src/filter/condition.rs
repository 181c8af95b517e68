//! The condition of a rule, in the form in which it is evaluated.
//!
//! A missing value matches no test; so `not` of the test matches it.

use std::{cell::Cell, io::Write, sync::Arc};

use crate::filter::{
    pattern::Pattern,
    range::{Network, NumberRange, Ports},
};
use crate::{
    model::resource::ResourceValue,
    model::{
        Cause, Direction, Origin, Reset, State,
        attribute::{Attribute, Value},
    },
};

/// A condition on a reset.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// All of them; met where there are none.
    All(Vec<Condition>),
    /// At least one of them; never met where there are none.
    Any(Vec<Condition>),
    /// The opposite.
    Not(Box<Condition>),
    /// Facts from closed lists.
    Facts(EnumSets),
    /// A port.
    Port {
        /// Whose.
        end: Side,
        /// Which.
        ports: Ports,
    },
    /// An address.
    Address {
        /// Whose.
        end: Side,
        /// In one of these.
        networks: Vec<Network>,
    },
    /// A number of the record.
    Number {
        /// Which.
        attribute: Attribute,
        /// In one of these.
        ranges: Vec<NumberRange>,
    },
    /// A text of the record that is of no closed list of facts.
    Text {
        /// Which.
        attribute: Attribute,
        /// Matched by one of these.
        patterns: Vec<Pattern>,
    },
    /// An attribute of the resource.
    Resource(ResourceTest),
}

/// A test of an attribute of the resource. Of a list, one element must match.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceTest {
    /// The attribute's name.
    pub name: Arc<str>,
    /// Matched by one of these; a number is matched by its decimal text ...
    pub patterns: Vec<Pattern>,
    /// ... or a number in one of these.
    pub ranges: Vec<NumberRange>,
    /// The slot of the value in [`EvalContext`].
    pub(super) slot: usize,
}

impl ResourceTest {
    /// A test of the attribute `name`.
    pub fn new(name: &str, patterns: Vec<Pattern>, ranges: Vec<NumberRange>) -> Self {
        Self { name: name.into(), patterns, ranges, slot: SLOTS }
    }
}

/// Whose address or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `network.local`
    Local,
    /// `network.peer`
    Peer,
}

/// A set of members of each closed list: a bit for each number. All sets must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumSets {
    /// Causes.
    pub causes: u32,
    /// States; bit 0 is the unknown one.
    pub states: u16,
    /// Directions.
    pub directions: u8,
    /// Origins.
    pub origins: u8,
    /// Versions of IP: [`IPV4`] and [`IPV6`].
    pub ip_versions: u8,
}

/// Bit of [`EnumSets::ip_versions`].
pub const IPV4: u8 = 1;
/// Bit of [`EnumSets::ip_versions`].
pub const IPV6: u8 = 2;

impl EnumSets {
    /// Everything: no condition at all.
    pub const ALL: Self = Self {
        causes: (1 << Cause::ALL.len()) - 1,
        states: (1 << (State::ALL.len() + 1)) - 1,
        directions: (1 << Direction::ALL.len()) - 1,
        origins: (1 << Origin::ALL.len()) - 1,
        ip_versions: IPV4 | IPV6,
    };

    /// What is in both.
    pub fn intersection(self, other: Self) -> Self {
        Self {
            causes: self.causes & other.causes,
            states: self.states & other.states,
            directions: self.directions & other.directions,
            origins: self.origins & other.origins,
            ip_versions: self.ip_versions & other.ip_versions,
        }
    }

    /// The smallest set that contains both.
    pub fn union(self, other: Self) -> Self {
        Self {
            causes: self.causes | other.causes,
            states: self.states | other.states,
            directions: self.directions | other.directions,
            origins: self.origins | other.origins,
            ip_versions: self.ip_versions | other.ip_versions,
        }
    }

    /// Whether no reset is in the set.
    pub fn is_empty(self) -> bool {
        self.causes == 0 || self.states == 0 || self.directions == 0 || self.origins == 0 || self.ip_versions == 0
    }

    /// Whether the reset is in the set.
    pub fn contains(self, reset: &Reset) -> bool {
        !self.intersection(Self::of(reset)).is_empty()
    }

    /// What is left out, where one list alone is restricted: a reset has one member of each list.
    fn opposite(self) -> Option<Self> {
        let all = Self::ALL;
        if self.is_empty() {
            return None;
        }
        let only = [
            Self { causes: !self.causes & all.causes, ..all },
            Self { states: !self.states & all.states, ..all },
            Self { directions: !self.directions & all.directions, ..all },
            Self { origins: !self.origins & all.origins, ..all },
            Self { ip_versions: !self.ip_versions & all.ip_versions, ..all },
        ];
        let mut restricted = only.into_iter().filter(|opposite| *opposite != all && !opposite.is_empty());
        restricted.next().filter(|_| restricted.next().is_none())
    }

    /// The sets as one number, for a test in one step: a reset is in them if its own number has no bit outside of theirs.
    pub(super) fn packed(self) -> u64 {
        u64::from(self.causes)
            | u64::from(self.states) << 32
            | u64::from(self.directions) << 48
            | u64::from(self.origins) << 52
            | u64::from(self.ip_versions) << 60
    }

    /// The set of this reset alone.
    fn of(reset: &Reset) -> Self {
        Self {
            causes: 1 << reset.cause as u32,
            states: 1 << reset.state.map_or(0, |state| state as u16),
            directions: 1 << reset.direction as u8,
            origins: 1 << reset.origin as u8,
            ip_versions: if reset.local.address.is_ipv4() { IPV4 } else { IPV6 },
        }
    }
}

/// Number of resource attributes whose values are read once per reset.
pub(super) const SLOTS: usize = 16;

/// A reset under evaluation, with the values that were read already.
pub struct EvalContext<'a> {
    reset: &'a Reset,
    facts: EnumSets,
    /// The same, as [`EnumSets::packed`].
    packed: u64,
    /// By [`Side`], in its order.
    ports: [u16; 2],
    /// By [`Side`], as [`Network::holds`] takes them.
    addresses: [(u128, bool); 2],
    resource: [Cell<Option<Option<&'a ResourceValue>>>; SLOTS],
}

impl<'a> EvalContext<'a> {
    /// Prepares a reset for testing.
    pub fn new(reset: &'a Reset) -> Self {
        let ends = [reset.local, reset.peer];
        let facts = EnumSets::of(reset);
        Self {
            reset,
            facts,
            packed: facts.packed(),
            ports: ends.map(|end| end.port),
            addresses: ends.map(|end| Network::bits(end.address)),
            resource: [const { Cell::new(None) }; SLOTS],
        }
    }

    /// Whether the reset is in the sets that were packed.
    pub(super) fn is_within(&self, packed: u64) -> bool {
        self.packed & !packed == 0
    }

    fn resource(&self, test: &ResourceTest) -> Option<&'a ResourceValue> {
        let Some(kept) = self.resource.get(test.slot) else { return self.reset.resource.get(&test.name) };
        kept.get().unwrap_or_else(|| {
            let value = self.reset.resource.get(&test.name);
            kept.set(Some(value));
            value
        })
    }
}

impl Condition {
    /// Whether the reset matches the condition.
    pub fn matches(&self, subject: &EvalContext<'_>) -> bool {
        let reset = subject.reset;
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(subject)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(subject)),
            Self::Not(part) => !part.matches(subject),
            // A reset has one member of each list, so its facts are in the sets where nothing of them is left out.
            Self::Facts(sets) => sets.intersection(subject.facts) == subject.facts,
            Self::Port { end, ports } => ports.contains(subject.ports[*end as usize]),
            Self::Address { end, networks } => {
                let address = subject.addresses[*end as usize];
                networks.iter().any(|network| network.holds(address))
            }
            Self::Number { attribute, ranges } => match attribute.value(reset) {
                Some(Value::Integer(number)) => ranges.iter().any(|range| range.contains(number as f64)),
                Some(Value::Float(number)) => ranges.iter().any(|range| range.contains(number)),
                _ => false,
            },
            Self::Text { attribute, patterns } => match attribute.value(reset) {
                Some(Value::Text(text)) => patterns.iter().any(|pattern| pattern.matches(text)),
                _ => false,
            },
            Self::Resource(test) => subject.resource(test).is_some_and(|value| test.matches(value)),
        }
    }

    /// Sets that contain every reset which matches the condition: nothing outside of them needs further tests.
    pub(super) fn bounds(&self) -> EnumSets {
        const NOTHING: EnumSets = EnumSets { causes: 0, states: 0, directions: 0, origins: 0, ip_versions: 0 };
        match self {
            Self::All(parts) => parts.iter().map(Self::bounds).fold(EnumSets::ALL, EnumSets::intersection),
            Self::Any(parts) => parts.iter().map(Self::bounds).fold(NOTHING, EnumSets::union),
            Self::Facts(sets) => *sets,
            Self::Address { networks, .. } => {
                let version = |network: &Network| if network.is_ipv4() { IPV4 } else { IPV6 };
                EnumSets { ip_versions: networks.iter().map(version).fold(0, std::ops::BitOr::bitor), ..EnumSets::ALL }
            }
            _ => EnumSets::ALL,
        }
    }

    /// The same condition with its parts flattened, facts of one `All` in one test, and what is cheap to test first.
    pub fn simplified(self) -> Self {
        match self {
            Self::All(parts) => Self::all(parts),
            Self::Any(parts) => {
                let mut flat = Vec::with_capacity(parts.len());
                for part in parts.into_iter().map(Self::simplified) {
                    match part {
                        Self::Any(inner) => flat.extend(inner),
                        other => flat.push(other),
                    }
                }
                if flat.len() == 1 { flat.remove(0) } else { Self::Any(flat) }
            }
            Self::Not(part) => match part.simplified() {
                Self::Not(inner) => *inner,
                Self::Facts(sets) => match sets.opposite() {
                    Some(opposite) => Self::Facts(opposite),
                    None => Self::Not(Box::new(Self::Facts(sets))),
                },
                other => Self::Not(Box::new(other)),
            },
            other => other,
        }
    }

    fn all(parts: Vec<Self>) -> Self {
        let mut facts = EnumSets::ALL;
        let mut flat = Vec::with_capacity(parts.len());
        let mut add = |part: Self, flat: &mut Vec<Self>| match part {
            Self::Facts(sets) => facts = facts.intersection(sets),
            other => flat.push(other),
        };
        for part in parts.into_iter().map(Self::simplified) {
            match part {
                Self::All(inner) => inner.into_iter().for_each(|part| add(part, &mut flat)),
                other => add(other, &mut flat),
            }
        }
        if facts != EnumSets::ALL {
            flat.push(Self::Facts(facts));
        }
        flat.sort_by_key(Self::cost);
        if flat.len() == 1 { flat.remove(0) } else { Self::All(flat) }
    }

    fn cost(&self) -> u8 {
        match self {
            Self::Facts(_) => 0,
            Self::Port { .. } => 1,
            Self::Address { .. } => 2,
            Self::Number { .. } => 3,
            Self::Text { .. } => 4,
            Self::Resource(_) => 5,
            Self::Not(part) => part.cost(),
            Self::All(_) | Self::Any(_) => 6,
        }
    }

    /// Calls `visit` with every test of the resource.
    pub(super) fn for_each_resource_test(&mut self, visit: &mut impl FnMut(&mut ResourceTest)) {
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter_mut().for_each(|part| part.for_each_resource_test(visit));
            }
            Self::Not(part) => part.for_each_resource_test(visit),
            Self::Resource(test) => visit(test),
            _ => {}
        }
    }
}

impl ResourceTest {
    fn matches(&self, value: &ResourceValue) -> bool {
        let text_matches = |text: &str| self.patterns.iter().any(|pattern| pattern.matches(text));
        match value {
            ResourceValue::Text(text) => text_matches(text),
            ResourceValue::List(texts) => texts.iter().any(|text| text_matches(text)),
            ResourceValue::Integer(number) => {
                self.ranges.iter().any(|range| range.contains(*number as f64))
                    || (!self.patterns.is_empty() && text_matches(Decimal::of(*number).text()))
            }
        }
    }
}

/// The digits of a number, without an allocation.
struct Decimal {
    digits: [u8; Self::LENGTH],
    unused: usize,
}

impl Decimal {
    /// Of `i64::MIN`, the longest.
    const LENGTH: usize = 20;

    fn of(number: i64) -> Self {
        let mut digits = [0; Self::LENGTH];
        let mut rest = digits.as_mut_slice();
        // There is room for every number.
        let unused = write!(rest, "{number}").map_or(Self::LENGTH, |()| rest.len());
        Self { digits, unused }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.digits[..Self::LENGTH - self.unused]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Decimal;

    #[test]
    fn decimals() {
        for number in [0, 7, -1, i64::MIN, i64::MAX] {
            assert_eq!(Decimal::of(number).text(), number.to_string());
        }
    }
}
