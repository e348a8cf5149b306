#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use sixfold_core::cluster::SocketMatch;
use sixfold_core::proxy_protocol::Version;
use sixfold_core::tls::SanKind;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::TlsParameters;

use super::*;
use crate::cluster::Protocol;
use crate::testing::{context, read};

const UPSTREAM: &str =
    "'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW: &str = "'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// The transports of a cluster of which this is said.
fn transports(yaml: &str) -> Result<Transports> {
    Transports::of(&context(), &read(&format!("name: c\n{yaml}\n")), &Protocol::default(), "")
}

fn compiled_matches(yaml: &str) -> Result<Arc<[SocketMatch]>> {
    transports(&format!("transport_socket_matches: [{yaml}]")).map(|transports| transports.matches)
}

/// A socket by which endpoints are told of clients, before another.
fn telling(config: &str, socket: &str) -> String {
    let kind = "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    let within = format!("{{name: s, typed_config: {{{socket}}}}}");
    format!("{{name: p, typed_config: {{'@type': {kind}, config: {config}, transport_socket: {within}}}}}")
}

/// As istiod writes a DestinationRule's `proxyProtocol`: around every socket of the cluster.
#[test]
fn endpoints_are_told_of_clients_before_plain_text_and_tls() {
    let of = |yaml: &str| transports(yaml).map(|made| (made.tls.is_some(), made.proxy_protocol));
    let own = |config, socket| of(&format!("transport_socket: {}", telling(config, socket)));
    assert_eq!(own("{version: V2}", RAW).unwrap(), (false, Some(Version::V2)));
    assert_eq!(own("{}", &format!("{UPSTREAM}, sni: a.test")).unwrap(), (true, Some(Version::V1)));
    let tls = telling("{version: V2}", UPSTREAM);
    let plain = telling("{version: V2}", RAW);
    let both = |plain: &str| {
        format!(
            "transport_socket_matches: [{{name: a, match: {{tlsMode: istio}}, transport_socket: {tls}}}, {{name: b, match: {{}}, transport_socket: {plain}}}]"
        )
    };
    let made = transports(&both(&plain)).unwrap();
    assert_eq!((made.matches.len(), made.proxy_protocol), (2, Some(Version::V2)));
    let differing =
        "transport_socket_matches: all transport sockets of a cluster must use the PROXY protocol alike";
    let refused = |yaml: &str| transports(yaml).err().unwrap().to_string();
    assert_eq!(refused(&both(&telling("{}", RAW))), differing);
    let alone = format!("transport_socket_matches: [{{name: a, match: {{n: 1}}, transport_socket: {tls}}}]");
    assert_eq!(refused(&alone), differing, "those without a match are told nothing");
    let error = refused(&format!("transport_socket: {}", telling("{added_tlvs: [{type: 1}]}", RAW)));
    assert_eq!(error, "transport_socket.typed_config.config.added_tlvs: is not supported");
}

#[test]
fn sockets_by_metadata_are_tls_or_plain_text() {
    let both = format!(
        "{{name: tlsMode-istio, match: {{tlsMode: istio, n: 1}}, transport_socket: {{name: tls, typed_config: {{{UPSTREAM}, sni: a.test}}}}}}, \
         {{name: tlsMode-disabled, match: {{}}, transport_socket: {{name: raw, typed_config: {{{RAW}}}}}}}"
    );
    let matches = compiled_matches(&both).unwrap();
    let shown: Vec<_> =
        matches.iter().map(|it| (serde_json::to_string(&it.criteria).unwrap(), it.tls.is_some())).collect();
    assert_eq!(shown, [("{\"n\":1,\"tlsMode\":\"istio\"}".to_owned(), true), ("{}".to_owned(), false)]);
    let twice = format!("{{name: a, transport_socket: {{name: r, typed_config: {{{RAW}}}}}}}");
    let error = compiled_matches(&format!("{twice}, {twice}")).unwrap_err();
    assert_eq!(error.to_string(), "transport_socket_matches[1].name: \"a\" is given twice");
    let error = compiled_matches("{name: a}").unwrap_err();
    assert_eq!(error.to_string(), "transport_socket_matches[0].transport_socket: is missing");
}

