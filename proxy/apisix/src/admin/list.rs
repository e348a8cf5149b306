//! Resources as they are shown, alone and in lists (`apisix/admin/v3_adapter.lua`).

use fancy_regex::{Regex, RegexBuilder};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::message::{AdminReply, AdminRequest};
use super::resource::kept_json;
use crate::encryption::without_clear_keys;
use crate::resource::Kind;
use crate::source::Checker;
use crate::store::{Kept, Key};

/// How often a pattern may turn back before it counts as one that does not match.
const BACKTRACK_LIMIT: usize = 100_000;

/// The value of a resource.
pub(crate) fn value(kept: &Kept) -> Value {
    kept_json(kept)
}

/// The value of a resource with what plugins keep encrypted of it decrypted; private keys are encrypted, in whichever form others
/// have written them.
pub(super) fn opened(checker: &Checker, key: &Key, kept: &Kept) -> Value {
    let mut value = value(kept);
    checker.open_fields(key, &mut value);
    checker.catalog().seal_private_keys(key.kind, &mut value);
    value
}

/// As it is shown, without private keys; keys begin with `prefix`.
pub(super) fn shown(prefix: &str, checker: &Checker, key: &Key, kept: &Kept) -> Value {
    json!({
        "key": key.path(prefix),
        "value": without_keys(key.kind, opened(checker, key, kept)),
        "createdIndex": kept.created,
        "modifiedIndex": kept.modified,
    })
}

/// Leaves out what nobody is told: of an `ssl` that is a key in any form.
fn without_keys(kind: Kind, mut value: Value) -> Value {
    if let (Kind::Ssl, Value::Object(ssl)) = (kind, &mut value) {
        ssl.retain(|name, _| !matches!(&**name, "key" | "keys"));
    }
    written(kind, value)
}

/// As it was written, told to who has written it: private keys as they are kept, those that are not encrypted left out.
pub(super) fn written(kind: Kind, mut value: Value) -> Value {
    without_clear_keys(kind, &mut value);
    value
}

/// What a list is asked for by.
struct Wanted {
    name: Option<Pattern>,
    label: Option<String>,
    uri: Option<Pattern>,
    /// Values of fields; of a field that the kind is not looked through by there is nothing.
    fields: Vec<(String, String)>,
}

/// A regular expression; one that can't be compiled matches nothing.
struct Pattern(Option<Regex>);

impl Pattern {
    fn of(request: &AdminRequest, parameter: &str) -> Option<Pattern> {
        let text = request.parameter(parameter)?;
        Some(Pattern(RegexBuilder::new(text).backtrack_limit(BACKTRACK_LIMIT).build().ok()))
    }

    fn matches(&self, text: &Value) -> bool {
        let found = text.as_str().zip(self.0.as_ref()).and_then(|(text, regex)| regex.is_match(text).ok());
        found.unwrap_or(false)
    }
}

impl Wanted {
    fn of(kind: Kind, request: &AdminRequest) -> Wanted {
        let known: &[&str] = match kind {
            Kind::Route | Kind::StreamRoute => &["service_id", "upstream_id"],
            _ => &[],
        };
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
        };
        let filter = request.parameter("filter").unwrap_or_default();
        let pairs = filter.split('&').filter_map(|pair| pair.split_once('='));
        let mut fields: Vec<(String, String)> = Vec::new();
        for (name, value) in pairs.map(|(name, value)| (decode(name), decode(value))) {
            // Of several values the last one counts.
            fields.retain(|(other, _)| *other != name);
            if known.contains(&name.as_str()) {
                fields.push((name, value));
            }
        }
        Wanted {
            name: Pattern::of(request, "name"),
            label: request.parameter("label").map(str::to_owned),
            uri: Pattern::of(request, "uri"),
            fields,
        }
    }

    fn has(&self, value: &Value) -> bool {
        let field = |name: &str| value.get(name).unwrap_or(&Value::Null);
        let name = self.name.as_ref().is_none_or(|pattern| pattern.matches(field("name")));
        let label = self.label.as_ref().is_none_or(|label| field("labels").get(label).is_some());
        let uri = self.uri.as_ref().is_none_or(|pattern| {
            let uris = field("uris").as_array().map(Vec::as_slice).unwrap_or_default();
            pattern.matches(field("uri")) || uris.iter().any(|uri| pattern.matches(uri))
        });
        name && label && uri && self.fields.iter().all(|(name, text)| field(name) == text.as_str())
    }
}

/// A page of a list.
enum Page {
    All,
    Of { page: usize, size: usize },
}

impl Page {
    fn of(request: &AdminRequest) -> Result<Page, AdminReply> {
        let number = |name| request.parameter(name).and_then(|text| text.trim().parse::<f64>().ok());
        let (Some(page), Some(size)) = (number("page"), number("page_size")) else { return Ok(Page::All) };
        if !(10.0..=500.0).contains(&size) {
            let reason = "page_size must be between 10 and 500";
            return Err(AdminReply::text(StatusCode::BAD_REQUEST, reason));
        }
        // Positive by then, and what is beyond the largest number is beyond the end.
        Ok(Page::Of { page: page.max(1.0) as usize, size: size as usize })
    }
}

/// The answer to who asks for all of a kind.
pub(super) fn answer(
    (prefix, checker): (&str, &Checker),
    kind: Kind,
    all: &[(Key, Kept)],
    request: &AdminRequest,
) -> Result<AdminReply, AdminReply> {
    let wanted = Wanted::of(kind, request);
    let mut found: Vec<(u64, Value)> = Vec::new();
    for (key, kept) in all {
        let shown = shown(prefix, checker, key, kept);
        if wanted.has(shown.get("value").unwrap_or(&Value::Null)) {
            found.push((kept.created, shown));
        }
    }
    let total = found.len();
    if let Page::Of { page, size } = Page::of(request)? {
        found.sort_by_key(|(created, _)| *created);
        let from = page.saturating_sub(1).saturating_mul(size).min(total);
        found = found.into_iter().skip(from).take(size).collect();
    }
    let list = found.into_iter().map(|(_, shown)| shown).collect();
    let mut body = Map::new();
    body.insert("total".to_owned(), total.into());
    body.insert("list".to_owned(), Value::Array(list));
    Ok(AdminReply::json(StatusCode::OK, &Value::Object(body)))
}
