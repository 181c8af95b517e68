//! Names of pods from the Kubernetes API, whose answers are served over HTTP in the shapes that an API server gives them:
//! lists in pages, watches as a stream of events. No API server runs here.

#![cfg(feature = "kubernetes")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube::Config;
use reset_collector::enrich::{
    kubernetes,
    pods::{Names, Pods},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    time::timeout,
};

/// What the server does with a list.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    Forbids,
    Hangs,
    TalksNonsense,
}

struct Server {
    url: String,
    pods: Mutex<Vec<Value>>,
    events: broadcast::Sender<Value>,
    mood: Mutex<Mood>,
    lists: AtomicUsize,
    watches: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

impl Server {
    async fn start(pods: Vec<Value>, mood: Mood) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let server = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().expect("an address")),
            pods: Mutex::new(pods),
            events: broadcast::channel(1024).0,
            mood: Mutex::new(mood),
            lists: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            requests: Mutex::default(),
        });
        let accepting = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).serve(stream));
            }
        });
        server
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut request = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(length) if length > 0 => request.extend_from_slice(&buffer[..length]),
                _ => return,
            }
            while let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = request.drain(..end + 4).collect();
                let target = String::from_utf8_lossy(&head).split(' ').nth(1).expect("a target").to_owned();
                self.requests.lock().expect("lock").push(target.clone());
                if target.contains("watch=true") || target.contains("watch=1") {
                    return self.watch(stream).await;
                }
                self.list(&mut stream, &target).await;
            }
        }
    }

    async fn list(&self, stream: &mut TcpStream, target: &str) {
        self.lists.fetch_add(1, Ordering::Relaxed);
        let mood = *self.mood.lock().expect("lock");
        let (status, body) = match mood {
            Mood::Hangs => return tokio::time::sleep(Duration::from_secs(3600)).await,
            Mood::TalksNonsense => ("200 OK", "{\"kind\":\"Po".to_owned()),
            Mood::Forbids => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "pods is forbidden", "reason": "Forbidden", "code": 403});
                ("403 Forbidden", status.to_string())
            }
            Mood::Answers => ("200 OK", self.page(target).to_string()),
        };
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.ok();
        stream.write_all(body.as_bytes()).await.ok();
    }

    /// One page, as `limit` and `continue` ask for it.
    fn page(&self, target: &str) -> Value {
        let query = |name: &str| {
            target.split(['?', '&']).find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok())
        };
        let pods = self.pods.lock().expect("lock");
        let (from, limit) = (query("continue").unwrap_or(0), query("limit").unwrap_or(usize::MAX));
        let to = pods.len().min(from.saturating_add(limit));
        let next = if to < pods.len() { to.to_string() } else { String::new() };
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "100", "continue": next}, "items": &pods[from..to]})
    }

    /// Streams events as they come, each a chunk of its own.
    async fn watch(&self, mut stream: TcpStream) {
        let mut events = self.events.subscribe();
        self.watches.fetch_add(1, Ordering::Relaxed);
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
        if stream.write_all(head).await.is_err() {
            return;
        }
        while let Ok(event) = events.recv().await {
            let line = format!("{event}\n");
            if stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn send(&self, kind: &str, object: &Value) {
        self.events.send(json!({"type": kind, "object": object})).expect("somebody watches");
    }
}

/// A pod of a deployment as `kubectl get pod -o json` shows it, cut to a dozen fields and with some that nobody reads.
fn pod(name: &str, uid: &str, container: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "prod", "uid": uid, "resourceVersion": "7", "generateName": "shop-6d4cf56db6-",
            "labels": {"pod-template-hash": "6d4cf56db6", "app": "shop"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-6d4cf56db6", "uid": "x", "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1"}]
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "web", "image": "shop:1"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "web", "containerID": format!("containerd://{container}"), "image": "shop:1", "imageID": "", "ready": true, "restartCount": 1,
             "state": {"running": {"startedAt": "2026-11-24T20:00:00Z"}},
             "lastState": {"terminated": {"containerID": format!("containerd://{container}-before"), "exitCode": 1, "finishedAt": null}}}
        ]}
    })
}

/// Watches the server until the test drops it.
fn watch(url: &str, read_timeout: Duration) -> (Arc<Pods>, tokio::task::JoinHandle<()>) {
    let pods = Arc::new(Pods::default());
    let mut config = Config::new(url.parse().expect("a url"));
    config.read_timeout = Some(read_timeout);
    config.connect_timeout = Some(read_timeout);
    let kept = Arc::clone(&pods);
    let task = tokio::spawn(async move { kubernetes::watch(config, "node-1", &kept).await.expect("a client") });
    (pods, task)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn value<'a>(names: &'a Names, key: &str) -> Option<&'a str> {
    names.attributes.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
}

