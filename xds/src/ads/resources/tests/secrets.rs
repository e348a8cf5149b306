//! Secrets that come by the stream of all resources.

use sixfold_core::tls::{Awaited, ContextChange};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;

use super::*;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// A secret as settings name it.
fn named(name: &str) -> String {
    format!(
        "{{name: {name}, sds_config: {{ads: {{}}, initial_fetch_timeout: 3s, resource_api_version: V3}}}}"
    )
}

/// A certificate that nobody has had before.
fn certificate(name: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap().pem();
    format!(
        "{{name: {name}, tls_certificate: {{certificate_chain: {{inline_string: {certificate:?}}}, private_key: {{inline_string: {:?}}}}}}}",
        key.serialize_pem()
    )
}

const BAD: &str = "tls_certificate: {certificate_chain: {inline_string: x}, private_key: {inline_string: x}}";

/// A listener with a chain for each secret.
fn serving(name: &str, secrets: &[&str]) -> String {
    let chain = |secret: &&str| {
        format!(
            "{{filter_chain_match: {{server_names: [{secret}.test]}}, transport_socket: {{name: t, typed_config: {{\
             '@type': {TLS}.DownstreamTlsContext, common_tls_context: {{tls_certificate_sds_secret_configs: [{}]}}}}}}, \
             filters: [{{name: d, typed_config: {{\
             '@type': type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config}}}}]}}",
            named(secret)
        )
    };
    let chains: Vec<_> = secrets.iter().map(chain).collect();
    format!(
        "{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{}]}}",
        chains.join(", ")
    )
}

/// A cluster that shows a certificate to its endpoints.
fn mutual(name: &str, secret: &str) -> String {
    format!(
        "{{name: {name}, transport_socket: {{name: t, typed_config: {{'@type': {TLS}.UpstreamTlsContext, common_tls_context: \
         {{tls_certificate_sds_secret_configs: [{}]}}}}}}}}",
        named(secret)
    )
}

impl Proxy {
    /// Of each chain of the first listener whether its secrets are waited for, and whether it has them.
    fn tls(&self) -> Vec<(bool, bool)> {
        let listener = self.model.listeners().remove(0);
        let shown = listener
            .tls()
            .map(|tls| (tls.awaited().is_some_and(Awaited::is_awaited), tls.context(None).is_some()));
        shown.collect()
    }

    /// The same of a cluster in force.
    fn tls_of(&self, cluster: &str) -> Option<(bool, bool)> {
        let cluster = self.context.compile.clusters.find(cluster)?;
        let tls = cluster.config.all_tls().next()?;
        Some((tls.awaited().is_some_and(Awaited::is_awaited), tls.context().is_some()))
    }
}

/// A gateway's certificate comes by the stream: it is asked for with its listener, kept when it is taken away, and not
/// waited for where there is none.
#[test]
fn secrets_come_by_the_stream_and_stay_when_they_are_taken_away() {
    let mut proxy = Proxy::new();
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &serving("l", &["a", "b"]))], &[]), ["+a+b", "ok"]);
    assert!(proxy.listeners().is_empty(), "it waits for its secrets");
    assert_eq!(proxy.bring::<Secret>(&[("a", &certificate("a"))], &["b"]), ["ok"]);
    assert_eq!(proxy.tls(), [(false, true), (false, false)]);
    assert_eq!(proxy.bring::<Secret>(&[], &["a"]), ["ok"]);
    let answer = proxy.bring::<Secret>(&[("a", &format!("{{name: a, {BAD}}}"))], &[]);
    assert!(answer[0].starts_with("secret \"a\": tls_certificate.certificate_chain: "), "{answer:?}");
    assert_eq!(proxy.tls(), [(false, true), (false, false)]);
    assert_eq!(proxy.bring::<ProtoListener>(&[], &["l"]), ["+-a-b", "ok"]);
}

