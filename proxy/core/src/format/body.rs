//! Fields of request bodies: `post_arg_x` and `post_arg.x`.

use crate::headers::Known;
use crate::lookup;
use crate::matcher::decode;
use crate::stream::Stream;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A field of a body: a dotted path, or a JSONPath when it has brackets, stars or `..`.
#[derive(Debug)]
pub(super) struct BodyPath {
    steps: Box<[Step]>,
    /// Whether the result is a list of everything that was found.
    many: bool,
}

#[derive(Debug)]
enum Step {
    Key(Box<str>),
    Index(usize),
    /// Every member or item.
    Every,
    /// The value and everything below it.
    Descend,
}

impl BodyPath {
    /// Prepares a path; a piece that can't be read is taken for a key.
    pub(super) fn parse(path: &str) -> BodyPath {
        let many = path.contains('[') || path.contains('*') || path.contains("..");
        if !many {
            let path = path.strip_prefix("$.").unwrap_or(path);
            return BodyPath { steps: path.split('.').map(|key| Step::Key(key.into())).collect(), many };
        }
        let mut steps = Vec::new();
        for (i, piece) in path.split('.').enumerate() {
            if piece.is_empty() {
                if i > 0 {
                    steps.push(Step::Descend);
                }
                continue;
            }
            let (key, mut rest) = piece.find('[').map_or((piece, ""), |at| piece.split_at(at));
            match key {
                "" | "$" => {}
                "*" => steps.push(Step::Every),
                key => steps.push(Step::Key(key.into())),
            }
            while let Some((inside, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
                steps.push(match inside.trim_matches(['\'', '"']) {
                    "*" => Step::Every,
                    key => key.parse().map_or_else(|_| Step::Key(key.into()), Step::Index),
                });
                rest = after;
            }
        }
        BodyPath { steps: steps.into(), many }
    }

    /// The field as text: a string as it is, anything else as JSON.
    pub(super) fn get(&self, stream: &Stream) -> Option<Vec<u8>> {
        with_document(stream, |document| self.of(document?))
    }

    fn of(&self, document: &Value) -> Option<Vec<u8>> {
        let mut found = vec![document];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.select(value)).collect();
        }
        if self.many {
            let all = Value::Array(found.into_iter().cloned().collect());
            return (all != Value::Array(Vec::new())).then(|| all.to_string().into_bytes());
        }
        match found.first()? {
            Value::Null => None,
            Value::String(text) => Some(text.as_bytes().to_vec()),
            other => Some(other.to_string().into_bytes()),
        }
    }
}

impl Step {
    fn select<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Step::Key(key) => value.get(&**key).into_iter().collect(),
            Step::Index(index) => value.get(*index).into_iter().collect(),
            Step::Every => children(value),
            Step::Descend => {
                let mut all = vec![value];
                let mut next = 0;
                while let Some(value) = all.get(next).copied() {
                    all.extend(children(value));
                    next += 1;
                }
                all
            }
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Object(map) => map.values().collect(),
        Value::Array(list) => list.iter().collect(),
        _ => Vec::new(),
    }
}

fn content_type(stream: &Stream) -> &str {
    stream.request.headers.get_str(Known::CONTENT_TYPE).unwrap_or_default()
}

/// How much of a request's body variables may read, in bytes. It is one for the process, as config.yaml says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimits {
    /// `post_arg.x` (`apisix.max_post_args_readable_size`): 64 MiB by default.
    pub fields: usize,
    /// `graphql_x` (`graphql.max_size`): 1 MiB by default.
    pub graphql: usize,
}

static FIELDS: AtomicUsize = AtomicUsize::new(64 << 20);
static GRAPHQL: AtomicUsize = AtomicUsize::new(1 << 20);

impl BodyLimits {
    /// Bytes of a body that do for all variables.
    pub fn most() -> usize {
        let BodyLimits { fields, graphql } = BodyLimits::current();
        fields.max(graphql)
    }

    /// Those in force.
    pub(super) fn current() -> BodyLimits {
        BodyLimits { fields: FIELDS.load(Relaxed), graphql: GRAPHQL.load(Relaxed) }
    }

