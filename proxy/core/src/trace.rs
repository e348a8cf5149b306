//! Tracing: which requests are traced, what the other side is told of it, and the spans that collectors get.
//!
//! What is decided about a request is written into its headers when its route is known; only of a request that is traced something
//! is kept until its end.

mod context;
mod sampling;
#[cfg(test)]
mod tests;

pub use context::{B3Form, Parent, Propagation};
pub use sampling::{Reason, Sampling, is_forced};

use crate::access_log::LogSink;
use crate::custom_tag::CustomTag;
use crate::hcm::SpanKind;
use crate::headers::Known;
use crate::stream::Stream;
use std::sync::Arc;

/// Tracing of a connection manager (`tracing`).
#[derive(Debug)]
pub struct Tracing {
    /// Whose part of a call is seen here.
    pub kind: SpanKind,
    /// Which requests are traced, unless their route says it.
    pub sampling: Sampling,
    /// Whether the request's id says what was decided and is what chance is made of (`use_request_id_for_trace_sampling`); else
    /// the tracer decides.
    pub by_request_id: bool,
    /// Bytes of a path in tags, 256 by default (`max_path_tag_length`).
    pub max_path: usize,
    /// Tags beside the usual ones; a route's of the same name go before them.
    pub tags: Vec<CustomTag>,
    /// Whether what goes to the upstream has a span of its own (`spawn_upstream_span`).
    pub spawns_upstream: bool,
    /// Who is told of spans; `None` tells nobody.
    pub provider: Option<Arc<Provider>>,
    /// Whether the other side is told nothing (`no_context_propagation`).
    pub is_silent: bool,
}

/// Tracing of the requests of a route (config/route/v3 Tracing).
#[derive(Debug)]
pub struct RouteTracing {
    /// Which are traced, whatever the connection manager says.
    pub sampling: Sampling,
    /// Tags beside the usual ones and the connection manager's.
    pub tags: Vec<CustomTag>,
}

/// A collector of spans, and how the other side is told of them.
pub struct Provider {
    /// Which headers say so.
    pub propagation: Propagation,
    /// Makes a record of a span.
    pub format: Box<dyn SpanFormat>,
    /// Where records go.
    pub sink: Arc<dyn LogSink>,
}

/// Makes records of spans.
pub trait SpanFormat: Send + Sync {
    /// Appends the record of what a span of a request was.
    fn write_span(&self, tracing: &Tracing, stream: &Stream, span: &Span, part: Part, out: &mut Vec<u8>);
}

/// Which span of a request is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// That of the whole request.
    Request,
    /// That of what went to the upstream, which has one of its own.
    Upstream,
}

/// The span of a request that is traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Of all spans of the call.
    pub trace_id: u128,
    /// Its own.
    pub span_id: u64,
    /// That of the span that it is a part of.
    pub parent_id: Option<u64>,
    /// That of the span of what goes to the upstream, where it has one of its own.
    pub upstream_id: Option<u64>,
    /// In which of B3's forms the caller told of itself: the upstream is told in the same.
    pub form: B3Form,
    /// `tracestate` as it came.
    pub state: Box<str>,
    /// Whether collectors get it.
    pub sampled: bool,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tracing provider, {:?}", self.propagation)
    }
}

impl Tracing {
    /// Decides about a request whose route is known, and tells the upstream. Answers why it is traced.
    pub fn begin(&self, stream: &mut Stream) -> Reason {
        let reason = self.decide(stream);
        let Some(provider) = &self.provider else { return reason };
        let traced = reason != Reason::None;
        let headers = &mut stream.request.headers;
        let Some(mut span) = provider.propagation.span(headers, traced, self.kind) else { return reason };
        if self.spawns_upstream {
            span.upstream_id = Some(fastrand::u64(1..));
        }
        if !self.is_silent {
            provider.propagation.tell(headers, &span);
        }
        stream.trace = span.sampled.then(|| Box::new(span));
        reason
    }

    /// Decides whether a request is traced. As in Envoy a route with `tracing` has shares of its own, all of them
    /// (common/http/conn_manager_utility.cc).
    fn decide(&self, stream: &mut Stream) -> Reason {
        if !self.by_request_id {
            return Reason::Sampling;
        }
        let route = stream.route.as_ref().and_then(|route| route.tracing());
        let sampling = route.map_or(&self.sampling, |tracing| &tracing.sampling);
        sampling.decide(&mut stream.request.headers)
    }

    /// Has nobody told of a request that turns out to be a health check, and the upstream told so.
    pub fn leave_out(&self, stream: &mut Stream) {
        let (Some(provider), Some(span)) = (&self.provider, stream.trace.take()) else { return };
        if !self.is_silent {
            provider.propagation.tell(&mut stream.request.headers, &Span { sampled: false, ..*span });
        }
    }

    /// Tells the collector of a request that has ended.
    pub fn finish(&self, stream: &Stream) {
        let (Some(provider), Some(span)) = (&self.provider, &stream.trace) else { return };
        let mut record = Vec::new();
        for part in [Part::Upstream, Part::Request] {
            if part == Part::Upstream && (span.upstream_id.is_none() || stream.upstream.attempts == 0) {
                continue;
            }
            record.clear();
            provider.format.write_span(self, stream, span, part, &mut record);
            provider.sink.write(&record);
        }
    }

