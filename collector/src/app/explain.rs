//! `explain [CAUSE|REASON]`: what a cause or a kernel's reason means, as text.

use std::fmt::Write;

use crate::model::{
    Cause,
    cause::{self, EXPLANATIONS, Explanation},
    reason::{self, REASONS, Reason},
};

/// A topic that is neither a cause nor a reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{topic}` is neither a cause nor a kernel's reason{}; `reset-collector explain` lists them", nearest_text(.nearest))]
pub struct UnknownTopic {
    /// The requested topic, control characters escaped.
    pub topic: String,
    /// The names most like it, the best first; none where none is like it.
    pub nearest: Vec<&'static str>,
}

fn nearest_text(nearest: &[&str]) -> String {
    if nearest.is_empty() { String::new() } else { format!(". Did you mean {}?", nearest.join(", ")) }
}

/// The explanation of a cause (`port_closed`) or of a kernel's reason (`TCP_STATE`, with its enum's prefix or without),
/// in any case; without a topic, the list of both.
///
/// # Errors
/// A topic that is neither.
pub fn explain(topic: Option<&str>) -> Result<String, UnknownTopic> {
    let Some(topic) = topic else { return Ok(list()) };
    let topic = topic.trim();
    let word = topic.to_ascii_lowercase().replace('-', "_");
    let mut out = String::new();
    if let Some(cause) = Cause::from_word(&word) {
        write_cause(&mut out, cause::explanation(cause));
    }
    for reason in reason::find(&word) {
        if !out.is_empty() {
            out.push('\n');
        }
        write_reason(&mut out, reason);
    }
    if out.is_empty() {
        return Err(UnknownTopic { topic: topic.escape_debug().to_string(), nearest: nearest(&word) });
    }
    Ok(out)
}

fn list() -> String {
    let mut out = String::from("Causes (tcp.reset.cause):\n");
    for explanation in EXPLANATIONS {
        push_row(&mut out, explanation.cause.word(), explanation.meaning);
    }
    out.push_str("\nThe kernel's reasons (tcp.reset.reason):\n");
    for reason in REASONS {
        push_row(&mut out, reason.name, reason.meaning);
    }
    out.push_str("\n`reset-collector explain NAME` tells more of each.\n");
    out
}

/// A name and the first sentence of its meaning.
fn push_row(out: &mut String, name: &str, meaning: &str) {
    let first = meaning.split_once(". ").map_or(meaning, |(first, _)| first).trim_end_matches('.');
    push(out, format_args!("  {name:26} {first}\n"));
}

fn write_cause(out: &mut String, explanation: &Explanation) {
    push(out, format_args!("{} ({})\n", explanation.cause.word(), explanation.severity.word()));
    push_section(out, "what", explanation.meaning);
    push_section(out, "kernel", explanation.kernel);
    push_section(out, "standard", explanation.standard);
    push_section(out, "fix", explanation.fix);
}

fn write_reason(out: &mut String, reason: &Reason) {
    push(out, format_args!("{}{}\n", reason.list.prefix(), reason.name));
    push_section(out, "what", reason.meaning);
    push_section(out, "kernel", reason.kernel);
    push_section(out, "cause", reason.causes);
}

/// A titled paragraph, wrapped.
fn push_section(out: &mut String, title: &str, text: &str) {
    const WIDTH: usize = 88;
    let mut column = WIDTH;
    let mut title = title;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column + 1 + length > WIDTH {
            out.truncate(out.trim_end_matches(' ').len());
            if !out.ends_with('\n') {
                out.push('\n');
            }
            push(out, format_args!("  {title:9} "));
            title = "";
            column = 0;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}

/// Formats into a string, which takes whatever it is given.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    if out.write_fmt(arguments).is_err() {
        out.push('?');
    }
}

/// The three names most like a word: those that hold it, and those within a few edits.
fn nearest(word: &str) -> Vec<&'static str> {
    const MAX_NAMES: usize = 3;
    /// Longer topics are not compared: the cost is the product of the lengths.
    const MAX_TOPIC_BYTES: usize = 64;
    if word.is_empty() || word.len() > MAX_TOPIC_BYTES {
        return Vec::new();
    }
    let names = EXPLANATIONS.iter().map(|explanation| explanation.cause.word());
    let mut ranked: Vec<_> = names
        .chain(REASONS.iter().map(|reason| reason.name))
        .map(|name| (distance(word, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().take(MAX_NAMES).map(|(_, name)| name).collect()
}

/// Edits between two words (Levenshtein); 1 where one holds the other.
fn distance(word: &str, name: &str) -> usize {
    const MIN_PART: usize = 4;
    if name.contains(word) && word.len() >= MIN_PART || word.contains(name) {
        return 1;
    }
    strsim::levenshtein(word, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_and_every_reason_is_explained_and_listed() {
        let list = explain(None).unwrap();
        for cause in Cause::ALL {
            let text = explain(Some(cause.word())).unwrap();
            assert!(text.starts_with(cause.word()), "{text}");
            for title in ["what", "kernel", "standard", "fix"] {
                assert!(text.contains(&format!("\n  {title} ")), "{title} of {text}");
            }
            assert!(list.contains(&format!("\n  {} ", cause.word())));
        }
        for reason in REASONS {
            let full = format!("{}{}", reason.list.prefix(), reason.name);
            assert!(explain(Some(&full)).unwrap().starts_with(&full));
            assert!(list.contains(&format!("\n  {} ", reason.name)));
        }
        assert!(list.lines().count() == EXPLANATIONS.len() + REASONS.len() + 5);
    }

    #[test]
    fn any_case_and_hyphens() {
        assert_eq!(explain(Some("Port-Closed")), explain(Some("port_closed")));
        assert_eq!(explain(Some(" sk_rst_reason_tcp_state")), explain(Some("TCP_STATE")));
    }

    #[test]
    fn lines_are_no_wider_than_a_terminal() {
        for cause in Cause::ALL {
            for line in explain(Some(cause.word())).unwrap().lines() {
                assert!(line.chars().count() <= 100 && line.trim_end() == line, "{line:?}");
            }
        }
    }

    #[test]
    fn an_unknown_topic_names_the_nearest() {
        let table = [
            ("port_close", vec!["port_closed"]),
            ("linger", vec!["TCP_ABORT_ON_LINGER", "linger_zero"]),
            ("xyzzy", vec![]),
            ("", vec![]),
        ];
        for (topic, nearest) in table {
            assert_eq!(explain(Some(topic)).unwrap_err().nearest, nearest, "{topic}");
        }
        assert_eq!(
            explain(Some("port_close")).unwrap_err().to_string(),
            "`port_close` is neither a cause nor a kernel's reason. Did you mean port_closed?; `reset-collector explain` \
             lists them"
        );
        assert!(explain(Some("\x1b[31m")).unwrap_err().to_string().contains("\\u{1b}"));
        assert!(explain(Some(&"a".repeat(100_000))).is_err());
    }
}
