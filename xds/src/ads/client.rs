//! The client at work: the machine, a stream of gRPC to the cluster of the control plane, and the model.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use prost::Message;
use sixfold_core::headers::Headers;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_core::plugin::grpc::{Call, Client as Grpc, Status};
use tokio::sync::watch;

use super::kind::Kind;
use super::machine::{AdsConfig, Machine, Step};
use super::resources::failures;
use super::session::{Flavor, Request};
use super::update::Response;
use super::world::{Asks, Change, Compile};
use crate::context::Context as CompileContext;

/// How long a stream may take to be opened: its connection has a time of its own, but a control plane that takes
/// connections and nothing more is one to be left.
const OPENING: Duration = Duration::from_secs(30);

/// How often it is looked whether the cluster is there that a stream goes to.
const COMES: Duration = Duration::from_millis(10);

/// What a bootstrap says itself of what comes later. Another one of the same process may take its place.
#[derive(Clone)]
pub struct Statics {
    /// What resources are compiled with.
    pub context: CompileContext,
    /// Its clusters and listeners, and what they ask the control plane for.
    pub resources: BTreeMap<(Kind, Arc<str>), Asks>,
}

/// Where a stream goes.
#[derive(Clone)]
pub struct Target {
    /// The cluster and the way there.
    pub grpc: Grpc,
    /// Headers of the stream (`initial_metadata`).
    pub metadata: Headers,
    /// What is asked there.
    pub service: Service,
}

/// A service of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Resources of every type.
    Aggregated,
    /// Secrets.
    Secrets,
}

impl Service {
    fn path(self, flavor: Flavor) -> &'static str {
        match (self, flavor) {
            (Service::Aggregated, Flavor::Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            (Service::Aggregated, Flavor::State) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            (Service::Secrets, Flavor::Delta) => {
                "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
            }
            (Service::Secrets, Flavor::State) => {
                "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
            }
        }
    }
}

/// Compiles resources, and makes changes of the model of those that go into force together.
pub trait Batches: Compile {
    /// What a batch changes in the model.
    fn diff(&mut self, batch: Vec<Change<Self::Part>>) -> Diff;

    /// What comes from now on is compiled with another bootstrap of the same process.
    fn set_context(&mut self, _: CompileContext) {}

    /// A stream has ended, or could not be opened.
    fn disconnected(&self) {}
}

/// Puts changes in force.
pub trait Apply {
    /// Puts a change in force; ends when it is. Answers what could not be.
    fn apply(&mut self, diff: Diff) -> impl Future<Output = Vec<ApplyError>>;
}

/// Follows the control plane until the process ends; each bootstrap of it that comes by `statics` counts from then on.
/// `initialized` is called once the first resources are in force, or have not come in time.
pub async fn follow<R: Batches>(
    config: AdsConfig,
    resources: R,
    target: Target,
    mut statics: Option<watch::Receiver<Statics>>,
    registry: &Registry,
    mut apply: impl Apply,
    initialized: impl FnOnce(),
) {
    let machine = Machine::new(config.clone(), resources, registry, fastrand::Rng::new(), now());
    let mut client = Client { machine, target, flavor: config.flavor, link: Link::Down };
    let mut initialized = Some(initialized);
    loop {
        match client.machine.step(now()) {
            Step::Connect => client.connect(),
            Step::Apply(batch) => {
                let diff = client.machine.compiler().diff(batch);
                let mut applied = pin!(apply.apply(diff));
                let errors = loop {
                    if let Some(errors) = client.attend(applied.as_mut()).await {
                        break errors;
                    }
                };
                errors
                    .iter()
                    .for_each(|error| tracing::error!("a part of a change is not in force: {error}"));
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
                        () = at(until) => None,
                        other = another(&mut statics) => Some(other),
                    }
                };
                if let Some(Some(Statics { context, resources })) = client.attend(end).await {
                    client.machine.compiler().set_context(context);
                    client.machine.set_statics(resources, now());
                }
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The machine, and what there is of a stream.
struct Client<R: Batches> {
    machine: Machine<R>,
    target: Target,
    flavor: Flavor,
    link: Link,
}

enum Link {
    Down,
    Opening(Pin<Box<dyn Future<Output = Result<Stream, Status>>>>),
    Open(Box<Stream>),
}

impl<R: Batches> Client<R> {
    fn connect(&mut self) {
        let Target { grpc, metadata, service } = &self.target;
        let (grpc, metadata) = (grpc.clone(), metadata.clone());
        self.link = Link::Opening(Box::pin(open(grpc, metadata, service.path(self.flavor), self.flavor)));
    }

    /// Opens a stream, sends and receives until `end` does; `None` when something has come before, or a stream was
    /// opened or has ended. The clocks of the machine run on whatever the other side does.
    async fn attend<T>(&mut self, end: impl Future<Output = T>) -> Option<T> {
        let came = tokio::select! {
            came = poll_fn(|cx| self.poll(cx)) => came,
            end = end => return Some(end),
        };
        if let Err(status) = came {
            self.link = Link::Down;
            self.machine.compiler().disconnected();
            let wait = self.machine.disconnected(now());
            tracing::warn!(?wait, "no stream of the control plane: {status}");
        }
        None
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        match &mut self.link {
            Link::Down => Poll::Pending,
            Link::Opening(opening) => {
                let opened = ready!(opening.as_mut().poll(cx))?;
                self.link = Link::Open(Box::new(opened));
                self.machine.connected();
                Poll::Ready(Ok(()))
            }
            Link::Open(stream) => stream.poll(&mut self.machine, cx),
        }
    }
}

/// Opens a stream, once its cluster is there: the bootstrap that names it may be about to come into force.
async fn open(grpc: Grpc, metadata: Headers, path: &'static str, flavor: Flavor) -> Result<Stream, Status> {
    let opening = async {
        while grpc.cluster.load().is_none() {
            tokio::time::sleep(COMES).await;
        }
        grpc.call(path, metadata).await
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
        machine: &mut Machine<R>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Status>> {
        self.poll_requests(machine, cx)?;
        let mut came = false;
        while machine.has_room() {
            match self.call.poll_receive(cx) {
                Poll::Ready(Ok(Some(message))) => {
                    came = true;
                    if let Err(error) = machine.received(self.decode(&message)?, now()) {
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
        machine: &mut Machine<R>,
        cx: &mut Context<'_>,
    ) -> Result<(), Status> {
        loop {
            if self.outgoing.is_none() {
                self.outgoing = machine.next_request().map(|request| match request {
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
