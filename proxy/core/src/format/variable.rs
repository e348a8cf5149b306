//! APISIX's variables (`ctx.var`, apisix/core/ctx.lua), nginx's among them.

use super::body::BodyPath;
use super::in_body::BodyVariable;
use super::joined;
use super::nginx;
use super::read::{Read, ip, join};
use crate::headers::{HeaderName, Headers, Known};
use crate::matcher;
use crate::stream::{ResponseSource, Stream};
use serde_json::Value;
use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

/// A prepared variable.
#[derive(Debug)]
pub struct Variable {
    /// As it is spelled; values that plugins assign are found by it, before any other.
    name: Box<str>,
    kind: Kind,
}

/// A value as whoever compares it sees it.
#[derive(Clone, Copy)]
pub(crate) enum Shown<'a> {
    /// A text, or that there is nothing.
    Text(Option<&'a [u8]>),
    /// A field of a body that is no text.
    Json(&'a Value),
    /// All that a JSONPath has found in a body.
    List(&'a [&'a Value]),
}

#[derive(Debug)]
enum Kind {
    /// Read off the stream.
    Read(Read),
    /// `cookie_x`
    Cookie(Box<str>),
    /// `cookie_x` of nginx's logs.
    SentCookie(Box<str>),
    /// `arg_x`
    Argument(Box<str>),
    /// `arg_x` of nginx's logs.
    SentArgument(Box<str>),
    /// What is in the request's body.
    Body(Arc<BodyVariable>),
    /// `uri_param_x`
    PathParameter(Box<str>),
    /// `http_x`
    RequestHeader(Field),
    /// `sent_http_x`
    ResponseHeader(Field),
    /// `upstream_http_x`: of the upstream's own response alone.
    UpstreamHeader(Field),
    /// `upstream_cookie_x`: one that the upstream's own response sets.
    UpstreamCookie(Box<str>),
    /// `http_x_forwarded_for`: without the address that goes on to the upstream.
    ForwardedFor,
    /// `http_x_real_ip`: without that which the upstream is told.
    RealIp(Field),
    /// `sent_trailer_x`
    ResponseTrailer(Field),
    /// `1`: a group of a match, where there is one.
    Capture(usize),
    /// What a plugin may set, and what it is before.
    Declared(&'static str),
    /// What only a plugin can set.
    Assigned,
}

/// A header as nginx's variables name it: `-` and `_` are alike.
#[derive(Debug)]
struct Field {
    /// With `-`, as nearly every header is spelled.
    name: Option<HeaderName>,
    /// With `_`, as the variable is.
    spelled: Box<str>,
}

impl Field {
    fn new(name: &str) -> Field {
        let spelled = name.to_ascii_lowercase().replace('-', "_");
        Field { name: HeaderName::new(&spelled.replace('_', "-")).ok(), spelled: spelled.into() }
    }

    /// The value; repeated lines are joined as nginx joins them.
    fn get<'a>(&'a self, headers: &'a Headers) -> Option<Cow<'a, [u8]>> {
        let name = self.name.as_ref()?;
        let mut lines = headers.get_all(name);
        let Some(first) = lines.next() else { return self.with_underscores(headers) };
        match lines.next() {
            None => Some(Cow::Borrowed(first)),
            Some(_) => Some(Cow::Owned(joined_lines(name, headers))),
        }
    }

    /// The name, if there are several lines of it.
    fn repeated(&self, headers: &Headers) -> Option<&HeaderName> {
        self.name.as_ref().filter(|name| headers.get_all(*name).nth(1).is_some())
    }

    /// The value of a header that is spelled with underscores.
    fn with_underscores<'a>(&self, headers: &'a Headers) -> Option<Cow<'a, [u8]>> {
        let matches = |name: &[u8]| {
            let alike = |(a, b): (&u8, u8)| a.to_ascii_lowercase() == b || (*a == b'-' && b == b'_');
            name.len() == self.spelled.len() && name.iter().zip(self.spelled.bytes()).all(alike)
        };
        if !self.spelled.contains('_') {
            return None;
        }
        headers.iter().find(|(name, _)| matches(name)).map(|(_, value)| Cow::Borrowed(value))
    }
}

