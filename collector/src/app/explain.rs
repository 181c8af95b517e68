//! `explain [TOPIC]`: what a cause, a kernel's reason, an application's error, an attribute or a drop reason means, as
//! text.

use std::fmt::Write;

use crate::{
    account::DropReason,
    model::{
        Cause,
        attribute::{Attribute, DESCRIPTION, DESCRIPTION_MEANING},
        cause::{self, EXPLANATIONS, Explanation},
        reason::{self, REASONS, Reason},
    },
};

/// A topic that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown topic `{topic}`: not a cause, a kernel's reason, an error, an attribute or a drop reason{}; \
     `reset-collector explain` lists them",
    nearest_text(.nearest)
)]
pub struct UnknownTopic {
    /// The requested topic, control characters escaped.
    pub topic: String,
    /// The most similar names, the best first; none if none is similar.
    pub nearest: Vec<&'static str>,
}

fn nearest_text(nearest: &[&str]) -> String {
    if nearest.is_empty() { String::new() } else { format!(". Did you mean {}?", nearest.join(", ")) }
}

/// An error that applications report, as people have it in their logs.
struct ErrorText {
    /// Its name in C.
    name: &'static str,
    /// What else it is called, in lower case: a topic that contains one of these means this error.
    texts: &'static [&'static str],
    meaning: &'static str,
    /// What to look for in this host's resets, and in the other host's.
    causes: &'static str,
}

const ERRORS: &[ErrorText] = &[
    ErrorText {
        name: "ECONNRESET",
        texts: &["reset by peer", "connection_reset", "connection reset", "socket hang up"],
        meaning: "A read or write failed because the connection was reset: the peer, a device between, or this host's \
                  kernel ended it.",
        causes: "Here reset_by_peer, socket_destroyed or out_of_memory. At the other end the cause: mostly data_after_close \
                 (it had closed an idle connection), closed_with_unread_data, process_killed, process_exited, linger_zero, \
                 unknown_connection.",
    },
    ErrorText {
        name: "ECONNREFUSED",
        texts: &["connection refused", "connection_refused", "actively refused"],
        meaning: "connect() failed: a reset or an ICMP message answered the SYN.",
        causes: "Here refused_by_peer. At the other end port_closed, firewall_reject or accept_queue_overflow. Without any \
                 reset it was an ICMP message: a firewall's reject with icmp-port-unreachable, as kube-proxy's for a \
                 service without endpoints.",
    },
    ErrorText {
        name: "EPIPE",
        texts: &["broken pipe", "sigpipe"],
        meaning: "A write failed because the connection is closed for sending: a reset arrived after the peer's FIN, or \
                  before this write, or the program itself had shut down.",
        causes: "Here reset_by_peer in state close_wait, or an earlier reset of the same connection. At the other end \
                 data_after_close or closed_with_unread_data.",
    },
    ErrorText {
        name: "ETIMEDOUT",
        texts: &["timed out", "timed_out"],
        meaning: "The peer did not answer: a connect(), a keepalive probe or data stayed without an acknowledgement.",
        causes: "Here keepalive_timeout or user_timeout. A connect() or a retransmission that times out sends no reset, and \
                 so has no record. Later segments of the peer are then answered as unknown_connection.",
    },
    ErrorText {
        name: "ECONNABORTED",
        texts: &["software caused connection abort", "connection aborted", "connection_aborted"],
        meaning: "The connection was aborted on this host: destroyed from outside, or reset before accept() returned it.",
        causes: "Here socket_destroyed, or reset_by_peer in state syn_received.",
    },
];

