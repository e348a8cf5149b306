//! Which timeouts a request gets, and what it tells the upstream of them
//! (source/common/router/router.cc `FilterUtility::finalTimeout`).

use super::clock::Expired;
use sixfold_core::hcm::{ConnectionTimeouts, RouterOptions};
use sixfold_core::headers::{Headers, Known, KnownSet};
use sixfold_core::message::RequestHead;
use sixfold_core::retry::RetryPolicy;
use sixfold_core::route::Timeouts;
use sixfold_core::stream::Stream;
use std::time::Duration;

/// The headers by which a request steers its timeouts.
const STEERING: KnownSet = KnownSet::of(&[
    Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS,
    Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS,
    Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS,
    Known::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT,
]);
/// A bound that has passed when it is set.
const AT_ONCE: Duration = Duration::from_nanos(1);
/// The largest number of a grpc-timeout header, eight digits.
const MAX_GRPC_TIMEOUT: u128 = 99_999_999;

/// How long a head may take where no limit of a stream is set. Envoy would hold it for ever.
const HEAD_TIME: Duration = Duration::from_secs(300);

/// From the first byte of a head to its last: `request_headers_timeout`, and a limit of ours where nothing else bounds the
/// stream.
pub(super) fn head(timeouts: &ConnectionTimeouts) -> Option<Duration> {
    let is_set = |limit: &Option<Duration>| limit.is_some_and(|d| !d.is_zero());
    let others = [timeouts.stream_idle, timeouts.request, timeouts.max_stream];
    timeouts.request_headers.filter(|d| !d.is_zero()).or((!others.iter().any(is_set)).then_some(HEAD_TIME))
}

/// The limit of a stream that passes first while its head is under way.
pub(super) fn first_of_head(timeouts: &ConnectionTimeouts) -> (Expired, Duration) {
    let limits = [
        (Expired::Head, head(timeouts)),
        (Expired::Idle, timeouts.stream_idle),
        (Expired::Request, timeouts.request),
        (Expired::MaxStream, timeouts.max_stream),
    ];
    let set = limits.into_iter().filter_map(|(which, limit)| Some((which, limit.filter(|d| !d.is_zero())?)));
    set.min_by_key(|(_, limit)| *limit).unwrap_or((Expired::Head, HEAD_TIME))
}

/// What bounds a stream on this route (source/common/http/conn_manager_impl.cc `refreshDurationTimeout`): its
/// grpc-timeout header where the route heeds that, else the route's or the connection manager's
/// `max_stream_duration`. A gRPC upstream is told.
pub(super) fn bound_stream(
    route: &Timeouts,
    of_connection: Option<Duration>,
    request: &mut RequestHead,
) -> Option<Duration> {
    let asked = route.grpc_timeout_header_max.and_then(|max| Some((grpc_timeout(&request.headers)?, max)));
    let limit = match asked {
        None => route.max_stream.or(of_connection).filter(|d| !d.is_zero())?,
        Some((asked, max)) => {
            let capped = if max.is_zero() { asked } else { asked.min(max) };
            capped.saturating_sub(route.grpc_timeout_header_offset.unwrap_or_default())
        }
    };
    if route.by_stream && request.is_grpc() {
        tell_grpc(limit, &mut request.headers);
    }
    Some(limit.max(AT_ONCE))
}

/// Timeouts of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RequestTimeouts {
    /// Whole response; `None` is off.
    pub(crate) global: Option<Duration>,
    /// Each attempt; `None` is off.
    pub(crate) per_try: Option<Duration>,
    /// An attempt that is slow goes on beside another one.
    pub(crate) hedge: bool,
    /// The upstream gets a grpc-timeout header of what is left.
    grpc: bool,
}

