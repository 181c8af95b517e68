//! How a resource is put together: which source wins, and how large it may be.
//!
//! What we know ourselves (the kernel, control groups, the cluster's API, the host) stands before what a process says of
//! itself; what it says in its published context stands before its environment.

use std::borrow::Cow;

use crate::text::sanitize;
use crate::{
    enrich::{
        container::Placement,
        pods::Names,
        process::{MAX_NAME, Process},
    },
    model::resource::{ResourceValue, UNKNOWN_SERVICE},
};

/// Attributes of a resource at most, ours included.
const MAX_ATTRIBUTES: usize = 160;
/// Bytes of names and values of a resource at most.
const MAX_BYTES: usize = 64 << 10;

/// Names that only the kernel, the kubelet's directories, the cluster's API and the operator give.
const RESERVED: [&str; 4] = ["container.", "host.", "k8s.", "process."];

/// A list of attributes, each name once, within bounds.
#[derive(Debug, Default)]
pub struct ResourceBuilder {
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

impl ResourceBuilder {
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

    /// Adds what the process claims of itself. [`RESERVED`] names are not its to give.
    pub fn add_claims(&mut self, process: &Process) {
        for (name, value) in process.context.iter().flatten() {
            self.add_claim(name, value.clone());
        }
        self.add_text("service.name", process.environment.service_name.as_deref().unwrap_or_default());
        for (name, value) in &process.environment.resource_attributes {
            self.add_claim(name, ResourceValue::Text(value.clone()));
        }
    }

    fn add_claim(&mut self, name: &str, value: ResourceValue) {
        if !RESERVED.iter().any(|prefix| name.starts_with(prefix)) {
            self.add(name.to_owned(), value);
        }
    }

