//! Variables of an expression, by the names APISIX gives them.

use crate::stream::Stream;
use std::borrow::Cow;

#[derive(Debug)]
pub(super) struct Variable {
    name: Box<str>,
}

impl Variable {
    pub(super) fn parse(name: &str) -> Variable {
        Variable { name: name.into() }
    }

    pub(super) fn get<'a>(&self, stream: &'a Stream) -> Option<Cow<'a, [u8]>> {
        let head = &stream.request;
        if let Some(value) = stream.var(&self.name) {
            return Some(value.into());
        }
        if let Some(name) = self.name.strip_prefix("http_") {
            if name == "host" {
                return Some(head.authority.as_slice().into());
            }
            return head.headers.get(name.replace('_', "-").as_str()).map(Cow::Borrowed);
        }
        if let Some(name) = self.name.strip_prefix("arg_") {
            let value = crate::matcher::parameter(head.target.query()?, name.as_bytes())?;
            return Some(percent_encoding::percent_decode(value).into());
        }
        if let Some(name) = self.name.strip_prefix("cookie_") {
            return crate::matcher::cookie(&head.headers, name.as_bytes()).map(Cow::Borrowed);
        }
        Some(match &*self.name {
            "uri" => head.target.path().into(),
            "request_uri" => head.target.full().into(),
            "args" | "query_string" => head.target.query()?.into(),
            "host" => head.host().into(),
            "method" | "request_method" => head.method.as_str().as_bytes().into(),
            "scheme" => head.scheme.as_str().as_bytes().into(),
            "remote_addr" => stream.remote_ip().to_string().into_bytes().into(),
            "remote_port" => stream.remote.port().to_string().into_bytes().into(),
            "server_port" => stream.connection.local.port().to_string().into_bytes().into(),
            _ => return None,
        })
    }
}
