//! The matching API: trees of `xds.type.matcher.v3.Matcher`.

use prost::{Message, Name};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::matcher::{HeaderTarget, StringMatcher};
use sixfold_core::matching::{Input, Predicate, Range, Test, Then, Tree};
use sixfold_core::regex::Regex;

use crate::pb::envoy::extensions::matching::common_inputs::environment_variable::v3::Config as Environment;
use crate::pb::envoy::extensions::matching::common_inputs::network::v3 as network;
use crate::pb::envoy::extensions::matching::input_matchers::consistent_hashing::v3::ConsistentHashing;
use crate::pb::envoy::extensions::matching::input_matchers::ip::v3::Ip;
use crate::pb::envoy::extensions::matching::input_matchers::metadata::v3::Metadata;
use crate::pb::envoy::r#type::matcher::v3::{HttpRequestHeaderMatchInput, HttpResponseHeaderMatchInput};
use crate::pb::google::protobuf::Any;
use crate::pb::xds::core::v3::{CidrRange, TypedExtensionConfig};
use crate::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, PredicateList, SinglePredicate, single_predicate,
};
use crate::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate as ProtoPredicate};
use crate::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use crate::pb::xds::r#type::matcher::v3::matcher::{
    MatcherList, MatcherTree, MatcherType, OnMatch, on_match::OnMatch as Follows,
};
use crate::pb::xds::r#type::matcher::v3::{
    Matcher, RegexMatcher, StringMatcher as ProtoString, string_matcher::MatchPattern,
};
use crate::pb::xds::r#type::v3::CelExpression;
use crate::values::{self, Result, not_empty, one_of, required};
use crate::{any, cel, matcher, refuse};

/// What a tree is asked about, and by whom: this decides what it may look at, as Envoy's validation visitors do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// A request whose route is being chosen.
    Route,
    /// A request.
    Request,
    /// A request and the response to it.
    Response,
    /// An established connection.
    Connection,
    /// A connection whose filter chain is being chosen.
    Chain,
}

/// Makes actions of a tree's.
pub type Act<'f, A> = &'f mut dyn FnMut(&TypedExtensionConfig) -> Result<A>;

/// `xds.type.matcher.v3.CelMatcher`.
#[derive(Clone, PartialEq, Message)]
struct CelMatcher {
    #[prost(message, optional, tag = "1")]
    expr_match: Option<CelExpression>,
    #[prost(string, tag = "2")]
    description: String,
}

/// `xds.type.matcher.v3.IPMatcher`.
#[derive(Clone, PartialEq, Message)]
struct IpMatcher {
    #[prost(message, repeated, tag = "1")]
    range_matchers: Vec<IpRangeMatcher>,
}

/// `xds.type.matcher.v3.IPMatcher.IPRangeMatcher`.
#[derive(Clone, PartialEq, Message)]
struct IpRangeMatcher {
    #[prost(message, repeated, tag = "1")]
    ranges: Vec<CidrRange>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<OnMatch>,
    #[prost(bool, tag = "3")]
    exclusive: bool,
}

/// `xds.type.matcher.v3.ServerNameMatcher`.
#[derive(Clone, PartialEq, Message)]
struct ServerNameMatcher {
    #[prost(message, repeated, tag = "1")]
    domain_matchers: Vec<DomainMatcher>,
}

/// `xds.type.matcher.v3.ServerNameMatcher.DomainMatcher`.
#[derive(Clone, PartialEq, Message)]
struct DomainMatcher {
    #[prost(string, repeated, tag = "1")]
    domains: Vec<String>,
    #[prost(message, optional, tag = "2")]
    on_match: Option<OnMatch>,
}

macro_rules! named {
    ($($message:ident = $name:literal),*) => {
        $(impl Name for $message {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = "xds.type.matcher.v3";
        })*
    };
}

named!(CelMatcher = "CelMatcher", IpMatcher = "IPMatcher", ServerNameMatcher = "ServerNameMatcher");

