//! Log lines of the export: one when something changes, not one per request.

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

/// Keeps what is logged.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Catches the log of this thread until the guard goes.
    pub(crate) fn catch(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
        tracing::subscriber::set_default(log.finish())
    }

    pub(crate) fn all(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

/// The log's lines while so many batches go to a backend with this script. The test's runtime has one thread, which
/// is the one whose log is caught.
async fn lines(batches: u32, script: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Vec<String> {
    let caught = Lines::default();
    let _caught_here = caught.catch();
    let backend = Backend::with(move |number, _| script(number)).await;
    let mut destination = destination(&backend, Protocol::Grpc);
    destination.headers = vec![("authorization".into(), Secret("hunter2".into()))];
    let account = Arc::new(Account::new());
    let exporter = Exporter::start(&destination, LOGS, account.clone(), &Handle::current()).unwrap();
    for batch in 0..batches {
        account.ledger.add_captured(1);
        exporter.push(&Batch { resets: 1, logs: Some(logs(batch, 1)), traces: None });
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    exporter.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let lines = caught.all();
    assert!(lines.iter().all(|line| !line.contains("hunter2")), "{lines:#?}");
    lines
}

#[tokio::test]
async fn all_well_is_silence() {
    assert_eq!(lines(50, |_| Reply::grpc(0)).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_outage_is_one_line_and_its_end_another() {
    let lines = lines(50, |number| Reply::grpc(if number < 20 { 14 } else { 0 })).await;
    let [failed, recovered] = lines.iter().filter(|line| !line.contains("batch_dropped")).collect::<Vec<_>>()[..]
    else {
        panic!("{lines:#?}")
    };
    assert!(
        failed.contains("WARN") && failed.contains("event=\"export_failed\"") && failed.contains("UNAVAILABLE"),
        "{failed}"
    );
    assert!(failed.contains("signal=\"logs\"") && failed.contains("attempts=1"), "{failed}");
    assert!(recovered.contains("INFO") && recovered.contains("event=\"export_recovered\""), "{recovered}");
}

#[tokio::test]
async fn a_backend_that_comes_and_goes_fills_no_log() {
    let lines = lines(100, |number| Reply::grpc(if number % 2 == 0 { 14 } else { 0 })).await;
    assert!(lines.len() <= 3, "{lines:#?}");
}

#[tokio::test]
async fn refusals_are_one_line_a_minute() {
    let headers = vec![("grpc-message", "no%0Asuch%0Atenant".to_owned())];
    let lines = lines(50, move |_| Reply::Grpc { code: 3, headers: headers.clone(), body: Bytes::new() }).await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("event=\"batch_dropped\"") && lines[0].contains("resets=1"), "{}", lines[0]);
    assert!(lines[0].contains("error=\"INVALID_ARGUMENT: no such tenant\""), "{}", lines[0]);
}
