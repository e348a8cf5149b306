//! Messages for the processor, and what its answers change.

use super::session::{Failure, Session};
use super::{BodyMode, Mode, NAME, Running, Settings};
use crate::envoy::mutations::{self, Change, Verdict};
use crate::envoy::service;
use bytes::Bytes;
use serde_json::Value;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{Direction, LocalReply};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::{json_to_struct, struct_to_json};
use sixfold_xds_api::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::common_response::ResponseStatus;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_request::Request;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{
    BodyMutation, HeaderMutation, ImmediateResponse, ProcessingRequest, ProtocolConfiguration,
    StreamedBodyResponse,
};
use sixfold_xds_api::pb::google::protobuf::Struct;

/// The body of the answer stands in the place of the message's.
pub(super) const CONTINUE_AND_REPLACE: i32 = ResponseStatus::ContinueAndReplace as i32;
/// A body was changed and its announced length was not.
pub(super) const WRONG_LENGTH: &str = "mismatch_between_content_length_and_the_length_of_the_mutated_body";

/// Headers that one answer may change.
const MOST_CHANGES: usize = 1_000;

/// Why a request is not processed further.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The processor answers it.
    Immediate(Box<LocalReply>),
    /// There is no answer that counts.
    Failed(Failure),
    /// It asks for a change that no message can have, or that the rules take for an error.
    Refused,
}

/// The body that an answer puts in the place of a piece.
pub(super) fn body(mutation: Option<BodyMutation>) -> Option<Bytes> {
    Some(match mutation?.mutation? {
        Mutation::Body(body) => body.into(),
        Mutation::ClearBody(true) => Bytes::new(),
        Mutation::ClearBody(false) => return None,
        Mutation::StreamedResponse(piece) => {
            let StreamedBodyResponse { body, .. } = piece;
            body.into()
        }
    })
}

impl Settings {
    /// A message about a part. What is known of the request, and not of the part, comes with heads and bodies that are waited
    /// for: `stream`.
    pub(super) fn message(
        &self,
        request: Request,
        session: &Session,
        stream: Option<&Stream>,
        direction: Direction,
    ) -> ProcessingRequest {
        let first = session.is_first(direction);
        let attributes = match direction {
            Direction::Request => &self.request_attributes,
            Direction::Response => &self.response_attributes,
        };
        let attributes = stream.filter(|_| first.of_direction).map(|stream| attributes.of(stream));
        let attributes = attributes.filter(|attributes| !attributes.is_empty());
        ProcessingRequest {
            request: Some(request),
            metadata_context: Some(
                stream.map(|stream| service::told_metadata(stream, &self.told_metadata)).unwrap_or_default(),
            ),
            attributes: attributes
                .map(|attributes| (NAME.to_owned(), json_to_struct(attributes)))
                .into_iter()
                .collect(),
            observability_mode: self.observes,
            protocol_config: (first.of_all && !self.observes).then(|| ProtocolConfiguration {
                request_body_mode: self.mode.body[0].number(),
                response_body_mode: self.mode.body[1].number(),
                ..ProtocolConfiguration::default()
            }),
            ..ProcessingRequest::default()
        }
    }

    /// Takes of an answer's metadata what may be taken: objects by namespace.
    pub(super) fn take_metadata(&self, metadata: Option<Struct>, stream: &mut Stream) {
        let Some(Value::Object(namespaces)) = metadata.map(struct_to_json) else { return };
        for (name, values) in namespaces {
            let taken = self.taken_metadata.iter().find(|namespace| ***namespace == *name);
            if let (Some(namespace), Value::Object(values)) = (taken, values) {
                let entries = values.into_iter().map(|(key, value)| (namespace.clone(), key.into(), value));
                stream.metadata.extend(entries);
            }
        }
    }

