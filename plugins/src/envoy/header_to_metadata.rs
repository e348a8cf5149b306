//! Envoy's header_to_metadata filter (source/extensions/filters/http/header_to_metadata): leaves values of headers and
//! cookies to what comes after it, such as the choice of a subset.

#[cfg(test)]
mod tests;

use crate::envoy;
use crate::shared::peers::base64;
use prost::Message;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::header_ops::Side;
use sixfold_core::headers::HeaderName;
use sixfold_core::matcher::{HeaderTarget, cookie};
use sixfold_core::metrics::{Counter, scope};
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step};
use sixfold_core::regex::{Regex, Rewrite};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::value_to_json;
use sixfold_xds_api::pb::envoy::extensions::filters::http::header_to_metadata::v3::Config;
use sixfold_xds_api::pb::envoy::extensions::filters::http::header_to_metadata::v3::config::{
    KeyValuePair, Rule as ProtoRule, ValueEncode, ValueType,
};
use sixfold_xds_api::pb::google::protobuf::Value as ProtoValue;
use sixfold_xds_api::pb::google::protobuf::value::Kind;
use sixfold_xds_api::values::{enum_value, header_name, not_empty, regex_rewrite};
use std::sync::Arc;

/// The namespace of values that have none configured.
const NAME: &str = "envoy.filters.http.header_to_metadata";

/// Values are shorter than this (`MAX_HEADER_VALUE_LEN`).
const MAX_VALUE: usize = 8 * 1024;

