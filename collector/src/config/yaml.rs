//! A YAML document as a tree whose nodes have positions, so that all mistakes in a file can be reported at once.
//!
//! Bounded against hostile files: depth, nodes, and what aliases would expand to. Aliases share their node; nothing is
//! copied.

use std::collections::HashMap;

use serde_yaml::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span};

use crate::config::diagnostic::{RawDiagnostic, YamlPos};

/// Maximum depth of nested collections.
const MAX_DEPTH: usize = 32;
/// Maximum number of nodes, with aliases expanded.
const MAX_NODES: u64 = 300_000;

/// Names a node of one [`Tree`].
pub(super) type NodeId = usize;

/// A document.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: YamlPos,
    pub(super) content: Content,
    /// Nodes in it, itself with them, aliases expanded.
    expanded: u64,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar {
        text: String,
        /// Not quoted: then `null`, `~` and nothing are the null.
        plain: bool,
    },
    Sequence(Vec<NodeId>),
    /// Keys are scalars and unique.
    Mapping(Vec<(NodeId, NodeId)>),
}

impl Tree {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The node under these keys, or the deepest that there is on the way.
    pub(super) fn find(&self, root: NodeId, path: &[&str]) -> NodeId {
        path.iter().fold(root, |node, wanted| match &self.nodes[node].content {
            Content::Mapping(entries) => {
                entries.iter().find(|(key, _)| self.text(*key) == *wanted).map_or(node, |(_, value)| *value)
            }
            Content::Sequence(items) => {
                let index = wanted.strip_prefix('[').and_then(|index| index.strip_suffix(']')?.parse::<usize>().ok());
                index.and_then(|index| items.get(index).copied()).unwrap_or(node)
            }
            Content::Scalar { .. } => node,
        })
    }

    /// The text of a scalar; empty for other nodes.
    pub(super) fn text(&self, id: NodeId) -> &str {
        match &self.nodes[id].content {
            Content::Scalar { text, .. } => text,
            _ => "",
        }
    }
}

/// The tree of a text and its root; no root where the document is empty. Stops at the first mistake in the YAML itself.
pub(super) fn parse(text: &str) -> Result<(Tree, Option<NodeId>), RawDiagnostic> {
    let mut builder = Builder { tree: Tree::default(), open: Vec::new(), anchors: HashMap::new(), root: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| syntax_error(text, &error))?;
        builder.add(event, place(text, &span))?;
    }
    Ok((builder.tree, builder.root))
}

struct Builder {
    tree: Tree,
    open: Vec<Open>,
    anchors: HashMap<usize, NodeId>,
    root: Option<NodeId>,
}

/// A collection that is not closed yet.
struct Open {
    place: YamlPos,
    anchor: usize,
    expanded: u64,
    content: OpenContent,
}

enum OpenContent {
    Sequence(Vec<NodeId>),
    Mapping { entries: Vec<(NodeId, NodeId)>, key: Option<NodeId>, lines: HashMap<String, usize> },
}

