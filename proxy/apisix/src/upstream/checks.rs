//! An upstream's `checks` compiled, with the defaults of APISIX's health checker for what is not there.

use std::sync::Arc;
use std::time::Duration;

use sixfold_core::cluster::{ActiveCheck, CountedChecks, HttpProbe, Limits, ProbeHeader};
use sixfold_core::headers::HeaderName;
use sixfold_core::tls::{ClientSettings, ClientTls, Pem, Validation, system_authorities};
use xxhash_rust::xxh64::xxh64;

use super::{clamp, seconds};
use crate::config::Config;
use crate::item::violation;
use crate::resource::{self, HealthCheck, PassHost, ProbeType, Upstream};
use crate::schema::Violation;
use crate::source::SourceContext;

/// What the health checker takes for good and for bad where `checks.passive` says nothing.
const PASSIVE: Thresholds = Thresholds { successes: 5, http_failures: 5, tcp_failures: 2, timeouts: 7 };
/// The same where `checks.active` says nothing.
const ACTIVE: Thresholds = Thresholds { successes: 2, http_failures: 5, tcp_failures: 2, timeouts: 3 };

/// How many in a row decide.
struct Thresholds {
    successes: u8,
    http_failures: u8,
    tcp_failures: u8,
    timeouts: u8,
}

impl Thresholds {
    fn of(&self, healthy: &[u16], unhealthy: &[u16]) -> Limits {
        let Thresholds { successes, http_failures, tcp_failures, timeouts } = *self;
        Limits {
            healthy_statuses: healthy.into(),
            unhealthy_statuses: unhealthy.into(),
            successes,
            http_failures,
            tcp_failures,
            timeouts,
        }
    }
}

/// What is wrong with the checks of an upstream beyond their schema.
pub(super) fn check(checks: &HealthCheck) -> Vec<Violation> {
    let Some(active) = &checks.active else { return Vec::new() };
    let mut violations = Vec::new();
    if target(&active.http_path).parse::<http::Uri>().is_err() {
        let reason = format!("no path of a request: {}", active.http_path);
        violations.push(violation(&["checks", "active", "http_path"], reason));
    }
    for line in active.req_headers.iter().flatten() {
        if let Err(reason) = header(line) {
            violations.push(violation(&["checks", "active", "req_headers"], reason));
        }
    }
    violations
}

/// The checks of an upstream whose cluster is called `cluster`; nothing where it has none or they are switched off.
///
/// # Errors
/// A file of authorities that can't be read, and what [`check`] finds.
pub(crate) fn compile(
    cluster: &str,
    upstream: &Upstream,
    config: &Config,
    context: &SourceContext,
) -> Result<Option<Arc<CountedChecks>>, String> {
    let Some(checks) = upstream.checks.as_ref().filter(|_| !config.disable_upstream_healthcheck) else {
        return Ok(None);
    };
    let Some(active) = &checks.active else { return Ok(None) };
    let host = upstream.upstream_host.as_deref().filter(|_| upstream.pass_host == PassHost::Rewrite);
    Ok(Some(Arc::new(CountedChecks {
        fingerprint: xxh64(format!("{checks:?} {host:?}").as_bytes(), 0),
        active: ActiveCheck {
            http: (active.probe != ProbeType::Tcp).then(|| probe(active)).transpose()?,
            tls: match active.probe {
                ProbeType::Https => Some(tls(cluster, active.https_verify_certificate, config, context)?),
                ProbeType::Http | ProbeType::Tcp => None,
            },
            timeout: seconds(active.timeout),
            concurrency: clamp(active.concurrency) as usize,
            port: active.port.and_then(|port| u16::try_from(port).ok()),
            host: host.map(Into::into),
            address_host: active.host.as_deref().map(Into::into),
            healthy_interval: active.healthy.as_ref().map(|of| interval(of.interval)),
            unhealthy_interval: active.unhealthy.as_ref().map(|of| interval(of.interval)),
            limits: active_limits(active),
        },
        passive: passive_limits(checks.passive.as_ref()),
        ends_count: checks.passive.is_some(),
    })))
}

