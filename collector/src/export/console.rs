//! Resets on standard output: a line each, for a person or as JSON.
//!
//! Writes into one buffer that is used again; a reader that goes away ends it in order.

use std::io::{self, ErrorKind, IsTerminal, Write};

use crate::{
    config::settings,
    event::{
        ResetEvent,
        message::{push_comm, push_endpoint, push_hex},
    },
    export::line_writer::{LineWriter, use_colour},
    model::resource::ResourceValue,
    model::{
        address::AddressText,
        attribute::{Attribute, Value},
        cause::Severity,
    },
    otlp::encode::EVENT_NAME,
    text::{is_unsafe, rfc3339},
};

/// Lines wait for [`Console::flush`] up to this many bytes.
const BUFFER_BYTES: usize = 64 << 10;
/// Lines that wait for a slow reader of standard output, in bytes: some 30,000, the burst of 15,000 connections that die at once.
const STDOUT_CAPACITY: usize = 32 << 20;
/// Columns of the sentence: most are shorter, a longer one moves the rest of its line.
const SENTENCE_COLUMNS: usize = 100;

/// A writer for standard output, for [`Console::flush`]; its thread starts with [`LineWriter::spawn`]. Dropped lines are
/// reported on standard output where a person reads it, and in the log in any case.
///
/// # Errors
/// The process has no file descriptor left.
pub fn stdout_writer(setting: settings::Console) -> io::Result<LineWriter> {
    let is_pretty = matches!(Console::for_stdout(setting).mode, Mode::Pretty { .. });
    LineWriter::new(io::stdout(), STDOUT_CAPACITY, move |dropped| {
        tracing::warn!(event = "console_lines_dropped", dropped, "standard output was not read: lines dropped");
        if is_pretty { format!("… {dropped} lines dropped\n") } else { String::new() }
    })
}

/// Lines on standard output.
#[derive(Debug)]
pub struct Console {
    mode: Mode,
    buffer: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pretty { colour: bool },
    Json,
    Off,
}

/// Whether anybody reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As far as is known.
    There,
    /// It closed the pipe; no lines are written any more.
    Gone,
}

impl Console {
    /// A console for an output that is a `terminal` or not, coloured if `colour` and a terminal.
    pub fn new(setting: settings::Console, terminal: bool, colour: bool) -> Self {
        let pretty = Mode::Pretty { colour: terminal && colour };
        let mode = match setting {
            settings::Console::Auto if terminal => pretty,
            settings::Console::Auto | settings::Console::Json => Mode::Json,
            settings::Console::Pretty => pretty,
            settings::Console::Off => Mode::Off,
        };
        Self { mode, buffer: String::new() }
    }

    /// A console for this process's standard output.
    pub fn for_stdout(setting: settings::Console) -> Self {
        let stdout = io::stdout();
        Self::new(setting, stdout.is_terminal(), use_colour(&stdout))
    }

    /// Whether lines are written at all.
    pub fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    /// Adds the line of a reset. `true`: much has gathered, and [`Self::flush`] is to be called now, else when no more
    /// come at once.
    pub fn add(&mut self, event: &ResetEvent<'_>) -> bool {
        match self.mode {
            Mode::Pretty { colour } => pretty_line(event, colour, &mut self.buffer),
            Mode::Json => json_line(event, &mut self.buffer),
            Mode::Off => {}
        }
        self.buffer.len() >= BUFFER_BYTES
    }

    /// Adds the line of a reset, and writes when much has gathered.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn push(&mut self, event: &ResetEvent<'_>, out: &mut impl Write) -> io::Result<Reader> {
        if self.add(event) { self.flush(out) } else { Ok(Reader::There) }
    }

    /// Writes what has gathered.
    ///
    /// # Errors
    /// The output cannot be written, other than because its reader has gone. What had gathered is lost.
    pub fn flush(&mut self, out: &mut impl Write) -> io::Result<Reader> {
        let written = out.write_all(self.buffer.as_bytes()).and_then(|()| out.flush());
        self.buffer.clear();
        match written {
            Ok(()) => Ok(Reader::There),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.mode = Mode::Off;
                Ok(Reader::Gone)
            }
            Err(error) => Err(error),
        }
    }
}

/// Select Graphic Rendition of ECMA-48, where colours are on.
struct Paint(bool);

impl Paint {
    const DIM: &str = "\x1b[2m";
    const GREEN: &str = "\x1b[32m";
    const YELLOW: &str = "\x1b[33m";
    const RED: &str = "\x1b[1;31m";
    const BOLD: &str = "\x1b[1m";
    const PLAIN: &str = "\x1b[0m";

    fn on(&self, style: &str, out: &mut String) {
        if self.0 {
            out.push_str(style);
        }
    }

    fn off(&self, out: &mut String) {
        self.on(Self::PLAIN, out);
    }
}

