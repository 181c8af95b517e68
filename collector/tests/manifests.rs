//! The manifests of `examples/kubernetes` against the Kubernetes API's own schemas, strictly: a field that the API does not
//! know is refused, as by `kubectl apply --validate=strict`. And what the manifests name in each other is there.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{ConfigMap, Container, Namespace, PodSpec, PodTemplateSpec, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
    schemars::{JsonSchema, SchemaGenerator},
    serde::de::DeserializeOwned,
};
use reset_collector::config;
use serde_json::{Value, json};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes")
}

/// Every document of every manifest, with its file's name; the kustomization is none of the API's.
fn documents() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_none_or(|extension| extension != "yaml") || name == "kustomization.yaml" {
            continue;
        }
        let text = format!("{}\n", fs::read_to_string(&path).unwrap());
        let parts = text.split("\n---\n").map(|part| serde_yaml::from_str(part).unwrap());
        found.extend(parts.map(|document| (name.clone(), document)));
    }
    assert!(found.len() >= 8, "{} documents", found.len());
    found
}

/// The schema of a type, closed: no field but those that it names.
fn schema<T: JsonSchema>() -> Value {
    let mut schema = serde_json::to_value(SchemaGenerator::default().into_root_schema_for::<T>()).unwrap();
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    if let Some(members) = schema.as_object_mut() {
        if members.get("properties").is_some_and(Value::is_object) && !members.contains_key("additionalProperties") {
            members.insert("additionalProperties".into(), false.into());
        }
        members.values_mut().for_each(close);
    }
    schema.as_array_mut().into_iter().flatten().for_each(close);
}

/// The kinds that the manifests use.
fn schemas() -> BTreeMap<(&'static str, &'static str), Value> {
    fn of<T: Resource + JsonSchema>() -> ((&'static str, &'static str), Value) {
        ((T::API_VERSION, T::KIND), schema::<T>())
    }
    BTreeMap::from([
        of::<ClusterRole>(),
        of::<ClusterRoleBinding>(),
        of::<ConfigMap>(),
        of::<DaemonSet>(),
        of::<Deployment>(),
        of::<Namespace>(),
        of::<NetworkPolicy>(),
        of::<Service>(),
        of::<ServiceAccount>(),
    ])
}

fn complaints(schema: &Value, document: &Value) -> Vec<String> {
    let validator = jsonschema::validator_for(schema).unwrap();
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[test]
fn each_document_is_what_the_api_takes() {
    let schemas = schemas();
    for (file, document) in documents() {
        let kind = (document["apiVersion"].as_str().unwrap(), document["kind"].as_str().unwrap());
        let schema = schemas.get(&kind).unwrap_or_else(|| panic!("{file}: {kind:?} is held to no schema"));
        let complaints = complaints(schema, &document);
        assert!(complaints.is_empty(), "{file}, {kind:?}: {complaints:#?}");
    }
}

#[test]
fn the_schemas_refuse_what_the_api_refuses() {
    let (_, good) = documents().into_iter().find(|(_, document)| document["kind"] == "DaemonSet").unwrap();
    let schema = schema::<DaemonSet>();
    let pod = "/spec/template/spec";
    for (at, value) in [
        (format!("{pod}/hostPid"), json!(true)),
        (format!("{pod}/containers/0/securityContext/capabilities/added"), json!(["BPF"])),
        (format!("{pod}/containers/0/ports/0/containerPort"), json!("9464")),
        (format!("{pod}/containers/0/name"), Value::Null),
        ("/spec/selector".to_owned(), Value::Null),
    ] {
        let mut bad = good.clone();
        let (parent, name) = at.rsplit_once('/').unwrap();
        let members = bad.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => drop(members.remove(name).unwrap()),
            value => drop(members.insert(name.to_owned(), value)),
        }
        assert!(!complaints(&schema, &bad).is_empty(), "{at} is taken");
    }
}

/// The documents of a kind.
fn all<T: Resource + DeserializeOwned>() -> Vec<(String, T)> {
    let of_kind = documents().into_iter().filter(|(_, document)| document["kind"] == T::KIND);
    of_kind.map(|(file, document)| (file, serde_json::from_value(document).unwrap())).collect()
}

fn name<T: Metadata<Ty = ObjectMeta>>(resource: &T) -> &str {
    resource.metadata().name.as_deref().unwrap()
}

