//! Which requests a route takes.

use super::{Import, word_of};
use crate::import::document::{field, fields, items_of, number_of, text_of, truth_of};
use crate::import::ordered::Path;
use crate::import::pieces::escape;
use crate::import::report::Part;
use serde_json::{Value, json};
use sixfold_core::document::Node;

/// Which requests a route takes, as far as that can be told here.
pub(super) struct Matched {
    pub(super) paths: Vec<Path>,
    pub(super) vars: Vec<Value>,
    /// Whether there is no other condition.
    pub(super) is_whole: bool,
}

impl Import {
    pub(super) fn matched(&self, node: &Node, part: &mut Part) -> Matched {
        let mut paths = vec![Path::Prefix("/".to_owned())];
        let (mut vars, mut is_whole) = (Vec::new(), true);
        let any_case = !truth_of(node, "case_sensitive", true);
        for entry in fields(node) {
            let place = entry.key_place;
            let given = || text_of(node, &entry.key).unwrap_or_default();
            match entry.key.as_str() {
                "prefix" => paths = vec![Path::Prefix(given())],
                "path" => paths = vec![Path::Exact(given())],
                "path_separated_prefix" => {
                    paths = vec![Path::Exact(given()), Path::Prefix(format!("{}/", given()))];
                }
                "safe_regex" => {
                    let regex = text_of(&entry.value, "regex").unwrap_or_default();
                    // A whole match; of a choice the signs are of its first and last branch.
                    let choice = regex.contains('|');
                    paths = vec![Path::Regex(if choice {
                        format!("^(?:{regex})$")
                    } else {
                        format!("^{regex}$")
                    })];
                }
                "case_sensitive" => {}
                "headers" => {
                    for header in items_of(node, "headers") {
                        match header_condition(header, part) {
                            Some(conditions) => vars.extend(conditions),
                            None => is_whole = false,
                        }
                    }
                }
                "query_parameters" => {
                    for parameter in items_of(node, "query_parameters") {
                        match query_condition(parameter, part) {
                            Some(condition) => vars.push(condition),
                            None => is_whole = false,
                        }
                    }
                }
                "grpc" => vars.push(json!(["http_content_type", "~~", "^application/grpc(?:$|\\+)"])),
                "runtime_fraction" => {
                    part.manual("match.runtime_fraction", place, "takes all requests: write traffic-split");
                    continue;
                }
                "tls_context" | "dynamic_metadata" | "filter_state" | "cookies" => {
                    let name = format!("match.{}", entry.key);
                    part.manual(&name, place, "the route is left out: write `vars`");
                    is_whole = false;
                    continue;
                }
                "connect_matcher" => {
                    part.unsupported(
                        "match.connect_matcher",
                        place,
                        "the route is left out: there is no CONNECT",
                    );
                    is_whole = false;
                    continue;
                }
                "path_match_policy" => {
                    part.manual(
                        "match.path_match_policy",
                        place,
                        "the route is left out: write `uri` with a pattern",
                    );
                    is_whole = false;
                    continue;
                }
                key => {
                    part.unknown(&format!("match.{key}"), place);
                    is_whole = false;
                    continue;
                }
            }
            part.exact(&format!("match.{}", entry.key));
        }
        if any_case {
            paths = paths.into_iter().map(|path| Path::AnyCase(Box::new(path))).collect();
        }
        Matched { paths, vars, is_whole }
    }
}

/// Operator and value of a `StringMatcher`; `None` if there is none.
fn string(node: &Node) -> Option<(&'static str, String)> {
    let any_case = truth_of(node, "ignore_case", false);
    let regex = |text: String| Some((if any_case { "~*" } else { "~~" }, text));
    for (kind, before, after) in
        [("exact", "^", "$"), ("prefix", "^", ""), ("suffix", "", "$"), ("contains", "", "")]
    {
        if let Some(text) = text_of(node, kind) {
            return match kind == "exact" && !any_case {
                true => Some(("==", text)),
                false => regex(format!("{before}{}{after}", escape(&text))),
            };
        }
    }
    let given = text_of(field(node, "safe_regex")?, "regex")?;
    regex(format!("^(?:{given})$"))
}

