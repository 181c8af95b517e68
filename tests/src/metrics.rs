//! The collector's `/metrics` as another program reads them, and the accounting invariant over them.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A machine that others load may let an answer wait.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Every sample of one answer.
#[derive(Clone, Debug)]
pub struct Metrics(Vec<Sample>);

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: HashMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Asks the admin endpoint.
    ///
    /// # Errors
    /// It does not answer, or not with Prometheus text.
    pub fn read(endpoint: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(endpoint)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream
            .write_all(format!("GET /metrics HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Self::parse(body)
    }

    fn parse(body: &str) -> Result<Self> {
        let lines = body.lines().filter(|line| !line.starts_with('#') && line.contains(' '));
        lines.map(|line| Sample::parse(line).with_context(|| line.to_owned())).collect::<Result<_>>().map(Self)
    }

    /// The sum of a metric's samples that carry these labels; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let carries = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        };
        self.0.iter().filter(carries).map(|sample| sample.value as u64).sum()
    }

    /// The queues, each a destination and a signal.
    pub fn queues<'a>(&'a self) -> Vec<[(&'a str, &'a str); 2]> {
        let queued = self.0.iter().filter(|sample| sample.name == "reset_collector_queued_resets");
        let queue = |sample: &'a Sample| -> Option<[(&'a str, &'a str); 2]> {
            let label = |key: &'static str| Some((key, sample.labels.get(key)?.as_str()));
            Some([label("destination")?, label("signal")?])
        };
        queued.filter_map(queue).collect()
    }

    /// Where the invariant is broken: for each signal queue, captured + recovered = exported + filtered + sampled out + dropped +
    /// queued.
    ///
    /// # Errors
    /// The queue and its terms, or that there is no queue.
    pub fn check_accounting(&self) -> Result<()> {
        let term = |name: &str, labels: &[(&str, &str)]| self.sum(&format!("reset_collector_{name}"), labels);
        let queues = self.queues();
        ensure!(!queues.is_empty(), "no queue");
        for queue in queues {
            let (captured, recovered) = (term("captured_resets_total", &[]), term("recovered_resets_total", &queue));
            let outcomes = [
                term("exported_resets_total", &queue),
                term("filtered_resets_total", &[]),
                term("sampled_out_resets_total", &[]),
                term("dropped_resets_total", &queue),
                term("queued_resets", &queue),
            ];
            ensure!(
                captured + recovered == outcomes.iter().sum::<u64>(),
                "{queue:?}: captured {captured}, recovered {recovered}; exported, filtered, sampled out, dropped, \
                 queued {outcomes:?}"
            );
        }
        Ok(())
    }
}

impl Sample {
    /// `name{key="value",…} number`; the values that the collector gives hold no quote.
    fn parse(line: &str) -> Result<Self> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').context("labels without an end")?;
        let pair = |text: &str| -> Option<(String, String)> {
            let (key, value) = text.split_once("=\"")?;
            Some((key.trim_start_matches(',').to_owned(), value.to_owned()))
        };
        let labels = labels.split('"').collect::<Vec<_>>();
        let labels = labels.chunks(2).filter_map(|chunk| pair(&chunk.join("\""))).collect();
        Ok(Self { name: name.to_owned(), labels, value: value.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP a b\n\
        reset_collector_captured_resets_total 10\n\
        reset_collector_filtered_resets_total 1\n\
        reset_collector_dropped_resets_total{destination=\"http://x:1\",signal=\"logs\",reason=\"a\"} 2\n\
        reset_collector_dropped_resets_total{destination=\"http://x:1\",signal=\"logs\",reason=\"b\"} 3\n\
        reset_collector_exported_resets_total{destination=\"http://x:1\",signal=\"logs\"} 4\n\
        reset_collector_queued_resets{destination=\"http://x:1\",signal=\"logs\"} 0\n";

    #[test]
    fn reads_and_checks() -> Result<()> {
        let metrics = Metrics::parse(PAGE)?;
        let dropped = |reason| metrics.sum("reset_collector_dropped_resets_total", &[("reason", reason)]);
        assert_eq!((dropped("a"), dropped("b"), dropped("c")), (2, 3, 0));
        assert_eq!(metrics.queues(), [[("destination", "http://x:1"), ("signal", "logs")]]);
        metrics.check_accounting()?;
        assert!(Metrics::parse(&PAGE.replace("logs\"} 4", "logs\"} 5"))?.check_accounting().is_err());
        assert!(Metrics::parse("a 1\n")?.check_accounting().is_err());
        Ok(())
    }
}
