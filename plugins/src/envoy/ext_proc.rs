//! Envoy's ext_proc filter (source/extensions/filters/http/ext_proc/ext_proc.cc): a service looks at a request and its
//! response over one stream, part by part, and may change each.

mod attributes;
mod body;
mod config;
mod mutation;
mod session;
#[cfg(test)]
mod tests;

use crate::envoy;
use crate::envoy::mutations::Rules;
use crate::envoy::service::{self, Service};
use attributes::Attributes;
use bytes::Bytes;
use mutation::Outcome;
use prost::Message;
use session::{Failure, Reply, Session, Times};
use sixfold_core::headers::Known;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::{
    BuildContext, Built, Direction, FilterFactory, LocalReply, Overflow, Plugin, ReadBody, Slot, Step,
};
use sixfold_core::stream::{FilterObject, Stream};
use sixfold_xds_api::pb::envoy::extensions::filters::http::ext_proc::v3::{
    ExtProcPerRoute, ExternalProcessor,
};
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_request::Request;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::processing_response::Response;
use sixfold_xds_api::pb::envoy::service::ext_proc::v3::{CommonResponse, HttpBody, HttpHeaders};
use std::sync::Arc;
use std::time::Duration;

/// Under which attributes are told.
const NAME: &str = "envoy.filters.http.ext_proc";
/// Bytes of a body that is read whole for the processor: what Envoy buffers unless a listener says otherwise.
const MAX_BODY: usize = 1 << 20;
/// How long the processor may take to end its stream after the request's.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.ext_proc.` and the prefix of the filter.
    pub struct ProcStats {
        counters: [
            streams_started, stream_msgs_sent, stream_msgs_received, spurious_msgs_received, streams_closed,
            streams_failed, failure_mode_allowed, message_timeouts, rejected_header_mutations,
            override_message_timeout_received, override_message_timeout_ignored, clear_route_cache_ignored,
            clear_route_cache_disabled, immediate_responses_sent,
        ],
        gauges: [],
        histograms: [],
        zeros: [
            Counter "clear_route_cache_upstream_ignored", Counter "http_not_ok_resp_received",
            Counter "server_half_closed",
        ],
    }
}

pub(crate) fn factory() -> FilterFactory {
    let stand_in =
        ExternalProcessor { grpc_service: Some(service::stand_in()), ..ExternalProcessor::default() };
    let filter =
        envoy::filter(|own: ExternalProcessor, overrides: Vec<ExtProcPerRoute>, context: &BuildContext| {
            build(&own, &overrides, context)
        });
    filter.standing_in(stand_in.encode_to_vec()).reads_all_levels()
}

fn build(own: &ExternalProcessor, overrides: &[ExtProcPerRoute], context: &BuildContext) -> Built {
    let Some(filter) = config::compile(own, overrides, context)? else { return Ok(Plugin::default()) };
    let plugin = Plugin::of(filter).access(ExtProc::access).judging().header_filter(ExtProc::header_filter);
    let plugin = plugin.request_body(ExtProc::request_body).response_body(ExtProc::response_body);
    let plugin =
        plugin.request_trailers(ExtProc::request_trailers).response_trailers(ExtProc::response_trailers);
    Ok(plugin.log(ExtProc::log).build())
}

/// The filter of a route. What waits for a body or trailers keeps it.
struct ExtProc(Arc<Settings>);

struct Settings {
    service: Service,
    mode: Mode,
    times: Times,
    allow_on_error: bool,
    status_on_error: u16,
    rules: Rules,
    allow_content_length: bool,
    allowed: Option<Box<[StringMatcher]>>,
    disallowed: Box<[StringMatcher]>,
    request_attributes: Attributes,
    response_attributes: Attributes,
    override_modes: Option<Box<[Mode]>>,
    answers: bool,
    route_cache: RouteCache,
    /// Nothing is waited for and nothing is changed.
    observes: bool,
    deferred_close: Duration,
    told_metadata: Box<[Arc<str>]>,
    taken_metadata: Box<[Arc<str>]>,
    note: Option<FilterObject>,
    stats: ProcStats,
}

/// What becomes of the route when a request has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RouteCache {
    /// The processor says it.
    Told,
    Clear,
    Retain,
}

/// What of a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mode {
    headers: [bool; 2],
    body: [BodyMode; 2],
    trailers: [bool; 2],
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyMode {
    None,
    Streamed,
    Buffered,
    BufferedPartial,
    FullDuplex,
}

