//! The two variables of a process's environment that say what it is, `OTEL_SERVICE_NAME` and
//! `OTEL_RESOURCE_ATTRIBUTES`. No other variable is kept.

use std::io::{self, Read};

use crate::text::sanitize;

/// Bytes of an environment that are read at most. The kernel lets exec pass 6 MiB of arguments and environment
/// (`fs/exec.c`, 3/4 of `_STK_LIM`); a process with CAP_SYS_RESOURCE can point at more.
const MAX_ENVIRONMENT: u64 = 8 << 20;
/// Longest entry that is looked at; a longer one of ours counts as malformed.
const MAX_ENTRY: usize = 64 << 10;
/// Longest name of an attribute, bytes.
pub const MAX_KEY: usize = 256;
/// Longest value of an attribute, bytes.
pub const MAX_VALUE: usize = 4 << 10;

const SERVICE_NAME: &[u8] = b"OTEL_SERVICE_NAME=";
const RESOURCE_ATTRIBUTES: &[u8] = b"OTEL_RESOURCE_ATTRIBUTES=";

/// What a process's environment says of its resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `OTEL_SERVICE_NAME`; an empty one is none.
    pub service_name: Option<String>,
    /// The pairs of `OTEL_RESOURCE_ATTRIBUTES`, each name once, the last of its values.
    pub resource_attributes: Vec<(String, String)>,
    /// Pairs and variables that could not be read and were left out.
    pub malformed: u64,
}

impl Environment {
    /// Reads `/proc/PID/environ`: entries `name=value`, each closed by a zero. As with getenv(3), the first entry of a
    /// name counts.
    pub fn read(source: impl Read) -> io::Result<Self> {
        let mut found = Found::default();
        let mut source = source.take(MAX_ENVIRONMENT);
        let mut buffer = vec![0; MAX_ENTRY];
        let mut entry = Vec::new();
        let mut overlong = false;
        loop {
            let length = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for (index, part) in buffer[..length].split(|byte| *byte == 0).enumerate() {
                if index > 0 {
                    found.take(&entry, overlong);
                    entry.clear();
                    overlong = false;
                }
                let room = MAX_ENTRY - entry.len();
                overlong |= part.len() > room;
                entry.extend_from_slice(&part[..part.len().min(room)]);
            }
        }
        found.take(&entry, overlong);
        Ok(found.into_environment())
    }
}

#[derive(Default)]
struct Found {
    service_name: Option<Vec<u8>>,
    resource_attributes: Option<Vec<u8>>,
    malformed: u64,
}

impl Found {
    fn take(&mut self, entry: &[u8], overlong: bool) {
        let (variable, value) = if let Some(value) = entry.strip_prefix(SERVICE_NAME) {
            (&mut self.service_name, value)
        } else if let Some(value) = entry.strip_prefix(RESOURCE_ATTRIBUTES) {
            (&mut self.resource_attributes, value)
        } else {
            return;
        };
        if variable.is_some() {
            return;
        }
        self.malformed += u64::from(overlong);
        *variable = Some(if overlong { Vec::new() } else { value.to_vec() });
    }

    fn into_environment(self) -> Environment {
        let service_name = self.service_name.map(|value| sanitize(value.trim_ascii(), MAX_VALUE));
        let mut environment = Environment {
            service_name: service_name.filter(|name| !name.is_empty()),
            resource_attributes: Vec::new(),
            malformed: self.malformed,
        };
        for pair in self.resource_attributes.unwrap_or_default().split(|byte| *byte == b',') {
            environment.add_pair(pair.trim_ascii());
        }
        environment
    }
}

impl Environment {
    /// Adds one `key=value`, both percent-encoded. The specification lets an SDK drop the whole variable for one bad pair;
    /// most (Python, Go, .NET) drop the pair, and a record should bear the name that the application itself reports.
    fn add_pair(&mut self, pair: &[u8]) {
        if pair.is_empty() {
            return;
        }
        let decoded = pair.iter().position(|byte| *byte == b'=').and_then(|at| {
            let key = percent_decoded(pair[..at].trim_ascii())?;
            let value = percent_decoded(pair[at + 1..].trim_ascii())?;
            (!key.is_empty() && key.len() <= MAX_KEY && value.len() <= MAX_VALUE)
                .then(|| (sanitize(&key, MAX_KEY), sanitize(&value, MAX_VALUE)))
        });
        let Some((key, value)) = decoded else {
            self.malformed += 1;
            return;
        };
        match self.resource_attributes.iter_mut().find(|(name, _)| *name == key) {
            Some(attribute) => attribute.1 = value,
            None => self.resource_attributes.push((key, value)),
        }
    }
}

