//! Variables of the environment in a scalar: `${env:NAME}`, `${env:NAME:-default}`, and `$$` for a `$`. In secrets also
//! files, by the OpenTelemetry Collector's name for them: `${file:/run/secrets/token}`.
//!
//! Done after the YAML is read, in the scalar's text alone: a value cannot become keys, lists or further variables.

use std::{borrow::Cow, fs::File, io::Read, path::Path};

/// Maximum size of a secret in a file.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Sources of values.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// Gives variables.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// Whether files are allowed: only for values that are never printed.
    pub(super) files: bool,
}

/// An invalid reference to a variable.
#[derive(Debug, PartialEq)]
pub(super) struct SubstituteError {
    pub(super) message: String,
    pub(super) allowed: String,
}

/// Whether there is a `$NAME`, as shells have it, which stays as it is.
pub(super) fn has_bare_name(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        rest = after.strip_prefix('$').unwrap_or(after);
        if rest.len() == after.len() && rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
            return true;
        }
    }
    false
}

/// The text with its variables replaced. The default applies where the variable is unset or empty.
pub(super) fn substitute<'t>(text: &'t str, sources: Sources<'_>) -> Result<Cow<'t, str>, SubstituteError> {
    if !text.contains('$') {
        return Ok(text.into());
    }
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        result.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(reference) = rest.strip_prefix('{') {
            let end = reference.find('}').ok_or_else(|| unusable("`${` without its `}`".into()))?;
            result.push_str(&value(&reference[..end], sources)?);
            rest = &reference[end + 1..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    Ok(result.into())
}

fn value(reference: &str, sources: Sources<'_>) -> Result<String, SubstituteError> {
    let env = sources.env;
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let name = match name.split_once(':') {
        Some(("env", name)) => name,
        Some(("file", path)) if sources.files => return file(Path::new(path)),
        Some(("file", _)) => return Err(unusable("`${file:...}` is only allowed in header values".into())),
        Some((scheme, _)) => return Err(unusable(format!("unknown source `${{{scheme}:...}}`"))),
        None => name,
    };
    let is_name = |name: &str| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if !is_name(name) {
        return Err(unusable(format!("invalid variable name `{name}`")));
    }
    match (env(name), default) {
        (Some(value), _) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (Some(empty), None) => Ok(empty),
        (None, None) => Err(SubstituteError {
            message: format!("the environment variable `{name}` is not set"),
            allowed: format!("set it, or add a default: ${{env:{name}:-default}}"),
        }),
    }
}

/// The text of a file, without the newline at its end.
fn file(path: &Path) -> Result<String, SubstituteError> {
    let failed = |why: String| SubstituteError {
        message: format!("`${{file:{}}}` cannot be read: {why}", path.display()),
        allowed: "an absolute path of a small text file that this user can read".into(),
    };
    if !path.is_absolute() {
        return Err(failed("the path is relative".into()));
    }
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_SECRET_BYTES => Err(failed("the file is too large".into())),
        Ok(_) => Ok(text.trim_end().to_owned()),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn unusable(message: String) -> SubstituteError {
    SubstituteError { message, allowed: "${env:NAME}, ${env:NAME:-default}, or $$ for a plain $".into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::{Sources, substitute};

    #[test]
    fn substitutes() {
        let env = |name: &str| match name {
            "HOST" => Some("db".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${env:HOST}: [a, b]".to_owned()),
            _ => None,
        };
        let cases = [
            ("plain", Some("plain")),
            ("${env:HOST}", Some("db")),
            ("${HOST}", Some("db")),
            ("a-${env:HOST}-${env:HOST}", Some("a-db-db")),
            ("${env:NONE:-x}", Some("x")),
            ("${env:NONE:-}", Some("")),
            ("${env:NONE:-http://h:1}", Some("http://h:1")),
            ("${env:EMPTY:-x}", Some("x")),
            ("${env:EMPTY}", Some("")),
            ("${env:NESTED}", Some("${env:HOST}: [a, b]")),
            ("$$", Some("$")),
            ("$${env:HOST}", Some("${env:HOST}")),
            ("$5 and $", Some("$5 and $")),
            ("${env:NONE}", None),
            ("${env:HOST", None),
            ("${file:/etc/passwd}", None),
            ("${}", None),
            ("${env:1A}", None),
        ];
        for (text, expected) in cases {
            let sources = Sources { env: &env, files: false };
            assert_eq!(substitute(text, sources).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn names_without_braces_are_found() {
        for (text, expected) in [
            ("Bearer $TOKEN", true),
            ("$$TOKEN", false),
            ("${env:X}", false),
            ("a$", false),
            ("$5", false),
            ("$$ $x", true),
        ] {
            assert_eq!(super::has_bare_name(text), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_comes_from_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "s3cret\n").unwrap();
        let read =
            |text: &str, files| substitute(text, Sources { env: &|_| None, files }).map(|text| text.into_owned());
        let text = format!("Bearer ${{file:{}}}", path.display());
        assert_eq!(read(&text, true).unwrap(), "Bearer s3cret");
        assert!(read(&text, false).unwrap_err().message.contains("header values"));
        let error = read("${file:/nowhere/token}", true).unwrap_err().message;
        assert!(error.contains("/nowhere/token") && error.contains("No such file"), "{error}");
        assert!(read("${file:token}", true).unwrap_err().message.contains("relative"));
    }
}