/// What is known of a request between phases.
struct Running {
    session: Session,
    mode: Mode,
    /// What bodies announced and has not come yet.
    left: [Option<u64>; 2],
    /// The end of the body has been told.
    ended: [bool; 2],
    /// What stands in the place of a whole body.
    instead: [Option<Bytes>; 2],
    /// The body is read for the processor.
    body_asked: bool,
    clears_route: bool,
}

/// In the place of a [`Running`] that there is no more, and of one that is yet to be: the processor has had its say.
struct Asked;

impl Mode {
    fn sends(&self, direction: Direction) -> bool {
        let at = direction as usize;
        self.headers[at] || self.body[at] != BodyMode::None || self.trailers[at]
    }
}

impl ExtProc {
    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if let Some(running) = stream.take_state::<Running>(slot).filter(|running| running.body_asked) {
            return Step::Wait(Box::pin(self.whole_body(*running, stream, slot)));
        }
        if !self.0.mode.sends(Direction::Request) {
            return Step::Continue;
        }
        stream.set_state(slot, Asked);
        Step::Wait(Box::pin(self.request_head(stream, slot)))
    }

    async fn request_head<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let settings = &*self.0;
        let mut running = match settings.open(stream).await {
            Ok(running) => running,
            Err(failure) => return settings.failed_step(&failure),
        };
        let has_body = stream.has_request_body();
        let mut failed = None;
        if settings.mode.headers[Direction::Request as usize] {
            let head = HttpHeaders {
                headers: Some(settings.request_headers(stream)),
                end_of_stream: !has_body,
                ..HttpHeaders::default()
            };
            failed = settings.head(Request::RequestHeaders(head), &mut running, stream).await.err();
        }
        if let Some(outcome) = failed {
            return settings.step(outcome);
        }
        let at = Direction::Request as usize;
        if let Some(body) = running.instead[at].clone() {
            stream.request.headers.remove(Known::CONTENT_LENGTH);
            if !has_body {
                stream.request_body = Some(body);
            }
            running.mode.body[at] = BodyMode::None;
        }
        let mode =
            if has_body && !running.session.is_over() { running.mode.body[at] } else { BodyMode::None };
        let on_overflow = match mode {
            BodyMode::Buffered => Some(Overflow::Refuse),
            BodyMode::BufferedPartial => {
                // Envoy has it chunked, whether all of it is told at once or not.
                stream.request.headers.remove(Known::CONTENT_LENGTH);
                Some(Overflow::Pass)
            }
            BodyMode::Streamed | BodyMode::FullDuplex => {
                running.left[at] = length(&stream.request.headers);
                if !settings.observes {
                    stream.request.headers.remove(Known::CONTENT_LENGTH);
                }
                None
            }
            BodyMode::None => None,
        };
        if let Some(on_overflow) = on_overflow {
            running.body_asked = true;
            stream.set_state(slot, running);
            return Step::ReadBody(ReadBody { limit: MAX_BODY, on_overflow });
        }
        settings.go_on(running, stream, slot)
    }

    /// Tells the processor of a body that has been read, whole or its beginning.
    async fn whole_body<'a>(&'a self, mut running: Running, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let settings = &*self.0;
        running.body_asked = false;
        let whole = stream.request_body.is_some();
        let body = stream.request_body.as_ref().or(stream.read_ahead.as_deref()).cloned().unwrap_or_default();
        let request = Request::RequestBody(HttpBody {
            body: body.to_vec(),
            end_of_stream: whole,
            ..HttpBody::default()
        });
        let answer = settings.ask(request, &running.session, Direction::Request, stream).await;
        let response = match answer {
            Ok(Some(Response::RequestBody(answer))) => Some(answer.response.unwrap_or_default()),
            Ok(Some(_)) => None,
            Ok(None) => return settings.go_on(running, stream, slot),
            Err(outcome) => return settings.step(outcome),
        };
        let response = match running.session.heed(response) {
            Ok(response) => response,
            Err(failure) => return settings.failed_step(&failure),
        };
        let CommonResponse { header_mutation, body_mutation, clear_route_cache, .. } = response;
        if let Err(outcome) = settings.change_request(header_mutation, stream) {
            return settings.step(outcome);
        }
        settings.note_route(clear_route_cache, &mut running);
        if let Some(body) = mutation::body(body_mutation) {
            if !whole {
                stream.request.headers.remove(Known::CONTENT_LENGTH);
                stream.read_ahead = Some(Box::new(body));
            } else if length(&stream.request.headers).is_some_and(|length| length != body.len() as u64) {
                return Step::Respond(LocalReply::new(500, "", mutation::WRONG_LENGTH));
            } else {
                stream.request_body = Some(body);
            }
        }
        settings.go_on(running, stream, slot)
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        let goes_on = match stream.state::<Running>(slot) {
            Some(running) => running.mode.sends(Direction::Response) && !running.session.is_over(),
            // Filters in front may have answered a request that the processor has not seen.
            None => self.0.mode.sends(Direction::Response) && stream.state::<Asked>(slot).is_none(),
        };
        if !goes_on {
            return Step::Continue;
        }
        let running = stream.take_state::<Running>(slot);
        stream.set_state(slot, Asked);
        Step::Wait(Box::pin(self.response_head(running.map(|running| *running), stream, slot)))
    }

    async fn response_head<'a>(
        &'a self,
        running: Option<Running>,
        stream: &'a mut Stream,
        slot: Slot,
    ) -> Step<'a> {
        let settings = &*self.0;
        let mut running = match running {
            Some(running) => running,
            None => match settings.open(stream).await {
                Ok(running) => running,
                Err(failure) => return settings.failed_step(&failure),
            },
        };
        let at = Direction::Response as usize;
        let no_body = stream.ends_with_head || length(&stream.response.headers) == Some(0);
        if running.mode.headers[at] {
            let head = HttpHeaders {
                headers: Some(settings.response_headers(stream)),
                end_of_stream: no_body,
                ..HttpHeaders::default()
            };
            if let Err(outcome) = settings.head(Request::ResponseHeaders(head), &mut running, stream).await {
                return settings.step(outcome);
            }
        }
        running.left[at] = length(&stream.response.headers);
        let streams = matches!(running.mode.body[at], BodyMode::Streamed | BodyMode::FullDuplex);
        let changes = running.instead[at].is_some() || (streams && !settings.observes);
        if changes && !no_body && !running.session.is_over() {
            stream.response.headers.remove(Known::CONTENT_LENGTH);
        }
        if running.mode.body[at] == BodyMode::Buffered && !no_body && !running.session.is_over() {
            // What becomes of the body decides whether there is a response at all.
            stream.hold_response_head(0);
        }
        stream.set_state(slot, running);
        Step::Continue
    }

    fn log(&self, stream: &mut Stream, slot: Slot) {
        let Some(running) = stream.take_state::<Running>(slot) else { return };
        // The processor may still be behind: it hears the end of the stream, and not that it was cut.
        let after = if self.0.observes { self.0.deferred_close } else { CLOSE_TIMEOUT };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !running.session.is_over() => {
                runtime.spawn(async move {
                    let _ = tokio::time::timeout(after, running.session.drain()).await;
                    running.session.close();
                });
            }
            _ => running.session.close(),
        }
    }
}

