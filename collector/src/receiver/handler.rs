//! One request of an application: read, its spans held against the resets that wait, sent on, the backend's answer
//! given back.

use std::{convert::Infallible, time::Instant};

use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{self, HeaderName},
};
use tonic::Status;

use crate::{
    config::settings::Protocol,
    correlate::{Sender, SplicedEvents, Ticket},
    model::signal::Signal,
    otlp::{
        payload::{Coding, Format, Payload, PayloadError},
        splice, splice_json,
    },
    receiver::{
        Connection, Shared,
        body::{self, IntakeError, Share},
        forward::{Away, Reply},
        grpc, http,
        metrics::Refused,
        response::{self, AnswerBody, Dialect},
    },
};

/// A request, read.
struct Inbound {
    signal: Signal,
    dialect: Dialect,
    headers: HeaderMap,
    payload: Payload,
}

/// Answers one request.
pub(crate) async fn answer(
    shared: &Shared,
    connection: &Connection,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (head, body) = request.into_parts();
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let (signal, dialect) = if grpc {
        match grpc::signal(&head) {
            Ok(signal) => (signal, Dialect::Grpc),
            Err(status) => {
                shared.traffic.count_refused(Refused::NotOtlp);
                return Ok(response::refuse(&status, Dialect::Grpc));
            }
        }
    } else {
        match http::signal_and_format(&head) {
            Ok((signal, format)) => (signal, Dialect::Http(format)),
            Err(response) => {
                shared.traffic.count_refused(Refused::NotOtlp);
                return Ok(*response);
            }
        }
    };
    let answer = async {
        let (chunks, share) = body::read_body(body, shared.limit, &shared.budget).await?;
        let payload = match dialect {
            Dialect::Grpc => grpc::payload(&head.headers, chunks).map_err(Refusal::malformed)?,
            Dialect::Http(format) => Payload { chunks, coding: http::coding(&head.headers), format },
        };
        let inbound = Inbound { signal, dialect, headers: head.headers, payload };
        exchange(shared, connection, inbound, share).await
    };
    Ok(answer.await.unwrap_or_else(|refusal: Refusal| {
        shared.traffic.count_refused(refusal.why);
        response::refuse(&refusal.status, dialect)
    }))
}

/// Why a request did not get an answer of the backend's.
struct Refusal {
    why: Refused,
    status: Status,
}

async fn exchange(
    shared: &Shared,
    connection: &Connection,
    inbound: Inbound,
    mut share: Share,
) -> Result<Response<AnswerBody>, Refusal> {
    let Inbound { signal, dialect, headers, payload } = inbound;
    let (marked, ticket) = match look(shared, connection, signal, &payload, &mut share).await? {
        Some((marked, ticket)) => (Some(marked), Some(ticket)),
        None => (None, None),
    };
    let from = shared.backends.of(signal).protocol();
    let headers = headers_to_pass(&headers, dialect, from);
    let mut answered = send(shared, signal, &headers, marked.as_ref().unwrap_or(&payload)).await;
    let mut accepted = answered.as_ref().is_ok_and(|reply| response::is_accepted(reply, from));
    let spoiled = answered.as_ref().is_ok_and(|reply| response::is_refused_for_good(reply, from));
    if marked.is_some() && spoiled {
        // An event of ours must not cost the application its spans: a few bytes may have been too many.
        answered = send(shared, signal, &headers, &payload).await;
        accepted = false;
    }
    if let Some(ticket) = ticket {
        ticket.settle(accepted);
    }
    let reply = answered?;
    shared.traffic.count_passed(signal, payload.len());
    Ok(response::translate(reply, from, dialect, signal))
}

async fn send(shared: &Shared, signal: Signal, headers: &HeaderMap, payload: &Payload) -> Result<Reply, Refusal> {
    let backend = shared.backends.of(signal);
    let convert = backend.protocol() == Protocol::Grpc && payload.format == Format::Json;
    if !convert {
        return Ok(backend.send(signal, headers, payload).await?);
    }
    let plain = payload.protobuf(signal, shared.limit)?;
    let payload = Payload { chunks: vec![plain], coding: Coding::Identity, format: Format::Protobuf };
    Ok(backend.send(signal, headers, &payload).await?)
}

