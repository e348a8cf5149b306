//! The client at work: the machine, a stream of gRPC to the cluster of the control plane, and the model.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prost::Message;
use sixfold_core::cluster::Address;
use sixfold_core::error::tell_most;
use sixfold_core::headers::Headers;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_core::plugin::grpc::{Call, Client as Grpc, Status};
use tokio::sync::{Notify, watch};

use super::files::{Contents, Files};
use super::key::{Channel, Key};
use super::kind::Kind;
use super::machine::{AdsConfig, Machine, Step};
use super::resources::failures;
use super::session::{Flavor, Request};
use super::update::Response;
use super::world::{Change, Compile, Static};
use crate::context::Context as CompileContext;

/// How long a stream may take to be opened: its connection has a time of its own, but a control plane that takes
/// connections and nothing more is one to be left.
const OPENING: Duration = Duration::from_secs(30);

/// Endpoints that are named of a control plane that can't be reached.
const MOST_ADDRESSES: usize = 3;

/// What a bootstrap says itself of what comes later. Another one of the same process may take its place.
#[derive(Clone)]
pub struct Statics {
    /// What resources are compiled with.
    pub context: CompileContext,
    /// Its clusters and listeners, and what they ask the control plane for.
    pub resources: BTreeMap<Key, Static>,
}

/// Where a stream goes.
#[derive(Clone)]
pub struct Target {
    /// The cluster and the way there.
    pub grpc: Grpc,
    /// Headers of the stream (`initial_metadata`).
    pub metadata: Headers,
}

impl Target {
    /// The cluster and its endpoints, as people know them.
    fn shown(&self) -> String {
        let name = &self.grpc.cluster.name;
        let Some(cluster) = self.grpc.cluster.load() else {
            return format!("cluster \"{name}\", which is not there");
        };
        let hosts = cluster.hosts.load();
        let addresses: Vec<&Address> = match &*cluster.endpoints {
            [] => hosts.iter().map(|member| &member.host.address).collect(),
            named => named.iter().map(|endpoint| &endpoint.address).collect(),
        };
        let shown = |address: &&Address| match address {
            Address::Unix(path) => format!("unix:{}", path.display()),
            address => address.to_string(),
        };
        let more = (addresses.len() > MOST_ADDRESSES).then(|| "...".to_owned());
        let addresses = addresses.iter().take(MOST_ADDRESSES).map(shown).chain(more);
        let all: Vec<String> = std::iter::once(format!("cluster \"{name}\"")).chain(addresses).collect();
        all.join(", ")
    }
}

/// A service of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// Resources of every type.
    Aggregated,
    /// Those of one type.
    Of(Kind),
}

impl Service {
    /// Package, service, and what its methods are called for, as they stand in envoy/service/*/v3/*.proto.
    fn path(self, flavor: Flavor) -> String {
        let (package, service, resources) = match self {
            Service::Aggregated => ("discovery", "AggregatedDiscoveryService", "AggregatedResources"),
            Service::Of(Kind::Cluster) => ("cluster", "ClusterDiscoveryService", "Clusters"),
            Service::Of(Kind::Endpoints) => ("endpoint", "EndpointDiscoveryService", "Endpoints"),
            Service::Of(Kind::Secret) => ("secret", "SecretDiscoveryService", "Secrets"),
            Service::Of(Kind::Extension) => {
                ("extension", "ExtensionConfigDiscoveryService", "ExtensionConfigs")
            }
            Service::Of(Kind::Routes) => ("route", "RouteDiscoveryService", "Routes"),
            Service::Of(Kind::Listener) => ("listener", "ListenerDiscoveryService", "Listeners"),
        };
        let form = match flavor {
            Flavor::Delta => "Delta",
            Flavor::State => "Stream",
        };
        format!("/envoy.service.{package}.v3.{service}/{form}{resources}")
    }
}

/// Compiles resources, and makes changes of the model of those that go into force together.
pub trait Batches: Compile {
    /// What a batch changes in the model.
    fn diff(&mut self, batch: Vec<Change<Self::Part>>) -> Diff;

    /// What comes from now on is compiled with another bootstrap of the same process.
    fn set_context(&mut self, _: CompileContext) {}

    /// What has come already, for that bootstrap.
    fn renewed(&mut self) -> Diff {
        Diff::default()
    }

    /// Where a stream goes from another source than the one of all types; `None` if there is none such.
    fn target(&self, _: &Channel) -> Option<Target> {
        None
    }

    /// Told when something has become of what comes [`Compile::elsewhere`].
    fn news(&self) -> Option<Arc<Notify>> {
        None
    }

    /// A stream has ended, or could not be opened.
    fn disconnected(&self) {}
}

