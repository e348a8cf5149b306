//! APISIX's public-api: makes the endpoints that plugins bring reachable on a route.

use serde::Deserialize;
use sixfold_core::format::Variable;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Endpoint, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::LazyLock;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/public-api.json");
    ApisixFactory::new("public-api", 501, schema, PublicApi::build).reading_endpoints()
}

#[derive(Deserialize)]
struct Config {
    uri: Option<String>,
}

struct PublicApi {
    /// The endpoint's path; `None` is that of the request.
    uri: Option<String>,
    /// Those that may be meant.
    endpoints: Vec<Endpoint>,
}

static URI: LazyLock<Variable> = LazyLock::new(|| Variable::parse("uri"));

impl PublicApi {
    fn build(config: Config, context: &BuildContext) -> Built {
        let mut endpoints = context.public_apis.endpoints(context);
        if let Some(uri) = &config.uri {
            endpoints.retain(|endpoint| *endpoint.uri == **uri);
        }
        Ok(Plugin::of(PublicApi { uri: config.uri, endpoints }).access(PublicApi::access).build())
    }

    fn find(&self, stream: &Stream) -> Option<&Endpoint> {
        let uri = URI.get(stream);
        self.endpoints.iter().find(|endpoint| {
            let is_meant = self.uri.is_some() || uri.as_deref() == Some(endpoint.uri.as_bytes());
            is_meant && endpoint.methods.contains(&stream.request.method)
        })
    }

    fn access<'a>(&'a self, stream: &'a mut Stream, _: Slot) -> Step<'a> {
        match self.find(stream) {
            Some(endpoint) => endpoint.api.answer(stream),
            None => Step::Respond(LocalReply::new(404, "", "")),
        }
    }
}
