//! APISIX's traffic-split: which upstream gets a request, by conditions and by weight.

#[cfg(test)]
mod tests;
mod turns;

use serde::Deserialize;
use serde_json::{Map, Value};
use sixfold_core::cluster::ClusterCell;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::expr::Expr;
use sixfold_core::listener::{Closing, ConnectionFilter, FilterStep};
use sixfold_core::plugin::{
    ApisixFactory, BroughtUpstream, BuildContext, Built, LocalReply, Plugin, Slot, Step,
};
use sixfold_core::stream::Stream;
use std::sync::Arc;
use turns::Turns;

pub(crate) fn factory() -> ApisixFactory {
    let schema = include_str!("../../schemas/traffic-split.json");
    ApisixFactory::new("traffic-split", 966, schema, TrafficSplit::build)
        .bringing(brought)
        .in_streams(schema, TrafficSplit::of_streams)
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rules: Vec<RuleConfig>,
}

#[derive(Deserialize)]
struct RuleConfig {
    #[serde(rename = "match")]
    when: Option<Vec<MatchConfig>>,
    weighted_upstreams: Vec<Weighted>,
}

#[derive(Deserialize)]
struct MatchConfig {
    #[serde(default)]
    vars: Value,
}

#[derive(Deserialize)]
struct Weighted {
    upstream_id: Option<Value>,
    upstream: Option<Value>,
    weight: u32,
}

/// What APISIX takes over of an upstream that stands here.
const HONOURED: [&str; 9] =
    ["name", "type", "hash_on", "key", "pass_host", "upstream_host", "nodes", "timeout", "scheme"];

/// What the cluster of an upstream is called that stands in a rule.
fn place(rule: usize, member: usize) -> String {
    format!("traffic-split/{rule}/{member}")
}

/// The upstreams that stand in the rules.
fn brought(config: &Value) -> Vec<BroughtUpstream> {
    let Ok(config) = Config::deserialize(config) else { return Vec::new() };
    let of_rule = |(rule, members): (usize, RuleConfig)| {
        let members = members.weighted_upstreams.into_iter().enumerate();
        members.filter_map(move |(member, weighted)| {
            // An id goes before what stands beside it.
            let upstream = weighted.upstream.filter(|_| weighted.upstream_id.is_none())?;
            let mut config = Map::new();
            for name in HONOURED {
                config.extend(upstream.get(name).map(|value| (name.to_owned(), value.clone())));
            }
            Some(BroughtUpstream {
                name: place(rule, member),
                field: format!("rules[{rule}].weighted_upstreams[{member}].upstream"),
                config: Value::Object(config),
            })
        })
    };
    config.rules.into_iter().enumerate().flat_map(of_rule).collect()
}

struct TrafficSplit {
    rules: Vec<Rule>,
}

struct Rule {
    /// Any of these holds; without a list all requests are meant.
    when: Option<Vec<Expr>>,
    /// Upstreams by id, all of which must be there.
    named: Vec<(String, Arc<ClusterCell>)>,
    /// `None` is the route's own upstream.
    members: Turns<Option<Arc<ClusterCell>>>,
}

impl TrafficSplit {
    fn build(config: Config, context: &BuildContext) -> Built {
        let plugin = Plugin::of(TrafficSplit::made(config, context)?).access(TrafficSplit::access);
        Ok(plugin.foretelling(TrafficSplit::foretell).leading(TrafficSplit::leads_to).build())
    }

    fn of_streams(config: Config, context: &BuildContext) -> Result<Arc<dyn ConnectionFilter>, ConfigError> {
        Ok(Arc::new(TrafficSplit::made(config, context)?))
    }

    fn made(config: Config, context: &BuildContext) -> Result<TrafficSplit, ConfigError> {
        let rule = |(index, rule): (usize, RuleConfig)| {
            Rule::new(index, rule, context).in_index(index).in_key("rules")
        };
        let rules = collect(config.rules.into_iter().enumerate().map(rule))?;
        Ok(TrafficSplit { rules })
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        match self.met(stream) {
            Ok(Some(rule)) => stream.upstream.destination = rule.members.next().cloned().flatten(),
            Ok(None) => {}
            Err(id) => {
                let reason = format!("failed to fetch upstream info by upstream id: {id}");
                return Step::Respond(LocalReply::new(500, reason, ""));
            }
        }
        Step::Continue
    }

