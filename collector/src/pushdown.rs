//! Compiles the filters that the kernel can evaluate before it emits a record into its program of rules.
//!
//! Every filter becomes clauses: conjunctions of tests that the kernel supports. A filter that consists of such clauses is
//! decided there. For any other the kernel gets the necessary conditions of a match, with the verdict "stop": a reset that
//! matches them is left to user space, any other continues with the next rule. So kernel and user space together always
//! decide as user space alone would.

mod clause;

use std::fmt;

use crate::pushdown::clause::{Clause, clauses};
use probes::rule::{self, FROM_CAPTURE, MAX_RULES};

use crate::{
    config::settings::Capture,
    filter::{EnumSets, Filters},
    model::{Cause, Direction, Origin, Reset},
};

/// Facts about the running kernel that filters depend on.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelFacts<'a> {
    /// Reasons by [`rule::reason_key`], with their names as user space gives them; empty leaves filters on reasons to
    /// user space.
    pub reasons: &'a [(u32, &'a str)],
}

/// The kernel's rules, and where each filter runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    rules: Vec<rule::Rule>,
    places: Vec<RunsIn>,
}

/// Where a filter runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsIn {
    /// Completely in the kernel.
    Kernel,
    /// In the kernel where it can decide, else in user space.
    Both,
    /// In user space.
    User,
    /// In user space: it comes after this filter, which the kernel cannot evaluate.
    After(usize),
    /// In user space: the kernel has nothing to drop from here on.
    NothingToDrop,
    /// In user space: the kernel's program is full.
    Full,
}

impl fmt::Display for RunsIn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => formatter.write_str("in the kernel"),
            Self::Both => formatter.write_str("in the kernel where it can decide, else in user space"),
            Self::User => formatter.write_str("in user space: it tests what the kernel does not know"),
            Self::After(filter) => {
                write!(formatter, "in user space: the kernel cannot decide filters[{filter}], which comes before it")
            }
            Self::NothingToDrop => formatter.write_str("in user space: no rule from here on drops in the kernel"),
            Self::Full => formatter.write_str("in user space: the kernel's program is full"),
        }
    }
}

/// Compiles the switches under `capture` and the filters.
pub fn compile(capture: &Capture, filters: &Filters, kernel: &KernelFacts<'_>) -> Program {
    let mut writer = Writer { rules: Vec::new() };
    for facts in left_out(capture) {
        writer.push(FROM_CAPTURE, rule::DROP, &Clause::of(facts));
    }
    let mut places = Vec::with_capacity(filters.rules().len());
    for (source, filter) in filters.rules().iter().enumerate() {
        let Ok(source) = u16::try_from(source) else { break };
        if writer.is_closed() {
            let stopped_at = writer.rules.last().map_or(0, |last| usize::from(last.source));
            places.push(if writer.is_full() { RunsIn::Full } else { RunsIn::After(stopped_at) });
            continue;
        }
        let mut clauses = clauses(&filter.condition, kernel);
        clauses.sort_by_key(|clause| !clause.exact);
        let verdict = if filter.keep { rule::KEEP } else { rule::DROP };
        for clause in &clauses {
            writer.push(source, if clause.exact { verdict } else { rule::STOP }, clause);
        }
        places.push(match clauses.iter().filter(|clause| clause.exact).count() {
            count if count == clauses.len() => RunsIn::Kernel,
            0 => RunsIn::User,
            _ => RunsIn::Both,
        });
    }
    places.resize(filters.rules().len(), RunsIn::Full);
    let is_full = writer.is_full();
    let mut rules = writer.finish();
    // Rules at the end that drop nothing are left out: where no rule matches, a record is made all the same.
    rules.truncate(rules.iter().rposition(|rule| rule.verdict == rule::DROP).map_or(0, |last| last + 1));
    let last_source = rules.last().map(|last| last.source);
    for (source, place) in places.iter_mut().enumerate() {
        let in_program = rules.iter().any(|rule| usize::from(rule.source) == source);
        *place = match *place {
            RunsIn::Kernel | RunsIn::Both if !in_program && is_full => RunsIn::Full,
            RunsIn::Kernel | RunsIn::Both if !in_program => RunsIn::NothingToDrop,
            // Some of its rules may not have fit.
            RunsIn::Kernel if is_full && last_source.is_some_and(|last| usize::from(last) == source) => RunsIn::Both,
            place => place,
        };
    }
    Program { rules, places }
}

