//! A record as the collector printed it: the one place that knows the shape of its JSON lines.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Members of a line beside the attributes: the fields of OTLP's log record, and the resource.
const NOT_ATTRIBUTES: [&str; 8] =
    ["time", "observed_time", "severity", "event_name", "body", "trace_id", "span_id", "resource"];

/// A reset as the collector told it.
#[derive(Clone, Debug)]
pub struct Record {
    /// When, ns since 1970.
    pub time_ns: u64,
    /// Where the segment came from, by direction.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// Inode of the network namespace.
    pub namespace: u32,
    line: Value,
}

impl Record {
    /// Reads a line of the collector's standard output.
    ///
    /// # Errors
    /// What every record must have is missing or is not what it says.
    pub fn parse(line: &str) -> Result<Self> {
        let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        Self::read(line.clone()).with_context(|| format!("in {line}"))
    }

    fn read(line: Value) -> Result<Self> {
        let time = line.get("time").context("no time")?;
        let mut record = Self {
            time_ns: parse_time(time.as_str().context("time is no text")?)?,
            source: SocketAddr::new(IpAddr::from([0; 4]), 0),
            destination: SocketAddr::new(IpAddr::from([0; 4]), 0),
            namespace: 0,
            line,
        };
        let (local, peer) = (record.endpoint("network.local")?, record.endpoint("network.peer")?);
        (record.source, record.destination) = match record.text("network.io.direction") {
            "transmit" => (local, peer),
            "receive" => (peer, local),
            other => anyhow::bail!("network.io.direction is {other:?}"),
        };
        record.namespace =
            u32::try_from(record.number("network.namespace.inode").context("no network.namespace.inode")?)?;
        Ok(record)
    }

    /// An attribute of the record or of its resource.
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        self.line.get(name).or_else(|| self.line.get("resource")?.get(name))
    }

    /// A text among the attributes, empty where it is not there.
    pub fn text(&self, name: &str) -> &str {
        self.attribute(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A whole number among the attributes.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.attribute(name)?.as_i64()
    }

    /// Every attribute of the record by name, those of the resource not among them.
    pub fn attributes(&self) -> impl Iterator<Item = (&String, &Value)> {
        let members = self.line.as_object().into_iter().flatten();
        members.filter(|(name, _)| !NOT_ATTRIBUTES.contains(&name.as_str()))
    }

    /// The attributes of the resource by name.
    pub fn resource(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.line.get("resource").and_then(Value::as_object).into_iter().flatten()
    }

    /// An address and port by the first part of their names.
    ///
    /// # Errors
    /// One of the two is missing or unreadable.
    pub fn endpoint(&self, prefix: &str) -> Result<SocketAddr> {
        let address = self.text(&format!("{prefix}.address")).parse().with_context(|| format!("{prefix}.address"))?;
        let port = self.number(&format!("{prefix}.port")).with_context(|| format!("{prefix}.port"))?;
        Ok(SocketAddr::new(address, u16::try_from(port)?))
    }

    /// What is wrong with the record in itself, whatever was done: how its parts contradict each other.
    ///
    /// # Errors
    /// The contradiction.
    pub fn check(&self) -> Result<()> {
        let family = if self.source.is_ipv4() { "ipv4" } else { "ipv6" };
        ensure!(self.text("network.type") == family, "network.type is not {family}");
        ensure!(self.text("network.transport") == "tcp", "network.transport is not tcp");
        ensure!(!self.text("body").is_empty(), "no body");
        ensure!(!self.text("severity").is_empty(), "no severity");
        for (name, value) in self.attributes().chain(self.resource()) {
            ensure!(!matches!(value, Value::Null) && value != "", "{name} is empty: an unknown value is left out");
            if let Some(IpAddr::V6(address)) = value.as_str().and_then(|text| text.parse().ok()) {
                ensure!(address.to_ipv4_mapped().is_none(), "{name} is IPv4-mapped");
            }
        }
        Ok(())
    }
}

/// A time of RFC 3339 in UTC with up to nine digits after the second, as ns since 1970.
fn parse_time(text: &str) -> Result<u64> {
    let bad = || format!("not a time in UTC: {text}");
    let (date, time) = text.strip_suffix('Z').and_then(|text| text.split_once('T')).with_context(bad)?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let numbers = |text: &str, separator: char| -> Result<Vec<u64>> {
        text.split(separator).map(|part| part.parse().with_context(bad)).collect()
    };
    let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
    ensure!(date.len() == 3 && clock.len() == 3 && fraction.len() <= 9, "{}", bad());
    // Days from the civil date, the year beginning in March: then a leap day is the last of its year.
    let year = date[0] - u64::from(date[1] <= 2);
    let day_of_year = (153 * ((date[1] + 9) % 12) + 2) / 5 + date[2] - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    let seconds = days * 86_400 + clock[0] * 3_600 + clock[1] * 60 + clock[2];
    Ok(seconds * 1_000_000_000 + format!("{fraction:0<9}").parse::<u64>().with_context(bad)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-02-29T12:00:00.5Z", 1_709_208_000_500_000_000),
            ("2026-11-24T21:00:00.123456789Z", 1_795_554_000_123_456_789),
            ("2027-03-01T00:00:00.000000001Z", 1_803_859_200_000_000_001),
        ] {
            assert_eq!(parse_time(text).expect(text), expected, "{text}");
        }
        for text in
            ["", "2026-11-24 21:00:00Z", "2026-11-24T21:00:00", "2026-11-24T21:00Z", "2026-11-24T21:00:00.1234567890Z"]
        {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
