//! Lines for standard output or standard error that never block whoever emits them.
//!
//! Once [`LineWriter::spawn`] has been called, a thread does the writing. Before that, lines are written at once where
//! the output takes them, and wait in the buffer where it does not. The buffer is bounded: lines that do not fit are
//! dropped and counted. This is not tracing-appender because both outputs need it, and because the guard of that crate
//! prints to the blocked output itself when the program ends.

use std::{
    fs::File,
    io::{self, ErrorKind, IsTerminal, Write},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};

/// A pipe that polls as writable takes this many bytes without blocking (PIPE_BUF, pipe(7)).
const PART_BYTES: usize = 4096;
/// A write that takes longer than this means that the reader has stalled.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// At the end, the wait for an output that takes nothing.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(100);
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Renders the line that follows dropped lines once the output takes lines again; empty for none.
type RenderDropped = Box<dyn Fn(u64) -> String + Send + Sync>;

/// Writes lines to one output. Clones share it.
#[derive(Clone)]
pub struct LineWriter {
    shared: Arc<Shared>,
}

struct Shared {
    output: File,
    capacity: usize,
    on_recovery: RenderDropped,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Lines that wait.
    pending: Vec<u8>,
    /// Lines that the thread has taken and not yet written.
    in_write: u64,
    /// Since when the current write has run.
    write_started: Option<Instant>,
    /// Bytes written so far.
    written: u64,
    has_thread: bool,
    /// The reader has closed the output.
    closed: bool,
    dropped: u64,
    /// Dropped lines that no line has reported yet.
    unreported: u64,
}

impl LineWriter {
    /// A writer for this output that buffers up to `capacity` bytes. `on_recovery` renders the line that reports dropped
    /// lines.
    pub fn new(
        output: impl AsFd,
        capacity: usize,
        on_recovery: impl Fn(u64) -> String + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let output = File::from(output.as_fd().try_clone_to_owned()?);
        let on_recovery = Box::new(on_recovery);
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(Self { shared: Arc::new(Shared { output, capacity, on_recovery, state, changed }) })
    }

    /// Starts the thread that writes from now on. The thread has the capabilities of its caller.
    pub fn spawn(&self, name: &str) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || shared.run())?;
        self.shared.lock().has_thread = true;
        Ok(())
    }

    /// Takes whole lines. Never blocks.
    pub fn push(&self, lines: &[u8]) {
        let mut state = self.shared.lock();
        if state.closed || (!state.pending.is_empty() && state.pending.len() + lines.len() > self.shared.capacity) {
            state.drop_lines(count_lines(lines));
            return;
        }
        state.pending.extend_from_slice(lines);
        if state.has_thread {
            drop(state);
            self.shared.changed.notify_one();
        } else {
            self.shared.write_ready(&mut state, Duration::ZERO);
        }
    }

    /// Lines that were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }

    /// How long the output has not taken anything, once that is long enough to count.
    pub fn stalled_for(&self) -> Option<Duration> {
        let started = self.shared.lock().write_started?;
        Some(started.elapsed()).filter(|elapsed| *elapsed > STALL_TIMEOUT)
    }

    /// Whether the reader has closed the output.
    pub fn is_closed(&self) -> bool {
        // The write end of a pipe polls as an error once the read end is closed (pipe(7)), a terminal as hung up.
        self.shared.lock().closed || self.shared.polls(PollFlags::ERR | PollFlags::HUP, Duration::ZERO)
    }

    /// Waits until everything is written, the output takes nothing for a while, or the deadline passes. What is left
    /// then counts as dropped.
    pub fn drain(&self, deadline: Instant) {
        let (mut written, mut progressed) = (None, Instant::now());
        loop {
            let mut state = self.shared.lock();
            let idle_deadline = progressed + DRAIN_IDLE_TIMEOUT;
            if !state.has_thread {
                self.shared.write_ready(&mut state, DRAIN_IDLE_TIMEOUT);
            }
            if state.closed || (state.pending.is_empty() && state.in_write == 0) {
                return;
            }
            let now = Instant::now();
            if written != Some(state.written) {
                (written, progressed) = (Some(state.written), now);
            } else if now >= idle_deadline.min(deadline) {
                let left = count_lines(&std::mem::take(&mut state.pending)) + state.in_write;
                state.drop_lines(left);
                return;
            }
            drop(state);
            thread::sleep(DRAIN_POLL_INTERVAL);
        }
    }
}

