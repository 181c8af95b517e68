//! Encoded resets put together to requests: one `ResourceLogs` and one `ResourceSpans` for each workload.
//!
//! A reset is encoded as it comes, into one buffer that is used again; nothing is allocated per reset. Sending is
//! `export`'s. The time is an argument.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    config::settings::{self, Signals},
    event::ResetEvent,
    model::resource::Resource,
    otlp::{encode, protobuf},
};

/// Requests that belong together, uncompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many resets it tells of: each stands in `logs`, and in `traces` unless the application's own span has it.
    pub resets: u32,
    /// An `ExportLogsServiceRequest`; `None` where logs are off.
    pub logs: Option<Bytes>,
    /// An `ExportTraceServiceRequest`; `None` where traces are off or no reset needed a span of ours.
    pub traces: Option<Bytes>,
}

/// Puts resets together until a batch is large or old enough.
#[derive(Debug)]
pub struct Batcher {
    settings: settings::Batch,
    signals: Signals,
    resets: u32,
    first: Option<Instant>,
    groups: Groups,
    logs: SignalBatch,
    spans: SignalBatch,
    closed: VecDeque<Batch>,
    record: Vec<u8>,
}

impl Batcher {
    /// The signals that it puts together.
    pub const fn signals(&self) -> Signals {
        self.signals
    }

    /// An empty batcher for one destination.
    pub fn new(settings: settings::Batch, signals: Signals) -> Self {
        let scope = encode::scope();
        Self {
            settings,
            signals,
            resets: 0,
            first: None,
            groups: Groups::default(),
            logs: SignalBatch::new(&scope),
            spans: SignalBatch::new(&scope),
            closed: VecDeque::new(),
            record: Vec::new(),
        }
    }

    /// Takes one reset. `false`: it has nothing to send, as its event stands on the application's own span and logs are
    /// off. A batch that it does not fit into, or that it makes full, is closed: take it with [`Self::take_due`] before
    /// the next push, since closed batches wait in memory.
    pub fn push(&mut self, event: &ResetEvent<'_>, now: Instant) -> bool {
        let span = event.contexts.span.filter(|_| self.signals.traces);
        if !self.signals.logs && span.is_none() {
            return false;
        }
        self.record.clear();
        let log_length = match span {
            Some(identity) if self.signals.logs => encode::log_record_and_span(event, &identity, &mut self.record),
            Some(identity) => {
                encode::span(event, &identity, &mut self.record);
                0
            }
            None => {
                encode::log_record(event, &mut self.record);
                self.record.len()
            }
        };
        let (log, span_bytes) = self.record.split_at(log_length);
        let resource = encode::resource(&event.reset.resource);
        let fits = self.logs.fits(resource, log, self.settings.max_bytes)
            && self.spans.fits(resource, span_bytes, self.settings.max_bytes);
        if !fits {
            self.close();
        }
        let (log, span_bytes) = self.record.split_at(log_length);
        let group = self.groups.of(&event.reset.resource);
        if self.signals.logs {
            self.logs.push(group, resource, log);
        }
        if span.is_some() {
            self.spans.push(group, resource, span_bytes);
        }
        self.resets += 1;
        self.first.get_or_insert(now);
        if self.resets as usize >= self.settings.max_resets {
            self.close();
        }
        true
    }

    /// A batch to be sent now, the oldest first; call it until `None`.
    pub fn take_due(&mut self, now: Instant) -> Option<Batch> {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.close();
        }
        self.closed.pop_front()
    }

    /// What there is, due or not: for the end of the program. Call it until `None`.
    pub fn take(&mut self) -> Option<Batch> {
        self.close();
        self.closed.pop_front()
    }

    /// When the open batch is to be sent; `None` while it is empty.
    pub fn next_deadline(&self) -> Option<Instant> {
        /// A flush_timeout beyond what the clock can count: such a batch waits until it is full.
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        let first = self.first?;
        first.checked_add(self.settings.flush_timeout).or_else(|| first.checked_add(FAR))
    }

    /// Resets in memory, closed batches and the open one: a term of the accounting invariant.
    pub fn held(&self) -> u64 {
        self.closed.iter().map(|batch| u64::from(batch.resets)).sum::<u64>() + u64::from(self.resets)
    }

    fn close(&mut self) {
        self.first = None;
        if self.resets == 0 {
            return;
        }
        let logs = self.logs.take_request(&self.groups.resources);
        let traces = self.spans.take_request(&self.groups.resources);
        self.closed.push_back(Batch { resets: std::mem::take(&mut self.resets), logs, traces });
        self.groups.clear();
    }
}

/// The workloads of the open batch, each once: by identity, and by content where two are the same resource.
#[derive(Debug, Default)]
struct Groups {
    resources: Vec<Arc<Resource>>,
    by_pointer: HashMap<usize, u32>,
    by_content: HashMap<Content, u32>,
    /// The last one asked for: resets come in bursts of one workload.
    last: u32,
}

/// A workload as the key of its content.
#[derive(Debug)]
struct Content(Arc<Resource>);

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        encode::resource(&self.0) == encode::resource(&other.0)
    }
}

impl Eq for Content {}

impl std::hash::Hash for Content {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        encode::resource(&self.0).hash(hasher);
    }
}

