//! Real instrumented programs, a real Jaeger and a real Collector: each reset stands on the span of its own request, or
//! on none.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a table, and why a test is skipped")]

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reset_collector_tests::{
    backend::Backend,
    collector::Collector,
    configuration_file,
    instrumented::{self, Judge, Program, Side, Truth, Verdict},
    jaeger::{Jaeger, Span},
    network::{Host, Layout, Network},
    poll::eventually,
    require_root,
};

/// A span waits five seconds in its SDK, and a busy machine may take as long again to send it.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(40);
const SETTLE_DELAY: Duration = Duration::from_secs(7);
/// Resets that may be found on no span, beside those that never can be: on a machine with much else to do a call may
/// end so long after its reset, or connect so long after its start, that nothing ties them. None may be on a wrong one.
const MAX_MISSED: usize = 3;

const OF_SERVER: [&str; 10] = [
    "client_aborts",
    "gives_up_late",
    "server_aborts",
    "unread_body",
    "third_of_five",
    "one_of_eight",
    "control_complete",
    "control_idle",
    "control_no_request",
    "control_half_a_request",
];
const OF_CLIENT: [&str; 11] = [
    "before",
    "middle",
    "unread",
    "drip",
    "late",
    "connection_refused",
    "third_of_five",
    "one_of_eight",
    "complete",
    "idle",
    "outside",
];

const OF_GRPC_SERVER: [&str; 8] = [
    "client_aborts",
    "all_of_three",
    "third_of_five",
    "one_of_eight",
    "control_complete",
    "control_idle",
    "control_no_request",
    "control_beside_another",
];
const OF_GRPC_CLIENT: [&str; 10] = [
    "before",
    "middle",
    "unread",
    "connection_refused",
    "all_of_three",
    "third_of_five",
    "one_of_eight",
    "complete",
    "idle",
    "outside",
];

/// An instrumented program: its name, how it is run, the protocol of its OTLP, its other end and the cases.
struct Instrumented {
    name: &'static str,
    run: &'static [&'static str],
    protocol: &'static str,
    side: Side,
    peer: &'static str,
    cases: &'static [&'static str],
}

const fn server(name: &'static str, run: &'static [&'static str], protocol: &'static str) -> Instrumented {
    Instrumented { name, run, protocol, side: Side::Server, peer: "peer", cases: &OF_SERVER }
}

const fn client(name: &'static str, run: &'static [&'static str], protocol: &'static str) -> Instrumented {
    Instrumented { name, run, protocol, side: Side::Client, peer: "peer", cases: &OF_CLIENT }
}

const fn grpc(program: Instrumented, cases: &'static [&'static str]) -> Instrumented {
    Instrumented { peer: "peer_grpc", cases, ..program }
}

/// First ports: of the servers, of what the clients call, of what refuses them.
const SERVED: usize = 8001;
const CALLED: usize = 9001;
const REFUSED: usize = 9501;

const PROGRAMS: &[Instrumented] = &[
    server("Python Flask", &["python", "server_flask.py"], "grpc"),
    server("Python FastAPI", &["python", "server_fastapi.py"], "http/protobuf"),
    client("Python requests", &["python", "client.py", "requests"], "grpc"),
    client("Python httpx", &["python", "client.py", "httpx"], "http/protobuf"),
    server("Go net/http", &["go", "http-server"], "http/protobuf"),
    client("Go net/http", &["go", "http-client"], "grpc"),
    grpc(server("Go gRPC", &["go", "grpc-server"], "grpc"), &OF_GRPC_SERVER),
    grpc(client("Go gRPC", &["go", "grpc-client"], "http/protobuf"), &OF_GRPC_CLIENT),
    server("Node http", &["node", "server.js"], "http/protobuf"),
    client("Node http", &["node", "client.js", "http"], "http/protobuf"),
    client("Node fetch", &["node", "client.js", "fetch"], "grpc"),
];

/// What a program never does: FastAPI gives an application no way to its socket. Flask's own server takes one request
/// per connection, and reads a body that nobody wants. FastAPI's and Node's servers write nothing to a client that left.
const IMPOSSIBLE: &[(&str, &str)] = &[
    ("Python FastAPI", "server_aborts"),
    ("Python FastAPI", "gives_up_late"),
    ("Python Flask", "third_of_five"),
    ("Python Flask", "unread_body"),
    ("Node http", "gives_up_late"),
];

/// How the collector is to find the spans.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// By the spans that pass through it alone.
    Spans,
    /// By `traceparent` on the connections as well.
    HttpHeaders,
}

