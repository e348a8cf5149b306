//! APISIX's consumer-restriction: who may use a route, of those who have authenticated.

use crate::apisix;
use serde::Deserialize;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::collections::{HashMap, HashSet};

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/consumer-restriction.json");
    ApisixFactory::new("consumer-restriction", 2400, schema, Restriction::build)
}

#[derive(Deserialize)]
struct Config {
    r#type: Of,
    #[serde(default)]
    blacklist: Vec<Box<str>>,
    #[serde(default)]
    whitelist: Vec<Box<str>>,
    #[serde(default)]
    allowed_by_methods: Vec<Allowed>,
    rejected_code: u16,
    rejected_msg: Option<String>,
}

/// Nobody is meant without `user`, and everything is forbidden without `methods`.
#[derive(Deserialize)]
struct Allowed {
    user: Option<Box<str>>,
    #[serde(default)]
    methods: Vec<Box<str>>,
}

/// What is looked at.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum Of {
    ConsumerName,
    ServiceId,
    RouteId,
    ConsumerGroupId,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::ConsumerName => "consumer_name",
            Of::ServiceId => "service_id",
            Of::RouteId => "route_id",
            Of::ConsumerGroupId => "consumer_group_id",
        }
    }

    fn value(self, stream: &Stream) -> Option<&str> {
        let ids = || stream.route.as_ref().map(|route| &route.ids);
        let value = match self {
            Of::ConsumerName => stream.consumer.as_ref().map(|consumer| &*consumer.name),
            Of::ConsumerGroupId => stream.consumer.as_ref()?.group.as_deref(),
            Of::ServiceId => ids().map(|ids| &*ids.service),
            Of::RouteId => ids().map(|ids| &*ids.route),
        };
        value.filter(|value| !value.is_empty())
    }
}

struct Restriction {
    of: Of,
    refused: HashSet<Box<str>>,
    /// Those that pass whatever the method; everybody does if it is empty.
    admitted: HashSet<Box<str>>,
    methods: HashMap<Box<str>, Vec<Box<str>>>,
    missing: LocalReply,
    rejection: LocalReply,
}

impl Restriction {
    fn build(config: Config, _: &BuildContext) -> Built {
        let of = config.r#type;
        let message = config.rejected_msg.unwrap_or_else(|| format!("The {} is forbidden.", of.name()));
        let missing = format!("The request is rejected, please check the {} for this request", of.name());
        let mut methods = HashMap::new();
        for Allowed { user, methods: allowed } in config.allowed_by_methods {
            // The first of a name counts.
            if let Some(user) = user {
                methods.entry(user).or_insert(allowed);
            }
        }
        let plugin = Restriction {
            of,
            refused: config.blacklist.into_iter().collect(),
            admitted: config.whitelist.into_iter().collect(),
            methods,
            missing: apisix::message_reply(401, &missing),
            rejection: apisix::message_reply(config.rejected_code, &message),
        };
        Ok(Plugin::of(plugin).access(Restriction::access).build())
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let Some(value) = self.of.value(stream) else { return Step::Respond(self.missing.clone()) };
        let may_pass = match self.admitted.contains(value) {
            _ if self.refused.contains(value) => false,
            true => true,
            false => {
                let method = stream.request.method.as_str();
                let allowed = |methods: &Vec<Box<str>>| methods.iter().any(|allowed| **allowed == *method);
                self.admitted.is_empty() && self.methods.get(value).is_none_or(allowed)
            }
        };
        if may_pass { Step::Continue } else { Step::Respond(self.rejection.clone()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::testing::{chain_of, context, known, message_of, pass, stream};
    use serde_json::{Value, json};

    /// What becomes of a request of a method by whoever has this key.
    fn of(config: &Value, method: &str, key: &str) -> Option<(u16, String)> {
        let jack = json!({"key": "jack"});
        let context =
            known(context(), "key-auth", &[("jack", jack, None), ("ann", json!({"key": "ann"}), None)]);
        let plugins = [("key-auth", &json!({})), ("consumer-restriction", config)];
        let chain = chain_of(if key.is_empty() { &plugins[1..] } else { &plugins }, &context);
        let mut s = stream("/", &[("apikey", key)]);
        s.request.method = method.parse().unwrap();
        pass(&chain, &mut s).map(|reply| (reply.status, message_of(&reply)))
    }

    fn forbidden() -> Option<(u16, String)> {
        Some((403, "The consumer_name is forbidden.".to_owned()))
    }

    #[test]
    fn lists_admit_and_refuse() {
        let white = || json!({"whitelist": ["jack"]});
        assert_eq!((of(&white(), "GET", "jack"), of(&white(), "GET", "ann")), (None, forbidden()));
        let black = || json!({"blacklist": ["jack"], "rejected_code": 401, "rejected_msg": "no"});
        assert_eq!(
            (of(&black(), "GET", "ann"), of(&black(), "GET", "jack")),
            (None, Some((401, "no".into())))
        );
        let both = || json!({"blacklist": ["jack"], "whitelist": ["jack"]});
        assert_eq!((of(&both(), "GET", "jack"), of(&both(), "GET", "ann")), (forbidden(), forbidden()));
    }

    #[test]
    fn methods_are_those_of_the_user() {
        let methods = || json!({"allowed_by_methods": [{"user": "jack", "methods": ["GET", "POST"]}]});
        assert_eq!((of(&methods(), "GET", "jack"), of(&methods(), "PUT", "jack")), (None, forbidden()));
        assert_eq!(of(&methods(), "PUT", "ann"), None, "who is not listed passes");
        let mut white = methods();
        white["whitelist"] = json!(["jack"]);
        assert_eq!(of(&white, "PUT", "jack"), None, "who is admitted is not asked for the method");
    }

    #[test]
    fn what_is_looked_at_must_be_there() {
        for kind in ["consumer_name", "service_id", "route_id", "consumer_group_id"] {
            let message = format!("The request is rejected, please check the {kind} for this request");
            let config = json!({"type": kind, "whitelist": ["jack"]});
            assert_eq!(of(&config, "GET", ""), Some((401, message)));
        }
    }
}