/// The batch with such a cluster was held for five seconds by the control thread, which alone could have been given
/// the secret by a batch behind it; all the stream stood still meanwhile.
#[test]
fn a_cluster_and_its_routes_wait_for_a_secret_of_the_stream_and_nobody_else_does() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("a", "{name: a}"), ("b", "{name: b}")], &[]);
    proxy.bring::<ProtoListener>(&[("l", &listener("l", "r")), ("m", &listener("m", "q"))], &[]);
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "a")), ("q", &routes("q", "a"))], &[]);
    let asked = proxy.bring::<ProtoCluster>(&[("t", &mutual("t", "s")), ("c", "{name: c}")], &[]);
    assert_eq!(asked, ["+s", "ok"]);
    assert_eq!((proxy.tls_of("t"), proxy.hosts("t"), proxy.hosts("c")), (None, None, Some(0)));
    proxy.bring::<RouteConfiguration>(&[("r", &routes("r", "t")), ("q", &routes("q", "b"))], &[]);
    assert_eq!((proxy.leads_to("r").as_deref(), proxy.leads_to("q").as_deref()), (Some("a"), Some("b")));
    assert_eq!(proxy.bring::<Secret>(&[("s", &certificate("s"))], &[]), ["ok"]);
    assert_eq!((proxy.tls_of("t"), proxy.leads_to("r").as_deref()), (Some((false, true)), Some("t")));
    // One that names another secret waits while the one before it serves.
    proxy.bring::<ProtoCluster>(&[("t", &mutual("t", "u"))], &[]);
    assert_eq!(proxy.tls_of("t"), Some((false, true)));
}

/// Who had waited in vain was held back once more where clusters and listeners warm up.
#[test]
fn a_secret_of_the_stream_is_waited_for_once_and_as_long_as_it_may_take() {
    let mut proxy = Proxy::new();
    proxy.bring::<ProtoCluster>(&[("t", &mutual("t", "s"))], &[]);
    proxy.bring::<ProtoListener>(&[("l", &serving("l", &["s"]))], &[]);
    proxy.pass(Duration::from_secs(2));
    assert_eq!((proxy.tls_of("t"), proxy.listeners().len()), (None, 0));
    proxy.pass(Duration::from_secs(1));
    assert_eq!(proxy.tls_of("t"), Some((false, false)), "no second wait");
    assert_eq!(proxy.tls(), [(false, false)]);
    assert!(proxy.machine.is_initialized());
    // Nobody waits for it again, and it serves when it comes.
    proxy.bring::<ProtoCluster>(&[("u", &mutual("u", "s"))], &[]);
    assert_eq!(proxy.tls_of("u"), Some((false, false)));
    proxy.bring::<Secret>(&[("s", &certificate("s"))], &[]);
    assert_eq!((proxy.tls_of("t"), proxy.tls_of("u")), (Some((false, true)), Some((false, true))));
    assert_eq!(proxy.tls(), [(false, true)]);
    // What is no good ends the wait as well.
    proxy.bring::<ProtoCluster>(&[("v", &mutual("v", "w"))], &[]);
    proxy.bring::<Secret>(&[("w", &format!("{{name: w, {BAD}}}"))], &[]);
    assert_eq!(proxy.tls_of("v"), Some((false, false)));
}

/// All of a change waited for a cluster whose secret comes by a stream of its own, up to five seconds.
#[test]
fn a_secret_of_a_stream_of_its_own_is_waited_for_by_who_names_it_alone() {
    let api = "api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}";
    let mut proxy = Proxy::new();
    let lacking = mutual("lacking", "own").replace("ads: {}", api);
    let asked = proxy.bring::<ProtoCluster>(&[("lacking", &lacking), ("other", "{name: other}")], &[]);
    assert_eq!(asked, ["ok"], "not asked for by the stream of all types");
    proxy.bring::<ProtoListener>(&[("l", &serving("l", &[]))], &[]);
    assert_eq!((proxy.hosts("other"), proxy.hosts("lacking")), (Some(0), None));
    let Step::Wait(Some(until)) = proxy.machine.step(proxy.now) else { panic!("waits") };
    assert_eq!(until - proxy.now, Duration::from_secs(3));
    let key = proxy.context.sds.shown().remove(0).0;
    let secret = resource::<Secret>("own", &certificate("own"));
    let checked = proxy.context.sds.check(&key, &secret.resource.unwrap().value).unwrap();
    proxy.context.sds.put(checked).into_iter().for_each(ContextChange::put_in_force);
    proxy.work();
    assert_eq!(proxy.tls_of("lacking"), Some((false, true)));
    // One that does not come is waited for as long as it may take, and by nobody once more.
    let late = mutual("late", "never").replace("ads: {}", api);
    proxy.bring::<ProtoCluster>(&[("late", &late)], &[]);
    assert_eq!(proxy.tls_of("late"), None);
    proxy.pass(Duration::from_secs(3));
    assert_eq!(proxy.tls_of("late"), Some((false, false)));
}