#[test]
fn a_matcher_without_a_kind_looks_at_names_of_every_kind() {
    let value = read(
        "match_subject_alt_names: [{exact: spiffe://a/b}, {prefix: x}]\nmatch_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: d}}]",
    );
    let kinds: Vec<_> =
        validation::validation(&value, &mut Faults::default()).sans.into_iter().map(|san| san.kind).collect();
    let every = [SanKind::Uri, SanKind::Dns, SanKind::Email, SanKind::Ip];
    assert_eq!(kinds, [&[SanKind::Dns][..], &every, &every].concat());
}

/// Istio lists suites whose keys are exchanged by RSA beside those that are spoken here.
#[test]
fn suites_that_are_not_spoken_here_are_left_out_beside_others() {
    let of = |suites: &str| {
        let value: TlsParameters = read(&format!("cipher_suites: [{suites}]"));
        params::protocols(Some(&value)).unwrap().cipher_suites
    };
    assert_eq!(of("ECDHE-RSA-AES128-GCM-SHA256, AES256-GCM-SHA384"), ["ECDHE-RSA-AES128-GCM-SHA256"]);
    let group = "'[ECDHE-RSA-AES128-GCM-SHA256|AES128-SHA|ECDHE-RSA-CHACHA20-POLY1305]'";
    assert_eq!(of(group), ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"]);
    let none = params::protocols(Some(&read("cipher_suites: [AES128-SHA]"))).unwrap_err().to_string();
    assert!(none.starts_with("cipher_suites: cipher suite \"AES128-SHA\" is not supported"), "{none}");
}

#[test]
fn one_item_may_name_several_curves() {
    let of = |curves: &str| params::protocols(Some(&read(&format!("ecdh_curves: [{curves}]"))));
    assert_eq!(of("'X25519:P-256', P-384").unwrap().curves, ["X25519", "P-256", "P-384"]);
    assert!(of("'X25519:'").unwrap_err().to_string().starts_with("ecdh_curves: curve \"\" is not supported"));
}

/// Some were named without the message that they stand in.
#[test]
fn faults_of_compiled_settings_are_named_as_they_are_written() {
    let pair = "tls_certificates: [{certificate_chain: {inline_string: x}, private_key: {inline_string: x}}]";
    let of = |common: &str| {
        let made = transports(&format!(
            "transport_socket: {{name: tls, typed_config: {{{UPSTREAM}, common_tls_context: {{{common}}}}}}}"
        ));
        let error = made.err().unwrap();
        error
            .field
            .unwrap()
            .strip_prefix("transport_socket.typed_config.common_tls_context.")
            .unwrap()
            .to_owned()
    };
    let file = "{filename: /does/not/exist.pem}";
    assert_eq!(of(pair), "tls_certificates[0].certificate_chain");
    assert_eq!(of(&format!("validation_context: {{trusted_ca: {file}}}")), "validation_context.trusted_ca");
    assert_eq!(
        of("validation_context: {verify_certificate_hash: [zz]}"),
        "validation_context.verify_certificate_hash"
    );
    assert_eq!(
        of("tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}"),
        "tls_params.tls_minimum_protocol_version"
    );
    assert_eq!(of("tls_params: {ecdh_curves: [x]}"), "tls_params.ecdh_curves");
}

fn compiled_client(fields: &str) -> Result<()> {
    transports(&format!("transport_socket: {{name: tls, typed_config: {{{UPSTREAM}, {fields}}}}}")).map(drop)
}

/// No name was ever looked at, though the configuration said that they are.
#[test]
fn names_that_are_to_be_validated_need_something_that_validates() {
    let error = compiled_client("sni: a.test, auto_sni_san_validation: true").unwrap_err().to_string();
    assert_eq!(
        error,
        "transport_socket.typed_config.auto_sni_san_validation: needs a validation context, without which no certificate is looked at"
    );
    let with = |validation: &str| {
        let context = format!("common_tls_context: {{validation_context: {{{validation}}}}}");
        compiled_client(&format!("sni: a.test, auto_sni_san_validation: true, {context}"))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        with("trust_chain_verification: ACCEPT_UNTRUSTED"),
        "transport_socket.typed_config.auto_sni_san_validation: needs a trusted_ca in the validation context"
    );
    let trusted = with("trusted_ca: {inline_string: x}");
    assert!(
        trusted.starts_with("transport_socket.typed_config.common_tls_context.validation_context.trusted_ca"),
        "{trusted}"
    );
    assert_eq!(compiled_client("sni: a.test"), Ok(()));
}

#[test]
fn names_of_protocols_must_be_such_as_tls_can_tell() {
    let (most, longer) = ("x".repeat(255), "x".repeat(256));
    let of = |names: &str| {
        let error = compiled_client(&format!("common_tls_context: {{alpn_protocols: [{names}]}}"));
        error.map_err(|error| {
            error
                .to_string()
                .replace("transport_socket.typed_config.common_tls_context.alpn_protocols", "alpn")
        })
    };
    assert_eq!(of(&format!("h2, {most}")), Ok(()));
    assert_eq!(
        of(&format!("h2, {longer}")),
        Err("alpn[1]: a name has 255 bytes at most, not 256".to_owned())
    );
    assert_eq!(of("h2, ''"), Err("alpn: an empty name can't be offered to a server".to_owned()));
    assert_eq!(of("''"), Ok(()), "it is as none");
    assert_eq!(of("'', ''"), Err("alpn: an empty name can't be offered to a server".to_owned()));
    let name = "a".repeat(255);
    assert_eq!(alpn(&vec![name.clone(); 255]).unwrap().len(), 255);
    let reason = "alpn_protocols: all names must have less than 65535 bytes together, not 65535";
    assert_eq!(alpn(&vec![name; 256]).unwrap_err().to_string(), reason);
    assert_eq!(alpn(&["h2,http/1.1".to_owned(), String::new()]).unwrap(), ["h2", "http/1.1", ""]);
    assert!(server_with(&format!("alpn_protocols: [{longer}]")).is_err());
    assert!(server_with("alpn_protocols: [h2, '']").is_ok(), "Envoy takes it of servers");
}

fn settings_of(
    lookup: &Lookup<'_>,
    value: &DownstreamTlsContext,
    names: &[String],
) -> Result<Option<ServerSettings>> {
    let mut faults = Faults::default();
    let settings = server_settings(lookup, value, names, &mut faults);
    faults.end(settings)
}

/// The first was told alone.
#[test]
fn all_that_is_wrong_with_a_context_is_told() {
    let common = "tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2, ecdh_curves: [nope], cipher_suites: [none]}, \
        validation_context: {trusted_ca: {filename: /no/ca}, crl: {filename: /no/crl}, verify_certificate_hash: [x], \
        match_typed_subject_alt_names: [{san_type: DNS, matcher: {safe_regex: {regex: '('}}}, {matcher: {exact: a}}]}";
    let pair = "{certificate_chain: {filename: /no/chain}, private_key: {filename: /no/key}}";
    let lookup = Lookup { statics: &BTreeMap::new(), come: &|_| None };
    let of_both = [
        "tls_params.cipher_suites",
        "tls_params.ecdh_curves",
        "tls_params.tls_minimum_protocol_version",
        "validation_context.crl",
        "validation_context.match_typed_subject_alt_names[0].matcher.safe_regex.regex",
        "validation_context.match_typed_subject_alt_names[1].san_type",
        "validation_context.trusted_ca",
        "validation_context.verify_certificate_hash",
    ];
    let fields = |error: ConfigError| -> Vec<String> {
        let fields = error.into_all().into_iter().map(|fault| fault.field.unwrap());
        let mut fields: Vec<_> =
            fields.map(|field| field.strip_prefix("common_tls_context.").unwrap().to_owned()).collect();
        fields.sort();
        fields
    };
    let expected = |pairs: usize| {
        let pair = |at: usize| {
            ["certificate_chain", "private_key"].map(|field| format!("tls_certificates[{at}].{field}"))
        };
        let mut expected: Vec<String> = (0..pairs).flat_map(pair).collect();
        expected.extend(of_both.map(str::to_owned));
        expected.sort();
        expected
    };
    let server = read(&format!("common_tls_context: {{tls_certificates: [{pair}, {pair}], {common}}}\n"));
    assert_eq!(fields(server_context(&lookup, &server, &[]).unwrap_err()), expected(2));
    let client = read(&format!("common_tls_context: {{tls_certificates: [{pair}], {common}}}\n"));
    let names = AutomaticNames { sni: false, san_validation: false };
    let error = client_context(&ClientCache::default(), &lookup, &client, names).unwrap_err();
    assert_eq!(fields(error), expected(1));
}

/// The settings of a server with a certificate, of which nothing is read.
fn server_with(common: &str) -> Result<()> {
    let value: DownstreamTlsContext = read(&format!(
        "common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: c}}, private_key: {{inline_string: k}}}}], {common}}}\n"
    ));
    let lookup = Lookup { statics: &BTreeMap::new(), come: &|_| None };
    settings_of(&lookup, &value, &[]).map(drop)
}

/// Every compile made another place, and the connections of the one before stayed open beside it.
#[test]
fn a_cluster_that_is_compiled_again_keeps_its_tls() {
    let context = context();
    let of = |sni: &str, scope: &str| {
        let cluster: sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster = read(&format!(
            "name: c\ntransport_socket: {{name: tls, typed_config: {{{UPSTREAM}, sni: {sni}}}}}\n"
        ));
        Transports::of(&context, &cluster, &Protocol::default(), scope).unwrap().tls.unwrap()
    };
    let first = of("a.test", "cluster.c.");
    assert!(Arc::ptr_eq(&first, &of("a.test", "cluster.c.")));
    assert!(!Arc::ptr_eq(&first, &of("b.test", "cluster.c.")));
    let other = of("a.test", "cluster.d.");
    assert!(!Arc::ptr_eq(&first, &other) && first.holds(&other.context().unwrap()));
}

#[test]
fn sessions_are_resumed_as_it_is_said() {
    let of = |fields: &str| {
        let value: DownstreamTlsContext = read(&format!(
            "common_tls_context: {{tls_certificates: [{{certificate_chain: {{inline_string: c}}, private_key: {{inline_string: k}}}}]}}\n{fields}\n"
        ));
        let lookup = Lookup { statics: &BTreeMap::new(), come: &|_| None };
        let settings = settings_of(&lookup, &value, &["a.test".to_owned()])?;
        assert!(settings.iter().all(|settings| settings.server_names == ["a.test"]));
        Ok::<_, ConfigError>(settings.map(|it| (it.tickets, it.session_ids)))
    };
    assert_eq!(of("").unwrap(), Some((Tickets::Own, true)));
    assert_eq!(of("disable_stateless_session_resumption: true").unwrap(), Some((Tickets::Off, true)));
    assert_eq!(of("disable_stateful_session_resumption: true").unwrap(), Some((Tickets::Own, false)));
    let keys = Tickets::Keys(vec![Pem::Inline(b"a".into()), Pem::File("/k".into())]);
    let given = "session_ticket_keys: {keys: [{inline_string: a}, {filename: /k}]}";
    assert_eq!(of(given).unwrap(), Some((keys, true)));
    let error = of("session_ticket_keys_sds_secret_config: {name: t}").unwrap_err().to_string();
    assert_eq!(error, "session_ticket_keys_sds_secret_config.name: there is no secret \"t\"");
    let awaited = "session_ticket_keys_sds_secret_config: {name: t, sds_config: {ads: {}}}";
    assert_eq!(of(awaited).unwrap(), None, "it has not come");
    let check = |keys: &str| {
        check_secret(&read(&format!("name: t\nsession_ticket_keys: {{keys: [{keys}]}}\n")))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(check("{inline_string: short}"), "session_ticket_keys.keys[0]: must have 80 bytes, not 5");
}
