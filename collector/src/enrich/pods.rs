//! The names of pods by their uid, for records of the processes in them: what a watch on the cluster's API put here
//! (`kubernetes`), and what the collector's own environment says of the pod that it is itself in.
//!
//! Nobody waits here: a pod not known yet is left without names, and [`Pods::generation`] tells when to look again.

use std::{
    borrow::Cow,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    enrich::{ResourceValue, cache::Bounded},
    procfs::FIRST_PID_NAMESPACE,
    text::sanitize,
};

/// Pods remembered, those deleted included: uids are never used again, so that an old one names no other pod.
const MAX_PODS: usize = 8_192;
/// Bytes remembered of them.
const MAX_BYTES: usize = 16 << 20;
/// Longest name, bytes: a DNS subdomain has 253 (RFC 1123).
const MAX_NAME: usize = 253;

/// What is known of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Resource attributes of the pod, those of its namespace, node and controller among them.
    pub attributes: Vec<(&'static str, String)>,
    /// Identifiers of its containers, without the runtime's `containerd://`, and their names.
    pub containers: Vec<(String, String)>,
    /// `service.name` by OpenTelemetry's rules for Kubernetes, where the process says none itself.
    pub service_name: Option<String>,
}

/// The pods known now.
#[derive(Debug)]
pub struct Pods {
    pods: Mutex<Bounded<String, Pod>>,
    generation: AtomicU64,
    failures: AtomicU64,
    is_failing: AtomicBool,
}

impl Default for Pods {
    fn default() -> Self {
        let pods = Mutex::new(Bounded::new(MAX_PODS, MAX_BYTES));
        Self { pods, generation: AtomicU64::new(0), failures: AtomicU64::new(0), is_failing: AtomicBool::new(false) }
    }
}

impl Pods {
    /// Sets what is known of a pod.
    pub fn set(&self, uid: &str, pod: Pod) {
        let text =
            |texts: &[(String, String)]| texts.iter().map(|(key, value)| key.len() + value.len() + 64).sum::<usize>();
        let attributes: usize = pod.attributes.iter().map(|(_, value)| value.len() + 64).sum();
        let bytes = uid.len() + attributes + text(&pod.containers) + size_of::<Pod>();
        self.lock().insert(uid.to_owned(), pod, bytes);
        self.generation.fetch_add(1, Ordering::Release);
        self.is_failing.store(false, Ordering::Relaxed);
    }

    /// Moves on whenever a pod is set: names looked for in vain may be there now.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The attributes that a process in this pod and container has, and the pod's `service.name`.
    pub fn names(&self, uid: &str, container_id: Option<&str>) -> Option<Names> {
        let mut pods = self.lock();
        let pod = pods.get_mut(&uid.to_owned())?;
        let container = container_id.and_then(|wanted| pod.containers.iter().find(|(id, _)| id == wanted));
        let mut attributes = pod.attributes.clone();
        attributes.extend(container.map(|(_, name)| ("k8s.container.name", name.clone())));
        let service_name = pod.service_name.clone().or_else(|| Some(container?.1.clone()));
        Some(Names { attributes, service_name, complete: container.is_some() || container_id.is_none() })
    }

    /// Pods remembered.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no pod is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts a failed request to the API.
    pub fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(true, Ordering::Relaxed);
    }

    /// Requests to the API that failed: refused, timed out, or answered by what is no list of pods.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the last request to the API failed.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// A panic elsewhere leaves the map whole: each change is one call.
    fn lock(&self) -> MutexGuard<'_, Bounded<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attributes by name of a process's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `k8s.…`
    pub attributes: Vec<(&'static str, String)>,
    /// `service.name` of last resort.
    pub service_name: Option<String>,
    /// The container's name is among them, where there is a container: else it may come with a later change.
    pub complete: bool,
}

impl Names {
    /// The attributes as they stand in a resource.
    pub fn resource(&self) -> impl Iterator<Item = (Cow<'static, str>, ResourceValue)> {
        self.attributes.iter().map(|(key, value)| (Cow::Borrowed(*key), ResourceValue::Text(value.clone())))
    }
}

/// The pod that the collector itself is in, as a sidecar: by the environment that the downward API gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPod {
    uid: Option<String>,
    attributes: Vec<(&'static str, String)>,
    /// The pod's network namespace, `None` where it is the host's and so says nothing of a pod.
    network_namespace: Option<u32>,
}

/// Attributes that the downward API can give, and the variables to give them in; the first that is set counts.
const VARIABLES: [(&str, [&str; 2]); 4] = [
    ("k8s.pod.name", ["K8S_POD_NAME", "POD_NAME"]),
    ("k8s.namespace.name", ["K8S_NAMESPACE_NAME", "POD_NAMESPACE"]),
    ("k8s.pod.uid", ["K8S_POD_UID", "POD_UID"]),
    ("k8s.node.name", ["K8S_NODE_NAME", "NODE_NAME"]),
];

