//! The collector's own log: lines on standard error, written without blocking and without a panic.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io,
    panic::PanicHookInfo,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter, util::SubscriberInitExt};

use crate::export::line_writer::{LineWriter, use_colour};

/// Lines of the log that wait for a slow reader, in bytes.
const CAPACITY: usize = 256 << 10;
/// At the end of the process, how long the last lines may take.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// A log that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is unknown.
    #[error("log level `{level}`: {why}; use error, warn, info, debug, trace, or a filter such as info,hyper=debug")]
    Level {
        /// As given.
        level: String,
        /// What is wrong.
        why: String,
    },
    /// There is a log already.
    #[error("the log is already running")]
    Twice,
    /// Standard error cannot be used.
    #[error("standard error: {0}")]
    Output(#[from] io::Error),
}

/// The log, once it is started.
#[derive(Clone, Debug)]
pub struct Log {
    lines: LineWriter,
}

/// Starts the log. `level` is a level or a filter of tracing; `json` makes each line a JSON object. From now on a panic is
/// a line of the log as well.
pub fn start(level: &str, json: bool) -> Result<Log, LoggingError> {
    let filter = filter(level)?;
    // The report comes as a line of the log itself, in its format.
    let on_recovery = |dropped| {
        tracing::warn!(event = "log_lines_dropped", dropped, "standard error was not read: log lines dropped");
        String::new()
    };
    let log = Log { lines: LineWriter::new(io::stderr(), CAPACITY, on_recovery)? };
    // A failed write must not reach eprintln!, which panics: the line is counted as dropped.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).log_internal_errors(false);
    let started = match json {
        true => lines.json().flatten_event(true).finish().try_init(),
        false => lines.with_ansi(use_colour(&io::stderr())).with_target(false).finish().try_init(),
    };
    started.map_err(|_| LoggingError::Twice)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(log)
}

impl Log {
    /// Starts the thread that writes from now on: call it when the process has dropped its capabilities.
    pub fn spawn(&self) -> io::Result<()> {
        self.lines.spawn("log")
    }

    /// Writes text for a person, as it is.
    pub fn print(&self, text: &str) {
        self.lines.push(text.as_bytes());
    }

    /// Lines that were dropped since the start.
    pub fn dropped_lines(&self) -> u64 {
        self.lines.dropped()
    }

    /// How long standard error has not taken anything, once that is long enough to count.
    pub fn stalled_for(&self) -> Option<Duration> {
        self.lines.stalled_for()
    }

    /// Waits a moment for the last lines: call it before the process ends.
    pub fn drain(&self) {
        self.lines.drain(Instant::now() + DRAIN_TIMEOUT);
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        self.lines.clone()
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(tracing::field::display);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(backtrace));
    let thread = std::thread::current();
    tracing::error!(event = "panic", thread = thread.name(), location, backtrace, "panicked: {message}");
}

/// A bare level is ours; the libraries below speak up from warnings on, unless the filter names them.
fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let wrong = |why: String| LoggingError::Level { level: level.to_owned(), why };
    let bare = level.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let is_word = !level.is_empty() && level.chars().all(|char| char.is_ascii_alphanumeric());
    if is_word && !bare {
        return Err(wrong("unknown level".into()));
    }
    let directives = match bare {
        // opentelemetry-otlp warns of variables that are for other exporters than ours.
        true => format!("warn,opentelemetry-otlp=error,reset_collector={level}"),
        false => level.to_owned(),
    };
    EnvFilter::builder().parse(directives).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken_and_other_words_refused() {
        for level in ["error", "warn", "INFO", "debug", "trace", "off", "info,hyper=debug", "reset_collector=trace"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["loud", "info,hyper=loud"] {
            let error = filter(level).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(&format!("log level `{level}`: ")), "{level}: {error}");
        }
    }
}
