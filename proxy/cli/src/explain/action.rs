//! What a route does with the request: where it goes, how it is changed on the way, for how long, and to which endpoints.

use super::Story;
use super::source::Known;
use super::{filters, verdict};
use crate::Failure;
use serde_json::{Value, json};
use sixfold_core::cluster::{Address, Cluster};
use sixfold_core::draw::Drawn;
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::plugin::Chain;
use sixfold_core::redirect;
use sixfold_core::rewrite;
use sixfold_core::route::{Action, ClusterChoice, Forward, PassHost, RetryPolicy, Route, WeightedCluster};
use sixfold_core::router::{RouteTable, TableOptions};
use sixfold_core::stream::Stream;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn add(
    story: &mut Story,
    known: &Known,
    hcm: &HttpConnectionManager,
    table: &RouteTable,
    route: &Route,
    stream: &mut Stream,
) -> Result<(), Failure> {
    let action = match &route.action {
        Action::Redirect(redirect) => {
            let location = redirect::location(redirect, route, stream);
            json!({"kind": "redirect", "status": redirect.status, "location": text(&location)})
        }
        Action::Direct(answer) => {
            let formatted = answer.body_format.is_some();
            let body = if formatted { Value::Null } else { text(&answer.body).into() };
            let location = redirect::own_location(answer.status, route, stream);
            json!({
                "kind": "answer", "status": answer.status, "body": body, "formatted": formatted,
                "location": location.map(|location| text(&location)),
            })
        }
        Action::NonForwarding => json!({"kind": "answer", "status": 503, "flag": "NC"}),
        Action::Forward(forward) => return add_forward(story, known, hcm, table, (route, forward), stream),
    };
    story.insert("action".into(), action);
    Ok(())
}

/// The member of weighted clusters that the request goes to, and whether another one may.
pub(super) fn drawn(route: &Route, stream: &mut Stream) -> Option<Value> {
    let choice = route.leads_to()?;
    let ClusterChoice::Weighted(weighted) = choice else { return None };
    let member = stream.upstream.drawn.member(choice)?;
    let index = weighted.clusters.iter().position(|other| std::ptr::eq(other, member));
    // The number of a request is 0 here, so that this leads to the next member, if it leads anywhere.
    let random = std::mem::replace(&mut stream.random, member.weight);
    let by_number = Drawn::of(stream) != stream.upstream.drawn;
    stream.random = random;
    Some(json!({"index": index, "to": self::choice(&member.cluster), "at_random": by_number}))
}

fn add_forward(
    story: &mut Story,
    known: &Known,
    hcm: &HttpConnectionManager,
    table: &RouteTable,
    (route, forward): (&Route, &Forward),
    stream: &mut Stream,
) -> Result<(), Failure> {
    let is_own = forward.pass_host == PassHost::Node;
    let clusters = clusters(&forward.cluster, stream, known, is_own);
    let going = Going { known, hcm, table: table.options_of_requests(), route, forward };
    let (path, host) = going.head(None, stream);
    let retry = going.retry(&forward.cluster, stream);
    let mut to = choice(&forward.cluster);
    if let ClusterChoice::Weighted(weighted) = &forward.cluster {
        let told = to["weighted"].as_array_mut().into_iter().flatten();
        for (told, member) in told.zip(&weighted.clusters) {
            let member_host = going.head(Some(member), stream).1;
            let member_retry = going.retry(&member.cluster, stream);
            if member_host != host {
                told["upstream_host"] = member_host.into();
            }
            if member_retry != retry {
                told["retry"] = member_retry;
            }
            if let Some(chain) = &member.chain {
                told["filters"] = filters::judged(known, hcm, chain, stream)?;
            }
        }
    }
    let timeouts = &forward.timeouts;
    let action = json!({
        "kind": "forward",
        "to": to,
        "upstream_path": path,
        "upstream_host": passed_host(&forward.pass_host, &clusters, host),
        "timeouts": {
            "request": millis(timeouts.request),
            "idle": millis(timeouts.idle),
            "max_stream": millis(timeouts.max_stream),
            "connect": millis(timeouts.connect),
            "send": millis(timeouts.send),
            "read": millis(timeouts.read),
        },
        "retry": retry,
        "mirrors": forward.mirrors.as_ref().map_or(0, |mirrors| mirrors.len()),
        "hash_policies": forward.hash.len(),
    });
    story.insert("action".into(), action);
    story.insert("clusters".into(), clusters);
    Ok(())
}

/// Adds the clusters that plugins may choose in place of the route's, with the Host that their endpoints see.
pub(super) fn add_chosen(story: &mut Story, known: &Known, chain: &Chain, stream: &Stream) {
    let chosen = verdict::led_to(chain, stream);
    if chosen.is_empty() {
        return;
    }
    let Value::Array(clusters) = story.entry("clusters").or_insert_with(|| json!([])) else { return };
    for cell in chosen {
        if clusters.iter().any(|told| told["name"] == *cell.name) {
            continue;
        }
        let name = cell.name.to_string();
        let forward = Forward::to_chosen(cell);
        let mut told = json!([cluster(&name, known, forward.pass_host == PassHost::Node)]);
        told[0]["upstream_host"] = passed_host(&forward.pass_host, &told, text(&stream.request.authority));
        clusters.push(told[0].take());
    }
}

/// A request that is forwarded.
struct Going<'a> {
    known: &'a Known,
    hcm: &'a HttpConnectionManager,
    table: Option<Arc<TableOptions>>,
    route: &'a Route,
    forward: &'a Forward,
}

