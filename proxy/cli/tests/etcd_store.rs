//! The store in a real etcd, by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../apisix/src/store/conformance/asked.rs"]
mod asked;
mod support;

use asked::{conforms, key, told};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use sixfold_apisix::config::{Config, EnabledPlugins, EnvVars};
use sixfold_apisix::resource::Kind;
use sixfold_apisix::store::{
    Action, Change, EtcdOptions, EtcdStore, Key, Sink, Store, StoreError, StoreExt, Write,
};
use sixfold_core::plugin::Callout;
use sixfold_server::callout::{CalloutConfig, Callouts};
use sixfold_server::dns::{DnsCache, ResolverConfig};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::etcd::{Etcd, Relay, until};
use support::{Directory, free_port};

/// Opens it as a config.yaml with this `deployment.etcd` says.
fn open(directory: &Directory, etcd: &str) -> Result<EtcdStore, String> {
    open_with(directory, etcd, |_| {})
}

fn open_with(
    directory: &Directory,
    etcd: &str,
    change: impl FnOnce(&mut EtcdOptions),
) -> Result<EtcdStore, String> {
    let text = format!("deployment: {{role_traditional: {{config_provider: etcd}}, etcd: {etcd}}}\n");
    let config = Config::parse(&text, "config.yaml", &EnvVars::Fixed(Default::default())).unwrap();
    let dns = DnsCache::start(ResolverConfig::default()).unwrap();
    let callout: Arc<dyn Callout> = Arc::new(Callouts::new(dns, CalloutConfig::default()));
    let mut options = EtcdOptions {
        etcd: config.deployment.etcd.unwrap(),
        trusted: None,
        may_wait: false,
        writes: true,
        follows_plugins: false,
        plugins: EnabledPlugins::default(),
    };
    change(&mut options);
    let path = Path::new(&directory.path("etcd.redb")).to_owned();
    EtcdStore::open(options, Some(&path), &callout).map_err(|error| error.to_string())
}

fn hosts(urls: &[&str]) -> String {
    format!("{{host: {urls:?}, resync_delay: 0, health_check_timeout: 1}}")
}

#[test]
fn the_store_in_etcd_conforms() {
    let (etcd, directory) = (Etcd::start(), Directory::new());
    let store = open(&directory, &hosts(&[&etcd.url()])).unwrap();
    conforms(&store);
    // As a gateway of APISIX finds it.
    assert_eq!(etcd.get("/apisix/routes/").as_deref(), Some("init_dir"));
    assert_eq!(etcd.get("/apisix/secrets/").as_deref(), Some("init_dir"));
    store.put(&Key::of_credential("jack", "two"), "{}".into()).unwrap();
    assert_eq!(etcd.get("/apisix/consumers/jack/credentials/two").as_deref(), Some("{}"));
    // More than etcd takes at once.
    let many = |n: usize| Write::put(Key::of_credential("jill", &n.to_string()), "{}".into());
    let first = Write::put(Key::new(Kind::Consumer, "jill"), "{}".into());
    store.commit(std::iter::once(first).chain((0..300).map(many)).collect()).unwrap();
    let gone = |n: usize| Write::delete(Key::of_credential("jill", &n.to_string()));
    let first = Write::delete(Key::new(Kind::Consumer, "jill"));
    let committed = store.commit(std::iter::once(first).chain((0..300).map(gone)).collect()).unwrap();
    assert_eq!((committed.replaced.len(), committed.replaced.contains(&false)), (301, false));
}

