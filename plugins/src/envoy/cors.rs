//! Envoy's cors filter (source/extensions/filters/http/cors/cors_filter.cc).

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::headers::Known;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::route::Action;
use sixfold_core::runtime::{Fraction, Runtime};
use sixfold_core::stream::Stream;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::filters::http::cors::v3::{Cors as ProtoCors, CorsPolicy};
use sixfold_xds_api::values::{bool_or, runtime_fraction};

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.cors.`, of all policies together.
    pub struct CorsStats { counters: [origin_valid, origin_invalid], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build).stateless().reads_all_levels()
}

/// A field that a level leaves out is that of the next wider level.
fn build(_: ProtoCors, levels: Vec<CorsPolicy>, context: &BuildContext) -> Built {
    // Without a policy there is nothing to do.
    let Some(policy) = levels.into_iter().reduce(merge) else { return Ok(Plugin::default()) };
    let stats = CorsStats::new(&context.metrics, &format!("{}cors.", context.scope));
    let policy = Policy::new(policy, stats, &context.runtime)?;
    Ok(Plugin::of(policy).access(Policy::access).judging().header_filter(Policy::header_filter).build())
}

fn merge(wider: CorsPolicy, own: CorsPolicy) -> CorsPolicy {
    fn text(own: String, wider: String) -> String {
        if own.is_empty() { wider } else { own }
    }
    CorsPolicy {
        allow_origin_string_match: match own.allow_origin_string_match.is_empty() {
            true => wider.allow_origin_string_match,
            false => own.allow_origin_string_match,
        },
        allow_methods: text(own.allow_methods, wider.allow_methods),
        allow_headers: text(own.allow_headers, wider.allow_headers),
        expose_headers: text(own.expose_headers, wider.expose_headers),
        max_age: text(own.max_age, wider.max_age),
        allow_credentials: own.allow_credentials.or(wider.allow_credentials),
        filter_enabled: own.filter_enabled.or(wider.filter_enabled),
        shadow_enabled: own.shadow_enabled.or(wider.shadow_enabled),
        allow_private_network_access: own.allow_private_network_access.or(wider.allow_private_network_access),
        forward_not_matching_preflights: own
            .forward_not_matching_preflights
            .or(wider.forward_not_matching_preflights),
    }
}

struct Policy {
    origins: Vec<StringMatcher>,
    methods: String,
    headers: String,
    expose: String,
    max_age: String,
    credentials: bool,
    enabled: Option<Fraction>,
    /// Requests that are judged and counted without more.
    shadow: Option<Fraction>,
    private_network: bool,
    forward_not_matching: bool,
    stats: CorsStats,
}

/// The origin that the response is for.
struct Origin(Vec<u8>);

impl Policy {
    fn new(policy: CorsPolicy, stats: CorsStats, runtime: &Runtime) -> Result<Policy, ConfigError> {
        let CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = policy;
        let origins = allow_origin_string_match.iter().enumerate();
        let origins = origins.map(|(index, origin)| matcher::string(origin).in_index(index));
        let enabled = filter_enabled.as_ref().map(|share| runtime_fraction(runtime, share));
        let shadow = shadow_enabled.as_ref().map(|share| runtime_fraction(runtime, share));
        Ok(Policy {
            origins: origins.collect::<Result<_, _>>().in_key("allow_origin_string_match")?,
            methods: allow_methods,
            headers: allow_headers,
            expose: expose_headers,
            max_age,
            credentials: bool_or(&allow_credentials, false),
            enabled: enabled.transpose().in_key("filter_enabled")?,
            shadow: shadow.transpose().in_key("shadow_enabled")?,
            private_network: bool_or(&allow_private_network_access, false),
            forward_not_matching: bool_or(&forward_not_matching_preflights, true),
            stats,
        })
    }

    fn allows(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|m| m.matches(b"*") || m.matches(origin))
    }

    /// The answer to a preflight of `origin`, if that is allowed: to another one it lacks the origin and what is exposed.
    fn preflight(&self, origin: Option<&[u8]>, stream: &Stream) -> LocalReply {
        let request = &stream.request.headers;
        let mut reply = empty();
        let headers = &mut reply.headers;
        if let Some(origin) = origin {
            headers.set(Known::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        if self.credentials {
            headers.set(Known::ACCESS_CONTROL_ALLOW_CREDENTIALS, b"true");
        }
        // A star allows what was asked for, and nothing if nothing was: Envoy says that too.
        for (allowed, name, asked) in [
            (&self.methods, "access-control-allow-methods", "access-control-request-method"),
            (&self.headers, "access-control-allow-headers", "access-control-request-headers"),
        ] {
            match allowed.as_str() {
                "" => {}
                "*" => headers.set(name, request.get(asked).unwrap_or_default()),
                list => headers.set(name, list.as_bytes()),
            }
        }
        // What is exposed is said to those alone who may see it.
        if origin.is_some() && !self.expose.is_empty() {
            headers.set("access-control-expose-headers", self.expose.as_bytes());
        }
        if !self.max_age.is_empty() {
            headers.set("access-control-max-age", self.max_age.as_bytes());
        }
        let asked = request.get("access-control-request-private-network");
        if self.private_network && asked == Some(b"true") {
            headers.set("access-control-allow-private-network", b"true");
        }
        reply
    }
}

/// An answer that the filter encodes by itself (`CorsFilter::decodeHeaders`).
fn empty() -> LocalReply {
    LocalReply { as_it_is: true, ..LocalReply::new(200, "", "cors_response") }
}

impl Policy {
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let forwards = matches!(stream.route.as_deref().map(|r| &r.action), Some(Action::Forward(_)));
        let origin = stream.request.headers.get(Known::ORIGIN).filter(|o| !o.is_empty());
        let drawn = |share: Fraction| share.draw(fastrand::u64(..));
        let enabled = self.enabled.is_none_or(drawn);
        let judged = forwards && (enabled || self.shadow.is_some_and(drawn));
        let Some(origin) = origin.filter(|_| judged) else { return Step::Continue };
        let origin = origin.to_vec();
        let allowed = self.allows(&origin);
        if allowed {
            self.stats.origin_valid().inc();
        } else {
            self.stats.origin_invalid().inc();
        }
        if !enabled {
            return Step::Continue;
        }
        let asked = stream.request.headers.get("access-control-request-method");
        let preflight =
            stream.request.method == http::Method::OPTIONS && asked.is_some_and(|m| !m.is_empty());
        let step = match (preflight, allowed) {
            (true, true) => Step::Respond(self.preflight(Some(&origin), stream)),
            (true, false) if !self.forward_not_matching => Step::Respond(self.preflight(None, stream)),
            _ => Step::Continue,
        };
        if allowed {
            stream.set_state(slot, Origin(origin));
        }
        step
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let Some(origin) = stream.take_state::<Origin>(slot) else { return Step::Continue };
        let headers = &mut stream.response.headers;
        headers.set(Known::ACCESS_CONTROL_ALLOW_ORIGIN, &origin.0);
        if self.credentials {
            headers.set(Known::ACCESS_CONTROL_ALLOW_CREDENTIALS, b"true");
        }
        if !self.expose.is_empty() {
            headers.set("access-control-expose-headers", self.expose.as_bytes());
        }
        Step::Continue
    }
}
