//! Variables whose values are in the request's body, and where they are looked for: a body of megabytes takes longer than a
//! worker may be held.

use super::body::{self, BodyLimits, BodyPath, Source};
use super::graphql::{self, Part};
use super::joined;
use super::variable::Shown;
use crate::lookup;
use crate::offload::{self, Lane};
use crate::stream::Stream;
use bytes::Bytes;
use http::Method;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes of a body that are looked through where somebody asks: half a millisecond. A longer one is looked through beside the
/// workers ([`find`]).
const AT_ONCE: usize = 64 << 10;

/// A variable whose value is in the request's body.
#[derive(Debug)]
pub struct BodyVariable {
    name: Box<str>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `post_arg_x`
    FormField(Box<str>),
    /// `post_arg.x`
    Field(BodyPath),
    /// `graphql_x`
    Graphql(Part),
}

/// What was found in a request's body that is too long for a worker. It is that of the body as it was then.
#[derive(Debug, Default)]
pub struct BodyValues(Vec<(Arc<BodyVariable>, Found)>);

#[derive(Debug)]
enum Found {
    Text(Option<Vec<u8>>),
    Values(Vec<Value>),
}

impl BodyVariable {
    /// The variable of a name, if that is one of these.
    pub(super) fn parse(name: &str) -> Option<BodyVariable> {
        let kind = if let Some(path) = name.strip_prefix("post_arg.") {
            Kind::Field(BodyPath::parse(path))
        } else if let Some(field) = name.strip_prefix("post_arg_") {
            Kind::FormField(field.into())
        } else {
            Kind::Graphql(Part::parse(name.strip_prefix("graphql_")?)?)
        };
        Some(BodyVariable { name: name.into(), kind })
    }

    /// Whether it has the same value as another one.
    pub(crate) fn is(&self, other: &BodyVariable) -> bool {
        self.name == other.name
    }

    /// The body as far as the variable may look at it, and whether that is too long to do it here. Whoever looks for a route is
    /// told that it was not read.
    fn body<'a>(&self, stream: &'a Stream) -> Option<(&'a [u8], bool)> {
        let (limits, kind) = (BodyLimits::current(), body::content_type(stream));
        let most = match &self.kind {
            Kind::FormField(_) => body::is_form(kind).then_some(limits.fields),
            Kind::Field(_) => Source::new(kind, b"").map(|_| limits.fields),
            Kind::Graphql(_) => (stream.request.method == Method::POST).then_some(limits.graphql),
        };
        let body = body::read(stream, most?)?;
        Some((body, body.len() > AT_ONCE))
    }

    /// What was found beside the workers. What was not looked for there is none, and is wanted.
    fn found<'a>(self: &Arc<Self>, stream: &'a Stream) -> Option<&'a Found> {
        let values = stream.body_values.as_ref();
        let found = values.and_then(|values| values.0.iter().find(|(of, _)| of.is(self)));
        if found.is_none() {
            lookup::want_value(self);
        }
        found.map(|(_, found)| found)
    }

    /// The value for the request, if there is one.
    pub(super) fn get<'a>(self: &'a Arc<Self>, stream: &'a Stream) -> Option<Cow<'a, [u8]>> {
        if let Kind::Graphql(part) = self.kind
            && stream.request.method == Method::GET
        {
            return graphql::part(&graphql::of_argument(stream)?, part).map(Cow::Owned);
        }
        let (body, is_long) = self.body(stream)?;
        if is_long {
            return match (self.found(stream)?, &self.kind) {
                (Found::Text(text), _) => text.as_deref().map(Cow::Borrowed),
                (Found::Values(values), Kind::Field(path)) => {
                    path.text(&values.iter().collect::<Vec<_>>()).map(Cow::Owned)
                }
                (Found::Values(_), _) => None,
            };
        }
        let kind = body::content_type(stream);
        match &self.kind {
            Kind::FormField(name) => body::form_field(body, name),
            Kind::Field(path) => {
                body::with_found(Source::new(kind, body).as_ref(), path, |found| path.text(found))
                    .map(Cow::Owned)
            }
            Kind::Graphql(part) => graphql::part(&graphql::of_body(kind, body)?, *part).map(Cow::Owned),
        }
    }

    /// Has `look` look at the value as the body has it.
    pub(super) fn look<T>(self: &Arc<Self>, stream: &Stream, look: impl FnOnce(Shown<'_>) -> T) -> T {
        match &self.kind {
            Kind::Field(path) => match self.body(stream) {
                None => look(Shown::Text(None)),
                Some((_, true)) => match self.found(stream) {
                    Some(Found::Values(values)) => path.show(&values.iter().collect::<Vec<_>>(), look),
                    _ => look(Shown::Text(None)),
                },
                Some((body, false)) => {
                    let source = Source::new(body::content_type(stream), body);
                    body::with_found(source.as_ref(), path, |found| path.show(found, look))
                }
            },
            Kind::FormField(_) | Kind::Graphql(_) => {
                self.look_at_text(stream, |text| look(Shown::Text(text)))
            }
        }
    }

    /// Has `look` look at the value as text.
    pub(super) fn look_at_text<T>(
        self: &Arc<Self>,
        stream: &Stream,
        look: impl FnOnce(Option<&[u8]>) -> T,
    ) -> T {
        match self.kind {
            // What is not known yet is not to be kept.
            Kind::Graphql(part) if !self.body(stream).is_some_and(|(_, is_long)| is_long) => {
                joined::with(joined::Key::Graphql(part), || self.get(stream).map(Cow::into_owned), look)
            }
            _ => look(self.get(stream).as_deref()),
        }
    }
}

