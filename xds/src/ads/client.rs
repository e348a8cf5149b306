//! The client at work: the machine, a stream of gRPC to the cluster of the control plane, and the model.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use prost::Message;
use sixfold_core::headers::Headers;
use sixfold_core::metrics::Registry;
use sixfold_core::model::{ApplyError, Diff};
use sixfold_core::plugin::grpc::{Call, Client as Grpc, Status};

use super::machine::{AdsConfig, Machine, Step};
use super::resources::{Resources, failures};
use super::session::{Flavor, Request};
use super::update::Response;

/// How long a stream may take to be opened: its connection has a time of its own, but a control plane that takes
/// connections and nothing more is one to be left.
const OPENING: Duration = Duration::from_secs(30);

/// Where a stream goes.
pub struct Target {
    /// The cluster and the way there.
    pub grpc: Grpc,
    /// Headers of the stream (`initial_metadata`).
    pub metadata: Headers,
}

/// Puts changes in force.
pub trait Apply {
    /// Puts a change in force; ends when it is. Answers what could not be.
    fn apply(&mut self, diff: Diff) -> impl Future<Output = Vec<ApplyError>>;
}

/// Follows the control plane until the process ends. `initialized` is called once the first resources are in force,
/// or have not come in time.
pub async fn follow(
    config: AdsConfig,
    resources: Resources,
    target: Target,
    registry: &Registry,
    mut apply: impl Apply,
    initialized: impl FnOnce(),
) {
    let flavor = config.flavor;
    let mut machine = Machine::new(config, resources, registry, fastrand::Rng::new(), Instant::now());
    let (mut stream, mut initialized) = (None, Some(initialized));
    loop {
        match machine.step(Instant::now()) {
            Step::Connect => match open(&target, flavor).await {
                Ok(opened) => {
                    machine.connected();
                    stream = Some(opened);
                }
                Err(status) => lost(&mut machine, &status),
            },
            Step::Apply(batch) => {
                let diff = machine.compiler().diff(batch);
                let mut applied = pin!(apply.apply(diff));
                let errors = loop {
                    if let Some(errors) = attend(&mut machine, &mut stream, applied.as_mut()).await {
                        break errors;
                    }
                };
                errors
                    .iter()
                    .for_each(|error| tracing::error!("a part of a change is not in force: {error}"));
                machine.applied(failures(errors));
            }
            Step::Wait(until) => {
                if machine.is_initialized()
                    && let Some(initialized) = initialized.take()
                {
                    initialized();
                }
                attend(&mut machine, &mut stream, at(until)).await;
            }
        }
    }
}

async fn open(target: &Target, flavor: Flavor) -> Result<Stream, Status> {
    let method = match flavor {
        Flavor::Delta => "DeltaAggregatedResources",
        Flavor::State => "StreamAggregatedResources",
    };
    let path = format!("/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}");
    let opening = target.grpc.call(&path, target.metadata.clone());
    let call = tokio::time::timeout(OPENING, opening).await;
    let call = call.map_err(|_| Status { code: 4, message: "no stream within 30 s".to_owned() })??;
    Ok(Stream { call, flavor, outgoing: None })
}

/// Sends and receives until `end` does; `None` when something has come before, or the stream has ended.
async fn attend<T>(
    machine: &mut Machine<Resources>,
    stream: &mut Option<Stream>,
    end: impl Future<Output = T>,
) -> Option<T> {
    let Some(open) = stream else { return Some(end.await) };
    let ended = tokio::select! {
        came = poll_fn(|cx| open.poll(machine, cx)) => came.err(),
        end = end => return Some(end),
    };
    if let Some(status) = ended {
        *stream = None;
        lost(machine, &status);
    }
    None
}

fn lost(machine: &mut Machine<Resources>, status: &Status) {
    let wait = machine.disconnected(Instant::now());
    tracing::warn!(?wait, "no stream of the control plane: {status}");
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
    fn poll(&mut self, machine: &mut Machine<Resources>, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.poll_requests(machine, cx)?;
        let mut came = false;
        while machine.has_room() {
            match self.call.poll_receive(cx) {
                Poll::Ready(Ok(Some(message))) => {
                    came = true;
                    if let Err(error) = machine.received(self.decode(&message)?, Instant::now()) {
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

    fn poll_requests(
        &mut self,
        machine: &mut Machine<Resources>,
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
