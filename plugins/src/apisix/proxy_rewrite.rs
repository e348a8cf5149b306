//! APISIX's proxy-rewrite: what the upstream gets to see of the request.

use crate::apisix::{self, error_reply};
use crate::shared::header_changes::{HeaderChanges, Side};
use crate::shared::pattern::{Groups, Pattern, Replacement};
use crate::shared::uri::{escape, escape_control};
use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::format::Format;
use sixfold_core::path::settle_target;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::{SENT_ARGS, Stream};

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/proxy-rewrite.json");
    ApisixFactory::new("proxy-rewrite", 1008, schema, ProxyRewrite::build)
}

#[derive(Deserialize)]
struct Config {
    uri: Option<String>,
    regex_uri: Option<Vec<String>>,
    host: Option<String>,
    method: Option<String>,
    #[serde(default)]
    headers: Value,
    use_real_request_uri_unsafe: bool,
}

struct ProxyRewrite {
    uri: Uri,
    host: Option<Vec<u8>>,
    method: Option<http::Method>,
    headers: HeaderChanges,
    /// Forwards the target as the client sent it.
    raw: bool,
}

enum Uri {
    Keep,
    /// Path and, behind a literal `?`, query.
    Template(Format, Option<Format>),
    Regex(Vec<(Pattern, Replacement)>),
}

impl ProxyRewrite {
    fn build(config: Config, _: &BuildContext) -> Built {
        let uri = match (config.uri, config.regex_uri) {
            (Some(uri), _) => {
                let (path, query) = split_template(&uri);
                let query = query.map(apisix::template).transpose().in_key("uri")?;
                Uri::Template(apisix::template(path).in_key("uri")?, query)
            }
            (None, Some(pairs)) => Uri::Regex(regex_pairs(&pairs)?),
            (None, None) => Uri::Keep,
        };
        let invalid = |method: &str| ConfigError::field("method", format!("invalid method '{method}'"));
        let method = config.method.map(|method| method.parse().map_err(|_| invalid(&method)));
        let rewrite = ProxyRewrite {
            uri,
            host: config.host.map(String::into_bytes),
            method: method.transpose()?,
            headers: HeaderChanges::new(&config.headers).in_key("headers")?,
            raw: config.use_real_request_uri_unsafe,
        };
        Ok(Plugin::of(rewrite).rewrite(ProxyRewrite::rewrite).build())
    }

    /// The path as the upstream gets it, not yet escaped, with the query that the configuration adds, and the
    /// groups that headers may use.
    fn rewritten(&self, uri: &[u8], stream: &Stream) -> Result<Rewritten, String> {
        let mut rewritten = Rewritten { path: uri.to_vec(), query: None, groups: Vec::new() };
        match &self.uri {
            Uri::Keep => {}
            Uri::Template(path, query) => {
                // One that a template has begins the query; any other is a variable's, and APISIX escapes it twice.
                rewritten.path = escape_question_marks(apisix::value(path, stream));
                rewritten.query = query.as_ref().map(|q| apisix::value(q, stream));
            }
            Uri::Regex(pairs) => {
                for (pattern, replacement) in pairs {
                    let Some(groups) = pattern.find(uri, 0)? else { continue };
                    let mut path = pattern.replace(uri, replacement, false)?.unwrap_or_default();
                    // A question mark that the client's path did not have is the replacement's.
                    if !uri.contains(&b'?')
                        && let Some(at) = path.iter().position(|b| *b == b'?')
                    {
                        rewritten.query = Some(path.split_off(at).split_off(1));
                    }
                    rewritten.path = path;
                    rewritten.groups = groups;
                    break;
                }
            }
        }
        Ok(rewritten)
    }
}

/// `%3F` in the place of each.
fn escape_question_marks(path: Vec<u8>) -> Vec<u8> {
    if !path.contains(&b'?') {
        return path;
    }
    path.split(|byte| *byte == b'?').collect::<Vec<_>>().join(&b"%3F"[..])
}