impl OwnPod {
    /// Reads the variables by `variable`; `proc` tells the network namespace.
    pub fn read(variable: impl Fn(&str) -> Option<String>, proc: &Path) -> Self {
        let value =
            |names: [&str; 2]| names.into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let attributes: Vec<_> = VARIABLES
            .into_iter()
            .filter_map(|(key, names)| Some((key, sanitize(value(names)?.as_bytes(), MAX_NAME))))
            .collect();
        let uid = attributes.iter().find(|(key, _)| *key == "k8s.pod.uid").map(|(_, uid)| uid.clone());
        Self { uid, attributes, network_namespace: own_network_namespace(proc) }
    }

    /// The name of the node, which is every record's.
    pub fn node_name(&self) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| *key == "k8s.node.name").map(|(_, name)| name.as_str())
    }

    /// The pod's attributes, for a process that is in it too: by the pod's uid, and where that of one of the two is not
    /// known, by the network namespace, which the containers of a pod share.
    pub fn names(&self, pod_uid: Option<&str>, network_namespace: Option<u32>) -> Option<Names> {
        let same = match (self.uid.as_deref(), pod_uid) {
            (Some(own), Some(other)) => own == other,
            _ => network_namespace.is_some() && network_namespace == self.network_namespace,
        };
        let names_a_pod = self.attributes.iter().any(|(key, _)| matches!(*key, "k8s.pod.name" | "k8s.pod.uid"));
        (same && names_a_pod).then(|| {
            let pod_name = self.attributes.iter().find(|(key, _)| *key == "k8s.pod.name").map(|(_, name)| name.clone());
            Names { attributes: self.attributes.clone(), service_name: pod_name, complete: true }
        })
    }
}

/// The inode of our network namespace unless it is the host's. Where the first process is our container's own, the host's
/// cannot be told from ours: a sidecar has a namespace with its pod then, unless the pod is on the host's network.
fn own_network_namespace(proc: &Path) -> Option<u32> {
    let inode = |process: &str, name: &str| Some(fs::metadata(proc.join(process).join("ns").join(name)).ok()?.ino());
    let own = inode("self", "net")?;
    let in_host_pids = inode("self", "pid").is_some_and(|inode| inode == FIRST_PID_NAMESPACE);
    let is_host = in_host_pids && inode("1", "net").is_none_or(|host| host == own);
    if is_host { None } else { u32::try_from(own).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pod(variables: &[(&str, &str)]) -> OwnPod {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        OwnPod { network_namespace: Some(7), ..OwnPod::read(variable, Path::new("/nonexistent")) }
    }

    #[test]
    fn a_sidecar_names_the_workloads_of_its_own_pod_only() {
        let sidecar = own_pod(&[
            ("K8S_POD_NAME", "shop-0"),
            ("POD_NAME", "not this"),
            ("POD_NAMESPACE", "prod"),
            ("K8S_POD_UID", "uid-1"),
            ("NODE_NAME", "node-1"),
            ("K8S_NODE_NAME", ""),
        ]);
        assert_eq!(sidecar.node_name(), Some("node-1"));
        let names = sidecar.names(Some("uid-1"), None).expect("its own pod");
        let expected = [
            ("k8s.pod.name", "shop-0"),
            ("k8s.namespace.name", "prod"),
            ("k8s.pod.uid", "uid-1"),
            ("k8s.node.name", "node-1"),
        ];
        assert_eq!(names.attributes, expected.map(|(key, value)| (key, value.to_owned())));
        assert_eq!(names.service_name.as_deref(), Some("shop-0"));
        assert_eq!(sidecar.names(Some("uid-2"), Some(7)), None, "another pod, whatever its network");
        assert!(sidecar.names(None, Some(7)).is_some(), "the pod's network namespace");
        assert_eq!(sidecar.names(None, Some(8)), None);
        assert_eq!(sidecar.names(None, None), None);
        let on_host_network = OwnPod { network_namespace: None, ..sidecar };
        assert_eq!(on_host_network.names(None, None), None);
        assert_eq!(own_pod(&[("NODE_NAME", "node-1")]).names(None, Some(7)), None, "a node's name names no pod");
    }

    #[test]
    fn a_pod_is_named_with_the_container_that_is_meant() {
        let pods = Pods::default();
        assert_eq!((pods.names("uid", None), pods.generation(), pods.is_empty()), (None, 0, true));
        let containers = vec![("c1".to_owned(), "web".to_owned()), ("c2".to_owned(), "log".to_owned())];
        pods.set("uid", Pod { attributes: vec![("k8s.pod.name", "shop".into())], containers, service_name: None });
        let named =
            |id| pods.names("uid", id).map(|names| (names.attributes.len(), names.service_name, names.complete));
        assert_eq!(named(Some("c2")), Some((2, Some("log".into()), true)));
        assert_eq!(named(Some("c3")), Some((1, None, false)), "not known yet");
        assert_eq!(named(None), Some((1, None, true)));
        assert_eq!((pods.generation(), pods.len()), (1, 1));
    }
}
