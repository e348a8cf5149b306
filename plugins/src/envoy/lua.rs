//! Envoy's lua filter (source/extensions/filters/http/lua): scripts that look at requests and responses and change them.
//!
//! A script runs as a coroutine on the worker of its request. What it waits for - a body, trailers, a service - it is given
//! when that has come; until then it is kept with the request. Its errors are counted and logged, and the request goes on;
//! but not if a bound has ended it that Envoy's scripts do not have, which whoever sends requests could see to.

mod budget;
mod host;
mod machines;
mod pattern;
mod strings;
#[cfg(test)]
mod tests;
mod values;
mod vm;

use crate::envoy;
use bytes::Bytes;
use host::{Body, Host, Side, Wait};
use machines::Machines;
use serde_json::Value;
use sixfold_core::cluster::{ClusterCell, Clusters};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::{Headers, Known};
use sixfold_core::plugin::{
    BodyPiece, BodyStep, BuildContext, Built, Callout, CalloutRequest, FilterFactory, Hold, LocalReply,
    Overflow, OwnHeaders, Plugin, ReadBody, Slot, Step, TrailersStep,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::http::lua::v3::lua_per_route::Override;
use sixfold_xds_api::pb::envoy::extensions::filters::http::lua::v3::{Lua as ProtoLua, LuaPerRoute};
use sixfold_xds_api::{refuse, values as fields};
use std::sync::Arc;
use vm::{Answer, Failure, Given, Run, Turn, Vm};

/// Bytes of a body that a script may ask for as a whole: what Envoy buffers by default.
const LONGEST_BODY: usize = 1 << 20;

/// Bytes of dynamic metadata and filter state that the script of one message may set.
const MOST_KEPT: usize = 1 << 20;

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.lua.` and the filter's own prefix.
    pub struct LuaStats { counters: [errors, executions, over_bounds], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    // Of a route that brings a script, its global variables are its own.
    envoy::filter(|own: ProtoLua, overrides, context: &BuildContext| build(&own, overrides, context))
        .told_apart()
}

// `inline_code` is the older name of the default script, and means what it meant.
#[allow(deprecated)]
fn build(own: &ProtoLua, mut overrides: Vec<LuaPerRoute>, context: &BuildContext) -> Built {
    let of_route = overrides.pop();
    let ProtoLua {
        inline_code,
        source_codes,
        default_source_code,
        stat_prefix,
        clear_route_cache,
        filter_context,
        package_paths,
        package_cpaths,
    } = own;
    refuse!(package_paths, package_cpaths);
    if default_source_code.is_some() && !inline_code.is_empty() {
        return Err(ConfigError::field("inline_code", "must not be given together with default_source_code"));
    }
    let default = match default_source_code {
        Some(source) => fields::text_source(source).in_key("default_source_code")?,
        None => inline_code.clone(),
    };
    // Every script is looked at, whether a route names it or not; once is enough.
    for (name, source) in source_codes.iter().filter(|_| of_route.is_none()) {
        let text = fields::text_source(source).in_key(name).in_key("source_codes")?;
        Machines::of_filter(name, &text, context)
            .map_err(ConfigError::new)
            .in_key(name)
            .in_key("source_codes")?;
    }
    let mut context_of_route = filter_context.clone().map(struct_to_json);
    let mut script = Some((Some(""), default));
    if let Some(of_route) = &of_route {
        let LuaPerRoute { r#override, filter_context, package_paths, package_cpaths } = of_route;
        refuse!(package_paths, package_cpaths);
        context_of_route = filter_context.clone().map(struct_to_json).or(context_of_route);
        script = match r#override {
            None => script,
            Some(Override::Disabled(_)) => None,
            // A name that nobody knows is no script, as in Envoy.
            Some(Override::Name(name)) => {
                let found = source_codes.get(name).map(fields::text_source).transpose();
                found.in_key(name).in_key("source_codes")?.map(|text| (Some(name.as_str()), text))
            }
            Some(Override::SourceCode(source)) => {
                Some((None, fields::text_source(source).in_key("source_code")?))
            }
        };
    }
    let Some((name, source)) = script.filter(|(_, source)| !source.is_empty()) else {
        return Ok(Plugin::default());
    };
    let machines = match name {
        Some(name) => Machines::of_filter(name, &source, context),
        None => Machines::of_route(&source, context).map(Arc::new),
    };
    let dotted = if stat_prefix.is_empty() { String::new() } else { format!("{stat_prefix}.") };
    let script = Script {
        machines: machines.map_err(|error| ConfigError::new(format!("script load error: {error}")))?,
        stats: LuaStats::new(&context.metrics, &format!("{}lua.{dotted}", context.scope)),
        filter: context.filter.to_string(),
        context: context_of_route,
        clears_route: clear_route_cache.is_none_or(|clear| clear.value),
        callout: context.callout.clone(),
        clusters: context.clusters.clone(),
        own: OwnHeaders::new(context.local_address),
    };
    Ok(script.plugin())
}

/// The script of one route.
struct Script {
    machines: Arc<Machines>,
    stats: LuaStats,
    /// The name under which metadata of routes is for it.
    filter: String,
    context: Option<Value>,
    clears_route: bool,
    callout: Arc<dyn Callout>,
    clusters: Arc<Clusters>,
    /// What its calls say of themselves.
    own: OwnHeaders,
}

/// A script of a request or response that runs, or waits.
struct Running {
    vm: Arc<Vm>,
    run: Run,
    side: Side,
    /// What it waits for.
    on: Option<Wait>,
    /// It has changed what routes are chosen by.
    clear_route: bool,
    /// The head of its response waits for the rest of it, and may be changed until then.
    held: Option<Held>,
    /// Bytes of dynamic metadata and filter state that it may still set.
    may_keep: usize,
}

/// What a head that waits for its body said of that when the script had seen it.
struct Held {
    sized: bool,
    coding: Option<Box<[u8]>>,
}

impl Held {
    fn of(headers: &Headers) -> Held {
        let coding = headers.get(Known::CONTENT_ENCODING).map(Into::into);
        Held { sized: headers.contains(Known::CONTENT_LENGTH), coding }
    }

    /// Whether the body has the length that the script gives it. Filters behind have had the head already, and one that encodes the
    /// body anew has taken its length off, or has named its coding.
    fn is_last(&self, headers: &Headers) -> bool {
        let now = Held::of(headers);
        now.sized >= self.sized && now.coding == self.coding
    }
}

/// The scripts of one stream that wait, each for more of its message: that of the request may go on behind the head of the
/// response.
#[derive(Default)]
struct Waiting {
    request: Option<Running>,
    response: Option<Running>,
}

impl Waiting {
    fn of(&mut self, side: Side) -> &mut Option<Running> {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    /// Takes out the script of that side, if it waits.
    fn take(stream: &mut Stream, slot: Slot, side: Side) -> Option<Running> {
        stream.state::<Waiting>(slot)?.of(side).take()
    }

    /// Keeps a script until more has come.
    fn keep(stream: &mut Stream, slot: Slot, running: Running) {
        let side = running.side;
        stream.change_state(slot, |waiting: &mut Waiting| *waiting.of(side) = Some(running));
    }
}

/// What follows a turn of a script.
enum After {
    /// It is at its end, or has failed.
    End,
    /// A service is to be asked.
    Ask(Box<CalloutRequest>),
    /// It has answered.
    Answer(Box<LocalReply>),
    /// It waits for something of the message.
    Wait,
    /// A bound has ended it: nobody knows what it would have said, and nothing goes on.
    Refuse,
}

impl Script {
    fn plugin(self) -> Plugin {
        let (on_request, on_response) = self.machines.hooks();
        if !on_request && !on_response {
            return Plugin::default();
        }
        // Those that never ask for more than the head have bodies pass by unseen.
        let reads_bodies = self.machines.reads_bodies();
        let mut plugin = Plugin::of(self);
        if on_request {
            plugin = plugin.access(Script::access).judging();
            if reads_bodies {
                plugin = plugin.request_body(Script::request_body).request_trailers(Script::request_trailers);
            }
        }
        if on_response {
            plugin = plugin.header_filter(Script::header_filter);
            if reads_bodies {
                plugin =
                    plugin.response_body(Script::response_body).response_trailers(Script::response_trailers);
            }
        }
        plugin.build()
    }

    fn cluster(&self, name: &str) -> Option<Arc<ClusterCell>> {
        self.clusters.find(name).map(|_| self.clusters.cell(name))
    }

    fn send_and_forget(&self, request: CalloutRequest) {
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::spawn(self.callout.send(request));
        }
    }

    /// The machine of this worker. That there can be one was tried before: what keeps it from being made are bounds.
    fn vm(&self) -> Result<Arc<Vm>, After> {
        self.machines.here().map_err(|error| {
            let told = error.unwrap_or_else(|| "the script could not be loaded on this worker".to_owned());
            self.failed(&Failure { told, by_bound: true })
        })
    }

    /// Counts and logs a failure; what follows it.
    fn failed(&self, failure: &Failure) -> After {
        self.stats.errors().inc();
        tracing::warn!("script error: {}", failure.told);
        if !failure.by_bound {
            return After::End;
        }
        self.stats.over_bounds().inc();
        After::Refuse
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        self.head(stream, slot, Side::Request)
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        self.head(stream, slot, Side::Response)
    }

    /// Runs a script from its beginning, or from where it waits for the body that is there now.
    fn head<'a>(&'a self, stream: &'a mut Stream, slot: Slot, side: Side) -> Step<'a> {
        // One that waits for pieces is of a response in whose place this one comes.
        let waiting = Waiting::take(stream, slot, side);
        let mut running = match waiting.filter(|running| matches!(running.on, Some(Wait::Body))) {
            Some(running) => running,
            None => match self.begin(side) {
                Ok(Some(running)) => running,
                Ok(None) | Err(After::End) => return Step::Continue,
                Err(_) => return Step::Respond(over_bounds()),
            },
        };
        match self.turn(stream, &mut running, Given::Nothing, true).0 {
            After::Ask(request) => Step::Wait(Box::pin(self.ask(stream, slot, running, request))),
            other => self.settle(stream, slot, running, other),
        }
    }

    /// A script at its beginning, if there is one for that side.
    fn begin(&self, side: Side) -> Result<Option<Running>, After> {
        let vm = self.vm()?;
        self.stats.executions().inc();
        let run = vm.begin(side).map_err(|failure| self.failed(&failure))?;
        Ok(run.map(|run| Running {
            run,
            vm,
            side,
            on: None,
            clear_route: false,
            held: None,
            may_keep: MOST_KEPT,
        }))
    }

    /// One turn, and what takes the place of the body, or of the piece of it that was given.
    fn turn(
        &self,
        stream: &mut Stream,
        running: &mut Running,
        given: Given<'_>,
        head_is_here: bool,
    ) -> (After, Option<Bytes>) {
        let body = match (&given, &running.on, &stream.request_body) {
            (Given::Piece(bytes), Some(Wait::Body), _) => Body::Whole(Bytes::copy_from_slice(bytes)),
            (Given::Nothing, Some(Wait::Body), _) if running.side == Side::Response => Body::None,
            (_, _, Some(body)) if running.side == Side::Request && head_is_here => Body::of(body),
            (_, _, None) if running.side == Side::Request && head_is_here && !stream.has_request_body() => {
                Body::None
            }
            _ if running.side == Side::Response && head_is_here && stream.ends_with_head => Body::None,
            _ => Body::Unknown,
        };
        running.on = None;
        let sizes_body =
            head_is_here && running.held.as_ref().is_none_or(|held| held.is_last(&stream.response.headers));
        let mut host = Host {
            script: self,
            stream,
            side: running.side,
            body,
            head_is_here,
            sizes_body,
            new_body: None,
            clear_route: false,
            wait: None,
            may_keep: &mut running.may_keep,
        };
        let turn = running.vm.go_on(&mut running.run, &mut host, &given);
        let (new_body, clear_route) = (host.new_body.take(), host.clear_route);
        running.clear_route |= clear_route;
        let after = match turn {
            Ok(Turn::Done) => After::End,
            Ok(Turn::Waits(Wait::Call(request))) => After::Ask(request),
            Ok(Turn::Waits(Wait::Respond(reply))) => After::Answer(reply),
            Ok(Turn::Waits(wait)) => {
                running.on = Some(wait);
                After::Wait
            }
            Err(failure) => self.failed(&failure),
        };
        if head_is_here && running.side == Side::Request && new_body.is_some() {
            stream.request_body = new_body;
            return (after, None);
        }
        (after, new_body)
    }

    /// Asks services for as long as the script wants that.
    async fn ask<'a>(
        &'a self,
        stream: &'a mut Stream,
        slot: Slot,
        mut running: Running,
        mut request: Box<CalloutRequest>,
    ) -> Step<'a> {
        loop {
            let answer = Answer::of(self.callout.send(*request).await);
            match self.turn(stream, &mut running, Given::Answer(&answer), true).0 {
                After::Ask(next) => request = next,
                other => return self.settle(stream, slot, running, other),
            }
        }
    }

    /// What becomes of the message.
    fn settle<'a>(&'a self, stream: &mut Stream, slot: Slot, mut running: Running, after: After) -> Step<'a> {
        let of_request = running.side == Side::Request;
        let clear_route = running.clear_route && of_request;
        match after {
            After::Answer(reply) => return Step::Respond(*reply),
            After::Refuse => return Step::Respond(over_bounds()),
            After::Wait => {
                let (wants_body, side) = (matches!(running.on, Some(Wait::Body)), running.side);
                if wants_body && side == Side::Response {
                    running.held = Some(Held::of(&stream.response.headers));
                    stream.hold_response_head(0);
                }
                Waiting::keep(stream, slot, running);
                if wants_body && side == Side::Request {
                    return Step::ReadBody(ReadBody { limit: LONGEST_BODY, on_overflow: Overflow::Refuse });
                }
            }
            After::End | After::Ask(_) => {}
        }
        // As in Envoy, whose codec answers where the request would be written. Without the field it would be another request.
        if let Some(name) = of_request.then(|| host::unwritable(&stream.request.headers)).flatten() {
            let told = format!("invalid header value for: {name}");
            return Step::Respond(LocalReply::new(503, told, "lua_invalid_header"));
        }
        if clear_route { Step::ClearRoute } else { Step::Continue }
    }

    /// A piece of a body on its way: a script may wait for pieces, for all of them, or for their end.
    fn piece(&self, stream: &mut Stream, slot: Slot, side: Side, piece: &BodyPiece<'_>) -> BodyStep {
        let Some(mut running) = Waiting::take(stream, slot, side) else { return BodyStep::Pass };
        let given = match &running.on {
            Some(Wait::Body) if !piece.last => {
                Waiting::keep(stream, slot, running);
                return BodyStep::Hold(Hold { limit: LONGEST_BODY, on_overflow: Overflow::Refuse });
            }
            Some(Wait::Chunk | Wait::Body) if piece.data.is_empty() => Given::Nothing,
            Some(Wait::Chunk | Wait::Body) => Given::Piece(piece.data),
            Some(Wait::Trailers) if piece.last && !has_trailers(stream, running.side) => Given::Nothing,
            _ => {
                Waiting::keep(stream, slot, running);
                return BodyStep::Pass;
            }
        };
        let head_is_here = running.held.is_some();
        let (mut after, new_body) = self.turn(stream, &mut running, given, head_is_here);
        // Behind the last piece there is none, and no trailers either.
        let ended = piece.last && !has_trailers(stream, running.side);
        let mut left = 2;
        while ended && left > 0 && matches!(running.on, Some(Wait::Chunk | Wait::Trailers)) {
            left -= 1;
            after = self.turn(stream, &mut running, Given::Nothing, head_is_here).0;
        }
        if self.stream_on(stream, slot, running, after) {
            return BodyStep::Respond(Box::new(over_bounds()));
        }
        new_body.map_or(BodyStep::Pass, BodyStep::Replace)
    }

    /// Keeps a script that waits for more. What it can't have any more ends it; whether nothing goes on then.
    fn stream_on(&self, stream: &mut Stream, slot: Slot, running: Running, after: After) -> bool {
        let after = match after {
            // The service may be one that judges the request.
            After::Ask(_) => self.failed(&Failure {
                told: "httpCall() is not possible once the body of the message has begun".to_owned(),
                by_bound: running.side == Side::Request,
            }),
            After::Wait => {
                Waiting::keep(stream, slot, running);
                return false;
            }
            other => other,
        };
        matches!(after, After::Refuse)
    }

    fn trailers(&self, stream: &mut Stream, slot: Slot, side: Side) -> TrailersStep {
        let Some(mut running) = Waiting::take(stream, slot, side) else { return TrailersStep::Continue };
        let given = if matches!(running.on, Some(Wait::Trailers)) { Given::Trailers } else { Given::Nothing };
        let head_is_here = running.held.is_some();
        let (mut after, _) = self.turn(stream, &mut running, given, head_is_here);
        if matches!(running.on, Some(Wait::Trailers)) {
            after = self.turn(stream, &mut running, Given::Trailers, head_is_here).0;
        }
        if self.stream_on(stream, slot, running, after) {
            return TrailersStep::Respond(Box::new(over_bounds()));
        }
        TrailersStep::Continue
    }

    fn request_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.piece(stream, slot, Side::Request, piece)
    }

    fn response_body(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        self.piece(stream, slot, Side::Response, piece)
    }

    fn request_trailers(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        self.trailers(stream, slot, Side::Request)
    }

    fn response_trailers(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        self.trailers(stream, slot, Side::Response)
    }
}

/// The answer in the place of what a script that a bound has ended would have let go on, or changed before.
fn over_bounds() -> LocalReply {
    LocalReply::new(500, "", "lua_script_over_bounds")
}

fn has_trailers(stream: &Stream, side: Side) -> bool {
    match side {
        Side::Request => !stream.request_trailers.is_empty(),
        Side::Response => !stream.response_trailers.is_empty(),
    }
}