struct Rewritten {
    path: Vec<u8>,
    query: Option<Vec<u8>>,
    groups: Groups,
}

impl ProxyRewrite {
    /// Whether the target goes on as it is. A path that was decoded goes out encoded anew, whatever else is rewritten.
    fn keeps_target(&self, stream: &Stream) -> bool {
        matches!(self.uri, Uri::Keep) && !self.raw && stream.var("uri").is_none()
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if self.keeps_target(stream) {
            self.finish(stream, &[], &[]);
            return Step::Continue;
        }
        keep_variables(stream);
        let subject = if self.raw { "real_request_uri" } else { "uri" };
        let uri = stream.var(subject).unwrap_or_default().to_vec();
        let rewritten = match self.rewritten(&uri, stream) {
            Ok(rewritten) => rewritten,
            Err(error) => return Step::Respond(error_reply(500, &error)),
        };
        let mut target = if self.raw { rewritten.path } else { escape(&rewritten.path) };
        if let Some(query) = &rewritten.query {
            target.push(b'?');
            target.extend_from_slice(&escape_control(query));
        }
        // A target as the client sent it brings its query along, unless a template has replaced it.
        let brings_query = self.raw && !matches!(self.uri, Uri::Template(..));
        let args = stream.request.target.query().filter(|q| !q.is_empty() && !brings_query);
        if let Some(args) = args {
            target.push(if target.contains(&b'?') { b'&' } else { b'?' });
            target.extend_from_slice(args);
        }
        stream.request.target.set(&target);
        settle_target(stream);
        stream.set_var("upstream_uri", target);
        self.finish(stream, &uri, &rewritten.groups);
        Step::Continue
    }

    fn finish(&self, stream: &mut Stream, uri: &[u8], groups: &[Option<std::ops::Range<usize>>]) {
        let groups: Vec<Option<&[u8]>> = groups.iter().map(|g| g.clone().and_then(|r| uri.get(r))).collect();
        if let Some(host) = &self.host {
            stream.set_var("upstream_host", host.clone());
        }
        self.headers.apply(stream, Side::Request, &groups);
        if let Some(method) = &self.method {
            let sent = std::mem::replace(&mut stream.request.method, method.clone());
            stream.request.sent.get_or_insert_default().method.get_or_insert(sent);
        }
    }
}

/// Later plugins, logs and metrics go on to see the client's target in their variables.
fn keep_variables(stream: &mut Stream) {
    let target = stream.request.target.full().to_vec();
    let sent = if stream.original_target.is_empty() { &target } else { &stream.original_target }.clone();
    let path = stream.request.target.path().to_vec();
    let args = stream.request.target.query().unwrap_or_default().to_vec();
    for (name, value) in
        [("uri", path), ("request_uri", sent.clone()), ("real_request_uri", sent), (SENT_ARGS, args)]
    {
        if stream.var(name).is_none() {
            stream.set_var(name, value);
        }
    }
}

/// Splits at the first `?` outside of `${…}`, which may hold one.
fn split_template(text: &str) -> (&str, Option<&str>) {
    let mut depth = 0;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '?' if depth == 0 => return (&text[..at], text.get(at + 1..)),
            _ => {}
        }
        before = c;
    }
    (text, None)
}

