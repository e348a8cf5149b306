//! Streams and contexts for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

mod asker;
pub(crate) mod authenticator;

pub(crate) mod grpc;

pub(crate) mod redis;

mod guard;

use parking_lot::Mutex;
use prost::{Message, Name};
use serde_json::Value;
use sixfold_core::connection::Connection;
use sixfold_core::document::{Node, Options};
use sixfold_core::error::ConfigError;
use sixfold_core::export::Here;
use sixfold_core::listener::{ConnectionFilter, FilterStep};
use sixfold_core::metrics;
use sixfold_core::plugin::{
    ApisixFactory, BodyFilters, BuildContext, ByKey, Callout, CalloutError, CalloutFuture, CalloutRequest,
    CalloutResponse, CalloutStreamFuture, Chain, ChainBuilder, Consumer, Consumers, Credential, Direction,
    FilterConfig, FilterFactory, Filtered, HeadPhase, Identity, LocalReply, Outcome, Passed, Plugin,
    RequestPhases, Scope, SharedState, Slot,
};
use sixfold_core::route::{Action, PathMatch, Route};
use sixfold_core::secret::{SecretSource, SecretText};
use sixfold_core::stream::Stream;
use sixfold_xds_api::message_from_node;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::SdsSecretConfig;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A request from 10.1.2.3 for `example.com`.
pub(crate) fn stream(target: &str, headers: &[(&str, &str)]) -> Stream {
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([127, 0, 0, 1], 9080).into());
    let mut stream = Stream::new(Arc::new(Connection::plain(client, own)));
    stream.request.authority = b"example.com".to_vec();
    stream.request.target.set(target.as_bytes());
    for (name, value) in headers {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    stream
}

/// A plugin as it works on streams, in force.
pub(crate) fn stream_plugin(name: &str, config: Value) -> Arc<dyn ConnectionFilter> {
    let filter = stream_plugin_in(name, config, &context());
    filter.in_force();
    filter
}

/// One in a context that is not in force.
pub(crate) fn stream_plugin_in(
    name: &str,
    config: Value,
    context: &BuildContext,
) -> Arc<dyn ConnectionFilter> {
    let registry = crate::registry();
    let part = registry.apisix(name).unwrap().1.streams.as_ref().unwrap();
    let mut config = config;
    complete(&serde_json::from_str(part.schema).unwrap(), &mut config);
    part.build(&config, context).unwrap()
}

/// One connection behind a plugin.
pub(crate) struct StreamFilter {
    filter: Arc<dyn ConnectionFilter>,
    pub(crate) stream: Stream,
}

impl StreamFilter {
    const SLOT: Slot = Slot::new(0, Scope::Route);

    /// Begins one from a client; an error is the status with which the plugin ends it.
    pub(crate) async fn begin(filter: &Arc<dyn ConnectionFilter>, client: &str) -> Result<StreamFilter, u16> {
        let connection = Connection::plain(client.parse().unwrap(), ([127, 0, 0, 1], 9100).into());
        let mut stream = Stream::new(Arc::new(connection));
        let mut step = filter.on_new_connection(&mut stream, StreamFilter::SLOT);
        while let FilterStep::Wait(waits) = step {
            step = waits.await(&mut stream);
        }
        match step {
            FilterStep::Close(closing) => Err(closing.status),
            _ => Ok(StreamFilter { filter: filter.clone(), stream }),
        }
    }

    pub(crate) fn end(mut self) {
        self.filter.on_close(&mut self.stream, StreamFilter::SLOT);
    }
}

/// A service that answers what it is told and keeps what it was asked.
pub(crate) struct Service {
    pub(crate) answer: Mutex<Option<CalloutResponse>>,
    pub(crate) asked: Mutex<Vec<CalloutRequest>>,
}

impl Callout for Service {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        self.asked.lock().push(request);
        let answer = self.answer.lock().take();
        Box::pin(async move {
            // Not at once: the plugin has to wait.
            tokio::task::yield_now().await;
            answer.ok_or(CalloutError::Timeout)
        })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

/// A service that answers each request.
pub(crate) struct Answering<F>(pub(crate) F);

impl<F: Fn(&CalloutRequest) -> CalloutResponse + Send + Sync> Callout for Answering<F> {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        let answer = (self.0)(&request);
        Box::pin(async { Ok(answer) })
    }

    fn open(&self, _: CalloutRequest) -> CalloutStreamFuture {
        Box::pin(async { Err(CalloutError::Timeout) })
    }
}