#[cfg(test)]
thread_local! {
    /// How often lines were joined by this thread.
    pub(crate) static JOINED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn joined_lines(name: &HeaderName, headers: &Headers) -> Vec<u8> {
    #[cfg(test)]
    JOINED.set(JOINED.get() + 1);
    let separator: &[u8] = if name.known() == Some(Known::COOKIE) { b"; " } else { b", " };
    let mut joined = Vec::new();
    join(&mut joined, separator, headers.get_all(name));
    joined
}

thread_local! {
    /// Variables of the request's body that were prepared.
    static OF_BODY: RefCell<Vec<Arc<BodyVariable>>> = const { RefCell::new(Vec::new()) };
}

/// What `make` makes, and the variables that it has prepared whose values are in the request's body: whoever asks for them
/// before the body has been read gets none.
pub fn noticing_bodies<T>(make: impl FnOnce() -> T) -> (T, Vec<Arc<BodyVariable>>) {
    let before = OF_BODY.take();
    let made = make();
    // Each counts for those around this as well.
    let noticed = OF_BODY.replace(before);
    OF_BODY.with_borrow_mut(|all| all.extend(noticed.iter().cloned()));
    (made, noticed)
}

impl Variable {
    /// Prepares the variable of a name, without its `$`. A name that is not known is one that a plugin may
    /// set.
    pub fn parse(name: &str) -> Variable {
        let name = if name == "document_uri" { "uri" } else { name };
        let variable = Variable { name: name.into(), kind: Kind::parse(name) };
        if let Kind::Body(of_body) = &variable.kind {
            OF_BODY.with_borrow_mut(|all| all.push(of_body.clone()));
        }
        variable
    }

    /// Prepares the variable of a name for nginx's access log, which sees the request as the client sent it: APISIX
    /// normalises the URI among its own variables only.
    pub(super) fn of_log(name: &str) -> Variable {
        match name {
            "request_uri" => Variable { name: "real_request_uri".into(), kind: Kind::parse(name) },
            _ => match (name.strip_prefix("arg_"), name.strip_prefix("cookie_")) {
                (Some(argument), _) => {
                    Variable { name: name.into(), kind: Kind::SentArgument(argument.into()) }
                }
                (_, Some(cookie)) => Variable { name: name.into(), kind: Kind::SentCookie(cookie.into()) },
                _ => Variable::parse(name),
            },
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its value is a number in APISIX, and not the text of one: those of nginx that lua-var-nginx-module reads so.
    pub(super) fn is_number(&self) -> bool {
        matches!(&*self.name, "status" | "request_length" | "bytes_sent")
    }

    /// What it is if its value is in the request's body.
    pub(super) fn of_body(&self) -> Option<&Arc<BodyVariable>> {
        match &self.kind {
            Kind::Body(of_body) => Some(of_body),
            _ => None,
        }
    }

    /// The number of the match group that it means.
    pub(super) fn capture(&self) -> Option<usize> {
        match self.kind {
            Kind::Capture(n) => Some(n),
            _ => None,
        }
    }

    /// The value for the request, if there is one.
    pub fn get<'a>(&'a self, stream: &'a Stream) -> Option<Cow<'a, [u8]>> {
        if let Some(assigned) = self.assigned(stream) {
            return Some(Cow::Borrowed(assigned));
        }
        match &self.kind {
            Kind::Read(read) => read.get(stream),
            Kind::Cookie(name) => {
                matcher::cookie_value(&stream.request.headers, name.as_bytes()).map(Cow::Borrowed)
            }
            Kind::SentCookie(name) => {
                sent_cookie(&stream.request.headers, name.as_bytes()).map(Cow::Borrowed)
            }
            Kind::Argument(name) => matcher::argument(nginx::sent_query(stream)?, name.as_bytes()),
            Kind::SentArgument(name) => sent_argument(stream, name.as_bytes()).map(Cow::Borrowed),
            Kind::Body(of_body) => of_body.get(stream),
            Kind::PathParameter(name) => stream
                .captures
                .iter()
                .find(|(n, _)| **n == **name)
                .map(|(_, value)| Cow::Borrowed(value.as_slice())),
            Kind::RequestHeader(field) => match &*field.spelled {
                "host" => some(&stream.request.authority).map(Cow::Borrowed),
                _ => {
                    let withheld = stream.request.sent.as_ref().and_then(|sent| field.get(&sent.withheld));
                    withheld.or_else(|| field.get(&stream.request.headers))
                }
            },
            Kind::ResponseHeader(field) => field.get(&stream.response.headers),
            Kind::UpstreamHeader(field) => {
                let passed_on = stream.source == ResponseSource::Upstream;
                passed_on.then(|| field.get(&stream.response.headers)).flatten()
            }
            Kind::UpstreamCookie(name) => {
                let passed_on = stream.source == ResponseSource::Upstream;
                passed_on.then(|| set_cookie(&stream.response.headers, name.as_bytes())).flatten()
            }
            Kind::ForwardedFor => client_forwarded_for(stream),
            Kind::RealIp(field) => match stream.upstream.is_told_of_client {
                true => field.get(&stream.request.sent.as_ref()?.withheld),
                false => field.get(&stream.request.headers),
            },
            Kind::ResponseTrailer(field) => field.get(&stream.response_trailers),
            Kind::Declared(value) => Some(Cow::Borrowed(value.as_bytes())),
            Kind::Capture(_) | Kind::Assigned => None,
        }
    }

    /// Has `look` look at the value. Many routes may ask for the same: what would be made anew for each of them is made
    /// once while a route is looked for.
    pub(crate) fn look<T>(&self, stream: &Stream, look: impl FnOnce(Option<&[u8]>) -> T) -> T {
        if let Some(assigned) = self.assigned(stream) {
            return look(Some(assigned));
        }
        let request = &stream.request;
        match &self.kind {
            Kind::RequestHeader(field) => match field.repeated(&request.headers) {
                Some(name) => joined::with(
                    joined::Key::Header(name.clone()),
                    || Some(joined_lines(name, &request.headers)),
                    look,
                ),
                None => look(self.get(stream).as_deref()),
            },
            Kind::Argument(name) => match nginx::sent_query(stream) {
                Some(query) => matcher::with_argument(query, name.as_bytes(), look),
                None => look(None),
            },
            Kind::Body(of_body) => of_body.look_at_text(stream, look),
            _ => look(self.get(stream).as_deref()),
        }
    }

    /// [`Variable::look`] that shows a field of the body as JSON where it is no text.
    pub(crate) fn look_typed<T>(&self, stream: &Stream, look: impl FnOnce(Shown<'_>) -> T) -> T {
        match &self.kind {
            Kind::Body(of_body) if self.assigned(stream).is_none() => of_body.look(stream, look),
            _ => self.look(stream, |text| look(Shown::Text(text))),
        }
    }

    /// Why no value can be found by a name: it holds a JSONPath that is none.
    pub(crate) fn fault(name: &str) -> Option<String> {
        let path = name.strip_prefix("post_arg.").filter(|path| !BodyPath::is_sound(path))?;
        Some(format!("invalid expression \"$.{path}\""))
    }

    /// Appends the value; tells whether there is one.
    pub fn write(&self, stream: &Stream, out: &mut Vec<u8>) -> bool {
        match self.kind {
            Kind::Read(read) if self.assigned(stream).is_none() => read.write(stream, out),
            _ => self.get(stream).map(|value| out.extend_from_slice(&value)).is_some(),
        }
    }

    /// Its name, if it has a value only once a plugin assigns one.
    pub(super) fn unknown(&self) -> Option<&str> {
        matches!(self.kind, Kind::Assigned).then_some(&*self.name)
    }

    fn assigned<'a>(&self, stream: &'a Stream) -> Option<&'a [u8]> {
        if stream.vars.is_empty() { None } else { stream.var(&self.name) }
    }
}

impl Kind {
    fn parse(name: &str) -> Kind {
        if let Some(read) = nginx::find(name) {
            return Kind::Read(read);
        }
        if let Some(value) = nginx::declared(name) {
            return Kind::Declared(value);
        }
        if let Some(of_body) = BodyVariable::parse(name) {
            return Kind::Body(Arc::new(of_body));
        }
        type Prefix = (&'static str, fn(&str) -> Kind);
        const PREFIXES: &[Prefix] = &[
            ("cookie_", |n| Kind::Cookie(n.into())),
            ("arg_", |n| Kind::Argument(n.into())),
            ("uri_param_", |n| Kind::PathParameter(n.into())),
            ("http_", Kind::of_request_header),
            ("sent_http_", |n| Kind::ResponseHeader(Field::new(n))),
            ("upstream_cookie_", |n| Kind::UpstreamCookie(n.into())),
            ("upstream_http_", |n| Kind::UpstreamHeader(Field::new(n))),
            ("sent_trailer_", |n| Kind::ResponseTrailer(Field::new(n))),
        ];
        let found = PREFIXES.iter().find_map(|(prefix, make)| Some(make(name.strip_prefix(prefix)?)));
        found.or_else(|| name.parse().ok().map(Kind::Capture)).unwrap_or(Kind::Assigned)
    }

    fn of_request_header(name: &str) -> Kind {
        match name {
            "x_forwarded_for" => Kind::ForwardedFor,
            "x_real_ip" => Kind::RealIp(Field::new(name)),
            _ => Kind::RequestHeader(Field::new(name)),
        }
    }
}

pub(super) fn some(text: &[u8]) -> Option<&[u8]> {
    (!text.is_empty()).then_some(text)
}

/// X-Forwarded-For without the address that goes on to the upstream; lines of it are joined.
pub fn client_forwarded_for(stream: &Stream) -> Option<Cow<'_, [u8]>> {
    let withheld = stream.request.sent.as_ref().map(|sent| &sent.withheld);
    let withheld = withheld.filter(|withheld| withheld.contains(Known::X_FORWARDED_FOR));
    let headers = withheld.unwrap_or(&stream.request.headers);
    let mut lines = headers.get_all(Known::X_FORWARDED_FOR);
    let first = lines.next()?;
    if lines.next().is_some() {
        let mut joined = Vec::new();
        join(&mut joined, b", ", headers.get_all(Known::X_FORWARDED_FOR));
        return Some(Cow::Owned(joined));
    }
    if !stream.upstream.is_told_of_client {
        return Some(Cow::Borrowed(first));
    }
    let mut own = Vec::new();
    ip(&mut own, stream.remote_ip());
    let Some(sent) = first.strip_suffix(own.as_slice()) else { return Some(Cow::Borrowed(first)) };
    sent.strip_suffix(b", ").map(Cow::Borrowed)
}

/// The first query argument of a name in any case, as it was sent; one without `=` is none (`ngx_http_arg`).
fn sent_argument<'a>(stream: &'a Stream, name: &[u8]) -> Option<&'a [u8]> {
    nginx::sent_query(stream)?.split(|b| *b == b'&').find_map(|pair| {
        let (key, value) = pair.split_at_checked(name.len())?;
        value.strip_prefix(b"=").filter(|_| key.eq_ignore_ascii_case(name))
    })
}