/// The two pods: their file, the labels that their owner selects, and the template.
fn pods() -> Vec<(String, BTreeMap<String, String>, PodTemplateSpec)> {
    let agents = all::<DaemonSet>().into_iter().map(|(file, owner)| {
        let spec = owner.spec;
        (file, spec.selector.match_labels.unwrap(), spec.template)
    });
    let sidecars = all::<Deployment>().into_iter().map(|(file, owner)| {
        let spec = owner.spec;
        (file, spec.selector.match_labels.unwrap(), spec.template)
    });
    agents.chain(sidecars).collect()
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

#[test]
fn what_the_pods_name_is_there() {
    let maps = all::<ConfigMap>();
    let accounts = all::<ServiceAccount>();
    let pods = pods();
    assert_eq!(pods.len(), 2);
    for (file, selected, template) in &pods {
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap_or_default();
        assert!(selected.iter().all(|(key, value)| labels.get(key) == Some(value)), "{file}: {selected:?}, {labels:?}");
        let pod = template.spec.as_ref().unwrap();
        let volumes: Vec<&str> = pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
        for volume in pod.volumes.iter().flatten().filter_map(|volume| volume.config_map.as_ref()) {
            assert!(maps.iter().any(|(_, map)| name(map) == volume.name), "{file}: {volume:?}");
        }
        if let Some(account) = &pod.service_account_name {
            assert!(accounts.iter().any(|(_, there)| name(there) == account), "{file}: {account}");
        }
        for container in containers(pod) {
            check_container(file, container, &volumes);
        }
    }
}

/// Mounted volumes and probed ports exist; the configuration file is on a volume.
fn check_container(file: &str, container: &Container, volumes: &[&str]) {
    let mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
    assert!(mounts.iter().all(|mount| volumes.contains(&mount.name.as_str())), "{file}: {mounts:?}");
    let ports: Vec<&str> = container.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
    let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
    for asked in probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref()) {
        if let IntOrString::String(port) = &asked.port {
            assert!(ports.contains(&port.as_str()), "{file}: no port {port}");
        }
        assert!(["/healthz", "/readyz"].contains(&asked.path.as_deref().unwrap()), "{file}: {asked:?}");
    }
    let arguments = container.args.iter().flatten();
    for argument in arguments.filter(|argument| argument.starts_with('/')) {
        assert!(
            mounts.iter().any(|mount| argument.starts_with(&mount.mount_path)),
            "{file}: {argument} is on no volume"
        );
    }
}

#[test]
fn roles_are_bound_and_the_kustomization_has_every_file() {
    let roles = all::<ClusterRole>();
    for (file, binding) in all::<ClusterRoleBinding>() {
        assert!(roles.iter().any(|(_, role)| name(role) == binding.role_ref.name), "{file}: {:?}", binding.role_ref);
        for subject in binding.subjects.iter().flatten() {
            assert!(
                all::<ServiceAccount>().iter().any(|(_, account)| name(account) == subject.name),
                "{file}: {subject:?}"
            );
        }
    }
    let text = fs::read_to_string(directory().join("kustomization.yaml")).unwrap();
    let kustomization: Value = serde_yaml::from_str(&text).unwrap();
    let mut listed: Vec<&str> =
        kustomization["resources"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut there: Vec<String> =
        documents().into_iter().map(|(file, _)| file).filter(|file| file != "sidecar.yaml").collect();
    listed.sort_unstable();
    there.sort_unstable();
    there.dedup();
    assert_eq!(listed, there);
}

#[test]
fn no_port_of_the_node_is_taken_and_no_application_sees_the_nodes_processes() {
    for (file, _, template) in pods() {
        let pod = template.spec.unwrap();
        assert_ne!(pod.host_network, Some(true), "{file}");
        for container in containers(&pod) {
            let ports = container.ports.iter().flatten();
            assert!(ports.into_iter().all(|port| port.host_port.is_none()), "{file}: {}", container.name);
        }
        // The collector alone may share the node's pids.
        assert!(pod.host_pid != Some(true) || containers(&pod).count() == 1, "{file}: hostPID beside an application");
    }
}

#[test]
fn the_service_leads_to_the_collector_of_the_senders_node() {
    let (file, service) = all::<Service>().into_iter().next().unwrap();
    let spec = service.spec.unwrap();
    assert_eq!(spec.internal_traffic_policy.as_deref(), Some("Local"), "{file}");
    let selector = spec.selector.unwrap();
    let (_, _, template) =
        pods().into_iter().find(|(_, labels, _)| *labels == selector).expect("a pod that it selects");
    let pod = template.spec.unwrap();
    let names: Vec<_> = containers(&pod).flat_map(|container| container.ports.iter().flatten()).collect();
    for port in spec.ports.unwrap() {
        let Some(IntOrString::String(target)) = &port.target_port else { panic!("{file}: {port:?}") };
        let there = names.iter().find(|named| named.name.as_ref() == Some(target));
        assert_eq!(there.map(|named| named.container_port), Some(port.port), "{file}: {target}");
    }
}

#[test]
fn an_ipv6_node_takes_the_same_configuration() {
    for (file, map) in all::<ConfigMap>() {
        for address in ["192.0.2.1", "fd00:10:1::5"] {
            let variable = |name: &str| Some(if name == "HOST_IP" { address } else { "x" }.to_owned());
            let text = map.data.as_ref().unwrap()["reset-collector.yaml"].as_str();
            if let Err(errors) = config::parse(text, &file, &variable) {
                panic!("{file} on a node at {address}: {errors}");
            }
            // The kubelet's probes reach a pod by the family that the node has.
            assert!(text.contains("admin: { endpoint: \"[::]:9464\" }"), "{file}");
        }
    }
}
