//! Configuration files: the reference, an example of every section, and broken files with their errors.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use reset_collector::{
    app::check,
    config::{
        self, Config, ConfigErrors,
        settings::{Destination, Protocol, Settings},
    },
    filter::Ports,
};

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn env(name: &str) -> Option<String> {
    match name {
        "NODE_NAME" => Some("node-1".into()),
        "TOKEN" | "SECRET" => Some("hunter2".into()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    config::parse(text, "reset-collector.yaml", &env)
}

/// The error of `load` for these bytes, without the path.
fn load_error(bytes: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("reset-collector-config-{}-{:p}", std::process::id(), bytes));
    fs::write(&path, bytes).unwrap();
    let error = config::load(&path).unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    error.replace(path.to_str().unwrap(), "FILE")
}

#[test]
fn broken_files_are_explained() {
    let directory = in_repository("collector/tests/broken");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 40);
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let errors = config::parse(&text, &format!("{name}.yaml"), &env).expect_err(name);
        let shown = errors.to_string();
        let secrets = text.matches("hunter2").count() > 0 || text.contains("SECRET");
        assert!(
            !(secrets && name.starts_with("secret") && shown.contains("hunter2")),
            "{name} shows a secret: {shown}"
        );
        insta::assert_snapshot!(name, format!("{}\n\n{shown}", text.trim_end()));
    }
}

const DESIGN: &str = r#"
capture:
  sent: true
  received: true
  firewall: true
  unmatched: true
filters:
  - drop: { tcp.reset.cause: port_closed, network.local.port: [22, "8000-8999"] }
  - keep: { service.name: "checkout*", network.peer.address: [10.0.0.0/8, "fd00::/8"] }
  - drop: { not: { k8s.namespace.name: prod } }
sampling:
  default: { ratio: 1.0 }
  rules:
    - match: { tcp.reset.cause: port_closed }
      ratio: 0.05
    - match: { network.connection.state: established }
      max_per_second: 100
      group_by: [network.peer.address, tcp.reset.cause]
correlation:
  otlp_receiver:
    grpc: { endpoint: 127.0.0.1:4317 }
    http: { endpoint: 127.0.0.1:4318 }
  http_headers: { ports: [8080, "9000-9010"] }
export:
  signals: [logs, traces, metrics]
  console: auto
  otlp:
    endpoint: http://collector:4317
    protocol: grpc
    headers: { authorization: "Bearer ${env:TOKEN}" }
    compression: gzip
    timeout: 10s
    tls: { ca_file: /etc/ca.pem, cert_file: /etc/c.pem, key_file: /etc/k.pem, insecure_skip_verify: false }
    retry_on_failure: { initial_interval: 1s, max_interval: 30s, max_elapsed_time: 300s }
    sending_queue: { queue_size: 65536, storage: { directory: /var/lib/reset-collector } }
    batch: { max_resets: 8192, flush_timeout: 200ms }
admin: { endpoint: 127.0.0.1:9464 }
"#;

#[test]
fn the_designs_example_is_valid_and_its_secret_is_not_shown() {
    let settings = parse(DESIGN).unwrap().settings;
    assert_eq!(settings.filters.rules().len(), 3);
    assert_eq!(settings.sampling.rules().len(), 2);
    assert_eq!(settings.correlation.http_header_ports, Ports::new(vec![(8080, 8080), (9000, 9010)]));
    assert_eq!(settings.export.otlp[0].headers[0].1.0, "Bearer hunter2");
    assert_eq!(settings.admin.unwrap().port(), 9464);
    let shown = check::effective(&settings).unwrap();
    assert!(shown.contains("[redacted]") && !shown.contains("hunter2"), "{shown}");
    insta::assert_snapshot!("effective", shown);
}

#[test]
fn the_effective_configuration_means_the_same() {
    for text in [DESIGN.to_owned(), with_examples(&reference()), MATCHES.to_owned(), String::new()] {
        let settings = parse(&text).unwrap().settings;
        let shown = check::effective(&settings).unwrap();
        let mut again = parse(&shown).unwrap_or_else(|errors| panic!("{errors}\n{shown}")).settings;
        for (destination, original) in again.export.otlp.iter_mut().zip(&settings.export.otlp) {
            assert_eq!(destination.headers.len(), original.headers.len());
            destination.headers.clone_from(&original.headers);
        }
        assert_eq!(again, settings, "{shown}");
    }
}

