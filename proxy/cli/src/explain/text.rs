//! The answer for people.

use super::Story;
use serde_json::Value;
use std::fmt::Write;

/// Routes that were passed over and are told one by one without `--all`.
const FEW: usize = 20;

/// All of it; every route that was passed over only where `all` asks for that.
pub(super) fn of(story: &Story, all: bool) -> String {
    let mut out = String::new();
    connection(story, &mut out);
    if let Some(request) = story.get("request") {
        line(
            &mut out,
            "request",
            &format!(
                "{} {}://{}{} from {}{}",
                str(request, "method"),
                str(request, "scheme"),
                str(request, "authority"),
                str(request, "path"),
                str(request, "client"),
                if request["internal"] == true { " (internal)" } else { "" },
            ),
        );
    }
    if let Some(table) = story.get("route_table") {
        line(&mut out, "routes", &format!("\"{}\"", table.as_str().unwrap_or_default()));
    }
    match story.get("virtual_host") {
        Some(Value::Null) => line(&mut out, "virtual host", "none"),
        Some(host) if host["domain"].is_null() => {}
        Some(host) => {
            line(
                &mut out,
                "virtual host",
                &format!("\"{}\" by its domain {}", str(host, "name"), str(host, "domain")),
            );
        }
        None => {}
    }
    passed_over(story, all, &mut out);
    if let Some(route) = story.get("route") {
        let mut words = format!("\"{}\"", str(route, "name"));
        if let Some(title) = route["title"].as_str().filter(|title| !title.is_empty()) {
            let _ = write!(words, " ({title})");
        }
        line(&mut out, "route", &words);
        items(&route["conditions"])
            .for_each(|condition| below(&mut out, condition.as_str().unwrap_or_default()));
    }
    consumer(story, &mut out);
    filters(story, &mut out);
    action(story, &mut out);
    if let Some(outcome) = story.get("outcome").and_then(Value::as_str) {
        line(&mut out, "outcome", outcome);
    }
    out
}

fn line(out: &mut String, what: &str, text: &str) {
    let _ = writeln!(out, "{what:<13} {text}");
}

fn below(out: &mut String, text: &str) {
    let _ = writeln!(out, "{:<13}   {text}", "");
}

fn str<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn connection(story: &Story, out: &mut String) {
    let Some(listener) = story.get("listener") else { return };
    let addresses: Vec<&str> = items(&listener["addresses"]).filter_map(Value::as_str).collect();
    let mut words = format!("\"{}\" {}", str(listener, "name"), addresses.join(", "));
    if let Some(destination) = listener["destination"].as_str().filter(|d| !addresses.contains(d)) {
        let _ = write!(words, ", of a connection to {destination}");
    }
    line(out, "listener", &words);
    if let Some(detected) = story.get("detected") {
        line(out, "detected", &format!("{} (by the {})", str(detected, "found"), str(detected, "by")));
    }
    match story.get("filter_chain") {
        Some(Value::Null) => line(out, "filter chain", "none"),
        Some(chain) => {
            let name = match (str(chain, "name"), chain["index"].as_u64()) {
                ("", Some(index)) => format!("number {} of {}", index + 1, chain["of"]),
                ("", None) => "the default one".to_owned(),
                (name, _) => format!("\"{name}\""),
            };
            line(
                out,
                "filter chain",
                &format!("{name}{}", if chain["tls"] == true { ", TLS ends here" } else { "" }),
            );
        }
        None => {}
    }
}

