//! Plugins and surroundings for tests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use sixfold_core::compile::CompileContext;
use sixfold_core::connection::{Connection, TlsInfo};
use sixfold_core::error::ConfigError;
use sixfold_core::listener::ConnectionFilter;
use sixfold_core::model::{Diff, Model};
use sixfold_core::plugin::{
    ApisixFactory, BroughtUpstream, BuildContext, Built, BuiltInStreams, Credential, FilterFactory,
    Identities, LocalReply, Plugin, Registry, Slot, Step,
};
use sixfold_core::stream::Stream;

use crate::config::{Config, EnvVars};
use crate::source::{Source, SourceContext, Update};
use crate::store::{Resources, TextStore};

/// Every configuration that was built, with the resource it was built for.
static BUILT: Mutex<Vec<(String, Value)>> = Mutex::new(Vec::new());

pub(crate) fn built() -> Vec<(String, Value)> {
    BUILT.lock().clone()
}

struct Refuses(u16);

impl Refuses {
    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        Step::Respond(LocalReply::new(self.0, "no", "refused"))
    }
}

fn build(config: Value, context: &BuildContext) -> Built {
    if config.get("text").and_then(Value::as_str) == Some("unbuildable") {
        return Err(ConfigError::field("text", "can't be built"));
    }
    BUILT.lock().push((context.resource.to_string(), config));
    Ok(Plugin::default())
}

/// Does nothing with a connection.
#[derive(Debug)]
struct Passes;

impl ConnectionFilter for Passes {}

fn build_in_streams(_: Value, _: &BuildContext) -> BuiltInStreams {
    Ok(Arc::new(Passes))
}

#[derive(serde::Deserialize, Clone, Copy)]
struct Refusing {
    status: Option<u16>,
}

fn build_refusing(config: Refusing, _: &BuildContext) -> Built {
    Ok(Plugin::of(Refuses(config.status.unwrap_or(403))).access(Refuses::access).build())
}

/// All with one `group` have one `count`.
fn agreement(config: &Value) -> Option<(String, String)> {
    Some((config.get("group")?.as_str()?.to_owned(), config.get("count")?.to_string()))
}

/// Finds consumers by the word in the header `knock`.
struct Knock(Arc<Identities>);

impl Knock {
    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let found = stream.request.headers.get("knock").and_then(|word| self.0.find(word));
        match found {
            Some(identity) => {
                stream.set_var("credential", identity.credential.as_deref().unwrap_or("").as_bytes());
                Step::Identify(identity.consumer.clone())
            }
            None => Step::Respond(LocalReply::new(401, "", "")),
        }
    }
}

/// The text is what instances see.
#[allow(clippy::needless_pass_by_value)]
fn metadata(said: Value) -> Result<String, ConfigError> {
    match said["text"].as_str() {
        Some("bad") | None => Err(ConfigError::field("text", "is bad")),
        Some(text) => Ok(text.to_owned()),
    }
}

fn build_knock(_: Value, context: &BuildContext) -> Built {
    Ok(Plugin::of(Knock(context.consumers.of("knock"))).rewrite(Knock::rewrite).build())
}

// What `ApisixFactory::auth` takes.
#[allow(clippy::needless_pass_by_value)]
fn credential(said: Value) -> Result<Credential, ConfigError> {
    match said["word"].as_str() {
        Some("") | None => Err(ConfigError::field("word", "must not be empty")),
        Some(word) => Ok(Credential::new(word.as_bytes(), ())),
    }
}

pub(crate) fn registry() -> Registry {
    const METADATA: &str =
        r#"{"type": "object", "properties": {"text": {"type": "string", "default": "none"}}}"#;
    const KNOCK: &str =
        r#"{"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}"#;
    const MARKER: &str = r#"{
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer", "default": 7}},
        "required": ["text"]
    }"#;
    const SEALED: &str = r#"{"type": "object", "encrypt_fields": ["secret"]}"#;
    const ANY: &str = r#"{"type": "object"}"#;
    let plugins = [
        ApisixFactory::new("marker", 100, MARKER, build).reads_metadata(METADATA, metadata),
        ApisixFactory::new("other", 200, ANY, build),
        ApisixFactory::new("late", 50, ANY, build),
        ApisixFactory::new("prometheus", 10, ANY, build).prefer_route(),
        ApisixFactory::new("refuse", 20, ANY, build_refusing),
        ApisixFactory::new("agree", 30, ANY, build).agreeing(agreement),
        ApisixFactory::new("seal", 35, SEALED, build).in_streams(ANY, build_in_streams),
        ApisixFactory::new("bring", 40, ANY, build).bringing(brought),
        ApisixFactory::new("knock", 2500, ANY, build_knock).auth(KNOCK, "word", credential),
    ];
    Registry::new(
        plugins,
        [FilterFactory::new("envoy.filter".into(), "envoy.filter".to_owned(), |_, _| Ok(Plugin::default()))],
    )
}

