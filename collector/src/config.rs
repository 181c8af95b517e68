//! Reads a YAML file into valid [`Settings`], or reports every mistake in it with its position.
//!
//! The keys are defined in `config/sections.rs`. The YAML becomes a tree of nodes with positions ([`serde_yaml`]'s parser),
//! and the tree is walked key by key, so that one mistake does not hide the next. Bounded in time and memory for any file.

mod destination;
mod diagnostic;
mod dump;
pub mod endpoint;
pub mod environment;
mod exposure;
mod field_types;
mod matching;
mod reader;
pub mod reload;
mod rules;
mod sections;
pub mod settings;
mod substitute;
mod values;
mod yaml;

use std::{fs::File, io::Read, path::Path};

use serde_json::{Value as Json, json};

pub use crate::config::diagnostic::{ConfigErrors, Diagnostic, Severity};
use crate::config::field_types::FieldType;
use crate::config::reader::Reader;

use crate::config::settings::Settings;

/// Maximum size of a file.
pub const MAX_FILE_SIZE: u64 = 1 << 20;

/// A valid configuration.
#[derive(Debug, Default)]
pub struct Config {
    /// The settings.
    pub settings: Settings,
    /// Settings that are valid, but may not do what was intended.
    pub warnings: Vec<Diagnostic>,
    /// The file, for errors that are found later.
    pub source: Source,
}

/// The file that settings came from.
#[derive(Debug, Default)]
pub struct Source {
    name: String,
    text: String,
    tree: yaml::Tree,
    root: Option<yaml::NodeId>,
}

impl Source {
    /// An error at a key, or where the file does not have it, at the nearest key around it. `[0]` is an item of a list.
    pub fn error(&self, path: &[&str], message: impl Into<String>, allowed: &str) -> Diagnostic {
        let key = path.join(".").replace(".[", "[");
        let Some(root) = self.root else {
            return Diagnostic::of_file(&self.name, message, allowed).at_key(key);
        };
        let place = self.tree.node(self.tree.find(root, path)).place.clone();
        diagnostic::located(
            &self.text,
            &self.name,
            diagnostic::RawDiagnostic::error(place, key, message).allowed(allowed),
        )
    }
}

/// Reads a file, with this process's environment.
///
/// # Errors
/// Every mistake in the file, or why it cannot be read.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let name = path.display().to_string();
    let of_file = |message: String, allowed: &str| ConfigErrors::from(Diagnostic::of_file(&name, message, allowed));
    let unreadable = |error: std::io::Error| {
        let allowed = match error.kind() {
            std::io::ErrorKind::NotFound => "an existing file; in a container it must be mounted",
            _ => "a file that this user can read",
        };
        of_file(format!("cannot read the file: {error}"), allowed)
    };
    if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Err(of_file("this is a directory".into(), "a YAML file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    parse_bytes(&bytes, &name, &|name| std::env::var(name).ok())
}

/// As [`parse`], for bytes that may not be text.
fn parse_bytes(bytes: &[u8], name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let of_file = |message: String, allowed: &str| ConfigErrors::from(Diagnostic::of_file(name, message, allowed));
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(of_file("the file is larger than 1 MiB".into(), "at most 1 MiB"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(of_file("the file is UTF-16".into(), "UTF-8: save the file in this encoding"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text, name, env),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
            let message = format!("line {line} is not UTF-8: found the byte 0x{byte:02x}, as in Latin-1");
            Err(of_file(message, "UTF-8: save the file in this encoding"))
        }
    }
}

/// Reads a text. `name` is the name in messages; `env` looks up variables.
///
/// # Errors
/// Every mistake in the text.
pub fn parse(text: &str, name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(Diagnostic::of_file(name, "the file is larger than 1 MiB", "at most 1 MiB").into());
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut settings = Settings::default();
    let (tree, root) = match yaml::parse(text) {
        Ok(parsed) => parsed,
        Err(problem) => return Err(diagnostic::located(text, name, problem).into()),
    };
    let mut problems = diagnostic::Diagnostics::default();
    if let Some(root) = root {
        let mut reader = Reader::new(&tree, env);
        sections::File.read(&mut reader, root, &mut settings);
        sections::check(&mut reader, root, &settings);
        problems = reader.into_diagnostics();
    }
    let warnings = diagnostic::diagnostics(text, name, problems)?;
    Ok(Config { settings, warnings, source: Source { name: name.to_owned(), text: text.to_owned(), tree, root } })
}

/// The settings in the form of a file, with every key; values of headers are redacted.
pub fn show(settings: &Settings) -> impl serde::Serialize + use<> {
    sections::File.show(settings)
}

/// The JSON Schema of the file.
pub fn schema() -> Json {
    let mut schema = sections::File.schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Reset Collector configuration".into();
    schema["$defs"] = json!({
        "variable": {
            "description": "A text in which ${env:NAME} or ${env:NAME:-default} is replaced.",
            "type": "string",
            "pattern": "\\$\\{",
        },
        "match": dump::definition(),
        "destination": destination::DestinationSection::definition(),
    });
    schema
}