    /// Gives `service.name` where none of the sources did: the pod's, the container's or unit's name, and then the
    /// program's, as OpenTelemetry's SDKs do.
    pub fn name_service(&mut self, placement: &Placement, names: Option<&Names>, process: Option<&Process>) {
        let known = names.and_then(|names| names.service_name.as_deref()).or_else(|| placement.name());
        self.add_text("service.name", known.unwrap_or_default());
        let program = process.and_then(|process| process.program.as_ref()).map(|program| program.name.clone());
        let program = program.or_else(|| self.text("process.executable.name"));
        if let (false, Some(program)) = (self.has("service.name"), program) {
            self.add_text("service.name", &format!("{UNKNOWN_SERVICE}{program}"));
        }
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

/// The base name of the executable's path; the name of the main thread where there is no path.
fn executable_name(comm: &[u8], path: Option<&str>) -> String {
    match path.and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty()) {
        Some(name) => sanitize(name.as_bytes(), MAX_NAME),
        None => sanitize(comm, MAX_NAME),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{enrich::environ::Environment, model::resource::Program};

    fn claims(context: &[(&str, &str)], service_name: Option<&str>, attributes: &[(&str, &str)]) -> Process {
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
        };
        let text = |(key, value)| (key, ResourceValue::Text(value));
        Process {
            executable_path: Some("/usr/bin/python3.11".into()),
            context: (!context.is_empty()).then(|| pairs(context).into_iter().map(text).collect()),
            environment: Environment {
                service_name: service_name.map(str::to_owned),
                resource_attributes: pairs(attributes),
                malformed: 0,
            },
            ..Process::default()
        }
    }

    #[test]
    fn service_name_comes_from_the_best_source() {
        let unit = Placement { unit: Some("shop-unit".into()), ..Placement::default() };
        let nothing = Placement::default();
        let from_pod = Names { service_name: Some("shop-pod".into()), ..Names::default() };
        let program = Some(Program { name: "gunicorn".into(), comm: b"gunicorn".to_vec() });
        let context = [("service.name", "shop-context")];
        let variable = [("service.name", "shop-attributes"), ("service.version", "2")];
        let table = [
            (claims(&context, Some("shop-env"), &variable), &unit, Some(&from_pod), "shop-context"),
            (claims(&[], Some("shop-env"), &variable), &unit, Some(&from_pod), "shop-env"),
            (claims(&[("service.name", "")], None, &variable), &unit, Some(&from_pod), "shop-attributes"),
            (claims(&[], None, &[("service.name", "")]), &unit, Some(&from_pod), "shop-pod"),
            (claims(&[], None, &[]), &unit, None, "shop-unit"),
            (claims(&[], None, &[]), &nothing, None, "unknown_service:python3.11"),
            (Process { program, ..claims(&[], None, &[]) }, &nothing, None, "unknown_service:gunicorn"),
        ];
        for (process, placement, names, expected) in table {
            let mut resource = ResourceBuilder::default();
            resource.add_identity(Identity { pid: 7, start_unix_ns: 0, comm: b"python3" }, Some(&process));
            resource.add_placement(placement, names);
            resource.add_claims(&process);
            resource.name_service(placement, names, Some(&process));
            assert_eq!(resource.text("service.name").as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_process_cannot_claim_what_is_known() {
        let process = claims(
            &[("process.pid", "1"), ("container.id", "x"), ("host.name", "other"), ("team", "a")],
            None,
            &[("k8s.pod.uid", "x"), ("k8s.namespace.name", "prod"), ("team", "b"), ("service.version", "2")],
        );
        let placement = Placement { container_id: Some("c".into()), pod_uid: Some("u".into()), ..Placement::default() };
        let mut resource = ResourceBuilder::of_host(&[("host.name".into(), ResourceValue::Text("here".into()))]);
        resource.add_identity(Identity { pid: 7, start_unix_ns: 0, comm: b"x" }, Some(&process));
        resource.add_placement(&placement, None);
        resource.add_claims(&process);
        let seen = ["container.id", "host.name", "k8s.pod.uid", "team", "service.version"]
            .map(|name| resource.text(name).unwrap_or_default());
        assert_eq!(seen, ["c", "here", "u", "a", "2"]);
        assert!(!resource.has("k8s.namespace.name"), "a reserved name that nothing else gives");
        let (attributes, left_out) = resource.finish();
        assert!(attributes.contains(&("process.pid".into(), ResourceValue::Integer(7))));
        let names: std::collections::HashSet<_> = attributes.iter().map(|(name, _)| name).collect();
        assert_eq!((names.len(), left_out), (attributes.len(), 0), "names once each");
    }

    #[test]
    fn a_resource_is_bounded() {
        let process = Process {
            context: Some(
                (0..1000).map(|index| (format!("k{index}"), ResourceValue::Text("v".repeat(4096)))).collect(),
            ),
            ..Process::default()
        };
        let mut resource = ResourceBuilder::default();
        resource.add_claims(&process);
        let (attributes, left_out) = resource.finish();
        let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.bytes()).sum();
        assert!(bytes <= MAX_BYTES && attributes.len() == 15, "{bytes} {}", attributes.len());
        assert_eq!(left_out, 985);
    }

    #[test]
    fn a_process_known_by_its_name_alone() {
        let mut resource = ResourceBuilder::default();
        resource
            .add_identity(Identity { pid: 7, start_unix_ns: 1_700_000_000_123_000_000, comm: b"a\x1b[2Jb\xff" }, None);
        resource.name_service(&Placement::default(), None, None);
        let (attributes, _) = resource.finish();
        let text = |name: &'static str, text: &str| (Cow::Borrowed(name), ResourceValue::Text(text.into()));
        assert_eq!(
            attributes,
            [
                ("process.pid".into(), ResourceValue::Integer(7)),
                text("process.creation.time", "2023-11-14T22:13:20.123Z"),
                text("process.executable.name", "a\\u{1b}[2Jb\u{fffd}"),
                text("service.name", "unknown_service:a\\u{1b}[2Jb\u{fffd}"),
            ]
        );
    }

    #[test]
    fn times() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (1_795_555_199, "2026-11-24T21:19:59.000Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000_000), expected);
        }
        assert_eq!(rfc3339(999_999_999), "1970-01-01T00:00:00.999Z");
    }
}