/// `20:59:39.123 WARN  sentence   source → destination  cause  state  reason  process  trace`
fn pretty_line(event: &ResetEvent<'_>, colour: bool, out: &mut String) {
    let paint = Paint(colour);
    let reset = event.reset;
    paint.on(Paint::DIM, out);
    out.push_str(str::from_utf8(&rfc3339(reset.time_unix_ns)[11..23]).unwrap_or_default());
    paint.off(out);
    out.push(' ');
    let severity = match event.severity {
        Severity::Info => Paint::GREEN,
        Severity::Warn => Paint::YELLOW,
        Severity::Error => Paint::RED,
    };
    paint.on(severity, out);
    out.push_str(event.severity.word());
    paint.off(out);
    pad(out, event.severity.word().len(), 6);
    paint.on(Paint::BOLD, out);
    out.push_str(event.message);
    paint.off(out);
    pad(out, event.message.chars().count(), SENTENCE_COLUMNS);
    paint.on(Paint::DIM, out);
    let mut column = out.len();
    push_endpoint(out, reset.source());
    out.push_str(" → ");
    push_endpoint(out, reset.destination());
    // The arrow is three bytes in one column.
    pad(out, out.len() - column - 2, 46);
    let state = reset.state.map_or("-", |state| state.word());
    for (word, width) in [(reset.cause.word(), 24), (state, 13), (reset.reason.unwrap_or("-"), 26)] {
        out.push_str(word);
        pad(out, word.len(), width);
    }
    column = out.len();
    match reset.owner {
        Some(owner) => {
            push_comm(out, &owner.comm);
            out.push('[');
            out.push_str(&owner.pid.to_string());
            out.push(']');
        }
        None => out.push('-'),
    }
    if let Some(trace) = event.contexts.log.filter(|_| reset.trace.is_some()) {
        pad(out, out[column..].chars().count(), 26);
        out.push_str("trace ");
        push_id(out, &trace.trace_id);
    }
    paint.off(out);
    out.push('\n');
}

/// Spaces up to a column, at least one.
fn pad(out: &mut String, length: usize, columns: usize) {
    out.extend(std::iter::repeat_n(' ', columns.saturating_sub(length).max(1)));
}

/// One JSON object: the record's own fields, the attributes by their names, the resource's under `resource`.
fn json_line(event: &ResetEvent<'_>, out: &mut String) {
    let reset = event.reset;
    out.push_str("{\"time\":\"");
    out.push_str(str::from_utf8(&rfc3339(reset.time_unix_ns)).unwrap_or_default());
    out.push_str("\",\"observed_time\":\"");
    out.push_str(str::from_utf8(&rfc3339(reset.observed_unix_ns)).unwrap_or_default());
    out.push_str("\",\"severity\":\"");
    out.push_str(event.severity.word());
    out.push_str("\",\"event_name\":\"");
    out.push_str(EVENT_NAME);
    out.push_str("\",\"body\":");
    push_json_text(out, event.message);
    if let Some(identity) = event.contexts.log {
        out.push_str(",\"trace_id\":\"");
        push_id(out, &identity.trace_id);
        out.push('"');
        if let Some(span_id) = identity.span_id {
            out.push_str(",\"span_id\":\"");
            push_id(out, &span_id);
            out.push('"');
        }
    }
    for attribute in Attribute::ALL {
        if let Some(value) = attribute.value(reset) {
            push_json_attribute(out, attribute.name(), value);
        }
    }
    out.push_str(",\"resource\":{");
    for (index, (name, value)) in reset.resource.attributes.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_json_text(out, name);
        out.push(':');
        push_json_resource(out, value);
    }
    out.push_str("}}\n");
}

/// `,"name":value`; names are ours and need no escaping.
fn push_json_attribute(out: &mut String, name: &str, value: Value<'_>) {
    if matches!(value, Value::Float(number) if !number.is_finite()) {
        return;
    }
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":");
    match value {
        Value::Text(text) => push_json_text(out, text),
        Value::Address(address) => {
            out.push('"');
            out.push_str(AddressText::new(address).as_str());
            out.push('"');
        }
        Value::Integer(number) => push_display(out, number),
        Value::Float(number) => push_display(out, number),
    }
}

fn push_json_resource(out: &mut String, value: &ResourceValue) {
    match value {
        ResourceValue::Text(text) => push_json_text(out, text),
        ResourceValue::Integer(number) => push_display(out, *number),
        ResourceValue::List(texts) => {
            out.push('[');
            for (index, text) in texts.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_json_text(out, text);
            }
            out.push(']');
        }
    }
}

/// A number as Rust displays it, which JSON reads.
fn push_display(out: &mut String, number: impl std::fmt::Display) {
    use std::fmt::Write;
    if write!(out, "{number}").is_err() {
        out.push_str("null");
    }
}

/// A JSON string. What a terminal or a line reader could stumble over is escaped as well (DEL, C1, bidirectional
/// controls, line separators).
fn push_json_text(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (place, character) in text.char_indices() {
        if !needs_escape(character) {
            continue;
        }
        out.push_str(&text[plain..place]);
        plain = place + character.len_utf8();
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let [high, low] = unit.to_be_bytes();
                    out.push_str("\\u");
                    push_hex(out, high);
                    push_hex(out, low);
                }
            }
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

fn needs_escape(character: char) -> bool {
    match character {
        '"' | '\\' => true,
        ' '..='~' => false,
        other => is_unsafe(other),
    }
}

fn push_id(out: &mut String, id: &[u8]) {
    for byte in id {
        push_hex(out, *byte);
    }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
