//! APISIX's resources: what a kind is called, and a type for each.
//!
//! The types are read from documents that have passed their schema, which has filled the defaults in; a
//! field with a default therefore is never absent. The schemas and the types are held together by a test.

/// Declares the type of a resource with the fields that nearly all of them have.
macro_rules! resource {
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// What others refer to. In apisix.yaml the position in the list may stand in for an absent one.
            pub id: Option<$crate::resource::Id>,
            /// For people, logs and metrics.
            pub name: Option<String>,
            /// For people.
            pub desc: Option<String>,
            /// For people and tools.
            pub labels: Option<$crate::resource::Labels>,
            /// Seconds since the epoch.
            #[serde(default, deserialize_with = "super::optional_integer")]
            pub create_time: Option<i64>,
            /// Seconds since the epoch.
            #[serde(default, deserialize_with = "super::optional_integer")]
            pub update_time: Option<i64>,
            $($fields)*
        }
    };
}

mod consumer;
mod global_rule;
mod plugin_config;
mod proto;
mod route;
mod service;
mod ssl;
mod stream_route;
#[cfg(test)]
mod tests;
mod upstream;

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::consumer::{Consumer, ConsumerGroup, Credential};
pub use self::global_rule::GlobalRule;
pub use self::plugin_config::PluginConfig;
pub use self::proto::Proto;
pub use self::route::Route;
pub use self::service::Service;
pub use self::ssl::{ClientVerification, Ssl, SslType};
pub use self::stream_route::{ProtocolLogger, ProtocolMetric, StreamProtocol, StreamRoute};
pub use self::upstream::{
    ActiveCheck, ActiveHealthy, ActiveUnhealthy, DiscoveryArgs, HashOn, HealthCheck, KeepalivePool, Node,
    Nodes, PassHost, PassiveCheck, PassiveHealthy, PassiveUnhealthy, ProbeType, Scheme, Upstream,
    UpstreamTls,
};

/// A plugin's name to its configuration, as written.
pub type Plugins = Map<String, Value>;

/// The kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A user of the gateway.
    Consumer,
    /// Plugins that consumers share.
    ConsumerGroup,
    /// One more way for a consumer to authenticate.
    Credential,
    /// Plugins that run for every request.
    GlobalRule,
    /// Plugins that routes share.
    PluginConfig,
    /// A plugin's settings for the whole gateway.
    PluginMetadata,
    /// A protobuf definition.
    Proto,
    /// What requests it takes and what happens to them.
    Route,
    /// Access to a secret manager.
    Secret,
    /// What routes share.
    Service,
    /// Certificates.
    Ssl,
    /// A route for TCP and UDP.
    StreamRoute,
    /// Nodes and how to reach them.
    Upstream,
}

impl Kind {
    /// Every kind, by name.
    pub const ALL: [Kind; 13] = [
        Kind::Consumer,
        Kind::ConsumerGroup,
        Kind::Credential,
        Kind::GlobalRule,
        Kind::PluginConfig,
        Kind::PluginMetadata,
        Kind::Proto,
        Kind::Route,
        Kind::Secret,
        Kind::Service,
        Kind::Ssl,
        Kind::StreamRoute,
        Kind::Upstream,
    ];

    /// The key in apisix.yaml, and the segment of the Admin API's path. A credential stands below its consumer.
    pub fn section(self) -> &'static str {
        match self {
            Kind::Consumer => "consumers",
            Kind::ConsumerGroup => "consumer_groups",
            Kind::Credential => "credentials",
            Kind::GlobalRule => "global_rules",
            Kind::PluginConfig => "plugin_configs",
            Kind::PluginMetadata => "plugin_metadata",
            Kind::Proto => "protos",
            Kind::Route => "routes",
            Kind::Secret => "secrets",
            Kind::Service => "services",
            Kind::Ssl => "ssls",
            Kind::StreamRoute => "stream_routes",
            Kind::Upstream => "upstreams",
        }
    }

    /// The field that says what a resource is called.
    pub(crate) fn id_field(self) -> &'static str {
        if self == Kind::Consumer { "username" } else { "id" }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Consumer => "consumer",
            Kind::ConsumerGroup => "consumer group",
            Kind::Credential => "credential",
            Kind::GlobalRule => "global rule",
            Kind::PluginConfig => "plugin config",
            Kind::PluginMetadata => "plugin_metadata",
            Kind::Proto => "proto",
            Kind::Route => "route",
            Kind::Secret => "secret",
            Kind::Service => "service",
            Kind::Ssl => "ssl",
            Kind::StreamRoute => "stream route",
            Kind::Upstream => "upstream",
        }
    }

    /// The kind of a top-level list of apisix.yaml. Credentials are in `consumers` there.
    pub fn from_section(section: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind != Kind::Credential && kind.section() == section)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An id: written as a string or as a positive integer, compared as a string. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Id(Arc<str>);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same to be kept.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.0
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Id {
        Id(text.into())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an integer")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                Ok(Id::from(text))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id(number.to_string().into()))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id(number.to_string().into()))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Id, E> {
                // The schema lets 1.0 through as an integer.
                Ok(Id(format!("{number:.0}").into()))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// Labels: free keys and values.
pub type Labels = std::collections::BTreeMap<String, String>;

/// Timeouts towards an upstream, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Timeout {
    /// To connect.
    pub connect: f64,
    /// Between two writes.
    pub send: f64,
    /// Between two reads.
    pub read: f64,
}

/// An integer that may be written as `5.0`, as the schemas' `integer` allows.
fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    struct IntegerVisitor;
    impl Visitor<'_> for IntegerVisitor {
        type Value = i64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer")
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
            i64::try_from(number).map_err(|_| E::custom(format_args!("{number} is too large")))
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<i64, E> {
            const LIMIT: f64 = 9_007_199_254_740_992.0;
            if number.fract() == 0.0 && number.abs() <= LIMIT {
                Ok(number as i64)
            } else {
                Err(E::custom(format_args!("{number} is no integer")))
            }
        }
    }
    deserializer.deserialize_any(IntegerVisitor)
}

/// [`integer`] for a field that may be absent.
fn optional_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    integer(deserializer).map(Some)
}

/// `1` or `0`.
fn enabled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    integer(deserializer).map(|n| n != 0)
}
