//! Fields of request bodies: `post_arg_x` and `post_arg.x`.

use super::variable::Shown;
use super::walk::{Wanted, walk};
use crate::headers::Known;
use crate::lookup;
use crate::matcher::decode;
use crate::stream::Stream;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A field of a body: a dotted path, or a JSONPath when it has brackets, stars or `..`.
#[derive(Debug)]
pub(super) struct BodyPath {
    pub(super) steps: Box<[Step]>,
    /// Whether the result is a list of everything that was found.
    many: bool,
}

#[derive(Debug)]
pub(super) enum Step {
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

    /// Whether the brackets of a path are those of a JSONPath, each closed before the next one opens.
    pub(super) fn is_sound(path: &str) -> bool {
        let mut rest = path;
        while let Some(at) = rest.find(['[', ']']) {
            let Some(inside) = rest.get(at..).and_then(|found| found.strip_prefix('[')) else { return false };
            let end = match inside.chars().next() {
                Some(quote @ ('\'' | '"')) => inside.find(&format!("{quote}]")[..]).map(|end| end + 1),
                // Of an expression only the end is looked for.
                Some('?' | '(') => inside.find(")]").map(|end| end + 1),
                _ => inside.find(['[', ']']).filter(|end| inside.as_bytes().get(*end) == Some(&b']')),
            };
            let Some(after) = end.and_then(|end| inside.get(end + 1..)) else { return false };
            rest = after;
        }
        true
    }

    /// Has `look` look at what was found.
    pub(super) fn show<T>(&self, found: &[&Value], look: impl FnOnce(Shown<'_>) -> T) -> T {
        look(match found {
            [] => Shown::Text(None),
            all if self.many => Shown::List(all),
            [Value::Null, ..] => Shown::Text(None),
            [Value::String(text), ..] => Shown::Text(Some(text.as_bytes())),
            [other, ..] => Shown::Json(other),
        })
    }

    fn follow<'a>(&self, document: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![document];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.select(value)).collect();
        }
        found
    }

    /// What was found as text: a string as it is, anything else as JSON.
    pub(super) fn text(&self, found: &[&Value]) -> Option<Vec<u8>> {
        if self.many {
            return (!found.is_empty()).then(|| serde_json::to_vec(found).ok()).flatten();
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

pub(super) fn content_type(stream: &Stream) -> &str {
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

/// Whether a body of that type is an urlencoded form to `post_arg_x`.
pub(super) fn is_form(content_type: &str) -> bool {
    content_type.starts_with("application/x-www-form-urlencoded")
}

/// The first field of each of these names in an urlencoded form, decoded.
pub(super) fn form_fields(body: &[u8], names: &[&str]) -> Vec<Option<Vec<u8>>> {
    let mut wanted: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (at, name) in names.iter().enumerate() {
        wanted.entry(name.as_bytes()).or_default().push(at);
    }
    let mut found = vec![None; names.len()];
    for (key, value) in fields(body) {
        if wanted.is_empty() {
            break;
        }
        for at in wanted.remove(&*key).unwrap_or_default() {
            if let Some(place) = found.get_mut(at) {
                *place = Some(value.to_vec());
            }
        }
    }
    found
}

/// A field of an urlencoded form, decoded.
pub(super) fn form_field<'a>(body: &'a [u8], name: &str) -> Option<Cow<'a, [u8]>> {
    fields(body).find(|(key, _)| **key == *name.as_bytes()).map(|(_, value)| value)
}

fn fields(body: &[u8]) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    body.split(|b| *b == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let key = decode(halves.next().unwrap_or_default());
        (key, halves.next().map_or(Cow::Borrowed(&b"true"[..]), decode))
    })
}

/// Values of a body that are held together, at most: some 72 bytes each, and the texts. Of a body with more a path to one
/// text or number leads there without the rest, and any other finds nothing.
const MOST_VALUES: usize = 256 << 10;

/// A body as a document.
enum Document {
    Tree(Value),
    /// It has more than [`MOST_VALUES`].
    Large,
}

thread_local! {
    /// The document of the request that is looked at ([`lookup`]), once somebody has asked for a field of it.
    static DOCUMENT: RefCell<Option<Option<Document>>> = const { RefCell::new(None) };
}