/// A request that has a route.
pub(crate) fn routed(target: &str, headers: &[(&str, &str)]) -> Stream {
    let mut stream = stream(target, headers);
    let path = PathMatch::Prefix(b"/"[..].into(), false);
    stream.route = Some(Arc::new(Route::new(path, Action::NonForwarding)));
    stream
}

/// A context whose callouts get `answer` once, then time out.
pub(crate) fn context_with(answer: Option<CalloutResponse>) -> (BuildContext, Arc<Service>) {
    let service = Arc::new(Service { answer: Mutex::new(answer), asked: Mutex::new(Vec::new()) });
    let context = BuildContext {
        shared: Arc::new(SharedState::default()),
        resource: "/apisix/routes/1".into(),
        attributes: Arc::new(Value::Null),
        background: Arc::new(Here::default()),
        ..BuildContext::new(service.clone(), metrics::Registry::new())
    };
    (context, service)
}

/// Secrets of tests by their names.
struct Secrets(BTreeMap<String, Arc<SecretText>>);

impl SecretSource for Secrets {
    fn text(&self, described: &[u8]) -> Result<Arc<SecretText>, ConfigError> {
        let name = <SdsSecretConfig as prost::Message>::decode(described).unwrap().name;
        self.0.get(&name).cloned().ok_or_else(|| ConfigError::new("there is no such secret"))
    }
}

/// The context with these secrets, and their places.
pub(crate) fn with_secrets(
    context: BuildContext,
    secrets: &[(&str, &str)],
) -> (BuildContext, BTreeMap<String, Arc<SecretText>>) {
    let text = |text: &str| SecretText::new(Some(text.as_bytes().into()));
    let secrets: BTreeMap<String, Arc<SecretText>> =
        secrets.iter().map(|(name, of)| ((*name).to_owned(), text(of))).collect();
    (BuildContext { secrets: Arc::new(Secrets(secrets.clone())), ..context }, secrets)
}

/// A context without a service.
pub(crate) fn context() -> BuildContext {
    context_with(None).0
}

/// A plugin alone in its chain.
pub(crate) struct Alone {
    pub(crate) chain: Chain,
}

impl Alone {
    /// The plugin in force, with one of the gateway's own before it so that it is not the first of everything.
    pub(crate) fn new(plugin: Plugin) -> Alone {
        let mut builder = ChainBuilder::new();
        builder.add("other", Plugin::default());
        builder.add("plugin", plugin);
        let chain = builder.build();
        chain.begin();
        Alone { chain }
    }

    async fn run(&self, phase: HeadPhase, stream: &mut Stream) -> Option<LocalReply> {
        match self.chain.run(phase, stream).await {
            Outcome::Done => None,
            Outcome::Respond(reply) => Some(reply),
            _ => panic!("route cleared"),
        }
    }

    pub(crate) async fn rewrite(&self, stream: &mut Stream) -> Option<LocalReply> {
        self.run(HeadPhase::Rewrite, stream).await
    }

    pub(crate) async fn access(&self, stream: &mut Stream) -> Option<LocalReply> {
        self.run(HeadPhase::Access, stream).await
    }

    pub(crate) async fn header_filter(&self, stream: &mut Stream) -> Option<LocalReply> {
        self.run(HeadPhase::HeaderFilter, stream).await
    }

    /// Runs the handlers of trailers of both sides, which do not wait.
    pub(crate) fn trailers(&self, stream: &mut Stream) {
        let mut cx = Context::from_waker(Waker::noop());
        for direction in Direction::ALL {
            let done = BodyFilters::new(direction).poll_trailers(&self.chain, stream, &mut cx);
            assert!(matches!(done, Poll::Ready(None)), "it waits or answers");
        }
    }