/// Every way to write a value.
const MATCHES: &str = r#"
filters:
  - drop: { tcp.reset.cause: ["*_timeout", unmatched_reset], tcp.reset.origin: active, network.type: ipv6 }
  - drop: { network.peer.port: { gt: 1, lte: 10 }, network.local.port: [22, 80-90] }
  - keep: { tcp.connection.bytes_sent: { gte: 4KiB }, tcp.connection.duration: { lt: 1m30s } }
  - keep: { tcp.connection.retransmits: [0, "3-5"], tcp.connection.smoothed_rtt: 0.25 }
  - drop: { not: { any: [{ process.pid: { gte: 100, lt: 200 } }, { container.id: "abc*" }] } }
  - drop: { all: [{ label: a* }, { label: "*b" }], network.local.address: "::ffff:10.0.0.1" }
  - drop: { tcp.reset.reason: "TCP_ABORT_*", error.type: timed_out, tcp.reset.trace.method: [header, span] }
  - drop: { network.peer.port: 0, network.transport: tcp, network.io.direction: receive }
  - keep: { service.name: ['a\*b', "c?"], network.connection.state: "fin_*" }
sampling:
  default: { max_per_second: 0.5 }
"#;

fn reference() -> String {
    fs::read_to_string(in_repository("config/reset-collector.yaml")).unwrap()
}