/// Has `look` look at what a path leads to in the request's body. Many routes may ask for fields of it: it is read once for all
/// of them.
pub(super) fn with_found<T>(
    source: Option<&Source<'_>>,
    path: &BodyPath,
    look: impl FnOnce(&[&Value]) -> T,
) -> T {
    let document = || source.and_then(Source::document);
    let found = |document: &Option<Document>| match document {
        None => look(&[]),
        Some(Document::Tree(tree)) => look(&path.follow(tree)),
        Some(Document::Large) => {
            let found = source.and_then(|source| source.find(&[path]).pop().flatten());
            look(found.as_ref().as_slice())
        }
    };
    if !lookup::is_open() {
        return found(&document());
    }
    DOCUMENT.with_borrow_mut(|kept| {
        if kept.is_none() {
            lookup::forget_at_end(|| drop(DOCUMENT.take()));
        }
        found(kept.get_or_insert_with(document))
    })
}

/// A body that is a document by its content-type.
pub(super) enum Source<'a> {
    Json(&'a [u8]),
    Form(&'a [u8]),
    /// With the boundary of its parts.
    Parts(&'a [u8], &'a str),
}

impl<'a> Source<'a> {
    pub(super) fn new(kind: &'a str, body: &'a [u8]) -> Option<Source<'a>> {
        // By what the type holds anywhere, as APISIX looks for it.
        if kind.contains("application/json") {
            return Some(Source::Json(body));
        }
        if kind.contains("application/x-www-form-urlencoded") {
            return Some(Source::Form(body));
        }
        if !kind.contains("multipart/form-data") {
            return None;
        }
        let boundary = kind.split(';').find_map(|p| p.trim().strip_prefix("boundary="))?;
        Some(Source::Parts(body, boundary.trim_matches('"')))
    }

    /// What each of these paths leads to.
    pub(super) fn find_all(&self, paths: &[&BodyPath]) -> Vec<Vec<Value>> {
        match self.document() {
            None => vec![Vec::new(); paths.len()],
            Some(Document::Large) => {
                self.find(paths).into_iter().map(|found| found.into_iter().collect()).collect()
            }
            Some(Document::Tree(tree)) => paths.iter().map(|path| copied(&path.follow(&tree))).collect(),
        }
    }

    /// Whether it has more values than are held.
    fn is_large(&self) -> bool {
        let (Source::Json(body) | Source::Form(body) | Source::Parts(body, _)) = self;
        // Each takes a byte.
        body.len() > MOST_VALUES
            && match self {
                Source::Json(body) => has_more_values(body, MOST_VALUES),
                Source::Form(body) => fields(body).nth(MOST_VALUES).is_some(),
                Source::Parts(body, boundary) => parts(body, boundary).nth(MOST_VALUES).is_some(),
            }
    }

    fn document(&self) -> Option<Document> {
        if self.is_large() {
            return Some(Document::Large);
        }
        Some(Document::Tree(match self {
            Source::Json(body) => serde_json::from_slice(body).ok()?,
            Source::Form(body) => first_of_each(fields(body).map(|(key, value)| (text(&key), text(&value)))),
            Source::Parts(body, boundary) => {
                first_of_each(parts(body, boundary).map(|(name, value)| (name, text(value))))
            }
        }))
    }

    /// The text or number that each of these paths leads to, by one look at the body.
    fn find(&self, paths: &[&BodyPath]) -> Vec<Option<Value>> {
        let mut found = vec![None; paths.len()];
        let tree = Wanted::of(paths);
        match self {
            Source::Json(body) => {
                if walk(body, &tree, &mut found).is_err() {
                    found.fill(None);
                }
            }
            Source::Form(body) => {
                fields(body).for_each(|(key, value)| tree.named(&text(&key), &mut found, || text(&value)));
            }
            Source::Parts(body, boundary) => {
                parts(body, boundary).for_each(|(name, value)| tree.named(&name, &mut found, || text(value)));
            }
        }
        found
    }
}

/// Values for whoever asks later. No more of them than are held of a document: every piece of one may be among them, and those
/// above it.
fn copied(found: &[&Value]) -> Vec<Value> {
    fn count(value: &Value, room: &mut usize) -> Option<()> {
        *room = room.checked_sub(1)?;
        children(value).into_iter().try_for_each(|below| count(below, room))
    }
    let mut room = MOST_VALUES;
    match found.iter().try_for_each(|value| count(value, &mut room)) {
        Some(()) => found.iter().map(|value| (*value).clone()).collect(),
        None => Vec::new(),
    }
}

