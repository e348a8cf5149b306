//! APISIX's forward-auth: a service decides whether a request may pass.

use crate::apisix;
use crate::shared::{header_names, uri};
use bytes::Bytes;
use serde::Deserialize;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::Format;
use sixfold_core::headers::{HeaderName, Headers, Known};
use sixfold_core::plugin::{
    ApisixFactory, BuildContext, Built, Callout, CalloutError, CalloutRequest, CalloutResponse, Keepalive,
    LocalReply, OwnedHeaders, Plugin, ReadBody, Slot, Step,
};
use sixfold_core::stream::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/forward-auth.json");
    ApisixFactory::new("forward-auth", 2002, schema, ForwardAuth::build)
}

/// Bytes of the service's answer that are read.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Deserialize)]
struct Config {
    uri: String,
    allow_degradation: bool,
    status_on_error: u16,
    ssl_verify: bool,
    request_method: String,
    max_req_body_size: usize,
    request_headers: Vec<String>,
    extra_headers: Option<BTreeMap<String, serde_json::Value>>,
    upstream_headers: Vec<String>,
    client_headers: Vec<String>,
    timeout: u64,
    keepalive: bool,
    keepalive_timeout: u64,
    keepalive_pool: usize,
}

impl Config {
    /// Whether the service is told what the client says under that name, and so judges it.
    fn tells(&self, name: &HeaderName) -> bool {
        let variable = |name: &str| format!("http_{}", name.to_ascii_lowercase().replace('-', "_"));
        let wanted = variable(name.as_str());
        let mut texts = self.extra_headers.iter().flatten().map(|(_, value)| text_of(value));
        self.request_headers.iter().any(|told| variable(told) == wanted)
            || asks_for(&self.uri, &wanted)
            || texts.any(|text| asks_for(&text, &wanted))
    }
}

/// Whether a template has the variable: its whole name, behind `$` or `${`.
fn asks_for(template: &str, variable: &str) -> bool {
    let template = template.to_ascii_lowercase();
    template.split('$').skip(1).any(|rest| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let after = rest.strip_prefix(variable);
        after.is_some_and(|after| !after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    })
}