    /// What a response body of these pieces becomes, of bytes, where nothing waits.
    pub(crate) fn response_bytes(&self, stream: &mut Stream, pieces: &[&[u8]]) -> Vec<u8> {
        let mut bytes = pin!(self.bytes(Direction::Response, stream, pieces));
        match bytes.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(bytes) => bytes,
            Poll::Pending => panic!("it waits"),
        }
    }

    /// The same where something may wait.
    pub(crate) async fn response_bytes_waiting(&self, stream: &mut Stream, pieces: &[&[u8]]) -> Vec<u8> {
        self.bytes(Direction::Response, stream, pieces).await
    }

    /// What a request body of these pieces becomes.
    pub(crate) async fn request_bytes_waiting(&self, stream: &mut Stream, pieces: &[&[u8]]) -> Vec<u8> {
        self.bytes(Direction::Request, stream, pieces).await
    }

    async fn bytes(&self, direction: Direction, stream: &mut Stream, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut filters, mut out) = (BodyFilters::new(direction), Vec::new());
        for (piece, last) in pieces.iter().map(|piece| (*piece, false)).chain([(&b""[..], true)]) {
            let mut filtered = filters.push(&self.chain, stream, piece, last);
            loop {
                match filtered {
                    Filtered::Same => out.extend_from_slice(piece),
                    Filtered::Data(data) => out.extend_from_slice(&data),
                    Filtered::Waiting => {
                        filtered = poll_fn(|cx| filters.poll(&self.chain, stream, cx)).await;
                        continue;
                    }
                    other => panic!("{other:?}"),
                }
                break;
            }
        }
        out
    }

    /// What a body of these pieces becomes.
    pub(crate) fn response_body(&self, stream: &mut Stream, pieces: &[&str]) -> String {
        let (mut filters, mut out) = (BodyFilters::new(Direction::Response), Vec::new());
        for (piece, last) in pieces.iter().map(|piece| (*piece, false)).chain([("", true)]) {
            match filters.push(&self.chain, stream, piece.as_bytes(), last) {
                Filtered::Same => out.extend_from_slice(piece.as_bytes()),
                Filtered::Data(data) => out.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        String::from_utf8(out).unwrap()
    }

    pub(crate) fn log(&self, stream: &mut Stream) {
        self.chain.log(stream);
    }
}

/// Fills in what a schema has defaults for, as validation does it.
fn complete(schema: &Value, value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            match (map.get_mut(name), property.get("default")) {
                (Some(value), _) => complete(property, value),
                (None, Some(default)) => {
                    map.insert(name.clone(), default.clone());
                }
                (None, None) => {}
            }
        }
    }
    for item in value.as_array_mut().into_iter().flatten() {
        complete(&schema["items"], item);
    }
}

/// A plugin of this factory.
pub(crate) fn build_with(
    factory: &ApisixFactory,
    config: &Value,
    context: &BuildContext,
) -> Result<Alone, String> {
    of_factory(factory, config, context).map(Alone::new)
}

fn of_factory(factory: &ApisixFactory, config: &Value, context: &BuildContext) -> Result<Plugin, String> {
    let mut config = config.clone();
    complete(&serde_json::from_str(factory.schema).unwrap(), &mut config);
    factory.build(&config, context).map_err(|error| error.to_string())
}

/// Plugins of the registry in one chain, in this order.
pub(crate) fn chain_of(plugins: &[(&str, &Value)], context: &BuildContext) -> Arc<Chain> {
    let mut builder = ChainBuilder::new();
    for (name, config) in plugins {
        builder.add(name, of_factory(crate::registry().apisix(name).unwrap().1, config, context).unwrap());
    }
    Arc::new(builder.build())
}

/// The context in which this plugin knows consumers: their names, what they say of the plugin (nothing at all if null),
/// and the credential that says it. Each has a `custom_id`.
pub(crate) fn known(
    context: BuildContext,
    plugin: &'static str,
    consumers: &[(&str, Value, Option<&str>)],
) -> BuildContext {
    let registry = crate::registry();
    let (_, factory) = registry.apisix(plugin).unwrap();
    let (mut by_name, mut by_key) = (ByKey::default(), ByKey::default());
    for (name, said, credential) in consumers {
        let labels = BTreeMap::from([("custom_id".to_owned(), format!("id-of-{name}"))]);
        let consumer = Consumer::new((*name).into(), None, Vec::new()).with_labels(labels);
        let consumer = Arc::new(consumer);
        let identity = |credential, proof| Arc::new(Identity::new(consumer.clone(), credential, proof));
        by_name.insert(name.as_bytes().into(), identity(None, Arc::new(())));
        if said.is_null() {
            continue;
        }
        let mut said = said.clone();
        complete(&serde_json::from_str(factory.consumer_schema.unwrap()).unwrap(), &mut said);
        let Credential { key, proof, .. } =
            factory.credential(&said).unwrap_or_else(|error| panic!("{error}"));
        by_key.insert(key, identity(credential.map(Into::into), proof));
    }
    let consumers = Arc::new(Consumers::default());
    consumers.change(by_name, BTreeMap::from([(plugin, by_key)])).put_in_force();
    BuildContext { consumers, ..context }
}

/// Takes a request through its phases, which do not wait and read no body; its answer if it gets one there.
pub(crate) fn pass(chain: &Arc<Chain>, stream: &mut Stream) -> Option<LocalReply> {
    now(pass_waiting(chain, stream))
}

