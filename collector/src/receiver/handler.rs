//! One request of an application: read, its spans matched with the resets that wait, forwarded, the backend's response
//! returned.

use std::{convert::Infallible, time::Instant};

use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{self, HeaderName},
};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    config::settings::Protocol,
    correlate::{Sender, SplicedEvents, Ticket},
    model::signal::Signal,
    otlp::{
        client::{BackendResponse, SendError},
        payload::{Encoding, Format, Payload, PayloadError, protobuf_of_json},
        splice, splice_json,
    },
    receiver::{
        Connection, Shared,
        body::{BODY_TIMEOUT, BodyError, BudgetShare, ClientKey},
        metrics::RejectReason,
        request,
        response::{self, AnswerBody, WireProtocol},
    },
};

/// When a client that was refused for want of room may try again.
const RETRY_DELAY: std::time::Duration = std::time::Duration::from_secs(1);

/// A request whose body has been read.
struct ParsedRequest {
    signal: Signal,
    protocol: WireProtocol,
    headers: HeaderMap,
    payload: Payload,
    client: ClientKey,
    limit: usize,
    share: BudgetShare,
}

/// Answers one request.
pub(crate) async fn answer(
    shared: &Shared,
    connection: &Connection,
    incoming: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let (head, body) = incoming.into_parts();
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let (signal, protocol) = if grpc {
        match request::grpc_signal(&head) {
            Ok(signal) => (signal, WireProtocol::Grpc),
            Err(status) => {
                shared.traffic.count_rejected(RejectReason::NotOtlp);
                return Ok(response::refuse(&status, WireProtocol::Grpc));
            }
        }
    } else {
        match request::http_signal_and_format(&head) {
            Ok((signal, format)) => (signal, WireProtocol::Http(format)),
            Err(response) => {
                shared.traffic.count_rejected(RejectReason::NotOtlp);
                return Ok(*response);
            }
        }
    };
    let [grpc_limit, http_limit] = shared.limits;
    let limit = if grpc { grpc_limit } else { http_limit };
    let answer = async {
        let client = connection.client();
        let (chunks, share) = shared.intake.read(body, limit, client).await?;
        let payload = match protocol {
            WireProtocol::Grpc => request::grpc_payload(&head.headers, chunks).map_err(Rejection::malformed)?,
            WireProtocol::Http(format) => Payload { chunks, encoding: request::http_encoding(&head.headers), format },
        };
        let inbound = ParsedRequest { signal, protocol, headers: head.headers, payload, client, limit, share };
        exchange(shared, connection, inbound).await
    };
    Ok(answer.await.unwrap_or_else(|rejection: Rejection| {
        shared.traffic.count_rejected(rejection.reason);
        response::refuse(&rejection.status, protocol)
    }))
}

/// Why a request was answered without the backend.
struct Rejection {
    reason: RejectReason,
    status: Status,
}

async fn exchange(
    shared: &Shared,
    connection: &Connection,
    mut inbound: ParsedRequest,
) -> Result<Response<AnswerBody>, Rejection> {
    let (spliced, ticket) = match splice_events(shared, connection, &mut inbound).await? {
        Some((spliced, ticket)) => (Some(spliced), Some(ticket)),
        None => (None, None),
    };
    let (signal, protocol) = (inbound.signal, inbound.protocol);
    let from = shared.backends.of(signal).client.protocol();
    let headers = headers_to_forward(&inbound.headers, protocol, from, &shared.pass_headers);
    let mut answered = send(shared, &mut inbound, &headers, spliced.as_ref()).await;
    let mut accepted = answered.as_ref().is_ok_and(|reply| response::is_accepted(reply, from));
    let rejected = answered.as_ref().is_ok_and(|reply| response::is_rejected_for_good(reply, from));
    if spliced.is_some() && rejected {
        // An event of ours must not cost the application its spans: a few bytes may have been too many.
        answered = send(shared, &mut inbound, &headers, None).await;
        accepted = false;
    }
    if let Some(ticket) = ticket {
        ticket.settle(accepted);
    }
    let answer = answered?;
    shared.traffic.count_passed(signal, inbound.payload.len());
    Ok(response::translate(answer, from, protocol, signal))
}

