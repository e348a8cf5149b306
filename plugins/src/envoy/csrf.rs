//! Envoy's csrf filter (source/extensions/filters/http/csrf): requests that change something must come from pages of the
//! host itself, or of hosts that are named.

#[cfg(test)]
mod tests;

use crate::envoy;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::headers::Known;
use sixfold_core::matcher::StringMatcher;
use sixfold_core::message::RequestHead;
use sixfold_core::metrics;
use sixfold_core::plugin::{BuildContext, Built, FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::Stream;
use sixfold_xds_api::matcher;
use sixfold_xds_api::pb::envoy::extensions::filters::http::csrf::v3::CsrfPolicy;
use sixfold_xds_api::values::{required, runtime_fraction};

sixfold_core::stat_block! {
    /// Statistics under `http.PREFIX.csrf.`.
    pub struct CsrfStats {
        counters: [missing_source_origin, request_invalid, request_valid],
        gauges: [],
        histograms: [],
    }
}

pub(crate) fn factory() -> FilterFactory {
    envoy::filter(build)
}

/// The most specific policy holds whole.
fn build(config: CsrfPolicy, mut overrides: Vec<CsrfPolicy>, context: &BuildContext) -> Built {
    let CsrfPolicy { filter_enabled, shadow_enabled, additional_origins } = overrides.pop().unwrap_or(config);
    let enabled = required(&filter_enabled, "filter_enabled")?;
    let enabled = runtime_fraction(&context.runtime, enabled).in_key("filter_enabled")?;
    let shadow = shadow_enabled.as_ref().map(|share| runtime_fraction(&context.runtime, share));
    let origins = additional_origins.iter().enumerate();
    let origins = collect(origins.map(|(index, origin)| matcher::string(origin).in_index(index)));
    let filter = Csrf {
        enabled,
        shadow: shadow.transpose().in_key("shadow_enabled")?,
        origins: origins.in_key("additional_origins")?.into(),
        stats: CsrfStats::new(&context.metrics, &metrics::scope(&[&context.scope, "csrf"])),
    };
    Ok::<_, ConfigError>(Plugin::of(filter).access(Csrf::access).judging().build())
}

struct Csrf {
    enabled: Fraction,
    /// Requests that are judged and counted without being refused.
    shadow: Option<Fraction>,
    /// Origins beside the host itself.
    origins: Box<[StringMatcher]>,
    stats: CsrfStats,
}

impl Csrf {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let enabled = self.enabled.draw(stream.random);
        let shadow = self.shadow.as_ref().is_some_and(|share| share.draw(stream.random));
        let changes = matches!(stream.request.method.as_str(), "POST" | "PUT" | "DELETE" | "PATCH");
        if !(enabled || shadow) || !changes {
            return Step::Continue;
        }
        let request = &stream.request;
        let source = source(request);
        let is_known = source == host_and_port(&request.authority)
            || self.origins.iter().any(|origin| origin.matches(source));
        match (source.is_empty(), is_known) {
            (true, _) => self.stats.missing_source_origin().inc(),
            (false, false) => self.stats.request_invalid().inc(),
            (false, true) => {
                self.stats.request_valid().inc();
                return Step::Continue;
            }
        }
        match enabled {
            true => Step::Respond(LocalReply::new(403, "Invalid origin", "csrf_origin_mismatch")),
            false => Step::Continue,
        }
    }
}

/// Where the request comes from: Origin, else Referer. A page that hides its origin has none.
fn source(request: &RequestHead) -> &[u8] {
    let referer = || request.headers.get(Known::REFERER).map(host_and_port);
    match request.headers.get(Known::ORIGIN) {
        Some(b"null") => b"",
        Some(origin) if !origin.is_empty() => host_and_port(origin),
        _ => referer().unwrap_or_default(),
    }
}

/// Host and port of a URI; any other text is taken as it is.
fn host_and_port(text: &[u8]) -> &[u8] {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let Some(rest) = scheme.and_then(|scheme| text.get(scheme.len()..)) else { return text };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    rest.get(..end).unwrap_or(rest)
}