/// Looks for the values of these variables in the request's body, where that is long: beside the workers, all by one look at it.
/// Whoever asks for them later finds what came of it. Dropped, it is taken back.
pub async fn find(variables: &[Arc<BodyVariable>], stream: &mut Stream) {
    let is_new = |variable: &&Arc<BodyVariable>| {
        let known = stream.body_values.as_ref();
        known.is_none_or(|known| !known.0.iter().any(|(of, _)| of.is(variable)))
            && variable.body(stream).is_some_and(|(_, is_long)| is_long)
    };
    let wanted: Vec<Arc<BodyVariable>> = variables.iter().filter(is_new).cloned().collect();
    let Some(body) = stream.request_body.clone().filter(|_| !wanted.is_empty()) else { return };
    let (kind, searched) = (body::content_type(stream).to_owned(), wanted.clone());
    let found = offload::run(Lane::of(body.len()), move || search(&searched, &kind, &body)).await;
    // Without a thread for it there is nothing, as if the body had none of them.
    let found = found.unwrap_or_else(|| wanted.iter().map(|_| Found::Text(None)).collect());
    stream.body_values.get_or_insert_default().0.extend(wanted.into_iter().zip(found));
}

/// What each of the variables finds.
fn search(variables: &[Arc<BodyVariable>], content_type: &str, body: &Bytes) -> Vec<Found> {
    let paths = variables.iter().filter_map(|variable| match &variable.kind {
        Kind::Field(path) => Some(path),
        _ => None,
    });
    let paths: Vec<&BodyPath> = paths.collect();
    let source = Source::new(content_type, body).filter(|_| !paths.is_empty());
    let mut fields = source.map(|source| source.find_all(&paths)).unwrap_or_default().into_iter();
    let names = variables.iter().filter_map(|variable| match &variable.kind {
        Kind::FormField(name) => Some(&**name),
        _ => None,
    });
    let names: Vec<&str> = names.collect();
    let mut forms = body::form_fields(body, &names).into_iter();
    let is_graphql = variables.iter().any(|variable| matches!(variable.kind, Kind::Graphql(_)));
    let query = is_graphql.then(|| graphql::of_body(content_type, body)).flatten();
    let find = |variable: &Arc<BodyVariable>| match &variable.kind {
        Kind::Field(_) => Found::Values(fields.next().unwrap_or_default()),
        Kind::FormField(_) => Found::Text(forms.next().flatten()),
        Kind::Graphql(part) => Found::Text(query.as_ref().and_then(|query| graphql::part(query, *part))),
    };
    variables.iter().map(find).collect()
}