/// A header's value, which may be a number or a boolean.
fn text_of(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

struct ForwardAuth {
    callout: Arc<dyn Callout>,
    uri: Format,
    /// Bytes of the request's body that the service gets at most; `None` where it gets none.
    body: Option<usize>,
    degrades: bool,
    status_on_error: u16,
    verify_tls: bool,
    request_headers: Vec<HeaderName>,
    extra_headers: Vec<(HeaderName, Format)>,
    /// What the upstream learns from the service, and so from nobody else.
    upstream_headers: Arc<OwnedHeaders>,
    client_headers: Vec<HeaderName>,
    timeout: Duration,
    keepalive: Option<Keepalive>,
}

impl ForwardAuth {
    fn build(config: Config, context: &BuildContext) -> Built {
        let scheme = config.uri.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if !matches!(scheme.as_deref(), Some("http" | "https")) && !config.uri.starts_with('$') {
            return Err(ConfigError::field("uri", format!("uri '{}' is neither http nor https", config.uri)));
        }
        let upstream_headers = header_names::to_copy(&config.upstream_headers, "upstream_headers")?;
        let upstream_headers =
            Arc::new(OwnedHeaders::new(upstream_headers).judging(|name| config.tells(name)));
        let extra = config.extra_headers.into_iter().flatten().map(|(key, value)| {
            let text = text_of(&value);
            Ok((header_names::one(&key, "extra_headers")?, apisix::template(&text).in_key("extra_headers")?))
        });
        let body = (config.request_method == "POST").then_some(config.max_req_body_size);
        let auth = ForwardAuth {
            callout: context.callout.clone(),
            uri: apisix::template(&config.uri).in_key("uri")?,
            body,
            degrades: config.allow_degradation,
            status_on_error: config.status_on_error,
            verify_tls: config.ssl_verify,
            request_headers: header_names::to_copy(&config.request_headers, "request_headers")?,
            extra_headers: extra.collect::<Result<_, ConfigError>>()?,
            upstream_headers: upstream_headers.clone(),
            client_headers: header_names::to_copy(&config.client_headers, "client_headers")?,
            timeout: Duration::from_millis(config.timeout),
            keepalive: config.keepalive.then_some(Keepalive {
                idle: Duration::from_millis(config.keepalive_timeout),
                connections: config.keepalive_pool,
            }),
        };
        Ok(Plugin::of(auth).access(ForwardAuth::access).owns(upstream_headers).build())
    }

    fn request(&self, stream: &Stream) -> CalloutRequest {
        let head = &stream.request;
        let mut headers = Headers::new();
        headers.set("x-forwarded-proto", head.scheme.as_str().as_bytes());
        headers.set("X-Forwarded-Method", head.method.as_str().as_bytes());
        headers.set("x-forwarded-host", head.host());
        let sent = match stream.original_target.as_slice() {
            [] => head.target.full(),
            original => original,
        };
        // Of a decoded path a line end is told encoded: there is no other way to tell it.
        let uri = stream.var("request_uri").unwrap_or(sent).to_vec();
        headers.set("X-Forwarded-Uri", &uri::escape_line_ends(uri));
        headers.set("x-forwarded-for", stream.remote_ip().to_string().as_bytes());
        let mut body = Bytes::new();
        if self.body.is_some() {
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
            // What variables bring may be what no URI can have, or what ends the path (`#`).
            uri: String::from_utf8_lossy(&uri::escape_unwritable(apisix::value(&self.uri, stream)))
                .into_owned(),
            target: None,
            cluster: None,
            retries: 0,
            method: if self.body.is_some() { http::Method::POST } else { http::Method::GET },
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

    /// What the upstream is told of the service's answer.
    fn pass_on(&self, answer: &CalloutResponse, stream: &mut Stream) {
        for name in self.upstream_headers.names() {
            for value in answer.headers.get_all(name) {
                stream.request.headers.append(name, value);
            }
        }
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        if let Some(step) = self.body.and_then(|limit| ReadBody::whole(limit).ask(stream, slot)) {
            return step;
        }
        let asked = self.callout.send(self.request(stream));
        // Whatever comes of it: what the service does not say, the client must not claim.
        self.upstream_headers.strip(&mut stream.request.headers);
        Step::Wait(Box::pin(async move {
            match asked.await {
                Ok(answer) if answer.status >= 300 => Step::Respond(self.refusal(answer)),
                Ok(answer) => {
                    self.pass_on(&answer, stream);
                    Step::Continue
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to process forward auth");
                    // Only a service that was asked can be down. What can't be asked about is never let through: a client
                    // could see to it.
                    match error {
                        CalloutError::Timeout | CalloutError::Failed(_) if self.degrades => Step::Continue,
                        _ => Step::Respond(LocalReply::new(self.status_on_error, "", "")),
                    }
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{build, chain_of, context, context_with, finish, request_header, stream};
    use serde_json::json;
    use sixfold_core::plugin::{CalloutFuture, CalloutStreamFuture, Passed, RequestPhases};

    /// A name that is the beginning of another one, or only stands in a text, is none that the service is told.
    #[test]
    fn only_whole_variables_tell_the_service() {
        for template in ["$http_x_user", "a${http_x_user}b", "$HTTP_X_User/"] {
            assert!(asks_for(template, "http_x_user"), "{template}");
        }
        for template in ["$http_x_user_id", "${http_x_user_agent}", "about http_x_user", "$a http_x_user"] {
            assert!(!asks_for(template, "http_x_user"), "{template}");
        }
    }

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
        assert!(finish(plugin.access(&mut s)).await.is_none());
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
                "X-Forwarded-Method: GET",
                "x-forwarded-host: example.com",
                "X-Forwarded-Uri: /p?a=1",
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
        let reply = finish(plugin.access(&mut stream("/", &[]))).await.unwrap();
        assert_eq!((reply.status, &reply.body[..]), (401, &b"who?"[..]));
        assert_eq!(reply.headers.get("www-authenticate"), Some(&b"Basic"[..]));
        assert_eq!(reply.headers.len(), 1);
    }

    #[tokio::test]
    async fn posts_carry_the_body() {
        let (context, service) = context_with(Some(answer(204, &[], "")));
        let config = json!({"uri": "http://a/", "request_method": "POST", "max_req_body_size": 9});
        let mut chain = Arc::new(build("forward-auth", &config, &context).unwrap().chain);
        let (mut phases, mut s) = (RequestPhases::default(), stream("/", &[("content-encoding", "gzip")]));
        let wanted = ReadBody::whole(9);
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::ReadBody(read) if read == wanted));
        assert!(service.asked.lock().is_empty());
        s.request_body = Some(Bytes::from_static(b"body"));
        assert!(matches!(phases.run(&mut chain, &mut s).await, Passed::Done));
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
            let reply = finish(plugin.access(&mut stream("/", &[]))).await;
            assert_eq!(reply.map(|r| r.status), status);
        }
    }

    /// The header of a path with a line end in it was left out where it was written, and the service judged a request without.
    #[tokio::test]
    async fn what_a_path_has_is_told_whatever_it_is() {
        let (context, service) = context_with(Some(answer(200, &[], "")));
        let config = json!({"uri": "http://a/auth$uri?of=$arg_q", "allow_degradation": true});
        let plugin = build("forward-auth", &config, &context).unwrap();
        let mut s = stream("/x?q=%20", &[]);
        s.set_var("uri", b"/x\r\"<#\xFF".to_vec());
        s.set_var("request_uri", b"/admin\n/\r".to_vec());
        finish(plugin.access(&mut s)).await;
        let asked = service.asked.lock().pop().unwrap();
        assert_eq!(asked.headers.get("X-Forwarded-Uri"), Some(&b"/admin%0A/%0D"[..]));
        assert_eq!(asked.uri, "http://a/auth/x%0D%22%3C%23%FF?of=%20");
        assert!(asked.headers.is_sound() && asked.uri.parse::<http::Uri>().is_ok());
    }

    /// A client whose request can't be asked about switched the question off.
    #[tokio::test]
    async fn what_cannot_be_asked_about_does_not_pass() {
        struct Unaskable;
        impl Callout for Unaskable {
            fn send(&self, _: CalloutRequest) -> CalloutFuture {
                Box::pin(async { Err(CalloutError::Unaskable("no header".to_owned())) })
            }
            fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
                Box::pin(async { Err(CalloutError::Timeout) })
            }
        }
        let context = BuildContext { callout: Arc::new(Unaskable), ..context() };
        let config = json!({"uri": "http://a/", "allow_degradation": true});
        let plugin = build("forward-auth", &config, &context).unwrap();
        assert_eq!(finish(plugin.access(&mut stream("/", &[]))).await.map(|reply| reply.status), Some(403));
    }

    /// A service that is down let the client's own `X-User` through where it degrades, and `X_User` passed beside
    /// the one that the service had set.
    #[tokio::test]
    async fn nobody_but_the_service_says_who_the_client_is() {
        let names = json!({"uri": "http://a/", "upstream_headers": ["X-User"], "allow_degradation": true});
        for (answered, expected) in
            [(None, None), (Some(answer(200, &[("x-user", "jack")], "")), Some("jack"))]
        {
            let (context, service) = context_with(answered);
            let plugin = build("forward-auth", &names, &context).unwrap();
            let mut s = stream("/", &[("X-User", "eve"), ("x_user", "eve"), ("X_USER", "eve")]);
            assert!(finish(plugin.access(&mut s)).await.is_none());
            assert_eq!(service.asked.lock().len(), 1);
            let left: Vec<_> = s.request.headers.iter().map(|(_, value)| value).collect();
            assert_eq!(left, expected.map(str::as_bytes).as_slice());
        }
    }

    /// Only at forward-auth's own turn the client's `X-User` left, after everybody before it had taken it for true.
    #[tokio::test]
    async fn what_the_client_says_of_itself_is_heard_by_nobody_but_who_judges_it() {
        for (told, first_sees) in [
            (json!({}), None),
            (json!({"request_headers": ["X-USER"]}), Some("eve")),
            (json!({"extra_headers": {"x-claim": "$http_x_user"}}), Some("eve")),
        ] {
            let mut config = json!({"uri": "http://a/", "upstream_headers": ["X-User"]});
            config.as_object_mut().unwrap().append(&mut told.as_object().unwrap().clone());
            let (context, service) = context_with(Some(answer(200, &[("x-user", "jack")], "")));
            let rewrite = json!({"headers": {"set": {"x-seen": "$http_x_user"}}});
            let mut chain = chain_of(&[("proxy-rewrite", &rewrite), ("forward-auth", &config)], &context);
            let mut s = stream("/", &[("X-User", "eve"), ("x_user", "eve")]);
            assert!(matches!(RequestPhases::default().run(&mut chain, &mut s).await, Passed::Done));
            let seen = request_header(&s, "x-seen").filter(|seen| !seen.is_empty());
            let asked = service.asked.lock().pop().unwrap();
            let claim = asked.headers.get("x-user").or(asked.headers.get("x-claim"));
            assert_eq!((seen, claim), (first_sees, first_sees.map(str::as_bytes)), "{told}");
            assert_eq!((request_header(&s, "x-user"), request_header(&s, "x_user")), (Some("jack"), None));
        }
    }

    /// A Content-Length without its body made the service wait for one.
    #[tokio::test]
    async fn what_frames_one_message_is_not_copied_to_another() {
        let framing = ["Content-Length", "transfer-encoding", "Connection", "Upgrade", "TE", "x-a"];
        let config = json!({
            "uri": "http://a/", "request_headers": framing, "upstream_headers": framing, "client_headers": framing,
        });
        let said: Vec<(&str, &str)> = framing.iter().map(|name| (*name, "7")).collect();
        for status in [200, 403] {
            let (context, service) = context_with(Some(answer(status, &said, "")));
            let plugin = build("forward-auth", &config, &context).unwrap();
            let mut s = stream("/", &[("content-length", "5"), ("x-a", "1")]);
            let reply = finish(plugin.access(&mut s)).await;
            let asked = service.asked.lock().pop().unwrap();
            assert_eq!(
                (asked.headers.get("content-length"), asked.headers.get("x-a")),
                (None, Some(&b"1"[..]))
            );
            match reply {
                None => assert_eq!(
                    (
                        request_header(&s, "content-length"),
                        request_header(&s, "x-a"),
                        s.request.headers.len()
                    ),
                    (Some("5"), Some("7"), 2)
                ),
                Some(reply) => assert_eq!((reply.headers.len(), reply.headers.contains("x-a")), (1, true)),
            }
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        let error = |config| build("forward-auth", &config, &context()).err().unwrap();
        assert_eq!(error(json!({"uri": "ftp://a"})), "uri: uri 'ftp://a' is neither http nor https");
        assert!(error(json!({"uri": "http://a", "client_headers": ["a b"]})).contains("a b"));
    }
}