/// The first cookie of a name in any case: up to the next `;`, behind one or a `,`
/// (`ngx_http_parse_multi_header_lines`).
fn sent_cookie<'a>(headers: &'a Headers, name: &[u8]) -> Option<&'a [u8]> {
    headers.get_all(Known::COOKIE).find_map(|line| {
        let mut rest = line;
        loop {
            if let Some((key, value)) = rest.split_at_checked(name.len())
                && key.eq_ignore_ascii_case(name)
                && let Some(value) = blanks_off(value).strip_prefix(b"=")
            {
                return blanks_off(value).split(|b| *b == b';').next();
            }
            let next = memchr::memchr2(b';', b',', rest)?;
            rest = blanks_off(rest.get(next + 1..)?);
        }
    })
}

/// The value of a cookie that a response sets, up to the next `;` (`ngx_http_parse_set_cookie_lines`).
fn set_cookie<'a>(headers: &'a Headers, name: &[u8]) -> Option<Cow<'a, [u8]>> {
    headers.get_all(Known::SET_COOKIE).find_map(|line| {
        let (key, value) = line.split_at_checked(name.len())?;
        let value = blanks_off(value).strip_prefix(b"=").filter(|_| key.eq_ignore_ascii_case(name))?;
        blanks_off(value).split(|b| *b == b';').next().map(Cow::Borrowed)
    })
}

fn blanks_off(text: &[u8]) -> &[u8] {
    text.get(text.iter().take_while(|b| **b == b' ').count()..).unwrap_or_default()
}
