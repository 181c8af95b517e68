//! TLS against a real OpenTelemetry Collector: each way to be right is delivered, each way to be wrong is one clear line.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the matrix is worth showing")]

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
use reset_collector_tests::{
    backend::{Backend, free_address},
    collector::Collector,
    flood,
    metrics::Metrics,
    poll::eventually,
    require_root,
};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);
const CLOSED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// A year that no certificate here outlives, and one that is over.
const LATER: i32 = 4000;
const EARLIER: i32 = 2020;

/// Files below one directory, gone at the end.
struct Files(TempDir);

impl Files {
    fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    /// Puts a file in the place of another at one instant.
    fn put(&self, name: &str, text: &str) -> Result<()> {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.path(name))?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Writes `NAME.pem` and `NAME.key` of a certificate for a host or a client.
    fn certify(&self, files: &Files, name: &str, host: &str, last_year: i32) -> Result<()> {
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        params.not_after = date_time_ymd(last_year, 12, 31);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        files.put(&format!("{name}.pem"), &params.signed_by(&key, &self.issuer)?.pem())?;
        files.put(&format!("{name}.key"), &key.serialize_pem())
    }
}

/// What is to come of a row.
enum Due {
    Delivered,
    /// The log has a line of it with one of these texts, `|` between them.
    Line(&'static str),
}

struct Row {
    what: &'static str,
    server: &'static str,
    scheme: &'static str,
    /// Keys of `tls:`, files by their names in `<>`.
    tls: &'static str,
    due: Due,
}

const fn row(what: &'static str, server: &'static str, tls: &'static str, due: Due) -> Row {
    Row { what, server, scheme: "https", tls, due }
}

const ROWS: &[Row] = &[
    row("right authority", "good", "ca_file: <ca.pem>", Due::Delivered),
    row("wrong authority", "good", "ca_file: <stranger.pem>", Due::Line("set tls.ca_file")),
    row("the system's authorities", "good", "", Due::Line("set tls.ca_file")),
    row("wrong authority, not verified", "good", "insecure_skip_verify: true", Due::Delivered),
    row("wrong host", "elsewhere", "ca_file: <ca.pem>", Due::Line("tls.server_name_override")),
    row("wrong host, named", "elsewhere", "ca_file: <ca.pem>, server_name_override: elsewhere.example", Due::Delivered),
    row("expired", "expired", "ca_file: <ca.pem>", Due::Line("renew the server's certificate")),
    row("client's certificate missing", "strict", "ca_file: <ca.pem>", Due::Line("tls.cert_file")),
    row(
        "client's certificate of another authority",
        "strict",
        "ca_file: <ca.pem>, cert_file: <foreign.pem>, key_file: <foreign.key>",
        Due::Line("tls.cert_file"),
    ),
    row(
        "client's certificate right",
        "strict",
        "ca_file: <ca.pem>, cert_file: <client.pem>, key_file: <client.key>",
        Due::Delivered,
    ),
    Row {
        what: "no TLS to a server that wants it",
        server: "good",
        scheme: "http",
        tls: "",
        due: Due::Line("https://|HTTPS server"),
    },
    Row {
        what: "TLS to a server that has none",
        server: "plain",
        scheme: "https",
        tls: "",
        due: Due::Line("use http://"),
    },
    row("rotated while running", "rotated", "ca_file: <rotating.pem>, reload_interval: 1s", Due::Delivered),
];

#[test]
#[ignore = "needs root: run by `make e2e`"]
fn the_matrix() -> Result<()> {
    require_root()?;
    let files = Files::new()?;
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    for (name, pem) in [("ca.pem", &authority.pem), ("stranger.pem", &stranger.pem), ("rotating.pem", &authority.pem)] {
        files.put(name, pem)?;
    }
    for name in ["good", "strict", "rotated"] {
        authority.certify(&files, name, "localhost", LATER)?;
    }
    authority.certify(&files, "elsewhere", "elsewhere.example", LATER)?;
    authority.certify(&files, "expired", "localhost", EARLIER)?;
    authority.certify(&files, "client", "collector", LATER)?;
    stranger.certify(&files, "foreign", "collector", LATER)?;
    let mut servers = Servers::start(&files)?;
    for protocol in ["grpc", "http/protobuf"] {
        by(protocol, &mut servers, &files)?;
    }
    Ok(())
}

fn by(protocol: &'static str, servers: &mut Servers, files: &Files) -> Result<()> {
    let targets = servers.targets(protocol);
    let file = files.path("collector.yaml");
    fs::write(&file, configuration(&targets, files))?;
    let collector = Collector::start(&["--config", &file.to_string_lossy()], &[])?;
    let admin = collector.admin()?;
    flood::refused(CLOSED, 5, 1);
    let mut wrong = Vec::new();
    for target in &targets {
        match target.came_true(admin, &collector)? {
            Ok(how) => println!("{protocol:<14} {:<42} {how}", target.row.what),
            Err(instead) => wrong.push(format!("{protocol} {}: {instead}", target.row.what)),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    // A request of an application takes the same way; a receiver forwards to the first destination that takes traces.
    let rotated = targets.iter().find(|target| target.row.server == "rotated").context("no such row")?;
    let (receiver, file) = (free_address()?, files.path("receiver.yaml"));
    fs::write(&file, receiving(receiver, rotated, files))?;
    let with_receiver = Collector::start(&["--config", &file.to_string_lossy()], &[])?;
    eventually(TIMEOUT, "a forwarded request", || Ok(forwarded(receiver)), |answer| is_accepted(answer))
        .with_context(|| with_receiver.said())?;
    println!("{protocol:<14} {:<42} delivered", "an application's request");

    // The server comes back with a certificate of another authority, and the file that names the authorities follows.
    let next = Authority::new()?;
    next.certify(files, "rotated", "localhost", LATER)?;
    servers.restart("rotated")?;
    let (before, deadline) = (rotated.exported(admin)?, Instant::now() + TIMEOUT);
    files.put("rotating.pem", &next.pem)?;
    flood::refused(CLOSED, 5, 1);
    while rotated.exported(admin)? == before {
        ensure!(Instant::now() < deadline, "{protocol}: the new authority is not taken: {}", collector.said());
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually(
        TIMEOUT,
        "a forwarded request after the rotation",
        || Ok(forwarded(receiver)),
        |answer| is_accepted(answer),
    )
    .with_context(|| with_receiver.said())?;
    println!("{protocol:<14} {:<42} delivered again", "rotated to another authority");
    Metrics::read(admin)?.check_accounting()
}

/// The OpenTelemetry Collectors, each with a certificate of its own.
struct Servers(Vec<(&'static str, Backend)>);

impl Servers {
    fn start(files: &Files) -> Result<Self> {
        let of = |name: &str, more: &str| {
            let path = |ending: &str| files.path(&format!("{name}.{ending}")).display().to_string();
            Backend::start_secured(&format!("{{ cert_file: {}, key_file: {}{more} }}", path("pem"), path("key")))
        };
        let clients = format!(", client_ca_file: {}", files.path("ca.pem").display());
        let mut servers = vec![("plain", Backend::start()?), ("strict", of("strict", &clients)?)];
        for name in ["good", "elsewhere", "expired", "rotated"] {
            servers.push((name, of(name, "")?));
        }
        Ok(Self(servers))
    }

    fn restart(&mut self, name: &str) -> Result<()> {
        let (_, server) = self.0.iter_mut().find(|(found, _)| *found == name).context("no such server")?;
        server.kill()?;
        server.restart()
    }

    /// Each row by a protocol. Several that go to one address differ by their numbers.
    fn targets(&self, protocol: &'static str) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        for row in ROWS {
            let server = self.0.iter().find(|(name, _)| *name == row.server).map(|(_, server)| server);
            let Some(server) = server else { continue };
            let port = if protocol == "grpc" { server.grpc } else { server.http }.port();
            let endpoint = format!("{}://localhost:{port}", row.scheme);
            let number = 1 + targets.iter().filter(|target| target.endpoint == endpoint).count();
            let name = if number == 1 { endpoint.clone() } else { format!("{endpoint}#{number}") };
            targets.push(Target { row, protocol, endpoint, name });
        }
        targets
    }
}

struct Target {
    row: &'static Row,
    protocol: &'static str,
    endpoint: String,
    /// As the log and the metrics call it.
    name: String,
}

impl Target {
    fn exported(&self, admin: SocketAddr) -> Result<u64> {
        let target = [("destination", self.name.as_str())];
        Ok(Metrics::read(admin)?.sum("reset_collector_exported_resets_total", &target))
    }

    /// What came of it, in time; what came instead.
    fn came_true(&self, admin: SocketAddr, collector: &Collector) -> Result<Result<String, String>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let (exported, said) = (self.exported(admin)?, collector.said());
            let field = format!("destination={} ", self.name);
            let lines: Vec<&str> = said.lines().filter(|line| line.contains(&field)).collect();
            match self.row.due {
                Due::Delivered if exported > 0 && lines.is_empty() => return Ok(Ok("delivered".to_owned())),
                Due::Line(texts)
                    if exported == 0 && lines.len() == 1 && texts.split('|').any(|text| lines[0].contains(text)) =>
                {
                    let (_, words) = lines[0].split_once("error=").unwrap_or_default();
                    return Ok(Ok(words.to_owned()));
                }
                Due::Line(_) if !lines.is_empty() => return Ok(Err(format!("{exported} exported, {lines:?}"))),
                _ if Instant::now() > deadline => return Ok(Err(format!("{exported} exported, {lines:?}"))),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

fn configuration(targets: &[Target], files: &Files) -> String {
    let mut text =
        "admin: { endpoint: \"127.0.0.1:0\" }\nexport:\n  signals: [logs]\n  console: \"off\"\n  otlp:\n".to_owned();
    for target in targets {
        let tls = with_paths(target.row.tls, files.0.path());
        text += &format!(
            "    - endpoint: {}\n      protocol: {}\n      tls: {{ {tls} }}\n      timeout: 2s\n\
             \x20     retry_on_failure: {{ initial_interval: 500ms, max_interval: 2s, max_elapsed_time: 0s }}\n",
            target.endpoint, target.protocol
        );
    }
    text
}

/// `<name>` is a file of that name.
fn with_paths(tls: &str, directory: &Path) -> String {
    tls.replace('<', &format!("{}/", directory.display())).replace('>', "")
}

/// A collector that forwards to this target alone.
fn receiving(receiver: SocketAddr, target: &Target, files: &Files) -> String {
    format!(
        "correlation: {{ otlp_receiver: {{ http: {{ endpoint: \"{receiver}\" }} }} }}\nexport:\n  console: \"off\"\n  otlp:\n\
         \x20   - endpoint: {}\n      protocol: {}\n      tls: {{ {} }}\n      timeout: 2s\n",
        target.endpoint,
        target.protocol,
        with_paths(target.row.tls, files.0.path())
    )
}

/// What an application gets for a request, or the error without an answer.
fn forwarded(receiver: SocketAddr) -> String {
    let exchange = || -> Result<String> {
        let mut stream = TcpStream::connect(receiver)?;
        stream.write_all(
            b"POST /v1/traces HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
              content-length: 21\r\n\r\n{\"resourceSpans\": []}",
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    exchange().unwrap_or_else(|error| error.to_string())
}

fn is_accepted(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200")
}