/// The same where something may wait.
pub(crate) async fn pass_waiting(chain: &Arc<Chain>, stream: &mut Stream) -> Option<LocalReply> {
    let (mut chain, mut phases) = (chain.clone(), RequestPhases::default());
    loop {
        match phases.run(&mut chain, stream).await {
            Passed::Done => return None,
            Passed::Respond(reply) => return Some(reply),
            Passed::Identified => {}
            _ => panic!("neither route nor body"),
        }
    }
}

/// `message` of an answer.
pub(crate) fn message_of(reply: &LocalReply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    body["message"].as_str().unwrap().to_owned()
}

/// A plugin of the registry.
pub(crate) fn build(name: &str, config: &Value, context: &BuildContext) -> Result<Alone, String> {
    build_with(crate::registry().apisix(name).unwrap().1, config, context)
}

/// A plugin of the registry in a fresh context.
pub(crate) fn plugin(name: &str, config: &Value) -> Alone {
    build(name, config, &context()).unwrap()
}

/// A message from JSON.
pub(crate) fn message<M: prost::Message + Default + prost::Name>(value: Value) -> M {
    let node = sixfold_core::document::Node::from_json(value);
    sixfold_xds_api::json::message_from_node(&node).unwrap()
}

/// A filter of Envoy from encoded messages.
pub(crate) fn filter(factory: &FilterFactory, config: &[u8], overrides: &[Vec<u8>]) -> Result<Alone, String> {
    filter_in(factory, config, overrides, &context())
}

/// A message of Envoy from YAML.
pub(crate) fn read<M: Message + Default + Name>(yaml: &str) -> M {
    let node = Node::parse(yaml, &Options { allow_empty: true, ..Options::default() }).unwrap();
    let node = if node.is_null() { Node::from_json(serde_json::json!({})) } else { node };
    message_from_node(&node).unwrap_or_else(|error| panic!("{error} in {yaml}"))
}

/// A filter of Envoy from YAML, with the settings of levels, the least specific first.
pub(crate) fn filter_of<M, O>(factory: &FilterFactory, config: &str, levels: &[&str]) -> Result<Alone, String>
where
    M: Message + Default + Name,
    O: Message + Default + Name,
{
    filter_of_in::<M, O>(factory, config, levels, &context())
}

/// The same in a context.
pub(crate) fn filter_of_in<M, O>(
    factory: &FilterFactory,
    config: &str,
    levels: &[&str],
    context: &BuildContext,
) -> Result<Alone, String>
where
    M: Message + Default + Name,
    O: Message + Default + Name,
{
    let levels: Vec<Vec<u8>> = levels.iter().map(|level| read::<O>(level).encode_to_vec()).collect();
    filter_in(factory, &read::<M>(config).encode_to_vec(), &levels, context)
}

/// The same in a context, whose statistics can be looked at.
pub(crate) fn filter_in(
    factory: &FilterFactory,
    config: &[u8],
    overrides: &[Vec<u8>],
    context: &BuildContext,
) -> Result<Alone, String> {
    built_in(factory, config, overrides, context).map(Alone::new)
}

/// A filter that is not in force.
pub(crate) fn built_in(
    factory: &FilterFactory,
    config: &[u8],
    overrides: &[Vec<u8>],
    context: &BuildContext,
) -> Result<Plugin, String> {
    let overrides: Vec<&[u8]> = overrides.iter().map(Vec::as_slice).collect();
    let given = FilterConfig { config, overrides: &overrides, superseded: false };
    factory.build(&given, context).map_err(|error| error.to_string())
}

/// Runs a phase to its end; an answer if it gives one.
pub(crate) async fn finish(phase: impl Future<Output = Option<LocalReply>>) -> Option<LocalReply> {
    phase.await
}

/// The end of a phase that does not wait.
pub(crate) fn now(phase: impl Future<Output = Option<LocalReply>>) -> Option<LocalReply> {
    match pin!(phase).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => reply,
        Poll::Pending => panic!("it waits"),
    }
}

/// Whether a phase ends without an answer, and at once.
pub(crate) fn done(phase: impl Future<Output = Outcome>) -> bool {
    let polled = pin!(phase).poll(&mut Context::from_waker(Waker::noop()));
    matches!(polled, Poll::Ready(Outcome::Done))
}

/// A response header as text.
pub(crate) fn response_header<'a>(stream: &'a Stream, name: &str) -> Option<&'a str> {
    stream.response.headers.get_str(name)
}

/// A request header as text.
pub(crate) fn request_header<'a>(stream: &'a Stream, name: &str) -> Option<&'a str> {
    stream.request.headers.get_str(name)
}