    /// The headers of a request as they are told, those of its line among them.
    pub(super) fn request_headers(&self, stream: &Stream) -> HeaderMap {
        let head = &stream.request;
        let line: [(&[u8], &[u8]); 4] = [
            (b":authority", head.authority.as_slice()),
            (b":path", head.target.full()),
            (b":method", head.method.as_str().as_bytes()),
            (b":scheme", head.scheme.as_str().as_bytes()),
        ];
        self.told(line.into_iter().chain(head.headers.iter()))
    }

    /// The headers of a response as they are told, its status among them.
    pub(super) fn response_headers(&self, stream: &Stream) -> HeaderMap {
        let status = stream.response.status.to_string();
        let line: [(&[u8], &[u8]); 1] = [(b":status", status.as_bytes())];
        self.told(line.into_iter().chain(stream.response.headers.iter()))
    }

    /// Headers that may be told.
    pub(super) fn told<'h>(&self, headers: impl Iterator<Item = (&'h [u8], &'h [u8])>) -> HeaderMap {
        let tells = |name: &str| {
            let is_in = |list: &[sixfold_core::matcher::StringMatcher]| {
                list.iter().any(|test| test.matches(name.as_bytes()))
            };
            !is_in(&self.disallowed) && self.allowed.as_deref().is_none_or(is_in)
        };
        let told = headers.filter_map(|(name, value)| {
            let key = String::from_utf8_lossy(name).to_ascii_lowercase();
            tells(&key).then(|| HeaderValue { key, raw_value: value.to_vec(), ..HeaderValue::default() })
        });
        HeaderMap { headers: told.collect() }
    }

    /// What an answer says, unless it is one in the place of the upstream's.
    pub(super) fn answer(&self, response: Option<Response>, session: &Session) -> Result<Response, Outcome> {
        match response {
            Some(Response::ImmediateResponse(answer)) if self.answers => {
                let answer = session.heed(Some(answer)).map_err(Outcome::Failed)?;
                session.close();
                Err(Outcome::Immediate(Box::new(self.immediate(answer))))
            }
            Some(Response::ImmediateResponse(_) | Response::StreamedImmediateResponse(_)) | None => {
                Err(Outcome::Failed(session.spurious()))
            }
            Some(other) => Ok(other),
        }
    }

    /// What the processor answers counts, and not how it is spelled: of its headers those are left out that can't be written, or
    /// that the rules do not let pass.
    fn immediate(&self, answer: ImmediateResponse) -> LocalReply {
        let ImmediateResponse { status, headers, body, grpc_status, details } = answer;
        let status = status.and_then(|status| u16::try_from(status.code).ok());
        let status = status.filter(|status| (200..600).contains(status)).unwrap_or(200);
        // Blanks would part the fields of a log.
        let details = details.split_whitespace().collect::<Vec<_>>().join("_");
        let mut reply = LocalReply::new(status, body, details);
        // There is nothing yet that it could remove.
        for option in
            headers.unwrap_or_default().set_headers.into_iter().filter(|option| option.header.is_some())
        {
            let change = change(option);
            match change.is_valid() {
                true if change.frames() => {}
                true if self.judge(&change.name).is_ok_and(|allowed| allowed) => {
                    change.apply(&mut reply.headers)
                }
                true => {}
                false => self.stats.rejected_header_mutations().inc(),
            }
        }
        reply.grpc_status = grpc_status.map(|status| status.status);
        reply
    }

    pub(super) fn change_request(
        &self,
        value: Option<HeaderMutation>,
        stream: &mut Stream,
    ) -> Result<(), Outcome> {
        let (changes, remove) = self.allowed(value)?;
        if !changes.iter().all(|change| change.fits(&stream.request)) {
            return Err(self.refused());
        }
        let RequestHead { headers, .. } = &mut stream.request;
        remove.iter().for_each(|name| mutations::remove(headers, name));
        changes.iter().for_each(|change| change.apply_to_request(&mut stream.request));
        Ok(())
    }

    pub(super) fn change_response(
        &self,
        value: Option<HeaderMutation>,
        stream: &mut Stream,
    ) -> Result<(), Outcome> {
        let (changes, remove) = self.allowed(value)?;
        remove.iter().for_each(|name| mutations::remove(&mut stream.response.headers, name));
        for change in changes {
            let status = std::str::from_utf8(&change.value).ok().filter(|_| change.name == ":status");
            match status
                .and_then(|status| status.parse::<u16>().ok())
                .filter(|status| (200..600).contains(status))
            {
                Some(status) => stream.response.status = status,
                // The length is the processor's where the configuration leaves it that.
                None if change.name == Known::CONTENT_LENGTH.as_str() => {
                    change.apply(&mut stream.response.headers)
                }
                None => change.apply_to_response(&mut stream.response.headers),
            }
        }
        Ok(())
    }

    pub(super) fn change_headers(
        &self,
        value: Option<HeaderMutation>,
        headers: &mut Headers,
    ) -> Result<(), Outcome> {
        let (changes, remove) = self.allowed(value)?;
        remove.iter().for_each(|name| mutations::remove(headers, name));
        changes.iter().for_each(|change| change.apply(headers));
        Ok(())
    }

    /// The changes that the rules let pass. The length of a body is its own, unless the configuration leaves it to the processor.
    /// One that no message can have is an error, as in Envoy: left out, the client's own header of that name would stay.
    fn allowed(&self, value: Option<HeaderMutation>) -> Result<(Vec<Change>, Vec<String>), Outcome> {
        let HeaderMutation { set_headers, remove_headers } = value.unwrap_or_default();
        if set_headers.len().max(remove_headers.len()) > MOST_CHANGES {
            return Err(self.refused());
        }
        let (mut changes, mut remove) = (Vec::new(), Vec::new());
        for name in remove_headers {
            if self.judge(&name.to_ascii_lowercase())? {
                remove.push(name);
            }
        }
        for option in set_headers.into_iter().filter(|option| option.header.is_some()) {
            let change = change(option);
            if !change.is_valid() {
                return Err(self.refused());
            }
            let is_length = change.name == "content-length" && !self.allow_content_length;
            if !is_length && self.judge(&change.name)? {
                changes.push(change);
            }
        }
        Ok((changes, remove))
    }

    /// Whether the rules let a change of that header pass.
    fn judge(&self, name: &str) -> Result<bool, Outcome> {
        let verdict = self.rules.judge(name);
        if verdict != Verdict::Allowed {
            self.stats.rejected_header_mutations().inc();
        }
        match verdict {
            Verdict::Refused => Err(Outcome::Refused),
            verdict => Ok(verdict == Verdict::Allowed),
        }
    }

    fn refused(&self) -> Outcome {
        self.stats.rejected_header_mutations().inc();
        Outcome::Refused
    }

    /// Puts another mode in the place of the configured one, for what of the request is still to come.
    pub(super) fn change_mode(&self, value: &ProcessingMode, running: &mut Running) {
        let Ok(mode) = Mode::overridden(value, running.mode) else { return };
        let allowed = self.override_modes.as_deref();
        if allowed.is_some_and(|modes| modes.is_empty() || modes.contains(&mode)) {
            running.mode = mode;
        }
    }
}

/// A change as processors say it: the raw value counts alone, and each takes the place of what is there unless it says
/// `append`.
// Processors still say that field.
#[allow(deprecated)]
fn change(option: HeaderValueOption) -> Change {
    let HeaderValueOption { header, append, append_action: _, keep_empty_value: _ } = option;
    let HeaderValue { key, value: _, raw_value } = header.unwrap_or_default();
    match append.is_some_and(|append| append.value) {
        true => Change::add(&key, &raw_value),
        false => Change::set(&key, &raw_value),
    }
}

impl BodyMode {
    /// In the definition.
    fn number(self) -> i32 {
        match self {
            BodyMode::None => 0,
            BodyMode::Streamed => 1,
            BodyMode::Buffered => 2,
            BodyMode::BufferedPartial => 3,
            BodyMode::FullDuplex => 4,
        }
    }
}