fn passed_over(story: &Story, all: bool, out: &mut String) {
    let Some(Value::Array(passed)) = story.get("passed_over") else { return };
    if passed.is_empty() {
        return;
    }
    // Those for other paths are the many, and the least of interest.
    let shown = |route: &&Value| all || passed.len() <= FEW || str(route, "reason") != "path";
    line(out, "passed over", &format!("{} earlier routes", passed.len()));
    let told: Vec<&Value> = passed.iter().filter(shown).collect();
    for route in &told {
        let seen = match route["seen"].as_str() {
            Some(seen) => format!("the request has \"{seen}\""),
            None => "the request has none".to_owned(),
        };
        let seen = if matches!(str(route, "reason"), "runtime" | "tls" | "untried") {
            String::new()
        } else {
            format!("; {seen}")
        };
        below(
            out,
            &format!(
                "\"{}\" for its {}: {}{seen}",
                str(route, "route"),
                str(route, "reason"),
                str(route, "wanted")
            ),
        );
    }
    if told.len() < passed.len() {
        below(out, &format!("{} more for their paths (--all lists them)", passed.len() - told.len()));
    }
}

fn consumer(story: &Story, out: &mut String) {
    let Some(consumer) = story.get("consumer") else { return };
    let by = match str(consumer, "by") {
        "" => String::new(),
        by => format!(" by {by}"),
    };
    if let Some(answer) = consumer.get("refused") {
        let words =
            format!("none{by}, which answers {} {}", answer["status"], str(answer, "body").trim_end());
        return line(out, "consumer", &words);
    }
    let Some(name) = consumer["name"].as_str() else {
        return line(out, "consumer", &format!("none is known{by}"));
    };
    let group = consumer["group"].as_str().map(|group| format!(" of group \"{group}\"")).unwrap_or_default();
    line(out, "consumer", &format!("\"{name}\"{group}{by}"));
    let brought: Vec<&str> = items(&consumer["brings"]).filter_map(Value::as_str).collect();
    if !brought.is_empty() {
        below(out, &format!("brings {}", brought.join(", ")));
    }
    for (label, value) in consumer["labels"].as_object().into_iter().flatten() {
        below(out, &format!("label {label}: {}", value.as_str().unwrap_or_default()));
    }
}

fn filters(story: &Story, out: &mut String) {
    let Some(Value::Array(filters)) = story.get("filters") else { return };
    if !filters.is_empty() {
        let to = story.get("drawn").map_or(String::new(), |drawn| match drawn["at_random"] == true {
            true => format!(", should it go to {}", choice(&drawn["to"])),
            false => format!(", which goes to {}", choice(&drawn["to"])),
        });
        line(out, "filters", &format!("in the order of the request{to}"));
    }
    filters.iter().for_each(|shown| below(out, &filter(shown)));
    for filter in story.get("filters_off").into_iter().flat_map(items).filter_map(Value::as_str) {
        below(out, &format!("{filter} is disabled for the route"));
    }
}

fn filter(filter: &Value) -> String {
    let phases: Vec<&str> = items(&filter["phases"]).filter_map(Value::as_str).collect();
    let phases = if phases.is_empty() { "does nothing here".to_owned() } else { phases.join(", ") };
    let said = match str(&filter["verdict"], "kind") {
        "" => String::new(),
        _ => format!("; {}", verdict(&filter["verdict"])),
    };
    format!("{} as of {}: {phases}{said}", str(filter, "name"), str(filter, "settings"))
}

/// What a filter says of the request.
fn verdict(said: &Value) -> String {
    let changes: Vec<&str> = items(&said["changes"]).filter_map(Value::as_str).collect();
    let decides = decision(said);
    if changes.is_empty() { decides } else { format!("{decides}, and changes {}", changes.join(", ")) }
}

fn decision(said: &Value) -> String {
    match str(said, "kind") {
        "depends" | "chooses" => items(&said["may"]).filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
        "left_out" => "is left out by _meta.filter".to_owned(),
        "untried" => "is not tried".to_owned(),
        "looks_on" => "looks on".to_owned(),
        "later" => "acts on what comes later".to_owned(),
        "answers" => format!("answers {} ({})", said["status"], str(said, "details")),
        "asks" => match &said["service"] {
            service if service["uri"].is_string() => format!("asks {}", str(service, "uri")),
            service => format!("asks {} of cluster \"{}\"", str(service, "path"), str(service, "cluster")),
        },
        "chooses_again" => "has the route chosen again".to_owned(),
        "waits" => "has not decided in 5 s".to_owned(),
        _ => "lets the request pass".to_owned(),
    }
}