/// What cannot be decided without reading the wire: program, end, case, why. These may be missing, never wrong.
const NOT_DECIDABLE: &[(&str, Side, &str, &str)] = &[
    ("Python Flask", Side::Server, "server_aborts", "the span ends when the view returns, before a streamed body"),
    ("Python requests", Side::Client, "drip", "the span ends at the answer's headers and is healthy"),
    ("Python httpx", Side::Client, "middle", "the span ends at the answer's headers and is healthy"),
    ("Python httpx", Side::Client, "drip", "the span ends at the answer's headers and is healthy"),
    (
        "Go net/http",
        Side::Client,
        "before third",
        "the transport tries again: one span, two resets, it names the second",
    ),
    ("Node http", Side::Client, "drip", "the span is healthy and does not name the connection"),
    (
        "Node http",
        Side::Server,
        "server_aborts",
        "the span may end a millisecond early, and all that was sent was taken",
    ),
];

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn resets_stand_on_the_spans_of_their_requests() -> Result<()> {
    each_on_its_span(By::Spans)
}

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn http_headers_tell_what_spans_do_not() -> Result<()> {
    each_on_its_span(By::HttpHeaders)
}

fn each_on_its_span(by: By) -> Result<()> {
    require_root()?;
    // The programs on one host; the backends and the collector, as a node's agent would be, on another.
    let network = Network::new(Layout::Wire)?;
    let (workload, agent) = (&network.client, &network.server);
    make_service(workload, agent)?;
    let jaeger = Jaeger::start_on(agent)?;
    let backend = Backend::start_on(agent)?;
    let config = configuration_file(&configuration(workload, agent, by))?;
    // Pass-through goes to where traces go.
    let [traces, logs] = [jaeger.grpc, backend.grpc].map(|address| format!("http://{address}"));
    let variables = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*traces), ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", &*logs)];
    let collector = Collector::start_on(agent, &["--config", &config.path().to_string_lossy()], &variables)?;
    let (mut running, mut truths) = (Vec::new(), Vec::new());
    let wanted = std::env::var("RESET_TESTS_PROGRAMS").unwrap_or_default();
    let programs = PROGRAMS.iter().enumerate().filter(|(_, program)| program.name.contains(&wanted));
    for (number, program) in programs {
        let port = if program.protocol == "grpc" { 4327 } else { 4328 };
        let address = if port == SERVICE.1 { SERVICE.0.to_owned() } else { agent.v4.to_string() };
        let endpoint = format!("http://{address}:{port}");
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", program.protocol),
            ("OTEL_SERVICE_NAME", program.name),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_LOGS_EXPORTER", "none"),
            // The default ones ask cloud metadata servers.
            ("OTEL_NODE_RESOURCE_DETECTORS", "env,host,os,process"),
        ];
        let ports = [SERVED, CALLED, REFUSED].map(|base| (base + number).to_string());
        let [port, peer_port, refused] = ports.each_ref().map(String::as_str);
        if program.side == Side::Server {
            let server = Program::start(workload, &[program.run, &[port]].concat(), &variables)?;
            server.wait_ready()?;
            let cases = program.cases.iter().filter(|case| !IMPOSSIBLE.contains(&(program.name, case)));
            let cases: Vec<&str> = cases.copied().collect();
            let mut peer = Program::start(workload, &[&[program.peer, "call", port][..], &cases].concat(), &[])?;
            ensure!(peer.wait()?, "{}: the peer failed", program.name);
            truths.extend(peer.truths(program.name)?);
            running.push(server);
        } else {
            let peer = Program::start(workload, &[program.peer, "serve", peer_port], &[])?;
            peer.wait_ready()?;
            let arguments = [program.run, &[peer_port, refused], program.cases].concat();
            Program::start(workload, &arguments, &variables)?.wait()?;
            truths.extend(peer.truths(program.name)?);
            truths.push(Truth {
                program: program.name.into(),
                case: "connection_refused".into(),
                side: Side::Client,
                local_port: None,
                peer_port: refused.parse()?,
                trace_id: None,
                span_id: None,
                made: true,
                shared: false,
            });
        }
    }
    let verdicts = awaited(&truths, by, || {
        let (logs, spans) = (backend.logs()?, jaeger.all_spans()?);
        let judge = Judge::new(workload, &logs, &spans);
        let verdicts: Vec<_> = truths.iter().map(|truth| (truth.clone(), judge.verdict(truth))).collect();
        let strangers = judge.strangers(&truths);
        ensure!(strangers.is_empty(), "events on spans that they do not belong to: {strangers:#?}");
        if by == By::Spans {
            no_warnings(&spans)?; // else some of ours are children of the peers', which send no spans
        }
        Ok(verdicts)
    })?;
    println!("{}", instrumented::table(&verdicts)?);
    if std::env::var_os("RESET_TESTS_VERBOSE").is_some() {
        tell_all(&truths, &backend, &jaeger, &network)?;
    }
    let (_, said) = collector.stop()?;
    println!("{said}");
    let faults = verdicts.iter().filter(|(truth, verdict)| is_fault(truth, verdict, by));
    let (missed, wrong): (Vec<_>, Vec<_>) =
        faults.partition(|(_, verdict)| matches!(verdict, Verdict::Missing | Verdict::Ambiguous));
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(missed.len() <= MAX_MISSED, "{missed:#?}");
    Ok(())
}

