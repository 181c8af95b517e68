//! Walks a tree key by key and collects the diagnostics.

use std::borrow::Cow;

use crate::config::{
    diagnostic::{Diagnostics, RawDiagnostic, YamlPos},
    exposure,
    substitute::{self, Sources},
    yaml::{Content, NodeId, Tree},
};
use crate::config::{environment, settings::Destination};

/// A walk over a tree.
pub(super) struct Reader<'a> {
    tree: &'a Tree,
    env: &'a dyn Fn(&str) -> Option<String>,
    path: String,
    problems: Diagnostics,
}

/// A scalar with its variables substituted.
pub(super) struct Scalar<'a> {
    pub(super) text: Cow<'a, str>,
    /// As the file has it.
    written: &'a str,
    plain: bool,
}

impl Scalar<'_> {
    /// The value for messages: variables by their names, since their values may be secrets.
    pub(super) fn shown(&self) -> String {
        shortened(self.written)
    }

    /// Whether it contains a variable.
    pub(super) fn has_variable(&self) -> bool {
        matches!(self.text, Cow::Owned(_))
    }

    /// Whether it is null: unquoted, not the text `"null"`.
    pub(super) fn is_null(&self) -> bool {
        self.plain && matches!(self.text.as_ref(), "" | "~" | "null" | "Null" | "NULL")
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(tree: &'a Tree, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { tree, env, path: String::new(), problems: Diagnostics::default() }
    }

    /// What a destination starts from: the environment's `OTEL_EXPORTER_OTLP_*` over the defaults. A variable that cannot
    /// be used is an error only where nothing else says what it would say, so here it is none.
    pub(super) fn base_destination(&self) -> Destination {
        environment::read(self.env).map_or_else(|_| Destination::default(), |from| from.base)
    }

    /// Whether `OTEL_EXPORTER_OTLP_*` define a destination, or are invalid, which is reported elsewhere.
    pub(super) fn has_environment_destination(&self) -> bool {
        environment::read(self.env).map_or(true, |from| !from.destinations.is_empty())
    }

    pub(super) fn into_diagnostics(self) -> Diagnostics {
        self.problems
    }

    /// Errors found so far.
    pub(super) fn error_count(&self) -> usize {
        self.problems.errors()
    }

    /// Reports an error at a node.
    pub(super) fn error(&mut self, node: NodeId, message: impl Into<String>, allowed: impl Into<String>) {
        let problem = RawDiagnostic::error(self.place(node), self.path.clone(), message).allowed(allowed);
        self.problems.push(problem);
    }

    /// Reports a warning at a node.
    pub(super) fn warning(&mut self, node: NodeId, message: impl Into<String>, allowed: impl Into<String>) {
        let problem = RawDiagnostic::warning(self.place(node), self.path.clone(), message).allowed(allowed);
        self.problems.push(problem);
    }

    fn place(&self, node: NodeId) -> YamlPos {
        self.tree.node(node).place.clone()
    }

    /// Reads something with a key added to the path.
    pub(super) fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 && !key.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(key);
        let value = read(self);
        self.path.truncate(length);
        value
    }

    /// A scalar with its variables substituted; reports an error and returns `None` where that fails.
    pub(super) fn scalar(&mut self, node: NodeId, wanted: &str) -> Option<Scalar<'a>> {
        self.substituted(node, wanted, false)
    }

    /// The same for a value that is never printed: it may come from a file.
    pub(super) fn secret(&mut self, node: NodeId, wanted: &str) -> Option<Scalar<'a>> {
        self.substituted(node, wanted, true)
    }

    fn substituted(&mut self, node: NodeId, wanted: &str, files: bool) -> Option<Scalar<'a>> {
        let tree = self.tree;
        match &tree.node(node).content {
            Content::Scalar { text, plain } => match substitute::substitute(text, Sources { env: self.env, files }) {
                Ok(substituted) => {
                    if substitute::has_bare_name(text) {
                        let allowed = "${env:NAME}, or $$ for a plain $";
                        self.warning(node, "`$NAME` without braces is not replaced", allowed);
                    }
                    if files {
                        exposure::check_files(self, node, text);
                    }
                    Some(Scalar { text: substituted, written: text, plain: *plain })
                }
                Err(substitute::SubstituteError { message, allowed }) => {
                    self.error(node, message, allowed);
                    None
                }
            },
            Content::Sequence(_) => self.wrong_kind(node, "a list", wanted),
            Content::Mapping(_) => self.wrong_kind(node, "a mapping", wanted),
        }
    }

    fn wrong_kind<T>(&mut self, node: NodeId, found: &str, wanted: &str) -> Option<T> {
        self.error(node, format!("expected a value, found {found}"), wanted);
        None
    }

    /// The node under these keys, or the deepest existing one on the way.
    pub(super) fn find(&self, root: NodeId, path: &[&str]) -> NodeId {
        self.tree.find(root, path)
    }

    /// Whether the node is the null.
    pub(super) fn is_null(&self, node: NodeId) -> bool {
        match &self.tree.node(node).content {
            Content::Scalar { text, plain } => {
                Scalar { text: text.as_str().into(), written: text, plain: *plain }.is_null()
            }
            _ => false,
        }
    }

    /// The items of a list; `None` where the node is not a list.
    pub(super) fn list(&self, node: NodeId) -> Option<&'a [NodeId]> {
        match &self.tree.node(node).content {
            Content::Sequence(items) => Some(items),
            _ => None,
        }
    }

    /// The entries of a mapping, with the keys as written; `None` where the node is not a mapping.
    pub(super) fn mapping(&self, node: NodeId) -> Option<impl Iterator<Item = (&'a str, NodeId, NodeId)> + use<'a>> {
        let tree = self.tree;
        match &tree.node(node).content {
            Content::Mapping(entries) => Some(entries.iter().map(|(key, value)| (tree.text(*key), *key, *value))),
            _ => None,
        }
    }

    /// The value of each of `keys` in a mapping, in their order; unknown keys are errors. The null is an empty mapping.
    /// Reports an error and returns `None` where the node is neither.
    pub(super) fn entries(&mut self, node: NodeId, keys: &[&str], hints: &[Hint]) -> Option<Vec<Option<NodeId>>> {
        let mut found = vec![None; keys.len()];
        if self.is_null(node) {
            return Some(found);
        }
        let Some(entries) = self.mapping(node) else {
            self.error(node, "expected a mapping", format!("a mapping with the keys {}", listed(keys)));
            return None;
        };
        for (name, key, value) in entries {
            match keys.iter().position(|known| *known == name) {
                Some(at) => found[at] = Some(value),
                None => self.unknown_key(name, key, keys, hints),
            }
        }
        Some(found)
    }

    fn unknown_key(&mut self, name: &str, key: NodeId, keys: &[&str], hints: &[Hint]) {
        let hint = match hints.iter().find(|(known, _)| *known == name) {
            Some((_, instead)) => Some((*instead).to_owned()),
            None => nearest(name, keys.iter().copied()).map(|near| format!("did you mean `{near}`?")),
        };
        let hint = hint.map(|hint| format!(": {hint}")).unwrap_or_default();
        self.error(key, format!("unknown key `{}`{hint}", shortened(name)), format!("allowed: {}", listed(keys)));
    }
}

/// An old key, or one that users know from elsewhere, and what to write instead.
pub(super) type Hint = (&'static str, &'static str);

/// `a, b, c`
pub(super) fn listed(names: &[&str]) -> String {
    names.join(", ")
}

/// A value, shortened for a message.
pub(super) fn shortened(text: &str) -> String {
    const MAX_CHARACTERS: usize = 60;
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The known name that is most similar to a mistyped one.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    const MAX_CHARACTERS: usize = 64;
    if name.chars().count() > MAX_CHARACTERS {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', ' '], "_");
    let name = plain(name);
    let distances = known.map(|known| (strsim::osa_distance(&name, &plain(known)), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= (known.chars().count() / 3).clamp(1, 4)).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn nearest_names_are_near() {
        let known = ["sent", "received", "queue_size", "max_elapsed_time"];
        for (name, expected) in [
            ("recieved", Some("received")),
            ("queueSize", Some("queue_size")),
            ("queue-size", Some("queue_size")),
            ("colour", None),
        ] {
            assert_eq!(nearest(name, known.into_iter()), expected, "{name}");
        }
    }
}