#[test]
fn another_prefix_has_other_values() {
    let (etcd, one, other) = (Etcd::start(), Directory::new(), Directory::new());
    let store = open(&one, &format!("{{host: ['{}'], prefix: /a/b/}}", etcd.url())).unwrap();
    store.put(&key("x"), r#"{"n":1}"#.into()).unwrap();
    assert_eq!((store.prefix(), etcd.get("/a/b/routes/x").as_deref()), ("/a/b", Some(r#"{"n":1}"#)));
    assert_eq!(told(&open(&other, &hosts(&[&etcd.url()])).unwrap()), BTreeMap::new());
}

/// What was changed meanwhile was not told when changes had been compacted before the store came back.
#[test]
fn changes_that_were_missed_and_compacted_are_found() {
    let (etcd, directory) = (Etcd::start(), Directory::new());
    let relay = Relay::to(etcd.port);
    let store = open(&directory, &hosts(&[&format!("http://127.0.0.1:{}", relay.port)])).unwrap();
    for id in ["stays", "changes", "goes"] {
        store.put(&key(id), r#"{"n":1}"#.into()).unwrap();
    }
    assert_eq!(told(&store).len(), 3);
    relay.set_open(false);
    etcd.put("/apisix/routes/changes", r#"{"n":2}"#);
    etcd.put("/apisix/routes/comes", r#"{"n":2}"#);
    etcd.delete("/apisix/routes/goes");
    let last = etcd.put("/apisix/gen_id", "1");
    etcd.compact(last);
    assert!(told(&store).is_empty());
    relay.set_open(true);
    let mut changes = BTreeMap::new();
    until("changes", || {
        changes.extend(told(&store));
        changes.len() == 3
    });
    assert_eq!(changes["route \"goes\""], None);
    for id in ["changes", "comes"] {
        assert_eq!(changes[&format!("route \"{id}\"")].as_ref().unwrap().0, r#"{"n":2}"#);
    }
    // And it goes on.
    etcd.put("/apisix/routes/later", "{}");
    until("a later change", || told(&store).contains_key("route \"later\""));
}

/// What others do in the cluster is compacted as well.
#[test]
fn a_store_that_nobody_has_changed_goes_on_where_it_was() {
    let (etcd, directory) = (Etcd::start(), Directory::new());
    let relay = Relay::to(etcd.port);
    let store = open(&directory, &hosts(&[&format!("http://127.0.0.1:{}", relay.port)])).unwrap();
    for id in ["stays", "goes", "changes"] {
        store.put(&key(id), r#"{"n":1}"#.into()).unwrap();
    }
    store.delete(&key("goes")).unwrap();
    told(&store);
    let interrupted = |between: &dyn Fn()| {
        relay.set_open(false);
        between();
        etcd.compact(etcd.put("/others/one", "1"));
        relay.set_open(true);
    };
    interrupted(&|| ());
    etcd.put("/apisix/routes/later", "{}");
    until("a later change", || told(&store).contains_key("route \"later\""));
    // As many as before, and others.
    interrupted(&|| {
        etcd.delete("/apisix/routes/stays");
        etcd.put("/apisix/routes/new", "{}");
    });
    let mut changes = BTreeMap::new();
    until("what was compacted", || {
        changes.extend(told(&store));
        changes.len() == 2
    });
    assert!(changes["route \"stays\""].is_none() && changes["route \"new\""].is_some());
    // One less, and nothing new.
    interrupted(&|| etcd.delete("/apisix/routes/changes"));
    until("what was deleted", || told(&store).get("route \"changes\"") == Some(&None));
}

/// An etcd that was put back to an earlier state has smaller revisions, of which a watch waits for later ones.
#[test]
fn another_etcd_at_the_same_place_is_read_whole() {
    let (etcd, other, directory) = (Etcd::start(), Etcd::start(), Directory::new());
    for n in 0..5 {
        etcd.put("/apisix/routes/a", &format!("{{\"n\":{n}}}"));
    }
    etcd.put("/apisix/routes/gone", "{}");
    let ports = [Relay::to(etcd.port), Relay::to(other.port)];
    let urls = ports.each_ref().map(|relay| format!("http://127.0.0.1:{}", relay.port));
    let store = open(&directory, &hosts(&[&urls[0], &urls[1]])).unwrap();
    assert_eq!(told(&store).len(), 2);
    other.put("/apisix/routes/a", r#"{"n":"other"}"#);
    ports[0].set_open(false);
    let mut changes = BTreeMap::new();
    until("what the other one has", || {
        changes.extend(told(&store));
        changes.len() == 2
    });
    assert_eq!(changes["route \"a\""].as_ref().unwrap().0, r#"{"n":"other"}"#);
    assert_eq!(changes["route \"gone\""], None);
}

#[test]
fn a_dead_member_is_passed_over() {
    let (etcd, directory) = (Etcd::start(), Directory::new());
    let dead = format!("http://127.0.0.1:{}", free_port());
    let relay = Relay::to(etcd.port);
    let urls = [dead, format!("http://127.0.0.1:{}", relay.port), etcd.url()];
    let store = open(&directory, &hosts(&urls.each_ref().map(String::as_str))).unwrap();
    store.put(&key("a"), "{}".into()).unwrap();
    assert_eq!(told(&store).len(), 1);
    // The one that is followed dies.
    relay.set_open(false);
    // On a busy machine the last one may be late at first.
    until("a write by the last one", || store.put(&key("b"), "{}".into()).is_ok());
    etcd.put("/apisix/routes/c", "{}");
    let mut changes = BTreeMap::new();
    until("changes by the last one", || {
        changes.extend(told(&store));
        changes.len() == 2
    });
}

/// A member that takes connections and says nothing was followed for ever.
#[test]
fn a_silent_member_is_left() {
    let (etcd, directory) = (Etcd::start(), Directory::new());
    let etcd_of = format!(
        "{{host: ['{}'], timeout: 1, watch_timeout: 1, resync_delay: 0, health_check_timeout: 1}}",
        etcd.url()
    );
    let store = open(&directory, &etcd_of).unwrap();
    // Longer than the watch is silent without being asked.
    std::thread::sleep(Duration::from_millis(2500));
    store.put(&key("a"), "{}".into()).unwrap();
    assert_eq!(told(&store).len(), 1);
    etcd.signal("STOP");
    let refused = StoreError::Unavailable("has no healthy etcd endpoint available".to_owned());
    assert_eq!(store.get(&key("a")), Err(refused.clone()));
    assert_eq!(store.put(&key("b"), "{}".into()), Err(refused));
    etcd.signal("CONT");
    until("an answer", || store.put(&key("c"), "{}".into()).is_ok());
    until("changes", || told(&store).contains_key("route \"c\""));
}

#[test]
fn who_asks_shows_a_password_and_gets_a_new_token_when_the_old_one_ends() {
    let (mut etcd, directory) = (Etcd::with(&["--auth-token-ttl", "1"]), Directory::new());
    etcd.call("auth/user/add", &json!({ "name": "other", "password": "o" }));
    etcd.ask_for_passwords(&[("root", "r"), ("gateway", "secret")]);
    let with = |user: &str| {
        let retry = "startup_retry: 0, resync_delay: 0";
        open(&Directory::new(), &format!("{{host: ['{}'], {retry}, {user}}}", etcd.url()))
    };
    for user in ["user: gateway, password: wrong", "timeout: 5"] {
        let error = with(user).err().unwrap();
        assert!(error.contains("insufficient credentials code: 401"), "{user}: {error}");
    }
    let error = with("user: other, password: o").err().unwrap();
    assert!(error.contains("etcd forbidden code: 403"), "{error}");
    let store =
        open(&directory, &format!("{{host: ['{}'], user: gateway, password: secret}}", etcd.url())).unwrap();
    store.put(&key("a"), "{}".into()).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    store.put(&key("b"), "{}".into()).unwrap();
    assert!(store.get(&key("a")).unwrap().is_some());
    assert_eq!(told(&store).len(), 2);
}

#[test]
fn etcd_over_tls_is_verified_and_sees_a_certificate() {
    let directory = Directory::new();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority = directory.write("ca.pem", &params.self_signed(&authority_key).unwrap().pem());
    let issuer = Issuer::new(params, authority_key);
    for (name, of) in [("server", "etcd.example"), ("client", "gateway.example")] {
        let (mut params, key) =
            (CertificateParams::new(vec![of.to_owned()]).unwrap(), KeyPair::generate().unwrap());
        params.distinguished_name.push(DnType::CommonName, name);
        directory.write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
        directory.write(&format!("{name}.key"), &key.serialize_pem());
    }
    let path = |name: &str| directory.path(name);
    let mut etcd = Etcd::with(&[
        "--cert-file",
        &path("server.pem"),
        "--key-file",
        &path("server.key"),
        "--trusted-ca-file",
        &authority,
        "--client-cert-auth",
    ]);
    let identity = format!("cert: {}, key: {}", path("client.pem"), path("client.key"));
    let (url, user) = (etcd.url(), std::cell::Cell::new(""));
    let try_with = |tls: &str| {
        let user = user.get();
        let text = format!("{{host: ['{url}'], startup_retry: 0, timeout: 5, {user} tls: {{{tls}}}}}");
        open_with(&Directory::new(), &text, |options| options.trusted = Some(authority.clone().into()))
    };
    let store = try_with(&format!("{identity}, sni: etcd.example")).unwrap();
    store.put(&key("a"), "{}".into()).unwrap();
    assert_eq!(told(&store).len(), 1);
    // Not its name, another name, no certificate of ours.
    for tls in [identity.clone(), format!("{identity}, sni: other.example"), "sni: etcd.example".to_owned()] {
        let error = try_with(&tls).err().unwrap();
        assert!(error.contains("has no healthy etcd endpoint available"), "{tls}: {error}");
    }
    assert!(try_with(&format!("{identity}, verify: false")).is_ok());
    // Who asks is who the password says, else the common name of the certificate.
    etcd.ask_for_passwords(&[("root", "r"), ("gateway", "secret")]);
    let of_certificate = format!("{identity}, sni: etcd.example");
    let error = try_with(&of_certificate).err().unwrap();
    assert!(error.contains("code: 40"), "{error}");
    user.set("user: gateway, password: secret,");
    let store = try_with(&of_certificate).unwrap();
    store.put(&key("b"), "{}".into()).unwrap();
    assert_eq!(told(&store).len(), 2);
    etcd.call("auth/user/add", &json!({ "name": "client", "password": "unused" }));
    etcd.call("auth/user/grant", &json!({ "user": "client", "role": "root" }));
    user.set("");
    let store = try_with(&of_certificate).unwrap();
    store.put(&key("c"), "{}".into()).unwrap();
    assert_eq!(told(&store).len(), 3);
}
