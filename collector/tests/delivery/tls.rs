//! TLS: authorities, names, our own certificate, rotation, and what a failed handshake says.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use reset_collector::{
    config::settings::{Compression, Correlation, Destination, Protocol, Tls},
    correlate::{Correlator, Sender},
    model::signal::Signal,
    otlp::client::Client,
    receiver::{Backends, Receivers},
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::{
    backend::{Backend, Reply, logs},
    client::{to, words_of_one_try},
};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Certified {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn certify(&self, name: &str, last_year: i32) -> Certified {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Certified { certificate, key: key.serialize_pem() }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

/// A backend with this certificate, that wants one of `clients` from us where given.
async fn backend(certified: &Certified, clients: Option<&Authority>, protocol: Protocol) -> Backend {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(authority.roots().into(), provider).build().unwrap(),
        ),
    };
    let chain = vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Each handshake is a full one, so that rotated files are seen.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let reply = if protocol == Protocol::Grpc { Reply::grpc(0) } else { Reply::http(200) };
    Backend::on("127.0.0.1:0", Some(config.into()), move |_, _| reply.clone()).await
}

fn destination(backend: &Backend, protocol: Protocol, tls: Tls) -> Destination {
    Destination { tls, ..to(&format!("https://localhost:{}", backend.address.port()), protocol) }
}

fn write(directory: &Path, name: &str, text: &str) -> Option<std::path::PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    Some(path)
}

/// What an application gets whose request is forwarded there: `accepted`, or the error.
struct Application {
    address: std::net::SocketAddr,
}

impl Application {
    async fn of(destination: &Destination) -> Self {
        let http = Some("127.0.0.1:0".parse().unwrap());
        let settings = Correlation { http, ..Correlation::default() };
        let client = Client::for_forwarding(destination).unwrap();
        let backends = Backends::new(|_| client.clone());
        let correlator = Correlator::new(&settings, true);
        let find = Arc::new(|_, _| Sender::Unattributed);
        let receivers = Receivers::listen(&settings, backends, correlator, find).await.unwrap();
        let address = receivers.addresses()[0];
        tokio::spawn(receivers.run(std::future::pending()));
        Self { address }
    }

    async fn send(&self) -> String {
        let to_receiver = Destination {
            compression: Compression::None,
            ..to(&format!("http://{}", self.address), Protocol::HttpProtobuf)
        };
        let answer = Client::new(&to_receiver).unwrap().send(Signal::Logs, logs(0, 10)).await.unwrap();
        if answer.is_acceptance() { "accepted".into() } else { String::from_utf8_lossy(&answer.body).into_owned() }
    }
}

#[tokio::test]
async fn certificates_are_checked_and_failures_say_what_helps() {
    let files = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca_file = write(files.path(), "ca.pem", &authority.pem);
    let trusting = Tls { ca_file: ca_file.clone(), ..Tls::default() };
    let other_name = Tls { server_name_override: Some("backend.example".into()), ..trusting.clone() };
    let skipping = Tls { insecure_skip_verify: true, ..Tls::default() };
    let good = authority.certify("localhost", 4000);
    let cases = [
        ("good", authority.certify("localhost", 4000), trusting.clone(), "accepted, 0 rejected, "),
        ("wrong host", authority.certify("elsewhere", 4000), trusting.clone(), "tls.server_name_override"),
        ("override", authority.certify("backend.example", 4000), other_name, "accepted, 0 rejected, "),
        ("expired", authority.certify("localhost", 2020), trusting.clone(), "renew the server's certificate"),
        ("stranger", stranger.certify("localhost", 4000), trusting, "set tls.ca_file"),
        ("skipping", stranger.certify("elsewhere", 2020), skipping, "accepted, 0 rejected, "),
    ];
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        for (name, certified, tls, expected) in &cases {
            let backend = backend(certified, None, protocol).await;
            let words = words_of_one_try(&destination(&backend, protocol, tls.clone())).await;
            assert!(words.contains(expected), "{name} {protocol:?}: {words}");
            let application = Application::of(&destination(&backend, protocol, tls.clone())).await;
            let words = application.send().await;
            let expected = expected.split(',').next().unwrap_or_default();
            assert!(words.contains(expected), "{name} {protocol:?}, an application: {words}");
        }
        let backend = backend(&good, None, protocol).await;
        let plain = to(&format!("http://{}", backend.address), protocol);
        let words = words_of_one_try(&plain).await;
        assert!(words.contains("https:// if it wants TLS") || words.contains("broke"), "{words}");
    }
    let plain = Backend::answering(vec![Reply::http(200)]).await;
    let words = words_of_one_try(&destination(&plain, Protocol::HttpProtobuf, Tls::default())).await;
    assert!(words.contains("does not speak TLS: use http://"), "{words}");
}