/// Puts changes in force.
pub trait Apply {
    /// Puts a change in force; ends when it is. Answers what could not be.
    fn apply(&mut self, diff: Diff) -> impl Future<Output = Vec<ApplyError>>;
}

/// What comes from outside.
enum News {
    /// A time has come, or something has become of what others look after.
    Time,
    /// The process follows another bootstrap.
    Bootstrap(Box<Statics>),
    /// Files were read, or could not be.
    Read(Contents),
}

/// Follows control planes and files until the process ends; each bootstrap of it that comes by `statics` counts from then
/// on. `ads` is where the stream of all types goes. `initialized` is called once the first resources are in force, or
/// have not come in time.
pub async fn follow<R: Batches>(
    config: AdsConfig,
    resources: R,
    ads: Option<Target>,
    mut statics: Option<watch::Receiver<Statics>>,
    registry: &Registry,
    mut apply: impl Apply,
    initialized: impl FnOnce(),
) {
    let news = resources.news();
    let machine = Machine::new(config, resources, registry, fastrand::Rng::new(), now());
    let mut client = Client { machine, ads, links: BTreeMap::new() };
    let (mut initialized, mut files) = (Some(initialized), Files::default());
    loop {
        let step = client.machine.step(now());
        client.links.retain(|channel, _| client.machine.has(channel));
        files.want(client.machine.files());
        match step {
            Step::Connect(channel) => client.connect(channel),
            Step::Apply(batch) => {
                let diff = client.machine.compiler().diff(batch);
                let errors = client.put_in_force(diff, &mut apply).await;
                client.machine.applied(failures(errors));
            }
            Step::Wait(until) => {
                if client.machine.is_initialized()
                    && let Some(initialized) = initialized.take()
                {
                    initialized();
                }
                let end = async {
                    tokio::select! {
                        () = at(until) => News::Time,
                        () = told(news.as_deref()) => News::Time,
                        contents = files.next() => News::Read(contents),
                        other = another(&mut statics) => News::Bootstrap(Box::new(other)),
                    }
                };
                match client.attend(end).await {
                    Some(News::Bootstrap(statics)) => {
                        let Statics { context, resources } = *statics;
                        client.machine.compiler().set_context(context);
                        client.machine.set_statics(resources, now());
                        let diff = client.machine.compiler().renewed();
                        if !diff.is_empty() {
                            client.put_in_force(diff, &mut apply).await;
                        }
                    }
                    Some(News::Read(contents)) => {
                        for (channel, content) in contents {
                            client.machine.read(&channel, content, now());
                        }
                    }
                    Some(News::Time) | None => {}
                }
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The machine, and what there is of its streams.
struct Client<R: Batches> {
    machine: Machine<R>,
    ads: Option<Target>,
    links: BTreeMap<Channel, Link>,
}

enum Link {
    Opening(Pin<Box<dyn Future<Output = Result<Stream, Status>>>>),
    Open(Box<Stream>),
}

impl<R: Batches> Client<R> {
    fn target(&mut self, channel: &Channel) -> Option<Target> {
        match channel {
            Channel::Aggregated => self.ads.clone(),
            Channel::Of(..) => self.machine.compiler().target(channel),
        }
    }

    fn connect(&mut self, channel: Channel) {
        let target = self.target(&channel);
        let service = match &channel {
            Channel::Aggregated => Service::Aggregated,
            Channel::Of(kind, _) => Service::Of(*kind),
        };
        let flavor = self.machine.flavor(&channel);
        let opening = async move {
            let gone = || Status { code: 14, message: "its cluster is none of the bootstrap's".to_owned() };
            open(target.ok_or_else(gone)?, service, flavor).await
        };
        self.links.insert(channel, Link::Opening(Box::pin(opening)));
    }

    /// Puts a change in force, and attends to the streams meanwhile. Answers what could not be.
    async fn put_in_force(&mut self, diff: Diff, apply: &mut impl Apply) -> Vec<ApplyError> {
        let mut applied = pin!(apply.apply(diff));
        let errors = loop {
            let until = self.machine.limited_until();
            let end = async {
                tokio::select! {
                    errors = applied.as_mut() => Some(errors),
                    () = at(until) => None,
                }
            };
            if let Some(Some(errors)) = self.attend(end).await {
                break errors;
            }
        };
        tell_most(
            &errors,
            |error| tracing::error!("a part of a change is not in force: {error}"),
            |more| tracing::error!(more, "more parts of a change are not in force"),
        );
        errors
    }

    /// Opens streams, sends and receives until `end` does; `None` when something has come before, or a stream was
    /// opened or has ended. The clocks of the machine run on whatever the other side does.
    async fn attend<T>(&mut self, end: impl Future<Output = T>) -> Option<T> {
        let ended = tokio::select! {
            ended = poll_fn(|cx| self.poll(cx)) => ended,
            end = end => return Some(end),
        };
        for (channel, status) in ended {
            self.links.remove(&channel);
            self.machine.compiler().disconnected();
            let wait = self.machine.disconnected(&channel, now());
            let way = self.target(&channel).map(|target| format!(" ({})", target.shown()));
            tracing::warn!(?wait, "no stream of {channel}{}: {status}", way.unwrap_or_default());
        }
        None
    }

    /// Ready when something has come, or a request has come to wait; answers the streams that have ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Vec<(Channel, Status)>> {
        let (mut came, mut ended) = (false, Vec::new());
        for (channel, link) in &mut self.links {
            match link.poll(channel, &mut self.machine, cx) {
                Poll::Ready(Ok(())) => came = true,
                Poll::Ready(Err(status)) => ended.push((channel.clone(), status)),
                Poll::Pending => {}
            }
        }
        came |= self.machine.take_limited();
        if came || !ended.is_empty() { Poll::Ready(ended) } else { Poll::Pending }
    }
}

impl Link {
    fn poll<R: Batches>(
        &mut self,
        channel: &Channel,
        machine: &mut Machine<R>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        match self {
            Link::Opening(opening) => {
                let opened = ready!(opening.as_mut().poll(cx))?;
                *self = Link::Open(Box::new(opened));
                machine.connected(channel);
                Poll::Ready(Ok(()))
            }
            Link::Open(stream) => stream.poll(channel, machine, cx),
        }
    }
}

/// Opens a stream, once its cluster is there: the bootstrap that names it may be about to come into force.
async fn open(target: Target, service: Service, flavor: Flavor) -> Result<Stream, Status> {
    let Target { grpc, metadata } = target;
    let opening = async {
        grpc.cluster.comes().await;
        grpc.call(&service.path(flavor), metadata).await
    };
    let call = tokio::time::timeout(OPENING, opening).await;
    let call = call.map_err(|_| Status { code: 4, message: "no stream within 30 s".to_owned() })??;
    Ok(Stream { call, flavor, outgoing: None })
}

/// Ends with the next bootstrap, if there is ever one. It may be dropped at any time.
async fn another(statics: &mut Option<watch::Receiver<Statics>>) -> Statics {
    if let Some(statics) = statics
        && statics.changed().await.is_ok()
    {
        return statics.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// Ends when something is told, if there is anybody to tell it.
async fn told(news: Option<&Notify>) {
    match news {
        Some(news) => news.notified().await,
        None => std::future::pending().await,
    }
}

/// Ends at that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// One stream.
struct Stream {
    call: Call,
    flavor: Flavor,
    /// The next message, until there is room for it.
    outgoing: Option<Vec<u8>>,
}

impl Stream {
    /// Sends what there is to be sent and takes all that has come: of a flood the newest alone is looked at. Ready
    /// when something has come, or with the stream's end.
    fn poll<R: Batches>(
        &mut self,
        channel: &Channel,
        machine: &mut Machine<R>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        self.poll_requests(channel, machine, cx)?;
        let mut came = false;
        while machine.has_room(channel) {
            match self.call.poll_receive(cx) {
                Poll::Ready(Ok(Some(message))) => {
                    came = true;
                    if let Err(error) = machine.received(channel, self.decode(&message)?, now()) {
                        tracing::warn!("passed over: {error}");
                    }
                }
                Poll::Ready(Ok(None)) => {
                    let message = "the control plane has ended it".to_owned();
                    return Poll::Ready(Err(Status { code: 0, message }));
                }
                Poll::Ready(Err(status)) => return Poll::Ready(Err(status)),
                Poll::Pending => break,
            }
        }
        if came { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_requests<R: Batches>(
        &mut self,
        channel: &Channel,
        machine: &mut Machine<R>,
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        loop {
            if self.outgoing.is_none() {
                self.outgoing = machine.next_request(channel, now()).map(|request| match request {
                    Request::Delta(request) => request.encode_to_vec(),
                    Request::State(request) => request.encode_to_vec(),
                });
            }
            let Some(message) = &self.outgoing else { return Ok(()) };
            match self.call.poll_send(message, cx) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => return Ok(()),
            }
            self.outgoing = None;
        }
    }

    fn decode(&self, message: &[u8]) -> Result<Response, Status> {
        let decoded = match self.flavor {
            Flavor::Delta => Message::decode(message).map(Response::Delta),
            Flavor::State => Message::decode(message).map(Response::State),
        };
        decoded.map_err(|error| Status { code: 13, message: format!("no discovery response: {error}") })
    }
}

#[cfg(test)]
mod tests;
