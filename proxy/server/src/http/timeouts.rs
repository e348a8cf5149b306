//! Which timeouts a request gets, and what it tells the upstream of them
//! (source/common/router/router.cc `FilterUtility::finalTimeout`).

use sixfold_core::hcm::RouterOptions;
use sixfold_core::headers::{Headers, Known};
use sixfold_core::retry::RetryPolicy;
use sixfold_core::route::Timeouts;
use sixfold_core::stream::Stream;
use std::time::Duration;

/// Timeouts of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestTimeouts {
    /// Whole response; `None` is off.
    pub(crate) global: Option<Duration>,
    /// Each attempt; `None` is off.
    pub(crate) per_try: Option<Duration>,
    /// `max_stream_duration` that the route, or the grpc-timeout header under it, gives.
    pub(crate) max_stream: Option<Duration>,
    /// The upstream gets a grpc-timeout header of what is left.
    grpc: bool,
}

impl RequestTimeouts {
    /// Decides them. With `steered` the headers that steer them are heeded and taken off the request.
    pub(crate) fn decide(
        route: &Timeouts,
        retry: Option<&RetryPolicy>,
        router: &RouterOptions,
        steered: bool,
        stream: &mut Stream,
    ) -> RequestTimeouts {
        let grpc = stream.request.is_grpc();
        let grpc_timeout = grpc.then(|| grpc_timeout(&stream.request.headers)).flatten();
        let mut out = RequestTimeouts {
            global: route.request,
            per_try: retry.and_then(|r| r.per_try_timeout).filter(|d| !d.is_zero()),
            max_stream: route.max_stream,
            grpc: false,
        };
        if let (true, Some(max)) = (grpc, route.grpc_timeout_header_max) {
            out.max_stream = cap(grpc_timeout, max, route.grpc_timeout_header_offset);
            out.grpc = grpc_timeout.is_some();
        } else if let (true, Some(max)) = (grpc, route.max_grpc) {
            out.global = cap(grpc_timeout, max, route.grpc_offset);
            out.grpc = grpc_timeout.is_some();
        }
        if steered {
            let respect_expected = router.respect_expected_timeout && stream.internal;
            out.steer(respect_expected, &mut stream.request.headers);
        }
        if out.global.is_some_and(|global| out.per_try.is_some_and(|per_try| per_try >= global)) {
            out.per_try = None;
        }
        out
    }

    fn steer(&mut self, respect_expected: bool, headers: &mut Headers) {
        let expected = milliseconds(headers, Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS);
        if let Some(expected) = expected.filter(|_| respect_expected) {
            self.global = Some(expected).filter(|d| !d.is_zero());
        } else if let Some(asked) = milliseconds(headers, Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
            self.global = Some(asked).filter(|d| !d.is_zero());
        }
        if let Some(asked) = milliseconds(headers, Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
            self.per_try = Some(asked).filter(|d| !d.is_zero());
        }
        headers.remove(Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
        headers.remove(Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    }

    /// Tells the upstream how long it has: `left` is what remains of the global timeout.
    pub(crate) fn announce(&self, left: Option<Duration>, suppress: bool, headers: &mut Headers) {
        let expected = match (left, self.per_try) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        headers.remove(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS);
        let Some(expected) = expected else { return };
        let millis = expected.as_millis().max(1);
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(millis);
        if !suppress {
            headers.append(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, digits.as_bytes());
        }
        if self.grpc {
            let mut value = digits.as_bytes().to_vec();
            value.push(b'm');
            headers.set(Known::GRPC_TIMEOUT, &value);
        }
    }
}

/// A grpc-timeout under a cap (zero is none) and less an offset.
fn cap(asked: Option<Duration>, max: Duration, offset: Option<Duration>) -> Option<Duration> {
    let asked = asked.filter(|d| !d.is_zero())?;
    let less = match offset {
        Some(offset) if offset < asked => asked - offset,
        _ => asked,
    };
    Some(if max.is_zero() { less } else { less.min(max) })
}

fn milliseconds(headers: &Headers, name: Known) -> Option<Duration> {
    headers.get_str(name)?.parse().ok().map(Duration::from_millis)
}

/// The grpc-timeout header (gRPC over HTTP/2): up to eight digits and a unit.
pub(crate) fn grpc_timeout(headers: &Headers) -> Option<Duration> {
    let text = headers.get_str(Known::GRPC_TIMEOUT)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_in_every_unit_and_garbage_is_not() {
        let read = |text: &str| {
            let mut headers = Headers::new();
            headers.append(Known::GRPC_TIMEOUT, text.as_bytes());
            grpc_timeout(&headers)
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "S", "123456789S", "5", "-5S", "5x"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_upstream_hears_the_shorter_timeout() {
        let mut headers = Headers::new();
        let timeouts = RequestTimeouts { per_try: Some(Duration::from_secs(2)), ..Default::default() };
        timeouts.announce(Some(Duration::from_secs(15)), false, &mut headers);
        assert_eq!(headers.get(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS), Some(&b"2000"[..]));
        timeouts.announce(Some(Duration::from_millis(700)), false, &mut headers);
        assert_eq!(headers.get(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS), Some(&b"700"[..]));
    }
}
