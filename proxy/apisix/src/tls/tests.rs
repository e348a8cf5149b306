#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use serde_json::json;
use sixfold_core::connection::TlsInfo;
use sixfold_core::document::Format;
use sixfold_core::plugin::{Chain, HeadPhase, Outcome};
use sixfold_core::stream::Stream;
use sixfold_core::tls::ContextChange;

use super::towards_upstream;
use crate::store::Resources;
use crate::testing::{self, TextSource};

/// Puts the certificates in force; tells whether they are all that changes.
fn update(source: &mut TextSource, resources: &serde_json::Value) -> Result<bool, Vec<String>> {
    let text = resources.to_string();
    let diff = source.change(Resources { text: &text, format: Format::Json, name: "apisix.json" });
    match diff {
        Ok(diff) => {
            diff.contexts.into_iter().for_each(ContextChange::put_in_force);
            Ok(diff.clusters.is_empty() && diff.route_tables.is_empty() && diff.listeners.is_empty())
        }
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
    }
}

fn ssl(id: &str, names: &[&str]) -> serde_json::Value {
    let (cert, key) = testing::certificate(names);
    json!({"id": id, "snis": names, "cert": cert, "key": key})
}

/// The subject alternative names of the certificate for a server name.
fn shown(source: &TextSource, name: Option<&str>) -> Option<String> {
    let context = source.server_tls().unwrap().context(name)?;
    let certificate = context.certificates().next()?.clone();
    Some(certificate.dns_sans.join(","))
}

#[test]
fn certificates_are_found_by_server_name() {
    let mut source = testing::source("apisix: {ssl: {fallback_sni: b.com}}");
    let resources = json!({"ssls": [
        ssl("a", &["a.com", "*.a.com"]),
        ssl("b", &["b.com"]),
    ]});
    update(&mut source, &resources).unwrap();
    assert_eq!(shown(&source, Some("a.com")).as_deref(), Some("a.com,*.a.com"));
    assert_eq!(shown(&source, Some("x.A.com")).as_deref(), Some("a.com,*.a.com"));
    assert_eq!(shown(&source, Some("b.com")).as_deref(), Some("b.com"));
    assert_eq!(shown(&source, None).as_deref(), Some("b.com"));
}

/// They were shown as soon as they were compiled, whatever became of the change.
#[test]
fn certificates_are_shown_by_the_change_that_brings_them() {
    let mut source = testing::source("");
    update(&mut source, &json!({"ssls": [ssl("a", &["a.com"])]})).unwrap();
    let text = json!({"ssls": [ssl("a", &["a.com", "c.com"])]}).to_string();
    let resources = Resources { text: &text, format: Format::Json, name: "apisix.json" };
    let dropped = source.change(resources).unwrap();
    assert!(!dropped.is_empty());
    drop(dropped);
    assert_eq!(shown(&source, Some("a.com")).as_deref(), Some("a.com"));
    assert_eq!(shown(&source, Some("c.com")), None);
}

#[test]
fn certificates_are_replaced_without_touching_listeners() {
    let mut source = testing::source("");
    let first = json!({"ssls": [ssl("a", &["a.com"])]});
    update(&mut source, &first).unwrap();
    assert_eq!(shown(&source, Some("a.com")).as_deref(), Some("a.com"));
    assert_eq!(shown(&source, None), None);
    let second = json!({"ssls": [ssl("a", &["a.com", "c.com"])]});
    assert_eq!(update(&mut source, &second), Ok(true), "no listener, cluster or table is another one");
    assert_eq!(shown(&source, Some("c.com")).as_deref(), Some("a.com,c.com"));
    let mut off = second;
    off["ssls"][0]["status"] = json!(0);
    update(&mut source, &off).unwrap();
    assert_eq!(shown(&source, Some("c.com")), None);
}

