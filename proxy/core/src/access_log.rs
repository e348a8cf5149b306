//! Access logs: what is written when a stream or a connection ends.

use crate::format::{Format, grpc_status};
pub use crate::log_sink::{LogSink, LogTarget, MakeSink};
use crate::matcher::MetadataMatcher;
use crate::stream::Stream;
use std::cell::RefCell;
use std::sync::Arc;

/// One access log of a connection manager, a listener or a TCP proxy.
pub struct AccessLog {
    /// Which streams are logged; `None` logs all.
    pub filter: Option<LogFilter>,
    /// How a line looks.
    pub format: Arc<dyn LineFormat>,
    /// Where it goes.
    pub sink: Arc<dyn LogSink>,
}

/// Writes one line for a stream.
pub trait LineFormat: Send + Sync {
    /// Appends the line, its end included.
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>);
}

impl LineFormat for Format {
    /// A JSON line ends by itself; a text format holds its own line end, as in Envoy.
    fn write_line(&self, stream: &Stream, out: &mut Vec<u8>) {
        self.write_log(stream, out);
        if self.is_json() {
            out.push(b'\n');
        }
    }
}

thread_local! {
    /// The line being made; kept so that a line costs no allocation.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Longest line buffer a thread keeps.
const KEPT_LINE: usize = 64 << 10;

impl AccessLog {
    /// Writes the line of a stream that has ended, if the filter lets it through.
    pub fn log(&self, stream: &Stream) {
        if self.filter.as_ref().is_some_and(|filter| !filter.passes(stream)) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.write_line(stream, line);
            self.sink.write(line);
            line.shrink_to(KEPT_LINE);
        });
    }
}

/// Envoy's access log filters.
#[derive(Debug)]
pub enum LogFilter {
    /// Compares the status code.
    Status(Comparison),
    /// Compares the duration in milliseconds.
    Duration(Comparison),
    /// Not what a health check filter has taken for a check.
    NotHealthCheck,
    /// Requests whose caller has forced that they are traced.
    Traceable,
    /// Dynamic metadata; what is not there passes or not, by the flag.
    Metadata(MetadataMatcher, bool),
    /// By the moment of the log, of which there are two.
    Moment {
        /// Whether the end of a request is logged.
        requests: bool,
        /// Whether the end of a connection is logged.
        connections: bool,
    },
    /// A share of requests.
    Fraction(crate::runtime::Fraction),
    /// All must pass.
    And(Vec<LogFilter>),
    /// Any must pass.
    Or(Vec<LogFilter>),
    /// A request header.
    Header(crate::matcher::HeaderMatcher),
    /// Any of these flags, or any flag at all when empty.
    Flags(Vec<crate::flags::Flag>),
    /// gRPC status, also derived from the HTTP status; the flag excludes instead.
    GrpcStatus(Vec<u32>, bool),
    /// An expression is true (`envoy.access_loggers.extension_filters.cel`).
    Cel(crate::cel::Program),
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Equal.
    Equal(u64),
    /// Greater or equal.
    AtLeast(u64),
    /// Less or equal.
    AtMost(u64),
    /// Different.
    NotEqual(u64),
}

impl Comparison {
    /// Whether `value` compares as asked.
    pub fn holds(self, value: u64) -> bool {
        match self {
            Comparison::Equal(n) => value == n,
            Comparison::AtLeast(n) => value >= n,
            Comparison::AtMost(n) => value <= n,
            Comparison::NotEqual(n) => value != n,
        }
    }
}

