//! What reading `traceparent` from the wire costs: ns a segment by the kernel's own account, and what is left of the rate
//! of exchanges, with it off, on for another port, and on for this one, in turns.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use reset_collector_tests::{
    collector::Collector,
    network::{Host, Layout, Network},
};

use crate::{
    kernel::{Switch, programs},
    table::{Report, median},
};

const TURNS: usize = 5;
const EXCHANGES: usize = 20_000;
/// Exchanges with a body of a mebibyte each way.
const LARGE: usize = 200;
const MEBIBYTE: usize = 1 << 20;
const PORT: u16 = 8080;
const OTHER_PORT: u16 = 9;

/// What is on, by the ports of `correlation.http_headers`.
const MODES: [(&str, Option<u16>); 3] = [("off", None), ("another port", Some(OTHER_PORT)), ("this port", Some(PORT))];

/// Figures of one mode and load, one for each turn.
#[derive(Default)]
struct Figures {
    exchanges_per_second: Vec<f64>,
    /// ns a run, by program.
    sent: Vec<f64>,
    received: Vec<f64>,
}

/// Measures and reports.
///
/// # Errors
/// Not root, or the collector does not start.
pub(crate) fn measure(report: &mut Report, configuration: &dyn Fn(&str) -> Result<String>) -> Result<()> {
    let loads = [("head only", 0, EXCHANGES), ("bodies of 1 MiB", MEBIBYTE, LARGE)];
    let mut figures: Vec<Figures> = (0..loads.len() * MODES.len()).map(|_| Figures::default()).collect();
    for _ in 0..TURNS {
        for (number, (_, port)) in MODES.iter().enumerate() {
            let ports = port.map(|port| port.to_string()).unwrap_or_default();
            let keys = "export: { console: \"off\" }\ncorrelation: { http_headers: { ports: ";
            let file = configuration(&format!("{keys}[{ports}] }} }}\n"))?;
            let collector = Collector::start(&["--config", &file], &[])?;
            let network = Network::new(Layout::Loopback)?;
            for (load, (_, body, count)) in loads.iter().enumerate() {
                let figures = &mut figures[load * MODES.len() + number];
                // The rate without the account, which costs something itself.
                figures.exchanges_per_second.push(exchange(&network.client, *body, *count)?);
                let _switched = Switch::on()?;
                let before = programs()?;
                exchange(&network.client, *body, *count)?;
                for (id, after) in programs()? {
                    let begun = before.get(&id).cloned().unwrap_or_default();
                    let runs = after.count.saturating_sub(begun.count);
                    let each = (after.ns - begun.ns) as f64 / runs.max(1) as f64;
                    match after.name.as_str() {
                        "http_sent" if runs > 0 => figures.sent.push(each),
                        "http_received" if runs > 0 => figures.received.push(each),
                        _ => {}
                    }
                }
            }
            collector.stop()?;
        }
    }
    let cell = |figures: &[f64]| if figures.is_empty() { "–".to_owned() } else { format!("{:.0}", median(figures)) };
    let mut rows = Vec::new();
    for (load, (name, ..)) in loads.iter().enumerate() {
        let off = median(&figures[load * MODES.len()].exchanges_per_second);
        for (number, (mode, _)) in MODES.iter().enumerate() {
            let Figures { exchanges_per_second, sent, received } = &figures[load * MODES.len() + number];
            let rate = median(exchanges_per_second);
            let ratio = format!("{:.3}", rate / off);
            rows.push(vec![
                (*name).to_owned(),
                (*mode).to_owned(),
                cell(sent),
                cell(received),
                format!("{rate:.0}"),
                ratio,
            ]);
        }
    }
    report.table(
        &format!("The wire: ns a segment by bpf_stats, and exchanges a second (median of {TURNS} turns)"),
        &["exchange", "http_headers", "sent", "received", "exchanges/s", "of off"],
        &rows,
    );
    report.say(
        "One connection that is kept, client and server on one host over loopback, so that each segment is looked at \
         twice. A head has some 450 bytes each way. Acknowledgements without payload count as segments.",
    );
    Ok(())
}

/// Exchanges over one connection on a host; how many a second.
fn exchange(host: &Host, body: usize, count: usize) -> Result<f64> {
    host.enter(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
        let (request, response) =
            (message("POST /checkout/items?page=2 HTTP/1.1", body), message("HTTP/1.1 200 OK", body));
        std::thread::scope(|scope| {
            let (asked, answer) = (request.len(), &response);
            let server = scope.spawn(move || -> Result<()> {
                let (mut connection, _) = listener.accept()?;
                connection.set_nodelay(true)?;
                let mut buffer = vec![0; asked];
                for _ in 0..count {
                    connection.read_exact(&mut buffer)?;
                    connection.write_all(answer)?;
                }
                Ok(())
            });
            let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
            connection.set_nodelay(true)?;
            let mut buffer = vec![0; response.len()];
            let start = Instant::now();
            for _ in 0..count {
                connection.write_all(&request)?;
                connection.read_exact(&mut buffer)?;
            }
            let rate = count as f64 / start.elapsed().as_secs_f64();
            server.join().map_err(|_| anyhow!("the server panicked"))??;
            Ok(rate)
        })
    })
    .and_then(|rate| rate)
    .context("the exchanges")
}

/// A message with the headers of a usual program.
fn message(first: &str, body: usize) -> Vec<u8> {
    let mut text = format!("{first}\r\n");
    for line in [
        "Host: shop.example.com:8080",
        "User-Agent: python-requests/2.34.2 (Linux; x86_64)",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept: application/json, text/plain;q=0.9, */*;q=0.8",
        "Connection: keep-alive",
        "Content-Type: application/json; charset=utf-8",
        "Cache-Control: no-cache, no-store, must-revalidate",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: vendor=00f067aa0ba902b7",
    ] {
        text += &format!("{line}\r\n");
    }
    text += &format!("Content-Length: {body}\r\n\r\n");
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    bytes
}
