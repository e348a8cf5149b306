#![allow(clippy::unwrap_used, clippy::panic)]

mod channels;

use prost::Message;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as ProtoResource};
use sixfold_xds_api::pb::google::protobuf::{Any, Duration as ProtoDuration};

use super::*;
use crate::ads::{Asks, BackoffConfig, Compiled, HOLD, LINGER, LINGER_MAX, Need, RateLimit};

/// Takes everything but what is "bad". A listener's bytes are the name of the routes that it needs, those of routes the
/// name of a cluster; a cluster that is "eds" needs endpoints of its name.
struct Taker;

impl Compile for Taker {
    type Part = Vec<u8>;

    fn compile(&mut self, key: &Key, value: &[u8]) -> Result<Compiled<Vec<u8>>, ConfigError> {
        let Key { kind, name, .. } = key;
        // A file's resources have their names in them.
        let text =
            str::from_utf8(value.strip_prefix(&[10]).map_or(value, |rest| &rest[1 + name.len()..])).unwrap();
        let within = Some(Duration::from_secs(15));
        let need = |kind, name: &str| vec![Need { kind, source: Source::Ads, name: name.into(), within }];
        let mut asks = Asks::default();
        match (*kind, text) {
            (_, "bad" | "x-bad") => return Err(ConfigError::new("is bad")),
            (_, "") => {}
            (Kind::Listener, "x-file") => {
                asks.needs = vec![Need { source: channels::file(), ..need(Kind::Routes, "r").remove(0) }];
                asks.scopes = [(asks.needs[0].key(), "http.h.rds.r.".into())].into();
            }
            (Kind::Listener, routes) => {
                asks.needs = need(Kind::Routes, routes);
                asks.scopes = [(asks.needs[0].key(), "http.h.rds.r.".into())].into();
            }
            (Kind::Endpoints, "stale") => asks.stale_after = Some(Duration::from_secs(10)),
            (Kind::Cluster, "eds") => asks.needs = need(Kind::Endpoints, name),
            (Kind::Cluster, "shared" | "shared ") => {
                asks.needs = need(Kind::Endpoints, "s");
                asks.scopes = [(asks.needs[0].key(), format!("cluster.{name}.").into())].into();
            }
            (Kind::Cluster, "x-api") => {
                asks.needs = vec![Need { source: channels::api(), ..need(Kind::Endpoints, name).remove(0) }];
            }
            (Kind::Cluster, "x-file") => {
                asks.needs = vec![Need { source: channels::file(), ..need(Kind::Endpoints, name).remove(0) }];
            }
            (Kind::Cluster, path) if path.starts_with("x-file-") => {
                let source = Source::Path(path.into());
                asks.needs = vec![Need { source, ..need(Kind::Endpoints, name).remove(0) }];
            }
            (Kind::Routes, cluster) => asks.clusters = vec![cluster.into()],
            _ => {}
        }
        Ok(Compiled { part: value.to_vec(), asks })
    }

    fn stream(&self, _: &Channel) -> Option<StreamConfig> {
        Some(stream(None))
    }

    fn forget(&mut self, _: &Key) {}
}

fn stream(rate: Option<RateLimit>) -> StreamConfig {
    StreamConfig { flavor: Flavor::Delta, node_always: false, backoff: BackoffConfig::default(), rate }
}

struct Client {
    machine: Machine<Taker>,
    registry: Registry,
    now: Instant,
}

impl Client {
    fn new(within: Option<Duration>) -> Client {
        Client::of(stream(None), within)
    }

    fn of(stream: StreamConfig, within: Option<Duration>) -> Client {
        let (registry, now) = (Registry::new(), Instant::now());
        let all = Wildcard { source: Source::Ads, within };
        let config = AdsConfig {
            node: Node::default(),
            ads: Some(stream),
            wildcards: BTreeMap::from([(Kind::Cluster, all.clone()), (Kind::Listener, all)]),
            statics: BTreeMap::new(),
        };
        let machine = Machine::new(config, Taker, &registry, fastrand::Rng::with_seed(0), now);
        let mut client = Client { machine, registry, now };
        assert!(matches!(client.machine.step(now), Step::Connect(_)));
        client.machine.connected(&Channel::Aggregated);
        client.requests();
        client
    }