    /// Puts them in force.
    pub fn put_in_force(self) {
        FIELDS.store(self.fields, Relaxed);
        GRAPHQL.store(self.graphql, Relaxed);
    }
}

/// The request's body, if it was read and has at most so many bytes. Whoever looks for a route is told that it was not read.
pub(super) fn read(stream: &Stream, most: usize) -> Option<&[u8]> {
    match &stream.request_body {
        Some(body) => Some(&**body).filter(|body| body.len() <= most),
        None => {
            if stream.has_request_body() && announced(stream).is_none_or(|length| length <= most) {
                lookup::want_body(most);
            }
            None
        }
    }
}

/// The length that the body has by the request's head.
fn announced(stream: &Stream) -> Option<usize> {
    stream.request.headers.get_str(Known::CONTENT_LENGTH)?.parse().ok()
}

/// A field of an urlencoded form, decoded.
pub(super) fn form_field<'a>(stream: &'a Stream, name: &str) -> Option<Cow<'a, [u8]>> {
    if !content_type(stream).starts_with("application/x-www-form-urlencoded") {
        return None;
    }
    // APISIX knows no other limit here than that of bodies.
    let body = read(stream, BodyLimits::current().fields)?;
    fields(body).find(|(key, _)| **key == *name.as_bytes()).map(|(_, value)| value)
}

fn fields(body: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    body.split(|b| *b == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let key = decode(halves.next().unwrap_or_default());
        (key, halves.next().map_or(Cow::Borrowed(&b"true"[..]), decode))
    })
}

thread_local! {
    /// The document of the request that a route is looked for, once somebody has asked for a field of it.
    static DOCUMENT: RefCell<Option<Option<Value>>> = const { RefCell::new(None) };
}

/// Has `look` look at the body as a document. Many routes may ask for fields of it: it is read once for all of them.
fn with_document<T>(stream: &Stream, look: impl FnOnce(Option<&Value>) -> T) -> T {
    if !lookup::is_open() {
        return look(document(stream).as_ref());
    }
    DOCUMENT.with_borrow_mut(|kept| {
        if kept.is_none() {
            lookup::forget_at_end(|| drop(DOCUMENT.take()));
        }
        look(kept.get_or_insert_with(|| document(stream)).as_ref())
    })
}

/// The body as a document, by its content-type.
fn document(stream: &Stream) -> Option<Value> {
    let kind = content_type(stream);
    // By what the type holds anywhere, as APISIX looks for it.
    let is = |name| kind.contains(name);
    if !(is("application/json") || is("application/x-www-form-urlencoded") || is("multipart/form-data")) {
        return None;
    }
    let body = read(stream, BodyLimits::current().fields)?;
    if is("application/json") {
        return serde_json::from_slice(body).ok();
    }
    if is("application/x-www-form-urlencoded") {
        return Some(Value::Object(first_of_each(
            fields(body).map(|(key, value)| (text(&key), text(&value))),
        )));
    }
    let boundary = kind.split(';').find_map(|p| p.trim().strip_prefix("boundary="))?;
    Some(Value::Object(first_of_each(
        parts(body, boundary.trim_matches('"')).map(|(name, value)| (name, text(value))),
    )))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn first_of_each(fields: impl Iterator<Item = (String, String)>) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in fields {
        map.entry(key).or_insert(Value::String(value));
    }
    map
}

/// Names and contents of a multipart body's parts (RFC 7578).
fn parts<'a>(body: &'a [u8], boundary: &str) -> impl Iterator<Item = (String, &'a [u8])> {
    let delimiter = format!("--{boundary}").into_bytes();
    let starts: Vec<usize> = memchr::memmem::find_iter(body, &delimiter).collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().collect();
    starts.into_iter().zip(ends).filter_map(move |(start, end)| {
        let part = body.get(start + delimiter.len()..end)?;
        let head_end = memchr::memmem::find(part, b"\r\n\r\n")?;
        let head = text(&part[..head_end]);
        let name = head.split("name=\"").nth(1)?.split('"').next()?.to_owned();
        let content = &part[head_end + 4..];
        Some((name, content.strip_suffix(b"\r\n").unwrap_or(content)))
    })
}
