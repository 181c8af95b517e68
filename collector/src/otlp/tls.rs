//! TLS of a destination: which authorities, which certificate of ours, read again when files are rotated.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::config::settings;

/// A TLS setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds no PEM of its kind.
    #[error("tls.{key} {path}: {why}; give a PEM file that this user can read")]
    File {
        /// The key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Only one of the pair is set.
    #[error("tls.cert_file and tls.key_file go together: {missing} is not set")]
    HalfPair {
        /// The key that is missing.
        missing: &'static str,
    },
    /// The system has no certificate authorities.
    #[error("this system has no certificate authorities: install ca-certificates or set tls.ca_file")]
    NoSystemRoots,
    /// Certificate and key do not match, or the name is no name.
    #[error("tls: {0}")]
    Unusable(String),
}

/// The TLS of one destination.
pub(crate) struct TlsConfig {
    settings: settings::Tls,
    /// Protocols offered (ALPN), best first.
    protocols: &'static [&'static str],
    loaded: Mutex<Loaded>,
}

struct Loaded {
    config: Arc<ClientConfig>,
    at: Instant,
}

impl TlsConfig {
    /// Reads the files once; an error here is one of configuration.
    pub(crate) fn new(settings: &settings::Tls, protocols: &'static [&'static str]) -> Result<Self, TlsError> {
        if let Some(name) = &settings.server_name_override {
            server_name(name)?;
        }
        let config = Arc::new(load(settings, protocols)?);
        let loaded = Mutex::new(Loaded { config, at: Instant::now() });
        Ok(Self { settings: settings.clone(), protocols, loaded })
    }

    /// The configuration for a new connection, read again when it is due. Files that cannot be read leave the old one.
    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if self.settings.reload_interval.is_some_and(|interval| loaded.at.elapsed() >= interval) {
            loaded.at = Instant::now();
            match load(&self.settings, self.protocols) {
                Ok(config) => loaded.config = Arc::new(config),
                Err(error) => {
                    tracing::warn!(event = "certificates_not_reloaded", %error, "the previous certificates stay in use");
                }
            }
        }
        loaded.config.clone()
    }

    /// The name to check the server's certificate against.
    pub(crate) fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        server_name(self.settings.server_name_override.as_deref().unwrap_or(host))
    }
}

/// What an operator can do about a handshake that failed, in words.
pub(crate) fn handshake_hint(error: &std::io::Error) -> &'static str {
    use rustls::{CertificateError as Certificate, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        // The signature is bad where an authority was made anew under its old name.
        Some(Error::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature)) => {
            "; set tls.ca_file to the authority that signed the server's certificate"
        }
        Some(Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. })) => {
            "; take a name of the certificate as the endpoint's host, or set tls.server_name_override"
        }
        Some(Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. })) => {
            "; renew the server's certificate, or set this host's clock"
        }
        Some(Error::InvalidMessage(_)) => "; the endpoint does not speak TLS: use http://",
        Some(Error::AlertReceived(_)) => REFUSED,
        _ => "",
    }
}

const REFUSED: &str = "; the server refused: does it want tls.cert_file and tls.key_file, or others?";

/// The same for a refusal that came after the handshake, as TLS 1.3's of a client's certificate does. By then rustls's
/// error is a text within others (`AlertReceived`).
pub(crate) fn late_refusal_hint(text: &str) -> Option<&'static str> {
    text.contains("received fatal alert").then_some(REFUSED)
}

fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    // The host of an IPv6 endpoint stands in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Unusable(format!("`{host}` is not a server name")))
}

fn load(settings: &settings::Tls, protocols: &[&str]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(settings.ca_file.as_deref())?)
    };
    let mut config = match (&settings.cert_file, &settings.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("cert_file", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error("key_file", key, error))?;
            builder.with_client_auth_cert(chain, key).map_err(unusable)?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(TlsError::HalfPair { missing: "tls.key_file" }),
        (None, Some(_)) => return Err(TlsError::HalfPair { missing: "tls.cert_file" }),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let (added, _unusable) = match ca_file {
        Some(path) => store.add_parsable_certificates(certificates("ca_file", path)?),
        None => store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    };
    match (added, ca_file) {
        (1.., _) => Ok(store),
        (0, Some(path)) => Err(TlsError::File {
            key: "ca_file",
            path: path.into(),
            why: "holds no certificate that can be used as an authority".into(),
        }),
        (0, None) => Err(TlsError::NoSystemRoots),
    }
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| file_error(key, path, error))?;
    if found.is_empty() {
        return Err(TlsError::File { key, path: path.into(), why: "holds no certificate".into() });
    }
    Ok(found)
}

fn file_error(key: &'static str, path: &Path, error: rustls::pki_types::pem::Error) -> TlsError {
    let why = match error {
        rustls::pki_types::pem::Error::Io(error) => format!("cannot be read: {error}"),
        error => error.to_string(),
    };
    TlsError::File { key, path: path.into(), why }
}

/// Takes every certificate (`insecure_skip_verify`); the handshake's signatures are checked all the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
