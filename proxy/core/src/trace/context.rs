//! How the two sides of a call tell each other which spans belong together: B3 (<https://github.com/openzipkin/b3-propagation>) and
//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>).

use super::Span;
use crate::hcm::SpanKind;
use crate::headers::Headers;

const TRACE: &str = "x-b3-traceid";
const SPAN: &str = "x-b3-spanid";
const PARENT: &str = "x-b3-parentspanid";
const SAMPLED: &str = "x-b3-sampled";
const B3: &str = "b3";
const TRACE_PARENT: &str = "traceparent";
const TRACE_STATE: &str = "tracestate";

/// Which headers tell of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    /// Those of B3 (`x-b3-*`, `b3`).
    pub b3: bool,
    /// `traceparent` and `tracestate`.
    pub w3c: bool,
    /// Whether a new trace has an id of 128 bits, and not of 64.
    pub long_ids: bool,
    /// Whether the called side takes the caller's span for its own (`shared_span_context`).
    pub shares_spans: bool,
}

/// How B3's headers tell of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum B3Form {
    /// A header a value: `x-b3-*`.
    #[default]
    Each,
    /// All in one: `b3`.
    Single,
}

/// The span of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Of all spans of the call.
    pub trace_id: u128,
    /// The caller's.
    pub span_id: u64,
    /// That of which the caller's is a part.
    pub parent_id: Option<u64>,
    /// What was decided, if anything was.
    pub sampled: Option<bool>,
}

impl Propagation {
    /// The span of a request with these headers, which is traced if nobody has decided otherwise; none where the single
    /// header of B3 can't be read, which goes on as it is.
    pub(super) fn span(self, headers: &Headers, traced: bool, kind: SpanKind) -> Option<Span> {
        let b3 = if self.b3 { b3(headers) } else { B3Told::default() };
        if b3.form == B3Form::Single && b3.parent.is_none() && b3.sampled.is_none() {
            return None;
        }
        let parent = b3.parent.or_else(|| self.w3c.then(|| w3c(headers)).flatten());
        let state = headers.get_str(TRACE_STATE).filter(|_| self.w3c && parent.is_some());
        let state = state.unwrap_or_default().into();
        let Some(parent) = parent else {
            let span_id = fastrand::u64(1..);
            let high = if self.long_ids { u128::from(fastrand::u64(1..)) << 64 } else { 0 };
            let sampled = b3.sampled.unwrap_or(traced);
            let trace_id = high | u128::from(span_id);
            return Some(Span {
                trace_id,
                span_id,
                parent_id: None,
                upstream_id: None,
                form: b3.form,
                state,
                sampled,
            });
        };
        let sampled = parent.sampled.unwrap_or(traced);
        let (span_id, parent_id) = match self.shares_spans && kind == SpanKind::Server {
            true => (parent.span_id, parent.parent_id),
            false => (fastrand::u64(1..), Some(parent.span_id)),
        };
        let trace_id = parent.trace_id;
        Some(Span { trace_id, span_id, parent_id, upstream_id: None, form: b3.form, state, sampled })
    }

    /// Tells the upstream of a span.
    pub(super) fn tell(self, headers: &mut Headers, span: &Span) {
        let (span_id, parent) = match span.upstream_id {
            Some(own) => (own, Some(span.span_id)),
            None => (span.span_id, span.parent_id),
        };
        if self.b3 {
            let (short, long) = (hex(span.trace_id as u64), long_hex(span.trace_id));
            let trace = if span.trace_id >> 64 == 0 { &short[..] } else { &long[..] };
            let sampled = if span.sampled { b"1" } else { b"0" };
            match span.form {
                B3Form::Each => {
                    headers.set(TRACE, trace);
                    headers.set(SPAN, &hex(span_id));
                    match parent {
                        Some(parent) => headers.set(PARENT, &hex(parent)),
                        None => drop(headers.remove(PARENT)),
                    }
                    headers.set(SAMPLED, sampled);
                }
                // The others stay as they came.
                B3Form::Single => {
                    let mut value = [trace, &hex(span_id), sampled].join(&b'-');
                    if let Some(parent) = parent {
                        value.push(b'-');
                        value.extend_from_slice(&hex(parent));
                    }
                    headers.set(B3, &value);
                }
            }
        }
        if self.w3c {
            let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
            value[3..35].copy_from_slice(&long_hex(span.trace_id));
            value[36..52].copy_from_slice(&hex(span_id));
            value[54] = if span.sampled { b'1' } else { b'0' };
            headers.set(TRACE_PARENT, &value);
            headers.set(TRACE_STATE, span.state.as_bytes());
        }
    }
}

/// What B3's headers say.
#[derive(Default)]
struct B3Told {
    parent: Option<Parent>,
    /// What was decided, also where no span is told of.
    sampled: Option<bool>,
    form: B3Form,
}

fn b3(headers: &Headers) -> B3Told {
    if let Some(one) = headers.get_str(B3) {
        return single(one);
    }
    let sampled = headers.get(SAMPLED).map(|value| matches!(value, b"1" | b"true"));
    let spans = headers.get(TRACE).and_then(id).zip(headers.get(SPAN).and_then(short_id));
    let parent_id = headers.get(PARENT).and_then(short_id);
    let parent = spans.map(|(trace_id, span_id)| Parent { trace_id, span_id, parent_id, sampled });
    B3Told { parent, sampled, form: B3Form::Each }
}

/// `{trace}-{span}-{sampled}-{parent}`, the last two optional, or only whether it is sampled.
fn single(value: &str) -> B3Told {
    let decided = |text: &str| match text {
        "1" | "d" => Some(true),
        "0" => Some(false),
        _ => None,
    };
    if let Some(sampled) = decided(value) {
        return B3Told { parent: None, sampled: Some(sampled), form: B3Form::Single };
    }
    let mut parts = value.split('-');
    let trace = parts.next().and_then(|text| id(text.as_bytes()));
    let span = parts.next().and_then(|text| short_id(text.as_bytes()));
    let sampled = parts.next().and_then(decided);
    let parent_id = parts.next().and_then(|text| short_id(text.as_bytes()));
    let parent = trace.zip(span).map(|(trace_id, span_id)| Parent { trace_id, span_id, parent_id, sampled });
    B3Told { parent, sampled, form: B3Form::Single }
}

/// `{version}-{trace}-{span}-{flags}`.
fn w3c(headers: &Headers) -> Option<Parent> {
    let mut parts = headers.get_str(TRACE_PARENT)?.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let flags = parts.next()?;
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !is_hex(version, 2) || version == "ff" || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2)
    {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Parent {
        trace_id: id(trace.as_bytes())?,
        span_id: short_id(span.as_bytes())?,
        parent_id: None,
        sampled: Some(flags & 1 != 0),
    })
}

/// An id of 64 or 128 bits, which is not 0.
fn id(text: &[u8]) -> Option<u128> {
    let digits = std::str::from_utf8(text).ok().filter(|text| matches!(text.len(), 16 | 32))?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(digits, 16).ok().filter(|id| is_hex && *id != 0)
}

fn short_id(text: &[u8]) -> Option<u64> {
    id(text).and_then(|id| u64::try_from(id).ok())
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn hex(id: u64) -> [u8; 16] {
    std::array::from_fn(|at| DIGITS[(id >> (60 - 4 * at) & 15) as usize])
}

fn long_hex(id: u128) -> [u8; 32] {
    std::array::from_fn(|at| DIGITS[(id >> (124 - 4 * at) & 15) as usize])
}
