//! Header maps: pseudo-headers among the fields, as Envoy has them.

use super::{Args, Host, Op, Side};
use mlua::{Error, LuaString, MultiValue, Value};
use sixfold_core::headers::{Headers, Known, has_blank, is_clean, is_token};
use sixfold_core::message::{Method, RequestHead, Scheme};
use sixfold_core::stream::Stream;

/// Bytes of a name that headers keep.
const LONGEST_NAME: usize = u16::MAX as usize;

/// Which fields an object of a script stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Fields {
    Request,
    Response,
    RequestTrailers,
    ResponseTrailers,
}

impl Fields {
    fn of(number: u8) -> mlua::Result<Fields> {
        let all = [Fields::Request, Fields::Response, Fields::RequestTrailers, Fields::ResponseTrailers];
        all.get(usize::from(number)).copied().ok_or_else(|| Error::runtime("no such headers"))
    }

    fn headers(self, stream: &Stream) -> &Headers {
        match self {
            Fields::Request => &stream.request.headers,
            Fields::Response => &stream.response.headers,
            Fields::RequestTrailers => &stream.request_trailers,
            Fields::ResponseTrailers => &stream.response_trailers,
        }
    }

    fn headers_mut(self, stream: &mut Stream) -> &mut Headers {
        match self {
            Fields::Request => &mut stream.request.headers,
            Fields::Response => &mut stream.response.headers,
            Fields::RequestTrailers => &mut stream.request_trailers,
            Fields::ResponseTrailers => &mut stream.response_trailers,
        }
    }

    /// The pseudo-headers, and `host`, which is one of them.
    fn pseudo(self, stream: &Stream) -> Vec<(&'static str, Vec<u8>)> {
        let request = &stream.request;
        match self {
            Fields::Request => vec![
                (":authority", request.authority.clone()),
                (":path", request.target.full().to_vec()),
                (":method", request.method.as_str().as_bytes().to_vec()),
                (":scheme", request.scheme.as_str().as_bytes().to_vec()),
            ],
            Fields::Response => vec![(":status", stream.response.status.to_string().into_bytes())],
            Fields::RequestTrailers | Fields::ResponseTrailers => Vec::new(),
        }
    }

    fn values(self, name: &str, stream: &Stream) -> Vec<Vec<u8>> {
        let name = if name == "host" && self == Fields::Request { ":authority" } else { name };
        if name.starts_with(':') {
            let found = self.pseudo(stream).into_iter().find(|(pseudo, _)| *pseudo == name);
            return found.map(|(_, value)| value).filter(|value| !value.is_empty()).into_iter().collect();
        }
        self.headers(stream).get_all(name).map(<[u8]>::to_vec).collect()
    }
}

