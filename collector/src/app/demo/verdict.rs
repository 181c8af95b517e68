//! What was made against what was captured: pure, and the table of it.

use std::fmt::Write;

use crate::app::demo::scenario::{Expected, Scenario};
use crate::model::{Cause, Direction};

/// What is known of a scenario once it is over.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Every reset captured in its network namespace.
    pub(crate) given: Vec<Expected>,
    /// `TcpOutRsts` of its network namespace: the kernel's own count of what TCP sent there.
    pub(crate) counted: Option<u64>,
    /// Why it was not made, or not to its end.
    pub(crate) failure: Option<String>,
}

/// What became of a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Seen, with the right cause.
    Right,
    /// Seen, with another cause.
    Wrong(Cause),
    /// Made and not seen.
    Missed,
    /// Seen, though nothing here makes it.
    Invented,
    /// Not made, and why.
    NotMade(String),
}

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) made: String,
    pub(crate) direction: Direction,
    /// The cause expected; the cause given where none was.
    pub(crate) cause: Cause,
    pub(crate) verdict: Verdict,
}

/// Judges one scenario.
pub(crate) fn judge(scenario: &Scenario, observed: &Observed) -> Vec<Row> {
    let row = |(direction, cause): Expected, verdict| Row {
        made: format!("{}, {}", scenario.made, scenario.family.word()),
        direction,
        cause,
        verdict,
    };
    let mut given = observed.given.clone();
    let (right, mut open): (Vec<_>, Vec<_>) = scenario
        .expected
        .iter()
        .copied()
        .partition(|expected| take(&mut given, |candidate| candidate == expected).is_some());
    let mut rows: Vec<Row> = right.into_iter().map(|expected| row(expected, Verdict::Right)).collect();
    open.retain(|expected| {
        let other = take(&mut given, |candidate| candidate.0 == expected.0);
        rows.extend(other.map(|(_, cause)| row(*expected, Verdict::Wrong(cause))));
        other.is_none()
    });
    rows.extend(open.into_iter().map(|expected| row(expected, missing(scenario, observed))));
    rows.extend(given.into_iter().map(|other| row(other, Verdict::Invented)));
    let seen = sent_by_tcp(&observed.given);
    let expected = sent_by_tcp(scenario.expected);
    // The kernel sent more than was expected and more than was seen: nobody shows what they were.
    let unseen = observed.counted.unwrap_or(0).saturating_sub(seen.max(expected));
    rows.extend((0..unseen).map(|_| row((Direction::Transmit, Cause::Unknown), Verdict::Missed)));
    rows.sort_by_key(|row| row.direction);
    rows
}

/// A reset that was expected and not seen: missed, unless it was never made.
fn missing(scenario: &Scenario, observed: &Observed) -> Verdict {
    let never_sent = observed.counted.is_none_or(|counted| counted <= sent_by_tcp(&observed.given));
    match &observed.failure {
        Some(failure) if never_sent => Verdict::NotMade(failure.clone()),
        // Where TCP sends something in every run, its own count tells whether it did.
        _ if observed.counted == Some(0) && sent_by_tcp(scenario.expected) > 0 => {
            Verdict::NotMade("the kernel sent no reset".to_owned())
        }
        _ => Verdict::Missed,
    }
}

fn take(given: &mut Vec<Expected>, wanted: impl FnMut(&Expected) -> bool) -> Option<Expected> {
    given.iter().position(wanted).map(|place| given.remove(place))
}

/// How many of these `TcpOutRsts` counts: netfilter's own resets are not among them.
fn sent_by_tcp(resets: &[Expected]) -> u64 {
    resets
        .iter()
        .filter(|(direction, cause)| *direction == Direction::Transmit && *cause != Cause::FirewallReject)
        .count() as u64
}

/// Resets by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Seen, with the right cause.
    pub right: usize,
    /// Seen with another cause, or seen though nothing was made.
    pub wrong: usize,
    /// Made and not seen.
    pub missed: usize,
    /// Not made.
    pub not_made: usize,
}

impl Outcome {
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut outcome = Self::default();
        for row in rows {
            *match row.verdict {
                Verdict::Right => &mut outcome.right,
                Verdict::Wrong(_) | Verdict::Invented => &mut outcome.wrong,
                Verdict::Missed => &mut outcome.missed,
                Verdict::NotMade(_) => &mut outcome.not_made,
            } += 1;
        }
        outcome
    }

    /// Whether every reset that was made was seen with the right cause, and some were made.
    pub fn is_success(self) -> bool {
        self.wrong == 0 && self.missed == 0 && self.right > 0
    }
}

