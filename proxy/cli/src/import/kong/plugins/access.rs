//! Who is let in.

use super::{Made, Taken};
use crate::import::document::{field, fields, number_of, text_of, texts_of, truth_of};
use crate::import::kong::Import;
use crate::import::pieces::{self, escape, mock_of};
use crate::import::written::{
    BASIC_AUTH, CONSUMER_RESTRICTION, CORS, FAULT_INJECTION, IP_RESTRICTION, JWT_AUTH, KEY_AUTH, MOCKING,
};
use serde_json::{Map, Value, json};
use sixfold_core::document::{Entry, Node};

/// What all of Kong's plugins that authenticate have.
fn authentication(
    import: &Import,
    taken: &mut Taken<'_>,
    entry: &Entry,
    plugin: &mut Map<String, Value>,
) -> bool {
    let config = &taken.plugin.config;
    match entry.key.as_str() {
        "hide_credentials" => {
            plugin.insert("hide_credentials".to_owned(), truth_of(config, "hide_credentials", false).into());
            taken.part.exact("hide_credentials");
        }
        "realm" => {
            plugin.extend(text_of(config, "realm").map(|realm| ("realm".to_owned(), realm.into())));
            taken.part.exact("realm");
        }
        "run_on_preflight" => {
            if !truth_of(config, "run_on_preflight", true) {
                let filter = json!({"filter": [["request_method", "~=", "OPTIONS"]]});
                plugin.insert("_meta".to_owned(), filter);
            }
            taken.part.exact("run_on_preflight");
        }
        "anonymous" if text_of(config, "anonymous").is_some_and(|name| name.is_empty()) => {
            taken.part.exact("anonymous");
        }
        "anonymous" => {
            let named = import.entities.consumer_of(&entry.value);
            match named.and_then(|at| import.consumers.get(at)) {
                Some(name) => {
                    plugin.insert("anonymous_consumer".to_owned(), name.as_str().into());
                    taken.part.exact("anonymous");
                }
                None => {
                    taken.part.manual("anonymous", entry.key_place, "there is no such consumer in the file")
                }
            }
        }
        _ => return false,
    }
    true
}

/// The first of several names that a credential is looked for under.
fn first(taken: &mut Taken<'_>, entry: &Entry, default: &str) -> String {
    let names = texts_of(&taken.plugin.config, &entry.key);
    match names.len() {
        1 => taken.part.exact(&entry.key),
        0 => {
            let note = format!("is looked for under {default} too");
            taken.part.approximate(&entry.key, entry.key_place, note);
        }
        _ => {
            let note = format!(
                "is looked for under the first name alone, not under {}",
                names.get(1..).unwrap_or_default().join(", ")
            );
            taken.part.manual(&entry.key, entry.key_place, note);
        }
    }
    names.into_iter().next().unwrap_or_else(|| default.to_owned())
}

pub(super) fn key_auth(import: &Import, taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let mut plugin = Map::new();
    for entry in fields(config) {
        match entry.key.as_str() {
            "key_names" => {
                let name = first(taken, entry, "apikey");
                plugin.insert("header".to_owned(), name.as_str().into());
                plugin.insert("query".to_owned(), name.into());
            }
            key @ ("key_in_header" | "key_in_query") => match truth_of(config, key, true) {
                true => taken.part.exact(key),
                false => taken.part.approximate(key, entry.key_place, "is looked for there too"),
            },
            "key_in_body" => match truth_of(config, "key_in_body", false) {
                false => taken.part.exact("key_in_body"),
                true => taken.part.unsupported("key_in_body", entry.key_place, "is not looked for in bodies"),
            },
            key => {
                if !authentication(import, taken, entry, &mut plugin) {
                    taken.part.unknown(key, entry.key_place);
                }
            }
        }
    }
    made.plugins.insert(KEY_AUTH.to_owned(), Value::Object(plugin));
}

pub(super) fn basic_auth(import: &Import, taken: &mut Taken<'_>, made: &mut Made) {
    let mut plugin = Map::new();
    for entry in fields(&taken.plugin.config) {
        if !authentication(import, taken, entry, &mut plugin) {
            taken.part.unknown(&entry.key, entry.key_place);
        }
    }
    made.plugins.insert(BASIC_AUTH.to_owned(), Value::Object(plugin));
}