/// A tree, whose actions `act` makes.
///
/// # Errors
/// The field and the reason; inputs that are not known of `data` are refused by their type.
pub fn tree<A>(value: &Matcher, data: Data, act: Act<'_, A>) -> Result<Tree<A>> {
    let Matcher { on_no_match, matcher_type } = value;
    let kind = match matcher_type {
        None => return Ok(Tree::any(otherwise(on_no_match, data, act)?)),
        Some(kind) => kind,
    };
    match kind {
        MatcherType::MatcherList(MatcherList { matchers }) => {
            if matchers.is_empty() {
                return Err(ConfigError::field("matcher_list.matchers", "must not be empty"));
            }
            let items = matchers.iter().enumerate().map(|(index, value)| {
                let FieldMatcher { predicate, on_match } = value;
                let compiled = || {
                    let predicate = required(predicate, "predicate")?;
                    let predicate = self::predicate(predicate, data).in_key("predicate")?;
                    Ok((predicate, follows(on_match, data, act).in_key("on_match")?))
                };
                compiled_at(compiled, index)
            });
            let items = collect(items).in_key("matchers").in_key("matcher_list")?;
            Ok(Tree::list(items, otherwise(on_no_match, data, act)?))
        }
        MatcherType::MatcherTree(value) => choice(value, on_no_match, data, act),
    }
}

fn compiled_at<T>(compile: impl FnOnce() -> Result<T>, index: usize) -> Result<T> {
    compile().in_index(index)
}

fn otherwise<A>(value: &Option<Box<OnMatch>>, data: Data, act: Act<'_, A>) -> Result<Option<Then<A>>> {
    value.as_deref().map(|value| follow(value, data, act)).transpose().in_key("on_no_match")
}

fn follows<A>(value: &Option<OnMatch>, data: Data, act: Act<'_, A>) -> Result<Then<A>> {
    follow(value.as_ref().ok_or_else(|| ConfigError::new("is missing"))?, data, act)
}

fn follow<A>(value: &OnMatch, data: Data, act: Act<'_, A>) -> Result<Then<A>> {
    let OnMatch { keep_matching, on_match } = value;
    // Only those who carry out several actions could do something with it; none does here, as in Envoy.
    refuse!(keep_matching);
    Ok(match one_of::<OnMatch, _>(on_match, "on_match")? {
        Follows::Matcher(value) => Then::Choose(Box::new(tree(value, data, act).in_key("matcher")?)),
        Follows::Action(value) => Then::Act(act(value).in_key("action")?),
    })
}

/// A `matcher_tree`.
fn choice<A>(
    value: &MatcherTree,
    on_no_match: &Option<Box<OnMatch>>,
    data: Data,
    act: Act<'_, A>,
) -> Result<Tree<A>> {
    let MatcherTree { input, tree_type } = value;
    let compiled = |act: Act<'_, A>| -> Result<_> {
        let input = self::input(required(input, "input")?, data).in_key("input")?;
        Ok((input, branches(one_of::<MatcherTree, _>(tree_type, "tree_type")?, data, act)?))
    };
    let (input, branches) = compiled(act).in_key("matcher_tree")?;
    let otherwise = otherwise(on_no_match, data, act)?;
    Ok(match branches {
        Branches::Exact(items) => Tree::exact(input, items, otherwise),
        Branches::Prefix(items) => Tree::prefix(input, items, otherwise),
        Branches::Ip(items) => Tree::ip(input, items, otherwise),
        Branches::Names(items) => Tree::names(input, items, otherwise),
    })
}

/// What a tree branches by.
enum Branches<A> {
    Exact(Vec<(String, Then<A>)>),
    Prefix(Vec<(String, Then<A>)>),
    Ip(Vec<Range<A>>),
    Names(Vec<(Vec<String>, Then<A>)>),
}

fn branches<A>(value: &TreeType, data: Data, act: Act<'_, A>) -> Result<Branches<A>> {
    Ok(match value {
        TreeType::ExactMatchMap(map) => Branches::Exact(entries(map, data, act).in_key("exact_match_map")?),
        TreeType::PrefixMatchMap(map) => {
            Branches::Prefix(entries(map, data, act).in_key("prefix_match_map")?)
        }
        TreeType::CustomMatch(value) => {
            let TypedExtensionConfig { name, typed_config } = value;
            custom(name, typed_config, data, act).in_key("typed_config").in_key("custom_match")?
        }
    })
}

