//! Patterns for text: `*` matches any characters, `?` one character, and `\` escapes the next one.
//!
//! Not regular expressions: a glob has bounded cost, and whether one covers another can be decided.

use std::fmt;

/// A glob, in the fastest of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    form: PatternKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PatternKind {
    /// No wildcard.
    Exact(String),
    /// `text*`; with an empty text, everything.
    Prefix(String),
    /// `*text`
    Suffix(String),
    /// `*text*`
    Contains(String),
    /// Anything else.
    Glob(Vec<GlobToken>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GlobToken {
    Character(char),
    One,
    Any,
}

impl Pattern {
    /// Parses a pattern. Every text is one; a `\` at its end is literal.
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            pieces.push(match character {
                '*' if pieces.last() == Some(&GlobToken::Any) => continue,
                '*' => GlobToken::Any,
                '?' => GlobToken::One,
                '\\' => GlobToken::Character(characters.next().unwrap_or('\\')),
                other => GlobToken::Character(other),
            });
        }
        Self { form: PatternKind::of(pieces) }
    }

    /// A pattern that matches this text only, whatever characters it has.
    pub fn exact(text: &str) -> Self {
        Self { form: PatternKind::Exact(text.to_owned()) }
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.form {
            PatternKind::Exact(exact) => text == exact,
            PatternKind::Prefix(prefix) => text.starts_with(prefix.as_str()),
            PatternKind::Suffix(suffix) => text.ends_with(suffix.as_str()),
            PatternKind::Contains(part) => text.contains(part.as_str()),
            PatternKind::Glob(pieces) => glob_matches(pieces, text),
        }
    }

    /// The text, where the pattern has no wildcard.
    pub fn as_exact(&self) -> Option<&str> {
        match &self.form {
            PatternKind::Exact(exact) => Some(exact),
            _ => None,
        }
    }

    /// Whether every text that `other` matches is matched by this one. May be a false negative, never the
    /// other way round.
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.form, &other.form) {
            (mine, theirs) if mine == theirs => true,
            (_, PatternKind::Exact(exact)) => self.matches(exact),
            (PatternKind::Prefix(mine), PatternKind::Prefix(theirs)) => theirs.starts_with(mine.as_str()),
            (PatternKind::Suffix(mine), PatternKind::Suffix(theirs)) => theirs.ends_with(mine.as_str()),
            (
                PatternKind::Contains(mine),
                PatternKind::Prefix(theirs) | PatternKind::Suffix(theirs) | PatternKind::Contains(theirs),
            ) => theirs.contains(mine.as_str()),
            (PatternKind::Prefix(mine), _) => mine.is_empty(),
            _ => false,
        }
    }

    /// Whether no text is matched by both. May be a false negative, never the other way round.
    pub fn excludes(&self, other: &Self) -> bool {
        match (&self.form, &other.form) {
            (PatternKind::Exact(exact), _) => !other.matches(exact),
            (_, PatternKind::Exact(exact)) => !self.matches(exact),
            (PatternKind::Prefix(mine), PatternKind::Prefix(theirs)) => {
                !mine.starts_with(theirs.as_str()) && !theirs.starts_with(mine.as_str())
            }
            (PatternKind::Suffix(mine), PatternKind::Suffix(theirs)) => {
                !mine.ends_with(theirs.as_str()) && !theirs.ends_with(mine.as_str())
            }
            _ => false,
        }
    }
}

impl PatternKind {
    fn of(pieces: Vec<GlobToken>) -> Self {
        let text = |pieces: &[GlobToken]| -> Option<String> {
            pieces.iter().map(|piece| if let GlobToken::Character(c) = piece { Some(*c) } else { None }).collect()
        };
        let form = match pieces.as_slice() {
            [GlobToken::Any] => Some(Self::Prefix(String::new())),
            [GlobToken::Any, middle @ .., GlobToken::Any] => text(middle).map(Self::Contains),
            [GlobToken::Any, rest @ ..] => text(rest).map(Self::Suffix),
            [rest @ .., GlobToken::Any] => text(rest).map(Self::Prefix),
            all => text(all).map(Self::Exact),
        };
        form.unwrap_or(Self::Glob(pieces))
    }
}