fn retries(retry: &Value) -> String {
    match retry.is_null() {
        true => "no retries".to_owned(),
        false => {
            let on: Vec<&str> = items(&retry["on"]).filter_map(Value::as_str).collect();
            format!("retries: {} on {}", retry["attempts"], on.join(", "))
        }
    }
}

/// What a member of weighted clusters has of its own.
fn member(told: &Value, out: &mut String) {
    let mut own: Vec<String> =
        told["upstream_host"].as_str().map(|host| format!("as {host}")).into_iter().collect();
    own.extend(told.get("retry").map(retries));
    own.extend(items(&told["filters"]).map(filter));
    own.extend(
        told["filters"].as_array().filter(|filters| filters.is_empty()).map(|_| "no filters".to_owned()),
    );
    own.iter().for_each(|own| below(out, &format!("of {}: {own}", choice(&told["to"]))));
}

fn action(story: &Story, out: &mut String) {
    let Some(action) = story.get("action") else { return };
    let location = action["location"].as_str().map(|to| format!(" to {to}")).unwrap_or_default();
    match str(action, "kind") {
        "redirect" => line(out, "action", &format!("redirect {}{location}", action["status"])),
        "answer" => line(
            out,
            "action",
            &format!(
                "answer {}{location} {}",
                action["status"],
                action["body"]
                    .as_str()
                    .map(|body| format!("{body:?}"))
                    .unwrap_or_else(|| str(action, "details").to_owned()),
            ),
        ),
        "tcp" => line(out, "action", &format!("pass bytes on to {}", choice(&action["to"]))),
        _ => {
            line(out, "action", &format!("forward to {}", choice(&action["to"])));
            let filters = story.get("filters").into_iter().flat_map(items);
            for filter in filters.filter(|filter| filter["verdict"]["kind"] == "chooses") {
                below(out, &format!("unless {} chooses, as it says above", str(filter, "name")));
            }
            let host = action["upstream_host"].as_str().unwrap_or("the node's own name, ");
            below(out, &format!("as {host}{}", str(action, "upstream_path")));
            for (name, time) in action["timeouts"].as_object().into_iter().flatten() {
                if let Some(ms) = time.as_u64() {
                    below(out, &format!("timeout {name}: {ms} ms"));
                }
            }
            if action["retry"].is_object() {
                below(out, &retries(&action["retry"]));
            }
            items(&action["to"]["weighted"]).for_each(|told| member(told, out));
        }
    }
    for cluster in story.get("clusters").into_iter().flat_map(items) {
        let missing = if cluster["known"] == false { " is not known" } else { "" };
        let host = cluster["upstream_host"].as_str().map(|host| format!(", as {host}")).unwrap_or_default();
        line(out, "cluster", &format!("\"{}\"{missing}{host}", str(cluster, "name")));
        for endpoint in items(&cluster["endpoints"]) {
            let zone = str(endpoint, "zone");
            let zone = if zone.is_empty() { String::new() } else { format!(", zone {zone}") };
            let host = endpoint["host"].as_str().map(|host| format!(", as {host}")).unwrap_or_default();
            below(
                out,
                &format!(
                    "{} weight {}, priority {}{zone}{host}",
                    str(endpoint, "address"),
                    endpoint["weight"],
                    endpoint["priority"]
                ),
            );
        }
    }
}

fn choice(to: &Value) -> String {
    if let Some(members) = to.get("weighted").and_then(Value::as_array) {
        let shown =
            members.iter().map(|member| format!("{} ({} %)", choice(&member["to"]), member["percent"]));
        return format!("one of {}", shown.collect::<Vec<_>>().join(", "));
    }
    match (to.get("cluster"), to.get("cluster_header")) {
        (Some(name), _) => format!("cluster \"{}\"", name.as_str().unwrap_or_default()),
        (None, Some(header)) => {
            format!("the cluster that header {} names", header.as_str().unwrap_or_default())
        }
        (None, None) => "nobody".to_owned(),
    }
}