/// The text that a JSON object has for a key.
pub(super) fn text_of_key(json: &[u8], key: &str) -> Option<String> {
    let path = BodyPath { steps: Box::new([Step::Key(key.into())]), many: false };
    match Source::Json(json).find(&[&path]).pop()?? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// Whether a JSON text has more values than that.
fn has_more_values(json: &[u8], most: usize) -> bool {
    let (mut values, mut is_text, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b',' | b'[' | b'{' if !is_text => {
                values += 1;
                if values > most {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn first_of_each(fields: impl Iterator<Item = (String, String)>) -> Value {
    let mut map = Map::new();
    for (key, value) in fields {
        map.entry(key).or_insert(Value::String(value));
    }
    Value::Object(map)
}

/// Names and contents of a multipart body's parts (RFC 7578).
fn parts<'a>(body: &'a [u8], boundary: &str) -> impl Iterator<Item = (String, &'a [u8])> {
    let delimiter = format!("--{boundary}").into_bytes();
    let mut rest = memchr::memmem::find(body, &delimiter).and_then(|at| body.get(at + delimiter.len()..));
    let pieces = std::iter::from_fn(move || {
        let part = rest?;
        let end = memchr::memmem::find(part, &delimiter)?;
        rest = part.get(end + delimiter.len()..);
        part.get(..end)
    });
    pieces.filter_map(|part| {
        // Lines may end without a carriage return, as APISIX reads them.
        let ends = [&b"\r\n\r\n"[..], b"\n\n"].into_iter();
        let ends = ends.filter_map(|gap| Some((memchr::memmem::find(part, gap)?, gap.len())));
        let (head_end, gap) = ends.min()?;
        let head = text(part.get(..head_end)?);
        let name = head.split("name=\"").nth(1)?.split('"').next()?.to_owned();
        let content = part.get(head_end + gap..)?;
        let whole = content.strip_suffix(b"\r\n").or_else(|| content.strip_suffix(b"\n"));
        Some((name, whole.unwrap_or(content)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_texts() {
        for (json, values) in [("[]", 2), (r#"{"a,[{":"\",[","b":[1,2]}"#, 5), ("[[0,0],[0,0]]", 7)] {
            assert!(has_more_values(json.as_bytes(), values - 1), "{json}");
            assert!(!has_more_values(json.as_bytes(), values), "{json}");
        }
    }

    #[test]
    fn paths_lead_through_large_bodies_as_through_trees() {
        let json = r#"{"a":{"b":"x","l":[1,{"c":2.5}],"n":null,"t":true},"a2":-1,"d":1,"d":"last","o":{}}"#;
        let tree: Value = serde_json::from_str(json).unwrap_or_default();
        for path in ["a.b", "a.l[0]", "a.l[1].c", "a.l[7]", "a.n", "a.t", "a2", "d", "a.b.c", "nope", "a2.x"]
        {
            let path = BodyPath::parse(path);
            let found = Source::Json(json.as_bytes()).find(&[&path]).remove(0);
            assert_eq!(path.text(found.as_ref().as_slice()), path.text(&path.follow(&tree)), "{path:?}");
        }
        // All of them at once as each by itself.
        let paths = ["a.b", "d", "a.l[1].c", "nope", "d", "a.b.c"].map(BodyPath::parse);
        let each = paths.each_ref().map(|path| Source::Json(json.as_bytes()).find(&[path]).remove(0));
        assert_eq!(Source::Json(json.as_bytes()).find(&paths.each_ref()), each);
        // Only these are kept.
        for path in ["a", "a.l", "o", "a.l[*]", "..b"] {
            assert_eq!(Source::Json(json.as_bytes()).find(&[&BodyPath::parse(path)]), [None], "{path}");
        }
        for bad in [r#"{"a":1}}"#, r#"{"a":1"#, "{\"a\":1,}"] {
            assert_eq!(Source::Json(bad.as_bytes()).find(&[&BodyPath::parse("a")]), [None], "{bad}");
        }
    }

    #[test]
    fn all_paths_are_found_in_forms_and_what_is_copied_is_bounded() {
        let paths = ["a", "b", "a", "c", "a.b"].map(BodyPath::parse);
        let form = Source::Form(b"b=1&a=2&a=3&x");
        let text = |text: &str| Some(Value::from(text));
        assert_eq!(form.find(&paths.each_ref()), [text("2"), text("1"), text("2"), None, None]);
        let tree = Source::Json(br#"{"a":[[1,2],[3]],"b":"x"}"#);
        let paths = ["..*", "b", "a"].map(BodyPath::parse);
        let found: Vec<usize> = tree.find_all(&paths.each_ref()).iter().map(Vec::len).collect();
        assert_eq!(found, [7, 1, 1]);
        // Each of some levels is found, with all that is below it.
        let many = format!("{{\"a\":[[[[{}1]]]]}}", "1,".repeat(100_000));
        assert_eq!(Source::Json(many.as_bytes()).find_all(&[&paths[0]]), [Vec::<Value>::new()]);
    }
}