/// Whether the switches under `capture` let the reset through: what the kernel's first rules do.
pub fn captured(capture: &Capture, reset: &Reset) -> bool {
    !left_out(capture).any(|facts| facts.contains(reset))
}

/// The resets that the switches leave out.
fn left_out(capture: &Capture) -> impl Iterator<Item = EnumSets> + use<> {
    let unmatched = 1_u32 << Cause::UnmatchedReset as u32;
    let firewall = 1_u8 << Origin::Firewall as u8;
    let transmit = 1_u8 << Direction::Transmit as u8;
    let receive = 1_u8 << Direction::Receive as u8;
    let all = EnumSets::ALL;
    [
        (capture.sent, EnumSets { directions: transmit, origins: all.origins & !firewall, ..all }),
        (capture.received, EnumSets { directions: receive, causes: all.causes & !unmatched, ..all }),
        (capture.firewall, EnumSets { directions: transmit, origins: firewall, ..all }),
        (capture.unmatched, EnumSets { directions: receive, causes: unmatched, ..all }),
    ]
    .into_iter()
    .filter_map(|(on, facts)| (!on).then_some(facts))
}

impl Program {
    /// The rules for the kernel's map; places after them are [`rule::Rule::END`].
    pub fn rules(&self) -> [rule::Rule; MAX_RULES] {
        let mut rules = [rule::Rule::END; MAX_RULES];
        rules.iter_mut().zip(&self.rules).for_each(|(place, rule)| *place = *rule);
        rules
    }

    /// How many rules the program has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether the kernel drops nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Where each filter runs, in their order.
    pub fn places(&self) -> &[RunsIn] {
        &self.places
    }

    /// Lines for `check`: which rule runs where.
    pub fn report(&self) -> String {
        let mut report = format!("the kernel evaluates {} of up to {MAX_RULES} rules\n", self.rules.len());
        for rule in self.rules.iter().filter(|rule| rule.source == FROM_CAPTURE) {
            let what = match (rule.directions, rule.origins) {
                (_, origins) if origins == 1 << Origin::Firewall as u8 => "firewall",
                (directions, _) if directions == 1 << Direction::Transmit as u8 => "sent",
                _ if rule.causes == 1 << Cause::UnmatchedReset as u32 => "unmatched",
                _ => "received",
            };
            report.push_str(&format!("capture.{what}: false in the kernel\n"));
        }
        for (index, place) in self.places.iter().enumerate() {
            report.push_str(&format!("filters[{index}] {place}\n"));
        }
        report
    }
}

/// Writes clauses as rules, until the program is full or a rule stops everything.
struct Writer {
    rules: Vec<rule::Rule>,
}

impl Writer {
    fn push(&mut self, source: u16, verdict: u8, clause: &Clause) {
        if clause.facts.is_empty() {
            return;
        }
        for mut rule in clause.rules() {
            if self.is_closed() {
                return;
            }
            rule.source = source;
            rule.verdict = verdict;
            self.rules.push(rule);
        }
    }

    /// Whether nothing can come after what has been written.
    fn is_closed(&self) -> bool {
        self.is_full() || self.rules.last().is_some_and(|last| last.verdict == rule::STOP && matches_all(last))
    }

    fn is_full(&self) -> bool {
        self.rules.len() > MAX_RULES
    }

    /// The program; one that was too long stops at its last rule, and user space continues.
    fn finish(mut self) -> Vec<rule::Rule> {
        if self.is_full() {
            self.rules.truncate(MAX_RULES - 1);
            let mut stop = rule::Rule { verdict: rule::STOP, ..rule::Rule::END };
            stop.source = self.rules.last().map_or(0, |last| last.source);
            self.rules.push(stop);
        }
        self.rules
    }
}

fn matches_all(rule: &rule::Rule) -> bool {
    let all = EnumSets::ALL;
    rule.tests == 0
        && rule.causes & all.causes == all.causes
        && rule.states & all.states == all.states
        && rule.directions & all.directions == all.directions
        && rule.origins & all.origins == all.origins
        && rule.ip_versions & all.ip_versions == all.ip_versions
}

#[cfg(test)]
mod tests;
