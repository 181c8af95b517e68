//! OTLP destinations out of the environment: `OTEL_EXPORTER_OTLP_*`, as OpenTelemetry's specification has them.
//!
//! Pure over a lookup. The file wins where both are set: [`crate::config`] lays its keys over [`FromEnvironment::base`].

use std::{path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;

use crate::{
    config::sections::StaticAttributes,
    config::settings::{Compression, Destination, Protocol, Secret, SignalEndpoints, Signals},
    model::signal::Signal,
};

/// Destinations from the environment.
#[derive(Clone, Debug, PartialEq)]
pub struct FromEnvironment {
    /// The general variables over the defaults: what a destination in the file starts from. Carries no endpoints of
    /// single signals; the endpoint is the environment's where `endpoint_is_set`.
    pub base: Destination,
    /// Whether `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
    pub endpoint_is_set: bool,
    /// The destinations that the environment alone makes: none without an endpoint, one where all signals go the same
    /// way, else one for each way.
    pub destinations: Vec<Destination>,
}

/// A variable that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value}: {why}")]
pub struct EnvironmentError {
    /// The variable.
    variable: String,
    /// Its value; headers are not shown.
    value: String,
    /// What is allowed.
    why: &'static str,
}

/// Attributes of OTEL_RESOURCE_ATTRIBUTES that describe everything on this host, as `enrichment.resource` does, and not the
/// collector or a process.
pub fn static_attributes(lookup: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    const OTHERS: [&str; 3] = ["service.", "host.", "os."];
    let pairs = lookup("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let pairs = pairs.split(',').filter_map(|pair| pair.split_once('='));
    let pairs = pairs.map(|(name, value)| (name.trim(), percent_decode_str(value.trim()).decode_utf8_lossy()));
    pairs
        .filter(|(name, _)| {
            !name.is_empty()
                && StaticAttributes::reserved(name).is_none()
                && !OTHERS.iter().any(|prefix| name.starts_with(prefix))
        })
        .map(|(name, value)| (name.to_owned(), value.into_owned()))
        .collect()
}

/// Reads the variables.
pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<FromEnvironment, EnvironmentError> {
    let lookup = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let base = Variables { lookup: &lookup, signal: None }.destination()?;
    let endpoint_is_set = lookup("OTEL_EXPORTER_OTLP_ENDPOINT").is_some();
    let mut destinations: Vec<Destination> = Vec::new();
    for signal in Signal::ALL {
        let variables = Variables { lookup: &lookup, signal: Some(*signal) };
        let own_endpoint = variables.own_endpoint()?;
        if own_endpoint.is_none() && !endpoint_is_set {
            continue;
        }
        let mut wanted = variables.destination()?;
        if !endpoint_is_set && let Some(endpoint) = &own_endpoint {
            wanted.endpoint.clone_from(endpoint);
        }
        let same_way = |there: &&mut Destination| {
            let (signals, signal_endpoints) = (there.signals, there.signal_endpoints.clone());
            let endpoint = if endpoint_is_set { wanted.endpoint.clone() } else { there.endpoint.clone() };
            **there == Destination { signals, signal_endpoints, endpoint, ..wanted.clone() }
        };
        let destination = match destinations.iter_mut().find(same_way) {
            Some(there) => there,
            None => {
                wanted.signals = Some(Signals { logs: false, traces: false, metrics: false });
                destinations.push(wanted);
                let Some(last) = destinations.last_mut() else { continue };
                last
            }
        };
        add_signal(destination, *signal, own_endpoint);
    }
    if let [only] = destinations.as_mut_slice()
        && endpoint_is_set
    {
        only.signals = None;
    }
    Ok(FromEnvironment { base, endpoint_is_set, destinations })
}

fn add_signal(destination: &mut Destination, signal: Signal, own_endpoint: Option<String>) {
    let SignalEndpoints { logs, traces, metrics } = &mut destination.signal_endpoints;
    let none = Signals { logs: false, traces: false, metrics: false };
    let signals = destination.signals.get_or_insert(none);
    let (endpoint, wanted) = match signal {
        Signal::Logs => (logs, &mut signals.logs),
        Signal::Traces => (traces, &mut signals.traces),
        Signal::Metrics => (metrics, &mut signals.metrics),
    };
    *endpoint = own_endpoint;
    *wanted = true;
}

/// The variables of one signal, with the general ones as a fallback; or the general ones alone.
struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    signal: Option<Signal>,
}

impl Variables<'_> {
    fn destination(&self) -> Result<Destination, EnvironmentError> {
        let mut destination = Destination::default();
        if let Some(protocol) = self.parsed("PROTOCOL", "grpc or http/protobuf", protocol)? {
            destination.protocol = protocol;
        }
        if let Some(value) = (self.lookup)("OTEL_EXPORTER_OTLP_ENDPOINT") {
            destination.endpoint = self.with_scheme("OTEL_EXPORTER_OTLP_ENDPOINT", value)?;
        }
        if let Some((name, value)) = self.get("HEADERS") {
            let why = "write name=value,name=value with values percent-encoded";
            let hidden = EnvironmentError { variable: name, value: "[redacted]".into(), why };
            destination.headers = headers(&value).ok_or(hidden)?;
        }
        if let Some(compression) = self.parsed("COMPRESSION", "gzip, zstd or none", compression)? {
            destination.compression = compression;
        }
        if let Some(timeout) = self.parsed("TIMEOUT", "milliseconds above 0, such as 10000", milliseconds)? {
            destination.timeout = timeout;
        }
        destination.tls.ca_file = self.path("CERTIFICATE");
        destination.tls.cert_file = self.path("CLIENT_CERTIFICATE");
        destination.tls.key_file = self.path("CLIENT_KEY");
        Ok(destination)
    }

    fn own_endpoint(&self) -> Result<Option<String>, EnvironmentError> {
        let Some(signal) = self.signal else { return Ok(None) };
        let name = own_name(signal, "ENDPOINT");
        (self.lookup)(&name).map(|value| self.with_scheme(&name, value)).transpose()
    }

    /// gRPC endpoints may lack the scheme: TLS, unless `INSECURE`.
    fn with_scheme(&self, variable: &str, endpoint: String) -> Result<String, EnvironmentError> {
        // Refused here, so that no later message repeats a password.
        if endpoint.contains('@') && !endpoint.starts_with("unix://") {
            let why = "the URL contains a user or password: use OTEL_EXPORTER_OTLP_HEADERS instead";
            return Err(EnvironmentError { variable: variable.to_owned(), value: "[redacted]".into(), why });
        }
        if endpoint.contains("://") {
            return Ok(endpoint);
        }
        let insecure = self.parsed("INSECURE", "true or false", boolean)?.unwrap_or(false);
        Ok(format!("{}://{endpoint}", if insecure { "http" } else { "https" }))
    }

    fn path(&self, what: &str) -> Option<PathBuf> {
        self.get(what).map(|(_, value)| value.into())
    }

    fn parsed<T>(
        &self,
        what: &str,
        why: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, EnvironmentError> {
        let Some((variable, value)) = self.get(what) else { return Ok(None) };
        match parse(&value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(EnvironmentError { variable, value, why }),
        }
    }

    /// Name and value of the variable that counts.
    fn get(&self, what: &str) -> Option<(String, String)> {
        let own = self.signal.map(|signal| own_name(signal, what));
        let general = format!("OTEL_EXPORTER_OTLP_{what}");
        own.into_iter().chain([general]).find_map(|name| (self.lookup)(&name).map(|value| (name, value)))
    }
}

fn own_name(signal: Signal, what: &str) -> String {
    format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.word().to_ascii_uppercase())
}