/// Forwards the request, or what became of it with events, in the format that the backend takes.
async fn send(
    shared: &Shared,
    inbound: &mut ParsedRequest,
    headers: &HeaderMap,
    spliced: Option<&Payload>,
) -> Result<BackendResponse, Rejection> {
    let backend = shared.backends.of(inbound.signal);
    let Some(_slot) = backend.slot(inbound.client).await else {
        return Err(Rejection::busy("too many requests are in progress at the backend"));
    };
    let convert = backend.client.protocol() == Protocol::Grpc && inbound.payload.format == Format::Json;
    let payload = spliced.unwrap_or(&inbound.payload);
    if !convert {
        return Ok(backend.client.forward(inbound.signal, headers.clone(), payload).await?);
    }
    let (signal, limit, payload) = (inbound.signal, inbound.limit, payload.clone());
    let (text, _text_share) = decode(shared, inbound.client, &payload, limit).await?;
    let room = json_room(shared, inbound.client, text.len(), limit).await?;
    let plain = protobuf_of_json(signal, &text, limit)?;
    inbound.share.add(room);
    drop(text);
    let payload = Payload { chunks: vec![plain], encoding: Encoding::Identity, format: Format::Protobuf };
    Ok(backend.client.forward(signal, headers.clone(), &payload).await?)
}

/// The decoded bytes, with the room that they take: charged before it is used.
async fn decode(
    shared: &Shared,
    client: ClientKey,
    payload: &Payload,
    limit: usize,
) -> Result<(bytes::Bytes, BudgetShare), Rejection> {
    let deadline = tokio::time::Instant::now() + BODY_TIMEOUT;
    let mut room = shared.intake.share(client, payload.max_plain_len(limit), deadline).await?;
    let plain = payload.plain(limit)?;
    room.shrink(plain.len());
    Ok((plain, room))
}

/// Room for the protobuf of a JSON text, and for the longest text in it.
async fn json_room(shared: &Shared, client: ClientKey, text: usize, limit: usize) -> Result<BudgetShare, Rejection> {
    let deadline = tokio::time::Instant::now() + BODY_TIMEOUT;
    Ok(shared.intake.share(client, text + Payload::max_protobuf_len(text, limit), deadline).await?)
}

/// The request with the events that belong on its spans, if any. Its size is checked in any case.
async fn splice_events(
    shared: &Shared,
    connection: &Connection,
    inbound: &mut ParsedRequest,
) -> Result<Option<(Payload, Ticket)>, Rejection> {
    let (client, limit, payload) = (inbound.client, inbound.limit, &inbound.payload);
    let readable = inbound.signal == Signal::Traces && !matches!(payload.encoding, Encoding::Other(_));
    let sender = if readable { connection.sender(shared).await } else { Sender::Unattributed };
    if !readable || !shared.correlator.needs_correlation(&sender, payload, Instant::now()) {
        payload.check_size(limit)?;
        return Ok(None);
    }
    let (plain, plain_share) = decode(shared, client, payload, limit).await?;
    inbound.share.add(plain_share);
    let protobuf = match payload.format {
        Format::Protobuf => plain.clone(),
        Format::Json => {
            let room = json_room(shared, client, plain.len(), limit).await?;
            inbound.share.add(room);
            match protobuf_of_json(Signal::Traces, &plain, limit) {
                Ok(protobuf) => protobuf,
                Err(error) => return Ok(forward_unparsed(shared, &error)),
            }
        }
    };
    match shared.correlator.correlate_request(&sender, &protobuf, Instant::now()) {
        Ok(None) => Ok(None),
        Ok(Some(SplicedEvents { events, ticket })) => {
            let added: usize = events.iter().map(|(.., event)| event.len() * 2).sum();
            let deadline = tokio::time::Instant::now() + BODY_TIMEOUT;
            inbound.share.add(shared.intake.share(client, plain.len() + added, deadline).await?);
            let bytes = match payload.format {
                Format::Protobuf => Some(splice::splice(&plain, &places(events))),
                Format::Json => splice_json::splice(&plain, &events),
            };
            let spliced = bytes.map(|bytes| Payload {
                chunks: vec![bytes.into()],
                encoding: Encoding::Identity,
                ..payload.clone()
            });
            Ok(spliced.map(|spliced| (spliced, ticket)))
        }
        Err(error) => Ok(forward_unparsed(shared, &error)),
    }
}