/// The length that a head announces.
fn length(headers: &sixfold_core::headers::Headers) -> Option<u64> {
    headers.get_str(Known::CONTENT_LENGTH)?.parse().ok()
}

impl Settings {
    /// Calls the processor for a request, within the time of a message.
    async fn open(&self, stream: &mut Stream) -> Result<Running, Failure> {
        if let Some(note) = &self.note {
            stream.set_filter_state(note.clone());
        }
        let headers = self.service.headers(stream);
        let opening = Session::open(&self.service, headers, &self.stats, self.allow_on_error);
        let session = match tokio::time::timeout(self.times.message, opening).await {
            Ok(session) => session?,
            Err(_) => {
                self.stats.message_timeouts().inc();
                return Err(Failure::Timeout);
            }
        };
        Ok(Running {
            session,
            mode: self.mode,
            left: [None; 2],
            ended: [false; 2],
            instead: [None, None],
            body_asked: false,
            clears_route: false,
        })
    }

    /// Keeps what is known of a request, and lets it go where it goes.
    fn go_on<'a>(&self, running: Running, stream: &mut Stream, slot: Slot) -> Step<'a> {
        let clears = running.clears_route;
        stream.set_state(slot, running);
        if clears { Step::ClearRoute } else { Step::Continue }
    }