/// A map in the order of its keys, so that of two faults it is always the same that is told first.
fn entries<A>(map: &MatchMap, data: Data, act: Act<'_, A>) -> Result<Vec<(String, Then<A>)>> {
    if map.map.is_empty() {
        return Err(ConfigError::field("map", "must not be empty"));
    }
    let mut all: Vec<_> = map.map.iter().collect();
    all.sort_by_key(|(key, _)| *key);
    let entries = all
        .into_iter()
        .map(|(key, value)| follow(value, data, act).map(|then| (key.clone(), then)).in_key(key));
    collect(entries).in_key("map")
}

fn custom<A>(name: &str, config: &Option<Any>, data: Data, act: Act<'_, A>) -> Result<Branches<A>> {
    let config = config.as_ref().ok_or_else(|| ConfigError::new("is missing"))?;
    match any::type_name(config)?.as_str() {
        "xds.type.matcher.v3.IPMatcher" => {
            let IpMatcher { range_matchers } = any::unpack(config)?;
            if range_matchers.is_empty() {
                return Err(ConfigError::field("range_matchers", "must not be empty"));
            }
            let ranges = range_matchers.iter().enumerate().map(|(index, value)| {
                let IpRangeMatcher { ranges, on_match, exclusive } = value;
                let compiled = || {
                    Ok(Range {
                        ranges: cidrs(ranges)?,
                        then: follows(on_match, data, act).in_key("on_match")?,
                        exclusive: *exclusive,
                    })
                };
                compiled_at(compiled, index)
            });
            Ok(Branches::Ip(collect(ranges).in_key("range_matchers")?))
        }
        "xds.type.matcher.v3.ServerNameMatcher" => {
            let ServerNameMatcher { domain_matchers } = any::unpack(config)?;
            let names = domain_matchers.iter().enumerate().map(|(index, value)| {
                let DomainMatcher { domains, on_match } = value;
                let compiled = || {
                    if domains.is_empty() {
                        return Err(ConfigError::field("domains", "must not be empty"));
                    }
                    Ok((domains.clone(), follows(on_match, data, act).in_key("on_match")?))
                };
                compiled_at(compiled, index)
            });
            Ok(Branches::Names(collect(names).in_key("domain_matchers")?))
        }
        other => Err(extension("custom matcher", name, other)),
    }
}

/// The error of an extension; its caller adds `typed_config` or has been there.
fn extension(kind: &str, name: &str, type_name: &str) -> ConfigError {
    ConfigError::new(refuse::extension(kind, name, type_name).reason)
}

/// `ranges`, xds/core/v3/cidr.proto CidrRange.
pub(crate) fn cidrs(ranges: &[CidrRange]) -> Result<Vec<ipnet::IpNet>> {
    collect(ranges.iter().enumerate().map(|(index, range)| cidr(range).in_index(index))).in_key("ranges")
}

fn cidr(value: &CidrRange) -> Result<ipnet::IpNet> {
    let CidrRange { address_prefix, prefix_len } = value;
    let prefix_len = *prefix_len;
    values::cidr(&crate::pb::envoy::config::core::v3::CidrRange {
        address_prefix: address_prefix.clone(),
        prefix_len,
    })
}

fn predicate(value: &ProtoPredicate, data: Data) -> Result<Predicate> {
    let several = |value: &PredicateList| -> Result<Box<[Predicate]>> {
        if value.predicate.len() < 2 {
            return Err(ConfigError::field("predicate", "must hold at least two predicates"));
        }
        let all = value.predicate.iter().enumerate();
        let all = all.map(|(index, value)| predicate(value, data).in_index(index));
        Ok(collect(all).in_key("predicate")?.into())
    };
    Ok(match one_of::<ProtoPredicate, _>(&value.match_type, "match_type")? {
        MatchType::SinglePredicate(value) => single(value, data).in_key("single_predicate")?,
        MatchType::OrMatcher(value) => Predicate::Any(several(value).in_key("or_matcher")?),
        MatchType::AndMatcher(value) => Predicate::All(several(value).in_key("and_matcher")?),
        MatchType::NotMatcher(value) => {
            Predicate::Not(Box::new(predicate(value, data).in_key("not_matcher")?))
        }
    })
}

