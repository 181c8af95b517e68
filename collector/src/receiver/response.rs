//! Answers to applications: the backend's own, in the application's protocol, or ours where there is none.
//!
//! Between two of the same protocol an answer is not looked at. Between gRPC and HTTP the meaning that counts is kept:
//! whether to try again, and when (OTLP 1.11, "Failures").

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body, Frame, SizeHint},
    header::{self, HeaderValue},
};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::{
    config::settings::Protocol,
    model::signal::Signal,
    otlp::{
        client::{BackendResponse, MAX_FORWARDED_ANSWER_BYTES},
        payload::Format,
    },
    receiver::request,
};

/// What an application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireProtocol {
    /// OTLP/gRPC
    Grpc,
    /// OTLP/HTTP with bodies in this format.
    Http(Format),
}

/// The body of an answer.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// The backend's answer for an application.
pub(crate) fn translate(
    reply: BackendResponse,
    from: Protocol,
    to: WireProtocol,
    signal: Signal,
) -> Response<AnswerBody> {
    match (from, to) {
        (Protocol::Grpc, WireProtocol::Grpc) | (Protocol::HttpProtobuf, WireProtocol::Http(_)) => as_it_came(reply),
        (Protocol::Grpc, WireProtocol::Http(format)) => grpc_to_http(&reply, format, signal),
        (Protocol::HttpProtobuf, WireProtocol::Grpc) => http_to_grpc(&reply),
    }
}

/// Whether the backend took the request.
pub(crate) fn is_accepted(reply: &BackendResponse, from: Protocol) -> bool {
    match from {
        Protocol::Grpc => grpc_status(reply).code() == Code::Ok,
        Protocol::HttpProtobuf => reply.status.is_success(),
    }
}

/// Whether the backend refused the request itself, so that sending it again would not help.
pub(crate) fn is_rejected_for_good(reply: &BackendResponse, from: Protocol) -> bool {
    match from {
        Protocol::Grpc => match grpc_status(reply) {
            status if status.code() == Code::ResourceExhausted => retry_delay(&status).is_none(),
            status => matches!(status.code(), Code::InvalidArgument | Code::Internal),
        },
        Protocol::HttpProtobuf => matches!(reply.status, StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE),
    }
}

fn as_it_came(reply: BackendResponse) -> Response<AnswerBody> {
    let data = Some(reply.body).filter(|body| !body.is_empty());
    let mut response = Response::new(AnswerBody { data, trailers: reply.trailers });
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    // hyper frames the body anew; what concerns one connection only does not pass.
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::CONTENT_LENGTH] {
        response.headers_mut().remove(name);
    }
    response.headers_mut().remove("keep-alive");
    response
}

fn grpc_status(reply: &BackendResponse) -> Status {
    let trailers = reply.trailers.as_ref().and_then(Status::from_header_map);
    trailers.or_else(|| Status::from_header_map(&reply.headers)).unwrap_or_else(|| {
        Status::new(code_of_http(reply.status), format!("the backend answered {} without a gRPC status", reply.status))
    })
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

fn grpc_to_http(reply: &BackendResponse, format: Format, signal: Signal) -> Response<AnswerBody> {
    let status = grpc_status(reply);
    if status.code() != Code::Ok {
        return refuse(&status, WireProtocol::Http(format));
    }
    // grpc-go answers in the request's encoding, asked or not. What cannot be read is still a success: it was said.
    let message = request::grpc_payload(&reply.headers, vec![reply.body.clone()]).ok();
    let message = message.and_then(|message| message.plain(MAX_FORWARDED_ANSWER_BYTES).ok()).unwrap_or_default();
    let body = match format {
        Format::Protobuf => message,
        Format::Json => json_answer(signal, &message).into(),
    };
    http_response(StatusCode::OK, body, format)
}

/// An answer that is no OTLP response is a full success: the status said so.
fn json_answer(signal: Signal, message: &[u8]) -> Vec<u8> {
    let json = match signal {
        Signal::Logs => serde_json::to_vec(&ExportLogsServiceResponse::decode(message).unwrap_or_default()),
        Signal::Traces => serde_json::to_vec(&ExportTraceServiceResponse::decode(message).unwrap_or_default()),
        Signal::Metrics => serde_json::to_vec(&ExportMetricsServiceResponse::decode(message).unwrap_or_default()),
    };
    json.unwrap_or_else(|_| b"{}".to_vec())
}

fn http_to_grpc(reply: &BackendResponse) -> Response<AnswerBody> {
    if reply.status.is_success() {
        let mut data = BytesMut::with_capacity(5 + reply.body.len());
        data.put_u8(0);
        data.put_u32(u32::try_from(reply.body.len()).unwrap_or(u32::MAX));
        data.extend_from_slice(&reply.body);
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        let mut response = Response::new(AnswerBody { data: Some(data.freeze()), trailers: Some(trailers) });
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        return response;
    }
    let said = pb::Status::decode(reply.body.clone()).map(|status| status.message).unwrap_or_default();
    let message = if said.is_empty() { format!("the backend answered {}", reply.status) } else { said };
    let delay = reply.headers.get(header::RETRY_AFTER).and_then(|value| parse_retry_after(value.to_str().ok()?));
    let code = code_of_http(reply.status);
    let status = match delay {
        Some(delay) => Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(delay))),
        None => Status::new(code, message),
    };
    refuse(&status, WireProtocol::Grpc)
}

fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// What is worth trying again stays so, nothing else becomes so.
const fn code_of_http(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 | 405 => Code::Unimplemented,
        413 => Code::ResourceExhausted,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Internal,
    }
}

fn http_of_status(status: &Status) -> StatusCode {
    match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::ResourceExhausted if retry_delay(status).is_some() => StatusCode::TOO_MANY_REQUESTS,
        Code::ResourceExhausted => StatusCode::PAYLOAD_TOO_LARGE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable | Code::Cancelled | Code::Aborted | Code::OutOfRange | Code::DataLoss => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The response to a request that was not accepted.
pub(crate) fn refuse(status: &Status, protocol: WireProtocol) -> Response<AnswerBody> {
    let format = match protocol {
        WireProtocol::Grpc => return status.clone().into_http(),
        WireProtocol::Http(format) => format,
    };
    let details = pb::Status::decode(status.details()).unwrap_or_default().details;
    let said = pb::Status { code: status.code().into(), message: status.message().to_owned(), details };
    let body = match format {
        Format::Protobuf => said.encode_to_vec(),
        Format::Json => serde_json::json!({ "code": said.code, "message": said.message }).to_string().into_bytes(),
    };
    let mut response = http_response(http_of_status(status), body.into(), format);
    if let Some(delay) = retry_delay(status) {
        // Whole seconds; too early would be asking again for nothing.
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn http_response(status: StatusCode, body: Bytes, format: Format) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody { data: Some(body), trailers: None });
    *response.status_mut() = status;
    let content_type = match format {
        Format::Protobuf => "application/x-protobuf",
        Format::Json => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer in plain words, to a client that does not speak OTLP.
pub(crate) fn plain(status: StatusCode, text: &'static str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody { data: Some(Bytes::from_static(text.as_bytes())), trailers: None });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.data.as_ref().map_or(0, |data| data.len() as u64);
        // With trailers to come there is no length: gRPC's answers have none.
        if self.trailers.is_some() { SizeHint::default() } else { SizeHint::with_exact(length) }
    }
}
