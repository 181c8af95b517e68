//! A mistake in a file: where it is, what is wrong, what is allowed; shown with the line itself.
//!
//! Values of headers are never shown, whatever is wrong with the file.

use std::{fmt, ops::Range};

/// Problems that are shown of one file at most.
const MAX_SHOWN: usize = 50;
/// Characters of a line that are shown at most.
const MAX_LINE: usize = 160;

/// Bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    bytes: Range<usize>,
}

impl Place {
    pub(super) fn new(bytes: Range<usize>) -> Self {
        Self { bytes }
    }

    /// Counted from 1. Cost grows with the place: for errors only.
    pub(super) fn line(&self, text: &str) -> usize {
        1 + text.as_bytes().iter().take(self.bytes.start).filter(|byte| **byte == b'\n').count()
    }
}

/// A mistake, before it is known how to show it.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    place: Place,
    path: String,
    message: String,
    allowed: Option<String>,
    is_warning: bool,
}

impl Problem {
    pub(super) fn error(place: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place, path: path.into(), message: message.into(), allowed: None, is_warning: false }
    }

    pub(super) fn warning(place: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::error(place, path, message) }
    }

    pub(super) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }
}

/// A mistake in a configuration file, or a doubt about it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// `error`, or `warning`: the file is valid, but may not mean what was meant.
    pub severity: Severity,
    /// The file, as it was named.
    pub file: String,
    /// The line, counted from 1; `None` where the whole file is meant.
    pub line: Option<usize>,
    /// The column in characters, counted from 1.
    pub column: Option<usize>,
    /// The key, as `export.otlp.timeout`; empty where it is the YAML itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub allowed: Option<String>,
    /// The line itself, with secrets taken out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How many characters of the line are meant, from the column on.
    #[serde(skip)]
    width: usize,
}

/// Whether a file can be used in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can.
    Warning,
}

impl Diagnostic {
    /// An error about a file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>, allowed: &str) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: None,
            column: None,
            path: String::new(),
            message: message.into(),
            allowed: Some(allowed.to_owned()),
            text: None,
            width: 0,
        }
    }
}

impl fmt::Display for Diagnostic {
    /// Several lines: what, where, the line itself with a caret, what is allowed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        match self.path.as_str() {
            "" => writeln!(formatter, "{severity}: {}", self.message)?,
            path => writeln!(formatter, "{severity}: {path}: {}", self.message)?,
        }
        let number = self.line.map(|line| line.to_string()).unwrap_or_default();
        let margin = number.len();
        match (self.line, self.column) {
            (Some(line), Some(column)) => writeln!(formatter, "{:margin$}--> {}:{line}:{column}", "", self.file)?,
            _ => writeln!(formatter, "{:margin$}--> {}", "", self.file)?,
        }
        if let (Some(text), Some(column)) = (&self.text, self.column) {
            writeln!(formatter, "{number} | {text}")?;
            writeln!(formatter, "{:margin$} | {:indent$}{}", "", "", "^".repeat(self.width), indent = column - 1)?;
        }
        match &self.allowed {
            Some(allowed) => writeln!(formatter, "{:margin$} = help: {allowed}", ""),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a file; warnings with it. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(diagnostics))]
