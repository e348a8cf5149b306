//! What the service says, however it was asked.

use crate::envoy::mutations::{self, Change};
use bytes::Bytes;
use prost::Message;
use serde_json::{Map, Value};
use sixfold_core::flags::Flag;
use sixfold_core::header_ops::AppendAction;
use sixfold_core::headers::{HeaderName, Headers, is_clean, is_token};
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{LocalReply, OwnedHeaders};
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use sixfold_xds_api::pb::envoy::service::auth::v3::check_response::HttpResponse;
use sixfold_xds_api::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use sixfold_xds_api::pb::google::protobuf::Struct;
use std::collections::BTreeMap;

/// Whether the request may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Verdict {
    Ok,
    Denied,
    /// The service has not said it.
    #[default]
    Error,
}

/// An answer, or what stands for one.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// Changes of the request.
    pub(super) request: Vec<Change>,
    /// Headers that the request loses.
    pub(super) remove: Vec<String>,
    /// Changes of the response to a request that may pass.
    pub(super) response: Vec<Change>,
    /// Parameters of the query.
    pub(super) query_set: Vec<(String, String)>,
    pub(super) query_remove: Vec<String>,
    /// Status of the answer to a request that may not.
    pub(super) status: Option<u16>,
    /// Headers of that.
    pub(super) headers: Vec<Change>,
    pub(super) body: Bytes,
    pub(super) metadata: Map<String, Value>,
    /// An action is none that exists.
    pub(super) odd: bool,
    /// The service could not be asked about such a request at all.
    pub(super) unaskable: bool,
}

impl Answer {
    /// That of a service that gives none.
    pub(super) fn error() -> Answer {
        Answer::default()
    }

    /// That of a request that can't be told to the service.
    pub(super) fn unaskable() -> Answer {
        Answer { unaskable: true, ..Answer::default() }
    }

    /// From a CheckResponse. Bytes that are none are an error.
    pub(super) fn of_message(message: &[u8]) -> Answer {
        let Ok(CheckResponse { status, dynamic_metadata, http_response }) = CheckResponse::decode(message)
        else {
            return Answer::error();
        };
        let mut answer = Answer::default();
        let mut metadata = dynamic_metadata;
        let is_ok = status.as_ref().is_none_or(|status| status.code == 0);
        answer.verdict = if is_ok { Verdict::Ok } else { Verdict::Denied };
        match http_response {
            Some(HttpResponse::OkResponse(ok)) => {
                // The older field goes before the newer one, whatever the verdict.
                let older = answer.take_ok(ok, is_ok);
                metadata = older.or(metadata);
            }
            Some(HttpResponse::DeniedResponse(denied)) if !is_ok => answer.take_denied(denied),
            Some(HttpResponse::ErrorResponse(error)) if !is_ok => {
                answer.verdict = Verdict::Error;
                answer.take_denied(error);
            }
            _ => {}
        }
        if let Some(Value::Object(map)) = metadata.map(struct_to_json) {
            answer.metadata = map;
        }
        answer
    }

    fn take_ok(&mut self, ok: OkHttpResponse, counts: bool) -> Option<Struct> {
        #[allow(deprecated)]
        let OkHttpResponse {
            headers,
            headers_to_remove,
            dynamic_metadata,
            response_headers_to_add,
            query_parameters_to_set,
            query_parameters_to_remove,
        } = ok;
        if counts {
            self.request = of_request(headers);
            self.response = self.changes(response_headers_to_add);
            self.remove = headers_to_remove;
            self.query_set = query_parameters_to_set.into_iter().map(|set| (set.key, set.value)).collect();
            self.query_remove = query_parameters_to_remove;
        }
        dynamic_metadata
    }

    fn take_denied(&mut self, denied: DeniedHttpResponse) {
        let DeniedHttpResponse { status, headers, body } = denied;
        self.status = status.and_then(|status| u16::try_from(status.code).ok()).filter(|code| *code > 0);
        self.headers = self.changes(headers);
        self.body = body.into();
    }

    fn changes(&mut self, options: Vec<HeaderValueOption>) -> Vec<Change> {
        let mut changes = Vec::with_capacity(options.len());
        for option in options {
            match Change::of(option) {
                Some(change) => changes.push(change),
                None => self.odd = true,
            }
        }
        changes
    }

