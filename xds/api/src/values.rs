//! Values that many messages share: durations, shares, addresses, sources of data.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::pb::envoy::config::core::v3::{
    Address, CidrRange, DataSource, Pipe, RuntimeDouble, RuntimeFeatureFlag, RuntimeFractionalPercent,
    RuntimeUInt32, SocketAddress, TcpKeepalive as ProtoKeepalive, address, data_source, socket_address,
};
use crate::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};
use crate::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use crate::pb::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value, UInt64Value};
use ipnet::IpNet;
use prost::{Name, UnknownEnumValue};
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::headers::HeaderName;
use sixfold_core::regex::Regex;
use sixfold_core::runtime::{Fraction, Runtime};

use crate::refuse;
use crate::schema::TypeSchema;

pub type Result<T> = std::result::Result<T, ConfigError>;

/// Seconds of the longest `google.protobuf.Duration`, ten thousand years.
pub(crate) const LONGEST_SECONDS: u64 = 315_576_000_000;

/// A duration that may be zero but not negative, nor beyond what `google.protobuf.Duration` may hold: ten times it, or it from now
/// on, is a time as well.
pub fn duration(value: &ProtoDuration) -> Result<Duration> {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(value.seconds), u32::try_from(value.nanos)) else {
        return Err(ConfigError::new("must not be negative"));
    };
    if nanos >= 1_000_000_000 {
        return Err(ConfigError::new("must have less than 1000000000 nanos"));
    }
    let duration = Duration::new(seconds, nanos);
    if duration > Duration::from_secs(LONGEST_SECONDS) {
        return Err(ConfigError::new(format!("must be at most {LONGEST_SECONDS}s")));
    }
    Ok(duration)
}

/// The duration of a field, if it is given.
pub fn optional_duration(value: &Option<ProtoDuration>, field: &str) -> Result<Option<Duration>> {
    value.as_ref().map(duration).transpose().in_key(field)
}

/// The duration of a field, else its default.
pub fn duration_or(value: &Option<ProtoDuration>, default: Duration, field: &str) -> Result<Duration> {
    Ok(optional_duration(value, field)?.unwrap_or(default))
}

/// The duration of a field for which zero means off; `default` when it is not given.
pub fn timeout_or(
    value: &Option<ProtoDuration>,
    default: Option<Duration>,
    field: &str,
) -> Result<Option<Duration>> {
    Ok(match optional_duration(value, field)? {
        Some(given) => Some(given).filter(|given| !given.is_zero()),
        None => default,
    })
}

/// A duration that must be longer than nothing.
pub fn positive_duration(value: &Option<ProtoDuration>, default: Duration, field: &str) -> Result<Duration> {
    let value = duration_or(value, default, field)?;
    if value.is_zero() {
        return Err(ConfigError::field(field, "must be longer than 0s"));
    }
    Ok(value)
}

/// The least and the most that is waited before a retry: the most is ten times the least where it is not given.
///
/// # Errors
/// No least, none that is longer than nothing, a most that is shorter.
pub fn back_off(
    base_interval: &Option<ProtoDuration>,
    max_interval: &Option<ProtoDuration>,
) -> Result<(Duration, Duration)> {
    required(base_interval, "base_interval")?;
    let base = positive_duration(base_interval, Duration::ZERO, "base_interval")?;
    let max = duration_or(max_interval, base.saturating_mul(10), "max_interval")?;
    if max < base {
        return Err(ConfigError::field("max_interval", "must not be shorter than base_interval"));
    }
    Ok((base, max))
}

/// The value of a wrapper, else a default.
pub fn bool_or(value: &Option<BoolValue>, default: bool) -> bool {
    value.as_ref().map_or(default, |value| value.value)
}

/// The value of a wrapper, else a default.
pub fn u32_or(value: &Option<UInt32Value>, default: u32) -> u32 {
    value.as_ref().map_or(default, |value| value.value)
}