#[test]
fn what_is_no_certificate_is_refused_by_name() {
    let mut source = testing::source("");
    let mut broken = ssl("a", &["a.com"]);
    broken["cert"] = json!("x".repeat(200));
    let errors = update(&mut source, &json!({ "ssls": [broken] })).unwrap_err();
    assert!(errors[0].contains("ssl \"a\": cert: failed to parse cert: "), "{errors:?}");
    let mut mismatched = ssl("b", &["b.com"]);
    mismatched["key"] = ssl("c", &["c.com"])["key"].clone();
    let errors = update(&mut source, &json!({ "ssls": [mismatched] })).unwrap_err();
    // The fields were named as TLS settings have them, not as the `ssl` has.
    // And the key is one: it was called none.
    let says = "ssl \"b\": key: the private key in `key` does not belong to the certificate in `cert`";
    assert!(errors[0].contains(says), "{errors:?}");
    assert!(!errors[0].contains("failed to parse key"), "{errors:?}");
    // The nodes were named where it is the key of an upstream.
    let mut tls = json!({"client_cert": ssl("", &["b"])["cert"], "client_key": ssl("", &["c"])["key"]});
    let of = |tls: &serde_json::Value| json!({"id": "u", "scheme": "https", "nodes": {}, "tls": tls});
    let errors = update(&mut source, &json!({"upstreams": [of(&tls)]})).unwrap_err();
    let says = "tls.client_key: the private key in `tls.client_key` does not belong to the certificate in `tls.client_cert`";
    assert!(errors[0].contains(&format!("upstream \"u\": {says}")), "{errors:?}");
    let route = json!({"id": "r", "uri": "/", "upstream": of(&tls)});
    let errors = update(&mut source, &json!({ "routes": [route] })).unwrap_err();
    assert!(errors[0].contains(&format!("route \"r\": upstream.{says}")), "{errors:?}");
    tls["client_cert"] = "x".repeat(200).into();
    let errors = update(&mut source, &json!({"upstreams": [of(&tls)]})).unwrap_err();
    assert!(errors[0].contains("tls.client_cert: failed to parse cert: "), "{errors:?}");
    let mut second = ssl("b2", &["b.com"]);
    second["certs"] = json!([second["key"].as_str().unwrap().repeat(2)]);
    second["keys"] = json!([second["key"]]);
    let errors = update(&mut source, &json!({ "ssls": [second] })).unwrap_err();
    let words = "ssl \"b2\": certs[0]: failed to handle cert-key pair[1]: failed to parse cert: ";
    assert!(errors[0].contains(words), "{errors:?}");
    let mut no_key = ssl("b3", &["b.com"]);
    no_key["key"] = "-".repeat(200).into();
    let errors = update(&mut source, &json!({ "ssls": [no_key] })).unwrap_err();
    assert!(errors[0].contains("ssl \"b3\": key: failed to parse key: "), "{errors:?}");
    let mut no_ca = ssl("b4", &["b.com"]);
    no_ca["client"] = json!({"ca": "x".repeat(200)});
    let errors = update(&mut source, &json!({ "ssls": [no_ca] })).unwrap_err();
    let words = "ssl \"b4\": client.ca: failed to validate client_cert: failed to parse cert: ";
    assert!(errors[0].contains(words), "{errors:?}");
    let mut uneven = ssl("d", &["d.com"]);
    uneven["certs"] = json!([uneven["cert"]]);
    let errors = update(&mut source, &json!({ "ssls": [uneven] })).unwrap_err();
    assert!(errors[0].contains("mismatched number of certs and keys"), "{errors:?}");
    let mut old = ssl("e", &["e.com"]);
    old["ssl_protocols"] = json!(["TLSv1.1"]);
    let errors = update(&mut source, &json!({ "ssls": [old] })).unwrap_err();
    assert!(errors[0].contains("TLSv1.1 is not supported"), "{errors:?}");
    let mut skipping = ssl("f", &["f.com"]);
    skipping["client"] = json!({"ca": skipping["cert"], "skip_mtls_uri_regex": ["/open.*", "(["]});
    let errors = update(&mut source, &json!({ "ssls": [skipping] })).unwrap_err();
    assert!(errors[0].contains("ssl \"f\": client.skip_mtls_uri_regex: "), "{errors:?}");
}

/// Every change of an upstream made another place, and its connections stayed open beside the new ones.
#[test]
fn an_upstream_that_is_compiled_again_keeps_its_tls() {
    let context = testing::context();
    let of = |name: &str, retries: u32| {
        let upstream = json!({
            "scheme": "https", "type": "roundrobin", "hash_on": "vars", "pass_host": "pass", "retries": retries
        });
        let upstream = serde_json::from_value(upstream).unwrap();
        towards_upstream(name, &upstream, None, &context).unwrap().unwrap()
    };
    let first = of("a", 1);
    assert!(Arc::ptr_eq(&first, &of("a", 2)));
    let other = of("b", 1);
    assert!(!Arc::ptr_eq(&first, &other) && first.holds(&other.context().unwrap()));
}

