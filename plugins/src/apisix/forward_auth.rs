//! APISIX's forward-auth: a service decides whether a request may pass.

use crate::apisix::{self, Made};
use bytes::Bytes;
use serde::Deserialize;
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::plugin::{
    BuildContext, Callout, CalloutRequest, CalloutResponse, Keepalive, LocalReply, Phases, Plugin,
    PluginFactory, Step,
};
use sixfold_core::stream::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn factory() -> Arc<dyn PluginFactory> {
    apisix::apisix("forward-auth", 2002, include_str!("../../schemas/forward-auth.json"), ForwardAuth::make)
}

/// Bytes of the service's answer that are read.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(default)]
struct Config {
    uri: String,
    allow_degradation: bool,
    status_on_error: u16,
    ssl_verify: bool,
    request_method: String,
    max_req_body_size: usize,
    request_headers: Vec<String>,
    extra_headers: BTreeMap<String, serde_json::Value>,
    upstream_headers: Vec<String>,
    client_headers: Vec<String>,
    timeout: u64,
    keepalive: bool,
    keepalive_timeout: u64,
    keepalive_pool: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            uri: String::new(),
            allow_degradation: false,
            status_on_error: 403,
            ssl_verify: true,
            request_method: "GET".to_owned(),
            max_req_body_size: 64 << 20,
            request_headers: Vec::new(),
            extra_headers: BTreeMap::new(),
            upstream_headers: Vec::new(),
            client_headers: Vec::new(),
            timeout: 3000,
            keepalive: true,
            keepalive_timeout: 60_000,
            keepalive_pool: 5,
        }
    }
}

struct ForwardAuth {
    callout: Arc<dyn Callout>,
    uri: Format,
    post: bool,
    degrades: bool,
    status_on_error: u16,
    verify_tls: bool,
    max_body: usize,
    request_headers: Vec<HeaderName>,
    extra_headers: Vec<(HeaderName, Format)>,
    upstream_headers: Vec<HeaderName>,
    client_headers: Vec<HeaderName>,
    timeout: Duration,
    keepalive: Option<Keepalive>,
}

impl ForwardAuth {
    fn make(config: Config, context: &BuildContext) -> Made {
        let scheme = config.uri.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if !matches!(scheme.as_deref(), Some("http" | "https")) && !config.uri.starts_with('$') {
            return Err(format!("uri '{}' is neither http nor https", config.uri));
        }
        let extra = config.extra_headers.into_iter().map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Ok((name(&key)?, apisix::template(&text)?))
        });
        Ok(Arc::new(ForwardAuth {
            callout: context.callout.clone(),
            uri: apisix::template(&config.uri)?,
            post: config.request_method == "POST",
            degrades: config.allow_degradation,
            status_on_error: config.status_on_error,
            verify_tls: config.ssl_verify,
            max_body: config.max_req_body_size,
            request_headers: names(&config.request_headers)?,
            extra_headers: extra.collect::<Result<_, String>>()?,
            upstream_headers: names(&config.upstream_headers)?,
            client_headers: names(&config.client_headers)?,
            timeout: Duration::from_millis(config.timeout),
            keepalive: config.keepalive.then_some(Keepalive {
                idle: Duration::from_millis(config.keepalive_timeout),
                connections: config.keepalive_pool,
            }),
        }))
    }

    fn request(&self, stream: &Stream) -> CalloutRequest {
        let head = &stream.request;
        let mut headers = Headers::new();
        headers.set("x-forwarded-proto", head.scheme.as_str().as_bytes());
        headers.set("x-forwarded-method", head.method.as_str().as_bytes());
        headers.set("x-forwarded-host", head.host());
        let sent = match stream.original_target.as_slice() {
            [] => head.target.full(),
            original => original,
        };
        headers.set("x-forwarded-uri", stream.var("request_uri").unwrap_or(sent));
        headers.set("x-forwarded-for", stream.remote_ip().to_string().as_bytes());
        let mut body = Bytes::new();
        if self.post {
            body = stream.request_body.clone().unwrap_or_default();
            if let Some(encoding) = head.headers.get(Known::CONTENT_ENCODING) {
                headers.set(Known::CONTENT_ENCODING, encoding);
            }
        }
        for (name, format) in &self.extra_headers {
            headers.set(name, &apisix::value(format, stream));
        }
        for name in &self.request_headers {
            if !headers.contains(name) {
                for value in head.headers.get_all(name) {
                    headers.append(name, value);
                }
            }
        }
        CalloutRequest {
            uri: String::from_utf8_lossy(&apisix::value(&self.uri, stream)).into_owned(),
            method: if self.post { http::Method::POST } else { http::Method::GET },
            headers,
            body,
            timeout: self.timeout,
            verify_tls: self.verify_tls,
            max_body: MAX_ANSWER,
            keepalive: self.keepalive,
        }
    }

    fn refusal(&self, answer: CalloutResponse) -> LocalReply {
        let mut reply = LocalReply::new(answer.status, answer.body, "");
        for name in &self.client_headers {
            for value in answer.headers.get_all(name) {
                reply.headers.append(name, value);
            }
        }
        reply
    }

    /// What the upstream is told of the service's answer; what the answer lacks the client must not claim.
    fn pass_on(&self, answer: &CalloutResponse, stream: &mut Stream) {
        for name in &self.upstream_headers {
            stream.request.headers.remove(name);
            for value in answer.headers.get_all(name) {
                stream.request.headers.append(name, value);
            }
        }
    }
}