fn protocol(value: &str) -> Option<Protocol> {
    match value {
        "grpc" => Some(Protocol::Grpc),
        "http/protobuf" => Some(Protocol::HttpProtobuf),
        _ => None,
    }
}

fn compression(value: &str) -> Option<Compression> {
    match value {
        "gzip" => Some(Compression::Gzip),
        "zstd" => Some(Compression::Zstd),
        "none" => Some(Compression::None),
        _ => None,
    }
}

fn milliseconds(value: &str) -> Option<Duration> {
    value.parse().ok().filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis)
}

fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// `name=value,…`, values percent-encoded (W3C Baggage without its properties).
fn headers(value: &str) -> Option<Vec<(String, Secret)>> {
    let pairs = value.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
            let name = name.trim();
            (!name.is_empty()).then(|| (name.to_owned(), Secret(value.into_owned())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use super::*;

    #[test]
    fn static_attributes_leave_out_what_describes_a_service_or_process() {
        let text = "service.name=rc,deployment.environment.name=pr%2Cod, k8s.cluster.name = eu ,k8s.pod.name=p,host.name=h,x,=y";
        let attributes = super::static_attributes(|name| (name == "OTEL_RESOURCE_ATTRIBUTES").then(|| text.to_owned()));
        let expected = [("deployment.environment.name", "pr,od"), ("k8s.cluster.name", "eu")];
        assert_eq!(attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    fn from(variables: &[(&str, &str)]) -> Result<FromEnvironment, EnvironmentError> {
        read(|name| {
            let name = name.strip_prefix("OTEL_EXPORTER_OTLP_")?;
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_no_destination() {
        let read = from(&[("HEADERS", "a=b"), ("ENDPOINT", " ")]).unwrap();
        assert_eq!(read.destinations, []);
        assert_eq!(read.base.headers, [("a".to_owned(), Secret("b".into()))]);
    }

    #[test]
    fn the_general_variables_make_one_destination_for_all_signals() {
        let read = from(&[
            ("ENDPOINT", "https://backend:4318"),
            ("PROTOCOL", "http/protobuf"),
            ("HEADERS", "authorization=Bearer%20x, tenant = 7"),
            ("COMPRESSION", "none"),
            ("TIMEOUT", "2500"),
            ("CERTIFICATE", "/ca.pem"),
            ("CLIENT_CERTIFICATE", "/cert.pem"),
            ("CLIENT_KEY", "/key.pem"),
        ])
        .unwrap();
        let [only] = read.destinations.as_slice() else { panic!("{read:?}") };
        assert_eq!((only.endpoint.as_str(), only.protocol), ("https://backend:4318", Protocol::HttpProtobuf));
        assert_eq!(only.headers[0], ("authorization".to_owned(), Secret("Bearer x".into())));
        assert_eq!(only.headers[1], ("tenant".to_owned(), Secret("7".into())));
        assert_eq!((only.compression, only.timeout), (Compression::None, Duration::from_millis(2500)));
        assert_eq!(only.tls.ca_file, Some("/ca.pem".into()));
        assert_eq!((&only.tls.cert_file, &only.tls.key_file), (&Some("/cert.pem".into()), &Some("/key.pem".into())));
        assert_eq!(only.signals, None);
        assert_eq!(*only, read.base);
    }

    #[test]
    fn a_signals_endpoint_is_used_as_it_is_and_the_others_keep_the_general_one() {
        let read = from(&[("ENDPOINT", "http://all:4318"), ("TRACES_ENDPOINT", "http://traces/x")]).unwrap();
        let [only] = read.destinations.as_slice() else { panic!("{read:?}") };
        assert_eq!(only.endpoint, "http://all:4318");
        assert_eq!(only.signal_endpoints.traces.as_deref(), Some("http://traces/x"));
        assert_eq!((&only.signal_endpoints.logs, only.signals), (&None, None));
    }

    #[test]
    fn one_signal_alone_goes_out_alone() {
        let read = from(&[("LOGS_ENDPOINT", "http://logs/v1/logs"), ("LOGS_PROTOCOL", "http/protobuf")]).unwrap();
        let [only] = read.destinations.as_slice() else { panic!("{read:?}") };
        assert_eq!(only.signals, Some(Signals { logs: true, traces: false, metrics: false }));
        assert_eq!(only.signal_endpoints.logs.as_deref(), Some("http://logs/v1/logs"));
    }

    #[test]
    fn signals_that_go_different_ways_are_different_destinations() {
        let read = from(&[("ENDPOINT", "http://all:4317"), ("TRACES_HEADERS", "k=v")]).unwrap();
        let signals: Vec<_> = read.destinations.iter().map(|destination| destination.signals.unwrap()).collect();
        assert_eq!(signals[0], Signals { logs: true, traces: false, metrics: true });
        assert_eq!(signals[1], Signals { logs: false, traces: true, metrics: false });
        assert_eq!((read.destinations[0].headers.len(), read.destinations[1].headers.len()), (0, 1));
    }

    #[test]
    fn a_missing_scheme_is_tls_unless_insecure() {
        for (insecure, endpoint) in [("true", "http://h:4317"), ("FALSE", "https://h:4317")] {
            let read = from(&[("ENDPOINT", "h:4317"), ("INSECURE", insecure)]).unwrap();
            assert_eq!(read.destinations[0].endpoint, endpoint);
        }
    }

    #[test]
    fn bad_values_name_the_variable_and_never_a_secret() {
        let cases = [
            ("PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL=http/json: grpc or http/protobuf"),
            ("LOGS_TIMEOUT", "0", "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT=0: milliseconds above 0, such as 10000"),
            ("COMPRESSION", "br", "OTEL_EXPORTER_OTLP_COMPRESSION=br: gzip, zstd or none"),
            (
                "HEADERS",
                "hunter2",
                "OTEL_EXPORTER_OTLP_HEADERS=[redacted]: write name=value,name=value with values percent-encoded",
            ),
        ];
        for (name, value, error) in cases {
            assert_eq!(from(&[("ENDPOINT", "http://h"), (name, value)]).unwrap_err().to_string(), error);
        }
        for endpoint in
            ["http://user:hunter2@h:4317", "user:hunter2@h", "https://user:hunter2/x@h", "http://hunter2@[::"]
        {
            for name in ["ENDPOINT", "TRACES_ENDPOINT"] {
                let error = from(&[(name, endpoint)]).unwrap_err().to_string();
                assert!(error.contains("[redacted]: the URL contains a user or password"), "{error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }
}