impl RequestTimeouts {
    /// Decides them. With `steered` the headers that steer them are heeded and taken off the request.
    pub(crate) fn decide(
        route: &Timeouts,
        retry: Option<&RetryPolicy>,
        router: &RouterOptions,
        hedge: bool,
        steered: bool,
        stream: &mut Stream,
    ) -> RequestTimeouts {
        let mut out = RequestTimeouts {
            global: route.request,
            per_try: retry.and_then(|r| r.per_try_timeout).filter(|d| !d.is_zero()),
            hedge,
            grpc: false,
        };
        if let (false, Some(max)) = (route.by_stream, route.max_grpc)
            && stream.request.is_grpc()
        {
            out.global = cap(grpc_timeout(&stream.request.headers), max, route.grpc_offset);
            out.grpc = true;
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
        // Few requests have any.
        if !headers.may_have(&STEERING) {
            return;
        }
        let expected = milliseconds(headers, Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS);
        if let Some(expected) = expected.filter(|_| respect_expected) {
            self.global = Some(expected).filter(|d| !d.is_zero());
        } else if let Some(asked) = milliseconds(headers, Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS) {
            self.global = Some(asked).filter(|d| !d.is_zero());
        }
        if let Some(asked) = milliseconds(headers, Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS) {
            self.per_try = Some(asked).filter(|d| !d.is_zero());
        }
        match headers.get(Known::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT) {
            Some(b"true") => self.hedge = true,
            Some(b"false") => self.hedge = false,
            _ => {}
        }
        headers.remove(Known::X_ENVOY_HEDGE_ON_PER_TRY_TIMEOUT);
        headers.remove(Known::X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS);
        headers.remove(Known::X_ENVOY_UPSTREAM_RQ_PER_TRY_TIMEOUT_MS);
    }

    /// Whether an attempt goes on when this deadline has passed.
    pub(crate) fn hedges(&self, which: Expired) -> bool {
        self.hedge && matches!(which, Expired::PerTry | Expired::PerTryIdle)
    }

    /// Tells a mirror how long it has: it gets no other attempt.
    pub(super) fn announce_to_mirror(&self, suppress: bool, headers: &mut Headers) {
        RequestTimeouts { per_try: None, grpc: false, ..*self }.announce(self.global, suppress, headers);
    }

    /// Tells the upstream how long it has: `left` is what remains of the global timeout.
    pub(crate) fn announce(&self, left: Option<Duration>, suppress: bool, headers: &mut Headers) {
        // An attempt that is hedged may take all the time there is.
        let expected = match (left, self.per_try.filter(|_| !self.hedge)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        headers.remove(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS);
        let Some(expected) = expected else { return };
        // A shorter number is printed faster.
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(millis);
        if !suppress {
            headers.append(Known::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, digits.as_bytes());
        }
        if self.grpc {
            tell_grpc(expected, headers);
        }
    }
}

/// A grpc-timeout less an offset that leaves something, under a cap; zero, or no header, is no limit.
fn cap(asked: Option<Duration>, max: Duration, offset: Option<Duration>) -> Option<Duration> {
    let asked = asked.unwrap_or_default();
    let less = match offset {
        Some(offset) if offset < asked => asked - offset,
        _ => asked,
    };
    let limit = if max.is_zero() || (!less.is_zero() && less < max) { less } else { max };
    Some(limit).filter(|d| !d.is_zero())
}

/// Writes a grpc-timeout in the finest unit that has room (source/common/grpc/common.cc `toGrpcTimeout`).
fn tell_grpc(limit: Duration, headers: &mut Headers) {
    let mut number = limit.as_millis();
    let mut unit = b'm';
    for (next, per) in [(b'S', 1000), (b'M', 60), (b'H', 60)] {
        if number > MAX_GRPC_TIMEOUT {
            (number, unit) = (number / per, next);
        }
    }
    let mut value = itoa::Buffer::new().format(number.min(MAX_GRPC_TIMEOUT)).as_bytes().to_vec();
    value.push(unit);
    headers.set(Known::GRPC_TIMEOUT, &value);
}

fn milliseconds(headers: &Headers, name: Known) -> Option<Duration> {
    headers.get_str(name)?.parse().ok().map(Duration::from_millis)
}

/// The grpc-timeout header (gRPC over HTTP/2): up to eight digits and a unit. What is finer than milliseconds is rounded up, as in
/// Envoy: they are what the upstream is told in.
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
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
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
        assert_eq!(
            (read("1500u"), read("7n")),
            (Some(Duration::from_millis(2)), Some(Duration::from_millis(1)))
        );
        for bad in ["", "S", "123456789S", "5", "-5S", "5x"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    fn grpc_request(timeout: Option<&str>) -> RequestHead {
        let mut request = RequestHead::default();
        request.headers.append(Known::CONTENT_TYPE, b"application/grpc");
        if let Some(timeout) = timeout {
            request.headers.append(Known::GRPC_TIMEOUT, timeout.as_bytes());
        }
        request
    }

    #[test]
    fn a_grpc_timeout_bounds_the_stream_and_goes_on_in_milliseconds() {
        let millis = Duration::from_millis;
        let bound = |sent: Option<&str>, max: Option<u64>, offset: Option<u64>| {
            let route = Timeouts {
                by_stream: true,
                max_stream: Some(millis(7)),
                grpc_timeout_header_max: max.map(millis),
                grpc_timeout_header_offset: offset.map(millis),
                ..Timeouts::default()
            };
            let mut request = grpc_request(sent);
            let limit = bound_stream(&route, None, &mut request);
            (limit, request.headers.get_str(Known::GRPC_TIMEOUT).map(str::to_owned))
        };
        // It went on as it was where nothing was taken off.
        assert_eq!(bound(Some("1S"), Some(0), None), (Some(millis(1000)), Some("1000m".into())));
        assert_eq!(bound(Some("1S"), Some(5000), None), (Some(millis(1000)), Some("1000m".into())));
        assert_eq!(bound(Some("1S"), Some(300), None), (Some(millis(300)), Some("300m".into())));
        assert_eq!(bound(Some("1S"), Some(0), Some(100)), (Some(millis(900)), Some("900m".into())));
        // Nothing is left: it is over at once.
        assert_eq!(bound(Some("1S"), Some(0), Some(1000)), (Some(AT_ONCE), Some("0m".into())));
        // Without the header, or without leave to heed it, the route's own bound is in force.
        assert_eq!(bound(None, Some(0), None), (Some(millis(7)), Some("7m".into())));
        assert_eq!(bound(Some("1S"), None, None), (Some(millis(7)), Some("7m".into())));
    }

    #[test]
    fn without_a_bound_of_the_stream_the_connection_managers_holds_and_nobody_is_told() {
        let mut request = grpc_request(Some("1S"));
        let of_connection = Some(Duration::from_secs(9));
        assert_eq!(bound_stream(&Timeouts::default(), of_connection, &mut request), of_connection);
        assert_eq!(request.headers.get_str(Known::GRPC_TIMEOUT), Some("1S"));
        let off = Timeouts { max_stream: Some(Duration::ZERO), by_stream: true, ..Timeouts::default() };
        assert_eq!(bound_stream(&off, of_connection, &mut request), None);
    }

    #[test]
    fn the_old_cap_holds_for_requests_without_the_header_too() {
        let (second, none) = (Duration::from_secs(1), Duration::ZERO);
        assert_eq!(cap(None, second, None), Some(second));
        assert_eq!(cap(None, none, None), None);
        assert_eq!(cap(Some(second * 2), second, Some(second / 2)), Some(second));
        assert_eq!(
            cap(Some(second), none, Some(second)),
            Some(second),
            "an offset that leaves nothing is ignored"
        );
    }

    #[test]
    fn long_grpc_timeouts_take_a_coarser_unit() {
        let tell = |seconds| {
            let mut headers = Headers::new();
            tell_grpc(Duration::from_secs(seconds), &mut headers);
            headers.get_str(Known::GRPC_TIMEOUT).map(str::to_owned)
        };
        assert_eq!(tell(99_999).as_deref(), Some("99999000m"));
        assert_eq!(tell(100_000).as_deref(), Some("100000S"));
        assert_eq!(tell(100_000_000).as_deref(), Some("1666666M"));
        assert_eq!(tell(u64::MAX).as_deref(), Some("99999999H"));
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
