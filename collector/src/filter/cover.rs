//! Whether one condition holds wherever another does: how rules that can never match are found.
//!
//! Every answer `true` is a proof; `false` means "not proven". The analysis looks at pairs of conditions, not at what
//! several rules cover together.

use super::condition::{Condition, FactSets};

/// At most so many parts of an `all` are compared with each other, to bound the time that a hostile file costs.
const MAX_PAIRED_PARTS: usize = 32;

impl Condition {
    /// Whether every reset that meets `other` meets this condition too.
    pub fn covers(&self, other: &Self) -> bool {
        if self == other || self.is_always() || other.is_never() {
            return true;
        }
        match (self, other) {
            (Self::All(parts), _) => parts.iter().all(|part| part.covers(other)),
            (_, Self::Any(parts)) => parts.iter().all(|part| self.covers(part)),
            (Self::Not(mine), Self::Not(theirs)) => theirs.covers(mine),
            (Self::Any(parts), _) if parts.iter().any(|part| part.covers(other)) => true,
            (Self::Not(mine), _) if mine.excludes(other) => true,
            (_, Self::All(parts)) => parts.iter().any(|part| self.covers(part)),
            (Self::Facts(mine), Self::Facts(theirs)) => mine.intersection(*theirs) == *theirs,
            (Self::Port { end, ports }, Self::Port { end: other_end, ports: others }) => {
                end == other_end && ports.covers(others)
            }
            (Self::Address { end, networks }, Self::Address { end: other_end, networks: others }) => {
                end == other_end && each_covered(networks, others, |mine, theirs| mine.covers(theirs))
            }
            (Self::Number { attribute, ranges }, Self::Number { attribute: other_attribute, ranges: others }) => {
                attribute == other_attribute && each_covered(ranges, others, |mine, theirs| mine.covers(theirs))
            }
            (Self::Text { attribute, patterns }, Self::Text { attribute: other_attribute, patterns: others }) => {
                attribute == other_attribute && each_covered(patterns, others, |mine, theirs| mine.covers(theirs))
            }
            (Self::Resource(mine), Self::Resource(theirs)) => {
                mine.name == theirs.name
                    && each_covered(&mine.patterns, &theirs.patterns, |mine, theirs| mine.covers(theirs))
                    && each_covered(&mine.ranges, &theirs.ranges, |mine, theirs| mine.covers(theirs))
            }
            _ => false,
        }
    }

    /// Whether no reset meets both conditions.
    pub fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any(parts), _) => parts.iter().all(|part| part.excludes(other)),
            (_, Self::Any(parts)) => parts.iter().all(|part| self.excludes(part)),
            (Self::All(parts), _) if parts.iter().any(|part| part.excludes(other)) => true,
            (_, Self::All(parts)) if parts.iter().any(|part| self.excludes(part)) => true,
            (Self::Not(mine), _) if mine.covers(other) => true,
            (_, Self::Not(theirs)) => theirs.covers(self),
            (Self::Facts(mine), Self::Facts(theirs)) => mine.intersection(*theirs).is_empty(),
            (Self::Port { end, ports }, Self::Port { end: other_end, ports: others }) => {
                end == other_end && ports.excludes(others)
            }
            (Self::Address { end, networks }, Self::Address { end: other_end, networks: others }) => {
                end == other_end
                    && each_pair(networks, others, |mine, theirs| !mine.covers(theirs) && !theirs.covers(mine))
            }
            (Self::Number { attribute, ranges }, Self::Number { attribute: other_attribute, ranges: others }) => {
                attribute == other_attribute && each_pair(ranges, others, |mine, theirs| mine.excludes(theirs))
            }
            (Self::Text { attribute, patterns }, Self::Text { attribute: other_attribute, patterns: others }) => {
                attribute == other_attribute && each_pair(patterns, others, |mine, theirs| mine.excludes(theirs))
            }
            // A list may hold a value for each of two tests.
            _ => false,
        }
    }

    /// Whether no reset can meet the condition.
    pub fn is_never(&self) -> bool {
        match self {
            Self::All(parts) => {
                let paired = &parts[..parts.len().min(MAX_PAIRED_PARTS)];
                parts.iter().any(Self::is_never)
                    || paired.iter().enumerate().any(|(at, part)| paired[..at].iter().any(|prior| prior.excludes(part)))
            }
            Self::Any(parts) => parts.iter().all(Self::is_never),
            Self::Not(part) => part.is_always(),
            Self::Facts(sets) => sets.is_empty(),
            Self::Port { ports, .. } => ports.ranges().is_empty(),
            Self::Address { networks, .. } => networks.is_empty(),
            Self::Number { ranges, .. } => ranges.iter().all(super::range::Numbers::is_empty),
            Self::Text { patterns, .. } => patterns.is_empty(),
            Self::Resource(test) => test.patterns.is_empty() && test.ranges.iter().all(|range| range.is_empty()),
        }
    }

    /// Whether every reset meets the condition.
    pub fn is_always(&self) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(Self::is_always),
            Self::Any(parts) => parts.iter().any(Self::is_always),
            Self::Not(part) => part.is_never(),
            Self::Facts(sets) => *sets == FactSets::ALL,
            _ => false,
        }
    }
}

fn each_covered<T>(mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    theirs.iter().all(|theirs| mine.iter().any(|mine| covers(mine, theirs)))
}

fn each_pair<T>(mine: &[T], theirs: &[T], holds: impl Fn(&T, &T) -> bool) -> bool {
    mine.iter().all(|mine| theirs.iter().all(|theirs| holds(mine, theirs)))
}