impl LogFilter {
    /// Whether the stream is logged.
    pub fn passes(&self, stream: &Stream) -> bool {
        match self {
            LogFilter::Status(comparison) => comparison.holds(stream.response.status.into()),
            LogFilter::Duration(comparison) => comparison.holds(crate::format::duration_ms(stream)),
            LogFilter::NotHealthCheck => !stream.health_check,
            LogFilter::Traceable => !stream.health_check && crate::trace::is_forced(&stream.request.headers),
            LogFilter::Metadata(matcher, if_missing) => match matcher.is_there(&stream.metadata) {
                true => matcher.matches(&stream.metadata),
                false => *if_missing,
            },
            LogFilter::Moment { requests, connections } => match stream.is_request() {
                true => *requests,
                false => *connections,
            },
            LogFilter::Fraction(fraction) => fraction.draw(stream.random),
            LogFilter::And(filters) => filters.iter().all(|filter| filter.passes(stream)),
            LogFilter::Or(filters) => filters.iter().any(|filter| filter.passes(stream)),
            LogFilter::Header(matcher) => matcher.matches(&stream.request),
            LogFilter::Flags(flags) if flags.is_empty() => !stream.flags.is_empty(),
            LogFilter::Flags(flags) => flags.iter().any(|flag| stream.flags.contains(*flag)),
            LogFilter::Cel(program) => program.holds(stream),
            LogFilter::GrpcStatus(codes, exclude) => codes.contains(&grpc_status(stream)) != *exclude,
        }
    }
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "access log, filter {:?}", self.filter)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flags::Flag;
    use crate::headers::HeaderName;
    use crate::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget};
    use parking_lot::Mutex;
    use std::time::{Duration, Instant};

    #[derive(Default)]
    struct Lines(Mutex<Vec<u8>>);

    impl LogSink for Lines {
        fn write(&self, line: &[u8]) {
            self.0.lock().extend_from_slice(line);
        }
    }

    fn stream(status: u16, millis: u64) -> Stream {
        let now = Instant::now();
        let mut stream = crate::format::test_stream();
        stream.timing = crate::stream::Timing::new(now);
        stream.timing.downstream_tx_end = Some(now + Duration::from_millis(millis));
        stream.response.status = status;
        stream
    }

    #[test]
    fn filters_choose_streams() {
        let x_log = || {
            LogFilter::Header(HeaderMatcher {
                target: HeaderTarget::Header(HeaderName::new("x-log").unwrap()),
                test: HeaderMatch::Present(true),
                invert: false,
                missing_is_empty: false,
            })
        };
        let mut s = stream(503, 20);
        let check = |s: &Stream, filter: LogFilter, passes: bool| {
            assert_eq!(filter.passes(s), passes, "{filter:?}");
        };
        check(&s, LogFilter::Status(Comparison::AtLeast(400)), true);
        check(&s, LogFilter::Status(Comparison::Equal(200)), false);
        check(&s, LogFilter::Status(Comparison::AtMost(503)), true);
        check(&s, LogFilter::Status(Comparison::NotEqual(503)), false);
        check(&s, LogFilter::Duration(Comparison::AtLeast(20)), true);
        check(&s, LogFilter::Duration(Comparison::AtMost(19)), false);
        check(&s, LogFilter::NotHealthCheck, true);
        s.health_check = true;
        check(&s, LogFilter::NotHealthCheck, false);
        s.health_check = false;
        let never = || LogFilter::Moment { requests: false, connections: true };
        check(&s, never(), false);
        check(&s, LogFilter::Moment { requests: true, connections: false }, true);
        check(&s, LogFilter::Traceable, false);
        check(&s, LogFilter::Fraction(crate::runtime::Fraction::new(0, 100)), false);
        check(&s, LogFilter::Flags(vec![]), false);
        check(&s, x_log(), false);
        s.request.headers.push(b"X-Log", b"1");
        s.flags.insert(Flag::UF);
        check(&s, x_log(), true);
        check(&s, LogFilter::Flags(vec![]), true);
        check(&s, LogFilter::Flags(vec![Flag::UF, Flag::NR]), true);
        check(&s, LogFilter::Flags(vec![Flag::NR]), false);
        check(&s, LogFilter::And(vec![x_log(), LogFilter::Status(Comparison::Equal(503))]), true);
        check(&s, LogFilter::And(vec![x_log(), never()]), false);
        check(&s, LogFilter::Or(vec![never(), x_log()]), true);
        // 503 counts as UNAVAILABLE; what the response says itself goes first.
        check(&s, LogFilter::GrpcStatus(vec![14], false), true);
        check(&s, LogFilter::GrpcStatus(vec![14], true), false);
        s.response_trailers.push(b"grpc-status", b"0");
        check(&s, LogFilter::GrpcStatus(vec![14], false), false);
        let cel = |text| LogFilter::Cel(crate::cel::Program::parse(text, Default::default()).unwrap());
        check(&s, cel("response.code >= 500 && 'x-log' in request.headers"), true);
        check(&s, cel("response.code < 500"), false);
        check(&s, cel("request.headers['x-none'] == ''"), false);
        s.request.headers.set("x-request-id", b"00000000-1111-9222-8333-444444444444");
        check(&s, LogFilter::Traceable, false);
        s.request.headers.set("x-request-id", b"00000000-1111-a222-8333-444444444444");
        check(&s, LogFilter::Traceable, true);
        s.health_check = true;
        check(&s, LogFilter::Traceable, false);
        s.health_check = false;
        let metadata = |if_missing| {
            let value = crate::matcher::ValueMatcher::Bool(true);
            let (namespace, key, path) = ("ns".into(), "chosen".into(), Box::default());
            LogFilter::Metadata(MetadataMatcher { namespace, key, path, value, invert: false }, if_missing)
        };
        check(&s, metadata(true), true);
        check(&s, metadata(false), false);
        s.metadata.push(("ns".into(), "chosen".into(), true.into()));
        check(&s, metadata(false), true);
    }

    #[test]
    fn a_log_writes_its_line_to_the_sink() {
        let sink = Arc::new(Lines::default());
        let log = |format: Format, filter| AccessLog { filter, format: Arc::new(format), sink: sink.clone() };
        log(Format::envoy("%RESPONSE_CODE% %REQ(x)%\n").unwrap(), None).log(&stream(200, 0));
        log(Format::text("never\n"), Some(LogFilter::Traceable)).log(&stream(200, 0));
        let json = serde_json::json!({"code": "%RESPONSE_CODE%"});
        log(Format::json(&json, Default::default()).unwrap(), None).log(&stream(404, 0));
        assert_eq!(*sink.0.lock(), b"200 -\n{\"code\":404}\n");
    }
}