pub(super) fn jwt(import: &Import, taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let claim = text_of(config, "key_claim_name").unwrap_or_else(|| "iss".to_owned());
    let mut plugin = Map::from_iter([("key_claim_name".to_owned(), Value::from(claim))]);
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("key_claim_name" | "secret_is_base64") => taken.part.exact(key),
            key @ ("header_names" | "uri_param_names" | "cookie_names") => {
                let (name, default) = match key {
                    "header_names" => ("header", "authorization"),
                    "uri_param_names" => ("query", "jwt"),
                    _ => ("cookie", "jwt"),
                };
                let value = first(taken, entry, default);
                plugin.insert(name.to_owned(), value.into());
            }
            "claims_to_verify" => {
                plugin.insert("claims_to_verify".to_owned(), json!(texts_of(config, "claims_to_verify")));
                taken.part.exact("claims_to_verify");
            }
            "maximum_expiration" if number_of(config, "maximum_expiration") == Some(0.0) => {
                taken.part.exact("maximum_expiration");
            }
            key => {
                if !authentication(import, taken, entry, &mut plugin) {
                    taken.part.unknown(key, entry.key_place);
                }
            }
        }
    }
    if texts_of(config, "claims_to_verify").is_empty() {
        plugin.remove("claims_to_verify");
        let note = "exp and nbf are looked at where they are there";
        taken.part.approximate("claims_to_verify", taken.plugin.node.place, note);
    }
    made.plugins.insert(JWT_AUTH.to_owned(), Value::Object(plugin));
}

