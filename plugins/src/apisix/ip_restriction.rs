//! APISIX's ip-restriction: which client addresses may pass.

use crate::shared::addresses::Addresses;
use bytes::Bytes;
use serde::Deserialize;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::listener::{Closing, ConnectionFilter, FilterStep};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/ip-restriction.json");
    ApisixFactory::new("ip-restriction", 3000, schema, IpRestriction::build)
        .in_streams(schema, IpRestriction::of_streams)
}

#[derive(Deserialize)]
struct Config {
    whitelist: Option<Vec<String>>,
    blacklist: Option<Vec<String>>,
    message: String,
    response_code: u16,
}

struct IpRestriction {
    listed: Addresses,
    /// Whether those of the list may pass, or all others.
    pass: bool,
    code: u16,
    body: Bytes,
}

impl IpRestriction {
    fn build(config: Config, _: &BuildContext) -> Built {
        Ok(Plugin::of(IpRestriction::new(config)?).access(IpRestriction::access).build())
    }

    fn of_streams(config: Config, _: &BuildContext) -> Result<Arc<dyn ConnectionFilter>, ConfigError> {
        Ok(Arc::new(IpRestriction::new(config)?))
    }

    fn new(config: Config) -> Result<IpRestriction, ConfigError> {
        // The schema wants exactly one of them.
        let (list, field, pass) = match config.whitelist {
            Some(list) => (list, "whitelist", true),
            None => (config.blacklist.unwrap_or_default(), "blacklist", false),
        };
        let body = format!("{}\n", serde_json::json!({ "message": config.message }));
        let listed = Addresses::new(&list).in_key(field)?;
        Ok(IpRestriction { listed, pass, code: config.response_code, body: body.into() })
    }

    fn lets_pass(&self, stream: &Stream) -> bool {
        self.listed.contains(stream.remote.ip()) == self.pass
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        if self.lets_pass(stream) {
            return Step::Continue;
        }
        Step::Respond(LocalReply::new(self.code, self.body.clone(), ""))
    }
}

/// A stream is closed without a word (apisix/stream/plugins/ip-restriction.lua).
impl ConnectionFilter for IpRestriction {
    fn on_new_connection(&self, connection: &mut Stream, _: Slot) -> FilterStep {
        match self.lets_pass(connection) {
            true => FilterStep::Done,
            false => FilterStep::Close(Closing { status: self.code, ..Closing::default() }),
        }
    }
}

impl std::fmt::Debug for IpRestriction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ip-restriction")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{StreamFilter, build, context, now, plugin, stream, stream_plugin};
    use serde_json::{Value, json};

    /// The answer to a request from 10.1.2.3.
    #[allow(clippy::needless_pass_by_value)]
    fn answer(config: Value) -> Option<(u16, String)> {
        let reply = now(plugin("ip-restriction", &config).access(&mut stream("/", &[])))?;
        Some((reply.status, String::from_utf8(reply.body.to_vec()).unwrap()))
    }

    #[test]
    fn lists_say_who_may_pass() {
        let refused = || Some((403, "{\"message\":\"Your IP address is not allowed\"}\n".to_owned()));
        assert_eq!(answer(json!({"whitelist": ["127.0.0.1", "10.0.0.0/8"]})), None);
        assert_eq!(answer(json!({"whitelist": ["127.0.0.1", "::/0"]})), refused());
        assert_eq!(answer(json!({"blacklist": ["127.0.0.1", "10.0.0.0/8"]})), refused());
        assert_eq!(answer(json!({"blacklist": ["127.0.0.1"]})), None);
    }

    #[tokio::test]
    async fn streams_of_whom_it_keeps_out_are_closed() {
        let plugin =
            stream_plugin("ip-restriction", json!({"whitelist": ["10.0.0.0/8"], "response_code": 404}));
        assert!(StreamFilter::begin(&plugin, "10.0.0.1:1").await.is_ok());
        assert_eq!(StreamFilter::begin(&plugin, "11.0.0.1:1").await.err(), Some(404));
    }

    #[test]
    fn the_answer_is_configured() {
        let config =
            json!({"blacklist": ["10.1.2.3"], "message": "Do you want \"this\"?", "response_code": 404});
        let body = "{\"message\":\"Do you want \\\"this\\\"?\"}\n".to_owned();
        assert_eq!(answer(config), Some((404, body)));
    }

    #[test]
    fn every_bad_address_is_told() {
        let config = json!({"blacklist": ["::1", "10.0.0.0/33", "x"]});
        let refused = build("ip-restriction", &config, &context()).err().unwrap();
        assert!(refused.contains("blacklist[1]: invalid ip address: 10.0.0.0/33"), "{refused}");
    }
}
