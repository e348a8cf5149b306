//! What consistent hashing and weighted clusters take of a request.

use crate::cluster::Cluster;
use crate::matcher::{HeaderTarget, cookie, parameter};
use crate::regex::{Regex, Rewrite};
use crate::route::{ClusterChoice, HashInput, HashPolicy, WeightedCluster, WeightedClusters};
use crate::stream::Stream;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh64::xxh64;

/// The hash of a request by a route's policies (source/common/http/hash_policy.cc): each input that is there
/// is xor-ed into the hash so far, rotated left by one; a terminal policy ends the list once something was
/// hashed. The hash is kept in [`Stream::hash`] too.
///
/// The second part is the value of a `Set-Cookie` header for the response, when a cookie was made.
pub fn request_hash(policies: &[HashPolicy], stream: &mut Stream) -> (Option<u64>, Option<Vec<u8>>) {
    let mut made = None;
    stream.hash = hash_of(policies, stream, Some(&mut made));
    (stream.hash, made)
}

/// The same of what the client has sent alone: no cookie is made.
pub fn hash_of_sent(policies: &[HashPolicy], stream: &Stream) -> Option<u64> {
    hash_of(policies, stream, None)
}

fn hash_of(policies: &[HashPolicy], stream: &Stream, mut made: Option<&mut Option<Vec<u8>>>) -> Option<u64> {
    let mut hash = None;
    for policy in policies {
        if let Some(next) = input_hash(&policy.input, stream, made.as_deref_mut()) {
            hash = Some(hash.map_or(next, |h: u64| h.rotate_left(1) ^ next));
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

fn input_hash(input: &HashInput, stream: &Stream, made: Option<&mut Option<Vec<u8>>>) -> Option<u64> {
    match input {
        HashInput::Header(name, rewrite) => header_hash(name, rewrite.as_ref(), stream),
        HashInput::Cookie { name, ttl, path, attributes } => {
            let found = cookie(&stream.request.headers, name.as_bytes()).filter(|v| !v.is_empty());
            if let Some(value) = found {
                return Some(xxh64(value, 0));
            }
            let (ttl, made) = ((*ttl)?, made?);
            let value = format!("{:016x}", random_of_client(stream));
            *made = Some(set_cookie(name, &value, ttl, path, attributes));
            Some(xxh64(value.as_bytes(), 0))
        }
        HashInput::Query(name) => {
            parameter(stream.request.target.query()?, name.as_bytes()).map(|v| xxh64(v, 0))
        }
        HashInput::SourceIp => Some(xxh64(stream.remote_ip().to_string().as_bytes(), 0)),
        HashInput::FilterState(key) => {
            let object = stream.filter_object(key).filter(|object| object.hashable);
            object.map(|object| xxh64(&object.value, 0))
        }
        HashInput::Key(format) => {
            let mut key = Vec::new();
            if format.resolve_count(stream, &mut key) == 0 {
                key.clear();
                key.extend_from_slice(stream.remote_ip().to_string().as_bytes());
            }
            Some(u64::from(crc32fast::hash(&key)))
        }
    }
}

/// All values, sorted, each seeding the hash of the next.
fn header_hash(name: &HeaderTarget, rewrite: Option<&(Regex, Rewrite)>, stream: &Stream) -> Option<u64> {
    let mut values: SmallVec<[Cow<'_, [u8]>; 4]> = name
        .values(&stream.request)
        .map(|value| match rewrite.and_then(|(regex, to)| regex.replace_all(value, to)) {
            Some(new) => Cow::Owned(new),
            None => Cow::Borrowed(value),
        })
        .collect();
    values.sort();
    (!values.is_empty()).then(|| values.iter().fold(0, |seed, value| xxh64(value, seed)))
}

/// What a made cookie holds: the connection's addresses and a random part, so that no two clients share it.
fn random_of_client(stream: &Stream) -> u64 {
    let addresses = format!("{}{}", stream.connection.remote, stream.connection.local);
    xxh64(addresses.as_bytes(), stream.random)
}

/// The value of a Set-Cookie that a client keeps for `ttl`, or as long as it runs (Envoy's `makeSetCookieValue`).
pub fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: &str,
    attributes: &[(Box<str>, Box<str>)],
) -> Vec<u8> {
    let mut cookie = format!("{name}=\"{value}\"");
    if !ttl.is_zero() {
        cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        cookie.push_str(&format!("; Path={path}"));
    }
    for (name, value) in attributes {
        cookie.push_str("; ");
        cookie.push_str(name);
        if !value.is_empty() {
            cookie.push('=');
            cookie.push_str(value);
        }
    }
    cookie.push_str("; HttpOnly");
    cookie.into_bytes()
}

/// Envoy's choice among weighted clusters: the request's random number, a header's integer or, where that counts, the
/// hash, modulo the sum of the weights; with the place of what it is. `None` when all weights are 0.
pub(crate) fn weighted<'a>(
    clusters: &'a WeightedClusters,
    hash: Option<u64>,
    stream: &Stream,
) -> Option<(usize, &'a WeightedCluster)> {
    let integer = |value: &[u8]| std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok();
    let from_header = clusters.random_header.as_ref().and_then(|target| {
        let mut values = target.values(&stream.request);
        let value = values.next().and_then(integer)?;
        values.next().is_none().then_some(value)
    });
    let from_hash = hash.filter(|_| clusters.use_hash);
    let value = from_header.or(from_hash).unwrap_or(stream.random).checked_rem(clusters.total)?;
    let mut sum = 0;
    clusters.clusters.iter().enumerate().find(|(_, cluster)| {
        sum += cluster.weight;
        value < sum
    })
}

/// A cluster by what is known now, and the weighted member that named it: that of a connection of TCP, or of a copy. Where a
/// request itself goes was settled with its route ([`Drawn`](crate::draw::Drawn)).
pub fn choose_cluster<'r>(
    choice: &'r ClusterChoice,
    stream: &Stream,
) -> (Option<Arc<Cluster>>, Option<&'r WeightedCluster>) {
    match choice {
        ClusterChoice::Named(cell) => (cell.load(), None),
        ClusterChoice::Header(target, clusters) => {
            let first = target.values(&stream.request).next();
            let name = first.and_then(|value| std::str::from_utf8(value).ok());
            (name.and_then(|name| clusters.find(name)), None)
        }
        ClusterChoice::Weighted(weighted) => match self::weighted(weighted, None, stream) {
            Some((_, member)) => (choose_cluster(&member.cluster, stream).0, Some(member)),
            None => (None, None),
        },
    }
}

#[cfg(test)]
mod tests;