/// The value of a wrapper, else a default.
pub fn u64_or(value: &Option<UInt64Value>, default: u64) -> u64 {
    value.as_ref().map_or(default, |value| value.value)
}

/// A value of a wrapper that must lie in a range, else a default.
pub fn u32_in(
    value: &Option<UInt32Value>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
    field: &str,
) -> Result<u32> {
    let value = u32_or(value, default);
    if range.contains(&value) {
        return Ok(value);
    }
    let reason = match *range.end() {
        u32::MAX => format!("must be at least {}, not {value}", range.start()),
        end => format!("must be between {} and {end}, not {value}", range.start()),
    };
    Err(ConfigError::field(field, reason))
}

/// `per_connection_buffer_limit_bytes`. Zero means no limit to Envoy; here it is the default, since what peers hold
/// is always bounded.
pub fn buffer_limit(value: &Option<UInt32Value>, default: u32) -> usize {
    match u32_or(value, default) {
        0 => default as usize,
        limit => limit as usize,
    }
}

/// The enum value of a number.
pub fn enum_value<E: TryFrom<i32, Error = UnknownEnumValue>>(value: i32, field: &str) -> Result<E> {
    E::try_from(value).map_err(|_| ConfigError::field(field, format!("unknown enum value {value}")))
}

/// A port number.
pub fn port(value: u32, field: &str) -> Result<u16> {
    u16::try_from(value).map_err(|_| ConfigError::field(field, format!("{value} is no port number")))
}

/// A status code between 200 and 599.
pub fn status(value: u32, field: &str) -> Result<u16> {
    match u16::try_from(value) {
        Ok(status @ 200..=599) => Ok(status),
        _ => {
            Err(ConfigError::field(field, format!("must be a status code between 200 and 599, not {value}")))
        }
    }
}

/// A header name, in lower case as Envoy sends it.
pub fn header_name(name: &str, field: &str) -> Result<HeaderName> {
    HeaderName::new(&name.to_ascii_lowercase())
        .map_err(|_| ConfigError::field(field, format!("\"{name}\" is no header name")))
}

/// A text that must not be empty.
pub fn not_empty<'a>(text: &'a str, field: &str) -> Result<&'a str> {
    if text.is_empty() {
        return Err(ConfigError::field(field, "must not be empty"));
    }
    Ok(text)
}

/// What a field must have.
pub fn required<'a, T>(value: &'a Option<T>, field: &str) -> Result<&'a T> {
    value.as_ref().ok_or_else(|| ConfigError::field(field, "is missing"))
}

/// The member of a oneof of the message `M` that is given, as one of them must be.
///
/// # Errors
/// The names of the members.
pub fn one_of<'a, M: Name, T>(value: &'a Option<T>, oneof: &str) -> Result<&'a T> {
    let schema = || TypeSchema::message(&M::full_name());
    let missing =
        || schema().map_or_else(|| ConfigError::field(oneof, "is missing"), |of| of.missing_member(oneof));
    value.as_ref().ok_or_else(missing)
}

/// Numerator and denominator of a share.
pub fn fractional_percent(value: &FractionalPercent) -> Result<(u64, u64)> {
    let denominator = match enum_value(value.denominator, "denominator")? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok((u64::from(value.numerator), denominator))
}

/// A share whose runtime key, if there is a share by it, takes the default's place
/// (source/common/runtime/runtime_impl.cc `featureEnabled`).
pub fn fraction(runtime: &Runtime, key: &str, default: &FractionalPercent) -> Result<Fraction> {
    let (numerator, denominator) = fractional_percent(default).in_key("default_value")?;
    let (numerator, denominator) = runtime.share(key).unwrap_or((numerator, denominator));
    Ok(Fraction::new(numerator, denominator))
}

/// See [`fraction`].
pub fn runtime_fraction(runtime: &Runtime, value: &RuntimeFractionalPercent) -> Result<Fraction> {
    fraction(runtime, &value.runtime_key, required(&value.default_value, "default_value")?)
}