fn regex_pairs(pairs: &[String]) -> Result<Vec<(Pattern, Replacement)>, ConfigError> {
    let odd = || ConfigError::field("regex_uri", "The length of regex_uri should be an even number");
    if !pairs.len().is_multiple_of(2) {
        return Err(odd());
    }
    let pair = |(index, pair): (usize, &[String])| match pair {
        [pattern, with] => {
            let invalid = |e| ConfigError::new(format!("invalid regex_uri({pattern}, {with}): {e}"));
            let both = Pattern::new(pattern, "jo").and_then(|it| Ok((it, Replacement::checked(with)?)));
            both.map_err(invalid).in_index(2 * index).in_key("regex_uri")
        }
        _ => Err(odd()),
    };
    collect(pairs.chunks(2).enumerate().map(pair))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{build, context, now, plugin, request_header, stream};
    use serde_json::json;

    #[allow(clippy::needless_pass_by_value)]
    fn target(config: Value, from: &str) -> String {
        let mut s = stream(from, &[("x-a", "1?2")]);
        assert!(now(plugin("proxy-rewrite", &config).rewrite(&mut s)).is_none());
        String::from_utf8(s.request.target.full().to_vec()).unwrap()
    }

    #[test]
    fn targets_are_rewritten() {
        for (config, from, expected) in [
            (json!({"uri": "/new"}), "/old", "/new"),
            (json!({"uri": "/new"}), "/old?a=1", "/new?a=1"),
            (json!({"uri": "/new?b=2"}), "/old?a=1", "/new?b=2&a=1"),
            (json!({"uri": "/new$uri"}), "/old?a=1", "/new/old?a=1"),
            (json!({"uri": "/${arg_a ?? none}"}), "/old", "/none"),
            (json!({"uri": "/p/$http_x_a"}), "/old", "/p/1%253F2"),
            (json!({"uri": "/a b"}), "/old", "/a%20b"),
            (json!({"regex_uri": ["^/a/(.*)/(.*)", "/$2/$1"]}), "/a/b/c?x=1", "/c/b?x=1"),
            (json!({"regex_uri": ["^/a/(.*)", "/?id=$1"]}), "/a/b?x=1", "/?id=b&x=1"),
            (json!({"regex_uri": ["^/x", "/1", "^/a", "/2"]}), "/ab", "/2b"),
            (json!({"regex_uri": ["^/x", "/1"]}), "/ab?c", "/ab?c"),
            (json!({"uri": "/u", "regex_uri": ["^/a", "/2"]}), "/ab", "/u"),
            (json!({"headers": {"a": "b"}}), "/keep/%2F?q", "/keep/%2F?q"),
        ] {
            assert_eq!(target(config.clone(), from), expected, "{config} {from}");
        }
    }

    /// As they reach the upstream through APISIX.
    #[test]
    fn paths_that_were_decoded_are_encoded_anew() {
        let mut s = stream("/a_b%20c?q=%5F", &[]);
        s.original_target = b"/a%5Fb%20c?q=%5F".to_vec();
        s.set_var("uri", "/a_b c");
        now(plugin("proxy-rewrite", &json!({"host": "a.test"})).rewrite(&mut s));
        assert_eq!(s.request.target.full(), b"/a_b%20c?q=%5F");
        assert_eq!(s.var("upstream_uri"), Some(&b"/a_b%20c?q=%5F"[..]));
    }

    #[test]
    fn raw_targets_are_forwarded_as_they_came() {
        let raw = plugin("proxy-rewrite", &json!({"use_real_request_uri_unsafe": true}));
        let mut s = stream("/a/c?x=1", &[]);
        s.original_target = b"/a/b/../c?x=1".to_vec();
        now(raw.rewrite(&mut s));
        assert_eq!(s.request.target.full(), b"/a/b/../c?x=1");
    }

    /// The query was there twice: the expression had kept it in what it rewrote.
    #[test]
    fn raw_targets_keep_one_query_when_an_expression_rewrites_them() {
        let raw = |pattern: &str, with: &str| json!({"use_real_request_uri_unsafe": true, "regex_uri": [pattern, with]});
        assert_eq!(target(raw("^/a/(.*)", "/b/$1"), "/a/c%2Fd?x=1"), "/b/c%2Fd?x=1");
        assert_eq!(target(raw("^/none", "/b"), "/a?x=1"), "/a?x=1");
        assert_eq!(target(raw("^/a/([^?]*).*", "/b/$1"), "/a/c?x=1"), "/b/c");
        let template = json!({"use_real_request_uri_unsafe": true, "uri": "/t"});
        assert_eq!(target(template, "/a?x=1"), "/t?x=1");
    }

    #[test]
    fn variables_keep_the_clients_target() {
        let mut s = stream("/old?a=1", &[]);
        now(plugin("proxy-rewrite", &json!({"uri": "/new"})).rewrite(&mut s));
        let get =
            |text: &str| String::from_utf8(apisix::value(&apisix::template(text).unwrap(), &s)).unwrap();
        assert_eq!(
            get("$uri $document_uri $request_uri $args $upstream_uri"),
            "/old /old /old?a=1 a=1 /new?a=1"
        );
        // The arguments were those of the new target.
        let mut s = stream("/old", &[]);
        let config = json!({"uri": "/new?k=1", "method": "PUT"});
        now(plugin("proxy-rewrite", &config).rewrite(&mut s));
        let get =
            |text: &str| String::from_utf8(apisix::value(&apisix::template(text).unwrap(), &s)).unwrap();
        assert_eq!(get("[$args$is_args$arg_k] $request $request_method"), "[] GET /old HTTP/1.1 PUT");
    }

    #[test]
    fn host_method_and_headers_change() {
        let config = json!({
            "host": "up.test:81", "method": "POST", "regex_uri": ["^/(\\w+)/(\\w*)", "/$2"],
            "headers": {"add": {"x-add": ["1", "$1-$http_x_a"]}, "set": {"X-Set": "$arg_none", "x-a": 7}, "remove": ["x-gone"]},
        });
        let mut s = stream("/one/two", &[("x-a", "a"), ("x-add", "0"), ("x-set", "old"), ("x-gone", "y")]);
        now(plugin("proxy-rewrite", &config).rewrite(&mut s));
        assert_eq!((s.var("upstream_host"), s.request.method.as_str()), (Some(&b"up.test:81"[..]), "POST"));
        let added: Vec<_> = s.request.headers.get_all("x-add").collect();
        assert_eq!(added, [b"0".as_slice(), b"1", b"one-a"]);
        assert_eq!(request_header(&s, "x-a"), Some("7"));
        assert_eq!((request_header(&s, "x-set"), request_header(&s, "x-gone")), (None, None));
    }

    #[test]
    fn the_old_form_of_headers_sets() {
        let config = json!({"headers": {"X-Api": "v$arg_v", "x-empty": "", "host": "h.test", "x-n": 10}});
        let mut s = stream("/?v=2", &[("x-empty", "there"), ("x-api", "1")]);
        now(plugin("proxy-rewrite", &config).rewrite(&mut s));
        assert_eq!((request_header(&s, "x-api"), request_header(&s, "x-n")), (Some("v2"), Some("10")));
        assert_eq!((request_header(&s, "x-empty"), s.var("upstream_host")), (None, Some(&b"h.test"[..])));
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("proxy-rewrite", &config, &context()).err().unwrap();
        assert_eq!(
            error(json!({"regex_uri": ["a"]})),
            "regex_uri: The length of regex_uri should be an even number"
        );
        // No fault of the values named their field.
        let second = error(json!({"regex_uri": ["a", "b", "(", "a"]}));
        assert!(second.starts_with("regex_uri[2]: invalid regex_uri((, a): "), "{second}");
        assert_eq!(
            error(json!({"headers": {"a b": "1"}})),
            "headers.a b: invalid field character in header 'a b'"
        );
        let set = error(json!({"headers": {"set": {"ok": "1", "a": "1\n"}}}));
        assert_eq!(set, "headers.set.a: invalid value character in header");
        assert_eq!(
            error(json!({"headers": {"a": "1\r\n2"}})),
            "headers.a: invalid value character in header"
        );
        assert_eq!(error(json!({"headers": {"": "1"}})), "headers.: invalid field length in header");
    }
}