impl Builder {
    fn add(&mut self, event: Event<'_>, place: YamlPos) -> Result<(), RawDiagnostic> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                return Err(
                    RawDiagnostic::error(place, "", "second document").allowed("one document: without a second `---`")
                );
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.is_text_tag(tag.as_deref(), &place)?;
                let plain = style == ScalarStyle::Plain && !is_text;
                self.finish(anchor, place, Content::Scalar { text: text.into_owned(), plain }, 1)?;
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.is_text_tag(tag.as_deref(), &place)?;
                self.open(anchor, place, OpenContent::Sequence(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.is_text_tag(tag.as_deref(), &place)?;
                let content = OpenContent::Mapping { entries: Vec::new(), key: None, lines: HashMap::new() };
                self.open(anchor, place, content)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { place: start, anchor, expanded, content }) = self.open.pop() {
                    let content = match content {
                        OpenContent::Sequence(items) => Content::Sequence(items),
                        OpenContent::Mapping { entries, .. } => Content::Mapping(entries),
                    };
                    self.finish(anchor, start, content, expanded)?;
                }
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(node) => self.place_node(*node, place)?,
                None => {
                    let message = "this alias is inside its own anchor";
                    return Err(
                        RawDiagnostic::error(place, "", message).allowed("an alias after the end of its anchor")
                    );
                }
            },
            _ => {}
        }
        Ok(())
    }

    /// Whether the tag is `!!str`; other tags than YAML's own are refused.
    fn is_text_tag(
        &self,
        tag: Option<&serde_yaml::granit_parser::Tag>,
        place: &YamlPos,
    ) -> Result<bool, RawDiagnostic> {
        match tag {
            None => Ok(false),
            Some(tag) if tag.is_yaml_core_schema() => Ok(tag.is_yaml_core_schema_tag("str")),
            Some(tag) => Err(RawDiagnostic::error(place.clone(), "", format!("unknown tag `{}`", tag.original()))
                .allowed("plain YAML, without tags")),
        }
    }

    fn open(&mut self, anchor: usize, place: YamlPos, content: OpenContent) -> Result<(), RawDiagnostic> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(RawDiagnostic::error(place, "", message).allowed(format!("at most {MAX_DEPTH}")));
        }
        self.open.push(Open { place, anchor, expanded: 1, content });
        Ok(())
    }

    fn finish(&mut self, anchor: usize, place: YamlPos, content: Content, expanded: u64) -> Result<(), RawDiagnostic> {
        let id = self.tree.nodes.len();
        self.tree.nodes.push(Node { place: place.clone(), content, expanded });
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        self.place_node(id, place)
    }

    /// Adds a node to the innermost open collection.
    fn place_node(&mut self, id: NodeId, place: YamlPos) -> Result<(), RawDiagnostic> {
        let expanded = self.tree.nodes[id].expanded;
        let Some(open) = self.open.last_mut() else {
            self.root = Some(id);
            return Ok(());
        };
        open.expanded = open.expanded.saturating_add(expanded);
        if open.expanded > MAX_NODES {
            let message = format!("more than {MAX_NODES} values, with aliases expanded");
            return Err(RawDiagnostic::error(place, "", message).allowed(format!("at most {MAX_NODES}")));
        }
        match &mut open.content {
            OpenContent::Sequence(items) => items.push(id),
            OpenContent::Mapping { entries, key: key @ Some(_), .. } => {
                entries.extend(key.take().map(|key| (key, id)));
            }
            OpenContent::Mapping { key, lines, .. } => {
                let Content::Scalar { text, .. } = &self.tree.nodes[id].content else {
                    return Err(RawDiagnostic::error(place, "", "a key must be text, not a list or a mapping")
                        .allowed("`name: value`"));
                };
                if let Some(line) = lines.insert(text.clone(), place.line()) {
                    let message = format!("duplicate key `{text}`, first on line {line}");
                    return Err(RawDiagnostic::error(place, "", message).allowed("one value for each key"));
                }
                *key = Some(id);
            }
        }
        Ok(())
    }
}

fn place(text: &str, span: &Span) -> YamlPos {
    let start = span.start.byte_offset().unwrap_or(0).min(text.len());
    let end = span.end.byte_offset().unwrap_or(start).clamp(start, text.len());
    YamlPos::new(start..end, span.start.line())
}

/// The parser's error, with a hint for the most common mistakes.
fn syntax_error(text: &str, error: &ScanError) -> RawDiagnostic {
    let marker = error.marker();
    let start = marker
        .byte_offset()
        .unwrap_or_else(|| text.char_indices().nth(marker.index()).map_or(text.len(), |(offset, _)| offset));
    let place = YamlPos::new(start..start, marker.line());
    let (message, allowed): (String, &str) = match error.kind() {
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => {
            ("tab in indentation".into(), "spaces for indentation")
        }
        ErrorKind::RecursionLimitExceeded => (format!("nested more than {MAX_DEPTH} levels deep"), "fewer levels"),
        ErrorKind::UnknownAnchor => {
            ("`*` starts an alias, and no anchor has this name".into(), "a pattern in quotes: \"*_timeout\"")
        }
        ErrorKind::UnexpectedCharacter { character } => {
            (format!("a value cannot start with `{character}`"), "a value in quotes")
        }
        ErrorKind::UnexpectedEofFlowSequence => ("unclosed list `[`".into(), "a closing `]`"),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            ("unclosed mapping `{`".into(), "a closing `}`")
        }
        other => (other.to_string(), "valid YAML; check the indentation, colons and quotes"),
    };
    RawDiagnostic::error(place, "", message).allowed(allowed)
}