fn places(events: Vec<(usize, splice::Place, Vec<u8>)>) -> Vec<(splice::Place, Vec<u8>)> {
    events.into_iter().map(|(_, place, event)| (place, event)).collect()
}

/// A request that cannot be parsed is forwarded unchanged: the backend decides about it.
fn forward_unparsed<T>(shared: &Shared, error: &impl std::fmt::Display) -> Option<T> {
    shared.traffic.count_malformed();
    tracing::debug!(event = "request_unparsed", %error, "cannot parse an application's spans, forwarding them unchanged");
    None
}

/// The headers of an application that are forwarded: those of tracing and of gRPC, and what the configuration adds. All
/// others, such as a tenant's or a cookie, would speak with the authority of the collector's own.
fn headers_to_forward(headers: &HeaderMap, from: WireProtocol, to: Protocol, also: &[HeaderName]) -> HeaderMap {
    const PASSED: [&str; 3] = ["user-agent", "traceparent", "tracestate"];
    let same = (from == WireProtocol::Grpc) == (to == Protocol::Grpc);
    let of_connection: Vec<&str> = headers
        .get_all(header::CONNECTION)
        .iter()
        .chain(headers.get_all("proxy-connection"))
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let passes = |name: &HeaderName| {
        let text = name.as_str();
        let of_protocol = text.starts_with("grpc-") && text != "grpc-encoding" && text != "grpc-status"
            || matches!(*name, header::ACCEPT | header::ACCEPT_ENCODING);
        (PASSED.contains(&text) || also.contains(name) || same && of_protocol)
            && !of_connection.iter().any(|other| text.eq_ignore_ascii_case(other))
    };
    headers.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Rejection {
    fn malformed(status: Status) -> Self {
        Self { reason: RejectReason::Malformed, status }
    }

    /// To be tried again soon.
    fn busy(message: impl Into<String>) -> Self {
        let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
        Self {
            reason: RejectReason::Busy,
            status: Status::with_error_details(tonic::Code::Unavailable, message, details),
        }
    }
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        match error {
            BodyError::TooLarge { .. } => {
                Self { reason: RejectReason::TooLarge, status: Status::resource_exhausted(message) }
            }
            BodyError::Busy => Self::busy(message),
            // Worth another try: the network may be faster then.
            BodyError::TooSlow => Self { reason: RejectReason::BrokenOff, status: Status::deadline_exceeded(message) },
            BodyError::Broken(_) => Self { reason: RejectReason::BrokenOff, status: Status::invalid_argument(message) },
        }
    }
}

impl From<PayloadError> for Rejection {
    fn from(error: PayloadError) -> Self {
        let message = error.to_string();
        match error {
            PayloadError::TooLarge { .. } => {
                Self { reason: RejectReason::TooLarge, status: Status::resource_exhausted(message) }
            }
            PayloadError::Undecodable { .. } | PayloadError::Json(_) | PayloadError::UnknownEncoding => {
                Self::malformed(Status::invalid_argument(message))
            }
        }
    }
}

impl From<SendError> for Rejection {
    fn from(error: SendError) -> Self {
        let message = format!("the backend cannot be reached: {error}");
        Self { reason: RejectReason::BackendAway, status: Status::unavailable(message) }
    }
}
