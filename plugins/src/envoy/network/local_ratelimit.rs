//! Envoy's network filter local_ratelimit (source/extensions/filters/network/local_ratelimit): new connections of a chain
//! take a token each, and are closed where there is none.

use crate::shared::token_bucket::{Rate, TokenBucket};
use prost::Name;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::listener::{Closing, ConnectionFilter, FilterStep};
use sixfold_core::metrics::scope;
use sixfold_core::plugin::{BuildContext, NetworkFilterFactory, Slot};
use sixfold_core::stream::Stream;
use sixfold_xds_api::pb::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit as Config;
use sixfold_xds_api::values::{required, runtime_flag};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

sixfold_core::stat_block! {
    /// Statistics under `local_rate_limit.STAT_PREFIX.`.
    pub struct LimitStats { counters: [rate_limited], gauges: [], histograms: [] }
}

pub(crate) fn factory() -> NetworkFilterFactory {
    NetworkFilterFactory::new(Config::full_name(), |bytes, context| {
        Ok(Arc::new(Limit::new(&crate::envoy::decode(bytes)?, context)?))
    })
}

struct Limit {
    bucket: Arc<TokenBucket>,
    enabled: bool,
    stats: LimitStats,
}

impl Limit {
    fn new(config: &Config, context: &BuildContext) -> Result<Limit, ConfigError> {
        let Config { stat_prefix, token_bucket, runtime_enabled, share_key } = config;
        let value = required(token_bucket, "token_bucket")?;
        let rate = Rate::of_message(value).in_key("token_bucket")?;
        let fresh = || rate.bucket(Instant::now());
        let bucket = match share_key.as_str() {
            "" => Arc::new(fresh()),
            // Only those with one key and the same settings share it.
            key => context.shared.get_or_insert(&format!("local_ratelimit {key} {value:?}"), fresh),
        };
        let enabled = runtime_flag(&context.runtime, runtime_enabled);
        let stats = LimitStats::new(&context.metrics, &scope(&["local_rate_limit", stat_prefix]));
        Ok(Limit { bucket, enabled, stats })
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bucket.fmt(f)
    }
}

impl ConnectionFilter for Limit {
    fn on_new_connection(&self, _: &mut Stream, _: Slot) -> FilterStep {
        if !self.enabled || self.bucket.take(1.0, Instant::now()) {
            return FilterStep::Continue;
        }
        self.stats.rate_limited().inc();
        FilterStep::Close(Closing { reason: "local_ratelimit_close", ..Closing::default() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{context, read, stream};
    use prost::Message;
    use sixfold_core::plugin::Scope;

    fn built(config: &str, context: &BuildContext) -> Result<Arc<dyn ConnectionFilter>, String> {
        factory().build(&read::<Config>(config).encode_to_vec(), context).map_err(|error| error.to_string())
    }

    /// How many of five connections are let in.
    fn let_in(filter: &dyn ConnectionFilter) -> usize {
        let slot = Slot::new(0, Scope::Route);
        let admit =
            |_: &i32| matches!(filter.on_new_connection(&mut stream("/", &[]), slot), FilterStep::Continue);
        (0..5).filter(admit).count()
    }

    #[test]
    fn connections_beyond_the_tokens_are_closed_and_counted() {
        let (context, bucket) = (context(), "token_bucket: {max_tokens: 2, fill_interval: 3600s}");
        let filter = built(&format!("{{stat_prefix: s, {bucket}}}"), &context).unwrap();
        assert_eq!((let_in(&*filter), let_in(&*filter)), (2, 0));
        assert_eq!(context.metrics.sum("local_rate_limit.s.", "rate_limited"), 8);
        let off = format!(
            "{{stat_prefix: s, {bucket}, runtime_enabled: {{default_value: false, runtime_key: x}}}}"
        );
        assert_eq!(let_in(&*built(&off, &context).unwrap()), 5);
    }

    #[test]
    fn a_bucket_may_be_shared_by_its_key() {
        let (context, of) = (context(), |max: u32, key: &str| {
            format!(
                "{{stat_prefix: s, share_key: '{key}', token_bucket: {{max_tokens: {max}, fill_interval: 3600s}}}}"
            )
        });
        let filters: Vec<_> = [(3, "a"), (3, "a"), (2, "a"), (3, "")]
            .iter()
            .map(|(max, key)| built(&of(*max, key), &context).unwrap())
            .collect();
        let let_in: Vec<usize> = filters.iter().map(|filter| let_in(&**filter)).collect();
        assert_eq!(let_in, [3, 0, 2, 3]);
    }

    #[test]
    fn a_bucket_is_needed() {
        let refused = |config: &str| built(config, &context()).err().unwrap();
        assert_eq!(refused("stat_prefix: s"), "token_bucket: is missing");
        assert_eq!(
            refused("{stat_prefix: s, token_bucket: {max_tokens: 1, fill_interval: 0.01s}}"),
            "token_bucket.fill_interval: must be at least 50ms"
        );
        assert_eq!(
            refused("{stat_prefix: s, token_bucket: {max_tokens: 1, tokens_per_fill: 0, fill_interval: 1s}}"),
            "token_bucket.tokens_per_fill: must be greater than 0"
        );
    }
}