impl Groups {
    fn of(&mut self, resource: &Arc<Resource>) -> u32 {
        if self.resources.get(self.last as usize).is_some_and(|last| Arc::ptr_eq(last, resource)) {
            return self.last;
        }
        let pointer = Arc::as_ptr(resource).addr();
        self.last = match self.by_pointer.get(&pointer) {
            Some(group) => *group,
            None => self.add(resource, pointer),
        };
        self.last
    }

    fn add(&mut self, resource: &Arc<Resource>, pointer: usize) -> u32 {
        let next = self.resources.len() as u32;
        let group = *self.by_content.entry(Content(Arc::clone(resource))).or_insert(next);
        if group == next {
            self.resources.push(Arc::clone(resource));
            self.by_pointer.insert(pointer, group);
        }
        group
    }

    fn clear(&mut self) {
        self.resources.clear();
        self.by_pointer.clear();
        self.by_content.clear();
        self.last = 0;
    }
}

/// The records of one signal. Logs and traces have the same shape: request { 1: Resource… { 1: resource,
/// 2: Scope… { 1: scope, 2: record…, 3: schema_url }, 3: schema_url } }.
#[derive(Debug)]
struct SignalBatch {
    /// The scope's field and the schema's, as they stand before and after the records.
    scope: Vec<u8>,
    schema: Vec<u8>,
    /// Records as they came, each a field of its `Scope…`.
    records: Vec<u8>,
    places: Vec<Place>,
    /// Bytes of records by group.
    group_bytes: Vec<usize>,
    /// Bytes of the request, or a little more.
    bound: usize,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    group: u32,
    start: usize,
    end: usize,
}

const RESOURCE_GROUP: u32 = 1;
const RESOURCE: u32 = 1;
const SCOPE_GROUP: u32 = 2;
const SCOPE: u32 = 1;
const RECORD: u32 = 2;
const SCHEMA_URL: u32 = 3;

impl SignalBatch {
    fn new(scope: &[u8]) -> Self {
        let mut scope_field = Vec::new();
        protobuf::bytes(&mut scope_field, SCOPE, scope);
        let mut schema = Vec::new();
        protobuf::bytes(&mut schema, SCHEMA_URL, encode::SCHEMA_URL.as_bytes());
        Self { scope: scope_field, schema, records: Vec::new(), places: Vec::new(), group_bytes: Vec::new(), bound: 0 }
    }

    /// Whether a record of this workload keeps the request within its limit; the first always fits, however long.
    fn fits(&self, resource: &[u8], record: &[u8], max_bytes: usize) -> bool {
        record.is_empty() || self.places.is_empty() || self.bound + self.cost(resource, record) <= max_bytes
    }

    /// Bytes that a record adds at most: it may be the first of its workload.
    fn cost(&self, resource: &[u8], record: &[u8]) -> usize {
        self.group_cost(resource) + protobuf::field_length(RECORD, record.len())
    }

    fn group_cost(&self, resource: &[u8]) -> usize {
        const HEADS: usize = 2 * (1 + protobuf::MAX_VARINT_LEN);
        HEADS + protobuf::field_length(RESOURCE, resource.len()) + self.scope.len() + 2 * self.schema.len()
    }

    fn push(&mut self, group: u32, resource: &[u8], record: &[u8]) {
        let start = self.records.len();
        protobuf::bytes(&mut self.records, RECORD, record);
        let end = self.records.len();
        let index = group as usize;
        if self.group_bytes.len() <= index {
            self.group_bytes.resize(index + 1, 0);
        }
        if self.group_bytes[index] == 0 {
            self.bound += self.group_cost(resource);
        }
        self.group_bytes[index] += end - start;
        self.bound += end - start;
        self.places.push(Place { group, start, end });
    }

    /// The request of what there is, `None` if that is nothing; then the signal queue is empty.
    fn take_request(&mut self, resources: &[Arc<Resource>]) -> Option<Bytes> {
        if self.places.is_empty() {
            return None;
        }
        // Stable: within a workload the records stay in the order of their coming.
        self.places.sort_by_key(|place| place.group);
        let mut out = Vec::with_capacity(self.bound);
        for places in self.places.chunk_by(|one, next| one.group == next.group) {
            let group = places[0].group as usize;
            self.write_group(&mut out, encode::resource(&resources[group]), places, self.group_bytes[group]);
        }
        self.records.clear();
        self.places.clear();
        self.group_bytes.clear();
        self.bound = 0;
        Some(out.into())
    }

    fn write_group(&self, out: &mut Vec<u8>, resource: &[u8], places: &[Place], record_bytes: usize) {
        let scope_group = self.scope.len() + record_bytes + self.schema.len();
        let resource_group = protobuf::field_length(RESOURCE, resource.len())
            + protobuf::field_length(SCOPE_GROUP, scope_group)
            + self.schema.len();
        protobuf::length(out, RESOURCE_GROUP, resource_group);
        protobuf::bytes(out, RESOURCE, resource);
        protobuf::length(out, SCOPE_GROUP, scope_group);
        out.extend_from_slice(&self.scope);
        for place in places {
            out.extend_from_slice(&self.records[place.start..place.end]);
        }
        out.extend_from_slice(&self.schema);
        out.extend_from_slice(&self.schema);
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
