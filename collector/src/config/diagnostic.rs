//! A mistake in a file: where it is, what is wrong, what is allowed; shown with the line itself.
//!
//! Values of headers are never shown, whatever is wrong with the file.

use std::{fmt, ops::Range};

/// Maximum number of diagnostics per file; further ones are only counted.
const MAX_KEPT: usize = 50;
/// Maximum number of characters shown of a line.
const MAX_LINE: usize = 160;

/// A part of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlPos {
    bytes: Range<usize>,
    line: usize,
}

impl YamlPos {
    /// The bytes, and the line on which they begin, counted from 1.
    pub(super) fn new(bytes: Range<usize>, line: usize) -> Self {
        Self { bytes, line }
    }

    pub(super) fn line(&self) -> usize {
        self.line
    }
}

/// A mistake, before it is known how to show it.
#[derive(Clone, Debug)]
pub(super) struct RawDiagnostic {
    place: YamlPos,
    path: String,
    message: String,
    allowed: Option<String>,
    is_warning: bool,
}

impl RawDiagnostic {
    pub(super) fn error(place: YamlPos, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place, path: path.into(), message: message.into(), allowed: None, is_warning: false }
    }

    pub(super) fn warning(place: YamlPos, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::error(place, path, message) }
    }

    pub(super) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }
}

/// The problems of a file: as many as anybody reads, and how many more there are.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    kept: Vec<RawDiagnostic>,
    left_out: usize,
    errors: usize,
}

impl Diagnostics {
    /// Errors, without the warnings.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    pub(super) fn push(&mut self, problem: RawDiagnostic) {
        self.errors += usize::from(!problem.is_warning);
        if self.kept.len() < MAX_KEPT {
            return self.kept.push(problem);
        }
        self.left_out += 1;
        // No number of warnings hides an error.
        if let (false, Some(warning)) = (problem.is_warning, self.kept.iter_mut().rfind(|kept| kept.is_warning)) {
            *warning = problem;
        }
    }
}

/// An error in a configuration file, or a warning.
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
    /// The line, with secrets masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Column of the caret in `text`, counted from 0, and its width in characters.
    #[serde(skip)]
    caret: usize,
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
            caret: 0,
            width: 0,
        }
    }
}