impl Going<'_> {
    /// Path and host as the upstream sees them that a member of weighted clusters leads to.
    fn head(&self, member: Option<&WeightedCluster>, stream: &mut Stream) -> (String, String) {
        let before = stream.request.clone();
        let (table, hcm) = (self.table.as_deref(), self.hcm);
        rewrite::finalize_request(table, self.route, self.forward, member, hcm, false, stream);
        let sent = std::mem::replace(&mut stream.request, before);
        (text(sent.target.full()), text(&sent.authority))
    }

    /// How often it is tried on its way to a cluster.
    fn retry(&self, choice: &ClusterChoice, stream: &Stream) -> Value {
        let cluster = name_of(choice, stream).and_then(|name| self.known.clusters.find(&name));
        let config = cluster.as_ref().map(|cluster| &cluster.config);
        let policy = self.forward.retry_policy(config, stream.virtual_host.as_deref());
        policy.as_deref().map_or(Value::Null, |policy| retry_of(policy))
    }
}

fn retry_of(policy: &RetryPolicy) -> Value {
    let on: Vec<String> =
        policy.on.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-")).collect();
    json!({
        "on": on,
        "attempts": policy.num_retries,
        "per_try_timeout": millis(policy.per_try_timeout),
        "status_codes": policy.status_codes,
    })
}

/// Host as upstreams see it by `pass_host`; null where each node has its own.
fn passed_host(pass: &PassHost, clusters: &Value, host: String) -> Value {
    match pass {
        PassHost::Pass => host.into(),
        PassHost::Rewrite(text) => (&**text).into(),
        PassHost::Node => {
            let nodes = clusters.as_array().into_iter().flatten();
            let mut hosts = nodes.filter_map(|cluster| cluster["endpoints"].as_array()).flatten();
            let first = hosts.next().map(|node| node["host"].clone()).unwrap_or_default();
            if hosts.all(|node| node["host"] == first) { first } else { Value::Null }
        }
    }
}

/// How the cluster is chosen.
pub(super) fn choice(choice: &ClusterChoice) -> Value {
    match choice {
        ClusterChoice::Named(cell) => json!({"cluster": &*cell.name}),
        ClusterChoice::Header(target, _) => json!({"cluster_header": target.to_string()}),
        ClusterChoice::Weighted(weighted) => {
            let members = weighted.clusters.iter().map(|member| {
                let share =
                    if weighted.total == 0 { 0.0 } else { member.weight as f64 / weighted.total as f64 };
                let percent = (share * 10_000.0).round() / 100.0;
                json!({"to": self::choice(&member.cluster), "weight": member.weight, "percent": percent})
            });
            json!({"weighted": members.collect::<Vec<_>>()})
        }
    }
}

/// The clusters that the request may go to, with their endpoints.
fn clusters(choice: &ClusterChoice, stream: &Stream, known: &Known, with_hosts: bool) -> Value {
    let names: Vec<String> = match choice {
        ClusterChoice::Weighted(weighted) => {
            let members = weighted.clusters.iter();
            let mut names: Vec<String> =
                members.filter_map(|member| name_of(&member.cluster, stream)).collect();
            let mut seen = BTreeSet::new();
            names.retain(|name| seen.insert(name.clone()));
            names
        }
        other => name_of(other, stream).into_iter().collect(),
    };
    names.iter().map(|name| cluster(name, known, with_hosts)).collect()
}

fn name_of(choice: &ClusterChoice, stream: &Stream) -> Option<String> {
    match choice {
        ClusterChoice::Named(cell) => Some(cell.name.to_string()),
        ClusterChoice::Header(target, _) => target.values(&stream.request).next().map(text),
        ClusterChoice::Weighted(_) => None,
    }
}

fn cluster(name: &str, known: &Known, with_hosts: bool) -> Value {
    match known.clusters.find(name) {
        None => json!({"name": name, "known": false}),
        Some(cluster) => json!({"name": name, "known": true, "endpoints": endpoints(&cluster, with_hosts)}),
    }
}

/// Endpoints as configured; names stand as they are, for nobody is asked about them.
fn endpoints(cluster: &Cluster, with_hosts: bool) -> Value {
    let host = |mut told: Value, address: &Address, hostname: &str| {
        if with_hosts {
            told["host"] = text(&rewrite::node_host(address, hostname, cluster.config.scheme)).into();
        }
        told
    };
    let hosts = cluster.hosts.load();
    let resolved = hosts.iter().map(|member| {
        let told = json!({
            "address": member.host.address.to_string(),
            "weight": member.weight,
            "priority": member.priority,
            "zone": &*member.locality().zone,
        });
        host(told, &member.host.address, &member.host.hostname)
    });
    let resolved: Vec<Value> = resolved.collect();
    if !resolved.is_empty() {
        return resolved.into();
    }
    let named = cluster.endpoints.iter().map(|endpoint| {
        let told = json!({
            "address": endpoint.address.to_string(), "weight": endpoint.weight, "priority": endpoint.priority,
            "zone": endpoint.locality.as_ref().map_or("", |locality| &*locality.zone),
        });
        host(told, &endpoint.address, &endpoint.hostname)
    });
    named.collect()
}

fn millis(time: Option<Duration>) -> Value {
    time.map_or(Value::Null, |time| (time.as_millis() as u64).into())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