/// The rows as an aligned table, a line each, and a last line that counts them.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let made = rows.iter().map(|row| row.made.chars().count()).max().unwrap_or(0);
    push_row(&mut out, made, ["MADE", "DIRECTION", "SEEN", "CAUSE EXPECTED", "CAUSE GIVEN", ""]);
    for row in rows {
        let expected = row.cause.word();
        let (seen, expected, given, note) = match &row.verdict {
            Verdict::Right => ("yes", expected, expected, ""),
            Verdict::Wrong(given) => ("yes", expected, given.word(), "WRONG"),
            Verdict::Missed => ("no", expected, "-", "MISSED"),
            Verdict::Invented => ("yes", "-", expected, "NOT EXPECTED"),
            Verdict::NotMade(why) => ("-", expected, "-", why.as_str()),
        };
        let note =
            if matches!(row.verdict, Verdict::NotMade(_)) { format!("not made: {note}") } else { note.to_owned() };
        push_row(&mut out, made, [&row.made, row.direction.word(), seen, expected, given, &note]);
    }
    let Outcome { right, wrong, missed, not_made } = Outcome::of(rows);
    push_line(
        &mut out,
        format_args!("\n{right} seen with the right cause, {wrong} wrong, {missed} missed, {not_made} not made"),
    );
    out
}

fn push_row(out: &mut String, made: usize, cells: [&str; 6]) {
    let [what, direction, seen, expected, given, note] = cells;
    let line = format!("{what:made$}  {direction:9}  {seen:4}  {expected:23}  {given:23}  {note}");
    push_line(out, format_args!("{}", line.trim_end()));
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // A String takes whatever is written.
    writeln!(out, "{line}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::demo::scenario::{Act, Family};
    use Direction::{Receive, Transmit};

    const REFUSED: Scenario = Scenario {
        made: "connect",
        family: Family::V4,
        expected: &[(Transmit, Cause::PortClosed), (Receive, Cause::RefusedByPeer)],
        act: Act::CannotMake("a test makes none"),
    };

    fn verdicts(given: &[Expected], counted: Option<u64>, failure: Option<&str>) -> Vec<(Direction, Verdict)> {
        let observed = Observed { given: given.to_vec(), counted, failure: failure.map(str::to_owned) };
        judge(&REFUSED, &observed).into_iter().map(|row| (row.direction, row.verdict)).collect()
    }

    #[test]
    fn judges_what_was_seen_against_what_was_made() {
        let (sent, received) = REFUSED.expected.split_first().map(|(first, rest)| (*first, rest[0])).expect("two");
        let not_made = |why: &str| Verdict::NotMade(why.to_owned());
        for (given, counted, failure, expected) in [
            (vec![received, sent], Some(1), None, vec![(Transmit, Verdict::Right), (Receive, Verdict::Right)]),
            (vec![received], Some(1), None, vec![(Transmit, Verdict::Missed), (Receive, Verdict::Right)]),
            (vec![], Some(1), None, vec![(Transmit, Verdict::Missed), (Receive, Verdict::Missed)]),
            (
                vec![],
                Some(0),
                None,
                vec![(Transmit, not_made("the kernel sent no reset")), (Receive, not_made("the kernel sent no reset"))],
            ),
            (vec![], Some(0), Some("no port"), vec![(Transmit, not_made("no port")), (Receive, not_made("no port"))]),
            // It says that it failed, but the kernel did send.
            (vec![], Some(1), Some("no answer"), vec![(Transmit, Verdict::Missed), (Receive, Verdict::Missed)]),
            (
                vec![(Transmit, Cause::UnknownConnection), received],
                Some(1),
                None,
                vec![(Transmit, Verdict::Wrong(Cause::UnknownConnection)), (Receive, Verdict::Right)],
            ),
            (
                vec![sent, sent, received],
                Some(2),
                None,
                vec![(Transmit, Verdict::Right), (Transmit, Verdict::Invented), (Receive, Verdict::Right)],
            ),
            // Two went out, one was expected and seen: the other is missed.
            (
                vec![sent, received],
                Some(2),
                None,
                vec![(Transmit, Verdict::Right), (Transmit, Verdict::Missed), (Receive, Verdict::Right)],
            ),
            (vec![sent, received], None, None, vec![(Transmit, Verdict::Right), (Receive, Verdict::Right)]),
        ] {
            assert_eq!(verdicts(&given, counted, failure), expected, "{given:?} {counted:?} {failure:?}");
        }
    }

    #[test]
    fn succeeds_only_when_something_was_seen_and_nothing_wrong_or_missed() {
        let right = Outcome { right: 1, ..Outcome::default() };
        assert!(right.is_success());
        assert!(Outcome { not_made: 1, ..right }.is_success());
        assert!(!Outcome { wrong: 1, ..right }.is_success());
        assert!(!Outcome { missed: 1, ..right }.is_success());
        assert!(!Outcome { not_made: 3, ..Outcome::default() }.is_success());
    }

    #[test]
    fn the_table_says_it_all() {
        let observed = Observed { given: vec![(Transmit, Cause::UnknownConnection)], counted: Some(1), failure: None };
        let rows = judge(&REFUSED, &observed);
        assert_eq!(
            table(&rows),
            "MADE           DIRECTION  SEEN  CAUSE EXPECTED           CAUSE GIVEN\n\
             connect, IPv4  transmit   yes   port_closed              unknown_connection       WRONG\n\
             connect, IPv4  receive    no    refused_by_peer          -                        MISSED\n\
             \n0 seen with the right cause, 1 wrong, 1 missed, 0 not made\n"
        );
    }
}