impl Write for LineWriter {
    /// Takes whole lines.
    ///
    /// # Errors
    /// `BrokenPipe` once the reader has closed the output.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if self.shared.lock().closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut state = self.lock();
            while state.pending.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let lines = std::mem::take(&mut state.pending);
            state.in_write = count_lines(&lines);
            drop(state);
            if !self.write_lines(&lines) {
                return;
            }
        }
    }

    /// Writes lines, and the report of those dropped before. `false` once the reader has closed the output.
    fn write_lines(&self, lines: &[u8]) -> bool {
        let mut rest = lines;
        let result = loop {
            let part = &rest[..rest.len().min(PART_BYTES)];
            if part.is_empty() {
                break Ok(());
            }
            self.lock().write_started.get_or_insert_with(Instant::now);
            let result = self.write_part(part);
            let mut state = self.lock();
            match result {
                Ok(written) => {
                    state.write_started = None;
                    state.written += written as u64;
                    state.in_write = state.in_write.saturating_sub(count_lines(&rest[..written]));
                    rest = &rest[written..];
                }
                Err(error) => break Err(error),
            }
        };
        let mut state = self.lock();
        (state.in_write, state.write_started) = (0, None);
        match result {
            Ok(()) => {
                let dropped = std::mem::take(&mut state.unreported);
                drop(state);
                if dropped > 0 {
                    let report = (self.on_recovery)(dropped);
                    return report.is_empty() || self.write_lines(report.as_bytes());
                }
                true
            }
            Err(error) => {
                state.drop_lines(count_lines(rest));
                state.closed = error.kind() == ErrorKind::BrokenPipe;
                !state.closed
            }
        }
    }

    fn write_part(&self, part: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.output).write(part) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Another process that shares the output may have made it non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.output, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    /// Without the thread: writes what the output takes, waiting for it at most `wait`.
    fn write_ready(&self, state: &mut State, wait: Duration) {
        let mut written = 0;
        while written < state.pending.len() && self.polls(PollFlags::OUT, wait) {
            let part = &state.pending[written..state.pending.len().min(written + PART_BYTES)];
            match (&self.output).write(part) {
                Ok(count) if count > 0 => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                result => {
                    state.drop_lines(count_lines(&state.pending[written..]));
                    state.closed = result.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
                    written = state.pending.len();
                }
            }
        }
        state.written += written as u64;
        state.pending.drain(..written);
    }

    fn polls(&self, event: PollFlags, wait: Duration) -> bool {
        let mut polled = [PollFd::new(&self.output, event)];
        let wait = wait.try_into().ok();
        // An error counts as ready: the write then returns it.
        poll(&mut polled, wait.as_ref()).is_ok_and(|count| count > 0)
            && polled[0].revents().intersects(event | PollFlags::ERR)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_lines(&mut self, lines: u64) {
        self.dropped += lines;
        self.unreported += lines;
    }
}

impl std::fmt::Debug for LineWriter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LineWriter").field("output", &self.shared.output).finish_non_exhaustive()
    }
}