impl Host<'_> {
    pub(super) fn header(&mut self, op: Op, args: &mut Args<'_>) -> mlua::Result<MultiValue> {
        let of = Fields::of(args.next()?)?;
        if op == Op::HeaderAll {
            return self.all(of, args);
        }
        let name: LuaString = args.next()?;
        let name = String::from_utf8_lossy(&name.as_bytes()).to_ascii_lowercase();
        let value = match op {
            Op::HeaderGet => {
                let values = of.values(&name, self.stream);
                if values.is_empty() {
                    Value::Nil
                } else {
                    Value::String(args.lua.create_string(values.join(&b","[..]))?)
                }
            }
            Op::HeaderAt => {
                let index: i64 = args.next()?;
                let values = of.values(&name, self.stream);
                let found = usize::try_from(index).ok().and_then(|index| values.get(index));
                match found.filter(|value| !value.is_empty()) {
                    Some(value) => Value::String(args.lua.create_string(value)?),
                    None => Value::Nil,
                }
            }
            Op::HeaderCount => Value::Number(of.values(&name, self.stream).len() as f64),
            _ => {
                self.change(op, of, &name, args)?;
                Value::Nil
            }
        };
        Ok(MultiValue::from_iter([value]))
    }

    fn all(&self, of: Fields, args: &Args<'_>) -> mlua::Result<MultiValue> {
        let list = args.lua.create_table()?;
        for (name, value) in of.pseudo(self.stream) {
            if !value.is_empty() {
                list.push(name)?;
                list.push(args.lua.create_string(value)?)?;
            }
        }
        for (name, value) in of.headers(self.stream).iter() {
            list.push(args.lua.create_string(name.to_ascii_lowercase())?)?;
            list.push(args.lua.create_string(value)?)?;
        }
        Ok(MultiValue::from_iter([Value::Table(list)]))
    }

    fn change(&mut self, op: Op, of: Fields, name: &str, args: &mut Args<'_>) -> mlua::Result<()> {
        let is_head = matches!(of, Fields::Request | Fields::Response);
        if is_head && !self.head_is_here {
            return Err(Error::runtime("header map can no longer be modified"));
        }
        let value: Option<LuaString> = args.next()?;
        let value = value.map(|value| value.as_bytes().to_vec()).unwrap_or_default();
        if self.side == Side::Request && of == Fields::Request {
            self.clear_route |= self.script.clears_route;
        }
        if name.starts_with(':') || (name == "host" && of == Fields::Request) {
            return if op == Op::HeaderRemove { Ok(()) } else { self.set_pseudo(of, name, &value) };
        }
        let frames = of == Fields::Response && Known::find(name.as_bytes()).is_some_and(Known::frames);
        let headers = of.headers_mut(self.stream);
        match op {
            // Whatever a script says of the length, the body may have another one: it goes on without.
            Op::HeaderAdd | Op::HeaderReplace if name == Known::CONTENT_LENGTH.as_str() && frames => {
                headers.remove(Known::CONTENT_LENGTH);
            }
            Op::HeaderAdd | Op::HeaderReplace if frames => {}
            Op::HeaderAdd => add(headers, name, &value),
            Op::HeaderReplace if name.len() <= LONGEST_NAME => headers.set(name, &value),
            Op::HeaderReplace => add(headers, name, &value),
            _ => {
                headers.remove(name);
            }
        }
        // With a request's such a field stays, and it does not go on.
        if of != Fields::Request {
            headers.retain(|_, name, value| is_token(name) && is_clean(value));
        }
        Ok(())
    }

    fn set_pseudo(&mut self, of: Fields, name: &str, value: &[u8]) -> mlua::Result<()> {
        let wrong = || Error::runtime(format!("no value for {name}: \"{}\"", String::from_utf8_lossy(value)));
        match (of, name) {
            (Fields::Request, _) => set_line(&mut self.stream.request, name, value),
            (Fields::Response, ":status") => self.stream.response.status = status(value).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// Sets a part of a request's line. What can't be one stays among the headers, where it is none either: such a request does not
/// go on.
fn set_line(request: &mut RequestHead, name: &str, value: &[u8]) {
    let kept = if name == "host" { ":authority" } else { name };
    request.headers.remove(kept);
    match (name, Method::from_bytes(value), Scheme::parse(value)) {
        (":path", ..) if is_target(value) => request.target.set(value),
        (":method", Ok(method), _) if method != Method::CONNECT || request.method == method => {
            request.method = method;
        }
        (":authority" | "host", ..) if !value.is_empty() && !has_blank(value) => {
            request.authority = value.to_vec();
        }
        (":scheme", _, Some(scheme)) => request.scheme = scheme,
        _ => add(&mut request.headers, kept, value),
    }
}

fn is_target(value: &[u8]) -> bool {
    (value.starts_with(b"/") || value == b"*") && !has_blank(value)
}

/// Adds a field, also one that no header can hold, which is not written.
pub(super) fn add(headers: &mut Headers, name: &str, value: &[u8]) {
    headers.append(if name.len() > LONGEST_NAME { "" } else { name }, value);
}

/// The first field that no header can hold.
pub(crate) fn unwritable(headers: &Headers) -> Option<String> {
    let mut fields = headers.iter().zip(headers.lines());
    fields.find(|(_, line)| !line.sound).map(|((name, _), _)| String::from_utf8_lossy(name).into_owned())
}

/// A status of a final response.
pub(super) fn status(value: &[u8]) -> Option<u16> {
    std::str::from_utf8(value).ok()?.parse().ok().filter(|status| (200..600).contains(status))
}
