//! What rate limits are told of a request: descriptors, lists of keys and values, by the `rate_limits` of routes and virtual
//! hosts (config/route/v3 RateLimit; source/common/router/router_ratelimit.cc).

#[cfg(test)]
mod tests;

use crate::draw;
use crate::format::Format;
use crate::matcher::{HeaderMatcher, HeaderTarget, QueryMatcher, parameter};
use crate::metadata;
use crate::route::Action as RouteAction;
use crate::runtime::Fraction;
use crate::stream::Stream;
use ipnet::IpNet;
use serde_json::Value;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

/// What a route says of rate limits.
#[derive(Debug, Default)]
pub struct RouteLimits {
    /// Its own policies.
    pub policies: Box<[LimitPolicy]>,
    /// Whether the virtual host's count too although the route has some (`include_vh_rate_limits`).
    pub include_virtual_host: bool,
}

/// What the policies of the virtual host are beside those of the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfHost {
    /// They count where the route has none.
    Fallback,
    /// They count too.
    Included,
    /// They do not count.
    Ignored,
}

/// The policies of one stage that count for a request, those of its route before those of its virtual host. What goes to
/// no cluster has none. A route that includes the policies of its virtual host goes before `of_host`.
pub fn policies_of(stream: &Stream, stage: u32, of_host: OfHost) -> impl Iterator<Item = &LimitPolicy> {
    let forward = match stream.route.as_deref().map(|route| &route.action) {
        Some(RouteAction::Forward(forward)) => Some(forward),
        _ => None,
    };
    let limits = forward.and_then(|forward| forward.rate_limits.as_deref());
    let of_route = limits.map_or(&[][..], |limits| &limits.policies);
    let of_host =
        if limits.is_some_and(|limits| limits.include_virtual_host) { OfHost::Included } else { of_host };
    let counts = match of_host {
        OfHost::Fallback => of_route.is_empty(),
        OfHost::Included => true,
        OfHost::Ignored => false,
    };
    let host = stream.virtual_host.as_deref().filter(|_| counts && forward.is_some());
    let of_host = host.map_or(&[][..], |host| &host.options.rate_limits);
    of_route.iter().chain(of_host).filter(move |policy| policy.stage == stage)
}

/// How one descriptor is made.
#[derive(Debug, Default)]
pub struct LimitPolicy {
    /// Which of the filters it is for.
    pub stage: u32,
    /// The share of requests that it is on for, where a key of the runtime says it; `None` is without such a key.
    pub enabled: Option<Fraction>,
    /// What its entries are made of, in order.
    pub actions: Box<[LimitAction]>,
    /// A limit in the place of the service's.
    pub limit: Option<LimitOverride>,
    /// What the request counts for; `None` is what the filter says, which is 1.
    pub hits: Option<Hits>,
    /// Whether the response says how far the limit is; `None` is what the filter says.
    pub x_ratelimit: Option<bool>,
}

/// What a request counts for.
#[derive(Debug)]
pub struct Hits {
    /// The number.
    pub count: HitCount,
    /// It is given back, not taken.
    pub is_negative: bool,
}

/// A number of hits.
#[derive(Debug)]
pub enum HitCount {
    /// Always this.
    Fixed(u64),
    /// The text that the format gives; what is no number counts as nothing said.
    Format(Format),
}

/// What an entry is made of. One that can't be made drops the descriptor, or where the configuration says so only itself.
#[derive(Debug)]
pub enum LimitAction {
    /// `source_cluster`: what this proxy is one of.
    SourceCluster(Arc<str>),
    /// `destination_cluster`: where the request would go.
    DestinationCluster,
    /// The first value of a header.
    RequestHeader {
        /// The header.
        header: HeaderTarget,
        /// Key of the entry.
        key: Arc<str>,
        /// Without the header the others make a descriptor.
        skip_if_absent: bool,
    },
    /// A parameter of the query, decoded.
    QueryParameter {
        /// Its name.
        name: Box<[u8]>,
        /// Key of the entry.
        key: Arc<str>,
        /// Without it the others make a descriptor.
        skip_if_absent: bool,
    },
    /// `remote_address`: the client's.
    RemoteAddress,
    /// `masked_remote_address`: the network that the client is in.
    MaskedRemoteAddress {
        /// Bits of IPv4.
        v4: u8,
        /// Bits of IPv6.
        v6: u8,
    },
    /// A text, if a condition holds.
    Text {
        /// What must hold.
        condition: LimitCondition,
        /// Key of the entry.
        key: Arc<str>,
        /// The text.
        value: Format,
        /// What stands for an empty one; empty is nothing.
        default: Box<str>,
    },
    /// A text of metadata.
    Metadata {
        /// Whose.
        source: MetadataSource,
        /// Where it is: the namespace first.
        path: Box<[Arc<str>]>,
        /// Key of the entry.
        key: Arc<str>,
        /// What stands for one that is not there; empty is nothing.
        default: Box<str>,
        /// Without it the others make a descriptor.
        skip_if_absent: bool,
    },
}

