//! Answers of gRPC to JSON.

use super::config::{Framing, Method};
use super::print::{self, Status};
use super::{AT_ONCE, Call, FAILED, FRAME_HEAD, Fault, Transcoder, beside, http_body};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::percent_decode;
use prost::Message;
use sixfold_core::grpc_status;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::is_grpc_content_type;
use sixfold_core::offload::Lane;
use sixfold_core::plugin::{BodyPiece, BodyStep, Hold, LocalReply, Overflow, Slot, Step};
use sixfold_core::stream::Stream;

/// What is said of a response that is longer than it may be.
const TOO_LONG: &str =
    "Response not transcoded because the transcoder's internal buffer size exceeds the configured limit.";

/// A `google.rpc.Status` of the trailers.
const DETAILS: &str = "grpc-status-details-bin";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is made of a response.
#[derive(Debug, Default)]
pub(super) enum Answer {
    /// Nothing.
    #[default]
    None,
    /// Its head is all there is; this becomes its body.
    Alone(Bytes),
    /// One message.
    One,
    /// Messages.
    Many {
        /// There was one.
        begun: bool,
        /// Bytes of the next one.
        rest: Vec<u8>,
    },
}

impl Transcoder {
    pub(super) fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(mut call) = stream.take_state::<Call>(slot) else { return Step::Continue };
        let headers = &mut stream.response.headers;
        if stream.ends_with_head && headers.contains(Known::GRPC_STATUS) {
            call.head_alone(stream);
            stream.set_state(slot, *call);
            return Step::Continue;
        }
        let kind = headers.get(Known::CONTENT_TYPE).unwrap_or_default();
        if stream.response.status != 200 || !is_grpc_content_type(kind) {
            // It passes as it is.
            return Step::Continue;
        }
        headers.remove(Known::CONTENT_LENGTH);
        headers.set(Known::CONTENT_TYPE, call.content_type().as_bytes());
        let method = &call.rule.method;
        call.answer = match method.server_streaming {
            true => Answer::Many { begun: false, rest: Vec::new() },
            false => Answer::One,
        };
        // The type of an HttpBody is in its first message, for which a stream of them waits.
        if !method.server_streaming || method.response_body.is_some() {
            stream.hold_response_head(call.config.max_response);
        }
        stream.set_state(slot, *call);
        Step::Continue
    }

    pub(super) fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(mut call) = stream.take_state::<Call>(slot) else { return BodyStep::Pass };
        let step = match &mut call.answer {
            Answer::None => BodyStep::Pass,
            Answer::Alone(body) if piece.last => BodyStep::Replace(std::mem::take(body)),
            Answer::Alone(_) => BodyStep::Replace(Bytes::new()),
            Answer::One => call.one(stream, piece),
            Answer::Many { .. } => call.many(stream, piece),
        };
        stream.set_state(slot, *call);
        step
    }
}

