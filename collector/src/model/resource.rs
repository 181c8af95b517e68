//! The OpenTelemetry resource of a reset's owner, as plain data.
//!
//! Built by [`crate::enrich`], encoded once by [`crate::otlp::encode`].

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

/// What OpenTelemetry puts before the executable's name where no service is named.
pub const UNKNOWN_SERVICE: &str = "unknown_service:";

/// The resource of the process that owns a socket; shared by all resets of that process.
#[derive(Debug, Default)]
pub struct Resource {
    /// Resource attributes, unique by name.
    pub attributes: Vec<(Cow<'static, str>, ResourceValue)>,
    /// The process's pid in its innermost pid namespace, as the process itself sees it; not exported.
    pub inner_pid: Option<u32>,
    /// The process's program, if its command line names it; not exported by itself.
    pub program: Option<Program>,
    encoded: OnceLock<Box<[u8]>>,
}

/// The name that people know a program by, which its command line gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// `gunicorn` where the executable is `python3.11`.
    pub name: String,
    /// The kernel's name of the process at the time: under another one it runs another program.
    pub comm: Vec<u8>,
}

/// A value of a resource attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum ResourceValue {
    /// Text.
    Text(String),
    /// An integer.
    Integer(i64),
    /// A list of texts.
    List(Vec<String>),
}

impl ResourceValue {
    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Integer(_) => size_of::<i64>(),
            Self::List(texts) => texts.iter().map(|text| text.len() + size_of::<String>()).sum(),
        }
    }
}

impl Resource {
    /// A resource with these attributes.
    pub fn new(attributes: Vec<(Cow<'static, str>, ResourceValue)>) -> Arc<Self> {
        Self::for_process(attributes, None, None)
    }

    /// The resource of a process whose pid in its own namespace is `inner_pid` and whose program is `program`.
    pub fn for_process(
        attributes: Vec<(Cow<'static, str>, ResourceValue)>,
        inner_pid: Option<u32>,
        program: Option<Program>,
    ) -> Arc<Self> {
        Arc::new(Self { attributes, inner_pid, program, encoded: OnceLock::new() })
    }

    /// The value of an attribute by name.
    pub fn get(&self, name: &str) -> Option<&ResourceValue> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The encoded message, made by `encode` on the first call and kept.
    pub fn encoded_by(&self, encode: impl FnOnce(&Self) -> Vec<u8>) -> &[u8] {
        self.encoded.get_or_init(|| encode(self).into_boxed_slice())
    }

    /// Its size in memory, in bytes: the attributes, and about as much again once encoded.
    pub fn bytes(&self) -> usize {
        let attribute = size_of::<(Cow<'static, str>, ResourceValue)>();
        self.attributes.iter().map(|(key, value)| attribute + 2 * (key.len() + value.bytes())).sum()
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.attributes == other.attributes && self.inner_pid == other.inner_pid && self.program == other.program
    }
}
