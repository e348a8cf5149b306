//! Files, streams of one type, and how many requests there may be.

use std::collections::BTreeSet;

use sixfold_xds_api::pb::envoy::config::core::v3::ApiConfigSource;
use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryResponse;

use super::*;
use crate::ads::RateLimit;
use crate::api::ApiSource;

pub(super) fn file() -> Source {
    Source::Path("cds.pb".into())
}

/// A stream of one type.
pub(super) fn api() -> Source {
    Source::Api(ApiSource::new(&ApiConfigSource::default()))
}

/// Clusters come by a file, listeners by the stream of all types.
fn mixed() -> Client {
    let (registry, now) = (Registry::new(), Instant::now());
    let all = |source| Wildcard { source, within: None };
    let config = AdsConfig {
        node: Node::default(),
        ads: Some(stream(None)),
        wildcards: BTreeMap::from([(Kind::Cluster, all(file())), (Kind::Listener, all(Source::Ads))]),
        statics: BTreeMap::new(),
    };
    let machine = Machine::new(config, Taker, &registry, fastrand::Rng::with_seed(0), now);
    let mut client = Client { machine, registry, now };
    assert!(matches!(client.machine.step(now), Step::Connect(Channel::Aggregated)));
    client.machine.connected(&Channel::Aggregated);
    client.requests();
    client
}

/// Messages that begin with a name, as all resources do.
fn named(name: &str, rest: &str) -> Vec<u8> {
    let mut encoded = vec![10, name.len() as u8];
    encoded.extend_from_slice(name.as_bytes());
    encoded.extend_from_slice(rest.as_bytes());
    encoded
}

impl Client {
    fn read(&mut self, clusters: &[(&str, &str)]) -> Vec<String> {
        let type_url = || Kind::Cluster.type_url().to_owned();
        let value = |(name, rest): &(&str, &str)| Any { type_url: type_url(), value: named(name, rest) };
        let response = DiscoveryResponse {
            resources: clusters.iter().map(value).collect(),
            ..DiscoveryResponse::default()
        };
        let channel = Channel::of(Kind::Cluster, &file());
        self.machine.read(&channel, Ok(response.encode_to_vec()), self.now);
        self.changes()
    }
}

#[test]
fn a_file_is_a_world_of_its_type_and_a_bad_one_changes_nothing() {
    let mut client = mixed();
    client.receive(Kind::Listener, "1", vec![]);
    assert_eq!((client.changes(), client.machine.is_initialized()), (vec![], false), "the file was not read");
    assert_eq!(client.read(&[("a", ""), ("b", "")]), ["a", "b"]);
    assert!(client.machine.is_initialized());
    assert_eq!(client.read(&[("a", ""), ("b", "x-bad")]), [""; 0], "refused by itself");
    let bad = |client: &mut Client, content| {
        client.machine.read(&Channel::of(Kind::Cluster, &file()), content, client.now);
        client.changes()
    };
    assert_eq!(bad(&mut client, Ok(vec![0xff])), [""; 0]);
    assert_eq!(bad(&mut client, Err(ConfigError::new("can't be read"))), [""; 0]);
    assert_eq!((client.count("update_success"), client.count("update_rejected")), (1, 3));
    assert_eq!(client.read(&[("b", "")]), ["-a"]);
    // Nobody is told of it, and nobody else may send clusters.
    assert!(client.requests().iter().all(|request| {
        let Request::Delta(request) = request else { panic!("delta") };
        request.type_url == Kind::Listener.type_url()
    }));
    let response = DeltaDiscoveryResponse {
        type_url: Kind::Cluster.type_url().to_owned(),
        removed_resources: vec!["b".to_owned()],
        ..DeltaDiscoveryResponse::default()
    };
    let refused = client.machine.received(&Channel::Aggregated, Response::Delta(response), client.now);
    assert_eq!((refused.is_err(), client.changes()), (true, vec![]));
}

/// What comes by another source is waited for as what comes by the same.
#[test]
fn endpoints_of_a_stream_of_their_own_are_waited_for_and_asked_for_while_they_are_needed() {
    let mut client = mixed();
    let channel = Channel::of(Kind::Endpoints, &api());
    assert_eq!(client.read(&[("a", ""), ("b", "x-api")]), ["a"], "the other has no endpoints");
    client.receive(Kind::Listener, "1", vec![resource(Kind::Listener, "l", "r", None)]);
    assert_eq!(client.changes(), [""; 0]);
    client.receive(Kind::Routes, "2", vec![resource(Kind::Routes, "r", "b", None)]);
    assert_eq!(client.changes(), [""; 0], "they lead to it");
    // It was told to open that stream meanwhile.
    client.machine.connected(&channel);
    let request = client.machine.next_request(&channel, client.now);
    let Some(Request::Delta(request)) = request else { panic!("delta") };
    assert_eq!(request.resource_names_subscribe, ["b"]);
    assert_eq!(client.machine.next_request(&channel, client.now), None, "nothing else is asked for there");
    let response = DeltaDiscoveryResponse {
        type_url: Kind::Endpoints.type_url().to_owned(),
        resources: vec![resource(Kind::Endpoints, "b", "x", None)],
        ..DeltaDiscoveryResponse::default()
    };
    client.machine.received(&channel, Response::Delta(response), client.now).unwrap();
    assert_eq!(client.changes(), ["b", "b", "r", "l"]);
    // An outage of one is none of the other, and takes nothing away.
    client.machine.disconnected(&channel, client.now);
    assert_eq!(client.changes(), [""; 0]);
    assert!(client.machine.has_room(&Channel::Aggregated) && client.machine.has(&channel));
    assert_eq!(client.read(&[("a", ""), ("b", "")]), ["b"]);
    assert!(!client.machine.has(&channel), "nobody asks there any more");
}

