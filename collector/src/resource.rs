//! How a workload's resource is put together: which source wins, and how large it may be.
//!
//! What we know ourselves (the kernel, control groups, the cluster's API, the host) stands before what a process says of
//! itself; what it says in its published context stands before its environment.

use std::borrow::Cow;

use crate::{
    container::Placement,
    enrich::ResourceValue,
    pods::Names,
    printable::printable,
    process::{MAX_NAME, Process},
};

/// Attributes of a resource at most, ours included.
const MAX_ATTRIBUTES: usize = 160;
/// Bytes of names and values of a resource at most.
const MAX_BYTES: usize = 64 << 10;

/// A list of attributes, each name once, within bounds.
#[derive(Debug, Default)]
pub struct Resource {
    attributes: Vec<(Cow<'static, str>, ResourceValue)>,
    bytes: usize,
    left_out: u64,
}

/// The owner by the kernel's record.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Pid in the first namespace.
    pub pid: u32,
    /// Start, ns since 1970.
    pub start_unix_ns: u64,
    /// Name of its main thread.
    pub comm: &'a [u8],
}

impl Resource {
    /// Starts with these attributes.
    pub fn of_host(attributes: &[(Cow<'static, str>, ResourceValue)]) -> Self {
        let mut resource = Self::default();
        for (name, value) in attributes {
            resource.add(name.clone(), value.clone());
        }
        resource
    }

    /// Adds who the process is, by the record and, where it could be read, by procfs.
    pub fn add_identity(&mut self, identity: Identity<'_>, process: Option<&Process>) {
        self.add("process.pid", ResourceValue::Integer(identity.pid.into()));
        self.add_text("process.creation.time", &rfc3339(identity.start_unix_ns));
        let path = process.and_then(|process| process.executable_path.as_deref());
        self.add_text("process.executable.name", &executable_name(identity.comm, path));
        self.add_text("process.executable.path", path.unwrap_or_default());
        let arguments = process.map(|process| process.command_args.clone()).filter(|arguments| !arguments.is_empty());
        if let Some(arguments) = arguments {
            self.add("process.command_args", ResourceValue::List(arguments));
        }
    }

    /// Adds where the process runs.
    pub fn add_placement(&mut self, placement: &Placement, names: Option<&Names>) {
        self.add_text("container.id", placement.container_id.as_deref().unwrap_or_default());
        self.add_text("container.name", placement.container_name.as_deref().unwrap_or_default());
        self.add_text("k8s.pod.uid", placement.pod_uid.as_deref().unwrap_or_default());
        for (name, value) in names.into_iter().flat_map(Names::resource) {
            self.add(name, value);
        }
    }

    /// Adds what the process says of itself.
    pub fn add_claims(&mut self, process: &Process) {
        for (name, value) in process.context.iter().flatten() {
            self.add(name.clone(), value.clone());
        }
        self.add_text("service.name", process.environment.service_name.as_deref().unwrap_or_default());
        for (name, value) in &process.environment.resource_attributes {
            self.add(name.clone(), ResourceValue::Text(value.clone()));
        }
    }

    /// Gives `service.name` where none of the sources did: the pod's, the container's or unit's name, and then the
    /// executable's, as OpenTelemetry's SDKs do. Says whether that last one was needed.
    pub fn name_service(&mut self, placement: &Placement, names: Option<&Names>) -> bool {
        let known = names.and_then(|names| names.service_name.as_deref()).or_else(|| placement.name());
        self.add_text("service.name", known.unwrap_or_default());
        let unknown = !self.has("service.name");
        if let (true, Some(executable)) = (unknown, self.text("process.executable.name")) {
            self.add_text("service.name", &format!("{UNKNOWN_SERVICE}{executable}"));
        }
        unknown
    }

    /// The attributes, and how many were left out because there were too many or they were too large.
    pub fn finish(self) -> (Vec<(Cow<'static, str>, ResourceValue)>, u64) {
        (self.attributes, self.left_out)
    }

    fn has(&self, name: &str) -> bool {
        self.attributes.iter().any(|(key, _)| key == name)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.attributes.iter().find_map(|(key, value)| match value {
            ResourceValue::Text(text) if key == name => Some(text.clone()),
            _ => None,
        })
    }

    /// Adds an attribute unless it is there or is empty.
    fn add_text(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.add(name, ResourceValue::Text(value.to_owned()));
        }
    }

    /// Adds an attribute unless it is there. An empty `service.name` is none.
    fn add(&mut self, name: impl Into<Cow<'static, str>>, value: ResourceValue) {
        let name = name.into();
        let empty_service = name == "service.name" && matches!(&value, ResourceValue::Text(text) if text.is_empty());
        if empty_service || self.has(&name) {
            return;
        }
        let bytes = name.len() + value.bytes();
        if self.attributes.len() >= MAX_ATTRIBUTES || self.bytes + bytes > MAX_BYTES {
            self.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.attributes.push((name, value));
    }
}

/// What OpenTelemetry puts before the executable's name where no service is named.
pub const UNKNOWN_SERVICE: &str = "unknown_service:";

/// The base name of the executable's path; the name of the main thread where there is no path.
fn executable_name(comm: &[u8], path: Option<&str>) -> String {
    match path.and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty()) {
        Some(name) => printable(name.as_bytes(), MAX_NAME),
        None => printable(comm, MAX_NAME),
    }
}

/// A time as `2026-11-24T21:00:00.123Z` (RFC 3339, UTC, milliseconds).
fn rfc3339(unix_ns: u64) -> String {
    let (seconds, milliseconds) = (unix_ns / 1_000_000_000, unix_ns / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days: years begin in March.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, after_march) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year_of_era + after_march;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}