    /// The rule that is for a request; the id of an upstream that is not there, if a rule before it has one.
    fn met(&self, stream: &Stream) -> Result<Option<&Rule>, &str> {
        // A list without a condition says what the one before it has said, the first that it holds, as in APISIX.
        let mut holds = true;
        for rule in &self.rules {
            if let Some((id, _)) = rule.named.iter().find(|(_, cell)| cell.load().is_none()) {
                return Err(id);
            }
            for expr in rule.when.iter().flatten() {
                // One that can't be evaluated does not hold.
                holds = expr.eval(stream).unwrap_or(false);
                if holds {
                    break;
                }
            }
            if holds || rule.when.is_none() {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    fn foretell(&self, stream: &Stream) -> Vec<String> {
        let rule = match self.met(stream) {
            Ok(Some(rule)) => rule,
            Ok(None) => return Vec::new(),
            Err(id) => return vec![format!("answers 500: there is no upstream \"{id}\"")],
        };
        let members = rule.members.members();
        let all: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let shown = members.iter().map(|(cell, weight)| {
            let percent = (f64::from(*weight) * 10_000.0 / all as f64).round() / 100.0;
            match cell {
                Some(cell) => format!("sends {percent} % to cluster \"{}\"", cell.name),
                None => format!("leaves {percent} % to the route's own upstream"),
            }
        });
        shown.collect()
    }

    /// The clusters of which one may get the request, beside the route's own.
    fn leads_to(&self, stream: &Stream) -> Vec<Arc<ClusterCell>> {
        let rule = self.met(stream).ok().flatten();
        let members = rule.into_iter().flat_map(|rule| rule.members.members());
        members.filter_map(|(cell, _)| cell.clone()).collect()
    }
}

/// What it chooses is where a stream goes (apisix/stream/plugins/traffic-split.lua).
impl ConnectionFilter for TrafficSplit {
    fn on_new_connection(&self, connection: &mut Stream, slot: Slot) -> FilterStep {
        match self.access(connection, slot) {
            Step::Respond(reply) => FilterStep::Close(Closing { status: reply.status, ..Closing::default() }),
            _ => FilterStep::Done,
        }
    }
}

impl std::fmt::Debug for TrafficSplit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "traffic-split by {} rules", self.rules.len())
    }
}

impl Rule {
    fn new(place_of_rule: usize, config: RuleConfig, context: &BuildContext) -> Result<Rule, ConfigError> {
        let expr = |(index, one): (usize, &MatchConfig)| {
            let invalid = |error| format!("failed to validate the 'vars' expression: {error}");
            let expr = Expr::new(&one.vars).map_err(|error| ConfigError::field("vars", invalid(error)));
            expr.in_index(index).in_key("match")
        };
        let when = config.when.map(|list| collect(list.iter().enumerate().map(expr))).transpose()?;
        let (mut named, mut members) =
            (Vec::<(String, _)>::new(), Vec::<(Option<Arc<ClusterCell>>, u32)>::new());
        for (index, Weighted { upstream_id, upstream, weight }) in
            config.weighted_upstreams.into_iter().enumerate()
        {
            let cell = match (upstream_id, upstream) {
                (Some(id), _) => {
                    let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
                    let cell = context.clusters.cell(&format!("upstreams/{id}"));
                    named.push((id, cell.clone()));
                    Some(cell)
                }
                (None, Some(_)) => Some(context.brought_cluster(&place(place_of_rule, index))),
                (None, None) => None,
            };
            // Of what is there twice the last weight counts.
            let same = |(other, _): &&mut (Option<Arc<ClusterCell>>, u32)| match (other, &cell) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
            match members.iter_mut().find(same) {
                Some(member) => member.1 = weight,
                None => members.push((cell, weight)),
            }
        }
        Ok(Rule { when, named, members: Turns::new(members) })
    }
}