pub struct ConfigErrors {
    /// In the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

fn shown(diagnostics: &[Diagnostic]) -> String {
    let mut shown: Vec<_> = diagnostics.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
    if diagnostics.len() > MAX_SHOWN {
        shown.push(format!("and {} more", diagnostics.len() - MAX_SHOWN));
    }
    shown.join("\n").trim_end().to_owned()
}

/// The problems as they are shown, in the order of the file.
pub(super) fn diagnostics(text: &str, file: &str, mut problems: Vec<Problem>) -> Vec<Diagnostic> {
    problems.sort_by_key(|problem| problem.place.bytes.start);
    let secrets = secret_ranges(text);
    // Lines are counted on from problem to problem, so that many problems cost no more than one.
    let (mut line, mut counted) = (1, 0);
    problems
        .into_iter()
        .map(|problem| {
            let start = floor_boundary(text, problem.place.bytes.start);
            line += text[counted..start].matches('\n').count();
            counted = start;
            let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
            let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
            let end = floor_boundary(text, problem.place.bytes.end).clamp(start, line_end);
            let shown = ShownLine::new(text, line_start..line_end, start..end, &secrets);
            Diagnostic {
                severity: if problem.is_warning { Severity::Warning } else { Severity::Error },
                file: file.to_owned(),
                line: Some(line),
                column: Some(shown.column),
                path: problem.path,
                message: problem.message,
                allowed: problem.allowed,
                text: Some(shown.text),
                width: shown.width,
            }
        })
        .collect()
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset)
}

struct ShownLine {
    text: String,
    column: usize,
    width: usize,
}

impl ShownLine {
    /// A line with its secrets masked, character for character, and what is too long cut off.
    fn new(text: &str, line: Range<usize>, meant: Range<usize>, secrets: &[Range<usize>]) -> Self {
        let column = 1 + text[line.start..meant.start].chars().count();
        let width = text[meant].trim_end().chars().count().max(1);
        let is_secret = |offset: usize| secrets.iter().any(|secret| secret.contains(&offset));
        let mut shown: String = text[line.clone()]
            .char_indices()
            .map(|(offset, character)| match character {
                _ if is_secret(line.start + offset) && !character.is_whitespace() => '*',
                '\t' | '\r' => ' ',
                character if character.is_control() => '\u{fffd}',
                character => character,
            })
            .take(MAX_LINE.max(column))
            .collect();
        shown.truncate(shown.trim_end().len());
        if text[line].chars().count() > MAX_LINE.max(column) {
            shown.push_str(" ...");
        }
        Self { text: shown, column, width: width.min(MAX_LINE) }
    }
}

/// The parts of a file that may be secrets: what stands under `headers`, and after any key that sounds like one. Found in
/// the text and not in the tree, since a file that is no YAML has secrets too; so rather too much than too little.
fn secret_ranges(text: &str) -> Vec<Range<usize>> {
    const WORDS: &[&str] = &["authorization", "token", "password", "secret", "api-key", "api_key", "apikey", "bearer"];
    let mut ranges = Vec::new();
    let mut under_headers: Option<usize> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let lower = line.to_ascii_lowercase();
        let content = line.trim_start_matches([' ', '-']);
        let indent = line.len() - content.len();
        if under_headers
            .is_some_and(|headers| indent <= headers && !content.trim().is_empty() && !content.starts_with(['}', '#']))
        {
            under_headers = None;
        }
        let headers = headers_key(&lower);
        if let Some(at) = headers {
            ranges.push(start + at + "headers".len()..start + line.len());
            under_headers = under_headers.or(Some(indent));
        } else if under_headers.is_some() {
            ranges.push(start + value_offset(line, indent)..start + line.len());
        } else if let Some(at) = WORDS.iter().filter_map(|word| lower.find(word)).min() {
            ranges.push(start + at + value_offset(&line[at..], 0)..start + line.len());
        }
        start += line.len();
    }
    ranges
}

/// Where the key `headers` stands in a line in small letters.
fn headers_key(line: &str) -> Option<usize> {
    const KEY: &str = "headers";
    line.match_indices(KEY).map(|(at, _)| at).find(|at| {
        let before = line[..*at].chars().next_back();
        let after = line[at + KEY.len()..].trim_start_matches(['"', '\'']).trim_start();
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_') && after.starts_with(':')
    })
}

/// Where the value of a line begins: after its first `:`, else where it is indented to.
fn value_offset(line: &str, indent: usize) -> usize {
    line.find(':').map_or(indent.min(line.len()), |colon| colon + 1)
}