/// The reference with its examples in place of the defaults that follow them.
fn with_examples(reference: &str) -> String {
    const KEYS: &[&str] = &["filters", "rules", "kubernetes", "grpc", "http", "otlp", "admin"];
    let key_of =
        |line: &str| KEYS.iter().copied().find(|key| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let mut text = String::new();
    let mut example: Option<(usize, &str)> = None;
    for line in reference.lines() {
        let indent = line.len() - line.trim_start().len();
        let comment = line.trim_start().strip_prefix("# ");
        match (comment, example) {
            (Some(rest), _) if key_of(rest).is_some() => {
                example = key_of(rest).map(|key| (indent, key));
                text.push_str(&format!("{}{rest}\n", " ".repeat(indent)));
            }
            (Some(rest), Some((at, _))) if at == indent && rest.starts_with(' ') => {
                text.push_str(&format!("{}{rest}\n", " ".repeat(indent)));
            }
            (None, Some((at, key))) if at == indent && key_of(line.trim_start()) == Some(key) => example = None,
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

#[test]
fn the_reference_is_the_defaults() {
    let config = parse(&reference()).unwrap();
    assert_eq!(config.settings, Settings::default());
    assert_eq!(config.warnings, []);
    assert_eq!(parse("").unwrap().settings, Settings::default());
}

#[test]
fn the_references_examples_are_valid() {
    let settings = parse(&with_examples(&reference())).unwrap().settings;
    assert_eq!(settings.export.otlp, [Destination::default()]);
    assert_eq!((settings.filters.rules().len(), settings.sampling.rules().len()), (3, 2));
    assert_eq!(settings.enrichment.kubernetes.unwrap().node_name, "node-1");
    assert!(settings.correlation.grpc.is_some() && settings.correlation.http.is_some() && settings.admin.is_some());
}

#[test]
fn the_reference_has_every_key() {
    fn keys(schema: &serde_json::Value, found: &mut Vec<String>) {
        match schema {
            serde_json::Value::Object(object) => {
                if let Some(serde_json::Value::Object(properties)) = object.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                object.iter().filter(|(key, _)| *key != "match").for_each(|(_, value)| keys(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
            _ => {}
        }
    }
    let (mut found, reference) = (Vec::new(), reference());
    keys(&config::schema(), &mut found);
    assert!(found.len() > 50);
    for key in found {
        assert!(reference.contains(&format!("{key}:")), "the reference has no `{key}`");
    }
}

#[test]
fn the_schema_is_committed_and_takes_what_the_program_takes() {
    let path = in_repository("config/schema.json");
    let schema = check::schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == schema,
        "config/schema.json is not what the program prints: run the tests with UPDATE_SCHEMA=1"
    );

    let validator = jsonschema::validator_for(&config::schema()).unwrap();
    let json = |text: &str| serde_yaml::from_str::<serde_json::Value>(text).unwrap();
    for text in
        [DESIGN, &reference(), &with_examples(&reference()), MATCHES, &check::effective(&Settings::default()).unwrap()]
    {
        let errors: Vec<_> =
            validator.iter_errors(&json(text)).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert_eq!(errors, Vec::<String>::new(), "{text}");
    }
    for name in ["unknown_key", "cause_mistyped", "ratio_and_limit", "rule_with_both", "size_word", "duration_word"] {
        let text = fs::read_to_string(in_repository(&format!("collector/tests/broken/{name}.yaml"))).unwrap();
        assert!(!validator.is_valid(&json(&text)), "the schema takes {name}");
    }
}

#[test]
fn the_protocol_moves_the_default_endpoint() {
    let destination = parse("export: { otlp: { protocol: http/protobuf } }").unwrap().settings.export.otlp.remove(0);
    assert_eq!(
        (destination.protocol, destination.endpoint.as_str()),
        (Protocol::HttpProtobuf, "http://localhost:4318")
    );
    let several =
        parse("export: { otlp: [{}, { endpoint: 'https://otlp.example.com/base/', protocol: http/protobuf }] }")
            .unwrap()
            .settings;
    assert_eq!(several.export.otlp[1].endpoint, "https://otlp.example.com/base");
}

#[test]
fn a_variable_cannot_become_yaml() {
    let env = |name: &str| (name == "V").then(|| "a\nadmin: { endpoint: 1.2.3.4:5 }".to_owned());
    let config = config::parse("filters: [{ drop: { service.name: '${env:V}' } }]", "f", &env).unwrap();
    assert_eq!(config.settings.admin, None);
    assert_eq!(config.settings.filters.rules().len(), 1);
}

#[test]
fn doubts_are_warnings() {
    let text = "filters:
  - drop: { servise.name: cart }
  - drop: { service.name: \"pay.*\" }
  - drop: { tcp.reset.reason: no_socket }
  - drop: { k8s.pod.label.app: cart }
export:
  otlp:
    - { endpoint: \"http://c:4317\", protocol: grpc, tls: { ca_file: /etc/ca.pem } }
    - { endpoint: \"http://c:4318\", headers: { authorization: Bearer $TOKEN } }
    - { endpoint: \"http://c:4317\", protocol: http/protobuf }
";
    let warnings = parse(text).unwrap().warnings;
    let shown: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!("warnings", shown.join("\n"));
}

#[test]
fn exposed_secrets_and_unverified_tls_are_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let [key, token] = ["key.pem", "token"].map(|name| directory.path().join(name));
    let warnings = |mode: u32| {
        for file in [&key, &token] {
            std::fs::write(file, "hunter2").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let (key, token) = (key.display(), token.display());
        let text = format!(
            "export:
  otlp:
    endpoint: https://c:4317
    headers: {{ authorization: \"Bearer ${{file:{token}}}\" }}
    tls: {{ insecure_skip_verify: true, cert_file: /cert.pem, key_file: {key} }}
"
        );
        let warnings = parse(&text).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let exposed = warnings(0o644).join("\n");
    for place in [&key, &token] {
        assert!(exposed.contains(&format!("every user of this host may read {}", place.display())), "{exposed}");
    }
    assert!(!exposed.contains("hunter2"), "{exposed}");
    let [unverified] = &warnings(0o600)[..] else { panic!("{:?}", warnings(0o600)) };
    assert!(unverified.contains("any certificate is accepted"), "{unverified}");
}

#[test]
fn files_that_are_no_text_are_explained() {
    assert_eq!(
        load_error(b"capture: {}\n# caf\xe9\n"),
        "error: line 2 is not UTF-8: found the byte 0xe9, as in Latin-1\n--> FILE\n = help: UTF-8: save the file in this encoding"
    );
    assert!(load_error(b"\xff\xfec\0").contains("UTF-16"));
    assert!(load_error(&vec![b'#'; 100 << 20]).contains("larger than 1 MiB"));
    assert!(parse("\u{feff}capture: { sent: false }").is_ok_and(|config| !config.settings.capture.sent));
    assert!(parse("capture: { sent: true }\u{0}").is_err());
    assert!(parse("capture: { sent: false }\r\nfilters: []\r\n").is_ok_and(|config| !config.settings.capture.sent));

    let directory = config::load(&std::env::temp_dir()).unwrap_err().to_string();
    assert!(directory.contains("this is a directory"), "{directory}");
    let missing = config::load(Path::new("/nonexistent/reset-collector.yaml")).unwrap_err().to_string();
    assert!(missing.contains("cannot read the file: No such file"), "{missing}");
}

/// A rule of matches in each other, so wide and so deep, and a mistake.
fn nested(width: usize, depth: usize) -> String {
    fn part(width: usize, depth: usize) -> String {
        let parts: Vec<_> = match depth {
            0 => return "{ service.name: a }".into(),
            _ => (0..width).map(|_| part(width, depth - 1)).collect(),
        };
        let parts = parts.join(", ");
        if depth.is_multiple_of(2) {
            format!("{{ all: [{parts}] }}")
        } else {
            format!("{{ not: {{ any: [{parts}] }} }}")
        }
    }
    format!("capture: {{ sent: x }}\nfilters:\n- drop: {0}\n- keep: {0}\n", part(width, depth / 2))
}

/// Debug builds on busy machines are slow; what is bounded by nothing takes hours.
const BOUNDED: Duration = Duration::from_secs(30);

#[test]
fn hostile_files_cost_little() {
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let prior = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![prior; 9].join(", ")));
        }
        text
    };
    let rules = |count: usize, rule: &dyn Fn(usize) -> String| {
        format!("filters:\n{}", (0..count).map(|at| format!("- drop: {}\n", rule(at))).collect::<String>())
    };
    let long_list = |at: usize| {
        format!(
            "{{ network.peer.port: [{}] }}",
            (0..60).map(|n| (n * 97 + at).to_string()).collect::<Vec<_>>().join(", ")
        )
    };
    let cases: Vec<(&str, String, &str)> = vec![
        ("aliases", bomb, "with aliases expanded"),
        ("deep lists", "[".repeat(100_000), "deep"),
        ("deep mappings", (0..400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect(), "deep"),
        ("100,000 rules", rules(100_000, &|_| "{ x: y }".into()), "larger than 1 MiB"),
        ("30,000 rules", rules(30_000, &|at| format!("{{ a: {at} }}")), "too many rules: 30000"),
        ("many values", format!("filters: [{}]", "1,".repeat(400_000)), "values"),
        ("many mistakes", (0..40_000).map(|at| format!("token{at}: 1\n")).collect(), "and 39950 more"),
        ("long line", format!("capture: {{ sent: {} }}", "x".repeat(900_000)), "is not a boolean"),
        ("long lists that shadow nothing", rules(2_000, &long_list) + "- zzz: {}\n", "zzz"),
        ("nested all", nested(4, 7), "is not a boolean"),
        (
            "nested any",
            format!("filters: [{{ drop: {} }}]", "{ any: [{}, ".repeat(12) + "{}" + &"] }".repeat(12)),
            "deep",
        ),
    ];
    for (name, text, expected) in cases {
        let started = Instant::now();
        let errors = parse(&text).expect_err(name).to_string();
        assert!(errors.contains(expected), "{name}: {}", errors.chars().take(2_000).collect::<String>());
        assert!(errors.len() < 100_000, "{name}: {} bytes of errors", errors.len());
        assert!(started.elapsed() < BOUNDED, "{name}: {:?}", started.elapsed());
    }
}

#[test]
fn four_thousand_rules_are_read() {
    let text: String = (0..4_096).map(|at| format!("- drop: {{ service.name: s{at} }}\n")).collect();
    let started = Instant::now();
    assert_eq!(parse(&format!("filters:\n{text}")).unwrap().settings.filters.rules().len(), 4_096);
    assert!(started.elapsed() < BOUNDED, "{:?}", started.elapsed());
}