    /// Whether messages can have all that it wants changed (`validate_mutations`).
    pub(super) fn is_valid(&self) -> bool {
        let plain = |text: &String| text.bytes().all(is_unreserved);
        !self.odd
            && [&self.request, &self.response, &self.headers].into_iter().flatten().all(Change::is_valid)
            && self.query_set.iter().all(|(key, value)| plain(key) && plain(value))
    }

    /// Whether the request is another one after it.
    pub(super) fn changes_request(&self) -> bool {
        !self.request.is_empty()
            || !self.remove.is_empty()
            || !self.query_set.is_empty()
            || !self.query_remove.is_empty()
    }

    /// Changes the request. What the service tells the upstream in a header's place it alone tells: a client's header whose name servers
    /// take for the same leaves the request.
    pub(super) fn apply(&self, head: &mut RequestHead) {
        let told = self.request.iter().filter(|change| change.action == AppendAction::OverwriteIfExistsOrAdd);
        let told = told.filter_map(|change| HeaderName::new(&change.name).ok()).collect();
        OwnedHeaders::new(told).strip(&mut head.headers);
        self.request.iter().for_each(|change| change.apply_to_request(head));
        self.remove.iter().for_each(|name| mutations::remove(&mut head.headers, name));
        if !self.query_set.is_empty() || !self.query_remove.is_empty() {
            self.change_query(head);
        }
    }

    /// Envoy keeps the parameters of a query by their names, and writes them so.
    fn change_query(&self, head: &mut RequestHead) {
        let query = String::from_utf8_lossy(head.target.query().unwrap_or_default()).into_owned();
        let mut parameters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parameters.entry(name).or_default().push(value);
        }
        let can_be = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"#&".contains(&byte));
        for (name, value) in self.query_set.iter().filter(|(name, value)| can_be(name) && can_be(value)) {
            parameters.insert(name, vec![value]);
        }
        for name in &self.query_remove {
            parameters.remove(name.as_str());
        }
        let mut target = head.target.path().to_vec();
        let all = parameters.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        for (index, (name, value)) in all.enumerate() {
            target.push(if index == 0 { b'?' } else { b'&' });
            target.extend_from_slice(name.as_bytes());
            target.push(b'=');
            target.extend_from_slice(value.as_bytes());
        }
        head.target.set(&target);
    }

    /// The answer to a request that may not pass: its own status, or `status`; `max_body` 0 cuts nothing off.
    pub(super) fn reply(self, status: u16, max_body: usize, details: &'static str) -> LocalReply {
        let own = self.status.filter(|status| (200..=599).contains(status));
        let mut body = self.body;
        if max_body > 0 {
            body.truncate(max_body);
        }
        let mut reply = LocalReply::new(own.unwrap_or(status), body, details);
        reply.flag = Some(Flag::UAEX);
        let mut headers = Headers::new();
        self.headers.iter().for_each(|change| change.apply_to_response(&mut headers));
        reply.headers = headers;
        reply
    }
}

/// Changes of a request. Their actions mean nothing there: each takes the place of what is there, but one with `append` goes
/// behind the value that is there, and is left out where there is none. Those come last.
// Services still say the older field.
#[allow(deprecated)]
fn of_request(options: Vec<HeaderValueOption>) -> Vec<Change> {
    let (mut changes, mut appended) = (Vec::new(), Vec::new());
    for option in options {
        let HeaderValueOption { header, append, append_action: _, keep_empty_value: _ } = option;
        let HeaderValue { key, value, raw_value } = header.unwrap_or_default();
        let value = if value.is_empty() { raw_value } else { value.into_bytes() };
        match append.is_some_and(|append| append.value) {
            true => appended.push(Change { joins: true, ..Change::add(&key, &value) }),
            false => changes.push(Change::set(&key, &value)),
        }
    }
    changes.append(&mut appended);
    changes
}

/// Bytes that a parameter of a query may have as they are.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

/// Whether a field can be told of.
pub(super) fn is_field(name: &str, value: &[u8]) -> bool {
    is_token(name.as_bytes()) && is_clean(value)
}
