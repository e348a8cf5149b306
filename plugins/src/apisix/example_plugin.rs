//! APISIX's example-plugin: sends requests to the address it is given, and does nothing without one. It is what its
//! documentation shows plugins with, and is enabled by default.

use serde::Deserialize;
use serde_json::{Value, json};
use sixfold_core::cluster::ClusterCell;
use sixfold_core::plugin::{ApisixFactory, BroughtUpstream, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// What the cluster of its address is called.
const PLACE: &str = "example-plugin";

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/example-plugin.json");
    ApisixFactory::new("example-plugin", 0, schema, Example::build)
        .metadata(include_str!("../../schemas/example-plugin-metadata.json"))
        .bringing(brought)
}

#[derive(Deserialize)]
struct Config {
    ip: Option<String>,
    port: Option<Value>,
}

/// The upstream of its address.
fn brought(config: &Value) -> Vec<BroughtUpstream> {
    let Ok(Config { ip: Some(ip), port }) = Config::deserialize(config) else { return Vec::new() };
    let mut node = json!({"host": ip, "weight": 1});
    if let (Some(port), Value::Object(node)) = (port, &mut node) {
        node.insert("port".to_owned(), port);
    }
    let config = json!({"type": "roundrobin", "nodes": [node]});
    vec![BroughtUpstream { name: PLACE.to_owned(), field: "ip".to_owned(), config }]
}

struct Example(Arc<ClusterCell>);

impl Example {
    fn build(config: Config, context: &BuildContext) -> Built {
        let Config { ip, port: _ } = config;
        Ok(match ip {
            Some(_) => Plugin::of(Example(context.brought_cluster(PLACE))).access(Example::access).build(),
            None => Plugin::default(),
        })
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.upstream.destination = Some(self.0.clone());
        Step::Continue
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::brought;
    use crate::testing::{build, context, now, plugin, stream};
    use serde_json::json;

    #[test]
    fn requests_go_to_its_address() {
        let plugin = plugin("example-plugin", &json!({"i": 1, "ip": "127.0.0.1", "port": 1981}));
        let mut s = stream("/", &[]);
        now(plugin.access(&mut s));
        assert!(s.upstream.destination.is_some());
        let upstreams = brought(&json!({"ip": "127.0.0.1", "port": 1981}));
        assert_eq!(upstreams[0].config["nodes"], json!([{"host": "127.0.0.1", "weight": 1, "port": 1981}]));
        assert!(brought(&json!({"i": 1})).is_empty());
        assert!(build("example-plugin", &json!({"i": 1}), &context()).is_ok());
    }
}
