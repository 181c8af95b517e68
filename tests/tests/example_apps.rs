//! `examples/app-go`, `examples/app-python` and `examples/jaeger` as their pages say: a checkout fails, and the chain from the
//! counter that an alert reads, over the trace, to the cause is there.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the chain is shown, and a skip says why")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reset_collector_tests::{
    backend::tool,
    collector::program,
    crate_directory,
    jaeger::{Jaeger, Span},
    network::{Layout, Network},
    processes::Programs,
    require_root,
};

/// SDKs batch for 5 s, and a reset waits 6 s for its span.
const TRACE_TIMEOUT: Duration = Duration::from_secs(40);
const SHOP: u16 = 8000;
const PAYMENT: u16 = 8001;
const ADMIN: u16 = 9464;
/// Long enough after a reset that a call which ends then ends long after it.
const ANOTHER_CALL: Duration = Duration::from_millis(500);
/// More than the shop's payment service reads.
const LARGE_CART: &str = "/checkout/20000000";
/// What `TcpDataLostAtClose` of `examples/prometheus` counts.
const COUNTER: &str = r#"tcp_resets_total{network_io_direction="transmit",tcp_reset_origin="active",tcp_reset_cause="closed_with_unread_data"}"#;

/// How an example starts one of its two services.
struct Service {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, &'static str)>,
}

/// A service and the cause of a reset on one of its spans.
type ServiceCause = (String, String);

fn examples() -> Result<PathBuf> {
    Ok(crate_directory().join("../examples").canonicalize()?)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn in_go_a_broken_checkout_is_told_from_both_ends_on_one_trace() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let mut programs = Programs::new(&network.client)?;
    let shop = build_shop(&examples()?.join("app-go"), programs.directory.path())?;
    let service = |role: &'static str| Service {
        program: shop.clone(),
        arguments: vec![role.to_owned()],
        variables: vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"), ("OTEL_SERVICE_NAME", role)],
    };
    let services = [service("payment"), service("shop")];
    let spans = break_checkout(&network, &mut programs, &services, |spans| {
        let causes = causes(spans.iter().filter(|span| is_the_applications(span)));
        has(&causes, "shop", "reset_by_peer") && has(&causes, "payment", "closed_with_unread_data")
    })?;
    ensure!(blamed(&spans) == 1, "another trace was blamed: {spans:#?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn in_python_a_broken_checkout_is_told_on_the_shops_trace() -> Result<()> {
    require_root()?;
    let network = Network::new(Layout::Loopback)?;
    let mut programs = Programs::new(&network.client)?;
    let (example, environment) = (examples()?.join("app-python"), tool("sdk")?.join("python/bin"));
    let script = |name: &str| example.join(name).to_string_lossy().into_owned();
    let python = environment.join("python");
    ensure!(python.exists(), "{} is missing: run tests/setup", python.display());
    let payment = Service {
        program: python.clone(),
        arguments: vec![script("payment.py")],
        variables: vec![("OTEL_SERVICE_NAME", "payment")],
    };
    let shop = Service {
        program: environment.join("opentelemetry-instrument"),
        arguments: vec![python.to_string_lossy().into_owned(), script("shop.py")],
        variables: vec![
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_LOGS_EXPORTER", "none"),
        ],
    };
    // `payment.py` sends no spans: its own end of the story is a span of ours.
    let spans = break_checkout(&network, &mut programs, &[payment, shop], |spans| {
        let on_its_own_span = causes(spans.iter().filter(|span| is_the_applications(span)));
        has(&on_its_own_span, "shop", "reset_by_peer")
            && has(&causes(spans.iter()), "payment", "closed_with_unread_data")
    })?;
    ensure!(blamed(&spans) == 1, "another trace was blamed: {spans:#?}");
    Ok(())
}

/// Starts payment, shop, Jaeger and the collector, breaks a checkout, and returns Jaeger's spans once they tell of it.
fn break_checkout(
    network: &Network,
    programs: &mut Programs<'_>,
    services: &[Service; 2],
    is_told: impl Fn(&[Span]) -> bool,
) -> Result<Vec<Span>> {
    let jaeger = Jaeger::start_at_its_own_ports(&network.client)?;
    let configuration = examples()?.join("jaeger/receiver.yaml");
    programs.start("collector", &program()?, &["run", "--config", &configuration.to_string_lossy()], &[])?;
    programs.wait_for_word("collector", "ready")?;
    for (role, port, service) in [("payment", PAYMENT, &services[0]), ("shop", SHOP, &services[1])] {
        let arguments: Vec<&str> = service.arguments.iter().map(String::as_str).collect();
        programs.start(role, &service.program, &arguments, &service.variables)?;
        programs.wait_for_port(role, port)?;
    }
    let small = programs.ask("POST", SHOP, "/checkout/1000")?;
    ensure!(small == "payment said 200\n", "{small}");
    let large = programs.ask("POST", SHOP, LARGE_CART)?;
    ensure!(large.starts_with("payment failed: "), "{large}");
    // What Python says of the broken call could be said of another: it is the one once a later call has passed.
    std::thread::sleep(ANOTHER_CALL);
    let small = programs.ask("POST", SHOP, "/checkout/1000")?;
    ensure!(small == "payment said 200\n", "{small}");

    let deadline = Instant::now() + TRACE_TIMEOUT;
    let spans = loop {
        let spans = jaeger.all_spans()?;
        if is_told(&spans) {
            break spans;
        }
        ensure!(
            Instant::now() < deadline,
            "{:?}; the collector said: {}",
            causes(spans.iter()),
            programs.said("collector")
        );
        std::thread::sleep(Duration::from_millis(500));
    };
    let metrics = programs.ask("GET", ADMIN, "/metrics")?;
    let counted = metrics.lines().find(|line| line.starts_with(COUNTER)).context("the counter knows nothing of it")?;
    println!("{large}{counted}");
    for (span, reset) in spans.iter().flat_map(|span| span.resets().map(move |reset| (span, reset))) {
        if ["shop", "payment"].contains(&span.service.as_str()) {
            let cause = &reset["tcp.reset.cause"];
            println!("trace {}, span {:?} of {}: {cause}", span.trace_id, span.operation, span.service);
        }
    }
    Ok(spans)
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

/// A span that the collector did not make itself.
fn is_the_applications(span: &Span) -> bool {
    !span.operation.starts_with("tcp.reset ")
}

/// The services and causes that spans tell of.
fn causes<'a>(spans: impl Iterator<Item = &'a Span>) -> Vec<ServiceCause> {
    let each =
        spans.flat_map(|span| span.resets().map(move |reset| (span.service.clone(), reset.get("tcp.reset.cause"))));
    each.filter_map(|(service, cause)| Some((service, cause?.as_str()?.to_owned()))).collect()
}

fn has(causes: &[ServiceCause], service: &str, cause: &str) -> bool {
    causes.iter().any(|(of, why)| of == service && why == cause)
}

/// Traces of the shop's with a reset on a span of an application.
fn blamed(spans: &[Span]) -> usize {
    let broken = spans.iter().filter(|span| is_the_applications(span) && span.resets().next().is_some());
    let mut traces: Vec<&str> = broken.map(|span| span.trace_id.as_str()).collect();
    traces.sort_unstable();
    traces.dedup();
    traces.len()
}
