//! APISIX's redirect: sends clients elsewhere.

#[cfg(test)]
mod tests;

use crate::shared::pattern::{Pattern, Replacement};
use crate::shared::uri;
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::ConfigError;
use sixfold_core::format::Variable;
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("redirect", 900, include_str!("../../schemas/redirect.json"), Redirect::build)
}

#[derive(Deserialize)]
struct Config {
    ret_code: u16,
    uri: Option<String>,
    regex_uri: Option<Vec<String>>,
    #[serde(default)]
    http_to_https: bool,
    encode_uri: bool,
    append_query_string: bool,
}

struct Redirect {
    code: u16,
    target: Target,
    /// `$args`
    query: Option<Variable>,
    encodes: bool,
    location: HeaderName,
}

enum Target {
    Nowhere,
    /// The same over TLS, at one of these ports.
    Https {
        host: Variable,
        request_uri: Variable,
        ports: Arc<[u16]>,
    },
    Template(Vec<Part>),
    Regex {
        path: Variable,
        pattern: Pattern,
        with: Replacement,
    },
}

/// A part of a `uri`.
#[derive(Debug)]
enum Part {
    Text(Vec<u8>),
    Variable(Variable),
}

impl Redirect {
    fn build(config: Config, context: &BuildContext) -> Built {
        if config.http_to_https && config.append_query_string {
            let reason = "only one of `http_to_https` and `append_query_string` can be configured.";
            return Err(ConfigError::new(reason));
        }
        let variable = Variable::parse;
        let target = match (config.uri, config.regex_uri.as_deref()) {
            (Some(uri), _) => Target::Template(parts(&uri)),
            (None, Some([pattern, with])) => {
                let reason = |e| format!("invalid regex_uri ({pattern}, {with}), err:{e}");
                let invalid = |e| ConfigError::field("regex_uri", reason(e));
                let pattern = Pattern::new(pattern, "jo").map_err(invalid)?;
                let with = Replacement::checked(with).map_err(invalid)?;
                Target::Regex { path: variable("uri"), pattern, with }
            }
            _ if config.http_to_https => Target::Https {
                host: variable("host"),
                request_uri: variable("request_uri"),
                ports: ports(context),
            },
            _ => Target::Nowhere,
        };
        let redirect = Redirect {
            code: config.ret_code,
            target,
            query: config.append_query_string.then(|| variable("args")),
            encodes: config.encode_uri,
            location: HeaderName::as_spelled("Location").map_err(|e| ConfigError::new(e.to_string()))?,
        };
        Ok(Plugin::of(redirect).rewrite(Redirect::rewrite).build())
    }

    /// Where the request is sent to, and with which status; `None` lets it pass.
    fn answer(&self, stream: &Stream) -> Result<Option<(u16, Vec<u8>)>, String> {
        let (mut code, mut out) = (self.code, Vec::new());
        match &self.target {
            Target::Nowhere => return Ok(None),
            Target::Https { .. } if is_secure(stream) => return Ok(None),
            Target::Https { host, request_uri, ports } => {
                out.extend_from_slice(b"https://");
                host.write(stream, &mut out);
                if let Some(port) =
                    ports.get(fastrand::usize(..ports.len().max(1))).filter(|port| **port != 443)
                {
                    out.push(b':');
                    out.extend_from_slice(itoa::Buffer::new().format(*port).as_bytes());
                }
                request_uri.write(stream, &mut out);
                let safe = matches!(stream.request.method, http::Method::GET | http::Method::HEAD);
                // The others must come again as they are (RFC 9110, 15.4.9).
                code = if safe { 301 } else { 308 };
            }
            Target::Template(parts) => {
                for part in parts {
                    match part {
                        Part::Text(text) => out.extend_from_slice(text),
                        Part::Variable(variable) => _ = variable.write(stream, &mut out),
                    }
                }
            }
            Target::Regex { path, pattern, with } => {
                let path = path.get(stream).unwrap_or_default();
                let Some(new) = pattern.replace(&path, with, false)? else { return Ok(None) };
                out = new;
            }
        }
        Ok(Some((code, self.finish(stream, out))))
    }

    fn finish(&self, stream: &Stream, mut target: Vec<u8>) -> Vec<u8> {
        let query_at = memchr::memchr(b'?', &target);
        if self.encodes {
            let query = target.split_off(query_at.unwrap_or(target.len()));
            target = uri::escape(&target);
            target.extend_from_slice(&query);
        }
        if let Some(args) = self.query.as_ref().and_then(|query| query.get(stream)) {
            target.push(if query_at.is_some() { b'&' } else { b'?' });
            target.extend_from_slice(&args);
        }
        uri::escape_line_ends(target)
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        match self.answer(stream) {
            Ok(None) => Step::Continue,
            Ok(Some((code, location))) => {
                let mut reply = LocalReply::new(code, "", "");
                if !location.is_empty() {
                    reply.headers.set(&self.location, &location);
                }
                Step::Respond(reply)
            }
            Err(error) => {
                tracing::error!(error, "redirect can't substitute the uri");
                Step::Respond(LocalReply::new(500, "", ""))
            }
        }
    }
}

/// Whether the client has come by TLS, as far as those say who are trusted to.
fn is_secure(stream: &Stream) -> bool {
    let told = stream.request.headers.get(Known::X_FORWARDED_PROTO);
    told.unwrap_or_else(|| stream.request.scheme.as_str().as_bytes()) == b"https"
}

/// Ports of TLS that a client is sent to: that of the plugin's attributes, else those that the gateway listens on.
fn ports(context: &BuildContext) -> Arc<[u16]> {
    match context.attributes.get("https_port").and_then(Value::as_i64) {
        Some(port) => u16::try_from(port).ok().filter(|port| *port > 0).into_iter().collect(),
        None => context.tls_ports.clone(),
    }
}

/// `$name`, `${name}` and text; `\$name` is text, backslash and all, and another backslash is nothing, as APISIX reads
/// them.
fn parts(text: &str) -> Vec<Part> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut parts, mut plain, mut rest) = (Vec::new(), Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let (escaped, behind) = match first {
            '\\' => (true, rest.strip_prefix("\\$")),
            _ => (false, rest.strip_prefix('$')),
        };
        let inner = behind.and_then(|behind| behind.strip_prefix('{')).filter(|_| !escaped);
        let braced = inner.is_some();
        let name = inner.or(behind).and_then(|text| {
            // No further than it goes: the text may begin many of them.
            let (name, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
            (!name.is_empty() && (!braced || rest.starts_with('}'))).then_some(name)
        });
        let len = match name {
            Some(name) if escaped => name.len() + 2,
            Some(name) if braced => name.len() + 3,
            Some(name) => name.len() + 1,
            None => first.len_utf8(),
        };
        let (this, next) = rest.split_at(len);
        match (name, first) {
            (Some(name), '$') => {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Variable(Variable::parse(name)));
            }
            (None, '\\') => {}
            _ => plain.extend_from_slice(this.as_bytes()),
        }
        rest = next;
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    parts
}