sixfold_core::stat_block! {
    /// Statistics under `http_filter_name.STAT_PREFIX.`; none without a prefix.
    pub struct RuleStats {
        counters: [
            request_rules_processed, response_rules_processed, request_metadata_added, response_metadata_added,
            request_header_not_found, response_header_not_found, base64_decode_failed, header_value_too_long,
            regex_substitution_failed,
        ],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific level counts alone.
fn build(config: Config, levels: Vec<Config>, context: &BuildContext) -> Built {
    if levels.iter().any(|level| level.request_rules.is_empty() && level.response_rules.is_empty()) {
        return Err(ConfigError::new("settings of a route must have request_rules or response_rules"));
    }
    let Config { request_rules, response_rules, stat_prefix } =
        levels.into_iter().next_back().unwrap_or(config);
    let rules = |rules: &[ProtoRule], target: fn(&str) -> HeaderTarget| {
        collect(rules.iter().enumerate().map(|(index, rule)| Rule::new(rule, target).in_index(index)))
    };
    let filter = HeaderToMetadata {
        request: rules(&request_rules, HeaderTarget::of_request).in_key("request_rules")?.into(),
        response: rules(&response_rules, HeaderTarget::of_response).in_key("response_rules")?.into(),
        stats: (!stat_prefix.is_empty())
            .then(|| RuleStats::new(&context.metrics, &scope(&["http_filter_name", &stat_prefix]))),
    };
    let (on_request, on_response) = (!filter.request.is_empty(), !filter.response.is_empty());
    let mut plugin = Plugin::of(filter);
    if on_request {
        plugin = plugin.access(HeaderToMetadata::access).judging();
    }
    if on_response {
        plugin = plugin.header_filter(HeaderToMetadata::header_filter);
    }
    Ok(plugin.build())
}

struct HeaderToMetadata {
    request: Box<[Rule]>,
    response: Box<[Rule]>,
    stats: Option<RuleStats>,
}

struct Rule {
    source: Source,
    present: Option<Pair>,
    missing: Option<Pair>,
}

/// Where a value comes from.
enum Source {
    Header(HeaderTarget),
    /// The header leaves the message.
    Removed(HeaderName),
    Cookie(String),
}

/// What becomes of a value.
struct Pair {
    namespace: Arc<str>,
    key: Arc<str>,
    /// In the place of what was found.
    value: Vec<u8>,
    rewrite: Option<(Regex, Rewrite)>,
    kind: ValueType,
    is_base64: bool,
}

impl Rule {
    fn new(rule: &ProtoRule, target: fn(&str) -> HeaderTarget) -> Result<Rule, ConfigError> {
        let ProtoRule { header, cookie, on_header_present, on_header_missing, remove } = rule;
        let source = match (header.as_str(), cookie.as_str(), remove) {
            ("", "", _) => return Err(ConfigError::new("one of header and cookie is missing")),
            ("", cookie, false) => Source::Cookie(cookie.to_owned()),
            ("", _, true) => {
                return Err(ConfigError::field("remove", "must not be given together with cookie"));
            }
            (name, "", false) => Source::Header(target(name)),
            (name, "", true) if !matches!(target(name), HeaderTarget::Header(_)) => {
                return Err(ConfigError::field("remove", format!("\"{name}\" can't be removed")));
            }
            (name, "", true) => Source::Removed(header_name(name, "header")?),
            _ => return Err(ConfigError::field("cookie", "must not be given together with header")),
        };
        if on_header_present.is_none() && on_header_missing.is_none() {
            return Err(ConfigError::new("one of on_header_present and on_header_missing is missing"));
        }
        if let Some(missing) = on_header_missing {
            not_empty(&missing.value, "on_header_missing.value")?;
        }
        let pair = |pair: &Option<_>, field| pair.as_ref().map(Pair::new).transpose().in_key(field);
        Ok(Rule {
            source,
            present: pair(on_header_present, "on_header_present")?,
            missing: pair(on_header_missing, "on_header_missing")?,
        })
    }
}

impl Pair {
    fn new(pair: &KeyValuePair) -> Result<Pair, ConfigError> {
        let KeyValuePair { metadata_namespace, key, value, regex_value_rewrite, r#type, encode } = pair;
        if !value.is_empty() && regex_value_rewrite.is_some() {
            return Err(ConfigError::field("regex_value_rewrite", "must not be given together with value"));
        }
        let namespace = if metadata_namespace.is_empty() { NAME } else { metadata_namespace };
        Ok(Pair {
            namespace: namespace.into(),
            key: not_empty(key, "key")?.into(),
            value: value.clone().into_bytes(),
            rewrite: regex_value_rewrite
                .as_ref()
                .map(regex_rewrite)
                .transpose()
                .in_key("regex_value_rewrite")?,
            kind: enum_value(*r#type, "type")?,
            is_base64: enum_value::<ValueEncode>(*encode, "encode")? == ValueEncode::Base64,
        })
    }

    /// The value that is left of what was found; nothing, if it is none for this.
    fn value(
        &self,
        found: Vec<u8>,
        count: impl Fn(for<'s> fn(&'s RuleStats) -> Counter<'s>),
    ) -> Option<Value> {
        let mut value = found;
        if !self.value.is_empty() {
            value.clone_from(&self.value);
        } else if let Some((regex, rewrite)) = &self.rewrite
            && let Some(rewritten) = regex.replace_all(&value, rewrite)
        {
            if rewritten.is_empty() {
                count(RuleStats::regex_substitution_failed);
            }
            value = rewritten;
        }
        if value.is_empty() {
            return None;
        }
        if value.len() >= MAX_VALUE {
            count(RuleStats::header_value_too_long);
            return None;
        }
        if self.is_base64 {
            match base64(&value).filter(|decoded| !decoded.is_empty()) {
                Some(decoded) => value = decoded,
                None => {
                    count(RuleStats::base64_decode_failed);
                    return None;
                }
            }
        }
        match self.kind {
            ValueType::String => Some(Value::String(String::from_utf8_lossy(&value).into_owned())),
            ValueType::Number => {
                let number: f64 = std::str::from_utf8(&value).ok()?.trim().parse().ok()?;
                let value = ProtoValue { kind: Some(Kind::NumberValue(number)) };
                Some(value_to_json(value)).filter(Value::is_number)
            }
            ValueType::ProtobufValue => ProtoValue::decode(value.as_slice()).ok().map(value_to_json),
        }
    }
}

impl Source {
    /// The value, the lines of a header put together by commas.
    fn take(&self, stream: &mut Stream, side: Side) -> Option<Vec<u8>> {
        match self {
            Source::Header(target) if side == Side::Request => joined(target.values(&stream.request)),
            Source::Header(target) => {
                joined(target.values_of_response(&stream.response, &mut itoa::Buffer::new()))
            }
            Source::Removed(name) => {
                let headers = side.headers(stream);
                let value = joined(headers.get_all(name));
                headers.remove(name);
                value
            }
            Source::Cookie(name) => {
                let value = cookie(side.headers(stream), name.as_bytes())?;
                (!value.is_empty()).then(|| value.to_vec())
            }
        }
    }
}

fn joined<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    values.map(<[u8]>::to_vec).reduce(|mut all, next| {
        all.push(b',');
        all.extend(next);
        all
    })
}

impl HeaderToMetadata {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        self.run(&self.request, stream, Side::Request);
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        self.run(&self.response, stream, Side::Response);
        Step::Continue
    }

    fn run(&self, rules: &[Rule], stream: &mut Stream, side: Side) {
        let count = |counter: for<'s> fn(&'s RuleStats) -> Counter<'s>| {
            if let Some(stats) = &self.stats {
                counter(stats).inc();
            }
        };
        let (processed, added, not_found): (_, _, fn(&RuleStats) -> Counter<'_>) = match side {
            Side::Request | Side::RequestTrailers => (
                RuleStats::request_rules_processed as fn(&RuleStats) -> Counter<'_>,
                RuleStats::request_metadata_added as fn(&RuleStats) -> Counter<'_>,
                RuleStats::request_header_not_found,
            ),
            Side::Response | Side::ResponseTrailers => (
                RuleStats::response_rules_processed as fn(&RuleStats) -> Counter<'_>,
                RuleStats::response_metadata_added as fn(&RuleStats) -> Counter<'_>,
                RuleStats::response_header_not_found,
            ),
        };
        for rule in rules {
            let found = rule.source.take(stream, side);
            count(processed);
            let pair = match &found {
                Some(_) => &rule.present,
                None => &rule.missing,
            };
            let Some(pair) = pair else { continue };
            if found.is_none() {
                count(not_found);
            }
            if let Some(value) = pair.value(found.unwrap_or_default(), count) {
                count(added);
                stream.metadata.push((pair.namespace.clone(), pair.key.clone(), value));
            }
        }
    }
}