impl Diagnostic {
    /// The same at a key of the configuration.
    pub(super) fn at_key(self, path: String) -> Self {
        Self { path, ..self }
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
        if let Some(text) = &self.text {
            writeln!(formatter, "{number} | {text}")?;
            writeln!(formatter, "{:margin$} | {:caret$}{}", "", "", "^".repeat(self.width), caret = self.caret)?;
        }
        match &self.allowed {
            Some(allowed) => writeln!(formatter, "{:margin$} = help: {allowed}", ""),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a file; warnings with it. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(diagnostics, *left_out))]
pub struct ConfigErrors {
    /// In the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// How many more there are.
    pub left_out: usize,
}

impl From<Diagnostic> for ConfigErrors {
    fn from(diagnostic: Diagnostic) -> Self {
        Self { diagnostics: vec![diagnostic], left_out: 0 }
    }
}

fn shown(diagnostics: &[Diagnostic], left_out: usize) -> String {
    let mut shown: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
    if left_out > 0 {
        shown.push(format!("and {left_out} more"));
    }
    shown.join("\n").trim_end().to_owned()
}

/// The problems as they are shown, in the order of the file: the errors, or where there is none the warnings.
pub(super) fn diagnostics(text: &str, file: &str, problems: Diagnostics) -> Result<Vec<Diagnostic>, ConfigErrors> {
    let Diagnostics { kept: mut problems, left_out, .. } = problems;
    if problems.is_empty() {
        return Ok(Vec::new());
    }
    problems.sort_by_key(|problem| problem.place.bytes.start);
    let is_valid = problems.iter().all(|problem| problem.is_warning);
    let secrets = secret_ranges(text);
    let diagnostics = problems.into_iter().map(|problem| located_in(text, file, problem, &secrets)).collect();
    if is_valid { Ok(diagnostics) } else { Err(ConfigErrors { diagnostics, left_out }) }
}

/// One problem with its line.
pub(super) fn located(text: &str, file: &str, problem: RawDiagnostic) -> Diagnostic {
    located_in(text, file, problem, &secret_ranges(text))
}

fn located_in(text: &str, file: &str, problem: RawDiagnostic, secrets: &[Range<usize>]) -> Diagnostic {
    let start = text.floor_char_boundary(problem.place.bytes.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let end = text.floor_char_boundary(problem.place.bytes.end).clamp(start, line_end);
    let shown = SourceLine::new(text, line_start..line_end, start..end, secrets);
    Diagnostic {
        severity: if problem.is_warning { Severity::Warning } else { Severity::Error },
        file: file.to_owned(),
        line: Some(problem.place.line),
        column: Some(shown.column),
        path: problem.path,
        message: problem.message,
        allowed: problem.allowed,
        text: Some(shown.text),
        caret: shown.caret,
        width: shown.width,
    }
}

struct SourceLine {
    text: String,
    column: usize,
    caret: usize,
    width: usize,
}

impl SourceLine {
    /// A line with its secrets masked, character for character; of a long line, the part around what is meant.
    fn new(text: &str, line: Range<usize>, meant: Range<usize>, secrets: &[Range<usize>]) -> Self {
        /// Characters before what is meant in a long line.
        const BEFORE: usize = 40;
        const CUT: &str = "... ";
        let column = 1 + text[line.start..meant.start].chars().count();
        // A secret ends with its line, so the secrets of this line are adjacent.
        let first = secrets.partition_point(|secret| secret.start < line.start);
        let secrets = &secrets[first..first + secrets[first..].partition_point(|secret| secret.start < line.end)];
        let is_secret = |offset: usize| secrets.iter().any(|secret| secret.contains(&offset));
        let skipped = if column > MAX_LINE { column - 1 - BEFORE } else { 0 };
        let mut rest = text[line.clone()].char_indices().skip(skipped);
        let part = rest.by_ref().take(MAX_LINE).map(|(offset, character)| match character {
            _ if is_secret(line.start + offset) && !character.is_whitespace() => '*',
            '\t' | '\r' => ' ',
            character if character.is_control() => '\u{fffd}',
            character => character,
        });
        let part: String = part.collect();
        let before = if skipped > 0 { CUT } else { "" };
        let after = if rest.next().is_some() { " ..." } else { "" };
        let caret = before.len() + column - 1 - skipped;
        let width =
            text[meant].trim_end().chars().count().clamp(1, MAX_LINE - (column - 1 - skipped).min(MAX_LINE - 1));
        Self { text: format!("{before}{}{after}", part.trim_end()), column, caret, width }
    }
}

/// The parts of a file that may be secrets: everything below `headers`, after a key that sounds like a secret, and before
/// the `@` of a URL. Found in the text instead of the tree, since a file that is not YAML has secrets too; so it masks
/// rather too much than too little.
fn secret_ranges(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut under_headers: Option<usize> = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_start_matches([' ', '-']);
        let indent = line.len() - content.len();
        let is_outside = !content.trim().is_empty() && !content.starts_with(['}', '#']);
        under_headers = under_headers.filter(|headers| indent > *headers || !is_outside);
        let secret_from = match headers_key(line) {
            Some(after_key) => {
                under_headers = under_headers.or(Some(indent));
                Some(after_key)
            }
            None if under_headers.is_some() => Some(line.find(':').map_or(indent, |colon| colon + 1)),
            None => secret_key(line),
        };
        ranges.extend(secret_from.map(|from| start + from..start + line.len()));
        ranges.extend(user_of_url(line).map(|user| start + user.start..start + user.end));
        start += line.len();
    }
    ranges
}

/// Where the value of a key that sounds like a secret begins in a line.
fn secret_key(line: &str) -> Option<usize> {
    const WORDS: &[&str] = &["authorization", "token", "password", "secret", "api-key", "api_key", "apikey"];
    let lower = line.to_ascii_lowercase();
    let after_key = |at: usize| {
        let key = lower[at..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
        let colon = key.trim_start_matches(['"', '\'']).trim_start().strip_prefix(':')?;
        // `${env:SECRET:-x}` is not a key: the colon of a key is followed by a space.
        (colon.is_empty() || colon.starts_with([' ', '\t', '\n', '\r', '"'])).then_some(line.len() - colon.len())
    };
    let keys = WORDS.iter().flat_map(|word| lower.match_indices(word)).filter_map(|(at, _)| after_key(at));
    keys.chain(lower.find("bearer ").map(|at| at + "bearer ".len())).min()
}

/// The user and password of a URL in a line.
fn user_of_url(line: &str) -> Option<Range<usize>> {
    let start = line.find("://")? + "://".len();
    let end =
        line[start..].find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'')).unwrap_or(line.len() - start);
    line[start..start + end].rfind('@').map(|at| start..start + at)
}

/// Where what follows the key `headers` begins in a line.
fn headers_key(line: &str) -> Option<usize> {
    const KEY: &str = "headers";
    let lower = line.to_ascii_lowercase();
    lower.match_indices(KEY).map(|(at, _)| at).find_map(|at| {
        let before = line[..at].chars().next_back();
        let after = line[at + KEY.len()..].trim_start_matches(['"', '\'']).trim_start().strip_prefix(':')?;
        let is_key = !before.is_some_and(|before| before.is_alphanumeric() || before == '_');
        is_key.then_some(line.len() - after.len())
    })
}

#[cfg(test)]
mod tests {
    use super::secret_ranges;

    #[test]
    fn secrets_are_masked_and_nothing_else() {
        let cases = [
            ("headers: { authorization: abc }", "headers: * ************** *** *"),
            (
                "headers:\n  x: abc\n  \"y\":\n    abc\ntimeout: 1s",
                "headers:\n  x: ***\n  \"y\":\n    ***\ntimeout: 1s",
            ),
            ("- headers:\n    x: abc\n  timeout: 1s", "- headers:\n    x: ***\n  timeout: 1s"),
            ("http_headers: { ports: [80] }", "http_headers: { ports: [80] }"),
            ("endpoint: ${env:SECRET:-x}", "endpoint: ${env:SECRET:-x}"),
            ("endpoint: https://user:pass@host:1/", "endpoint: https://*********@host:1/"),
            ("x-api-key: abc", "x-api-key: ***"),
            ("- Bearer abc", "- Bearer ***"),
            ("{\"api_key\":\"abc\"}", "{\"api_key\":******"),
        ];
        for (text, expected) in cases {
            let secrets = secret_ranges(text);
            let mask = |(at, c): (usize, char)| {
                if secrets.iter().any(|secret| secret.contains(&at)) && !c.is_whitespace() { '*' } else { c }
            };
            assert_eq!(text.char_indices().map(mask).collect::<String>(), expected);
        }
    }
}