    /// What the operation is called: by the route, else by the direction.
    pub fn operation(&self, stream: &Stream) -> String {
        let decorator = stream.route.as_ref().and_then(|route| route.decorator());
        match (decorator, self.kind) {
            (Some(decorator), _) => decorator.operation.to_string(),
            (None, SpanKind::Server) => "ingress".to_owned(),
            (None, SpanKind::Client) => {
                format!("egress {}", String::from_utf8_lossy(&stream.request.authority))
            }
        }
    }

    /// Tags of a span of a request, the usual ones first (common/tracing/http_tracer_impl.cc).
    pub fn tags(&self, stream: &Stream, part: Part) -> Vec<(String, String)> {
        let mut tags = Tags(Vec::new());
        if part == Part::Request {
            tags.request(stream, self.max_path);
        } else {
            tags.upstream(stream);
        }
        tags.response(stream);
        let of_route = stream.route.as_ref().and_then(|route| route.tracing());
        let of_route = of_route.map_or(&[][..], |tracing| &tracing.tags);
        let other = self.tags.iter().filter(|tag| !of_route.iter().any(|known| known.name == tag.name));
        let own = of_route
            .iter()
            .chain(other)
            .filter_map(|tag| Some((tag.name.to_string(), tag.value(stream)?.into_owned())));
        let own: Vec<_> = own.collect();
        tags.0.retain(|(name, _)| !own.iter().any(|(other, _)| other == name));
        tags.0.extend(own);
        tags.0
    }
}

struct Tags(Vec<(String, String)>);

impl Tags {
    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    fn request(&mut self, stream: &Stream, max_path: usize) {
        let (request, headers) = (&stream.request, &stream.request.headers);
        let header = |name: Known| headers.get_str(name);
        if let Some(id) = header(Known::X_REQUEST_ID) {
            self.add("guid:x-request-id", id);
        }
        let original = headers.get(Known::X_ENVOY_ORIGINAL_PATH);
        let path = original.unwrap_or_else(|| request.target.full());
        let path = path.get(..max_path.min(path.len())).unwrap_or_default();
        let (authority, path) = (String::from_utf8_lossy(&request.authority), String::from_utf8_lossy(path));
        self.add("http.url", format!("{}://{authority}{path}", request.scheme.as_str()));
        self.add("http.method", request.method.as_str());
        self.add("downstream_cluster", header(Known::X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER).unwrap_or("-"));
        self.add("user_agent", header(Known::USER_AGENT).unwrap_or("-"));
        self.add("http.protocol", request.version.as_str());
        self.add("peer.address", stream.connection.direct_remote.ip().to_string());
        if let Some(id) = headers.get_str("x-client-trace-id") {
            self.add("guid:x-client-trace-id", id);
        }
        if request.is_grpc() {
            self.grpc(stream);
        }
        self.add("request_size", stream.bytes.request_body.to_string());
    }

    fn grpc(&mut self, stream: &Stream) {
        let request = &stream.request;
        self.add("grpc.path", String::from_utf8_lossy(request.target.path()));
        self.add("grpc.authority", String::from_utf8_lossy(&request.authority));
        for (name, header) in
            [("grpc.content_type", Known::CONTENT_TYPE), ("grpc.timeout", Known::GRPC_TIMEOUT)]
        {
            if let Some(value) = request.headers.get_str(header) {
                self.add(name, value);
            }
        }
    }

    fn upstream(&mut self, stream: &Stream) {
        self.add("http.protocol", stream.upstream.version.unwrap_or_default().as_str());
        if let Some(member) = &stream.upstream.member {
            self.add("upstream_address", member.host.address.to_string());
            self.add("peer.address", member.host.address.to_string());
        }
    }

    fn response(&mut self, stream: &Stream) {
        self.add("component", "proxy");
        let cluster = stream.upstream.cluster.as_ref();
        if let Some(cluster) = cluster {
            self.add("upstream_cluster", &*cluster.config.name);
            self.add("upstream_cluster.name", &*cluster.config.observability_name);
        }
        let status = stream.response.status;
        self.add("http.status_code", status.to_string());
        self.add("response_size", stream.bytes.response_body.to_string());
        let mut flags = Vec::new();
        stream.flags.write_short(&mut flags);
        let flags = String::from_utf8(flags).unwrap_or_default();
        self.add("response_flags", if flags.is_empty() { "-".to_owned() } else { flags });
        let grpc = stream.request.is_grpc().then(|| crate::format::grpc_status(stream));
        if let Some(grpc) = grpc {
            self.add("grpc.status_code", grpc.to_string());
        }
        // Of gRPC's failures those that the service is to blame for, as in Envoy.
        let failed = grpc.is_some_and(|code| matches!(code, 1 | 2 | 4 | 8 | 12..=15));
        if status == 0 || status >= 500 || failed {
            self.add("error", "true");
        }
    }
}