#[test]
fn upstreams_show_the_client_certificate_they_name() {
    let mut source = testing::source("");
    let mut client = ssl("c", &["client"]);
    client["type"] = json!("client");
    let upstream =
        json!({"id": 1, "scheme": "https", "nodes": {"10.0.0.1": 1}, "tls": {"client_cert_id": "c"}});
    assert_eq!(update(&mut source, &json!({"ssls": [client], "upstreams": [upstream]})), Ok(false));
    // Another certificate makes another cluster.
    let mut other = ssl("c", &["client"]);
    other["type"] = json!("client");
    assert_eq!(update(&mut source, &json!({"ssls": [other], "upstreams": [upstream]})), Ok(false));
    assert_eq!(update(&mut source, &json!({"ssls": [other], "upstreams": [upstream]})), Ok(true));
    let server = ssl("c", &["client"]);
    let errors = update(&mut source, &json!({"ssls": [server], "upstreams": [upstream]})).unwrap_err();
    assert!(errors[0].contains("ssl \"c\" is not of type client"), "{errors:?}");
}

fn status(chain: &Chain, mut stream: Stream) -> u16 {
    let mut run = std::pin::pin!(chain.run(HeadPhase::Rewrite, &mut stream));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match run.as_mut().poll(&mut context) {
        std::task::Poll::Ready(Outcome::Respond(reply)) => reply.status,
        std::task::Poll::Ready(_) => 0,
        std::task::Poll::Pending => panic!("nothing to wait for"),
    }
}

#[test]
fn a_host_with_verified_clients_is_not_reached_by_another_name() {
    let mut source = testing::source("");
    let mut verified = ssl("v", &["v.com", "*.v.com"]);
    verified["client"] = json!({"ca": verified["cert"]});
    let resources = json!({
        "ssls": [verified, ssl("o", &["o.com", "open.v.com"])],
        "routes": [{"id": "r", "uri": "/*", "plugins": {}}],
    });
    update(&mut source, &resources).unwrap();
    let chain = source.chain_of("r").expect("a chain with the guard");
    let tls = |validated: bool| TlsInfo { peer_validated: validated, ..TlsInfo::default() };
    let by = |host: &str, name: &'static str, validated: bool| {
        status(&chain, testing::stream(host, "/", Some((tls(validated), name))))
    };
    assert_eq!(by("v.com", "v.com", true), 0);
    assert_eq!(by("V.com:9443", "v.com", true), 0);
    assert_eq!(by("v.com", "o.com", false), 400);
    assert_eq!(by("v.com", "a.v.com", true), 400, "the name must be the host");
    assert_eq!(by("a.v.com", "o.com", false), 400);
    // `*.v.com` of an SSL is a suffix: it guards names of any depth, and what begins with the dot.
    assert_eq!(by("x.y.v.com", "o.com", false), 400);
    assert_eq!(by(".v.com", "o.com", false), 400);
    assert_eq!(by("o.com", "v.com", true), 0);
    assert_eq!(by("open.v.com", "o.com", false), 0, "the more specific certificate counts");
    assert_eq!(status(&chain, testing::stream("v.com", "/", None)), 0, "plain text shows no certificate");
}

#[test]
fn paths_may_be_served_without_a_certificate_and_no_others() {
    let mut source = testing::source("");
    let mut open = ssl("v", &["v.com"]);
    open["client"] = json!({"ca": open["cert"], "skip_mtls_uri_regex": ["^/hello[0-9]+$", "^/open/"]});
    let mut strict = ssl("s", &["s.com"]);
    strict["client"] = json!({"ca": strict["cert"]});
    let resources = json!({
        "ssls": [open, strict, ssl("o", &["o.com"])],
        "routes": [{"id": "r", "uri": "/*", "plugins": {}}],
    });
    update(&mut source, &resources).unwrap();
    let chain = source.chain_of("r").expect("a chain with the guard");
    let tls = |validated: bool| TlsInfo { peer_validated: validated, ..TlsInfo::default() };
    let by = |host: &str, name: &'static str, path: &str, validated: bool| {
        status(&chain, testing::stream(host, path, Some((tls(validated), name))))
    };
    assert_eq!(by("v.com", "v.com", "/hello1", false), 0);
    assert_eq!(by("v.com", "v.com", "/open/a?b=1", false), 0);
    assert_eq!(by("v.com", "v.com", "/hello", false), 400);
    assert_eq!(by("v.com", "v.com", "/hello", true), 0);
    assert_eq!(by("v.com", "o.com", "/hello1", false), 400, "the name must be the host");
    assert_eq!(by("s.com", "v.com", "/hello1", false), 400, "another name's paths are not its own");
    assert_eq!(by("o.com", "v.com", "/hello", false), 400, "the name that let it in asks for a certificate");
    assert_eq!(by("o.com", "v.com", "/hello1", false), 0);
    assert_eq!(by("o.com", "o.com", "/hello", false), 0);
}
