#![allow(clippy::unwrap_used, clippy::panic)]

use prost::Message;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as ProtoResource};
use sixfold_xds_api::pb::google::protobuf::{Any, Duration as ProtoDuration};

use super::*;
use crate::ads::{Compiled, Need};

/// Takes everything; a resource needs the routes that its bytes name.
struct Taker;

impl Compile for Taker {
    type Part = Vec<u8>;

    fn compile(&mut self, kind: Kind, _: &Arc<str>, value: &[u8]) -> Result<Compiled<Vec<u8>>, ConfigError> {
        let routes =
            (kind == Kind::Listener).then(|| str::from_utf8(value).unwrap()).filter(|name| !name.is_empty());
        let within = Some(Duration::from_secs(15));
        let need = |name: &str| Need { kind: Kind::Routes, name: name.into(), within };
        let asks = Asks { needs: routes.map(need).into_iter().collect(), clusters: Vec::new() };
        Ok(Compiled { part: value.to_vec(), asks })
    }

    fn forget(&mut self, _: Kind, _: &Arc<str>) {}
}

struct Client {
    machine: Machine<Taker>,
    registry: Registry,
    now: Instant,
}

impl Client {
    fn new(within: Option<Duration>) -> Client {
        let (registry, now) = (Registry::new(), Instant::now());
        let config = AdsConfig {
            flavor: Flavor::Delta,
            node: Node::default(),
            node_always: false,
            wildcards: BTreeMap::from([(Kind::Cluster, within), (Kind::Listener, within)]),
            backoff: BackoffConfig::default(),
            statics: BTreeMap::new(),
        };
        let machine = Machine::new(config, Taker, &registry, fastrand::Rng::with_seed(0), now);
        let mut client = Client { machine, registry, now };
        assert!(matches!(client.machine.step(now), Step::Connect));
        client.machine.connected();
        client.requests();
        client
    }

    fn receive(&mut self, kind: Kind, nonce: &str, resources: Vec<ProtoResource>) {
        let type_url = kind.type_url().to_owned();
        let nonce = nonce.to_owned();
        let response =
            DeltaDiscoveryResponse { type_url, nonce, resources, ..DeltaDiscoveryResponse::default() };
        self.machine.received(Response::Delta(response), self.now).unwrap();
    }

    /// What changes now: names, with a minus where they go.
    fn changes(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Step::Apply(batch) = self.machine.step(self.now) {
            let shown = |change: &Change<Vec<u8>>| match change.part {
                Some(_) => change.name.to_string(),
                None => format!("-{}", change.name),
            };
            all.extend(batch.iter().map(shown));
            self.machine.applied(Vec::new());
        }
        all
    }

    fn requests(&mut self) -> Vec<Request> {
        std::iter::from_fn(|| self.machine.next_request()).collect()
    }

    fn wait(&mut self) -> Option<Duration> {
        match self.machine.step(self.now) {
            Step::Wait(until) => {
                assert!(until.is_none_or(|until| until > self.now), "a wait for what is past would spin");
                until.map(|until| until - self.now)
            }
            other => panic!("{other:?}"),
        }
    }

    fn count(&self, name: &str) -> u64 {
        self.registry.sum("cluster_manager.cds.", name)
    }
}

fn resource(kind: Kind, name: &str, value: &str, ttl: Option<i64>) -> ProtoResource {
    ProtoResource {
        name: name.to_owned(),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value: value.into() }),
        ttl: ttl.map(|seconds| ProtoDuration { seconds, nanos: 0 }),
        ..ProtoResource::default()
    }
}

fn heartbeat(name: &str, seconds: i64) -> ProtoResource {
    ProtoResource { resource: None, ..resource(Kind::Cluster, name, "", Some(seconds)) }
}

#[test]
fn what_is_not_confirmed_in_its_time_to_live_goes() {
    let mut client = Client::new(None);
    let clusters = [("a", Some(10)), ("b", Some(10)), ("c", None)];
    let clusters = clusters.map(|(name, ttl)| resource(Kind::Cluster, name, "x", ttl));
    client.receive(Kind::Cluster, "1", clusters.to_vec());
    assert_eq!(client.changes(), ["a", "b", "c"]);
    assert_eq!(client.wait(), Some(Duration::from_secs(10)));
    client.now += Duration::from_secs(9);
    client.receive(Kind::Cluster, "2", vec![heartbeat("a", 10), heartbeat("unknown", 10)]);
    assert_eq!(client.changes(), [""; 0]);
    client.now += Duration::from_secs(1);
    assert_eq!(client.changes(), ["-b"], "nobody leads there, so it does not linger");
    // The same again without a time to live is no change, and stays.
    client.receive(Kind::Cluster, "3", vec![resource(Kind::Cluster, "a", "x", None)]);
    assert_eq!(client.changes(), [""; 0]);
    client.now += Duration::from_secs(3600);
    assert_eq!(client.changes(), [""; 0]);
    // What has gone so is not told to a new stream.
    client.machine.disconnected(client.now);
    client.now += Duration::from_secs(1);
    assert!(matches!(client.machine.step(client.now), Step::Connect));
    client.machine.connected();
    let Request::Delta(first) = client.requests().remove(0) else { panic!("delta") };
    let mut told: Vec<_> = first.initial_resource_versions.into_keys().collect();
    told.sort();
    assert_eq!(told, ["a", "c"]);
}

