//! Requests by JSON to calls of gRPC.

use super::config::{Config, Opened, Rule, Unopened};
use super::elements::Elements;
use super::encode::Weave;
use super::print::MAX_DEPTH;
use super::response::Answer;
use super::{AT_ONCE, Call, EARLY, FAILED, FRAME_HEAD, Fault, Kept, Transcoder, beside, http_body, parse};
use crate::shared::json::Json;
use bytes::Bytes;
use sixfold_core::headers::Known;
use sixfold_core::message::{Method, RequestHead};
use sixfold_core::offload::Lane;
use sixfold_core::plugin::{BodyPiece, BodyStep, Hold, LocalReply, Overflow, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// What is said of a request that is longer than it may be.
const TOO_LONG: &str =
    "Request rejected because the transcoder's internal buffer size exceeds the configured limit.";

impl Transcoder {
    pub(super) fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(config) = &self.config else { return Step::Continue };
        if stream.request.is_grpc() {
            return Step::Continue;
        }
        let opened = match config.open(&stream.request) {
            Ok(opened) => opened,
            Err(Unopened::Passes) => return Step::Continue,
            Err(Unopened::Refused(fault)) => {
                let status = if fault.code == "NOT_FOUND" { 404 } else { 400 };
                return Step::Respond(fault.reply(status, EARLY));
            }
        };
        let has_body = stream.has_request_body();
        let call = match Call::new(config, opened, &stream.request, has_body) {
            Ok(call) => call,
            Err(fault) => return Step::Respond(fault.reply(400, FAILED)),
        };
        rewrite(&mut stream.request, &call.rule.method.path);
        if !has_body {
            // A call has one.
            stream.request_body = Some(Bytes::new());
        }
        // Those who call so can't read an answer by gRPC.
        stream.answered_plainly = true;
        stream.set_state(slot, call);
        if config.keeps_route { Step::Continue } else { Step::ClearRoute }
    }

    pub(super) fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot) else { return BodyStep::Pass };
        let (limit, details) = (call.config.max_request, if call.has_body { FAILED } else { EARLY });
        let streams = call.rule.method.client_streaming;
        if !streams && piece.data.len() > limit {
            return too_long();
        }
        if !streams && !piece.last {
            call.kept.of_request(piece.data.len());
            return BodyStep::Hold(Hold { limit, on_overflow: Overflow::Refuse });
        }
        if !streams {
            call.kept.of_request(0);
        }
        if let Some(path) = call.rule.method.request_body() {
            let is_message = !piece.data.is_empty() || (piece.last && !call.sent);
            return sent(
                Ok(if is_message { call.http_body(&path, piece.data) } else { Vec::new() }),
                details,
            );
        }
        if streams {
            return call.messages(piece, details);
        }
        let (config, rule) = (call.config.clone(), call.rule.clone());
        let weave = std::mem::take(&mut call.weave);
        if piece.data.len() <= AT_ONCE {
            return sent(framed(&config, &rule, weave, piece.data), details);
        }
        let (body, lane) = (piece.data.to_vec(), Lane::of(piece.data.len()));
        let work = move || framed(&config, &rule, weave, &body);
        beside(lane, work, move |made| sent(made, details))
    }
}

fn sent(made: Result<Vec<u8>, Fault>, details: &str) -> BodyStep {
    match made {
        Ok(made) => BodyStep::Replace(made.into()),
        Err(fault) => BodyStep::Respond(Box::new(fault.reply(400, details))),
    }
}

fn too_long() -> BodyStep {
    let details = format!("{FAILED}{{request_buffer_size_limit_reached}}");
    BodyStep::Respond(Box::new(LocalReply::new(413, TOO_LONG, details)))
}

