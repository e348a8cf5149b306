//! Which requirement a request has.

use super::requirement::Requirement;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::matcher::{HeaderMatcher, QueryMatcher};
use sixfold_core::router::{PathMatch, Template};
use sixfold_core::stream::Stream;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::config::route::v3::RouteMatch;
use sixfold_xds_api::pb::envoy::config::route::v3::route_match::PathSpecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use sixfold_xds_api::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    FilterStateRule, JwtRequirement, PerRouteConfig, RequirementRule,
};
use sixfold_xds_api::values::{bool_or, full_regex, one_of, required};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Rules in their order; the first that fits holds.
pub(super) struct Rules {
    rules: Box<[Rule]>,
    of_state: Option<StateRules>,
    named: BTreeMap<String, Arc<Requirement>>,
    /// A route says by itself what holds.
    of_route: Option<OfRoute>,
}

struct Rule {
    r#match: Match,
    requirement: Option<Arc<Requirement>>,
}

/// Requirements by what a filter before has left in the filter state.
struct StateRules {
    key: String,
    requirements: BTreeMap<Vec<u8>, Requirement>,
}

enum OfRoute {
    Disabled,
    Requirement(Arc<Requirement>),
    /// One that there is not: Envoy tells that to requests.
    Wrong(String),
}

/// What holds for a request.
pub(super) enum Chosen<'a> {
    Nothing,
    Requirement(&'a Requirement),
    Wrong(&'a str),
}

/// config/route/v3 RouteMatch, as far as this filter looks at it.
struct Match {
    path: PathMatch,
    headers: Vec<HeaderMatcher>,
    queries: Vec<QueryMatcher>,
}

impl Rules {
    /// # Errors
    /// What is wrong with rules and requirements.
    pub(super) fn new(
        rules: &[RequirementRule],
        of_state: &Option<FilterStateRule>,
        named: &HashMap<String, JwtRequirement>,
        compile: impl Fn(&JwtRequirement) -> Result<Requirement, ConfigError>,
    ) -> Result<Rules, ConfigError> {
        let sorted: BTreeMap<&String, &JwtRequirement> = named.iter().collect();
        let named = sorted
            .into_iter()
            .map(|(name, value)| Ok((name.clone(), Arc::new(compile(value).in_key(name)?))))
            .collect::<Result<BTreeMap<_, _>, ConfigError>>()
            .in_key("requirement_map")?;
        let rule = |(index, rule)| Rule::new(rule, &named, &compile).in_index(index);
        let rules = collect(rules.iter().enumerate().map(rule)).in_key("rules")?.into();
        let of_state = of_state.as_ref().map(|value| StateRules::new(value, &compile)).transpose();
        Ok(Rules { rules, of_state: of_state.in_key("filter_state_rules")?, named, of_route: None })
    }

    /// The same on a route that says something by itself.
    pub(super) fn of_route(self, config: PerRouteConfig) -> Rules {
        let PerRouteConfig { requirement_specifier } = config;
        let name = match requirement_specifier {
            Some(RequirementSpecifier::Disabled(true)) => {
                return Rules { of_route: Some(OfRoute::Disabled), ..self };
            }
            Some(RequirementSpecifier::RequirementName(name)) => name,
            Some(RequirementSpecifier::Disabled(false)) | None => String::new(),
        };
        let of_route = match self.named.get(&name) {
            Some(requirement) => OfRoute::Requirement(requirement.clone()),
            None => {
                let known: Vec<&str> = self.named.keys().map(String::as_str).collect();
                let known = known.join(",");
                OfRoute::Wrong(format!("Wrong requirement_name: {name}. It should be one of [{known}]"))
            }
        };
        Rules { of_route: Some(of_route), ..self }
    }

    /// What holds for this request.
    pub(super) fn choose(&self, stream: &Stream) -> Chosen<'_> {
        match &self.of_route {
            Some(OfRoute::Disabled) => return Chosen::Nothing,
            Some(OfRoute::Requirement(requirement)) => return Chosen::Requirement(requirement),
            Some(OfRoute::Wrong(reason)) => return Chosen::Wrong(reason),
            None => {}
        }
        let requirement = match self.rules.iter().find(|rule| rule.r#match.matches(stream)) {
            Some(rule) => rule.requirement.as_deref(),
            None => self.of_state.as_ref().and_then(|rules| rules.find(stream)),
        };
        requirement.map_or(Chosen::Nothing, Chosen::Requirement)
    }
}

