//! Header maps: pseudo-headers among the fields, as Envoy has them.

use super::{Args, Host, Op, Side};
use mlua::{Error, LuaString, MultiValue, Value};
use sixfold_core::headers::{HeaderName, Headers};
use sixfold_core::message::{Method, Scheme};
use sixfold_core::stream::Stream;

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
        let Ok(name) = HeaderName::new(name) else {
            return Err(Error::runtime(format!("\"{name}\" is no header name")));
        };
        if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return Err(Error::runtime("a header value must not have a line break or NUL in it"));
        }
        let headers = of.headers_mut(self.stream);
        match op {
            Op::HeaderRemove => {
                headers.remove(&name);
            }
            Op::HeaderReplace => headers.set(&name, &value),
            _ => headers.append(&name, &value),
        }
        Ok(())
    }

    fn set_pseudo(&mut self, of: Fields, name: &str, value: &[u8]) -> mlua::Result<()> {
        let wrong = || Error::runtime(format!("no value for {name}: \"{}\"", String::from_utf8_lossy(value)));
        let request = &mut self.stream.request;
        match (of, name) {
            (Fields::Request, ":path") if value.starts_with(b"/") || value == b"*" => {
                request.target.set(value)
            }
            (Fields::Request, ":method") => {
                request.method = Method::from_bytes(value).map_err(|_| wrong())?
            }
            (Fields::Request, ":authority" | "host") if !value.is_empty() => {
                request.authority = value.to_vec()
            }
            (Fields::Request, ":scheme") => request.scheme = Scheme::parse(value).ok_or_else(wrong)?,
            (Fields::Response, ":status") => self.stream.response.status = status(value).ok_or_else(wrong)?,
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// A status of a final response.
pub(super) fn status(value: &[u8]) -> Option<u16> {
    std::str::from_utf8(value).ok()?.parse().ok().filter(|status| (200..600).contains(status))
}
