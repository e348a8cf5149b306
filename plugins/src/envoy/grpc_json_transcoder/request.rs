//! Requests by JSON to calls of gRPC.

use super::config::{Config, Opened, Rule, Unopened};
use super::elements::Elements;
use super::encode::Weave;
use super::response::Answer;
use super::{AT_ONCE, Call, EARLY, FAILED, FRAME_HEAD, Fault, Kept, Transcoder, http_body};
use crate::shared::offload::{self, Lane};
use serde_json::{Map, Value as Json};
use sixfold_core::headers::Known;
use sixfold_core::message::{Method, RequestHead};
use sixfold_core::plugin::{BodyPiece, BodyStep, LocalReply, Overflow, ReadBody, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// What is said of a request that is longer than it may be.
const TOO_LONG: &str =
    "Request rejected because the transcoder's internal buffer size exceeds the configured limit.";

impl Transcoder {
    pub(super) fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if stream.state::<Call>(slot).is_some_and(|call| call.asked) {
            return match stream.take_state::<Call>(slot) {
                Some(call) => read(*call, stream, slot),
                None => Step::Continue,
            };
        }
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
        let call = match Call::new(config, opened, &stream.request) {
            Ok(call) => call,
            Err(fault) => return Step::Respond(fault.reply(400, FAILED)),
        };
        begin(call, stream, slot)
    }

    /// A piece of a stream of messages.
    pub(super) fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(call) = stream.state::<Call>(slot).filter(|call| call.streams) else {
            return BodyStep::Pass;
        };
        match call.piece(piece) {
            Ok(_) if call.elements.kept() > call.config.max_request => {
                BodyStep::Respond(Box::new(too_long()))
            }
            Ok(made) => BodyStep::Replace(made.into()),
            Err(fault) => BodyStep::Respond(Box::new(fault.reply(400, FAILED))),
        }
    }
}

/// Makes the head that of a call, and the body as far as it is there.
fn begin<'a>(mut call: Call, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
    let method = &call.rule.method;
    let streams = method.client_streaming;
    let has_body = stream.timing.request_complete.is_none();
    rewrite(&mut stream.request, &method.path);
    // Those who call so can't read an answer by gRPC.
    stream.answered_plainly = true;
    if has_body && streams {
        call.streams = true;
    } else if has_body {
        call.asked = true;
        // One that is longer is told so in words of its own.
        let wanted = ReadBody { limit: call.config.max_request, on_overflow: Overflow::Pass };
        stream.set_state(slot, call);
        return Step::ReadBody(wanted);
    } else {
        match call.bodiless() {
            Ok(made) => stream.request_body = Some(made.into()),
            Err(fault) => return Step::Respond(fault.reply(400, EARLY)),
        }
    }
    go_on(call, stream, slot)
}

/// The body has been read, as far as it may be.
fn read(mut call: Call, stream: &mut Stream, slot: Slot) -> Step<'_> {
    call.asked = false;
    let Some(body) = stream.request_body.take() else {
        return match stream.read_ahead.is_empty() {
            // What comes through a tunnel is no body.
            true => go_on(call, stream, slot),
            false => Step::Respond(too_long()),
        };
    };
    if let Some(path) = call.rule.method.request_body() {
        let made = call.http_body(&path, &body);
        stream.request_body = Some(made.into());
        return go_on(call, stream, slot);
    }
    let (config, rule, weave) = (call.config.clone(), call.rule.clone(), std::mem::take(&mut call.weave));
    if body.len() <= AT_ONCE {
        return settle(framed(&config, &rule, weave, &body), call, stream, slot);
    }
    Step::Wait(Box::pin(async move {
        let lane = Lane::of(body.len());
        let made = offload::run(lane, move || framed(&config, &rule, weave, &body)).await;
        let made = made.unwrap_or_else(|| Err(Fault::internal("the body was not transcoded")));
        settle(made, call, stream, slot)
    }))
}

fn settle(made: Result<Vec<u8>, Fault>, call: Call, stream: &mut Stream, slot: Slot) -> Step<'_> {
    match made {
        Ok(made) => {
            stream.request_body = Some(made.into());
            go_on(call, stream, slot)
        }
        Err(fault) => Step::Respond(fault.reply(400, FAILED)),
    }
}

fn go_on(call: Call, stream: &mut Stream, slot: Slot) -> Step<'_> {
    let keeps_route = call.config.keeps_route;
    stream.set_state(slot, call);
    if keeps_route { Step::Continue } else { Step::ClearRoute }
}

fn too_long() -> LocalReply {
    LocalReply::new(413, TOO_LONG, format!("{FAILED}{{request_buffer_size_limit_reached}}"))
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
    fn new(config: &Arc<Config>, opened: Opened, request: &RequestHead) -> Result<Call, Fault> {
        let Opened { rule, mut weave, unknown } = opened;
        let (mut initial, mut content_type) = (Vec::new(), Vec::new());
        if rule.method.request_body().is_some() {
            let nothing = Json::Object(Map::new());
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
            asked: false,
            streams: false,
            elements: Elements::default(),
            sent: false,
            kept: Kept::new(config.stats.clone()),
            answer: Answer::None,
        })
    }

    /// The messages of a request without a body.
    fn bodiless(&mut self) -> Result<Vec<u8>, Fault> {
        let method = &self.rule.method;
        if let Some(path) = method.request_body() {
            return Ok(self.http_body(&path, b""));
        }
        if method.client_streaming {
            self.elements.finish()?;
        }
        framed(&self.config, &self.rule, std::mem::take(&mut self.weave), b"")
    }

    /// The messages that end in a piece.
    fn piece(&mut self, piece: &BodyPiece<'_>) -> Result<Vec<u8>, Fault> {
        if let Some(path) = self.rule.method.request_body() {
            let is_message = !piece.data.is_empty() || (piece.last && !self.sent);
            return Ok(if is_message { self.http_body(&path, piece.data) } else { Vec::new() });
        }
        let mut made = Vec::new();
        for element in self.elements.push(piece.data)? {
            made.extend(framed(&self.config, &self.rule, std::mem::take(&mut self.weave), &element)?);
        }
        self.kept.set(self.elements.kept(), 0);
        if piece.last {
            self.elements.finish()?;
        }
        Ok(made)
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
        b"" => Json::Object(Map::new()),
        body => serde_json::from_slice(body)
            .map_err(|error| Fault::invalid(format!("The body is no JSON: {error}")))?,
    };
    let mut out = vec![0; FRAME_HEAD];
    config.encoder.message(rule.method.input(), &within(&rule.body, json), &mut weave, &mut out)?;
    Ok(close_frame(out))
}

/// A value as that of a field of a field.
fn within(names: &[String], json: Json) -> Json {
    names.iter().rev().fold(json, |json, name| Json::Object(Map::from_iter([(name.clone(), json)])))
}

/// Writes the length of a message into the head that is before it.
fn close_frame(mut frame: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(frame.len().saturating_sub(FRAME_HEAD)).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(place) = frame.get_mut(1..FRAME_HEAD) {
        place.copy_from_slice(&length);
    }
    frame
}