/// The request with the events that belong into it, where there are any. Its size is checked in any case.
async fn look(
    shared: &Shared,
    connection: &Connection,
    signal: Signal,
    payload: &Payload,
    share: &mut Share,
) -> Result<Option<(Payload, Ticket)>, Refusal> {
    let readable = signal == Signal::Traces && !matches!(payload.coding, Coding::Other(_));
    let sender = if readable { connection.sender(shared).await } else { Sender::Unattributed };
    if !readable || !shared.correlator.needs_correlation(&sender, payload, Instant::now()) {
        payload.check_size(shared.limit)?;
        return Ok(None);
    }
    let plain = if payload.coding == Coding::Identity {
        payload.plain(shared.limit)?
    } else {
        // Room for the most that it can become, before it becomes that.
        let deadline = tokio::time::Instant::now() + body::BODY_TIME;
        let mut room = shared.budget.share(payload.most_plain_bytes(shared.limit), deadline).await?;
        let plain = payload.plain(shared.limit)?;
        room.shrink(plain.len());
        share.add(room);
        plain
    };
    let protobuf = match payload.format {
        Format::Protobuf => plain.clone(),
        Format::Json => match payload.protobuf(signal, shared.limit) {
            Ok(protobuf) => protobuf,
            Err(error) => return Ok(pass_malformed(shared, &error)),
        },
    };
    match shared.correlator.correlate_request(&sender, &protobuf, Instant::now()) {
        Ok(None) => Ok(None),
        Ok(Some(SplicedEvents { events, ticket })) => {
            let bytes = match payload.format {
                Format::Protobuf => Some(splice::splice(&plain, &places(events))),
                Format::Json => splice_json::splice(&plain, &events),
            };
            let marked =
                bytes.map(|bytes| Payload { chunks: vec![bytes.into()], coding: Coding::Identity, ..payload.clone() });
            Ok(marked.map(|marked| (marked, ticket)))
        }
        Err(error) => Ok(pass_malformed(shared, &error)),
    }
}

fn places(events: Vec<(usize, splice::Place, Vec<u8>)>) -> Vec<(splice::Place, Vec<u8>)> {
    events.into_iter().map(|(_, place, event)| (place, event)).collect()
}

/// It goes on as it came: the backend says what it thinks of it.
fn pass_malformed<T>(shared: &Shared, error: &dyn std::error::Error) -> Option<T> {
    shared.traffic.count_malformed();
    tracing::debug!("an application's spans cannot be read and go on as they came: {error}");
    None
}

/// The application's headers that go on: all but those of its connection, and what another protocol says otherwise.
fn headers_to_pass(headers: &HeaderMap, from: Dialect, to: Protocol) -> HeaderMap {
    const CONNECTION: &[HeaderName] = &[
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::EXPECT,
        header::HOST,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let same = (from == Dialect::Grpc) == (to == Protocol::Grpc);
    let named = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let stays = |name: &HeaderName| {
        CONNECTION.contains(name)
            || matches!(name.as_str(), "keep-alive" | "grpc-encoding")
            || named.split(',').any(|other| name.as_str().eq_ignore_ascii_case(other.trim()))
            || !same
                && (name.as_str().starts_with("grpc-") || matches!(*name, header::ACCEPT | header::ACCEPT_ENCODING))
    };
    headers.iter().filter(|(name, _)| !stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Refusal {
    fn malformed(status: Status) -> Self {
        Self { why: Refused::Malformed, status }
    }
}

impl From<IntakeError> for Refusal {
    fn from(error: IntakeError) -> Self {
        let message = error.to_string();
        match error {
            IntakeError::TooLarge { .. } => {
                Self { why: Refused::TooLarge, status: Status::resource_exhausted(message) }
            }
            IntakeError::Busy => Self { why: Refused::Busy, status: Status::unavailable(message) },
            // Worth another try: by another time the network may be faster.
            IntakeError::TooSlow => Self { why: Refused::BrokenOff, status: Status::deadline_exceeded(message) },
            IntakeError::Broken(_) => Self { why: Refused::BrokenOff, status: Status::invalid_argument(message) },
        }
    }
}

impl From<PayloadError> for Refusal {
    fn from(error: PayloadError) -> Self {
        let message = error.to_string();
        match error {
            PayloadError::TooLarge { .. } => {
                Self { why: Refused::TooLarge, status: Status::resource_exhausted(message) }
            }
            PayloadError::Undecodable { .. } | PayloadError::Json(_) | PayloadError::UnknownCoding => {
                Self::malformed(Status::invalid_argument(message))
            }
        }
    }
}

impl From<Away> for Refusal {
    fn from(away: Away) -> Self {
        Self { why: Refused::BackendAway, status: Status::unavailable(away.to_string()) }
    }
}