/// Whether an output may be coloured: a terminal, and neither NO_COLOR (<https://no-color.org>) nor TERM=dumb.
pub fn use_colour(output: &impl IsTerminal) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    output.is_terminal() && !no_color && !dumb
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
    use std::io::Read;

    use super::*;

    const CAPACITY: usize = 1 << 20;
    /// Larger than any pipe's default capacity.
    const LINES: u64 = 1_000;

    fn line(number: u64) -> String {
        format!("{number:>254}\n")
    }

    fn report(dropped: u64) -> String {
        format!("{dropped} lines dropped\n")
    }

    fn writer(capacity: usize, threaded: bool) -> (io::PipeReader, LineWriter) {
        let (reader, output) = io::pipe().unwrap();
        let writer = LineWriter::new(output, capacity, report).unwrap();
        if threaded {
            writer.spawn("test").unwrap();
        }
        (reader, writer)
    }

    #[test]
    fn a_reader_that_reads_gets_every_line_in_order() {
        for threaded in [false, true] {
            let (mut reader, writer) = writer(CAPACITY, threaded);
            let read = thread::spawn(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).map(|_| text).unwrap()
            });
            (0..LINES).for_each(|number| writer.push(line(number).as_bytes()));
            writer.drain(Instant::now() + Duration::from_secs(60));
            assert_eq!(writer.dropped(), 0);
            // Both duplicates of the write end are gone: the reader sees the end.
            match threaded {
                false => drop(writer),
                true => continue,
            }
            assert_eq!(read.join().unwrap(), (0..LINES).map(line).collect::<String>());
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_dropped_counted_and_reported() {
        let (mut reader, writer) = writer(8 << 10, true);
        (0..LINES).for_each(|number| writer.push(line(number).as_bytes()));
        let dropped = writer.dropped();
        assert!(dropped > 0, "the pipe and the buffer took all");
        let mut text = String::new();
        let reported = |text: &str| -> u64 {
            text.lines().filter_map(|line| line.strip_suffix(" lines dropped")?.parse::<u64>().ok()).sum()
        };
        // The thread reports what was dropped whenever it has written what it took: perhaps twice here.
        while reported(&text) < dropped {
            let mut part = [0; 4096];
            let count = reader.read(&mut part).unwrap();
            text.push_str(str::from_utf8(&part[..count]).unwrap());
        }
        assert_eq!((reported(&text), writer.dropped()), (dropped, dropped));
        let written = text.lines().filter(|line| !line.contains("dropped")).count() as u64;
        assert_eq!(written + dropped, LINES);
    }

    #[test]
    fn nobody_reads() {
        for threaded in [false, true] {
            let (_reader, writer) = writer(CAPACITY, threaded);
            (0..LINES).for_each(|number| writer.push(line(number).as_bytes()));
            writer.drain(Instant::now() + Duration::from_secs(60));
            let dropped = writer.dropped();
            assert!(dropped > 0 && dropped < LINES, "{dropped} of {LINES}: the pipe takes some");
            assert!(!writer.is_closed());
        }
    }

    #[test]
    fn a_closed_reader_is_seen_before_the_next_line() {
        for threaded in [false, true] {
            let (reader, mut writer) = writer(CAPACITY, threaded);
            assert!(!writer.is_closed());
            drop(reader);
            assert!(writer.is_closed());
            writer.push(line(0).as_bytes());
            writer.drain(Instant::now() + Duration::from_secs(60));
            assert_eq!(writer.write(b"x\n").unwrap_err().kind(), ErrorKind::BrokenPipe);
            writer.push(line(1).as_bytes());
            assert_eq!(writer.dropped(), 2);
        }
    }

    #[test]
    fn a_full_disk_drops_the_lines_and_no_more() {
        for threaded in [false, true] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut writer = LineWriter::new(&full, CAPACITY, report).unwrap();
            if threaded {
                writer.spawn("test").unwrap();
            }
            writer.write_all(b"one\ntwo\n").unwrap();
            writer.drain(Instant::now() + Duration::from_secs(60));
            assert_eq!((writer.dropped(), writer.is_closed()), (2, false));
        }
    }

    #[test]
    fn an_output_that_another_process_made_non_blocking() {
        let (mut reader, output) = io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&output).unwrap();
        rustix::fs::fcntl_setfl(&output, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let writer = LineWriter::new(output, CAPACITY, report).unwrap();
        writer.spawn("test").unwrap();
        (0..LINES).for_each(|number| writer.push(line(number).as_bytes()));
        let mut text = vec![0; line(0).len() * LINES as usize];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), (0..LINES).map(line).collect::<String>());
        assert_eq!(writer.dropped(), 0);
    }
}
