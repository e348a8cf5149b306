//! Endpoints that plugins of APISIX bring for the whole gateway (`_M.api` of its modules). No request reaches them but by a
//! route with the plugin public-api.

use super::{ApisixFactory, BuildContext, Step};
use crate::error::ConfigError;
use crate::stream::Stream;
use http::Method;
use serde_json::Value;
use std::sync::Arc;
use xxhash_rust::xxh64::xxh64;

/// An endpoint.
#[derive(Clone)]
pub struct Endpoint {
    /// Its path.
    pub uri: Box<str>,
    /// What it is asked by.
    pub methods: Box<[Method]>,
    /// What answers.
    pub api: Arc<dyn PublicApi>,
}

/// Answers the requests to an endpoint.
pub trait PublicApi: Send + Sync {
    /// Answers a request.
    fn answer<'a>(&'a self, stream: &'a mut Stream) -> Step<'a>;
}

/// What makes the endpoints of a plugin, by its attributes: `None` if those say that there is none.
pub type MakeEndpoint = fn(&BuildContext) -> Result<Option<Endpoint>, ConfigError>;

/// The endpoints of the plugins that resources may use.
#[derive(Default)]
pub struct PublicApis(Vec<(MakeEndpoint, Arc<Value>)>);

impl PublicApis {
    /// Those of these plugins, each with its attributes.
    pub fn new<'a>(plugins: impl Iterator<Item = (&'a ApisixFactory, &'a Arc<Value>)>) -> PublicApis {
        PublicApis(plugins.filter_map(|(plugin, of)| Some((plugin.endpoint?, of.clone()))).collect())
    }

    /// Fingerprint of what they are made of.
    pub fn print(&self) -> u64 {
        let of =
            |all, (_, attributes): &(MakeEndpoint, Arc<Value>)| xxh64(attributes.to_string().as_bytes(), all);
        self.0.iter().fold(1, of)
    }

    /// The endpoints. A plugin whose attributes are wrong has none; what is wrong is told where it is used.
    pub fn endpoints(&self, context: &BuildContext) -> Vec<Endpoint> {
        let made = self.0.iter().filter_map(|(make, attributes)| {
            make(&BuildContext { attributes: attributes.clone(), ..context.clone() }).ok().flatten()
        });
        made.collect()
    }
}

impl std::fmt::Debug for PublicApis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "endpoints of {} plugins", self.0.len())
    }
}