/// Whether a variable has a value. In YAML there is no null for APISIX that a value could be held against.
fn presence(variable: &str, wanted: bool) -> Value {
    if wanted { json!([variable, "~~", ".*"]) } else { json!([variable, "!", "~~", ".*"]) }
}

/// The conditions of a `HeaderMatcher`.
fn header_condition(node: &Node, part: &mut Part) -> Option<Vec<Value>> {
    let name = text_of(node, "name").unwrap_or_default();
    let variable = match name.to_ascii_lowercase().as_str() {
        ":method" => "request_method".to_owned(),
        ":authority" => "http_host".to_owned(),
        ":path" => "request_uri".to_owned(),
        ":scheme" => "scheme".to_owned(),
        name => format!("http_{}", name.replace('-', "_")),
    };
    let inverts = truth_of(node, "invert_match", false);
    if let Some(present) = field(node, "present_match").map(|_| truth_of(node, "present_match", true)) {
        return Some(vec![presence(&variable, present != inverts)]);
    }
    let old = |kind: &str, before: &str, after: &str| {
        text_of(node, &format!("{kind}_match"))
            .map(|text| ("~~", format!("{before}{}{after}", escape(&text))))
    };
    let matcher = text_of(node, "exact_match").map(|text| ("==", text));
    let matcher = matcher.or_else(|| field(node, "string_match").and_then(string));
    let matcher = matcher
        .or_else(|| old("prefix", "^", ""))
        .or_else(|| old("suffix", "", "$"))
        .or_else(|| old("contains", "", ""))
        .or_else(|| {
            let regex = text_of(field(node, "safe_regex_match")?, "regex")?;
            Some(("~~", format!("^(?:{regex})$")))
        });
    let condition = |operator: &str, text: &str| match (inverts, operator) {
        // A header that is not there is not another one either.
        (true, "==") => vec![presence(&variable, true), json!([variable, "~=", text])],
        (true, operator) => vec![presence(&variable, true), json!([variable, "!", operator, text])],
        (false, operator) => vec![json!([variable, operator, text])],
    };
    if let Some((operator, text)) = matcher {
        return Some(condition(operator, &text));
    }
    let range = field(node, "range_match").filter(|_| !inverts);
    if let Some(range) = range {
        let (start, end) = (number_of(range, "start").unwrap_or(0.0), number_of(range, "end").unwrap_or(0.0));
        return Some(vec![json!([variable, ">=", start]), json!([variable, "<", end])]);
    }
    let is_bare = fields(node).all(|entry| matches!(entry.key.as_str(), "name" | "invert_match"));
    if is_bare {
        // Without a matcher it is about whether the header is there.
        return Some(vec![presence(&variable, !inverts)]);
    }
    part.manual("match.headers", node.place, format!("{name}: the route is left out: write `vars`"));
    None
}

/// The condition of a `QueryParameterMatcher`.
fn query_condition(node: &Node, part: &mut Part) -> Option<Value> {
    let name = text_of(node, "name").unwrap_or_default();
    let variable = format!("arg_{name}");
    if let Some((operator, text)) = field(node, "string_match").and_then(string) {
        return Some(json!([variable, operator, text]));
    }
    let is_present = field(node, "present_match").is_none() || truth_of(node, "present_match", true);
    if field(node, "string_match").is_none() {
        return Some(presence(&variable, is_present));
    }
    part.manual("match.query_parameters", node.place, format!("{name}: the route is left out: write `vars`"));
    None
}

/// The number of an enum's answer, of a name or a number.
pub(super) fn redirect_code(node: &Node) -> u16 {
    match word_of(node, "response_code").as_str() {
        "FOUND" | "1" => 302,
        "SEE_OTHER" | "2" => 303,
        "TEMPORARY_REDIRECT" | "3" => 307,
        "PERMANENT_REDIRECT" | "4" => 308,
        _ => 301,
    }
}
