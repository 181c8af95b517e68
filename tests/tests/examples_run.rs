//! Examples started as their pages say, with the real programs: Jaeger, the OpenTelemetry Collector, Prometheus. The shops are
//! in `example_apps.rs`, the systemd unit in `package.rs`.

#![forbid(unsafe_code)]

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::tool,
    collector::program,
    configuration_file, crate_directory,
    jaeger::Jaeger,
    network::{Host, Layout, Network},
    processes::Programs,
    require_root,
};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(60);
const ADMIN: u16 = 9464;
const PROMETHEUS: u16 = 9090;
/// The first reset that the pages propose: nothing listens there.
const CURL: [&str; 2] = ["--silent", "http://localhost:9/"];

fn example(path: &str) -> Result<PathBuf> {
    crate_directory().join("../examples").join(path).canonicalize().with_context(|| path.to_owned())
}

/// Starts the collector with a file of an example, until it is ready.
fn start_collector(programs: &mut Programs<'_>, file: &str) -> Result<()> {
    let file = example(file)?;
    programs.start("collector", &program()?, &["run", "--config", &file.to_string_lossy()], &[])?;
    programs.wait_for_word("collector", "ready")
}

fn wait(what: &str, is_so: impl Fn() -> Result<bool>, said: impl Fn() -> String) -> Result<()> {
    /// Of what a program has said, the last is enough.
    const SHOWN: usize = 4096;
    let deadline = Instant::now() + TIMEOUT;
    while !is_so()? {
        let said = said();
        let start = said.floor_char_boundary(said.len().saturating_sub(SHOWN));
        ensure!(Instant::now() < deadline, "{what}: {}", &said[start..]);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn jaeger_shows_the_first_reset_under_its_service() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let jaeger = Jaeger::start_at_its_own_ports(&network.client)?;
    let mut programs = Programs::new(&network.client)?;
    start_collector(&mut programs, "jaeger/reset-collector.yaml")?;
    programs.run("curl", &CURL)?;
    let is_there = || -> Result<bool> {
        let spans = jaeger.all_spans()?;
        let mut of_curl = spans.iter().filter(|span| span.service == "unknown_service:curl");
        let has_cause = |reset: &serde_json::Map<String, Value>| {
            reset.get("tcp.reset.cause").is_some_and(|cause| cause == "refused_by_peer")
        };
        Ok(of_curl.any(|span| span.operation.starts_with("tcp.reset ") && span.resets().any(has_cause)))
    };
    wait("Jaeger has no reset of curl", is_there, || programs.said("collector"))
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_collector_gets_resets_beside_it_and_spans_through_the_one_in_front() -> Result<()> {
    require_root()?;
    for file in ["otel-collector/standalone.yaml", "otel-collector/receiver.yaml"] {
        let network = Network::new(Layout::Loopback)?;
        let mut programs = Programs::new(&network.client)?;
        let configuration = example("otel-collector/otelcol-core.yaml")?;
        programs.start("otelcol", &tool("otelcol")?, &["--config", &configuration.to_string_lossy()], &[])?;
        programs.wait_for_port("otelcol", 4317)?;
        start_collector(&mut programs, file)?;
        programs.run("curl", &CURL)?;
        let has = |word: &str| programs.said("otelcol").contains(word);
        wait(file, || Ok(has("EventName: tcp.reset") && has("refused_by_peer")), || programs.said("collector"))?;
        if file.ends_with("receiver.yaml") {
            post_span(&network.client, 4328)?;
            wait("the application's span", || Ok(has("a span of the test")), || programs.said("collector"))?;
        }
    }
    Ok(())
}

/// Sends one span as an application does, over HTTP.
fn post_span(host: &Host, port: u16) -> Result<()> {
    let body = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"5b8efff798038103d269b633813fc60c",
        "spanId":"eee19b7ec3c1b174","name":"a span of the test","startTimeUnixNano":"1","endTimeUnixNano":"2"}]}]}]}"#;
    host.enter(|| -> Result<()> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        write!(
            stream,
            "POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })?
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn prometheus_scrapes_it_and_takes_the_rules() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let mut programs = Programs::new(&network.client)?;
    start_collector(&mut programs, "prometheus/reset-collector.yaml")?;
    programs.run("curl", &CURL)?;
    let prometheus = find("prometheus")?;
    let configuration = format!("--config.file={}", example("prometheus/prometheus.yaml")?.display());
    programs.start("prometheus", &prometheus, &[&configuration, "--storage.tsdb.path=data"], &[])?;
    programs.wait_for_port("prometheus", PROMETHEUS)?;
    // Until it has read its own storage it answers that it is not ready, in words.
    let ask = |path: &str| -> Result<Value> {
        Ok(serde_json::from_str(&programs.ask("GET", PROMETHEUS, path)?).unwrap_or_default())
    };
    let query = "/api/v1/query?query=tcp_resets_total%7Btcp_reset_cause%3D%22refused_by_peer%22%7D";
    let is_scraped = || Ok(ask(query)?["data"]["result"].as_array().is_some_and(|found| !found.is_empty()));
    wait("Prometheus has no resets", is_scraped, || programs.said("prometheus"))?;
    let rules = ask("/api/v1/rules")?;
    let groups = rules["data"]["groups"].as_array().context("no rules")?;
    ensure!(groups.len() == 2, "{rules}");

    let page = programs.ask("GET", ADMIN, "/metrics")?;
    promtool(&["check", "metrics"], &page)?;
    Ok(())
}

/// A program of Debian's package `prometheus`.
fn find(name: &str) -> Result<PathBuf> {
    let path = Path::new("/usr/bin").join(name);
    ensure!(path.exists(), "{} is missing: run tests/setup", path.display());
    Ok(path)
}

fn promtool(arguments: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(find("promtool")?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn promtool_takes_rules_tests_and_the_dashboards_expressions() -> Result<()> {
    require_root()?;
    for (verb, file) in
        [("check rules", "rules.yaml"), ("test rules", "rules.test.yaml"), ("check config", "prometheus.yaml")]
    {
        let path = example(&format!("prometheus/{file}"))?;
        let arguments: Vec<&str> = verb.split(' ').chain([path.to_str().context("path")?]).collect();
        promtool(&arguments, "")?;
    }
    let dashboard: Value = serde_json::from_slice(&fs::read(example("tempo-grafana-loki/dashboard.json")?)?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let of_prometheus = targets.filter(|target| target["datasource"]["uid"] == "prometheus");
    let expressions: Vec<&str> = of_prometheus.filter_map(|target| target["expr"].as_str()).collect();
    ensure!(expressions.len() >= 3, "{} expressions", expressions.len());
    let rules: Vec<Value> = expressions
        .iter()
        .map(|expression| expression.replace("$__rate_interval", "1m").replace("$cause", ".*"))
        .map(|expression| serde_json::json!({ "record": "panel", "expr": expression }))
        .collect();
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let file = configuration_file(&groups.to_string())?;
    promtool(&["check", "rules", "--lint=none", file.path().to_str().context("path")?], "")
}

#[test]
fn the_files_of_collectors_that_are_not_run_are_valid() -> Result<()> {
    // It has no hosts `tempo` and `loki` to resolve, and does not need to: `validate` starts nothing.
    let file = example("tempo-grafana-loki/otelcol.yaml")?;
    let output = Command::new(tool("otelcol")?).arg("validate").arg("--config").arg(&file).output()?;
    ensure!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