    fn receive(&mut self, kind: Kind, nonce: &str, resources: Vec<ProtoResource>) {
        self.receive_both(kind, nonce, resources, &[]);
    }

    /// One resource, at the version "v" with the nonce; answers what changes then.
    fn bring(&mut self, kind: Kind, nonce: &str, name: &str, value: &str) -> Vec<String> {
        let version = format!("v{nonce}");
        self.receive(kind, nonce, vec![ProtoResource { version, ..resource(kind, name, value, None) }]);
        self.changes()
    }

    fn receive_both(&mut self, kind: Kind, nonce: &str, resources: Vec<ProtoResource>, gone: &[&str]) {
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            nonce: nonce.to_owned(),
            resources,
            removed_resources: gone.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.machine.received(&Channel::Aggregated, Response::Delta(response), self.now).unwrap();
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
        std::iter::from_fn(|| self.machine.next_request(&Channel::Aggregated, self.now)).collect()
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
    client.machine.disconnected(&Channel::Aggregated, client.now);
    client.now += Duration::from_secs(1);
    assert!(matches!(client.machine.step(client.now), Step::Connect(_)));
    client.machine.connected(&Channel::Aggregated);
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
    client.machine.disconnected(&Channel::Aggregated, client.now);
    client.now += Duration::from_secs(60);
    assert!(matches!(client.machine.step(client.now), Step::Wait(None)), "what it has is not in force yet");
    client.machine.applied(Vec::new());
    assert!(matches!(client.machine.step(client.now), Step::Connect(_)));
    client.machine.connected(&Channel::Aggregated);
    let Request::Delta(first) = client.requests().remove(0) else { panic!("delta") };
    assert!(first.initial_resource_versions.contains_key("a"));
    assert!(first.encode_to_vec().len() > 10);
}

#[test]
fn each_route_configuration_is_counted_by_itself() {
    let mut client = Client::new(None);
    let text = |client: &Client, name: &str| {
        let texts = client.registry.snapshot();
        let text = texts.texts().iter().find(|text| text.name() == name).cloned();
        text.and_then(|text| text.get()).as_deref().map(str::to_owned)
    };
    let sum =
        |client: &Client, names: [&str; 5]| names.map(|name| client.registry.sum("http.h.rds.r.", name));
    let names = ["update_attempt", "update_success", "update_rejected", "update_failure", "config_reload"];
    client.bring(Kind::Listener, "1", "l", "r");
    assert_eq!(sum(&client, names), [1, 0, 0, 0, 0], "the subscription is the first attempt");
    client.now += Duration::from_secs(15);
    assert_eq!(client.changes(), ["l"]);
    assert_eq!(sum(&client, ["init_fetch_timeout", names[0], names[1], names[2], names[3]]), [1, 2, 0, 0, 0]);
    for (nonce, value) in [("2", "c"), ("3", "c"), ("4", "bad")] {
        let response = DeltaDiscoveryResponse {
            type_url: Kind::Routes.type_url().to_owned(),
            nonce: nonce.to_owned(),
            system_version_info: format!("s{nonce}"),
            resources: vec![resource(Kind::Routes, "r", value, None)],
            ..DeltaDiscoveryResponse::default()
        };
        client.machine.received(&Channel::Aggregated, Response::Delta(response), client.now).unwrap();
        client.changes();
    }
    assert_eq!(sum(&client, names), [5, 2, 1, 0, 1]);
    assert_eq!(text(&client, "http.h.rds.r.version_text").as_deref(), Some("s3"));
    // xxHash64 of "s3" with seed 0 is beyond what gauges that go up and down can hold, or may be.
    assert_eq!(sum(&client, ["version"; 5])[0], xxhash_rust::xxh64::xxh64(b"s3", 0));
    assert_eq!(sum(&client, ["update_empty"; 5])[0], 0);
    client.machine.disconnected(&Channel::Aggregated, client.now);
    assert_eq!(sum(&client, names), [6, 2, 1, 1, 1]);
    client.now += Duration::from_secs(60);
    client.machine.step(client.now);
    client.machine.connected(&Channel::Aggregated);
    client.receive_both(Kind::Listener, "5", Vec::new(), &["l"]);
    client.changes();
    assert_eq!(text(&client, "http.h.rds.r.version_text"), None, "nobody asks for it any more");
}

/// Endpoints that were refused were counted nowhere, and what was taken of them where it came into force.
#[test]
fn each_cluster_counts_what_comes_of_its_endpoints() {
    let mut client = Client::new(None);
    let counted = |client: &Client, cluster: &str| {
        let names =
            ["update_attempt", "update_success", "update_rejected", "update_failure", "init_fetch_timeout"];
        names.map(|name| client.registry.sum(&format!("cluster.{cluster}."), name))
    };
    client.bring(Kind::Cluster, "1", "a", "shared");
    assert_eq!(counted(&client, "a"), [1, 0, 0, 0, 0], "the subscription is the first attempt");
    client.now += Duration::from_secs(15);
    assert_eq!(client.changes(), ["a", "-a"]);
    assert_eq!(counted(&client, "a"), [2, 0, 0, 0, 1]);
    client.bring(Kind::Cluster, "2", "b", "shared");
    let both = |client: &Client| [counted(client, "a"), counted(client, "b")];
    client.bring(Kind::Endpoints, "3", "s", "x");
    assert_eq!(both(&client), [[3, 1, 0, 0, 1], [2, 1, 0, 0, 0]]);
    client.bring(Kind::Endpoints, "4", "s", "x");
    client.bring(Kind::Endpoints, "5", "s", "bad");
    assert_eq!(both(&client), [[5, 2, 1, 0, 1], [4, 2, 1, 0, 0]]);
    client.machine.disconnected(&Channel::Aggregated, client.now);
    assert_eq!(both(&client), [[6, 2, 1, 1, 1], [5, 2, 1, 1, 0]]);
    client.now += Duration::from_secs(60);
    client.machine.step(client.now);
    client.machine.connected(&Channel::Aggregated);
    // What one of them asks for anew it goes on to count.
    client.bring(Kind::Cluster, "6", "b", "shared ");
    client.receive_both(Kind::Cluster, "7", Vec::new(), &["a"]);
    client.changes();
    assert_eq!(both(&client), [[0; 5], [5, 2, 1, 1, 0]]);
}

#[test]
fn an_outage_takes_nothing_away_and_waits_between_attempts_are_bounded() {
    let mut client = Client::new(None);
    client.receive(Kind::Cluster, "1", vec![resource(Kind::Cluster, "a", "x", None)]);
    assert_eq!(client.changes(), ["a"]);
    assert_eq!(client.registry.sum("control_plane.", "connected_state"), 1);
    for _ in 0..100 {
        let wait = client.machine.disconnected(&Channel::Aggregated, client.now);
        assert!(wait < Duration::from_secs(30));
        assert_eq!(client.wait().unwrap(), wait);
        client.now += wait;
        assert!(matches!(client.machine.step(client.now), Step::Connect(_)));
    }
    assert_eq!(client.registry.sum("control_plane.", "connected_state"), 0);
    assert_eq!((client.count("update_failure"), client.count("update_success")), (100, 1));
    assert!(client.count("update_time") > 1_500_000_000_000);
}

/// What an answer says: its nonce and its error.
fn answers(requests: Vec<Request>) -> Vec<(String, String)> {
    let delta = |request| match request {
        Request::Delta(request) => request,
        Request::State(_) => panic!("delta"),
    };
    let answers = requests.into_iter().map(delta).filter(|request| !request.response_nonce.is_empty());
    answers
        .map(|it| (it.response_nonce, it.error_detail.map(|error| error.message).unwrap_or_default()))
        .collect()
}

/// What the version that stays asks for was unsubscribed, it was taken for unknown on the next stream, and the control plane
/// was not told when the listener had waited for its routes.
#[test]
fn what_cannot_be_put_in_force_leaves_what_was_there_whole() {
    let mut client = Client::new(None);
    client.bring(Kind::Listener, "1", "l", "old");
    assert_eq!(client.bring(Kind::Routes, "2", "old", "a"), ["old", "l"]);
    client.requests();
    client.bring(Kind::Listener, "3", "l", "new");
    assert_eq!(answers(client.requests()), [("3".to_owned(), String::new())], "it waits for its routes");
    client.receive(Kind::Routes, "4", vec![resource(Kind::Routes, "new", "a", None)]);
    let Step::Apply(batch) = client.machine.step(client.now) else { panic!("a change") };
    assert_eq!(batch.len(), 2);
    let reason = "address in use".to_owned();
    client.machine.applied(vec![Failure { kind: Kind::Listener, name: "l".into(), reason }]);
    assert_eq!(client.changes(), ["-new"]);
    let requests = client.requests();
    let dropped = requests.iter().filter_map(|request| match request {
        Request::Delta(request) => request.resource_names_unsubscribe.first().cloned(),
        Request::State(_) => None,
    });
    assert_eq!(dropped.collect::<Vec<_>>(), ["new"]);
    let refused = ("3".to_owned(), "listener \"l\": address in use".to_owned());
    assert_eq!(answers(requests), [("4".to_owned(), String::new()), refused]);
    assert_eq!(client.bring(Kind::Routes, "5", "old", "b"), ["old"], "it is asked for still");
    // A new stream tells what is in force, so that its end is heard of.
    client.machine.disconnected(&Channel::Aggregated, client.now);
    client.now += Duration::from_secs(1);
    assert!(matches!(client.machine.step(client.now), Step::Connect(_)));
    client.machine.connected(&Channel::Aggregated);
    let told = client.requests().into_iter().filter_map(|request| match request {
        Request::Delta(request) => request.initial_resource_versions.into_iter().max(),
        Request::State(_) => None,
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told, [("old".to_owned(), "v5".to_owned()), ("l".to_owned(), "v1".to_owned())]);
    client.receive_both(Kind::Listener, "6", Vec::new(), &["l"]);
    assert_eq!(client.changes(), ["-l", "-old"]);
}

/// It went a second after the control plane had said its last, though the routes that lead elsewhere were held for a
/// cluster that was slow to get its endpoints.
#[test]
fn a_removed_cluster_stays_until_what_leads_elsewhere_is_in_force() {
    let mut client = Client::new(None);
    client.bring(Kind::Cluster, "1", "a", "x");
    client.bring(Kind::Listener, "2", "l", "r");
    assert_eq!(client.bring(Kind::Routes, "3", "r", "a"), ["r", "l"]);
    client.receive_both(Kind::Cluster, "4", vec![resource(Kind::Cluster, "b", "eds", None)], &["a"]);
    assert_eq!(client.bring(Kind::Routes, "5", "r", "b"), [""; 0]);
    for _ in 0..3 {
        client.now += Duration::from_secs(1);
        assert_eq!(client.changes(), [""; 0]);
        client.wait();
    }
    assert_eq!(client.bring(Kind::Endpoints, "6", "b", "e"), ["b", "b", "r", "-a"]);
    // By a listener that leads to other routes as well.
    client.receive_both(Kind::Cluster, "7", vec![resource(Kind::Cluster, "c", "eds", None)], &["b"]);
    client.bring(Kind::Listener, "8", "l", "s");
    assert_eq!(client.bring(Kind::Routes, "9", "s", "c"), [""; 0]);
    client.now += HOLD - Duration::from_secs(1);
    assert_eq!(client.changes(), [""; 0]);
    assert_eq!(client.bring(Kind::Endpoints, "10", "c", "e"), ["c", "c", "s", "l", "-r", "-b"]);
    // Not for ever.
    client.receive_both(Kind::Cluster, "11", Vec::new(), &["c"]);
    client.bring(Kind::Listener, "12", "l", "missing");
    client.now += LINGER_MAX;
    assert_eq!(client.changes(), ["-c"]);
}

/// Routes that waited for it went in force at once and led nowhere, though the next ones were on their way.
#[test]
fn routes_do_not_follow_a_cluster_that_goes_before_it_came() {
    let mut client = Client::new(None);
    client.bring(Kind::Cluster, "1", "a", "x");
    client.bring(Kind::Listener, "2", "l", "r");
    client.bring(Kind::Routes, "3", "r", "a");
    client.bring(Kind::Cluster, "4", "b", "eds");
    assert_eq!(client.bring(Kind::Routes, "5", "r", "b"), [""; 0]);
    client.receive_both(Kind::Cluster, "6", Vec::new(), &["b"]);
    assert_eq!(client.changes(), [""; 0]);
    client.now += Duration::from_millis(900);
    assert_eq!(client.bring(Kind::Routes, "7", "r", "a"), ["r"]);
    // What leads there in the end does so as soon as nothing else was said.
    client.bring(Kind::Cluster, "8", "b", "eds");
    client.bring(Kind::Routes, "9", "r", "b");
    client.receive_both(Kind::Cluster, "10", Vec::new(), &["b"]);
    assert_eq!(client.changes(), [""; 0]);
    assert_eq!(client.wait(), Some(LINGER));
    client.now += LINGER;
    assert_eq!(client.changes(), ["r"]);
    assert_eq!(client.wait(), None);
}

/// A listener whose routes were refused waited for good ones, for ever if it was told to.
#[test]
fn what_came_and_was_refused_is_not_waited_for() {
    let mut client = Client::new(None);
    client.bring(Kind::Listener, "1", "l", "r");
    assert_eq!(client.bring(Kind::Routes, "2", "r", "bad"), ["l"]);
    assert_eq!(client.bring(Kind::Routes, "3", "r", "a"), ["r"], "good ones come later");
}

/// Routes that the control plane did not have yet put a listener without any in the place of one that served.
#[test]
fn routes_that_there_are_none_of_are_waited_for() {
    let mut client = Client::new(None);
    client.bring(Kind::Listener, "1", "l", "r");
    assert_eq!(client.bring(Kind::Routes, "2", "r", "a"), ["r", "l"]);
    client.bring(Kind::Listener, "3", "l", "s");
    client.receive_both(Kind::Routes, "4", Vec::new(), &["s"]);
    assert_eq!((client.changes(), client.wait()), (Vec::new(), None));
    client.now += Duration::from_secs(60);
    assert_eq!(client.bring(Kind::Routes, "5", "s", "a"), ["s", "l", "-r"]);
    // Those that have come stay, whatever is said of them.
    client.receive_both(Kind::Routes, "6", Vec::new(), &["s"]);
    assert_eq!(client.changes(), [""; 0]);
    // Where nothing serves yet it is waited for no longer than the listener says.
    client.bring(Kind::Listener, "7", "m", "none");
    client.receive_both(Kind::Routes, "8", Vec::new(), &["none"]);
    assert_eq!((client.changes(), client.wait()), (Vec::new(), Some(Duration::from_secs(15))));
    client.now += Duration::from_secs(15);
    assert_eq!(client.changes(), ["m"]);
    // It is an answer, and counted as one. What the first routes counted has gone with them.
    let of_routes = |name| client.registry.sum("http.h.rds.r.", name);
    assert_eq!(["update_attempt", "update_success", "update_empty"].map(of_routes), [7, 4, 0]);
}

#[test]
fn clusters_count_that_there_are_no_endpoints() {
    let mut client = Client::new(None);
    client.bring(Kind::Cluster, "1", "c", "shared");
    client.receive_both(Kind::Endpoints, "2", Vec::new(), &["s"]);
    assert_eq!(client.changes(), ["c", "-c"], "it need not wait, and has none");
    let of_cluster = |name| client.registry.sum("cluster.c.", name);
    assert_eq!(["update_attempt", "update_success"].map(of_cluster), [2, 1]);
}

#[test]
fn endpoints_of_which_nothing_is_heard_go_when_they_were_said_to() {
    let mut client = Client::new(None);
    client.bring(Kind::Cluster, "1", "a", "eds");
    assert_eq!(client.bring(Kind::Endpoints, "2", "a", "stale"), ["a", "a"]);
    client.now += Duration::from_secs(9);
    assert_eq!(client.bring(Kind::Endpoints, "3", "a", "stale"), [""; 0], "the same again is news");
    client.now += Duration::from_secs(9);
    assert_eq!((client.changes(), client.wait()), (vec![], Some(Duration::from_secs(1))));
    client.now += Duration::from_secs(1);
    assert_eq!(client.changes(), ["-a"], "the cluster stays without them");
    assert_eq!(client.bring(Kind::Endpoints, "4", "a", "good"), ["a"]);
    client.now += Duration::from_secs(3600);
    assert_eq!(client.changes(), [""; 0]);
    // Another version of the cluster gets what is good then.
    client.bring(Kind::Endpoints, "5", "a", "stale");
    client.now += Duration::from_secs(10);
    assert_eq!(client.changes(), ["-a"]);
    assert_eq!(client.bring(Kind::Endpoints, "6", "a", "stale"), ["a"]);
}

/// What a bootstrap that was read again asks for was never asked for, and what only the last one had named still was.
#[test]
fn another_bootstrap_takes_the_place_of_the_last() {
    let mut client = Client::new(None);
    let statics = |list: &[(&str, &str)]| {
        let of = |(name, endpoints): &(&str, &str)| {
            let need =
                Need { kind: Kind::Endpoints, source: Source::Ads, name: (*endpoints).into(), within: None };
            let asks = Asks { needs: vec![need], ..Asks::default() };
            (Key::of_name(Kind::Cluster, &Arc::from(*name)), Static::InForce(asks))
        };
        list.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let asked = |client: &mut Client| {
        let names = |request| match request {
            Request::Delta(request) if request.response_nonce.is_empty() => {
                let more = request.resource_names_subscribe.into_iter().map(|name| format!("+{name}"));
                let less = request.resource_names_unsubscribe.into_iter().map(|name| format!("-{name}"));
                more.chain(less).collect::<Vec<_>>()
            }
            _ => Vec::new(),
        };
        client.requests().into_iter().flat_map(names).collect::<Vec<_>>()
    };
    client.machine.set_statics(statics(&[("s", "e")]), client.now);
    assert_eq!((client.changes(), asked(&mut client)), (vec![], vec!["+e".to_owned()]));
    assert_eq!(client.bring(Kind::Endpoints, "1", "e", "x"), ["s"]);
    // What is there is given to those that come, and not asked for again.
    client.machine.set_statics(statics(&[("s", "e"), ("t", "e"), ("u", "f")]), client.now);
    assert_eq!(
        (client.changes(), asked(&mut client)),
        (vec!["s".to_owned(), "t".to_owned()], vec!["+f".to_owned()])
    );
    // One of the control plane becomes the bootstrap's, and the other way round.
    assert_eq!(client.bring(Kind::Cluster, "2", "a", "eds"), [""; 0]);
    assert_eq!(client.bring(Kind::Endpoints, "3", "a", "x"), ["a", "a"]);
    asked(&mut client);
    client.machine.set_statics(statics(&[("a", "f")]), client.now);
    assert_eq!((client.changes(), asked(&mut client)), (vec![], vec!["-a".to_owned(), "-e".to_owned()]));
    client.receive_both(Kind::Cluster, "4", vec![resource(Kind::Cluster, "s", "x", None)], &["a"]);
    assert_eq!(client.changes(), ["s"]);
    assert_eq!(client.bring(Kind::Endpoints, "5", "f", "x"), ["a"]);
}