    /// Sends a part, and waits for what is said of it unless nothing is wanted; `None` where the processor is done.
    async fn ask(
        &self,
        request: Request,
        session: &Session,
        direction: Direction,
        stream: &mut Stream,
    ) -> Result<Option<Response>, Outcome> {
        let message = self.message(request, session, Some(&*stream), direction);
        if self.observes {
            // Who only looks on holds nobody up.
            let _ = tokio::time::timeout(self.times.message, session.show(&message)).await;
            return Ok(None);
        }
        match session.exchange(direction, &message, self.times).await {
            Ok(Reply::Over) => Ok(None),
            Ok(Reply::Message(reply)) => {
                self.take_metadata(reply.dynamic_metadata, stream);
                self.answer(reply.response, session).map(Some)
            }
            Err(failure) => Err(Outcome::Failed(failure)),
        }
    }

    /// A part's head, with all that an answer may say of it.
    async fn head(
        &self,
        request: Request,
        running: &mut Running,
        stream: &mut Stream,
    ) -> Result<(), Outcome> {
        let direction = match request {
            Request::RequestHeaders(_) => Direction::Request,
            _ => Direction::Response,
        };
        let message = self.message(request, &running.session, Some(&*stream), direction);
        if self.observes {
            let _ = tokio::time::timeout(self.times.message, running.session.show(&message)).await;
            return Ok(());
        }
        let reply = match running.session.exchange(direction, &message, self.times).await {
            Ok(Reply::Message(reply)) => *reply,
            Ok(Reply::Over) => return Ok(()),
            Err(failure) => return Err(Outcome::Failed(failure)),
        };
        self.take_metadata(reply.dynamic_metadata, stream);
        let response = match (self.answer(reply.response, &running.session)?, direction) {
            (Response::RequestHeaders(answer), Direction::Request)
            | (Response::ResponseHeaders(answer), Direction::Response) => {
                Some(answer.response.unwrap_or_default())
            }
            _ => None,
        };
        let CommonResponse { status, header_mutation, body_mutation, trailers: _, clear_route_cache } =
            running.session.heed(response).map_err(Outcome::Failed)?;
        match direction {
            Direction::Request => {
                self.change_request(header_mutation, stream)?;
                self.note_route(clear_route_cache, running);
            }
            Direction::Response => {
                self.change_response(header_mutation, stream)?;
                if clear_route_cache {
                    self.stats.clear_route_cache_ignored().inc();
                }
            }
        }
        if status == mutation::CONTINUE_AND_REPLACE {
            running.instead[direction as usize] = Some(mutation::body(body_mutation).unwrap_or_default());
        }
        if let Some(mode) = reply.mode_override {
            self.change_mode(&mode, running);
        }
        Ok(())
    }

    fn note_route(&self, told: bool, running: &mut Running) {
        match self.route_cache {
            RouteCache::Told => running.clears_route |= told,
            RouteCache::Clear => running.clears_route = true,
            RouteCache::Retain if told => self.stats.clear_route_cache_disabled().inc(),
            RouteCache::Retain => {}
        }
    }

    fn failed_step<'a>(&self, failure: &Failure) -> Step<'a> {
        self.step(Outcome::Failed(failure.clone()))
    }

    /// What becomes of a request whose processing has ended.
    fn step<'a>(&self, outcome: Outcome) -> Step<'a> {
        self.reply(outcome).map_or(Step::Continue, Step::Respond)
    }

    /// The answer in its place, of which Envoy counts those of failures too; `None` where it goes on as it is.
    fn reply(&self, outcome: Outcome) -> Option<LocalReply> {
        let reply = self.reply_of(outcome)?;
        self.stats.immediate_responses_sent().inc();
        Some(reply)
    }

    fn reply_of(&self, outcome: Outcome) -> Option<LocalReply> {
        let failure = match outcome {
            Outcome::Immediate(reply) => return Some(*reply),
            Outcome::Failed(failure) => failure,
            Outcome::Refused => {
                return Some(LocalReply::new(500, "", "ext_proc_error_invalid_header_mutation"));
            }
        };
        if self.allow_on_error {
            self.stats.failure_mode_allowed().inc();
            return None;
        }
        Some(match failure {
            Failure::Timeout => LocalReply::new(504, "", "ext_proc_error_per-message_timeout_exceeded"),
            Failure::Spurious => LocalReply::new(self.status_on_error, "", "spurious_message"),
            // Unavailable is what nobody has said.
            Failure::Status(14) => LocalReply::new(self.status_on_error, "", "ext_proc_error_gRPC_error_14"),
            Failure::Status(code) => {
                let details = format!("ext_proc_error_gRPC_error_{code}{{via_upstream}}");
                LocalReply::new(self.status_on_error, "", details)
            }
        })
    }
}
