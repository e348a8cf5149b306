#![allow(clippy::unwrap_used)]
use super::*;
use crate::cluster::Clusters;
use crate::connection::Connection;
use crate::format::Format;
use crate::header_ops::HeaderOps;
use crate::route::ClusterChoice;
use std::sync::Arc;

fn stream(headers: &[(&str, &str)], target: &str) -> Stream {
    let address = ([10, 0, 0, 1], 5000).into();
    let mut stream = Stream::new(Arc::new(Connection::plain(address, address)));
    stream.request.target.set(target.as_bytes());
    for (name, value) in headers {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    stream
}

fn policy(input: HashInput, terminal: bool) -> HashPolicy {
    HashPolicy { input, terminal }
}

fn header(name: &str) -> HashInput {
    HashInput::Header(HeaderTarget::of_request(name), None)
}

fn hash(policies: &[HashPolicy], headers: &[(&str, &str)], target: &str) -> Option<u64> {
    request_hash(policies, &mut stream(headers, target)).0
}

#[test]
fn header_values_are_sorted_and_chained() {
    let users = [policy(header("x-user"), false)];
    let chained = xxh64(b"bob", xxh64(b"alice", 0));
    assert_eq!(hash(&users, &[("x-user", "bob"), ("X-User", "alice")], "/"), Some(chained));
    assert_eq!(hash(&users, &[("x-user", "alice,bob")], "/"), Some(xxh64(b"alice,bob", 0)));
    assert_eq!(hash(&users, &[("x-user", "")], "/"), Some(xxh64(b"", 0)));
    assert_eq!(hash(&users, &[], "/"), None);
    assert_eq!(hash(&[policy(header(":path"), false)], &[], "/p/1?x"), Some(xxh64(b"/p/1?x", 0)));
}

#[test]
fn a_header_can_be_rewritten_first() {
    let regex = Regex::search(r"^/(\w+)/.*$").unwrap();
    let rewrite = Rewrite::new(r"\1", regex.groups()).unwrap();
    let target = HeaderTarget::of_request("x-path");
    let policies = [policy(HashInput::Header(target, Some((regex, rewrite))), false)];
    assert_eq!(hash(&policies, &[("x-path", "/t1/a")], "/"), Some(xxh64(b"t1", 0)));
    assert_eq!(hash(&policies, &[("x-path", "none")], "/"), Some(xxh64(b"none", 0)));
}

#[test]
fn policies_combine_and_terminal_stops() {
    let both = [policy(header("x-1"), false), policy(header("x-2"), false)];
    let term = [policy(header("x-1"), true), policy(header("x-2"), false)];
    let (a, b) = (xxh64(b"a", 0), xxh64(b"b", 0));
    let headers = [("x-1", "a"), ("x-2", "b")];
    assert_eq!(hash(&both, &headers, "/"), Some(a.rotate_left(1) ^ b));
    assert_eq!(hash(&term, &headers, "/"), Some(a));
    assert_eq!(hash(&term, &headers[1..], "/"), Some(b));
}

#[test]
fn query_and_address() {
    let query = [policy(HashInput::Query("u".into()), false)];
    assert_eq!(hash(&query, &[], "/q?x=1&u=a&u=b"), Some(xxh64(b"a", 0)));
    assert_eq!(hash(&query, &[], "/q"), None);
    assert_eq!(hash(&[policy(HashInput::SourceIp, false)], &[], "/"), Some(xxh64(b"10.0.0.1", 0)));
}

#[test]
fn apisix_keys_are_crc32_and_fall_back_to_the_address() {
    let template = |text: &str| [policy(HashInput::Key(Format::apisix(text).unwrap()), false)];
    let variable = |name: &str| [policy(HashInput::Key(Format::variable(name)), false)];
    let crc = |text: &[u8]| Some(u64::from(crc32fast::hash(text)));
    // The check value of CRC-32 (ISO-HDLC).
    assert_eq!(hash(&template("$arg_a"), &[], "/?a=123456789"), Some(0xCBF4_3926));
    assert_eq!(hash(&template("$http_a-$http_b"), &[("b", "1")], "/"), crc(b"-1"));
    assert_eq!(hash(&template("$http_a-$http_b"), &[], "/"), crc(b"10.0.0.1"), "no variable has a value");
    assert_eq!(hash(&variable("cookie_s-id"), &[("cookie", "s-id=x")], "/"), crc(b"x"));
    assert_eq!(hash(&variable("cookie_s-id"), &[("cookie", "other=x")], "/"), crc(b"10.0.0.1"));
}

fn cookie_policy(ttl: Option<u64>, path: &str, attributes: &[(&str, &str)]) -> [HashPolicy; 1] {
    let attributes = attributes.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let ttl = ttl.map(Duration::from_secs);
    [policy(HashInput::Cookie { name: "sess".into(), ttl, path: path.into(), attributes }, false)]
}

#[test]
fn cookies_are_read_without_quotes_and_made_when_they_have_a_lifetime() {
    let ttl = cookie_policy(Some(60), "/p", &[]);
    let mut given = stream(&[("cookie", "a=b; sess=\"ghi\"")], "/");
    assert_eq!(request_hash(&ttl, &mut given), (Some(xxh64(b"ghi", 0)), None));

    let mut fresh = stream(&[], "/");
    let (hash, cookie) = request_hash(&ttl, &mut fresh);
    let cookie = String::from_utf8(cookie.unwrap()).unwrap();
    let value = cookie.strip_prefix("sess=\"").unwrap().get(..16).unwrap();
    assert!(value.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(cookie, format!("sess=\"{value}\"; Max-Age=60; Path=/p; HttpOnly"));
    assert_eq!((hash, fresh.hash), (Some(xxh64(value.as_bytes(), 0)), hash));

    let session = cookie_policy(Some(0), "", &[("SameSite", "Strict"), ("Secure", "")]);
    let cookie = request_hash(&session, &mut stream(&[], "/")).1.unwrap();
    assert!(cookie.ends_with(b"\"; SameSite=Strict; Secure; HttpOnly"));
    assert_eq!(request_hash(&cookie_policy(None, "", &[]), &mut stream(&[], "/")), (None, None));
}

fn weights(weights: &[u64]) -> WeightedClusters {
    let names = Clusters::default();
    let member = |(i, weight): (usize, &u64)| WeightedCluster {
        cluster: ClusterChoice::Named(names.cell(&i.to_string())),
        weight: *weight,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        host_rewrite: None,
        metadata_match: Default::default(),
        chain: None,
    };
    WeightedClusters {
        clusters: weights.iter().enumerate().map(member).collect(),
        total: weights.iter().sum(),
        random_header: None,
        use_hash: false,
    }
}

/// The name of what was drawn, which is its place.
fn name(drawn: Option<(usize, &WeightedCluster)>) -> Option<&str> {
    let (place, cluster) = drawn?;
    match &cluster.cluster {
        ClusterChoice::Named(cell) if *cell.name == *place.to_string() => Some(&cell.name),
        _ => None,
    }
}

#[test]
fn weighted_clusters_take_random_header_or_hash() {
    let mut clusters = weights(&[30, 0, 70]);
    let mut s = stream(&[("x-value", "129")], "/");
    for (random, expected) in [(0, "0"), (29, "0"), (30, "2"), (99, "2"), (100, "0")] {
        s.random = random;
        assert_eq!(name(weighted(&clusters, s.hash, &s)), Some(expected), "{random}");
    }
    s.random = 50;
    clusters.random_header = Some(HeaderTarget::of_request("x-value"));
    assert_eq!(name(weighted(&clusters, s.hash, &s)), Some("0"));
    clusters.random_header = Some(HeaderTarget::of_request("x-none"));
    assert_eq!(name(weighted(&clusters, s.hash, &s)), Some("2"));
    s.request.authority = b"129".to_vec();
    clusters.random_header = Some(HeaderTarget::of_request("Host"));
    assert_eq!(name(weighted(&clusters, s.hash, &s)), Some("0"), "Host is the authority");
    clusters.use_hash = true;
    s.hash = Some(7);
    assert_eq!(name(weighted(&clusters, s.hash, &s)), Some("0"));
    assert_eq!(name(weighted(&weights(&[0, 0]), None, &s)), None);
}
