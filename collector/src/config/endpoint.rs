//! The address of an OTLP destination: read alike from the file, the environment and the client.

use std::path::PathBuf;

use hyper::Uri;

/// Where an endpoint leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://` or `https://`, a host, perhaps a port and a path.
    Tcp(Uri),
    /// `unix:///PATH`
    Unix(PathBuf),
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// `user:password@host`; the text must not be shown.
    #[error("has a user or password: put them into headers (authorization)")]
    Credentials,
    /// There is no scheme, or another one.
    #[error("has no scheme: write http:// before it, or https:// for TLS")]
    Scheme,
    /// A query or a fragment.
    #[error("has a query or fragment: an OTLP endpoint is scheme, host, port and path")]
    Query,
    /// No host, no valid port, or characters that a URL cannot have.
    #[error("is not an address: write http://HOST:PORT, https://HOST:PORT or unix:///PATH")]
    Address,
}

impl Endpoint {
    /// Reads an endpoint.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        if let Some(path) = text.strip_prefix("unix://") {
            let is_absolute = path.starts_with('/') && path.len() > 1;
            return is_absolute.then(|| Self::Unix(path.into())).ok_or(EndpointError::Address);
        }
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            return Err(EndpointError::Credentials);
        }
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(EndpointError::Scheme);
        }
        if text.contains(['?', '#']) {
            return Err(EndpointError::Query);
        }
        let uri: Uri = text.parse().map_err(|_| EndpointError::Address)?;
        let authority = uri.authority().ok_or(EndpointError::Address)?;
        let port_is_invalid = uri.port().is_none() && authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || port_is_invalid || uri.port().is_some_and(|port| port.as_u16() == 0) {
            return Err(EndpointError::Address);
        }
        Ok(Self::Tcp(uri))
    }

    /// The URI of a request, with this path behind the endpoint's own.
    ///
    /// # Errors
    /// The two are too long together.
    pub fn join(&self, path: &str) -> Result<Uri, EndpointError> {
        let uri = match self {
            Self::Unix(_) if path.is_empty() => "http://localhost/".to_owned(),
            Self::Unix(_) => format!("http://localhost{path}"),
            Self::Tcp(uri) if path.is_empty() => return Ok(uri.clone()),
            Self::Tcp(uri) => format!("{}{path}", uri.to_string().trim_end_matches('/')),
        };
        uri.parse().map_err(|_| EndpointError::Address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for text in ["http://h", "https://h:4317", "http://[::1]:4318/otlp/", "unix:///run/otlp.sock"] {
            assert!(Endpoint::parse(text).is_ok(), "{text}");
        }
        for (text, error) in [
            ("", EndpointError::Scheme),
            ("h:4317", EndpointError::Scheme),
            ("ftp://h", EndpointError::Scheme),
            ("user:pass@h:4317", EndpointError::Credentials),
            ("http://user:pa ss@h", EndpointError::Credentials),
            ("http://h/?a", EndpointError::Query),
            ("http://h#a", EndpointError::Query),
            ("http://", EndpointError::Address),
            ("http://h:", EndpointError::Address),
            ("http://h:0", EndpointError::Address),
            ("http://h:99999", EndpointError::Address),
            ("http://a b", EndpointError::Address),
            ("unix://run/otlp.sock", EndpointError::Address),
            ("unix:///", EndpointError::Address),
        ] {
            assert_eq!(Endpoint::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn paths() {
        for (endpoint, path, expected) in [
            ("http://h:4318", "/v1/logs", "http://h:4318/v1/logs"),
            ("http://h/otlp/", "/v1/logs", "http://h/otlp/v1/logs"),
            ("http://h/own", "", "http://h/own"),
            ("unix:///s", "/v1/logs", "http://localhost/v1/logs"),
        ] {
            let uri = Endpoint::parse(endpoint).and_then(|endpoint| endpoint.join(path));
            assert_eq!(uri.map(|uri| uri.to_string()), Ok(expected.to_owned()));
        }
    }
}
