//! The collector's own log: lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

/// A log that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is none.
    #[error("log level `{level}`: {why}; use error, warn, info, debug, trace, or a filter such as info,hyper=debug")]
    Level {
        /// As given.
        level: String,
        /// What is wrong.
        why: String,
    },
    /// There is a log already.
    #[error("the log runs already")]
    Twice,
}

/// Starts the log. `level` is a level or a filter of tracing; `json` makes each line a JSON object.
pub fn start(level: &str, json: bool) -> Result<(), LoggingError> {
    let filter = filter(level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match json {
        true => lines.json().flatten_event(true).finish().try_init(),
        false => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init(),
    };
    started.map_err(|_| LoggingError::Twice)
}

/// A bare level is ours; the libraries below speak up from warnings on, unless the filter names them.
fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    let wrong = |why: String| LoggingError::Level { level: level.to_owned(), why };
    let bare = level.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let is_word = !level.is_empty() && level.chars().all(|char| char.is_ascii_alphanumeric());
    if is_word && !bare {
        return Err(wrong("is no level".into()));
    }
    let directives = match bare {
        true => format!("warn,reset_collector={level}"),
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