/// A percentage as a whole number, cut as Envoy cuts it (`ProtobufPercentHelper::convertPercent`), which makes 28 of 29.
pub fn whole_percent(percent: f64) -> u64 {
    (100.0 * (percent / 100.0)) as u64
}

/// Whether something is on: it is unless its flag says otherwise, or the runtime key of the flag does.
pub fn runtime_flag(runtime: &Runtime, value: &Option<RuntimeFeatureFlag>) -> bool {
    value.as_ref().is_none_or(|flag| runtime.flag(&flag.runtime_key, bool_or(&flag.default_value, true)))
}

/// A number that a runtime key may replace.
pub fn runtime_double(runtime: &Runtime, value: &Option<RuntimeDouble>, default: f64) -> f64 {
    value.as_ref().map_or(default, |value| runtime.number(&value.runtime_key, value.default_value))
}

/// A whole number that a runtime key may replace.
pub fn runtime_integer(runtime: &Runtime, value: &RuntimeUInt32) -> u64 {
    runtime.integer(&value.runtime_key, value.default_value.into())
}

/// A range of addresses.
pub fn cidr(range: &CidrRange) -> Result<IpNet> {
    let address: IpAddr = range.address_prefix.parse().map_err(|_| {
        ConfigError::field("address_prefix", format!("\"{}\" is no IP address", range.address_prefix))
    })?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let given = u32_or(&range.prefix_len, 0);
    if given > 128 {
        return Err(ConfigError::field("prefix_len", "must be at most 128"));
    }
    // Envoy cuts what is too long for an IPv4 address (network/cidr_range.cc).
    let length = u8::try_from(given.min(longest)).ok();
    let net = length.and_then(|length| IpNet::new(address, length).ok());
    net.map(|net| net.trunc()).ok_or_else(|| ConfigError::field("prefix_len", "is too long for the address"))
}

/// Ranges of addresses.
pub fn cidrs(ranges: &[CidrRange], field: &str) -> Result<Vec<IpNet>> {
    collect(ranges.iter().enumerate().map(|(index, range)| cidr(range).in_index(index))).in_key(field)
}

/// Where something listens or is reached.
pub enum Endpoint {
    /// Host (address or name) and port.
    Socket(String, u16),
    /// A unix socket.
    Pipe(String),
}

/// The address of a listener or endpoint.
pub fn address(value: &Option<Address>, field: &str) -> Result<Endpoint> {
    let address = required(value, field)?;
    address_value(address).in_key(field)
}

fn address_value(value: &Address) -> Result<Endpoint> {
    match one_of::<Address, _>(&value.address, "address")? {
        address::Address::SocketAddress(socket) => socket_address(socket).in_key("socket_address"),
        address::Address::Pipe(Pipe { path, mode }) => {
            refuse!(mode);
            Ok(Endpoint::Pipe(not_empty(path, "pipe.path")?.to_owned()))
        }
        address::Address::EnvoyInternalAddress(_) => {
            Err(ConfigError::field("envoy_internal_address", "is not supported"))
        }
    }
}

fn socket_address(value: &SocketAddress) -> Result<Endpoint> {
    let SocketAddress {
        protocol,
        address,
        resolver_name,
        // Listeners ask for it.
        ipv4_compat: _,
        network_namespace_filepath,
        port_specifier,
    } = value;
    refuse!(protocol, resolver_name, network_namespace_filepath);
    let port_value = match required(port_specifier, "port_value")? {
        socket_address::PortSpecifier::PortValue(value) => port(*value, "port_value")?,
        socket_address::PortSpecifier::NamedPort(_) => {
            return Err(ConfigError::field("named_port", "is not supported"));
        }
    };
    Ok(Endpoint::Socket(not_empty(address, "address")?.to_owned(), port_value))
}