impl Rule {
    fn new(
        value: &RequirementRule,
        named: &BTreeMap<String, Arc<Requirement>>,
        compile: impl Fn(&JwtRequirement) -> Result<Requirement, ConfigError>,
    ) -> Result<Rule, ConfigError> {
        let RequirementRule { r#match, requirement_type } = value;
        let requirement = match requirement_type {
            None => None,
            Some(RequirementType::Requires(value)) => Some(Arc::new(compile(value).in_key("requires")?)),
            Some(RequirementType::RequirementName(name)) => {
                let missing = || {
                    let reason = format!("there is no \"{name}\" in requirement_map");
                    ConfigError::field("requirement_name", reason)
                };
                Some(named.get(name).cloned().ok_or_else(missing)?)
            }
        };
        Ok(Rule { r#match: Match::new(required(r#match, "match")?).in_key("match")?, requirement })
    }
}

impl StateRules {
    fn new(
        value: &FilterStateRule,
        compile: impl Fn(&JwtRequirement) -> Result<Requirement, ConfigError>,
    ) -> Result<StateRules, ConfigError> {
        let FilterStateRule { name, requires } = value;
        let sorted: BTreeMap<&String, &JwtRequirement> = requires.iter().collect();
        let requirements = sorted
            .into_iter()
            .map(|(text, value)| Ok((text.clone().into_bytes(), compile(value).in_key(text)?)))
            .collect::<Result<_, ConfigError>>()
            .in_key("requires")?;
        Ok(StateRules { key: name.clone(), requirements })
    }

    fn find(&self, stream: &Stream) -> Option<&Requirement> {
        self.requirements.get(&*stream.filter_object(&self.key)?.value)
    }
}

impl Match {
    fn new(value: &RouteMatch) -> Result<Match, ConfigError> {
        let RouteMatch {
            case_sensitive,
            headers,
            query_parameters,
            path_specifier,
            // Envoy's filter does not look at these (source/extensions/filters/http/jwt_authn/matcher.cc).
            runtime_fraction: _,
            cookies: _,
            grpc: _,
            tls_context: _,
            dynamic_metadata: _,
            filter_state: _,
        } = value;
        let ignore_case = !bool_or(case_sensitive, true);
        let queries =
            query_parameters.iter().enumerate().map(|(index, value)| matcher::query(value).in_index(index));
        let path = one_of::<RouteMatch, _>(path_specifier, "path_specifier")?;
        Ok(Match {
            path: path_match(path, ignore_case)?,
            headers: matcher::headers(headers, "headers")?,
            queries: queries.collect::<Result<_, _>>().in_key("query_parameters")?,
        })
    }

    fn matches(&self, stream: &Stream) -> bool {
        let request = &stream.request;
        let path = match &self.path {
            PathMatch::Connect => request.method == http::Method::CONNECT,
            path => path.matches(request.target.path()),
        };
        path && self.headers.iter().all(|header| header.matches(request))
            && self.queries.iter().all(|query| query.matches(request.target.query()))
    }
}

fn path_match(value: &PathSpecifier, ignore_case: bool) -> Result<PathMatch, ConfigError> {
    let bytes = |text: &str| -> Box<[u8]> { text.as_bytes().into() };
    Ok(match value {
        PathSpecifier::Prefix(prefix) => PathMatch::Prefix(bytes(prefix), ignore_case),
        PathSpecifier::Path(path) => PathMatch::Exact(bytes(path), ignore_case),
        PathSpecifier::PathSeparatedPrefix(prefix) => PathMatch::SeparatedPrefix(bytes(prefix), ignore_case),
        PathSpecifier::SafeRegex(regex) => PathMatch::Regex(full_regex(regex).in_key("safe_regex")?.into()),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(policy) => {
            let text = matcher::path_template(policy).in_key("path_match_policy")?;
            let template = Template::parse(&text)
                .map_err(|reason| ConfigError::field("path_match_policy.typed_config", reason))?;
            PathMatch::Template(template.into())
        }
    })
}