/// The explanation of a topic in any case, hyphens or spaces for underscores; without a topic, the list of all.
///
/// # Errors
/// An unknown topic.
pub fn explain(topic: Option<&str>) -> Result<String, UnknownTopic> {
    let Some(topic) = topic else { return Ok(list()) };
    let topic = topic.trim();
    let lower = topic.to_ascii_lowercase();
    let word = lower.replace(['-', ' '], "_");
    let mut parts = Vec::new();
    parts.extend(Cause::from_word(&word).map(|cause| cause_text(cause::explanation(cause))));
    parts.extend(reason::find(&word).map(reason_text));
    parts.extend(DropReason::ALL.iter().filter(|reason| reason.name() == word).map(|reason| drop_reason_text(*reason)));
    let attribute = Attribute::ALL.iter().map(|attribute| (attribute.name(), attribute.meaning()));
    let attribute = attribute.chain([(DESCRIPTION, DESCRIPTION_MEANING)]).find(|(name, _)| *name == lower);
    parts.extend(attribute.map(|(name, meaning)| attribute_text(name, meaning)));
    if parts.is_empty() {
        let is_meant = |error: &&ErrorText| {
            error.name.eq_ignore_ascii_case(&word) || error.texts.iter().any(|text| lower.contains(text))
        };
        parts.extend(ERRORS.iter().find(is_meant).map(error_text));
    }
    if parts.is_empty() {
        return Err(UnknownTopic { topic: topic.escape_debug().to_string(), nearest: nearest(&word) });
    }
    Ok(parts.join("\n"))
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
    out.push_str("\nErrors that applications report:\n");
    for error in ERRORS {
        push_row(&mut out, error.name, error.meaning);
    }
    out.push_str("\nReasons for lost resets (reset_collector_dropped_resets_total):\n");
    for reason in DropReason::ALL {
        push_row(&mut out, reason.name(), reason.meaning());
    }
    out.push_str("\nAttributes:\n");
    for attribute in Attribute::ALL {
        push_row(&mut out, attribute.name(), attribute.meaning());
    }
    out.push_str("\n`reset-collector explain NAME` explains each in full.\n");
    out
}

/// A name and the first sentence of its meaning.
fn push_row(out: &mut String, name: &str, meaning: &str) {
    let first = meaning.split_once(". ").map_or(meaning, |(first, _)| first).trim_end_matches('.');
    push(out, format_args!("  {name:30} {first}\n"));
}

fn cause_text(explanation: &Explanation) -> String {
    let mut out = format!("{} ({})\n", explanation.cause.word(), explanation.severity.word());
    push_section(&mut out, "what", explanation.meaning);
    push_section(&mut out, "kernel", explanation.kernel);
    push_section(&mut out, "standard", explanation.standard);
    push_section(&mut out, "fix", explanation.fix);
    out
}

fn reason_text(reason: &Reason) -> String {
    let mut out = format!("{}{}\n", reason.list.prefix(), reason.name);
    push_section(&mut out, "what", reason.meaning);
    push_section(&mut out, "kernel", reason.kernel);
    push_section(&mut out, "cause", reason.causes);
    out
}

fn error_text(error: &ErrorText) -> String {
    let mut out = format!("{} (an error that applications report)\n", error.name);
    push_section(&mut out, "what", error.meaning);
    push_section(&mut out, "cause", error.causes);
    out
}

fn drop_reason_text(reason: DropReason) -> String {
    let mut out = format!("{} (a reason of reset_collector_dropped_resets_total)\n", reason.name());
    push_section(&mut out, "what", reason.meaning());
    out
}