impl Call {
    /// The type of what the messages become.
    fn content_type(&self) -> &'static str {
        let method = &self.rule.method;
        let is_json = !method.server_streaming || method.response_body.is_some();
        match self.config.framing {
            Framing::Events if !is_json => "text/event-stream",
            _ => "application/json",
        }
    }

    /// A response whose head has the status of the call: nothing follows it.
    fn head_alone(&mut self, stream: &mut Stream) {
        let response = &mut stream.response;
        let method = &self.rule.method;
        if method.server_streaming {
            response.headers.set(Known::CONTENT_TYPE, self.content_type().as_bytes());
        }
        if stream.request.version.is_http1() {
            response.headers.remove("trailer");
        }
        let code = code_of(&response.headers);
        let converted = self.converted(code, &response.headers);
        response.status = code.map_or(503, grpc_status::to_http);
        let body = match converted {
            Some(json) => {
                response.headers.remove(Known::GRPC_STATUS);
                response.headers.remove(Known::GRPC_MESSAGE);
                response.headers.remove(DETAILS);
                response.headers.set(Known::CONTENT_TYPE, b"application/json");
                response.headers.set(Known::CONTENT_LENGTH, json.len().to_string().as_bytes());
                json
            }
            None => {
                let is_array = self.config.framing == Framing::Array;
                match is_array && method.server_streaming && method.response_body.is_none() {
                    true => b"[]".to_vec(),
                    false => {
                        response.headers.set(Known::CONTENT_LENGTH, b"0");
                        Vec::new()
                    }
                }
            }
        };
        self.answer = Answer::Alone(body.into());
    }

    /// The status of a failed call as JSON, where that is wanted and its details are known.
    fn converted(&self, code: Option<u32>, headers: &Headers) -> Option<Vec<u8>> {
        let code = code.filter(|code| *code != 0 && self.config.converts_status)?;
        let details = headers.get(DETAILS).and_then(|text| BASE64.decode(text).ok());
        let status = details.and_then(|details| Status::decode(details.as_slice()).ok());
        let status = status.unwrap_or_else(|| {
            let message = headers.get(Known::GRPC_MESSAGE).unwrap_or_default();
            let message = percent_decode(message).decode_utf8_lossy().into_owned();
            Status { code: i32::try_from(code).unwrap_or(2), message, details: Vec::new() }
        });
        print::status(&status, &self.config.pool, self.config.print).ok()
    }

    /// A piece of a response that is one message, whose head waits for it.
    fn one(&mut self, stream: &mut Stream, piece: &BodyPiece<'_>) -> BodyStep {
        let limit = self.config.max_response;
        if piece.data.len() > limit {
            return too_long();
        }
        if !piece.last {
            self.kept.of_response(piece.data.len());
            return BodyStep::Hold(Hold { limit, on_overflow: Overflow::Refuse });
        }
        self.kept.of_response(0);
        let message = match first_message(piece.data) {
            Ok(message) => message,
            Err(fault) => return failed(fault),
        };
        let method = self.rule.method.clone();
        match (message, &method.response_body) {
            (None, _) => {
                let trailers = &stream.response_trailers;
                match self.converted(code_of(trailers), trailers) {
                    Some(json) => ended(stream, json, true),
                    None => ended(stream, Vec::new(), false),
                }
            }
            (Some([]), Some(_)) => ended(stream, Vec::new(), false),
            (Some(message), Some(path)) => match http_body::read(path, message) {
                Ok((content_type, data)) => {
                    stream.response.headers.set(Known::CONTENT_TYPE, content_type);
                    ended(stream, data.to_vec(), false)
                }
                Err(fault) => failed(fault),
            },
            (Some(message), None) if message.len() <= AT_ONCE => {
                match print::json(&method.output, message, self.config.print) {
                    Ok(json) => ended(stream, json, false),
                    Err(fault) => failed(fault),
                }
            }
            (Some(message), None) => {
                // How long it becomes is not known yet.
                tell_status(stream, false);
                let (message, print, lane) = (message.to_vec(), self.config.print, Lane::of(message.len()));
                beside(lane, move || print::json(&method.output, &message, print), made)
            }
        }
    }

    /// A piece of a stream of messages.
    fn many(&mut self, stream: &mut Stream, piece: &BodyPiece<'_>) -> BodyStep {
        let (limit, method) = (self.config.max_response, self.rule.method.clone());
        let Answer::Many { begun, rest } = &mut self.answer else { return BodyStep::Pass };
        let mut data = std::mem::take(rest);
        data.extend_from_slice(piece.data);
        if data.len() > limit {
            return too_long();
        }
        let whole = match whole_frames(&data) {
            Ok(whole) => whole,
            Err(fault) => return failed(fault),
        };
        *rest = data.split_off(whole);
        self.kept.of_response(rest.len());
        if piece.last && !rest.is_empty() {
            return failed(incomplete(rest));
        }
        let before = std::mem::replace(begun, *begun || whole > 0);
        let (had_any, framing, print) = (*begun, self.config.framing, self.config.print);
        if let Some(path) = &method.response_body {
            return match pages(path, &data, before, stream) {
                Ok(_) if piece.last && !had_any => self.without_messages(stream),
                Ok(made) => {
                    if had_any && !before {
                        stream.release_response_head();
                    }
                    BodyStep::Replace(made.into())
                }
                Err(fault) => failed(fault),
            };
        }
        let tail: &[u8] = match (piece.last, had_any, framing) {
            (true, false, _) => return self.without_messages(stream),
            (true, true, Framing::Array) => b"]",
            _ => b"",
        };
        let lane = Lane::of(data.len());
        let work = move || {
            let mut out = Vec::new();
            for (index, message) in frames(&data).enumerate() {
                let is_first = index == 0 && !before;
                write_message(&method, message, print, framing, is_first, &mut out)?;
            }
            out.extend_from_slice(tail);
            Ok(out)
        };
        if whole > AT_ONCE { beside(lane, work, made) } else { made(work()) }
    }

    /// What a stream without messages becomes.
    fn without_messages(&self, stream: &mut Stream) -> BodyStep {
        let code = code_of(&stream.response_trailers);
        let is_page = self.rule.method.response_body.is_some();
        let body = match self.converted(code, &stream.response_trailers) {
            Some(json) => {
                if is_page {
                    stream.response.status = code.map_or(503, grpc_status::to_http);
                }
                json
            }
            None if self.config.framing == Framing::Array && !is_page => b"[]".to_vec(),
            None => Vec::new(),
        };
        BodyStep::Replace(body.into())
    }
}

