//! From a process to its workload: the resource of a reset.

use std::{borrow::Cow, sync::Arc};

/// The workload that owns a socket, as an OpenTelemetry resource; shared by all resets of one process.
#[derive(Debug, Default, PartialEq)]
pub struct Workload {
    /// Resource attributes, names once each.
    pub attributes: Vec<(Cow<'static, str>, ResourceValue)>,
    /// The same as an encoded `opentelemetry.proto.resource.v1.Resource` message.
    pub encoded: Vec<u8>,
}

/// A value of a resource attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum ResourceValue {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A list of texts.
    List(Vec<String>),
}

impl Workload {
    /// A workload with these attributes, encoded once.
    pub fn new(attributes: Vec<(Cow<'static, str>, ResourceValue)>) -> Arc<Self> {
        let encoded = crate::encode::resource(&attributes);
        Arc::new(Self { attributes, encoded })
    }

    /// The value of a resource attribute by name.
    pub fn get(&self, name: &str) -> Option<&ResourceValue> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}
