//! The names of this node's pods from the Kubernetes API: one watch, kept up, that fills [`crate::enrich::pods`].
//!
//! Nobody waits for the API: while it is slow, refuses or hangs, records go out without names, and each failed request is
//! counted ([`Pods::failures`]). The collector's service account needs `list` and `watch` on `pods`.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client, Config, ResourceExt,
    core::{ApiResource, Object},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde::Deserialize;

use crate::enrich::pods::{Pod, Pods};
use crate::text::sanitize;

/// How long one watch lasts before the next: a server that has gone silent is noticed a few seconds later.
const WATCH_SECONDS: u32 = 60;
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may be silent; longer than a watch, in which nothing may happen.
const READ_TIMEOUT: Duration = Duration::from_secs(90);
/// Pods in one answer of the first list: bounds what is held of it.
const PAGE_SIZE: u32 = 200;
/// Longest name, bytes: a DNS subdomain has 253 (RFC 1123).
const MAX_NAME: usize = 253;
/// Containers of a pod that are remembered, former ones included.
const MAX_CONTAINERS: usize = 64;

/// Why there are no names from the Kubernetes API.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// Neither a service account nor a kubeconfig was found.
    #[error(
        "no way to the kubernetes api: run in a pod with a service account, set KUBECONFIG, or leave out enrichment.kubernetes: {0}"
    )]
    Configuration(#[from] kube::config::InferConfigError),
    /// What was found cannot be used.
    #[error("the kubernetes api's configuration cannot be used: {0}")]
    Client(#[from] kube::Error),
}

/// What is read of a pod; the rest of the answer is never held.
type WatchedPod = Object<PodSpec, PodStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    last_state: Option<ContainerState>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// The way to the API: the pod's service account, else the kubeconfig.
pub async fn cluster() -> Result<Config, KubernetesError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// Keeps `pods` to what the API says of the pods on a node, until dropped. Only a configuration that cannot be used ends
/// it; an API that fails is tried again, at growing intervals up to half a minute.
pub async fn watch(config: Config, node_name: &str, pods: &Pods) -> Result<(), KubernetesError> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let api = Api::<WatchedPod>::all_with(Client::try_from(config)?, &resource);
    let query = watcher::Config::default()
        .fields(&format!("spec.nodeName={node_name}"))
        .page_size(PAGE_SIZE)
        .timeout(WATCH_SECONDS);
    let mut events = std::pin::pin!(watcher::watcher(api, query).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod) | Event::InitApply(pod)) => remember(&pod, pods),
            // A pod deleted keeps its names for its last resets; room is made for others as needed.
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            Err(error) => {
                pods.count_failure();
                tracing::warn!(%error, "the kubernetes api failed; records go out without names of pods");
            }
        }
    }
    Ok(())
}

fn remember(pod: &WatchedPod, pods: &Pods) {
    if let Some(uid) = pod.uid() {
        pods.set(&uid, describe(pod));
    }
}

fn describe(pod: &WatchedPod) -> Pod {
    let name = |text: &str| sanitize(text.as_bytes(), MAX_NAME);
    let mut attributes = vec![("k8s.pod.name", name(&pod.name_any()))];
    attributes.extend(pod.namespace().map(|namespace| ("k8s.namespace.name", name(&namespace))));
    attributes.extend(pod.spec.node_name.as_deref().map(|node| ("k8s.node.name", name(node))));
    attributes.extend(controllers(pod).map(|(key, controller)| (key, name(&controller))));
    let service_name = service_name(pod, &attributes).map(|service| name(&service));
    Pod { attributes, containers: containers(pod.status.as_ref()), service_name }
}

/// What runs the pod, the outermost first. A deployment is known by the name that it gives its replica set, so that the
/// API need not be asked for replica sets.
fn controllers(pod: &WatchedPod) -> impl Iterator<Item = (&'static str, String)> {
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let hash = pod.labels().get("pod-template-hash");
    let (outer, inner) = owner.map_or((None, None), |owner| match owner.kind.as_str() {
        "ReplicaSet" => {
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            (
                deployment.map(|name| ("k8s.deployment.name", name.to_owned())),
                Some(("k8s.replicaset.name", owner.name.clone())),
            )
        }
        "StatefulSet" => (None, Some(("k8s.statefulset.name", owner.name.clone()))),
        "DaemonSet" => (None, Some(("k8s.daemonset.name", owner.name.clone()))),
        "Job" => (None, Some(("k8s.job.name", owner.name.clone()))),
        _ => (None, None),
    });
    outer.into_iter().chain(inner)
}

/// `service.name` by the semantic conventions for Kubernetes: annotation, labels, controller, pod.
fn service_name(pod: &WatchedPod, attributes: &[(&'static str, String)]) -> Option<String> {
    let value = |map: &BTreeMap<String, String>, key: &str| map.get(key).filter(|value| !value.is_empty()).cloned();
    let controller = |prefix: &str| attributes.iter().find(|(key, _)| *key == prefix).map(|(_, name)| name.clone());
    value(pod.annotations(), "resource.opentelemetry.io/service.name")
        .or_else(|| value(pod.labels(), "app.kubernetes.io/instance"))
        .or_else(|| value(pod.labels(), "app.kubernetes.io/name"))
        .or_else(|| {
            let keys = ["deployment", "replicaset", "statefulset", "daemonset", "job", "pod"];
            keys.into_iter().find_map(|kind| controller(&format!("k8s.{kind}.name")))
        })
}

/// The containers by identifier, without the runtime's scheme, with the one before the last restart of each.
fn containers(status: Option<&PodStatus>) -> Vec<(String, String)> {
    let lists = status.map(|status| {
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
    });
    let statuses = lists.into_iter().flatten().flatten().flatten();
    let identified = statuses.flat_map(|status| {
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref()?.container_id.as_deref());
        status.container_id.as_deref().into_iter().chain(last).map(|id| {
            let id = id.split_once("://").map_or(id, |(_, id)| id);
            (sanitize(id.as_bytes(), MAX_NAME), sanitize(status.name.as_bytes(), MAX_NAME))
        })
    });
    identified.filter(|(id, _)| !id.is_empty()).take(MAX_CONTAINERS).collect()
}