const PATIENT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn pods_are_named_renamed_deleted_and_made_again() {
    let server = Server::start(vec![pod("shop-6d4cf56db6-x1", "uid-1", "c1")], Mood::Answers).await;
    let (pods, task) = watch(&server.url, PATIENT);
    until("the list is read", || pods.len() == 1).await;
    let names = pods.names("uid-1", Some("c1")).expect("known");
    let seen = ["pod.name", "namespace.name", "node.name", "deployment.name", "replicaset.name", "container.name"]
        .map(|key| value(&names, &format!("k8s.{key}")).unwrap_or_default().to_owned());
    assert_eq!(seen, ["shop-6d4cf56db6-x1", "prod", "node-1", "shop", "shop-6d4cf56db6", "web"]);
    assert_eq!((names.service_name.as_deref(), names.complete), (Some("shop"), true));
    let before = pods.names("uid-1", Some("c1-before")).expect("known");
    assert_eq!(value(&before, "k8s.container.name"), Some("web"), "the container before the restart");
    assert!(server.requests.lock().expect("lock")[0].contains("fieldSelector=spec.nodeName%3Dnode-1"));

    until("the watch stands", || server.watches.load(Ordering::Relaxed) == 1).await;
    // The same name, another pod: a stateful set's, say, or a bare one.
    server.send("DELETED", &pod("shop-6d4cf56db6-x1", "uid-1", "c1"));
    let mut second = pod("shop-6d4cf56db6-x1", "uid-2", "c2");
    second["metadata"]["namespace"] = "test".into();
    second["metadata"]["labels"] = json!({"app.kubernetes.io/name": "cart"});
    server.send("ADDED", &second);
    until("the second pod is known", || pods.names("uid-2", Some("c2")).is_some_and(|names| names.complete)).await;
    let names = pods.names("uid-2", Some("c2")).expect("known");
    assert_eq!((value(&names, "k8s.namespace.name"), names.service_name.as_deref()), (Some("test"), Some("cart")));
    let first = pods.names("uid-1", Some("c1")).expect("its last resets are still named");
    assert_eq!(value(&first, "k8s.namespace.name"), Some("prod"));

    // A container that starts later.
    second["status"]["containerStatuses"][0]["containerID"] = "containerd://c3".into();
    let generation = pods.generation();
    assert!(!pods.names("uid-2", Some("c3")).expect("known").complete);
    server.send("MODIFIED", &second);
    until("the new container is known", || pods.generation() != generation).await;
    assert!(pods.names("uid-2", Some("c3")).expect("known").complete);
    assert_eq!((pods.failures(), server.lists.load(Ordering::Relaxed)), (0, 1), "one list, one watch");
    task.abort();
}

#[tokio::test]
async fn five_thousand_pods_and_then_twice_as_many() {
    let many =
        (0..5000).map(|index| pod(&format!("shop-{index}"), &format!("uid-{index}"), &format!("c{index}"))).collect();
    let server = Server::start(many, Mood::Answers).await;
    let (pods, task) = watch(&server.url, PATIENT);
    until("all are read", || pods.len() == 5000).await;
    for index in [0, 2499, 4999] {
        let names = pods.names(&format!("uid-{index}"), Some(&format!("c{index}"))).expect("known");
        assert_eq!(value(&names, "k8s.pod.name"), Some(format!("shop-{index}").as_str()));
    }
    assert!(server.lists.load(Ordering::Relaxed) >= 25, "in pages");
    until("the watch stands", || server.watches.load(Ordering::Relaxed) == 1).await;
    for index in 5000..10_000 {
        server.send("ADDED", &pod(&format!("shop-{index}"), &format!("uid-{index}"), &format!("c{index}")));
        if index % 500 == 0 {
            until("the watch keeps up", || pods.names(&format!("uid-{index}"), None).is_some()).await;
        }
    }
    until("the last is known", || pods.names("uid-9999", None).is_some()).await;
    assert!(pods.len() <= 8192, "{} pods are held", pods.len());
    task.abort();
}

#[tokio::test]
async fn an_api_that_refuses_hangs_or_talks_nonsense_is_counted_and_tried_again() {
    for mood in [Mood::Forbids, Mood::Hangs, Mood::TalksNonsense] {
        let server = Server::start(vec![pod("shop-0", "uid-0", "c0")], mood).await;
        let (pods, task) = watch(&server.url, Duration::from_millis(200));
        until("the failure is counted", || pods.failures() >= 1).await;
        assert!(pods.names("uid-0", None).is_none() && pods.is_empty());
        *server.mood.lock().expect("lock") = Mood::Answers;
        until("the list is read at last", || pods.len() == 1).await;
        task.abort();
    }
    let (pods, task) = watch("http://127.0.0.1:1", PATIENT);
    until("the refusal is counted", || pods.failures() >= 1).await;
    task.abort();
}