/// Linear in the text times the pattern at worst: only the last `*` is ever tried again.
fn glob_matches(pieces: &[GlobToken], text: &str) -> bool {
    let mut rest = text;
    let mut at = 0;
    let mut retry: Option<(usize, &str)> = None;
    loop {
        match (pieces.get(at), rest.chars().next()) {
            (None, None) => return true,
            (Some(GlobToken::Any), _) => {
                at += 1;
                retry = Some((at, rest));
                continue;
            }
            (Some(GlobToken::One), Some(character)) => rest = &rest[character.len_utf8()..],
            (Some(GlobToken::Character(wanted)), Some(character)) if *wanted == character => {
                rest = &rest[character.len_utf8()..];
            }
            _ => {
                let Some((after_star, from)) = retry else { return false };
                let Some(skipped) = from.chars().next() else { return false };
                rest = &from[skipped.len_utf8()..];
                retry = Some((after_star, rest));
                at = after_star;
                continue;
            }
        }
        at += 1;
    }
}

impl fmt::Display for Pattern {
    /// The glob as it would be written.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, text, after) = match &self.form {
            PatternKind::Exact(text) => ("", text, ""),
            PatternKind::Prefix(text) => ("", text, "*"),
            PatternKind::Suffix(text) => ("*", text, ""),
            PatternKind::Contains(text) => ("*", text, "*"),
            PatternKind::Glob(pieces) => {
                return pieces.iter().try_for_each(|piece| match piece {
                    GlobToken::Any => formatter.write_str("*"),
                    GlobToken::One => formatter.write_str("?"),
                    GlobToken::Character(character) => write_escaped(formatter, *character),
                });
            }
        };
        formatter.write_str(before)?;
        text.chars().try_for_each(|character| write_escaped(formatter, character))?;
        formatter.write_str(after)
    }
}

fn write_escaped(formatter: &mut fmt::Formatter<'_>, character: char) -> fmt::Result {
    if matches!(character, '*' | '?' | '\\') {
        formatter.write_str("\\")?;
    }
    write!(formatter, "{character}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Pattern;

    #[test]
    fn matches_whole_texts() {
        let cases = [
            ("checkout*", "checkout-7", true),
            ("checkout*", "checkout", true),
            ("checkout*", "a-checkout", false),
            ("*-eu", "shop-eu", true),
            ("*-eu", "shop-eu-1", false),
            ("*pay*", "the-payment", true),
            ("p?y", "pay", true),
            ("p?y", "py", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("*", "", true),
            ("", "", true),
            ("?", "é", true),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
            ("CHECKOUT", "checkout", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_hostile_glob_costs_little() {
        let pattern = Pattern::new(&"*a?".repeat(100));
        assert!(!pattern.matches(&"a".repeat(50)));
        assert!(pattern.matches(&"aa".repeat(4_000)));
    }

    proptest! {
        #[test]
        fn display_reads_back(text in "[ab*?\\\\]{0,6}") {
            let pattern = Pattern::new(&text);
            prop_assert_eq!(Pattern::new(&pattern.to_string()), pattern);
        }

        #[test]
        fn covers_and_excludes_are_never_wrong(mine in "[ab*?]{0,4}", theirs in "[ab*?]{0,4}", text in "[ab]{0,5}") {
            let (mine, theirs) = (Pattern::new(&mine), Pattern::new(&theirs));
            if mine.covers(&theirs) && theirs.matches(&text) {
                prop_assert!(mine.matches(&text));
            }
            if mine.excludes(&theirs) {
                prop_assert!(!(mine.matches(&text) && theirs.matches(&text)));
            }
        }
    }
}
