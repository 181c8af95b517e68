//! `examples/app-go` and `examples/jaeger` as their pages say: a checkout fails, and one trace in Jaeger tells from both ends
//! which reset broke it.

#![forbid(unsafe_code)]

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reset_collector_tests::{
    backend::tool,
    collector::program,
    crate_directory,
    network::{Host, Layout, Network},
    skip_reason,
};
use serde_json::Value;

/// The programs start within this time, on a busy machine too.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// SDKs batch for 5 s, and a reset waits 6 s for its span.
const TRACE_PATIENCE: Duration = Duration::from_secs(40);
const JAEGER_QUERY: u16 = 16686;
const SHOP: u16 = 8000;
const PAYMENT: u16 = 8001;
/// More than the shop's payment service reads.
const LARGE_CART: &str = "/checkout/20000000";

/// Programs on a host, ended when dropped, their output in a directory that goes as well.
struct Programs<'a> {
    host: &'a Host,
    directory: PathBuf,
    children: Vec<Child>,
}

impl<'a> Programs<'a> {
    fn new(host: &'a Host) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("reset-collector-shop-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self { host, directory, children: Vec::new() })
    }

    fn start(&mut self, name: &str, path: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
        let said = fs::File::create(self.directory.join(name))?;
        let mut command = self.host.command(path.to_str().context("a path that is no text")?);
        for (inherited, _) in std::env::vars().filter(|(inherited, _)| inherited.starts_with("OTEL_")) {
            command.env_remove(inherited);
        }
        let command = command.args(arguments).envs(variables.iter().copied());
        self.children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn()?);
        Ok(())
    }

    /// What a program has said on its standard error.
    fn said(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap_or_default()
    }

    fn wait_for_word(&self, name: &str, word: &str) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while !self.said(name).contains(word) {
            ensure!(Instant::now() < deadline, "{name} is not ready: {}", self.said(name));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for_port(&self, name: &str, port: u16) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while self.host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err())? {
            ensure!(Instant::now() < deadline, "{name} does not listen: {}", self.said(name));
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The body of an answer to a request without one.
    fn ask(&self, method: &str, port: u16, path: &str) -> Result<String> {
        let exchange = || -> Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(START_PATIENCE))?;
            write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            Ok(body.to_owned())
        };
        self.host.enter(exchange)?
    }
}

impl Drop for Programs<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

#[test]
fn a_broken_checkout_is_told_from_both_ends_on_one_trace() -> Result<()> {
    if let Some(reason) = skip_reason() {
        println!("{reason}");
        return Ok(());
    }
    let examples = crate_directory().join("../examples").canonicalize()?;
    let network = Network::new(Layout::Loopback)?;
    let mut programs = Programs::new(&network.client)?;
    let shop = build_shop(&examples.join("app-go"), &programs.directory)?;
    let jaeger = programs.directory.join("jaeger.yaml");
    fs::write(&jaeger, JAEGER)?;
    let sampler = [("OTEL_TRACES_SAMPLER", "always_off")];
    programs.start("jaeger", &tool("jaeger")?, &["--config", &jaeger.to_string_lossy()], &sampler)?;
    let configuration = examples.join("jaeger/in-front.yaml");
    let arguments = ["run", "--config", &configuration.to_string_lossy()];
    programs.start("collector", &program()?, &arguments, &[])?;
    programs.wait_for_port("jaeger", JAEGER_QUERY)?;
    programs.wait_for_word("collector", "ready")?;
    for (role, port) in [("payment", PAYMENT), ("shop", SHOP)] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"), ("OTEL_SERVICE_NAME", role)];
        programs.start(role, &shop, &[role], &variables)?;
        programs.wait_for_port(role, port)?;
    }

    let small = programs.ask("POST", SHOP, "/checkout/1000")?;
    ensure!(small == "payment said 200\n", "{small}");
    let large = programs.ask("POST", SHOP, LARGE_CART)?;
    ensure!(large.starts_with("payment failed: "), "{large}");

    let wanted = [("shop", "reset_by_peer"), ("payment", "closed_with_unread_data")];
    let deadline = Instant::now() + TRACE_PATIENCE;
    loop {
        let traces: Value = serde_json::from_str(&programs.ask("GET", JAEGER_QUERY, "/api/traces?service=shop")?)?;
        let traces = traces["data"].as_array().context("Jaeger gives no traces")?;
        let told: Vec<Vec<(String, String)>> = traces.iter().map(resets_on_spans).collect();
        let whole = |told: &Vec<(String, String)>| {
            wanted.iter().all(|(service, cause)| told.iter().any(|(on, why)| on == service && why == cause))
        };
        if told.iter().any(whole) {
            ensure!(told.iter().filter(|told| !told.is_empty()).count() == 1, "another trace was blamed: {told:?}");
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("resets on traces: {told:?}; the collector said: {}", programs.said("collector"));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Builds the example as its page says, outside of the repository.
fn build_shop(source: &Path, to: &Path) -> Result<PathBuf> {
    let program = to.join("shop-example");
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "-modcacherw -buildvcs=false")])
        .output()
        .context("go is missing: see https://go.dev/doc/install")?;
    ensure!(output.status.success(), "app-go does not build: {}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

/// The resets on the spans of a trace as Jaeger gives it: the span's service, the reset's cause. Spans that the collector
/// made itself are not the application's.
fn resets_on_spans(trace: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for span in trace["spans"].as_array().into_iter().flatten().filter(|span| span["operationName"] != "tcp.reset") {
        let process = span["processID"].as_str().unwrap_or_default();
        let service = trace["processes"][process]["serviceName"].as_str().unwrap_or_default();
        let fields = span["logs"].as_array().into_iter().flatten().flat_map(|log| log["fields"].as_array()).flatten();
        let causes =
            fields.filter(|field| field["key"] == "tcp.reset.cause").filter_map(|field| field["value"].as_str());
        found.extend(causes.map(|cause| (service.to_owned(), cause.to_owned())));
    }
    found
}

/// Jaeger in memory; its own defaults are for a container.
const JAEGER: &str = r#"
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: { receivers: [otlp], exporters: [jaeger_storage_exporter] }
  telemetry: { metrics: { level: none } }
extensions:
  jaeger_query:
    storage: { traces: memory }
    grpc: { endpoint: "127.0.0.1:16685" }
    http: { endpoint: "127.0.0.1:16686" }
  jaeger_storage:
    backends: { memory: { memory: { max_traces: 1000 } } }
receivers:
  otlp: { protocols: { grpc: { endpoint: "127.0.0.1:4317" } } }
exporters:
  jaeger_storage_exporter: { trace_storage: memory }
"#;