/// An address that must be an IP address with a port.
pub fn ip_address(value: &SocketAddress) -> Result<SocketAddr> {
    match socket_address(value)? {
        Endpoint::Socket(host, port) => match host.parse::<IpAddr>() {
            Ok(ip) => Ok(SocketAddr::new(ip, port)),
            Err(_) => Err(ConfigError::field("address", format!("\"{host}\" is no IP address"))),
        },
        Endpoint::Pipe(_) => Err(ConfigError::new("must be an IP address")),
    }
}

/// The largest file of a source of data.
const MAX_SOURCE_BYTES: usize = 32 << 20;

/// The bytes of a source of data: a file, inline, or an environment variable.
pub fn data_source(source: &DataSource) -> Result<Vec<u8>> {
    let DataSource { watched_directory: _, specifier } = source;
    match specifier {
        Some(data_source::Specifier::InlineString(text)) => Ok(text.clone().into_bytes()),
        Some(data_source::Specifier::InlineBytes(bytes)) => Ok(bytes.clone()),
        Some(data_source::Specifier::Filename(path)) => {
            sixfold_core::files::read_promptly(path.as_ref(), MAX_SOURCE_BYTES)
                .map_err(|error| ConfigError::field("filename", format!("{path}: {error}")))
        }
        Some(data_source::Specifier::EnvironmentVariable(name)) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|_| ConfigError::field("environment_variable", format!("{name} is not set"))),
        None => Err(ConfigError::new("one of filename, inline_string, inline_bytes is missing")),
    }
}

/// A source of data that must be text.
pub fn text_source(source: &DataSource) -> Result<String> {
    String::from_utf8(data_source(source)?).map_err(|_| ConfigError::new("is not UTF-8"))
}

/// An expression that must match the whole text.
pub fn full_regex(value: &RegexMatcher) -> Result<Regex> {
    let RegexMatcher { regex, engine_type: _ } = value;
    Regex::full(not_empty(regex, "regex")?).map_err(|error| ConfigError::field("regex", error.to_string()))
}

/// An expression and what takes the place of its matches.
pub fn regex_rewrite(value: &RegexMatchAndSubstitute) -> Result<(Regex, sixfold_core::regex::Rewrite)> {
    let RegexMatcher { regex, engine_type: _ } = required(&value.pattern, "pattern")?;
    let regex = Regex::search(not_empty(regex, "regex").in_key("pattern")?)
        .map_err(|error| ConfigError::field("pattern.regex", error.to_string()))?;
    let rewrite = sixfold_core::regex::Rewrite::new(&value.substitution, regex.groups())
        .map_err(|reason| ConfigError::field("substitution", reason))?;
    Ok((regex, rewrite))
}