fn single(value: &SinglePredicate, data: Data) -> Result<Predicate> {
    let SinglePredicate { input, matcher } = value;
    let input = self::input(required(input, "input")?, data).in_key("input")?;
    let test = match one_of::<SinglePredicate, _>(matcher, "matcher")? {
        single_predicate::Matcher::ValueMatch(value) => Test::Text(string(value).in_key("value_match")?),
        single_predicate::Matcher::CustomMatch(value) => {
            let TypedExtensionConfig { name, typed_config } = value;
            test(name, typed_config).in_key("typed_config").in_key("custom_match")?
        }
    };
    let fits = match (&input, &test) {
        (Input::Attributes, test) => matches!(test, Test::Cel(_)),
        // Envoy takes a test of text for metadata too, which passes nothing.
        (Input::Metadata(..), test) => !matches!(test, Test::Cel(_)),
        (_, test) => !matches!(test, Test::Cel(_) | Test::Value(..)),
    };
    // Envoy says that the matcher does not support the input's type of data.
    if fits {
        Ok(Predicate::Single(input, test))
    } else {
        Err(ConfigError::new("the matcher is not for this input"))
    }
}

fn test(name: &str, config: &Option<Any>) -> Result<Test> {
    let config = config.as_ref().ok_or_else(|| ConfigError::new("is missing"))?;
    Ok(match any::type_name(config)?.as_str() {
        "envoy.extensions.matching.input_matchers.ip.v3.Ip" => {
            // Nothing is counted of it.
            let Ip { cidr_ranges, stat_prefix } = any::unpack(config)?;
            not_empty(&stat_prefix, "stat_prefix")?;
            if cidr_ranges.is_empty() {
                return Err(ConfigError::field("cidr_ranges", "must not be empty"));
            }
            Test::Ip(values::cidrs(&cidr_ranges, "cidr_ranges")?.into())
        }
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata" => {
            let Metadata { value, invert } = any::unpack(config)?;
            Test::Value(matcher::value(required(&value, "value")?).in_key("value")?, invert)
        }
        "envoy.extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing" => {
            let ConsistentHashing { threshold, modulo, seed } = any::unpack(config)?;
            if modulo == 0 {
                return Err(ConfigError::field("modulo", "must be at least 1"));
            }
            Test::Hash { modulo: modulo.into(), threshold: threshold.into(), seed }
        }
        "xds.type.matcher.v3.CelMatcher" => {
            // The description is for people.
            let CelMatcher { expr_match, description: _ } = any::unpack(config)?;
            Test::Cel(cel::expression(required(&expr_match, "expr_match")?).in_key("expr_match")?)
        }
        other => return Err(extension("input matcher", name, other)),
    })
}

/// What is looked at. A type that Envoy has for another sort of data is refused like one that it does not have.
fn input(value: &TypedExtensionConfig, data: Data) -> Result<Input> {
    let TypedExtensionConfig { name, typed_config } = value;
    let config = required(typed_config, "typed_config")?;
    input_of(name, config, data).in_key("typed_config")
}

const NETWORK: &str = "envoy.extensions.matching.common_inputs.network.v3.";
const SSL: &str = "envoy.extensions.matching.common_inputs.ssl.v3.";

fn input_of(name: &str, config: &Any, data: Data) -> Result<Input> {
    let type_name = any::type_name(config)?;
    if data == Data::Route && type_name != HttpRequestHeaderMatchInput::full_name() {
        let reason = format!("routes can be chosen by request headers only, not by {type_name}");
        return Err(ConfigError::new(reason));
    }
    let plain = match (type_name.strip_prefix(NETWORK), type_name.strip_prefix(SSL)) {
        (Some("DestinationIPInput"), _) => Input::DestinationIp,
        (Some("DestinationPortInput"), _) => Input::DestinationPort,
        (Some("SourceIPInput"), _) => Input::SourceIp,
        (Some("SourcePortInput"), _) => Input::SourcePort,
        (Some("DirectSourceIPInput"), _) => Input::DirectSourceIp,
        (Some("SourceTypeInput"), _) if data == Data::Chain => Input::SourceType,
        (Some("ServerNameInput"), _) => Input::ServerName,
        (Some("TransportProtocolInput"), _) if data == Data::Chain => Input::Transport,
        (Some("ApplicationProtocolInput"), _) if data == Data::Chain => Input::ApplicationProtocol,
        (_, Some("UriSanInput")) => Input::UriSan,
        (_, Some("DnsSanInput")) => Input::DnsSan,
        (_, Some("SubjectInput")) => Input::Subject,
        _ => return with_fields(name, &type_name, config, data),
    };
    Ok(plain)
}

