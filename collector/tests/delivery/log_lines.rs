//! What the log says: one line when something changes, not one per request.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use reset_collector::{
    account::Account,
    config::settings::{Protocol, Secret},
    export::Exporter,
    otlp::batch::Batch,
};
use tokio::runtime::Handle;

use crate::{
    backend::{Backend, Reply, logs},
    client::{LOGS, destination},
};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log's lines while so many batches go to a backend with this script. The test's runtime has one thread, which
/// is the one whose log is caught.
async fn lines(batches: u32, script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Vec<String> {
    let caught = Lines::default();
    let writer = caught.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
    let _caught_here = tracing::subscriber::set_default(log.finish());
    let backend = Backend::with(move |number, _| script(number)).await;
    let mut destination = destination(&backend, Protocol::Grpc);
    destination.headers = vec![("authorization".into(), Secret("hunter2".into()))];
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for batch in 0..batches {
        account.read(1);
        exporter.push(&Batch { resets: 1, logs: Some(logs(batch, 1)), traces: None });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    exporter.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let text = String::from_utf8(caught.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn all_well_is_silence() {
    assert_eq!(lines(50, |_| Reply::grpc(0)).await, Vec::<String>::new());
}

#[tokio::test]
async fn away_is_said_once_and_back_is_said_once() {
    let lines = lines(50, |number| Reply::grpc(if number < 20 { 14 } else { 0 })).await;
    let [away, back] = lines.iter().filter(|line| !line.contains("retries_exhausted")).collect::<Vec<_>>()[..] else {
        panic!("{lines:#?}")
    };
    assert!(away.contains("WARN") && away.contains("logs do not go out") && away.contains("UNAVAILABLE"), "{away}");
    assert!(back.contains("INFO") && back.contains("logs go out again"), "{back}");
}

#[tokio::test]
async fn a_backend_that_comes_and_goes_fills_no_log() {
    let lines = lines(100, |number| Reply::grpc(if number % 2 == 0 { 14 } else { 0 })).await;
    assert!(lines.len() <= 3, "{lines:#?}");
}

#[tokio::test]
async fn a_signal_that_is_not_taken_is_one_line() {
    let lines = lines(50, |_| Reply::grpc(12)).await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("does not take logs") && lines[0].contains("export.signals"), "{}", lines[0]);
}

#[tokio::test]
async fn refusals_are_one_line_a_minute() {
    let headers = vec![("grpc-message", "no%0Asuch%0Atenant".to_owned())];
    let lines = lines(50, move |_| Reply::Grpc { code: 3, headers: headers.clone(), body: Bytes::new() }).await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let words = "1 resets lost as logs (non_retryable_error): INVALID_ARGUMENT: no such tenant";
    assert!(lines[0].contains(words), "{}", lines[0]);
}