/// Data of the HttpBodies in whole frames. The type of the first one becomes that of the response.
fn pages(path: &[u32], data: &[u8], begun: bool, stream: &mut Stream) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    for (index, message) in frames(data).enumerate() {
        let (content_type, data) = http_body::read(path, message)?;
        if index == 0 && !begun {
            stream.response.headers.set(Known::CONTENT_TYPE, content_type);
        }
        out.extend_from_slice(data);
    }
    Ok(out)
}

fn write_message(
    method: &Method,
    message: &[u8],
    print: print::PrintOptions,
    framing: Framing,
    is_first: bool,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let (before, after): (&[u8], &[u8]) = match framing {
        Framing::Array if is_first => (b"[", b""),
        Framing::Array => (b",", b""),
        Framing::Lines => (b"", b"\n"),
        Framing::Events => (b"data: ", b"\n\n"),
    };
    out.extend_from_slice(before);
    out.extend(print::json(&method.output, message, print)?);
    out.extend_from_slice(after);
    Ok(())
}

fn made(made: Result<Vec<u8>, Fault>) -> BodyStep {
    match made {
        Ok(made) => BodyStep::Replace(made.into()),
        Err(fault) => failed(fault),
    }
}

fn failed(fault: Fault) -> BodyStep {
    BodyStep::Respond(Box::new(fault.reply(502, FAILED)))
}

fn too_long() -> BodyStep {
    let details = format!("{FAILED}{{response_buffer_size_limit_reached}}");
    BodyStep::Respond(Box::new(LocalReply::new(500, TOO_LONG, details)))
}

/// The end of a response of one message.
fn ended(stream: &mut Stream, body: Vec<u8>, is_status: bool) -> BodyStep {
    if tell_status(stream, is_status) {
        stream.response.headers.set(Known::CONTENT_LENGTH, body.len().to_string().as_bytes());
    }
    BodyStep::Replace(body.into())
}

/// Puts what the trailers say into the head, beside a body that does not say it; `false` where there are none.
fn tell_status(stream: &mut Stream, is_body: bool) -> bool {
    let (trailers, response) = (&mut stream.response_trailers, &mut stream.response);
    if trailers.is_empty() {
        return false;
    }
    let code = code_of(trailers);
    response.status = code.map_or(503, grpc_status::to_http);
    if !is_body {
        if let Some(code) = code {
            response.headers.set(Known::GRPC_STATUS, code.to_string().as_bytes());
        }
        if let Some(message) = trailers.get(Known::GRPC_MESSAGE) {
            response.headers.set(Known::GRPC_MESSAGE, message);
        }
    }
    if stream.request.version.is_http1() {
        response.headers.remove("trailer");
        // A response with a length has no place for them.
        trailers.clear();
    }
    true
}

/// The status that trailers, or a head, tell; `None` where it is missing or no number.
fn code_of(headers: &Headers) -> Option<u32> {
    headers.get_str(Known::GRPC_STATUS)?.parse().ok()
}

/// The length of the message of a frame, once its head is there.
fn length_of(data: &[u8]) -> Result<Option<usize>, Fault> {
    let Some((head, _)) = data.split_first_chunk::<FRAME_HEAD>() else { return Ok(None) };
    match head {
        [0, length @ ..] => Ok(Some(u32::from_be_bytes(*length) as usize)),
        [flag, ..] => Err(Fault::internal(format!("Unsupported gRPC frame flag: {flag}"))),
    }
}

/// Bytes of the frames that are there as a whole.
fn whole_frames(data: &[u8]) -> Result<usize, Fault> {
    let mut end = 0;
    while let Some(length) = length_of(data.get(end..).unwrap_or_default())? {
        match end.checked_add(FRAME_HEAD + length).filter(|end| *end <= data.len()) {
            Some(next) => end = next,
            None => break,
        }
    }
    Ok(end)
}

/// The messages of whole frames.
fn frames(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = length_of(data).ok()??;
        let (message, after) = data.get(FRAME_HEAD..)?.split_at_checked(length)?;
        data = after;
        Some(message)
    })
}

/// The first message of a body, of which there is nothing else to come; `None` where that is empty.
fn first_message(data: &[u8]) -> Result<Option<&[u8]>, Fault> {
    match length_of(data)? {
        None if data.is_empty() => Ok(None),
        None => Err(incomplete(data)),
        Some(length) => match data.get(FRAME_HEAD..FRAME_HEAD + length) {
            Some(message) => Ok(Some(message)),
            None => Err(incomplete(data)),
        },
    }
}

/// What is said of a frame that does not end.
fn incomplete(data: &[u8]) -> Fault {
    match length_of(data) {
        Ok(Some(length)) => {
            let actual = data.len() - FRAME_HEAD;
            Fault::internal(format!("Incomplete gRPC frame expected size: {length} actual size: {actual}"))
        }
        _ => Fault::internal("Incomplete gRPC frame header received"),
    }
}