fn active_limits(active: &resource::ActiveCheck) -> Limits {
    let mut limits = ACTIVE.of(&[200, 302], &[429, 404, 500, 501, 502, 503, 504, 505]);
    if let Some(healthy) = &active.healthy {
        limits.healthy_statuses = healthy.http_statuses.as_slice().into();
        limits.successes = limit(healthy.successes);
    }
    if let Some(unhealthy) = &active.unhealthy {
        limits.unhealthy_statuses = unhealthy.http_statuses.as_slice().into();
        limits.http_failures = limit(unhealthy.http_failures);
        limits.tcp_failures = limit(unhealthy.tcp_failures);
        limits.timeouts = limit(unhealthy.timeouts);
    }
    limits
}

/// Statuses count as far as they are written. Attempts that fail before another one do in any case, as in APISIX.
fn passive_limits(passive: Option<&resource::PassiveCheck>) -> Limits {
    let mut limits = PASSIVE.of(&[], &[]);
    let Some(passive) = passive else { return limits };
    if let Some(healthy) = &passive.healthy {
        limits.healthy_statuses = healthy.http_statuses.as_slice().into();
        limits.successes = limit(healthy.successes);
    }
    if let Some(unhealthy) = &passive.unhealthy {
        limits.unhealthy_statuses = unhealthy.http_statuses.as_slice().into();
        limits.http_failures = limit(unhealthy.http_failures);
        limits.tcp_failures = limit(unhealthy.tcp_failures);
        limits.timeouts = limit(unhealthy.timeouts);
    }
    limits
}

fn probe(active: &resource::ActiveCheck) -> Result<HttpProbe, String> {
    let headers = active.req_headers.iter().flatten().map(|line| header(line));
    Ok(HttpProbe {
        host: String::new(),
        path: active.http_path.clone(),
        method: http::Method::from_bytes(active.http_method.as_bytes()).map_err(|e| e.to_string())?,
        send: active.http_req_body.clone().into_bytes(),
        add: headers.collect::<Result<_, _>>()?,
        remove: Vec::new(),
        http2: false,
        expected: Vec::new(),
        retriable: Vec::new(),
        receive: Vec::new(),
        service: None,
    })
}

/// A header as `req_headers` has it, `Name: value`.
fn header(line: &str) -> Result<ProbeHeader, String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no \"Name: value\": {line}"))?;
    let name = HeaderName::as_spelled(name.trim()).map_err(|error| error.to_string())?;
    let value = value.trim();
    if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(format!("no value of a header: {}", value.escape_default()));
    }
    let replaces = name.as_str() == "host";
    Ok(ProbeHeader { name, value: value.as_bytes().to_vec(), replaces })
}

/// A path as probes ask for it.
fn target(path: &str) -> String {
    format!("http://node{path}")
}

/// Towards the nodes of a cluster, which are verified by their Host if that is wanted.
fn tls(
    cluster: &str,
    verify: bool,
    config: &Config,
    context: &SourceContext,
) -> Result<Arc<ClientTls>, String> {
    let authorities = || config.ssl.trusted_file().map(Into::into).or_else(system_authorities);
    let validation = match (verify, authorities()) {
        (false, _) => None,
        (true, Some(file)) => Some(Validation { trusted_ca: Some(Pem::File(file)), ..Validation::default() }),
        (true, None) => return Err("no file of trusted certificates, which health checks need".to_owned()),
    };
    let settings = ClientSettings {
        validation,
        auto_sni: true,
        auto_san_validation: verify,
        ..ClientSettings::default()
    };
    let cache = &context.compile.tls_clients;
    let compiled = cache.context(settings).map_err(|error| error.to_string())?;
    Ok(cache.place(&format!("{cluster} checks"), compiled))
}

fn interval(of: i64) -> Duration {
    Duration::from_secs(u64::try_from(of).unwrap_or_default())
}