/// Each file was a change by itself, and waited until the one before it was in force.
#[test]
fn files_that_are_read_together_are_one_change() {
    let mut client = mixed();
    assert_eq!(client.read(&[("a", "x-file-1"), ("b", "x-file-2")]), [""; 0], "they wait for endpoints");
    for (name, path) in [("a", "x-file-1"), ("b", "x-file-2")] {
        let type_url = Kind::Endpoints.type_url().to_owned();
        let resources = vec![Any { type_url, value: named(name, "x") }];
        let response = DiscoveryResponse { resources, ..DiscoveryResponse::default() };
        let channel = Channel::of(Kind::Endpoints, &Source::Path(path.into()));
        client.machine.read(&channel, Ok(response.encode_to_vec()), client.now);
    }
    let Step::Apply(batch) = client.machine.step(client.now) else { panic!("a change") };
    let names: Vec<&str> = batch.iter().map(|change| &*change.name).collect();
    assert_eq!(names, ["a", "b", "a", "b"], "both clusters, and the endpoints of both");
    client.machine.applied(Vec::new());
    assert_eq!(client.changes(), [""; 0]);
}

/// It had the number of its last time, and who reads files had not seen that it was not wanted meanwhile: it was never read.
#[test]
fn a_file_that_is_wanted_again_is_read_again() {
    let mut client = mixed();
    let channel = Channel::of(Kind::Endpoints, &file());
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        client.read(&[("b", "x-file")]);
        assert!(seen.insert(client.machine.files()[&channel]), "{seen:?}");
        client.read(&[("b", "")]);
        assert!(!client.machine.has(&channel));
    }
}

/// They were never looked at again, and who had asked for them answered 404 for ever.
#[test]
fn routes_of_a_file_that_were_refused_are_tried_again_when_something_has_come() {
    let mut client = mixed();
    client.receive(Kind::Listener, "1", vec![resource(Kind::Listener, "l", "x-file", None)]);
    assert_eq!(client.changes(), [""; 0]);
    let channel = Channel::of(Kind::Routes, &file());
    let asked = |client: &Client| client.machine.files()[&channel];
    let rejected = |client: &Client| client.registry.sum("http.h.rds.r.", "update_rejected");
    let read = |client: &mut Client, rest: &str| {
        let resources = vec![Any { type_url: Kind::Routes.type_url().to_owned(), value: named("r", rest) }];
        let response = DiscoveryResponse { resources, ..DiscoveryResponse::default() };
        client.machine.read(&channel, Ok(response.encode_to_vec()), client.now);
        client.changes()
    };
    let mut last = asked(&client);
    let mut is_asked_again = |client: &Client| std::mem::replace(&mut last, asked(client)) != last;
    assert_eq!((read(&mut client, "x-bad"), rejected(&client)), (vec![], 0), "the clusters are yet to come");
    assert_eq!((client.read(&[("a", "")]), is_asked_again(&client)), (vec!["a".to_owned()], true));
    assert_eq!((read(&mut client, "x-bad"), rejected(&client)), (vec!["l".to_owned()], 1));
    assert!(!is_asked_again(&client));
    assert_eq!((client.read(&[]), is_asked_again(&client)), (vec!["-a".to_owned()], true));
    assert_eq!((read(&mut client, "x-bad"), rejected(&client)), (vec![], 1), "told once");
    assert_eq!(read(&mut client, "x"), ["r"]);
    assert_eq!((client.read(&[("b", "")]), is_asked_again(&client)), (vec!["b".to_owned()], false));
}

#[test]
fn requests_beyond_the_limit_wait() {
    let mut client = Client::of(stream(Some(RateLimit { burst: 3, fill_rate: 1.0 })), None);
    // Two have gone for the types of which everything is wanted.
    assert!(!client.machine.take_limited());
    client.receive(Kind::Cluster, "1", vec![]);
    client.receive(Kind::Listener, "2", vec![]);
    client.changes();
    assert_eq!((client.requests().len(), client.machine.take_limited()), (1, true));
    assert_eq!((client.requests().len(), client.machine.take_limited()), (0, false), "told once");
    let wait = client.wait().unwrap();
    assert!(wait > Duration::from_millis(900) && wait < Duration::from_millis(1100), "{wait:?}");
    client.now += wait;
    assert_eq!((client.requests().len(), client.wait()), (1, None));
    let registry = client.registry.clone();
    let count = |name| registry.sum("control_plane.", name);
    assert_eq!((count("rate_limit_enforced"), count("pending_requests")), (1, 0));
    client.receive(Kind::Cluster, "3", vec![]);
    client.changes();
    assert_eq!((client.requests().len(), count("pending_requests")), (0, 1));
    client.machine.disconnected(&Channel::Aggregated, client.now);
    assert_eq!(count("pending_requests"), 0, "nothing waits without a stream");
}

/// An answer that a later response has made needless took a token.
#[test]
fn what_is_not_sent_does_not_count() {
    let rate = Some(RateLimit { burst: 3, fill_rate: 1.0 });
    let mut client = Client::of(StreamConfig { flavor: Flavor::State, ..stream(rate) }, None);
    let receive = |client: &mut Client, nonce: &str| {
        let response = DiscoveryResponse {
            type_url: Kind::Cluster.type_url().to_owned(),
            nonce: nonce.to_owned(),
            ..DiscoveryResponse::default()
        };
        client.machine.received(&Channel::Aggregated, Response::State(response), client.now).unwrap();
    };
    receive(&mut client, "1");
    client.changes();
    receive(&mut client, "2");
    assert_eq!(client.requests().len(), 0, "what the last one answers is not known yet");
    client.changes();
    assert_eq!((client.requests().len(), client.machine.take_limited()), (1, false));
}