/// TCP keep-alive; an empty message takes the system's defaults.
pub fn tcp_keepalive(value: &Option<ProtoKeepalive>) -> Option<sixfold_core::cluster::TcpKeepalive> {
    let value = value.as_ref()?;
    let seconds =
        |value: &Option<UInt32Value>| value.as_ref().map(|v| Duration::from_secs(u64::from(v.value)));
    Some(sixfold_core::cluster::TcpKeepalive {
        time: seconds(&value.keepalive_time),
        interval: seconds(&value.keepalive_interval),
        probes: value.keepalive_probes.as_ref().map(|probes| probes.value),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn shares_follow_runtime_keys() {
        let half = FractionalPercent { numerator: 50, denominator: 0 };
        let share = |fraction: Fraction| (0..1_000_000u64).filter(|random| fraction.draw(*random)).count();
        let runtime = Runtime::new(BTreeMap::from([
            ("ten".to_owned(), serde_json::json!(10)),
            ("promille".to_owned(), serde_json::json!({"numerator": 10, "denominator": "TEN_THOUSAND"})),
        ]));
        assert_eq!(share(fraction(&runtime, "", &half).unwrap()), 500_000);
        assert_eq!(share(fraction(&runtime, "absent", &half).unwrap()), 500_000);
        assert_eq!(share(fraction(&runtime, "ten", &half).unwrap()), 100_000);
        assert_eq!(share(fraction(&runtime, "promille", &half).unwrap()), 1000);
    }

    #[test]
    fn flags_follow_runtime_keys_and_are_on_by_default() {
        let runtime = Runtime::new(BTreeMap::from([("off".to_owned(), serde_json::json!(false))]));
        let is_on = |key: &str, default: Option<bool>| {
            let default_value = default.map(|value| BoolValue { value });
            runtime_flag(&runtime, &Some(RuntimeFeatureFlag { default_value, runtime_key: key.to_owned() }))
        };
        assert!(runtime_flag(&runtime, &None) && is_on("absent", None) && is_on("", Some(true)));
        assert!(!is_on("off", None) && !is_on("off", Some(true)) && !is_on("absent", Some(false)));
    }

    #[test]
    fn waits_before_retries_are_ten_times_as_long_at_the_most() {
        let seconds = |seconds| Some(ProtoDuration { seconds, nanos: 0 });
        let waits = |base, max| back_off(&base, &max).map_err(|error| error.to_string());
        let between = |base, max| Ok((Duration::from_secs(base), Duration::from_secs(max)));
        assert_eq!(waits(seconds(2), None), between(2, 20));
        assert_eq!(waits(seconds(2), seconds(3)), between(2, 3));
        for (base, max, fault) in [
            (None, seconds(1), "base_interval: is missing"),
            (seconds(0), None, "base_interval: must be longer than 0s"),
            (seconds(2), seconds(1), "max_interval: must not be shorter than base_interval"),
        ] {
            assert_eq!(waits(base, max), Err(fault.to_owned()));
        }
    }

    #[test]
    fn ranges_are_cut_to_their_length() {
        let range = |address: &str, length| CidrRange {
            address_prefix: address.to_owned(),
            prefix_len: Some(UInt32Value { value: length }),
        };
        assert_eq!(cidr(&range("10.1.2.3", 8)).unwrap().to_string(), "10.0.0.0/8");
        // It was refused; Envoy cuts it.
        assert_eq!(cidr(&range("10.1.2.3", 80)).unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(cidr(&range("::1", 129)).unwrap_err().to_string(), "prefix_len: must be at most 128");
        assert!(cidr(&range("ten", 8)).unwrap_err().to_string().contains("\"ten\" is no IP address"));
    }

    // Seconds had no bound but where they came as text, and ten times as many are more than there can be.
    #[test]
    fn durations_end_where_those_of_protobuf_do() {
        let longest = i64::try_from(LONGEST_SECONDS).unwrap();
        let of =
            |seconds, nanos| duration(&ProtoDuration { seconds, nanos }).map_err(|error| error.to_string());
        assert_eq!(of(longest, 0), Ok(Duration::from_secs(LONGEST_SECONDS)));
        let too_long = Err("must be at most 315576000000s".to_owned());
        assert_eq!((of(longest, 1), of(i64::MAX, 0)), (too_long.clone(), too_long));
        assert_eq!(of(1, 1_000_000_000), Err("must have less than 1000000000 nanos".to_owned()));
        let base = Some(ProtoDuration { seconds: longest, nanos: 0 });
        let (_, most) = back_off(&base, &None).unwrap();
        assert_eq!(most, Duration::from_secs(LONGEST_SECONDS * 10));
        assert!(std::time::Instant::now().checked_add(most).is_some());
    }

    #[test]
    fn negative_durations_are_refused() {
        let minus = Some(ProtoDuration { seconds: -1, nanos: 0 });
        assert_eq!(
            optional_duration(&minus, "timeout").unwrap_err().to_string(),
            "timeout: must not be negative"
        );
        let zero = Some(ProtoDuration::default());
        assert_eq!(timeout_or(&zero, Some(Duration::from_secs(1)), "t").unwrap(), None);
    }
}
