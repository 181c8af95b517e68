//! The rules that keep or drop a reset: in order, the first that matches decides, no match keeps.
//!
//! Reading rules from a file is [`crate::config`]'s; which of them run in the kernel is [`crate::pushdown`]'s.

mod condition;
mod pattern;
mod range;
mod subsumption;

use std::{fmt, sync::Arc};

pub use crate::filter::condition::{Condition, EnumSets, EvalContext, IPV4, IPV6, ResourceTest, Side};
pub use crate::filter::pattern::Pattern;
pub use crate::filter::range::{Network, NumberRange, Ports};
use crate::filter::subsumption::SubsumptionProof;

use crate::model::Reset;

/// Rules in order; the first that matches decides, no match keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filters {
    rules: Vec<Rule>,
    /// For each rule the sets outside of which it cannot match, packed: most rules are skipped by this one number.
    bounds: Vec<u64>,
}

/// One rule of the filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Whether a matching reset is kept or dropped.
    pub keep: bool,
    /// The condition.
    pub condition: Condition,
}

/// The decision of the filters about a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterDecision {
    /// Whether the reset is kept.
    pub keep: bool,
    /// The rule that decided, counted from 0; `None` where none matched.
    pub rule: Option<usize>,
}

impl fmt::Display for FilterDecision {
    /// `kept by filters[1]`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { rule: None, .. } => formatter.write_str("kept: no filter matches"),
            Self { keep: true, rule: Some(rule) } => write!(formatter, "kept by filters[{rule}]"),
            Self { keep: false, rule: Some(rule) } => write!(formatter, "dropped by filters[{rule}]"),
        }
    }
}

impl Filters {
    /// Filters of these rules.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        let mut names = ResourceNames::default();
        for rule in &mut rules {
            rule.condition = names.settle(std::mem::replace(&mut rule.condition, Condition::Any(Vec::new())));
        }
        let bounds = rules.iter().map(|rule| rule.condition.bounds().packed()).collect();
        Self { rules, bounds }
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Decides about a reset.
    pub fn decide(&self, reset: &Reset) -> FilterDecision {
        self.decide_subject(&EvalContext::new(reset))
    }

    fn decide_subject(&self, subject: &EvalContext<'_>) -> FilterDecision {
        let mut rules = self.bounds.iter().zip(&self.rules);
        match rules.position(|(bounds, rule)| subject.is_within(*bounds) && rule.condition.matches(subject)) {
            Some(rule) => FilterDecision { keep: self.rules[rule].keep, rule: Some(rule) },
            None => FilterDecision { keep: true, rule: None },
        }
    }
}

/// Assigns each name of a resource attribute a slot in [`EvalContext`], so that a set of rules reads it once.
#[derive(Default)]
pub(crate) struct ResourceNames(Vec<Arc<str>>);

impl ResourceNames {
    /// The condition simplified, with its names' slots set.
    pub(crate) fn settle(&mut self, condition: Condition) -> Condition {
        let mut condition = condition.simplified();
        condition.for_each_resource_test(&mut |test| {
            let slot = self.0.iter().take(condition::SLOTS).position(|name| *name == test.name);
            test.slot = slot.unwrap_or(self.0.len());
            match slot {
                Some(slot) => test.name = Arc::clone(&self.0[slot]),
                None if self.0.len() < condition::SLOTS => self.0.push(Arc::clone(&test.name)),
                None => {}
            }
        });
        condition
    }
}

/// Pairs `(earlier, later)` where `later` can never decide, since `earlier` matches whatever it matches; and whether
/// every pair was checked. Each later rule is listed once, with the first that shadows it.
pub fn shadowed(conditions: &[&Condition]) -> (Vec<(usize, usize)>, bool) {
    /// Bounds the analysis of a hostile file to about a second; a thousand ordinary rules take a hundredth of it.
    const MAX_STEPS: usize = 100_000_000;
    let prover = SubsumptionProof::new(MAX_STEPS);
    let shadow = |(later, condition): (usize, &&Condition)| {
        let earlier = conditions[..later].iter().position(|earlier| prover.covers(earlier, condition))?;
        Some((earlier, later))
    };
    let pairs = conditions.iter().enumerate().filter_map(shadow).collect();
    (pairs, !prover.is_exhausted())
}

/// Whether it is proven that no reset can match the condition.
pub fn is_never(condition: &Condition) -> bool {
    /// Far more than a rule takes that a person wrote; thousands of hostile ones still take no more than a second.
    const MAX_STEPS: usize = 20_000;
    SubsumptionProof::new(MAX_STEPS).is_never(condition)
}

#[cfg(test)]
pub(crate) mod tests;
