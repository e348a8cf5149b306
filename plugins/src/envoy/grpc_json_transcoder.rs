//! Envoy's grpc_json_transcoder filter (source/extensions/filters/http/grpc_json_transcoder/json_transcoder_filter.cc):
//! lets clients call gRPC services by JSON, with paths that the services' definitions say (google/api/http.proto).

mod config;
mod descriptors;
mod elements;
mod encode;
pub(crate) mod fuzz;
mod http_body;
mod parse;
mod paths;
mod print;
mod request;
mod response;
mod template;
#[cfg(test)]
mod tests;
mod well_known;

use crate::envoy;
use config::{Config, Rule, TranscoderStats};
use elements::Elements;
use encode::Weave;
use response::Answer;
use sixfold_core::offload::{self, Lane};
use sixfold_core::plugin::{BodyStep, BuildContext, Built, FilterFactory, LocalReply, Plugin};
use sixfold_xds_api::pb::envoy::extensions::filters::http::grpc_json_transcoder::v3::GrpcJsonTranscoder;
use std::sync::Arc;

/// Bytes of a body that are transcoded on the worker; a longer one is transcoded beside it.
const AT_ONCE: usize = 64 << 10;

/// Bytes of a frame's head: flags and the length of the message.
const FRAME_HEAD: usize = 5;

/// What response code details of a request begin with whose head, or whose lack of a body, says enough.
const EARLY: &str = "early_grpc_json_transcode_failure";

/// And of others.
const FAILED: &str = "grpc_json_transcode_failure";

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific level counts alone.
fn build(own: GrpcJsonTranscoder, mut levels: Vec<GrpcJsonTranscoder>, context: &BuildContext) -> Built {
    let config = Config::new(levels.pop().unwrap_or(own), context)?.map(Arc::new);
    // Without a configuration it still answers what was transcoded for another route before this one was chosen.
    let plugin = Plugin::of(Transcoder { config })
        .bodies_of_calls()
        .access(Transcoder::access)
        .judging()
        .request_body(Transcoder::request_body)
        .header_filter(Transcoder::header_filter)
        .response_body(Transcoder::response_body);
    Ok(plugin.build())
}

struct Transcoder {
    /// `None`: nothing is transcoded.
    config: Option<Arc<Config>>,
}

/// A request that is transcoded.
struct Call {
    config: Arc<Config>,
    rule: Arc<Rule>,
    /// What path and query bind, until a message has it.
    weave: Weave,
    /// Of a request that is an HttpBody: what comes before that, its type, and parameters that bind nothing.
    initial: Vec<u8>,
    content_type: Vec<u8>,
    unknown: http_body::Unknown,
    /// The request came with a body.
    has_body: bool,
    elements: Elements,
    /// A message of the request has been made.
    sent: bool,
    kept: Kept,
    answer: Answer,
}

/// Does long work beside the worker, and then with what it has made.
fn beside(
    lane: Lane,
    work: impl FnOnce() -> Result<Vec<u8>, Fault> + Send + 'static,
    then: impl FnOnce(Result<Vec<u8>, Fault>) -> BodyStep + Send + 'static,
) -> BodyStep {
    BodyStep::Wait(Box::pin(async move {
        let made = offload::run(lane, work).await;
        then(made.unwrap_or_else(|| Err(Fault::internal("the body was not transcoded"))))
    }))
}

/// Why something is not transcoded: a status of gRPC, and what is said of it.
#[derive(Debug)]
struct Fault {
    code: &'static str,
    message: String,
}

impl Fault {
    fn invalid(message: impl Into<String>) -> Fault {
        Fault { code: "INVALID_ARGUMENT", message: message.into() }
    }

    fn not_found(message: impl Into<String>) -> Fault {
        Fault { code: "NOT_FOUND", message: message.into() }
    }

    fn internal(message: impl Into<String>) -> Fault {
        Fault { code: "INTERNAL", message: message.into() }
    }

    /// An answer that tells it.
    fn reply(self, status: u16, details: &str) -> LocalReply {
        LocalReply::new(status, self.message, format!("{details}{{{}}}", self.code))
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault::internal(error.to_string())
    }
}

/// Bytes that wait for the rest of a message, told in the statistics as long as they do.
struct Kept {
    stats: TranscoderStats,
    request: usize,
    response: usize,
}

impl Kept {
    fn new(stats: TranscoderStats) -> Kept {
        Kept { stats, request: 0, response: 0 }
    }

    /// Of the request there are so many now.
    fn of_request(&mut self, bytes: usize) {
        self.stats.transcoder_request_buffer_bytes().add(bytes as i64 - self.request as i64);
        self.request = bytes;
    }

    /// Of the response there are so many now.
    fn of_response(&mut self, bytes: usize) {
        self.stats.transcoder_response_buffer_bytes().add(bytes as i64 - self.response as i64);
        self.response = bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.of_request(0);
        self.of_response(0);
    }
}
