//! Variables of the environment in a scalar: `${env:NAME}`, `${env:NAME:-default}`, and `$$` for a `$`.
//!
//! Done after the YAML is read, in the scalar's text alone: a value cannot become keys, lists or further variables.

use std::borrow::Cow;

/// What is wrong with a reference to a variable.
#[derive(Debug, PartialEq)]
pub(super) struct SubstituteError {
    pub(super) message: String,
    pub(super) allowed: String,
}

/// The text with its variables replaced. The default holds where the variable is not set, and where it is empty.
pub(super) fn substitute<'t>(
    text: &'t str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'t, str>, SubstituteError> {
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
            result.push_str(&value(&reference[..end], env)?);
            rest = &reference[end + 1..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    Ok(result.into())
}

fn value(reference: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, SubstituteError> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let name = match name.split_once(':') {
        Some(("env", name)) => name,
        Some((scheme, _)) => return Err(unusable(format!("`${{{scheme}:...}}` is not known"))),
        None => name,
    };
    let is_name = |name: &str| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if !is_name(name) {
        return Err(unusable(format!("`{name}` is no name of a variable")));
    }
    match (env(name), default) {
        (Some(value), _) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (Some(empty), None) => Ok(empty),
        (None, None) => Err(SubstituteError {
            message: format!("the environment variable `{name}` is not set"),
            allowed: format!("set it, or give a default: ${{env:{name}:-default}}"),
        }),
    }
}

fn unusable(message: String) -> SubstituteError {
    SubstituteError { message, allowed: "${env:NAME}, ${env:NAME:-default}, or $$ for a plain $".into() }
}

#[cfg(test)]
mod tests {
    use super::substitute;

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
            assert_eq!(substitute(text, &env).ok().as_deref(), expected, "{text}");
        }
    }
}