/// `acl`: groups as the consumers that are in them.
pub(super) fn acl(import: &Import, taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let of = |names: [&str; 2]| -> Option<Vec<String>> {
        let groups: Vec<String> = names.iter().flat_map(|name| texts_of(config, name)).collect();
        let is_given = names.iter().any(|name| field(config, name).is_some());
        let consumers = import.entities.members(&groups);
        let called = consumers.iter().filter_map(|at| import.consumers.get(*at).cloned());
        is_given.then(|| called.collect())
    };
    let (allow, deny) = (of(["allow", "whitelist"]), of(["deny", "blacklist"]));
    for entry in fields(config) {
        match entry.key.as_str() {
            "allow" | "deny" | "whitelist" | "blacklist" => {
                let note = "the consumers that are in the groups today: name others as they come";
                taken.part.approximate(&entry.key, entry.key_place, note);
            }
            "hide_groups_header" => taken.part.exact("hide_groups_header"),
            key @ ("always_use_authenticated_groups" | "include_consumer_groups")
                if !truth_of(config, key, false) =>
            {
                taken.part.exact(key);
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    if !truth_of(config, "hide_groups_header", false) {
        taken.part.approximate("X-Consumer-Groups", taken.plugin.node.place, "is not sent to upstreams");
    }
    let denied = deny.unwrap_or_default();
    let made_of = match allow {
        Some(allow) => {
            let allow: Vec<String> = allow.into_iter().filter(|name| !denied.contains(name)).collect();
            if allow.is_empty() {
                let nobody =
                    mock_of(403, "{\"message\":\"You cannot consume this service\"}", "application/json");
                made.plugins.insert(MOCKING.to_owned(), nobody);
                return;
            }
            json!({"whitelist": allow, "rejected_msg": "You cannot consume this service"})
        }
        None if denied.is_empty() => return,
        None => json!({"blacklist": denied, "rejected_msg": "You cannot consume this service"}),
    };
    made.plugins.insert(CONSUMER_RESTRICTION.to_owned(), made_of);
}

pub(super) fn ip_restriction(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let of =
        |names: [&str; 2]| -> Vec<String> { names.iter().flat_map(|name| texts_of(config, name)).collect() };
    let (allow, deny) = (of(["allow", "whitelist"]), of(["deny", "blacklist"]));
    let mut plugin = Map::new();
    for entry in fields(config) {
        match entry.key.as_str() {
            key @ ("allow" | "whitelist" | "deny" | "blacklist") => taken.part.exact(key),
            "status" => match number_of(config, "status") {
                Some(status) if status == 403.0 || status == 404.0 => {
                    plugin.insert("response_code".to_owned(), crate::import::document::seconds(status));
                    taken.part.exact("status");
                }
                _ => taken.part.approximate("status", entry.key_place, "is 403"),
            },
            "message" => {
                plugin.extend(text_of(config, "message").map(|text| ("message".to_owned(), text.into())));
                taken.part.exact("message");
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    if !allow.is_empty() && !deny.is_empty() {
        // The plugin has one list; whom the other one refuses is refused before.
        let refused = json!({"http_status": 403, "vars": [[["remote_addr", "ipmatch", deny]]]});
        made.plugins.insert(FAULT_INJECTION.to_owned(), json!({"abort": refused}));
    }
    match (allow.is_empty(), deny.is_empty()) {
        (true, true) => return,
        (true, false) => plugin.insert("blacklist".to_owned(), json!(deny)),
        (false, _) => plugin.insert("whitelist".to_owned(), json!(allow)),
    };
    made.plugins.insert(IP_RESTRICTION.to_owned(), Value::Object(plugin));
}

pub(super) fn cors(taken: &mut Taken<'_>, made: &mut Made) {
    let config = &taken.plugin.config;
    let credentials = truth_of(config, "credentials", false);
    let mut plugin = Map::new();
    let methods = match texts_of(config, "methods") {
        methods if methods.is_empty() => "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS,TRACE,CONNECT".to_owned(),
        methods => methods.join(","),
    };
    plugin.insert("allow_methods".to_owned(), methods.into());
    // Kong repeats what a preflight asks for, and names no age of its own.
    plugin.insert("allow_headers".to_owned(), "**".into());
    plugin.insert("max_age".to_owned(), (-1).into());
    plugin.insert("allow_credential".to_owned(), credentials.into());
    for entry in fields(config) {
        match entry.key.as_str() {
            "headers" if !texts_of(config, "headers").is_empty() => {
                plugin.insert("allow_headers".to_owned(), names_of(config, "headers", credentials).into());
                taken.part.exact("headers");
            }
            "exposed_headers" => {
                let names = names_of(config, "exposed_headers", credentials);
                if !names.is_empty() {
                    plugin.insert("expose_headers".to_owned(), names.into());
                }
                taken.part.exact("exposed_headers");
            }
            "max_age" => {
                plugin.insert("max_age".to_owned(), entry.value.to_json());
                taken.part.exact("max_age");
            }
            "preflight_continue" if truth_of(config, "preflight_continue", false) => {
                let note = "preflights are answered here";
                taken.part.unsupported("preflight_continue", entry.key_place, note);
            }
            "private_network" if truth_of(config, "private_network", false) => {
                taken.part.unsupported("private_network", entry.key_place, "the header is not sent");
            }
            key @ ("origins" | "methods" | "credentials" | "headers" | "preflight_continue"
            | "private_network") => {
                taken.part.exact(key);
            }
            key => taken.part.unknown(key, entry.key_place),
        }
    }
    origins(config, credentials, &mut plugin);
    made.plugins.insert(CORS.to_owned(), Value::Object(plugin));
}

/// Names of headers; with credentials all of them are `**`.
fn names_of(config: &Node, name: &str, credentials: bool) -> String {
    let names = texts_of(config, name);
    if credentials && names.iter().any(|name| name == "*") { "**".to_owned() } else { names.join(",") }
}

/// Origins: all, whole ones, and expressions.
fn origins(config: &Node, credentials: bool, plugin: &mut Map<String, Value>) {
    let mut origins = texts_of(config, "origins");
    if origins.is_empty() {
        origins.push("*".to_owned());
    }
    let is_plain =
        |origin: &str| origin.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:/-".contains(&byte));
    let is_whole = |origin: &String| origin == "*" || origin.contains("://") && is_plain(origin);
    let (whole, others): (Vec<String>, Vec<String>) = origins.into_iter().partition(is_whole);
    let expressions: Vec<String> = others
        .iter()
        .map(|origin| match is_plain(origin) {
            true => format!("^https?://{}$", escape(origin)),
            false => format!("^(?:{})$", origin.trim_matches(['^', '$'])),
        })
        .collect();
    pieces::origins(&whole, &expressions, credentials, plugin);
}