/// When a text is an entry.
#[derive(Debug)]
pub enum LimitCondition {
    /// Always.
    Always,
    /// All of these hold, or with `false` not all.
    Headers(Box<[HeaderMatcher]>, bool),
    /// All of these hold, or with `false` not all.
    Query(Box<[QueryMatcher]>, bool),
    /// The client is in one of these networks, or with `false` in none.
    Address(Box<[IpNet]>, bool),
}

/// Whose metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataSource {
    /// The request's.
    Dynamic,
    /// The route's.
    Route,
    /// Of the cluster where the request would go.
    Cluster,
}

/// A limit in the place of the service's.
#[derive(Debug)]
pub enum LimitOverride {
    /// Always this.
    Fixed(Limit),
    /// What the request's metadata says there: `requests_per_unit` and `unit`.
    Dynamic(Box<[Arc<str>]>),
}

/// A number of requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Requests.
    pub requests_per_unit: u32,
    /// In which time: type/v3 RateLimitUnit.
    pub unit: LimitUnit,
}

/// Times of limits, with their numbers in type/v3 RateLimitUnit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum LimitUnit {
    Unknown = 0,
    Second = 1,
    Minute = 2,
    Hour = 3,
    Day = 4,
    Month = 5,
    Year = 6,
}

impl LimitUnit {
    /// The unit by its name in the definition, as metadata spells it.
    pub fn named(name: &str) -> Option<LimitUnit> {
        Some(match name {
            "UNKNOWN" => LimitUnit::Unknown,
            "SECOND" => LimitUnit::Second,
            "MINUTE" => LimitUnit::Minute,
            "HOUR" => LimitUnit::Hour,
            "DAY" => LimitUnit::Day,
            "MONTH" => LimitUnit::Month,
            "YEAR" => LimitUnit::Year,
            _ => return None,
        })
    }
}

/// What a rate limit is told of a request. It borrows of the request and the configuration whatever stands there already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Descriptor<'s> {
    /// Keys and values, in the order of the actions.
    pub entries: SmallVec<[(&'s str, Cow<'s, str>); 4]>,
    /// A limit in the place of the service's.
    pub limit: Option<Limit>,
    /// What the request counts for, where the policy says so.
    pub hits: Option<u64>,
    /// It is given back, not taken.
    pub is_negative: bool,
    /// What the policy says of headers about the limit.
    pub x_ratelimit: Option<bool>,
}

impl LimitPolicy {
    /// The descriptor of a request; `None` where an entry can't be made, or none is left.
    pub fn describe<'s>(&'s self, stream: &'s Stream) -> Option<Descriptor<'s>> {
        let mut entries = SmallVec::new();
        for action in &self.actions {
            match action.entry(stream) {
                Entry::Made(key, value) => entries.push((key, value)),
                Entry::Skipped => {}
                Entry::Missing => return None,
            }
        }
        let hits = self.hits.as_ref().and_then(|hits| hits.count.of(stream));
        (!entries.is_empty()).then(|| Descriptor {
            entries,
            limit: self.limit.as_ref().and_then(|limit| limit.of(stream)),
            hits,
            is_negative: hits.is_some() && self.hits.as_ref().is_some_and(|hits| hits.is_negative),
            x_ratelimit: self.x_ratelimit,
        })
    }
}

/// What became of an action.
enum Entry<'s> {
    Made(&'s str, Cow<'s, str>),
    Skipped,
    Missing,
}

impl<'s> Entry<'s> {
    /// The entry with this value; without one, what the configuration says of that.
    fn of(key: &'s str, value: Option<Cow<'s, str>>, skip: bool) -> Entry<'s> {
        match value {
            Some(value) => Entry::Made(key, value),
            None if skip => Entry::Skipped,
            None => Entry::Missing,
        }
    }
}

/// Entries are texts of a message: what is none in a header becomes a mark.
fn text<'s>(bytes: impl Into<Cow<'s, [u8]>>) -> Cow<'s, str> {
    match bytes.into() {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }),
    }
}

