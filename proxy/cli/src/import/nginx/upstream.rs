//! `upstream` blocks.

use super::{Import, Match, parse::Directive};
use serde_json::{Value, json};

impl Import {
    pub(super) fn upstream(&mut self, directive: &Directive) {
        let name = directive.argument(0).to_owned();
        let (mut nodes, mut balancer, mut keepalive) = (Vec::new(), json!({"type": "roundrobin"}), None);
        self.exact(directive, "");
        for one in &directive.block {
            match one.name.as_str() {
                "server" => nodes.extend(self.server_of(one)),
                "least_conn" => {
                    balancer = json!({"type": "least_conn"});
                    self.exact(one, "");
                }
                "ip_hash" => {
                    balancer = json!({"type": "chash", "hash_on": "vars", "key": "remote_addr"});
                    self.add(
                        Match::Approximate,
                        one,
                        "by the whole address, in a ring: other clients meet other servers",
                    );
                }
                "hash" if one.argument(0).starts_with('$') => {
                    let key = one.argument(0).trim_start_matches('$').to_owned();
                    balancer = json!({"type": "chash", "hash_on": "vars", "key": key});
                    self.add(
                        Match::Approximate,
                        one,
                        "in a ring of its own: other requests meet other servers",
                    );
                }
                "random" => self.add(Match::Approximate, one, "in turn"),
                "keepalive" => {
                    keepalive = one.argument(0).parse::<u32>().ok();
                    self.exact(one, "");
                }
                "zone" | "keepalive_timeout" | "keepalive_requests" => {
                    self.exact(one, "does not change answers")
                }
                _ => self.unknown(one),
            }
        }
        let Value::Object(mut upstream) = balancer else { return };
        upstream.insert("id".to_owned(), name.clone().into());
        upstream.insert("nodes".to_owned(), nodes.into());
        // nginx sends the name of the block as Host, unless it is told another one.
        upstream.insert("pass_host".to_owned(), "rewrite".into());
        upstream.insert("upstream_host".to_owned(), name.clone().into());
        if let Some(size) = keepalive {
            upstream.insert("keepalive_pool".to_owned(), json!({"size": size.max(1)}));
        }
        self.upstreams.insert(name, Value::Object(upstream));
    }

    /// A node of `server ADDRESS [weight=N] [backup] [down] ...`.
    fn server_of(&mut self, directive: &Directive) -> Option<Value> {
        let Some((host, port)) = address(directive.argument(0), 80) else {
            self.add(Match::Unsupported, directive, "nodes are addresses or names with a port");
            return None;
        };
        let (mut weight, mut priority, mut notes) = (1, 0, Vec::new());
        for argument in directive.arguments.iter().skip(1) {
            match argument.split_once('=') {
                Some(("weight", value)) => weight = value.parse().unwrap_or(1),
                None if argument == "backup" => priority = -1,
                None if argument == "down" => weight = 0,
                Some(("max_fails" | "fail_timeout", _)) => {
                    notes.push("failures are counted by `checks.passive`")
                }
                _ => notes.push("an argument has no counterpart"),
            }
        }
        let note = notes.join(", ");
        self.add(if note.is_empty() { Match::Exact } else { Match::Approximate }, directive, note);
        Some(json!({"host": host, "port": port, "weight": weight, "priority": priority}))
    }
}

/// Host and port of `host`, `host:port` or `[v6]:port`.
pub(super) fn address(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, default),
    };
    let is_host = !host.is_empty() && !host.contains(['/', '$']) && !text.starts_with("unix:");
    is_host.then(|| (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}