#[test]
fn a_start_waits_for_the_first_of_each_type_and_for_what_it_needs() {
    let fifteen = Duration::from_secs(15);
    let mut client = Client::new(Some(fifteen));
    client.receive(Kind::Cluster, "1", Vec::new());
    assert_eq!((client.wait(), client.machine.is_initialized()), (Some(fifteen), false));
    client.now += Duration::from_secs(1);
    client.receive(Kind::Listener, "2", vec![resource(Kind::Listener, "l", "r", None)]);
    assert_eq!(client.changes(), [""; 0]);
    assert_eq!(
        (client.wait(), client.machine.is_initialized()),
        (Some(fifteen), false),
        "routes are missing"
    );
    client.now += fifteen;
    assert_eq!(client.changes(), ["l"]);
    assert!(client.machine.is_initialized());
    // Nothing comes at all.
    let mut client = Client::new(Some(fifteen));
    client.now += fifteen;
    assert_eq!((client.wait(), client.machine.is_initialized()), (None, true));
    assert_eq!(client.count("init_fetch_timeout"), 1);
    // For ever is for ever.
    let mut client = Client::new(None);
    client.now += fifteen * 1000;
    assert_eq!((client.wait(), client.machine.is_initialized()), (None, false));
}

#[test]
fn what_cannot_be_put_in_force_is_refused_and_tried_again_when_it_comes_again() {
    let mut client = Client::new(None);
    for nonce in ["1", "2"] {
        client.receive(
            Kind::Listener,
            nonce,
            ["l", "m"].map(|name| resource(Kind::Listener, name, "", None)).to_vec(),
        );
        let Step::Apply(batch) = client.machine.step(client.now) else { panic!("nothing is tried") };
        assert_eq!(batch.len(), if nonce == "1" { 2 } else { 1 });
        let reason = "address in use".to_owned();
        client.machine.applied(vec![Failure { kind: Kind::Listener, name: "l".into(), reason }]);
        let Request::Delta(answer) = client.requests().remove(0) else { panic!("delta") };
        assert_eq!(answer.error_detail.unwrap().message, "listener \"l\": address in use");
    }
    assert_eq!(client.registry.sum("listener_manager.lds.", "update_rejected"), 2);
}

/// A new stream begins with what the client has. What it had not looked at then was never taken away again when it was
/// removed before that stream began.
#[test]
fn a_stream_is_not_opened_before_all_that_came_by_the_last_is_known() {
    let mut client = Client::new(None);
    client.receive(Kind::Cluster, "1", vec![resource(Kind::Cluster, "a", "x", None)]);
    let Step::Apply(_) = client.machine.step(client.now) else { panic!("a change") };
    client.machine.disconnected(client.now);
    client.now += Duration::from_secs(60);
    assert!(matches!(client.machine.step(client.now), Step::Wait(None)), "what it has is not in force yet");
    client.machine.applied(Vec::new());
    assert!(matches!(client.machine.step(client.now), Step::Connect));
    client.machine.connected();
    let Request::Delta(first) = client.requests().remove(0) else { panic!("delta") };
    assert!(first.initial_resource_versions.contains_key("a"));
    assert!(first.encode_to_vec().len() > 10);
}

#[test]
fn an_outage_takes_nothing_away_and_waits_between_attempts_are_bounded() {
    let mut client = Client::new(None);
    client.receive(Kind::Cluster, "1", vec![resource(Kind::Cluster, "a", "x", None)]);
    assert_eq!(client.changes(), ["a"]);
    assert_eq!(client.registry.sum("control_plane.", "connected_state"), 1);
    for _ in 0..100 {
        let wait = client.machine.disconnected(client.now);
        assert!(wait < Duration::from_secs(30));
        assert_eq!(client.wait().unwrap(), wait);
        client.now += wait;
        assert!(matches!(client.machine.step(client.now), Step::Connect));
    }
    assert_eq!(client.registry.sum("control_plane.", "connected_state"), 0);
    assert_eq!((client.count("update_failure"), client.count("update_success")), (100, 1));
}