fn rewrite(request: &mut RequestHead, path: &[u8]) {
    let headers = &mut request.headers;
    headers.remove(Known::CONTENT_LENGTH);
    headers.set(Known::CONTENT_TYPE, b"application/grpc");
    headers.set(Known::X_ENVOY_ORIGINAL_PATH, request.target.full());
    headers.append(Known::X_ENVOY_ORIGINAL_METHOD, request.method.as_str().as_bytes());
    headers.set(Known::TE, b"trailers");
    request.target.set(path);
    request.method = Method::POST;
}

impl Call {
    fn new(
        config: &Arc<Config>,
        opened: Opened,
        request: &RequestHead,
        has_body: bool,
    ) -> Result<Call, Fault> {
        let Opened { rule, mut weave, unknown } = opened;
        let (mut initial, mut content_type) = (Vec::new(), Vec::new());
        if rule.method.request_body().is_some() {
            let nothing = Json::Object(Vec::new());
            config.encoder.message(
                rule.method.input(),
                &within(&rule.body, nothing),
                &mut weave,
                &mut initial,
            )?;
            content_type = request.headers.get(Known::CONTENT_TYPE).unwrap_or_default().to_vec();
        }
        Ok(Call {
            config: config.clone(),
            rule,
            weave,
            initial,
            content_type,
            unknown,
            has_body,
            elements: Elements::default(),
            sent: false,
            kept: Kept::new(config.stats.clone()),
            answer: Answer::None,
        })
    }

    /// The messages of a stream that end in a piece.
    fn messages(&mut self, piece: &BodyPiece<'_>, details: &'static str) -> BodyStep {
        let elements = match self.elements.push(piece.data) {
            Ok(elements) => elements,
            Err(fault) => return sent(Err(fault), details),
        };
        self.kept.of_request(self.elements.kept());
        if self.elements.kept() > self.config.max_request {
            return too_long();
        }
        let end = if piece.last { self.elements.finish() } else { Ok(()) };
        if elements.is_empty() {
            return sent(end.map(|()| Vec::new()), details);
        }
        let (config, rule, mut weave) =
            (self.config.clone(), self.rule.clone(), std::mem::take(&mut self.weave));
        let length = elements.iter().map(Vec::len).sum();
        let work = move || {
            let mut made = Vec::new();
            for element in &elements {
                // The first message has what is bound.
                made.extend(framed(&config, &rule, std::mem::take(&mut weave), element)?);
            }
            end.map(|()| made)
        };
        if length > AT_ONCE {
            beside(Lane::of(length), work, move |made| sent(made, details))
        } else {
            sent(work(), details)
        }
    }

    /// A message with an HttpBody.
    fn http_body(&mut self, path: &[u32], data: &[u8]) -> Vec<u8> {
        self.sent = true;
        let mut out = vec![0; FRAME_HEAD];
        out.append(&mut self.initial);
        let (content_type, unknown) =
            (std::mem::take(&mut self.content_type), std::mem::take(&mut self.unknown));
        http_body::append(path, &content_type, &unknown, data, &mut out);
        close_frame(out)
    }
}

/// The message that a body stands for, in a frame; an empty body is an empty object.
fn framed(config: &Config, rule: &Rule, mut weave: Weave, body: &[u8]) -> Result<Vec<u8>, Fault> {
    let json = match body {
        b"" => Json::Object(Vec::new()),
        // The array that it is an element of is one more.
        body => parse::read(body, MAX_DEPTH - usize::from(rule.method.client_streaming))
            .map_err(Fault::invalid)?,
    };
    let mut out = vec![0; FRAME_HEAD];
    config.encoder.message(rule.method.input(), &within(&rule.body, json), &mut weave, &mut out)?;
    Ok(close_frame(out))
}

/// A value as that of a field of a field.
fn within(names: &[String], json: Json) -> Json {
    names.iter().rev().fold(json, |json, name| Json::Object(vec![(name.clone(), json)]))
}

/// Writes the length of a message into the head that is before it.
fn close_frame(mut frame: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(frame.len().saturating_sub(FRAME_HEAD)).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(place) = frame.get_mut(1..FRAME_HEAD) {
        place.copy_from_slice(&length);
    }
    frame
}
