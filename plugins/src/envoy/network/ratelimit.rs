//! Envoy's network filter ratelimit (source/extensions/filters/network/ratelimit/ratelimit.cc): a service says whether a
//! connection is within its limits, when it is established.

use crate::envoy::service::{SHOULD_RATE_LIMIT, Service};
use prost::{Message, Name};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::format::Format;
use sixfold_core::listener::{Closing, ConnectionFilter, FilterStep, Resume};
use sixfold_core::metrics::{self, GaugeGuard};
use sixfold_core::plugin::{BuildContext, NetworkFilterFactory, Slot};
use sixfold_core::runtime::Fraction;
use sixfold_core::stream::Stream;
use sixfold_xds_api::any::struct_to_json;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use sixfold_xds_api::pb::envoy::extensions::filters::network::ratelimit::v3::RateLimit as ProtoLimit;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use sixfold_xds_api::values::{Result, not_empty};
use sixfold_xds_api::{destructure, format};
use std::sync::Arc;

/// Whose dynamic metadata it is what the service says.
const NAME: &str = "envoy.filters.network.ratelimit";

sixfold_core::stat_block! {
    /// Statistics under `ratelimit.PREFIX.`.
    pub struct TcpLimitStats {
        counters: [total, ok, over_limit, error, failure_mode_allowed, cx_closed],
        gauges: [active],
        histograms: [],
    }
}

pub(crate) fn factory() -> NetworkFilterFactory {
    NetworkFilterFactory::new(ProtoLimit::full_name(), |config, context| {
        let config = crate::envoy::decode::<ProtoLimit>(config)?;
        Ok(Arc::new(RateLimit(Arc::new(Settings::new(&config, context)?))))
    })
}

struct RateLimit(Arc<Settings>);

struct Settings {
    service: Service,
    /// [`NAME`], whose metadata it is.
    namespace: Arc<str>,
    domain: String,
    descriptors: Box<[Descriptor]>,
    denies_on_error: bool,
    enabled: Fraction,
    enforced: Fraction,
    stats: TcpLimitStats,
}

/// Entries of one descriptor: keys, and what gives the values.
type Descriptor = Box<[(String, Format)]>;

impl std::fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(NAME)
    }
}

impl Settings {
    fn new(value: &ProtoLimit, context: &BuildContext) -> Result<Settings> {
        let ProtoLimit { stat_prefix, domain, descriptors, timeout, failure_mode_deny, rate_limit_service } =
            value;
        let prefix = metrics::scope(&["ratelimit", not_empty(stat_prefix, "stat_prefix")?]);
        if descriptors.is_empty() {
            return Err(ConfigError::field("descriptors", "must not be empty"));
        }
        let each = descriptors.iter().enumerate().map(|(index, value)| descriptor(value).in_index(index));
        let share = |key: &str| Fraction::new(context.runtime.integer(key, 100), 100);
        Ok(Settings {
            service: Service::of_rate_limits(rate_limit_service, timeout, context)?,
            namespace: NAME.into(),
            domain: not_empty(domain, "domain")?.to_owned(),
            descriptors: collect(each).in_key("descriptors")?.into(),
            denies_on_error: *failure_mode_deny,
            enabled: share("ratelimit.tcp_filter_enabled"),
            enforced: share("ratelimit.tcp_filter_enforcing"),
            stats: TcpLimitStats::new(&context.metrics, &prefix),
        })
    }

    /// Does what the service says, or lets it be known that it has not.
    fn conclude(&self, answer: Option<RateLimitResponse>, stream: &mut Stream) -> FilterStep {
        let stats = &self.stats;
        // What is not beyond a limit is within it, as in Envoy.
        let limited = answer.as_ref().map(|answer| answer.overall_code == Code::OverLimit as i32);
        let metadata = answer.and_then(|answer| answer.dynamic_metadata).map(struct_to_json);
        if let Some(serde_json::Value::Object(values)) = metadata {
            let entries = values.into_iter().map(|(key, value)| (self.namespace.clone(), key.into(), value));
            stream.metadata.extend(entries);
        }
        match limited {
            Some(false) => {
                stats.ok().inc();
                FilterStep::Continue
            }
            Some(true) => {
                stats.over_limit().inc();
                if !self.enforced.draw(fastrand::u64(..)) {
                    return FilterStep::Continue;
                }
                self.close("ratelimit_close_over_limit")
            }
            None => {
                stats.error().inc();
                if self.denies_on_error {
                    return self.close("ratelimit_error_failure_mode_connection_close");
                }
                stats.failure_mode_allowed().inc();
                FilterStep::Continue
            }
        }
    }

    fn close(&self, reason: &'static str) -> FilterStep {
        self.stats.cx_closed().inc();
        FilterStep::Close(Closing { reason, ..Closing::default() })
    }
}

fn descriptor(value: &RateLimitDescriptor) -> Result<Descriptor> {
    destructure!(RateLimitDescriptor { entries } refusing { limit, hits_addend, is_negative_hits } = value);
    if entries.is_empty() {
        return Err(ConfigError::field("entries", "must not be empty"));
    }
    let each = entries.iter().enumerate().map(|(index, Entry { key, value })| {
        let entry = || Ok((not_empty(key, "key")?.to_owned(), format::text(value).in_key("value")?));
        entry().in_index(index)
    });
    collect(each).in_key("entries").map(Vec::into_boxed_slice)
}

impl ConnectionFilter for RateLimit {
    fn on_new_connection(&self, connection: &mut Stream, _: Slot) -> FilterStep {
        let settings = self.0.clone();
        if !settings.enabled.draw(fastrand::u64(..)) {
            return FilterStep::Continue;
        }
        let entry = |(key, format): &(String, Format)| {
            let mut value = Vec::new();
            format.write_body(connection, &mut value);
            Entry { key: key.clone(), value: String::from_utf8_lossy(&value).into_owned() }
        };
        let descriptors = settings.descriptors.iter().map(|entries| RateLimitDescriptor {
            entries: entries.iter().map(entry).collect(),
            ..RateLimitDescriptor::default()
        });
        let request = RateLimitRequest {
            domain: settings.domain.clone(),
            descriptors: descriptors.collect(),
            hits_addend: 0,
        };
        let request = request.encode_to_vec();
        let (client, headers) = (settings.service.client.clone(), settings.service.headers(connection));
        settings.stats.total().inc();
        FilterStep::wait(async move {
            let answer = {
                let _active: GaugeGuard<'_> = settings.stats.active().raise();
                client.unary(SHOULD_RATE_LIMIT, headers, &request).await
            };
            let answer = answer.ok().and_then(|message| RateLimitResponse::decode(&*message).ok());
            Box::new(move |stream: &mut Stream| settings.conclude(answer, stream)) as Resume
        })
    }
}