/// Jaeger takes traces only and says so: with one line of configuration the rest is switched off, and said once.
#[test]
#[ignore = "needs root: run by `make e2e`"]
fn jaeger_alone_needs_one_line() -> Result<()> {
    require_root()?;
    const ROUNDS: usize = 4;
    let network = Network::new(Layout::Wire)?;
    let (workload, agent) = (&network.client, &network.server);
    let jaeger = Jaeger::start_on(agent)?;
    let others = format!("filters:\n  - drop: {{ not: {{ network.namespace.inode: {} }} }}\n", workload.inode);
    let config =
        configuration_file(&format!("{others}export: {{ otlp: {{ endpoint: \"http://{}\" }} }}\n", jaeger.grpc))?;
    let collector = Collector::start_on(agent, &["--config", &config.path().to_string_lossy()], &[])?;
    for _ in 0..ROUNDS {
        let refused = workload.enter(|| std::net::TcpStream::connect("127.0.0.1:9"))?;
        ensure!(refused.is_err(), "something listens at port 9");
        std::thread::sleep(Duration::from_millis(500)); // a batch of its own
    }
    let deadline = Instant::now() + ARRIVAL_TIMEOUT;
    let spans = loop {
        let spans = jaeger.all_spans()?;
        if spans.len() >= 2 * ROUNDS || Instant::now() > deadline {
            break spans;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    // Refused several times, over some seconds, while traces are accepted: then logs stop.
    eventually(ARRIVAL_TIMEOUT, "logs are disabled", || Ok(collector.said()), |said| said.contains("signal_disabled"))?;
    let (_, said) = collector.stop()?;
    // Each refusal is sent here and received here.
    let resets =
        spans.iter().filter(|span| span.operation.starts_with("tcp.reset ") && span.resets().count() == 1).count();
    no_warnings(&spans)?;
    ensure!(resets == 2 * ROUNDS && spans.len() == resets, "{resets} resets of {} spans: {said}", spans.len());
    for (signal, lines) in [("logs", 1), ("traces", 0)] {
        let found = said
            .lines()
            .filter(|line| line.contains("signal_disabled") && line.contains(&format!("signal=\"{signal}\"")))
            .count();
        ensure!(found == lines, "{found} lines about {signal}: {said}");
    }
    let one = spans.first().map(|span| span.trace_id.clone()).unwrap_or_default();
    println!("GET /api/traces/{one}\n{:#}", jaeger.get(&format!("/api/traces/{one}"))?);
    println!("{said}");
    Ok(())
}

/// Jaeger finds nothing wrong with the collector's own spans. A connection may be older than the request: of a child
/// that begins before its parent Jaeger says that it has not moved it, where the SDK names no host.
fn no_warnings(spans: &[Span]) -> Result<()> {
    for span in spans.iter().filter(|span| span.operation.starts_with("tcp.reset ")) {
        let is_older =
            |warning: &&String| span.parent_id.is_some() && warning.contains("clock skew adjustment disabled");
        let warnings: Vec<_> = span.warnings.iter().filter(|warning| !is_older(warning)).collect();
        ensure!(warnings.is_empty(), "Jaeger warns of {}: {warnings:?}", span.span_id);
    }
    Ok(())
}

/// The address and port of the gRPC receiver as the programs know it: no host's, as a Service's or a host port's in
/// Kubernetes.
const SERVICE: (&str, u16) = ("192.0.2.4", 4327);

/// Translates the service's address on its way out.
fn make_service(workload: &Host, agent: &Host) -> Result<()> {
    let (address, port) = SERVICE;
    let rule = format!("ip daddr {address} tcp dport {port} dnat to {}:{port}", agent.v4);
    let table = format!("table ip nat {{\nchain output {{\ntype nat hook output priority -100\n{rule}\n}}\n}}\n");
    let route = ["route", "add", address, "via", &agent.v4.to_string()].map(str::to_owned).to_vec();
    for (program, arguments) in [("ip", route), ("nft", vec![table])] {
        let output = workload.command(program).args(arguments).output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Resets of other hosts, where other tests may run, are none of ours.
fn configuration(workload: &Host, agent: &Host, by: By) -> String {
    let ports: Vec<_> = match by {
        By::Spans => Vec::new(),
        By::HttpHeaders => (0..PROGRAMS.len()).flat_map(|number| [SERVED, CALLED].map(|base| base + number)).collect(),
    };
    let grpc = format!("grpc: {{ endpoint: \"{}:4327\" }}", agent.v4);
    let http = format!("http: {{ endpoint: \"{}:4328\" }}", agent.v4);
    format!(
        "filters:\n  - drop: {{ not: {{ network.namespace.inode: {} }} }}\n\
         correlation: {{ span_wait: 15s, otlp_receiver: {{ {grpc}, {http} }}, http_headers: {{ ports: {ports:?} }} }}\nexport: {{ signals: [logs, traces] }}\n",
        workload.inode
    )
}

fn is_fault(truth: &Truth, verdict: &Verdict, by: By) -> bool {
    let is_its = |(program, side, case, _): &(&str, Side, &str, &str)| {
        truth.program == *program && truth.side == *side && truth.case == *case
    };
    let known = by == By::Spans && NOT_DECIDABLE.iter().any(is_its);
    match verdict {
        Verdict::Right(_) => false,
        Verdict::Wrong(_) => true,
        Verdict::Missing | Verdict::Ambiguous => !known,
        Verdict::NoEvent(_) | Verdict::NoRecord | Verdict::NotMade => true,
    }
}

/// Waits until nothing is missing, or for as long as a span and its reset may take.
fn awaited(
    truths: &[Truth],
    by: By,
    judge: impl Fn() -> Result<Vec<(Truth, Verdict)>>,
) -> Result<Vec<(Truth, Verdict)>> {
    ensure!(!truths.is_empty(), "no program told anything");
    std::thread::sleep(SETTLE_DELAY);
    let deadline = Instant::now() + ARRIVAL_TIMEOUT - SETTLE_DELAY;
    loop {
        let verdicts = judge()?;
        if verdicts.iter().all(|(truth, verdict)| !is_fault(truth, verdict, by)) || Instant::now() > deadline {
            return Ok(verdicts);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Everything that is known of each reset, for whoever looks for a fault.
fn tell_all(truths: &[Truth], backend: &Backend, jaeger: &Jaeger, network: &Network) -> Result<()> {
    let (logs, spans) = (backend.logs()?, jaeger.all_spans()?);
    let judge = Judge::new(&network.client, &logs, &spans);
    for truth in truths {
        println!("{truth:?}");
        for log in judge.records(truth) {
            println!(
                "    record at {} {} {} {:?}",
                log.time_ns, log.record["traceId"], log.record["spanId"], log.attributes
            );
        }
        for span in truth.trace_id.as_deref().map(|trace| jaeger.trace(trace)).transpose()?.into_iter().flatten() {
            println!("    span {} of {:?}: {} {:?}", span.span_id, span.parent_id, span.operation, span.tags);
        }
    }
    Ok(())
}