fn limit(of: i64) -> u8 {
    u8::try_from(of.max(0)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::resource::Kind;
    use crate::{schema, testing};
    use serde_json::{Value, json};
    use sixfold_core::plugin::Registry;

    fn upstream(value: Value) -> Upstream {
        let mut value = value;
        schema::resource(Kind::Upstream).validate(&mut value).unwrap();
        serde_json::from_value(value).unwrap()
    }

    fn compiled(upstream: &Upstream, config: &str) -> Option<Arc<CountedChecks>> {
        let config = Config::standalone(config, &testing::environment()).unwrap();
        let context = SourceContext::detached(Registry::default(), testing::environment());
        compile("upstreams/1", upstream, &config, &context).unwrap()
    }

    #[test]
    fn what_is_not_written_is_as_in_the_health_checker() {
        let few = upstream(json!({"nodes": {}, "checks": {"active": {}}}));
        let checks = compiled(&few, "").unwrap();
        assert_eq!((checks.active.healthy_interval, checks.active.unhealthy_interval), (None, None));
        assert_eq!((checks.active.timeout, checks.active.concurrency), (Duration::from_secs(1), 10));
        assert_eq!(*checks.active.limits.healthy_statuses, [200, 302]);
        assert_eq!(checks.passive, PASSIVE.of(&[], &[]));
        assert!(compiled(&few, "apisix: {disable_upstream_healthcheck: true}").is_none());
        let passive = json!({"active": {}, "passive": {"healthy": {"successes": 0}, "unhealthy": {}}});
        let checks = compiled(&upstream(json!({"nodes": {}, "checks": passive})), "").unwrap();
        assert_eq!((checks.passive.successes, checks.passive.timeouts), (0, 7));
        assert_eq!(*checks.passive.unhealthy_statuses, [429, 500, 503]);
        assert_eq!(checks.passive.healthy_statuses.len(), 19);
    }

    #[test]
    fn probes_are_what_is_written() {
        let active = json!({
            "type": "http", "timeout": 0.5, "concurrency": 3, "host": "a.example", "port": 81, "http_path": "/s?a=1",
            "http_method": "POST", "http_req_body": "x", "req_headers": ["User-Agent: curl/7", "X-A:b"],
            "healthy": {"interval": 2, "http_statuses": [201], "successes": 4},
            "unhealthy": {"interval": 3, "http_statuses": [404], "http_failures": 1, "tcp_failures": 6, "timeouts": 7}
        });
        let of = |more: Value| {
            let mut value = json!({"nodes": {}, "checks": {"active": active}});
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            compiled(&upstream(value), "").unwrap()
        };
        let checks = of(json!({}));
        let ActiveCheck { http, port, address_host, host, limits, .. } = &checks.active;
        let http = http.as_ref().unwrap();
        assert_eq!((&*http.path, http.method.as_str(), &*http.send), ("/s?a=1", "POST", &b"x"[..]));
        let headers: Vec<_> = http.add.iter().map(|h| (h.name.as_str(), &*h.value)).collect();
        assert_eq!(headers, [("user-agent", &b"curl/7"[..]), ("x-a", b"b")]);
        assert_eq!((*port, address_host.as_deref(), host.as_deref()), (Some(81), Some("a.example"), None));
        let Limits { successes, http_failures, tcp_failures, timeouts, .. } = limits;
        assert_eq!([successes, http_failures, tcp_failures, timeouts], [&4, &1, &6, &7]);
        let rewritten = of(json!({"pass_host": "rewrite", "upstream_host": "b.example"}));
        assert_eq!(rewritten.active.host.as_deref(), Some("b.example"));
        assert_ne!(rewritten.fingerprint, checks.fingerprint);
        assert_eq!(of(json!({"retries": 3})).fingerprint, checks.fingerprint, "the checks are the same");
    }

    #[test]
    fn what_no_probe_can_send_is_refused() {
        let faults = |active: Value| {
            let upstream = upstream(json!({"nodes": {}, "checks": {"active": active}}));
            check(upstream.checks.as_ref().unwrap()).into_iter().map(|v| v.message).collect::<Vec<_>>()
        };
        assert_eq!(faults(json!({"http_path": "/a b"})), ["no path of a request: /a b"]);
        assert_eq!(faults(json!({"req_headers": ["novalue"]})), ["no \"Name: value\": novalue"]);
        assert_eq!(faults(json!({"req_headers": ["A: b\r\nC: d"]})).len(), 1);
        assert_eq!(faults(json!({"req_headers": ["A: b", "Host: x"]})), [] as [&str; 0]);
    }
}