fn attribute_text(name: &str, meaning: &str) -> String {
    let mut out = format!("{name} (an attribute)\n");
    push_section(&mut out, "what", meaning);
    out
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

/// The three names most similar to a word: those that contain it, and those within a few edits.
fn nearest(word: &str) -> Vec<&'static str> {
    const MAX_NAMES: usize = 3;
    /// Longer topics are not compared: the cost is the product of the lengths.
    const MAX_TOPIC_BYTES: usize = 64;
    if word.is_empty() || word.len() > MAX_TOPIC_BYTES {
        return Vec::new();
    }
    let causes = EXPLANATIONS.iter().map(|explanation| explanation.cause.word());
    let mut ranked: Vec<_> = causes
        .chain(REASONS.iter().map(|reason| reason.name))
        .chain(ERRORS.iter().map(|error| error.name))
        .chain(DropReason::ALL.iter().map(|reason| reason.name()))
        .chain(Attribute::ALL.iter().map(|attribute| attribute.name()))
        .map(|name| (distance(word, &name.to_ascii_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .collect();
    ranked.sort_unstable();
    ranked.dedup();
    ranked.into_iter().take(MAX_NAMES).map(|(_, name)| name).collect()
}

/// Edits between two words (Levenshtein); 1 if one contains the other.
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
        let attributes = Attribute::ALL.iter().map(|attribute| attribute.name());
        for name in attributes.chain(DropReason::ALL.iter().map(|reason| reason.name())) {
            let text = explain(Some(name)).unwrap();
            assert!(text.contains(&format!("{name} (a")), "{text}");
            assert!(list.contains(&format!("\n  {name} ")));
        }
        assert!(explain(Some(DESCRIPTION)).unwrap().starts_with(DESCRIPTION));
        assert!(
            explain(Some("process_killed")).unwrap().matches("process_killed (").count() == 2,
            "a cause and a loss"
        );
    }

    #[test]
    fn errors_as_people_have_them_are_explained() {
        let table = [
            ("ECONNRESET", "ECONNRESET", "reset_by_peer"),
            ("connection reset by peer", "ECONNRESET", "reset_by_peer"),
            ("read tcp 10.0.0.5:80->10.0.0.7:51514: read: connection reset by peer", "ECONNRESET", "data_after_close"),
            ("Error: socket hang up", "ECONNRESET", "reset_by_peer"),
            ("econnrefused", "ECONNREFUSED", "ICMP"),
            ("Connection refused", "ECONNREFUSED", "port_closed"),
            ("connection_refused", "ECONNREFUSED", "port_closed"),
            ("EPIPE", "EPIPE", "close_wait"),
            ("write: broken pipe", "EPIPE", "close_wait"),
            ("ETIMEDOUT", "ETIMEDOUT", "keepalive_timeout"),
            ("Connection timed out", "ETIMEDOUT", "keepalive_timeout"),
            ("ECONNABORTED", "ECONNABORTED", "socket_destroyed"),
        ];
        let list = explain(None).unwrap();
        for (topic, name, cause) in table {
            let text = explain(Some(topic)).unwrap();
            assert!(text.starts_with(name) && text.contains(cause), "{topic}: {text}");
            assert!(list.contains(&format!("\n  {name} ")));
        }
        for word in
            ERRORS.iter().flat_map(|error| error.causes.split([' ', ',', '.'])).filter(|word| word.contains('_'))
        {
            let is_known = Cause::from_word(word).is_some() || crate::model::State::from_word(word).is_some();
            assert!(is_known, "`{word}` is neither a cause nor a state");
        }
    }

    #[test]
    fn any_case_hyphens_and_spaces() {
        assert_eq!(explain(Some("Port-Closed")), explain(Some("port_closed")));
        assert_eq!(explain(Some("port closed")), explain(Some("port_closed")));
        assert_eq!(explain(Some(" sk_rst_reason_tcp_state")), explain(Some("TCP_STATE")));
    }

    #[test]
    fn lines_are_no_wider_than_a_terminal() {
        let errors = ERRORS.iter().map(|error| error.name);
        for topic in Cause::ALL.iter().map(|cause| cause.word()).chain(errors) {
            for line in explain(Some(topic)).unwrap().lines() {
                assert!(line.chars().count() <= 100 && line.trim_end() == line, "{line:?}");
            }
        }
    }

    #[test]
    fn an_unknown_topic_names_the_nearest() {
        let table = [
            ("port_close", vec!["port_closed"]),
            ("linger", vec!["TCP_ABORT_ON_LINGER", "linger_zero"]),
            ("ECONNRESTE", vec!["ECONNRESET"]),
            ("queue_ful", vec!["queue_full"]),
            ("xyzzy", vec![]),
            ("", vec![]),
        ];
        for (topic, nearest) in table {
            assert_eq!(explain(Some(topic)).unwrap_err().nearest.first(), nearest.first(), "{topic}");
        }
        assert!(explain(Some("port_close")).unwrap_err().to_string().contains("Did you mean port_closed?"));
        assert!(explain(Some("\x1b[31m")).unwrap_err().to_string().contains("\\u{1b}"));
        assert!(explain(Some(&"a".repeat(100_000))).is_err());
    }
}
