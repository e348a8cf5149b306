//! Envoy's header_mutation filter (source/extensions/filters/http/header_mutation): changes headers, trailers and
//! parameters of the query, one after the other.

mod query;
#[cfg(test)]
mod tests;

use crate::envoy;
use query::QueryChange;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::header_ops::{HeaderOps, Side};
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, Plugin, Slot, Step, TrailersStep};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::config::common::mutation_rules::v3::HeaderMutation as ProtoChange;
use sixfold_xds_api::pb::envoy::config::common::mutation_rules::v3::header_mutation::{
    Action, RemoveOnMatch,
};
use sixfold_xds_api::pb::envoy::extensions::filters::http::header_mutation::v3::{
    HeaderMutation as Config, HeaderMutationPerRoute, Mutations,
};
use sixfold_xds_api::values::{one_of, required};
use sixfold_xds_api::{header_ops, matcher};

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless().reads_all_levels()
}

/// The filter's own changes come first, then those of every level; the most specific level is the first of them, unless
/// it is to have the last word.
fn build(config: Config, levels: Vec<HeaderMutationPerRoute>, _: &BuildContext) -> Built {
    let Config { mutations, most_specific_header_mutations_wins } = config;
    let levels = levels.into_iter().map(|HeaderMutationPerRoute { mutations }| mutations);
    let mut levels: Vec<Mutations> = levels.flatten().collect();
    if !most_specific_header_mutations_wins {
        levels.reverse();
    }
    let mut all = HeaderMutation::default();
    for mutations in mutations.into_iter().chain(levels) {
        all.add(mutations)?;
    }
    let (request, response) = (!all.request.is_empty(), !all.response.is_empty());
    let trailers = (!all.request_trailers.is_empty(), !all.response_trailers.is_empty());
    let mut plugin = Plugin::of(all);
    if request {
        plugin = plugin.access(HeaderMutation::access).judging();
    }
    if response {
        plugin = plugin.header_filter(HeaderMutation::header_filter);
    }
    if trailers.0 {
        plugin = plugin.request_trailers(HeaderMutation::request_trailers);
    }
    if trailers.1 {
        plugin = plugin.response_trailers(HeaderMutation::response_trailers);
    }
    Ok(plugin.build())
}

#[derive(Default)]
struct HeaderMutation {
    request: Vec<RequestChange>,
    response: Vec<Change>,
    request_trailers: Vec<Change>,
    response_trailers: Vec<Change>,
}

/// A change of a request's head. Each sees what those before it have done.
enum RequestChange {
    Header(Change),
    /// Changes of one level, which take the query apart once.
    Query(Box<[QueryChange]>),
}

/// A change of the fields of a message.
enum Change {
    Ops(HeaderOps),
    /// Removes the fields whose names pass.
    RemoveMatching(StringMatcher),
}

impl HeaderMutation {
    fn add(&mut self, mutations: Mutations) -> Result<(), ConfigError> {
        let Mutations {
            request_mutations,
            query_parameter_mutations,
            response_mutations,
            response_trailers_mutations,
            request_trailers_mutations,
        } = mutations;
        let changes = |values: &[ProtoChange], field: &str| {
            let changes = values.iter().enumerate().map(|(index, value)| Change::new(value).in_index(index));
            collect(changes).in_key(field).in_key("mutations")
        };
        let request = changes(&request_mutations, "request_mutations")?;
        self.request.extend(request.into_iter().map(RequestChange::Header));
        let query = query_parameter_mutations.iter().enumerate();
        let query = collect(query.map(|(index, value)| QueryChange::new(value).in_index(index)))
            .in_key("query_parameter_mutations")
            .in_key("mutations")?;
        if !query.is_empty() {
            self.request.push(RequestChange::Query(query.into()));
        }
        self.response.extend(changes(&response_mutations, "response_mutations")?);
        let of_request = changes(&request_trailers_mutations, "request_trailers_mutations");
        self.request_trailers.extend(of_request?);
        let of_response = changes(&response_trailers_mutations, "response_trailers_mutations");
        self.response_trailers.extend(of_response?);
        Ok(())
    }

    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        for change in &self.request {
            match change {
                RequestChange::Header(change) => change.apply(stream, Side::Request),
                RequestChange::Query(changes) => query::apply(changes, stream),
            }
        }
        Step::Continue
    }

    fn header_filter(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        self.response.iter().for_each(|change| change.apply(stream, Side::Response));
        Step::Continue
    }

    fn request_trailers(&self, stream: &mut Stream, _: Slot) -> TrailersStep {
        self.request_trailers.iter().for_each(|change| change.apply(stream, Side::RequestTrailers));
        TrailersStep::Continue
    }

    fn response_trailers(&self, stream: &mut Stream, _: Slot) -> TrailersStep {
        self.response_trailers.iter().for_each(|change| change.apply(stream, Side::ResponseTrailers));
        TrailersStep::Continue
    }
}

impl Change {
    fn new(value: &ProtoChange) -> Result<Change, ConfigError> {
        match one_of::<ProtoChange, _>(&value.action, "action")? {
            Action::Remove(name) => header_ops::without(name, "remove").map(Change::Ops),
            Action::RemoveOnMatch(RemoveOnMatch { key_matcher }) => {
                let matcher = required(key_matcher, "key_matcher")
                    .and_then(|matcher| matcher::string(matcher).in_key("key_matcher"));
                matcher.map(Change::RemoveMatching).in_key("remove_on_match")
            }
            Action::Append(add) => header_ops::one(add).map(Change::Ops).in_key("append"),
        }
    }

    fn apply(&self, stream: &mut Stream, side: Side) {
        match self {
            Change::Ops(ops) => ops.apply(stream, side),
            Change::RemoveMatching(matcher) => {
                let lower = |name: &[u8]| matcher.matches(&name.to_ascii_lowercase());
                side.headers(stream).retain(|_, name, _| !lower(name));
            }
        }
    }
}