#[tokio::test]
async fn our_own_certificate_is_shown_and_read_again_when_rotated() {
    let files = tempfile::tempdir().unwrap();
    let (authority, old_clients, new_clients) = (Authority::new(), Authority::new(), Authority::new());
    let good = authority.certify("localhost", 4000);
    let put = |clients: &Authority| {
        let ours = clients.certify("collector", 4000);
        (write(files.path(), "cert.pem", &ours.certificate), write(files.path(), "key.pem", &ours.key))
    };
    let (cert_file, key_file) = put(&old_clients);
    let ca_file = write(files.path(), "ca.pem", &authority.pem);
    let reload_interval = Some(Duration::from_millis(50));
    let tls = Tls { ca_file, cert_file, key_file, reload_interval, ..Tls::default() };
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        put(&old_clients);
        let backend = backend(&good, Some(&new_clients), protocol).await;
        let client = Client::new(&destination(&backend, protocol, tls.clone())).unwrap();
        let application = Application::of(&destination(&backend, protocol, tls.clone())).await;
        assert!(client.send(Signal::Logs, logs(0, 1)).await.is_err(), "the old certificate is not taken");
        assert_ne!(application.send().await, "accepted");
        // Half-written files in between leave the old ones in use.
        write(files.path(), "key.pem", "-----BEGIN");
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(client.send(Signal::Logs, logs(0, 1)).await.is_err());
        put(&new_clients);
        tokio::time::sleep(Duration::from_millis(60)).await;
        let answer = client.send(Signal::Logs, logs(0, 1)).await;
        assert!(answer.as_ref().is_ok_and(|answer| answer.is_acceptance()), "{answer:?}");
        assert_eq!(application.send().await, "accepted");
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let files = tempfile::tempdir().unwrap();
    let empty = write(files.path(), "empty.pem", "");
    let missing = Some(files.path().join("missing.pem"));
    let ours = Authority::new().certify("collector", 4000);
    let cert_file = write(files.path(), "cert.pem", &ours.certificate);
    let other_key = write(files.path(), "other.pem", &KeyPair::generate().unwrap().serialize_pem());
    let cases = [
        (Tls { ca_file: missing.clone(), ..Tls::default() }, "tls.ca_file"),
        (Tls { ca_file: empty.clone(), ..Tls::default() }, "holds no certificate"),
        (Tls { cert_file: cert_file.clone(), ..Tls::default() }, "tls.key_file is not set"),
        (Tls { key_file: other_key.clone(), ..Tls::default() }, "tls.cert_file is not set"),
        (Tls { cert_file: cert_file.clone(), key_file: missing, ..Tls::default() }, "cannot be read"),
        (Tls { cert_file: cert_file.clone(), key_file: empty, ..Tls::default() }, "tls.key_file"),
        (Tls { cert_file, key_file: other_key, ..Tls::default() }, "tls: "),
        (Tls { server_name_override: Some("a b".into()), ..Tls::default() }, "`a b` is not a server name"),
    ];
    for (tls, expected) in cases {
        let destination = Destination { tls: tls.clone(), ..to("https://localhost:1", Protocol::Grpc) };
        let words = words_of_one_try(&destination).await;
        assert!(words.contains(expected), "{tls:?}: {words}");
    }
}
