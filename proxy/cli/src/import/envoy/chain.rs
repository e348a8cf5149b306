//! Filter chains: which connections they are for, and what looks at those before anybody else.

use super::type_of;
use crate::import::document::{field, fields, items_of, text_of, texts_of, whole_of};
use crate::import::pieces::escape;
use crate::import::report::Part;
use serde_json::{Value, json};
use sixfold_core::document::Node;

/// Network filters that turn no connection away for who is at its other end.
const HARMLESS: &[&str] = &[
    "HttpConnectionManager",
    "TcpProxy",
    "ConnectionLimit",
    "LocalRateLimit",
    "MetadataExchange",
    "SniCluster",
];

/// The chains of a listener, those with the most conditions first, which is near to how Envoy chooses.
pub(super) fn chains(listener: &Node) -> Vec<&Node> {
    let mut found: Vec<&Node> = items_of(listener, "filter_chains").iter().collect();
    let conditions =
        |chain: &&Node| field(chain, "filter_chain_match").map_or(0, |matches| fields(matches).count());
    found.sort_by_key(|chain| std::cmp::Reverse(conditions(chain)));
    found.extend(field(listener, "default_filter_chain"));
    found
}

/// What tells the requests of a chain from those of the others; `None` if nothing does.
pub(super) fn conditions(chain: &Node, is_alone: bool, part: &mut Part) -> Option<Vec<Value>> {
    let mut vars = Vec::new();
    for entry in field(chain, "filter_chain_match").into_iter().flat_map(fields) {
        let ranges = || -> Option<Vec<String>> {
            items_of(field(chain, "filter_chain_match")?, &entry.key).iter().map(range).collect()
        };
        match entry.key.as_str() {
            "transport_protocol" | "application_protocols" | "destination_port" => {}
            // A name without a certificate has no connection.
            "server_names" if is_alone => {}
            "server_names" => {
                vars.push(names(&texts_of(field(chain, "filter_chain_match")?, "server_names")))
            }
            "source_prefix_ranges" | "direct_source_prefix_ranges" => {
                vars.push(json!(["remote_addr", "ipmatch", ranges()?]))
            }
            "prefix_ranges" => vars.push(json!(["server_addr", "ipmatch", ranges()?])),
            key => {
                let name = format!("filter_chain_match.{key}");
                part.manual(&name, entry.key_place, "the chain is left out: write `vars` of its routes");
                return None;
            }
        }
        part.exact(&format!("filter_chain_match.{}", entry.key));
    }
    Some(vars)
}

fn range(node: &Node) -> Option<String> {
    let prefix = text_of(node, "address_prefix")?;
    Some(whole_of(node, "prefix_len").map_or_else(|| prefix.clone(), |length| format!("{prefix}/{length}")))
}

/// One of these names, or below one that begins with `*.`.
fn names(names: &[String]) -> Value {
    let choices: Vec<String> = names
        .iter()
        .map(|name| match name.strip_prefix('*') {
            Some(end) => format!(".+{}", escape(end)),
            None => escape(name),
        })
        .collect();
    json!(["ssl_server_name", "~*", format!("^(?:{})$", choices.join("|"))])
}

/// Whether a network filter of a chain may turn connections away, for which there is nothing here.
pub(super) fn is_guarded(chain: &Node, part: &mut Part) -> bool {
    let mut found = false;
    for filter in items_of(chain, "filters") {
        let kind = field(filter, "typed_config").map(type_of).unwrap_or_default();
        if !HARMLESS.contains(&kind.as_str()) {
            let name = text_of(filter, "name").unwrap_or_default();
            part.manual(
                &format!("filter \"{name}\""),
                filter.place,
                "lets in nobody: write ip-restriction, or routes with `vars`",
            );
            found = true;
        }
    }
    found
}
