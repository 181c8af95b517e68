//! A limit on HTTP/2's control frames: each PING and SETTINGS is answered, and no request pays for them.
//!
//! Reads the frame headers of the bytes that pass (RFC 9113, section 4.1) and ends a connection that sends control frames
//! faster than any client needs.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Control frames that a connection may send at once. gRPC clients send a PING or two for each response.
const BURST: u32 = 2_000;
/// Control frames a second in the long run.
const PER_SECOND: u32 = 200;

/// A stream that fails once its peer sends too many control frames.
pub(crate) struct FrameLimited<S> {
    stream: S,
    scanner: Scanner,
}

/// Follows frames through the bytes of a connection.
struct Scanner {
    state: State,
    tokens: u32,
    refilled: Instant,
}

enum State {
    /// This many bytes of the preface have matched.
    Preface(usize),
    /// Not HTTP/2.
    Other,
    /// A frame header, of which this many bytes are here.
    Header([u8; HEADER], usize),
    /// A frame's payload, of which this many bytes are missing.
    Payload(usize),
}

impl<S> FrameLimited<S> {
    pub(crate) fn new(stream: S) -> Self {
        let scanner = Scanner { state: State::Preface(0), tokens: BURST, refilled: Instant::now() };
        Self { stream, scanner }
    }
}

impl Scanner {
    /// Takes the next bytes; `false` once there are too many control frames.
    fn scan(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        while let Some(&first) = bytes.first() {
            match &mut self.state {
                State::Other => return true,
                State::Preface(matched) => {
                    if PREFACE[*matched] != first {
                        self.state = State::Other;
                        return true;
                    }
                    *matched += 1;
                    bytes = &bytes[1..];
                    if *matched == PREFACE.len() {
                        self.state = State::Header([0; HEADER], 0);
                    }
                }
                State::Payload(missing) => {
                    let length = bytes.len().min(*missing);
                    bytes = &bytes[length..];
                    *missing -= length;
                    if *missing == 0 {
                        self.state = State::Header([0; HEADER], 0);
                    }
                }
                State::Header(header, filled) => {
                    header[*filled] = first;
                    *filled += 1;
                    bytes = &bytes[1..];
                    if *filled < HEADER {
                        continue;
                    }
                    let [a, b, c, kind, ..] = *header;
                    let length = u32::from_be_bytes([0, a, b, c]) as usize;
                    self.state = if length == 0 { State::Header([0; HEADER], 0) } else { State::Payload(length) };
                    // These belong to requests, which have bounds of their own.
                    if !matches!(kind, DATA | HEADERS | CONTINUATION) && !self.take(now) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn take(&mut self, now: Instant) -> bool {
        if self.tokens == 0 {
            let elapsed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(60));
            let refill = (elapsed.as_secs_f64() * f64::from(PER_SECOND)) as u32;
            self.tokens = refill.min(BURST);
            self.refilled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameLimited<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read
            && !self.scanner.scan(&buffer.filled()[before..], Instant::now())
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "too many HTTP/2 control frames")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameLimited<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanner(now: Instant) -> Scanner {
        Scanner { state: State::Preface(0), tokens: BURST, refilled: now }
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    fn pings(count: u32) -> Vec<u8> {
        (0..count).flat_map(|_| frame(6, &[0; 8])).collect()
    }

    #[test]
    fn control_frames_have_a_limit_and_data_has_none() {
        let now = Instant::now();
        let mut data = PREFACE.to_vec();
        (0..2 * BURST).for_each(|_| data.extend(frame(DATA, &[6; 100])));
        // Wherever the bytes are cut.
        for cut in [1, 7, 9, 4096] {
            let mut one = scanner(now);
            let mut scan = |bytes: &[u8]| bytes.chunks(cut).all(|bytes| one.scan(bytes, now));
            assert!(scan(&data), "DATA is limited");
            assert!(scan(&pings(BURST)), "a burst is not allowed");
            assert!(!scan(&pings(1)), "a flood is allowed");
        }
        let mut one = scanner(now);
        assert!(one.scan(PREFACE, now));
        for second in 1..30 {
            let now = now + Duration::from_secs(second);
            assert!(one.scan(&pings(PER_SECOND), now), "a steady rate is not allowed");
        }
    }

    #[test]
    fn other_protocols_pass() {
        let now = Instant::now();
        let mut one = scanner(now);
        assert!(one.scan(b"POST /v1/traces HTTP/1.1\r\n", now));
        assert!(one.scan(&pings(2 * BURST), now));
    }
}