/// `text` with every `%41` made `A`, or `None` where a `%` is followed by anything else or the result is not UTF-8.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(*rest.first()?)?, digit(*rest.get(1)?)?);
        out.push(u8::try_from(high * 16 + low).ok()?);
        rest = &rest[2..];
    }
    std::str::from_utf8(&out).is_ok().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Environment {
        Environment::read(text).expect("reading bytes cannot fail")
    }

    #[test]
    fn the_two_variables_and_no_other() {
        let found =
            read(b"PATH=/bin\0SECRET=x\0OTEL_SERVICE_NAME=shop\0XOTEL_SERVICE_NAME=no\0OTEL_RESOURCE_ATTRIBUTES=a=1\0");
        let pairs = vec![("a".to_owned(), "1".to_owned())];
        assert_eq!(found, Environment { service_name: Some("shop".into()), resource_attributes: pairs, malformed: 0 });
        assert_eq!(read(b""), Environment::default());
        assert_eq!(read(b"OTEL_SERVICE_NAME=first\0OTEL_SERVICE_NAME=second").service_name.as_deref(), Some("first"));
        assert_eq!(read(b"OTEL_SERVICE_NAME=\0").service_name, None);
        assert_eq!(read(b"OTEL_SERVICE_NAME=a\xff\n\0").service_name.as_deref(), Some("a\u{fffd}"));
        assert_eq!(read(b"OTEL_SERVICE_NAME=a\x1bb\0").service_name.as_deref(), Some("a\\u{1b}b"));
    }

    #[test]
    fn resource_attributes_by_the_specification() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], u64);
        let table: &[Row<'_>] = &[
            (
                "service.name=shop,deployment.environment.name=prod",
                &[("service.name", "shop"), ("deployment.environment.name", "prod")],
                0,
            ),
            (" a = 1 , b= 2 ,", &[("a", "1"), ("b", "2")], 0),
            ("a=x%20y%2Cz%3D1,k%2Ea=v", &[("a", "x y,z=1"), ("k.a", "v")], 0),
            ("a=b=c", &[("a", "b=c")], 0),
            ("a=", &[("a", "")], 0),
            ("a=1,a=2", &[("a", "2")], 0),
            ("a=k%C3%A4se", &[("a", "käse")], 0),
            ("a=1,novalue,=x,b=%zz,c=%4,d=%ff,e=2", &[("a", "1"), ("e", "2")], 5),
            ("a=%0A%1b", &[("a", "\\n\\u{1b}")], 0),
            ("", &[], 0),
        ];
        for (text, pairs, malformed) in table {
            let found = read(format!("OTEL_RESOURCE_ATTRIBUTES={text}\0").as_bytes());
            let seen: Vec<(&str, &str)> =
                found.resource_attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!((seen.as_slice(), found.malformed), (*pairs, *malformed), "{text}");
        }
    }

    #[test]
    fn an_environment_of_megabytes_is_read_to_its_end_within_bounds() {
        let mut text = Vec::new();
        for index in 0..1000 {
            text.extend(format!("FILL{index}={}\0", "x".repeat(2048)).bytes());
        }
        text.extend(b"OTEL_SERVICE_NAME=late\0");
        assert_eq!(read(&text).service_name.as_deref(), Some("late"));
        let one = format!("OTEL_RESOURCE_ATTRIBUTES=a=1,b={}\0OTEL_SERVICE_NAME=x\0", "y".repeat(2 << 20));
        let found = read(one.as_bytes());
        assert_eq!((found.resource_attributes.len(), found.malformed), (0, 1));
        assert_eq!(found.service_name.as_deref(), Some("x"));
        let value = format!("OTEL_RESOURCE_ATTRIBUTES=a={},b=2\0", "y".repeat(MAX_VALUE + 1));
        assert_eq!((read(value.as_bytes()).resource_attributes.len(), read(value.as_bytes()).malformed), (1, 1));
        let endless = Environment::read(io::repeat(b'x')).expect("bounded");
        assert_eq!(endless, Environment::default());
    }
}