impl Plugin for ForwardAuth {
    fn name(&self) -> &str {
        "forward-auth"
    }

    fn phases(&self) -> Phases {
        Phases::ACCESS
    }

    fn buffers_request(&self) -> Option<usize> {
        self.post.then_some(self.max_body)
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        let asked = self.callout.send(self.request(stream));
        Step::Wait(Box::pin(async move {
            match asked.await {
                Ok(answer) if answer.status >= 300 => Step::Respond(self.refusal(answer)),
                Ok(answer) => {
                    self.pass_on(&answer, stream);
                    Step::Continue
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to process forward auth");
                    match self.degrades {
                        true => Step::Continue,
                        false => Step::Respond(LocalReply::new(self.status_on_error, "", "")),
                    }
                }
            }
        }))
    }
}

fn name(text: &str) -> Result<HeaderName, String> {
    HeaderName::as_spelled(text).map_err(|e| e.to_string())
}

fn names(texts: &[String]) -> Result<Vec<HeaderName>, String> {
    texts.iter().map(|text| name(text)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{build, context, context_with, finish, request_header, stream};
    use serde_json::json;

    fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> CalloutResponse {
        let mut block = Headers::new();
        for (name, value) in headers {
            block.push(name.as_bytes(), value.as_bytes());
        }
        CalloutResponse { status, headers: block, body: body.into() }
    }

    #[tokio::test]
    async fn the_service_sees_what_it_is_told_and_no_more() {
        let (context, service) = context_with(Some(answer(200, &[("x-user", "jack")], "")));
        let config = json!({
            "uri": "http://auth.test/check", "request_headers": ["authorization", "x-extra"],
            "extra_headers": {"x-extra": "$arg_a"}, "upstream_headers": ["X-User", "X-Gone"], "ssl_verify": false,
            "timeout": 250, "keepalive": false,
        });
        let plugin = build("forward-auth", &config, &context).unwrap();
        let mut s = stream(
            "/p?a=1",
            &[
                ("authorization", "t"),
                ("x-extra", "client"),
                ("x-secret", "s"),
                ("x-user", "eve"),
                ("x-gone", "1"),
            ],
        );
        assert!(finish(plugin.access(&mut s, 0)).await.is_none());
        let asked = service.asked.lock().pop().unwrap();
        let headers: Vec<String> = asked
            .headers
            .iter()
            .map(|(n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
            .collect();
        assert_eq!(
            headers,
            [
                "x-forwarded-proto: http",
                "x-forwarded-method: GET",
                "x-forwarded-host: example.com",
                "x-forwarded-uri: /p?a=1",
                "x-forwarded-for: 10.1.2.3",
                "x-extra: 1",
                "authorization: t"
            ]
        );
        assert_eq!((asked.uri.as_str(), asked.method.as_str()), ("http://auth.test/check", "GET"));
        assert_eq!((asked.timeout.as_millis(), asked.verify_tls, asked.keepalive), (250, false, None));
        assert_eq!((request_header(&s, "x-user"), request_header(&s, "x-gone")), (Some("jack"), None));
    }

    #[tokio::test]
    async fn refusals_reach_the_client_with_the_headers_named() {
        let refusal = answer(401, &[("www-authenticate", "Basic"), ("x-other", "1")], "who?");
        let (context, _) = context_with(Some(refusal));
        let config = json!({"uri": "https://a/", "client_headers": ["WWW-Authenticate", "location"]});
        let plugin = build("forward-auth", &config, &context).unwrap();
        let reply = finish(plugin.access(&mut stream("/", &[]), 0)).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (401, &b"who?"[..]));
        assert_eq!(reply.headers.get("www-authenticate"), Some(&b"Basic"[..]));
        assert_eq!(reply.headers.len(), 1);
    }

    #[tokio::test]
    async fn posts_carry_the_body() {
        let (context, service) = context_with(Some(answer(204, &[], "")));
        let config = json!({"uri": "http://a/", "request_method": "POST", "max_req_body_size": 9});
        let plugin = build("forward-auth", &config, &context).unwrap();
        assert_eq!(plugin.buffers_request(), Some(9));
        let mut s = stream("/", &[("content-encoding", "gzip")]);
        s.request_body = Some(Bytes::from_static(b"body"));
        assert!(finish(plugin.access(&mut s, 0)).await.is_none());
        let asked = service.asked.lock().pop().unwrap();
        assert_eq!((asked.method.as_str(), &asked.body[..]), ("POST", &b"body"[..]));
        assert_eq!(asked.headers.get("content-encoding"), Some(&b"gzip"[..]));
    }

    #[tokio::test]
    async fn failures_refuse_unless_it_degrades() {
        for (config, status) in [
            (json!({"uri": "http://a/"}), Some(403)),
            (json!({"uri": "http://a/", "status_on_error": 502}), Some(502)),
            (json!({"uri": "http://a/", "allow_degradation": true}), None),
        ] {
            let (context, _) = context_with(None);
            let plugin = build("forward-auth", &config, &context).unwrap();
            let reply = finish(plugin.access(&mut stream("/", &[]), 0)).await;
            assert_eq!(reply.map(|r| r.status), status);
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("forward-auth", &config, &context()).err().unwrap();
        assert!(error(json!({"uri": "ftp://a"})).contains("neither http nor https"));
        assert!(error(json!({"uri": "http://a", "client_headers": ["a b"]})).contains("a b"));
    }
}
