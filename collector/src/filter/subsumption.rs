//! Whether one condition implies another: finds unreachable rules.
//!
//! Every result `true` is a proof; `false` means "not proven". The analysis compares pairs of conditions, not what
//! several rules cover together.

use std::cell::Cell;

use crate::filter::{
    condition::{Condition, EnumSets},
    range::NumberRange,
};

/// Proves things of conditions, in a bounded number of steps: once they are used up, nothing more is proven.
pub(super) struct SubsumptionProof {
    steps_left: Cell<usize>,
}

impl SubsumptionProof {
    /// A proof of at most `max_steps` steps, of a few ns each.
    pub(super) fn new(steps: usize) -> Self {
        Self { steps_left: Cell::new(steps) }
    }

    /// Whether the steps are used up, so that a result `false` means nothing.
    pub(super) fn is_exhausted(&self) -> bool {
        self.steps_left.get() == 0
    }

    /// Uses steps; `false` if too few are left.
    fn take(&self, steps: usize) -> bool {
        let left = self.steps_left.get().saturating_sub(steps);
        self.steps_left.set(left);
        left > 0
    }

    /// Whether every reset that matches `other` matches `condition` too.
    pub(super) fn covers(&self, condition: &Condition, other: &Condition) -> bool {
        use Condition as C;
        if !self.take(1) {
            return false;
        }
        if condition == other || self.is_always(condition) {
            return true;
        }
        match (condition, other) {
            (C::All(parts), _) => parts.iter().all(|part| self.covers(part, other)),
            (_, C::Any(parts)) => parts.iter().all(|part| self.covers(condition, part)),
            (C::Not(mine), C::Not(theirs)) => self.covers(theirs, mine),
            (C::Any(parts), _) if parts.iter().any(|part| self.covers(part, other)) => true,
            (C::Not(mine), _) if self.excludes(mine, other) => true,
            (_, C::All(parts)) => parts.iter().any(|part| self.covers(condition, part)),
            (C::Facts(mine), C::Facts(theirs)) => mine.intersection(*theirs) == *theirs,
            (C::Port { end, ports }, C::Port { end: other_end, ports: others }) => {
                end == other_end && self.take(ports.ranges().len() * others.ranges().len()) && ports.covers(others)
            }
            (C::Address { end, networks }, C::Address { end: other_end, networks: others }) => {
                end == other_end && self.each_covered(networks, others, |mine, theirs| mine.covers(theirs))
            }
            (C::Number { attribute, ranges }, C::Number { attribute: other_attribute, ranges: others }) => {
                attribute == other_attribute && self.each_covered(ranges, others, NumberRange::covers)
            }
            (C::Text { attribute, patterns }, C::Text { attribute: other_attribute, patterns: others }) => {
                attribute == other_attribute && self.each_covered(patterns, others, |mine, theirs| mine.covers(theirs))
            }
            (C::Resource(mine), C::Resource(theirs)) => {
                mine.name == theirs.name
                    && self.each_covered(&mine.patterns, &theirs.patterns, |mine, theirs| mine.covers(theirs))
                    && self.each_covered(&mine.ranges, &theirs.ranges, NumberRange::covers)
            }
            _ => false,
        }
    }

    /// Whether no reset matches both conditions.
    pub(super) fn excludes(&self, condition: &Condition, other: &Condition) -> bool {
        use Condition as C;
        if !self.take(1) {
            return false;
        }
        match (condition, other) {
            (C::Any(parts), _) => parts.iter().all(|part| self.excludes(part, other)),
            (_, C::Any(parts)) => parts.iter().all(|part| self.excludes(condition, part)),
            (C::All(parts), _) if parts.iter().any(|part| self.excludes(part, other)) => true,
            (_, C::All(parts)) if parts.iter().any(|part| self.excludes(condition, part)) => true,
            (C::Not(mine), _) if self.covers(mine, other) => true,
            (_, C::Not(theirs)) => self.covers(theirs, condition),
            (C::Facts(mine), C::Facts(theirs)) => mine.intersection(*theirs).is_empty(),
            (C::Port { end, ports }, C::Port { end: other_end, ports: others }) => {
                end == other_end && self.take(ports.ranges().len() * others.ranges().len()) && ports.excludes(others)
            }
            (C::Address { end, networks }, C::Address { end: other_end, networks: others }) => {
                end == other_end
                    && self.each_pair(networks, others, |mine, theirs| !mine.covers(theirs) && !theirs.covers(mine))
            }
            (C::Number { attribute, ranges }, C::Number { attribute: other_attribute, ranges: others }) => {
                attribute == other_attribute && self.each_pair(ranges, others, NumberRange::excludes)
            }
            (C::Text { attribute, patterns }, C::Text { attribute: other_attribute, patterns: others }) => {
                attribute == other_attribute && self.each_pair(patterns, others, |mine, theirs| mine.excludes(theirs))
            }
            // A list may contain a value for each of two tests.
            _ => false,
        }
    }

    /// Whether no reset can match the condition.
    pub(super) fn is_never(&self, condition: &Condition) -> bool {
        use Condition as C;
        if !self.take(1) {
            return false;
        }
        match condition {
            C::All(parts) => {
                parts.iter().any(|part| self.is_never(part))
                    || parts
                        .iter()
                        .enumerate()
                        .any(|(at, part)| parts[..at].iter().any(|prior| self.excludes(prior, part)))
            }
            C::Any(parts) => parts.iter().all(|part| self.is_never(part)),
            C::Not(part) => self.is_always(part),
            C::Facts(sets) => sets.is_empty(),
            C::Port { ports, .. } => ports.ranges().is_empty(),
            C::Address { networks, .. } => networks.is_empty(),
            C::Number { ranges, .. } => ranges.iter().all(NumberRange::is_empty),
            C::Text { patterns, .. } => patterns.is_empty(),
            C::Resource(test) => test.patterns.is_empty() && test.ranges.iter().all(NumberRange::is_empty),
        }
    }

    /// Whether every reset matches the condition.
    pub(super) fn is_always(&self, condition: &Condition) -> bool {
        use Condition as C;
        if !self.take(1) {
            return false;
        }
        match condition {
            C::All(parts) => parts.iter().all(|part| self.is_always(part)),
            C::Any(parts) => parts.iter().any(|part| self.is_always(part)),
            C::Not(part) => self.is_never(part),
            C::Facts(sets) => *sets == EnumSets::ALL,
            _ => false,
        }
    }

    fn each_covered<T>(&self, mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
        self.take(mine.len() * theirs.len()) && theirs.iter().all(|theirs| mine.iter().any(|mine| covers(mine, theirs)))
    }

    fn each_pair<T>(&self, mine: &[T], theirs: &[T], holds: impl Fn(&T, &T) -> bool) -> bool {
        self.take(mine.len() * theirs.len()) && mine.iter().all(|mine| theirs.iter().all(|theirs| holds(mine, theirs)))
    }
}
