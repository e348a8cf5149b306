//! Settings and the secrets that they are made of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sixfold_core::cluster::Cluster;
use sixfold_core::error::ConfigError;
use sixfold_core::secret::SecretSource;
use sixfold_core::tls::{Awaited, ClientTls, ContextChange};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{SdsSecretConfig, Secret};

use super::files::Looks;
use super::*;
use crate::cluster;
use crate::context::Context;
use crate::rds::Source;
use crate::testing::{context, read};
use sixfold_core::files::{self, Stamp};

struct Pki {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl Pki {
    fn new() -> Pki {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        Pki { issuer: Issuer::new(params, key), root }
    }

    /// Certificate and key.
    fn leaf(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn certificate(&self, name: &str) -> Vec<u8> {
        let (chain, key) = self.leaf();
        secret(
            name,
            &format!(
                "tls_certificate: {{certificate_chain: {{inline_string: {chain:?}}}, private_key: {{inline_string: {key:?}}}}}"
            ),
        )
    }

    fn trusted(&self, name: &str) -> Vec<u8> {
        secret(name, &format!("validation_context: {{trusted_ca: {{inline_string: {:?}}}}}", self.root))
    }
}

fn secret(name: &str, text: &str) -> Vec<u8> {
    read::<Secret>(&format!("name: {name}\n{text}\n")).encode_to_vec()
}

const API: &str = "api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}";

/// A cluster whose certificate is `default` and whose authority is `ROOTCA`, from that source.
fn mesh(context: &Context, source: &str, sans: &str) -> Arc<Cluster> {
    let config = format!("sds_config: {{{source}, initial_fetch_timeout: 3s}}");
    let text = format!(
        "name: mesh\ntransport_socket_matches: [{{name: m, match: {{tlsMode: istio}}, transport_socket: {{name: t, typed_config: {{\
         '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {{\
         tls_certificate_sds_secret_configs: [{{name: default, {config}}}], combined_validation_context: {{\
         default_validation_context: {{{sans}}}, validation_context_sds_secret_config: {{name: ROOTCA, {config}}}}}}}}}}}}}]\n"
    );
    cluster::compile(context, &read(&text), true).unwrap()
}

const SANS: &str = "match_subject_alt_names: [{exact: a.test}]";

fn tls(cluster: &Cluster) -> &Arc<ClientTls> {
    cluster.config.all_tls().next().unwrap()
}

fn is_awaited(cluster: &Cluster) -> bool {
    tls(cluster).awaited().is_some_and(Awaited::is_awaited)
}

fn key(source: &Source, name: &str) -> SecretKey {
    SecretKey { source: source.clone(), name: name.into() }
}

/// Takes a secret, and answers how many settings change by it.
fn bring(context: &Context, key: &SecretKey, value: &[u8]) -> usize {
    let changes = context.sds.put(context.sds.check(key, value).unwrap());
    let count = changes.len();
    changes.into_iter().for_each(ContextChange::put_in_force);
    count
}

/// Keys that are named, none of them that of the stream of all resources.
fn source_of(context: &Context) -> Source {
    let wanted = context.sds.wanted(|source| *source != Source::Ads);
    assert_eq!(wanted.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["ROOTCA", "default"]);
    wanted[0].source.clone()
}

#[test]
fn settings_are_ready_when_the_last_of_their_secrets_has_come() {
    let (context, pki) = (context(), Pki::new());
    let first = mesh(&context, API, SANS);
    let source = source_of(&context);
    assert_eq!(tls(&first).awaited().unwrap().limit, Some(Duration::from_secs(3)));
    assert_eq!(bring(&context, &key(&source, "default"), &pki.certificate("default")), 0);
    assert!(is_awaited(&first) && tls(&first).context().is_none());
    let changes =
        context.sds.put(context.sds.check(&key(&source, "ROOTCA"), &pki.trusted("ROOTCA")).unwrap());
    assert!(changes.len() == 1 && is_awaited(&first), "nothing is shown before it is in force");
    changes.into_iter().for_each(ContextChange::put_in_force);
    let before = tls(&first).context().unwrap();
    assert!(!is_awaited(&first));
    // Who comes later finds them; both hear of the next.
    let second = mesh(&context, API, "match_subject_alt_names: [{exact: b.test}]");
    assert!(!is_awaited(&second) && tls(&second).context().is_some());
    // What is compiled again is the same as before: so its connections serve on.
    let again = mesh(&context, API, SANS);
    assert!(Arc::ptr_eq(tls(&first), tls(&again)) && !Arc::ptr_eq(tls(&first), tls(&second)));
    assert_eq!(bring(&context, &key(&source, "default"), &pki.certificate("default")), 2);
    assert!(!Arc::ptr_eq(&before, &tls(&first).context().unwrap()));
    assert_eq!(
        context.compile.metrics().sum("cluster.mesh.client_ssl_socket_factory.", "ssl_context_update_by_sds"),
        3
    );
    // What nobody names is not asked for.
    drop((first, second, again));
    assert_eq!(context.sds.wanted(|_| true), []);
    assert_eq!(bring(&context, &key(&source, "default"), &pki.certificate("default")), 0);
}

#[test]
fn a_secret_that_does_not_fit_changes_nothing() {
    let (context, pki) = (context(), Pki::new());
    let cluster = mesh(&context, API, SANS);
    let source = source_of(&context);
    let (default, root) = (key(&source, "default"), key(&source, "ROOTCA"));
    bring(&context, &default, &pki.certificate("default"));
    bring(&context, &root, &pki.trusted("ROOTCA"));
    let before = tls(&cluster).context().unwrap();
    let (chain, _) = pki.leaf();
    let (_, other) = pki.leaf();
    let mixed = format!(
        "tls_certificate: {{certificate_chain: {{inline_string: {chain:?}}}, private_key: {{inline_string: {other:?}}}}}"
    );
    for (key, value, reason) in [
        (&default, secret("default", &mixed), "tls_certificate.private_key: "),
        (
            &default,
            secret(
                "default",
                "tls_certificate: {certificate_chain: {inline_string: x}, private_key: {inline_string: x}}",
            ),
            "tls_certificate.certificate_chain: inline PEM: no certificate",
        ),
        (&default, secret("default", "generic_secret: {}"), "generic_secret.secret: is missing"),
        (&default, secret("default", ""), "type: is missing"),
        (&default, pki.certificate("other"), "name: is \"other\" in the secret \"default\""),
        (
            &default,
            pki.trusted("default"),
            "UpstreamTlsContext.common_tls_context.tls_certificate_sds_secret_configs[0].name: secret \"default\" is no tls_certificate",
        ),
        (&root, pki.certificate("ROOTCA"), "secret \"ROOTCA\" is no validation_context"),
        (
            &root,
            secret("ROOTCA", "validation_context: {trusted_ca: {inline_string: x}}"),
            "validation_context.trusted_ca: inline PEM: no certificate",
        ),
        (
            &root,
            secret("ROOTCA", "validation_context: {trusted_ca: {filename: /nowhere}}"),
            "validation_context.trusted_ca.filename: can't read /nowhere",
        ),
        (&root, vec![0xff], "is not a valid"),
    ] {
        let error = context.sds.check(key, &value).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert!(Arc::ptr_eq(&before, &tls(&cluster).context().unwrap()));
    let count = |name: &str| context.compile.metrics().sum("sds.", name);
    assert_eq!((count("update_success"), count("update_rejected"), count("update_attempt")), (2, 10, 12));
    assert!(count("update_time") > 0, "nothing told when they came");
}

/// What two secrets make of each other: one that was compiled beside the other's predecessor does not count.
#[test]
fn secrets_that_come_together_are_compiled_together() {
    let (context, pki) = (context(), Pki::new());
    let cluster = mesh(&context, API, SANS);
    let source = source_of(&context);
    let (default, root) = (key(&source, "default"), key(&source, "ROOTCA"));
    let certificate = context.sds.check(&default, &pki.certificate("default")).unwrap();
    let trusted = context.sds.check(&root, &pki.trusted("ROOTCA")).unwrap();
    assert!(context.sds.put(certificate).is_empty());
    let late = mesh(&context, API, SANS);
    let changes = context.sds.put(trusted);
    assert_eq!(changes.len(), 2);
    changes.into_iter().for_each(ContextChange::put_in_force);
    assert!(tls(&cluster).context().is_some() && tls(&late).context().is_some());
}

#[test]
fn what_is_wrong_in_settings_is_told_before_their_secrets_come() {
    let context = context();
    let of = |source: &str, rest: &str| {
        let text = format!(
            "name: c\ntransport_socket: {{name: t, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: default, sds_config: {{{source}}}}}], {rest}}}}}}}\n"
        );
        let error = cluster::compile(&context, &read(&text), true).unwrap_err();
        error.into_all().iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n")
    };
    let at = "transport_socket.typed_config.common_tls_context.";
    for (source, rest, reason) in [
        (API, "tls_params: {ecdh_curves: [x]}", format!("{at}tls_params.ecdh_curves: curve \"x\"")),
        (
            API,
            "validation_context: {trusted_ca: {filename: /nowhere}}",
            format!("{at}validation_context.trusted_ca: "),
        ),
        (
            "api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: other}}]}",
            "",
            format!(
                "{at}tls_certificate_sds_secret_configs[0].sds_config.api_config_source.grpc_services[0].envoy_grpc.cluster_name: unknown cluster \"other\" in static_resources"
            ),
        ),
    ] {
        let error = of(source, rest);
        assert!(error.contains(&reason), "{error} has no {reason}");
    }
    // Each file that is not there is told, by the field that names it.
    let error = of(
        "path_config_source: {path: /nowhere}",
        "combined_validation_context: {default_validation_context: {}, \
         validation_context_sds_secret_config: {name: v, sds_config: {path: /none}}}",
    );
    for named in [
        "tls_certificate_sds_secret_configs[0].sds_config.path_config_source.path: /nowhere: ",
        "combined_validation_context.validation_context_sds_secret_config.sds_config.path: /none: ",
    ] {
        assert!(error.contains(&format!("{at}{named}")), "{error} has no {named}");
    }
}

#[test]
fn secrets_in_files_are_there_at_once_and_follow_their_files() {
    let directory = std::env::temp_dir().join(format!("sixfold-sds-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    // By rename, so that nobody sees half of it.
    let write = |name: &str, text: &str| {
        std::fs::write(path("new"), text).unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    let (context, pki) = (context(), Pki::new());
    let write_leaf = || {
        let (chain, key) = pki.leaf();
        write("chain.pem", &chain);
        write("key.pem", &key);
    };
    write_leaf();
    write("root.pem", &pki.root);
    let kind = "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    let in_file = |root: &str| {
        format!(
            "resources:\n- {{{kind}, name: ROOTCA, validation_context: {{trusted_ca: {{filename: {}}}}}}}\n- {{{kind}, name: default, tls_certificate: {{\
             certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}}}\n",
            path(root),
            path("chain.pem"),
            path("key.pem")
        )
    };
    write("secrets.yaml", &in_file("root.pem"));
    let cluster = mesh(&context, &format!("path_config_source: {{path: {}}}", path("secrets.yaml")), SANS);
    let first = tls(&cluster).context().unwrap();
    let mut looks = Looks::new();
    let mut look = || {
        let read = context.sds.look_at_files(&mut looks).into_iter();
        let changes: Vec<_> = read.flat_map(|again| context.sds.put_again(again)).collect();
        let count = changes.len();
        changes.into_iter().for_each(ContextChange::put_in_force);
        count
    };
    assert_eq!((look(), look()), (0, 0), "nothing has changed");
    write_leaf();
    assert_eq!((look(), look()), (1, 0));
    let second = tls(&cluster).context().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    // A key that has not followed its certificate yet, a file that is gone, and one of another secret.
    write("key.pem", &pki.leaf().1);
    assert_eq!(look(), 0);
    std::fs::remove_file(path("root.pem")).unwrap();
    write("secrets.yaml", "resources: []\n");
    assert_eq!(look(), 0);
    assert!(Arc::ptr_eq(&second, &tls(&cluster).context().unwrap()));
    assert!(context.compile.metrics().sum("sds.default.", "key_rotation_failed") > 0);
    write("root2.pem", &Pki::new().root);
    write_leaf();
    write("secrets.yaml", &in_file("root2.pem"));
    assert!(look() > 0);
    assert!(!Arc::ptr_eq(&second, &tls(&cluster).context().unwrap()));
    std::fs::remove_dir_all(&directory).unwrap();
}

/// No other was seen for as long as one disk did not answer.
#[test]
fn a_disk_that_hangs_holds_up_no_other_secret() {
    static HANGS: AtomicBool = AtomicBool::new(true);
    fn stamp(path: &Path) -> io::Result<Stamp> {
        while path.ends_with("hangs.yaml") && HANGS.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        files::stamp(path)
    }
    let directory = std::env::temp_dir().join(format!("sixfold-sds-hangs-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    let (context, pki) = (context(), Pki::new());
    let write = |name: &str| {
        let kind = "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        let ((chain, key), root) = (pki.leaf(), &pki.root);
        let text = format!(
            "resources:\n- {{{kind}, name: ROOTCA, validation_context: {{trusted_ca: {{inline_string: {root:?}}}}}}}\n- {{{kind}, name: default, \
             tls_certificate: {{certificate_chain: {{inline_string: {chain:?}}}, private_key: {{inline_string: {key:?}}}}}}}\n"
        );
        std::fs::write(path("new"), text).unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    let [hanging, other] = ["hangs.yaml", "other.yaml"].map(|name| {
        write(name);
        mesh(&context, &format!("path_config_source: {{path: {}}}", path(name)), SANS)
    });
    let context_of = |cluster: &Cluster| tls(cluster).context().unwrap();
    let mut looks = Looks::by(stamp);
    let mut has_changed = |cluster: &Cluster| {
        let before = context_of(cluster);
        for again in context.sds.look_at_files(&mut looks) {
            context.sds.put_again(again).into_iter().for_each(ContextChange::put_in_force);
        }
        !Arc::ptr_eq(&before, &context_of(cluster))
    };
    write("hangs.yaml");
    for _ in 0..2 {
        write("other.yaml");
        // On a busy machine its own disk may answer too late for one look.
        let begun = Instant::now();
        while !has_changed(&other) {
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }
    HANGS.store(false, SeqCst);
    // The thread that was left to the disk has to notice.
    let begun = Instant::now();
    while !has_changed(&hanging) {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// What had changed while its disk was slow was never read again, and certificates ran out.
#[test]
fn what_a_slow_disk_did_not_give_in_time_is_read_again() {
    let directory = std::env::temp_dir().join(format!("sixfold-sds-slow-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    let (context, pki) = (context(), Pki::new());
    let write = |name: &str, text: &str| {
        std::fs::write(path("new"), text).unwrap();
        std::fs::rename(path("new"), path(name)).unwrap();
    };
    // Each version has names of its own, as a text that names files may have.
    let write_leaf = |version: &str| {
        let (chain, leaf_key) = pki.leaf();
        let (chain_file, key_file) = (format!("chain{version}.pem"), format!("key{version}.pem"));
        write(&chain_file, &chain);
        write(&key_file, &leaf_key);
        let kind = "\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        let text = format!(
            "resources:\n- {{{kind}, name: ROOTCA, validation_context: {{trusted_ca: {{filename: {}}}}}}}\n- {{{kind}, name: default, \
             tls_certificate: {{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}}}\n",
            path("root.pem"),
            path(&chain_file),
            path(&key_file)
        );
        write("secrets.yaml", &text);
    };
    write("root.pem", &pki.root);
    write_leaf("0");
    let cluster = mesh(&context, &format!("path_config_source: {{path: {}}}", path("secrets.yaml")), SANS);
    let mut looks = Looks::new();
    let mut look = || {
        let before = tls(&cluster).context().unwrap();
        for again in context.sds.look_at_files(&mut looks) {
            context.sds.put_again(again).into_iter().for_each(ContextChange::put_in_force);
        }
        !Arc::ptr_eq(&before, &tls(&cluster).context().unwrap())
    };
    assert!(!look());
    for (version, slow) in [("1", "secrets.yaml"), ("2", "chain2.pem"), ("3", "key3.pem")] {
        // As long as it has not answered who has asked before, it is not asked again.
        let (slow, answers) = (path(slow), Arc::new(AtomicBool::new(false)));
        write_leaf(version);
        let answered = answers.clone();
        let silent = files::promptly(Path::new(&slow), move |_| {
            while !answered.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        assert!(silent.is_err());
        let failed = || context.compile.metrics().sum("sds.default.", "key_rotation_failed");
        let before = failed();
        assert!(!look() && !look(), "{slow}");
        assert_eq!(failed() - before, 1, "{slow}: told once");
        answers.store(true, SeqCst);
        let begun = Instant::now();
        while !look() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{slow} was not read again");
        }
        assert!(!look(), "{slow}");
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

/// What the control plane does not have, and what is no good, is not waited for; the others still are.
#[test]
fn nobody_waits_for_a_secret_that_is_said_not_to_be() {
    let (context, pki) = (context(), Pki::new());
    let cluster = mesh(&context, API, SANS);
    let source = source_of(&context);
    let (default, root) = (key(&source, "default"), key(&source, "ROOTCA"));
    context.sds.give_up(&default);
    assert!(is_awaited(&cluster));
    assert_eq!(bring(&context, &root, &pki.trusted("ROOTCA")), 0);
    assert!(!is_awaited(&cluster) && tls(&cluster).context().is_none());
    assert!(!is_awaited(&mesh(&context, API, SANS)), "who names it later does not wait either");
    assert_eq!(bring(&context, &default, &pki.certificate("default")), 1);
    assert!(tls(&cluster).context().is_some());
    // One that is no good has come all the same.
    let other = self::context();
    let cluster = mesh(&other, API, SANS);
    bring(&other, &root, &pki.trusted("ROOTCA"));
    assert!(other.sds.check(&default, &secret("default", "")).is_err());
    assert!(!is_awaited(&cluster) && tls(&cluster).context().is_none());
}

/// What a rotated file made of an older secret took the place of a newer one that had come while it was read.
#[test]
fn what_is_read_again_takes_only_the_place_of_what_it_was_read_for() {
    let directory = std::env::temp_dir().join(format!("sixfold-sds-again-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (chain, key_file) = (directory.join("chain.pem"), directory.join("key.pem"));
    let (context, pki) = (context(), Pki::new());
    let write_leaf = || {
        let (certificate, key) = pki.leaf();
        std::fs::write(&chain, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
    };
    let in_files = secret(
        "default",
        &format!(
            "tls_certificate: {{certificate_chain: {{filename: {}}}, private_key: {{filename: {}}}}}",
            chain.display(),
            key_file.display()
        ),
    );
    let cluster = mesh(&context, API, SANS);
    let source = source_of(&context);
    let default = key(&source, "default");
    bring(&context, &key(&source, "ROOTCA"), &pki.trusted("ROOTCA"));
    write_leaf();
    bring(&context, &default, &in_files);
    write_leaf();
    let mut read = context.sds.look_at_files(&mut Looks::new());
    assert_eq!(read.len(), 1);
    assert_eq!(bring(&context, &default, &pki.certificate("default")), 1);
    let newest = tls(&cluster).context().unwrap();
    assert!(context.sds.put_again(read.remove(0)).is_empty());
    assert!(Arc::ptr_eq(&newest, &tls(&cluster).context().unwrap()));
    assert!(context.sds.look_at_files(&mut Looks::new()).is_empty(), "those files are nobody's now");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn plugins_see_the_texts_of_secrets_that_they_name() {
    let context = context();
    let text_in = |context: &Context, described: &str| {
        SecretsOf::new(context).text(&read::<SdsSecretConfig>(described).encode_to_vec())
    };
    let generic = |name: &str, text: &str| {
        let text = format!("generic_secret: {{secret: {{inline_string: {text}}}}}");
        secret(name, &text)
    };
    // By itself: each text takes the place of the one before, and one of another kind is refused.
    let place = text_in(&context, &format!("name: s\nsds_config: {{{API}}}\n")).unwrap();
    assert!(place.load().is_none());
    let key = context.sds.wanted(|source| *source != Source::Ads).remove(0);
    for text in ["one", "two"] {
        assert_eq!(bring(&context, &key, &generic("s", text)), 1);
        assert_eq!(place.load().as_deref().map(|text| &**text), Some(text.as_bytes()));
    }
    let other = context.sds.check(&key, &Pki::new().trusted("s")).unwrap_err().to_string();
    assert!(other.contains("no generic_secret"), "{other}");
    assert_eq!(place.load().as_deref().map(|text| &**text), Some(&b"two"[..]));
    drop(place);
    assert!(context.sds.wanted(|_| true).is_empty(), "nobody names it any more");

    // Of the bootstrap.
    let statics = [generic("s", "own"), Pki::new().trusted("ca")].map(|bytes| {
        let message = Secret::decode(&*bytes).unwrap();
        (message.name.clone(), Arc::new(message))
    });
    let context = Context { secrets: Arc::new(BTreeMap::from(statics)), ..context };
    let place = text_in(&context, "name: s").unwrap();
    assert_eq!(place.load().as_deref().map(|text| &**text), Some(&b"own"[..]));
    for (name, reason) in
        [("ca", "the secret \"ca\" is no generic_secret"), ("none", "there is no secret \"none\"")]
    {
        let error = text_in(&context, &format!("name: {name}")).unwrap_err();
        assert_eq!(error.reason, reason);
    }
}
