//! Headers that tell how far a limit is (draft-polli-ratelimit-headers-03;
//! source/extensions/filters/common/ratelimit_headers, source/extensions/filters/http/ratelimit/ratelimit_headers.cc).

use sixfold_core::headers::Headers;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use sixfold_xds_api::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use std::fmt::Write;

/// Seconds of a unit; 0 of one that is none.
fn window(unit: i32) -> u32 {
    match Unit::try_from(unit).unwrap_or(Unit::Unknown) {
        Unit::Unknown => 0,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 60 * 60,
        Unit::Day => 24 * 60 * 60,
        Unit::Week => 7 * 24 * 60 * 60,
        Unit::Month => 30 * 24 * 60 * 60,
        Unit::Year => 365 * 24 * 60 * 60,
    }
}

/// Adds `x-ratelimit-limit`, `-remaining` and `-reset` of the limit that is nearest, with all others as quotas.
pub(super) fn tell_limit(statuses: &[DescriptorStatus], headers: &mut Headers) {
    let mut nearest: Option<(&RateLimit, &DescriptorStatus)> = None;
    let mut quotas = String::new();
    for status in statuses {
        let Some(limit) = &status.current_limit else { continue };
        if nearest.is_none_or(|(_, nearest)| status.limit_remaining < nearest.limit_remaining) {
            nearest = Some((limit, status));
        }
        let window = window(limit.unit);
        if window > 0 {
            // Writing to a text can't fail.
            let _ = write!(quotas, ", {};w={window}", limit.requests_per_unit);
            if !limit.name.is_empty() {
                let _ = write!(quotas, ";name=\"{}\"", printable(&limit.name));
            }
        }
    }
    let Some((limit, status)) = nearest else { return };
    headers.set("x-ratelimit-limit", format!("{}{quotas}", limit.requests_per_unit).as_bytes());
    headers.set("x-ratelimit-remaining", status.limit_remaining.to_string().as_bytes());
    headers.set("x-ratelimit-reset", until_reset(status).to_string().as_bytes());
}

/// Adds `retry-after` by the last of the limits that the request is beyond, unless the service has said it: a second at least.
pub(super) fn tell_retry(statuses: &[DescriptorStatus], headers: &mut Headers) {
    let beyond = statuses.iter().filter(|status| status.code == Code::OverLimit as i32);
    if let Some(wait) = beyond.map(until_reset).max() {
        headers.set_if_absent("retry-after", wait.max(1).to_string().as_bytes());
    }
}

fn until_reset(status: &DescriptorStatus) -> i64 {
    status.duration_until_reset.as_ref().map_or(0, |time| time.seconds)
}

/// A name as a header can say it.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '_' }).collect()
}