impl LimitAction {
    fn entry<'s>(&'s self, stream: &'s Stream) -> Entry<'s> {
        match self {
            LimitAction::SourceCluster(name) => Entry::Made("source_cluster", Cow::Borrowed(name)),
            LimitAction::DestinationCluster => Entry::of("destination_cluster", destination(stream), false),
            LimitAction::RequestHeader { header, key, skip_if_absent } => {
                let value = header.values(&stream.request).next().map(text);
                Entry::of(key, value, *skip_if_absent)
            }
            LimitAction::QueryParameter { name, key, skip_if_absent } => {
                let query = stream.request.target.query().unwrap_or_default();
                let value = parameter(query, name).map(|value| text(percent_encoding::percent_decode(value)));
                Entry::of(key, value, *skip_if_absent)
            }
            LimitAction::RemoteAddress => {
                Entry::Made("remote_address", Cow::Owned(stream.remote_ip().to_string()))
            }
            LimitAction::MaskedRemoteAddress { v4, v6 } => {
                let address = stream.remote_ip();
                let bits = if address.is_ipv4() { *v4 } else { *v6 };
                let network = IpNet::new(address, bits).ok();
                let network = network.map(|network| Cow::Owned(network.trunc().to_string()));
                Entry::of("masked_remote_address", network, false)
            }
            LimitAction::Text { condition, key, value, default } => {
                if !condition.holds(stream) {
                    return Entry::Missing;
                }
                let own = match value.constant() {
                    Some(constant) => text(constant),
                    None => {
                        let mut out = Vec::new();
                        value.write_body(stream, &mut out);
                        text(out)
                    }
                };
                let own = Some(own).filter(|value| !value.is_empty());
                Entry::of(key, own.or_else(|| given(default)), false)
            }
            LimitAction::Metadata { source, path, key, default, skip_if_absent } => {
                let own = source.text(path, stream).filter(|value| !value.is_empty());
                Entry::of(key, own.or_else(|| given(default)), *skip_if_absent)
            }
        }
    }
}

fn given(default: &str) -> Option<Cow<'_, str>> {
    (!default.is_empty()).then_some(Cow::Borrowed(default))
}

/// The name of the cluster that the request would go to, be it there or not.
fn destination(stream: &Stream) -> Option<Cow<'_, str>> {
    let choice = stream.route.as_deref()?.leads_to()?;
    stream.upstream.drawn.cluster_name(choice).map(Cow::Borrowed)
}

impl LimitCondition {
    fn holds(&self, stream: &Stream) -> bool {
        match self {
            LimitCondition::Always => true,
            LimitCondition::Headers(tests, wanted) => {
                tests.iter().all(|test| test.matches(&stream.request)) == *wanted
            }
            LimitCondition::Query(tests, wanted) => {
                let query = stream.request.target.query();
                tests.iter().all(|test| test.matches(query)) == *wanted
            }
            LimitCondition::Address(networks, wanted) => {
                let address: IpAddr = stream.remote_ip();
                networks.iter().any(|network| network.contains(&address)) == *wanted
            }
        }
    }
}

impl MetadataSource {
    fn text<'s>(self, path: &[Arc<str>], stream: &'s Stream) -> Option<Cow<'s, str>> {
        let (namespace, keys) = path.split_first()?;
        match self {
            MetadataSource::Dynamic => dynamic(namespace, keys, stream)?.as_str().map(Cow::Borrowed),
            MetadataSource::Route => {
                let value = stream.route.as_deref()?.metadata.get(namespace)?;
                metadata::below(value, keys)?.as_str().map(Cow::Borrowed)
            }
            MetadataSource::Cluster => {
                let cluster = draw::cluster_of(stream)?;
                let value = metadata::below(cluster.config.metadata.get(namespace)?, keys)?;
                value.as_str().map(|text| Cow::Owned(text.to_owned()))
            }
        }
    }
}

/// A value of the request's metadata.
fn dynamic<'s>(namespace: &str, keys: &[Arc<str>], stream: &'s Stream) -> Option<&'s Value> {
    let (first, rest) = keys.split_first()?;
    metadata::below(metadata::noted(&stream.metadata, namespace, first)?, rest)
}

impl LimitOverride {
    fn of(&self, stream: &Stream) -> Option<Limit> {
        let path = match self {
            LimitOverride::Fixed(limit) => return Some(*limit),
            LimitOverride::Dynamic(path) => path,
        };
        let (namespace, keys) = path.split_first()?;
        let found = dynamic(namespace, keys, stream)?;
        // Numbers of a struct are doubles; what is less than nothing or too large is no limit.
        let requests =
            found.get("requests_per_unit")?.as_f64().filter(|n| (0.0..=f64::from(u32::MAX)).contains(n))?;
        let unit = LimitUnit::named(found.get("unit")?.as_str()?)?;
        Some(Limit { requests_per_unit: requests as u32, unit })
    }
}

impl HitCount {
    fn of(&self, stream: &Stream) -> Option<u64> {
        match self {
            HitCount::Fixed(count) => Some(*count),
            HitCount::Format(format) => {
                let mut out = Vec::new();
                format.write_body(stream, &mut out);
                // A number of Envoy's formatters may be written as a double.
                let number: f64 = std::str::from_utf8(&out).ok()?.trim().parse().ok()?;
                (number.is_finite() && number >= 0.0).then_some(number as u64)
            }
        }
    }
}