/// Inputs that say what is meant.
fn with_fields(name: &str, type_name: &str, config: &Any, data: Data) -> Result<Input> {
    Ok(match (type_name, data) {
        (
            "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
            Data::Route | Data::Request | Data::Response,
        ) => {
            let HttpRequestHeaderMatchInput { header_name } = any::unpack(config)?;
            Input::Header(HeaderTarget::of_request(&header_name))
        }
        ("envoy.type.matcher.v3.HttpResponseHeaderMatchInput", Data::Response) => {
            let HttpResponseHeaderMatchInput { header_name } = any::unpack(config)?;
            Input::ResponseHeader(values::header_name(&header_name, "header_name")?)
        }
        ("envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput", Data::Response) => Input::ResponseStatus,
        ("envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput", Data::Response) => {
            Input::ResponseClass
        }
        ("xds.type.matcher.v3.HttpAttributesCelMatchInput", Data::Request | Data::Response) => {
            Input::Attributes
        }
        ("envoy.extensions.matching.common_inputs.network.v3.FilterStateInput", _) => {
            let network::FilterStateInput { key, field } = any::unpack(config)?;
            let field = &field;
            refuse!(field);
            Input::FilterState(not_empty(&key, "key")?.into())
        }
        (
            "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
            Data::Request | Data::Response,
        ) => metadata(&any::unpack(config)?)?,
        ("envoy.extensions.matching.common_inputs.environment_variable.v3.Config", _) => {
            let Environment { name } = any::unpack(config)?;
            Input::Constant(std::env::var(not_empty(&name, "name")?).ok().map(Into::into))
        }
        _ => return Err(extension("input", name, type_name)),
    })
}

fn metadata(value: &network::DynamicMetadataInput) -> Result<Input> {
    use network::dynamic_metadata_input::{PathSegment, path_segment::Segment};
    let network::DynamicMetadataInput { filter, path } = value;
    let mut keys = path.iter().enumerate().map(|(index, PathSegment { segment })| match segment {
        Some(Segment::Key(key)) if !key.is_empty() => Ok(key.as_str().into()),
        _ => Err(ConfigError::field("key", "is missing").in_index(index).in_key("path")),
    });
    let key = keys.next().transpose()?.ok_or_else(|| ConfigError::field("path", "must not be empty"))?;
    let path = keys.collect::<Result<_>>()?;
    Ok(Input::Metadata(not_empty(filter, "filter")?.into(), key, path))
}

/// xds/type/matcher/v3/string.proto StringMatcher.
fn string(value: &ProtoString) -> Result<StringMatcher> {
    let ProtoString { ignore_case, match_pattern } = value;
    let ignore = *ignore_case;
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    Ok(match match_pattern {
        Some(MatchPattern::Exact(text)) => StringMatcher::Exact(bytes(text), ignore),
        Some(MatchPattern::Prefix(text)) => StringMatcher::Prefix(bytes(not_empty(text, "prefix")?), ignore),
        Some(MatchPattern::Suffix(text)) => StringMatcher::Suffix(bytes(not_empty(text, "suffix")?), ignore),
        Some(MatchPattern::Contains(text)) => StringMatcher::contains(not_empty(text, "contains")?, ignore),
        Some(MatchPattern::SafeRegex(RegexMatcher { regex, engine_type })) => {
            one_of::<RegexMatcher, _>(engine_type, "engine_type").in_key("safe_regex")?;
            let regex = not_empty(regex, "regex").in_key("safe_regex")?;
            let compiled = Regex::full(regex).map_err(|e| ConfigError::field("regex", e.to_string()));
            StringMatcher::Regex(compiled.in_key("safe_regex")?)
        }
        Some(MatchPattern::Custom(_)) => return Err(ConfigError::field("custom", "is not supported")),
        None => {
            return Err(ConfigError::new("one of exact, prefix, suffix, contains, safe_regex is missing"));
        }
    })
}

#[cfg(test)]
mod tests;