/// The upstreams that a plugin of tests brings, by what they are called.
fn brought(config: &Value) -> Vec<BroughtUpstream> {
    let upstreams = config.as_object().into_iter().flatten();
    let upstream = |(name, config): (&String, &Value)| BroughtUpstream {
        name: name.clone(),
        field: name.clone(),
        config: config.clone(),
    };
    upstreams.map(upstream).collect()
}

pub(crate) fn build_context() -> BuildContext {
    context().compile.build
}

pub(crate) fn environment() -> EnvVars {
    EnvVars::Fixed(HashMap::new())
}

pub(crate) fn context() -> SourceContext {
    SourceContext::detached(registry(), environment())
}

/// A context whose clusters and routes this model has.
pub(crate) fn context_of(model: &Model) -> SourceContext {
    let CompileContext { plugins, build, log_sinks, .. } = context().compile;
    SourceContext::new(CompileContext::new(model, plugins, build, log_sinks), environment())
}

/// A source of resources in a text.
pub(crate) struct TextSource {
    pub(crate) source: Source,
    store: Arc<TextStore>,
}

impl TextSource {
    pub(crate) fn new(extra: &str, context: SourceContext) -> TextSource {
        let config = Config::standalone(extra, &environment()).unwrap();
        let store = Arc::new(TextStore::new(environment()));
        TextSource { source: Source::new(config, store.clone(), context), store }
    }

    pub(crate) fn set(&self, resources: Resources<'_>) {
        self.store.set(resources);
    }

    pub(crate) fn update(&mut self, resources: Resources<'_>) -> Result<Update, Vec<ConfigError>> {
        self.set(resources);
        self.source.pull()
    }

    /// The change, if nothing is wrong.
    pub(crate) fn change(&mut self, resources: Resources<'_>) -> Result<Diff, Vec<ConfigError>> {
        let Update { diff, refused, .. } = self.update(resources)?;
        if refused.is_empty() { Ok(diff) } else { Err(refused) }
    }
}

impl std::ops::Deref for TextSource {
    type Target = Source;

    fn deref(&self) -> &Source {
        &self.source
    }
}

/// A source with a static configuration of which `extra` is part.
pub(crate) fn source(extra: &str) -> TextSource {
    TextSource::new(extra, context())
}

/// A certificate for `names` that signed itself, and its key, indented to stand in YAML.
pub(crate) fn certificate(names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A request for `target` of `host`; by TLS with what is known of it.
pub(crate) fn stream(host: &str, target: &str, tls: Option<(TlsInfo, &str)>) -> Stream {
    let client = "10.1.2.3:4000".parse().unwrap();
    let own = "127.0.0.1:9080".parse().unwrap();
    let (tls, server_name) = tls.map(|(info, name)| (info, Arc::from(name))).unzip();
    let mut stream = Stream::new(Arc::new(Connection {
        requested_server_name: server_name,
        tls,
        ..Connection::plain(client, own)
    }));
    stream.request.authority = host.as_bytes().to_vec();
    stream.request.target.set(target.as_bytes());
    stream
}

/// A folder of a test that is made when something is put there, and gone at its end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// A folder that no other test has: `name` begins with what is tested.
    pub(crate) fn new(name: &str) -> Folder {
        Folder(std::env::temp_dir().join(format!("sixfold-{name}-{}", std::process::id())))
    }

    /// The same, which is there.
    pub(crate) fn made(name: &str) -> Folder {
        let folder = Folder::new(name);
        std::fs::create_dir_all(&folder.0).unwrap();
        folder
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
