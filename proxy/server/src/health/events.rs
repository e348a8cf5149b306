//! What active health checks log (data/core/v3 HealthCheckEvent), when as in Envoy's
//! `ActiveHealthCheckSession::handleSuccess` and `handleFailure`.

use super::state::{Failure, Taken, Verdict};
use serde_json::{Map, Value, json};
use sixfold_core::cluster::{Address, Event, EventLog, HealthCheck, Member, Probe, Reasons};

/// Logs what came of a check, as far as that is to be logged.
pub(super) fn tell(log: &EventLog, check: &HealthCheck, member: &Member, taken: &Taken, verdict: &Verdict) {
    let of = |event: Said| log.write(&event.line(log, check, member));
    let (before, after) = (taken.before, taken.after);
    let (ill, degraded) = (Reasons::ACTIVE_CHECK, Reasons::DEGRADED_CHECK);
    match verdict {
        Verdict::Passed { .. } => {
            if before.contains(ill) && !after.contains(ill) {
                of(Said::Healthy { first: taken.first });
            } else if check.log_success {
                of(Said::Success);
            }
            match (before.contains(degraded), after.contains(degraded)) {
                (false, true) => of(Said::Degraded),
                (true, false) => of(Said::NoLongerDegraded),
                _ => {}
            }
        }
        Verdict::Failed { failure, status, .. } => {
            if !before.contains(ill) && after.contains(ill) {
                of(Said::Unhealthy { failure: *failure, status: *status });
            }
            if taken.first || check.log_failures {
                of(Said::Failure { failure: *failure, status: *status, first: taken.first });
            }
        }
    }
}

/// An event.
enum Said {
    Unhealthy { failure: Failure, status: u16 },
    Healthy { first: bool },
    Failure { failure: Failure, status: u16, first: bool },
    Degraded,
    NoLongerDegraded,
    Success,
}

impl Said {
    fn line(&self, log: &EventLog, check: &HealthCheck, member: &Member) -> Event {
        let kind = match check.probe {
            Probe::Http(_) => "HTTP",
            Probe::Tcp(_) => "TCP",
            Probe::Grpc(_) => "GRPC",
        };
        let mut event = Event::default().with("health_checker_type", kind);
        event = event.with_message("host", address(&member.host.address));
        event = event.with("cluster_name", log.cluster());
        event = match self {
            Said::Unhealthy { failure, status } => {
                let inner = Event::default().with("failure_type", name(*failure));
                event.with_message("eject_unhealthy_event", inner.with("http_status_code", *status))
            }
            Said::Healthy { first } => {
                event.with_message("add_healthy_event", Event::default().with("first_check", *first))
            }
            _ => event,
        };
        event = event.now();
        event = match self {
            Said::Failure { failure, status, first } => {
                let inner = Event::default().with("failure_type", name(*failure)).with("first_check", *first);
                event.with_message("health_check_failure_event", inner.with("http_status_code", *status))
            }
            Said::Degraded => event.with_message("degraded_healthy_host", Event::default()),
            Said::NoLongerDegraded => event.with_message("no_longer_degraded_host", Event::default()),
            _ => event,
        };
        let namespaces: Map<String, Value> =
            member.metadata.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        if !namespaces.is_empty() {
            let metadata = Event::default().with("filter_metadata", namespaces);
            event = event.with_message("metadata", metadata.with("typed_filter_metadata", json!({})));
        }
        let locality = member.locality();
        let place = Event::default().with("region", &*locality.region).with("zone", &*locality.zone);
        event = event.with_message("locality", place.with("sub_zone", &*locality.sub_zone));
        match self {
            Said::Success => event.with_message("successful_health_check_event", Event::default()),
            _ => event,
        }
    }
}

fn name(failure: Failure) -> &'static str {
    match failure {
        Failure::Active => "ACTIVE",
        Failure::Passive => "PASSIVE",
        Failure::Network => "NETWORK",
        Failure::Timeout => "NETWORK_TIMEOUT",
    }
}

/// As config/core/v3 Address.
fn address(address: &Address) -> Event {
    let socket = |host: String, port: u16| {
        let socket = Event::default().with("protocol", "TCP").with("address", host).with("port_value", port);
        let socket = socket.with("resolver_name", "").with("ipv4_compat", false);
        Event::default().with_message("socket_address", socket.with("network_namespace_filepath", ""))
    };
    match address {
        Address::Ip(address) => socket(address.ip().to_string(), address.port()),
        Address::Name(name, port) => socket(name.clone(), *port),
        Address::Unix(path) => {
            let pipe = Event::default().with("path", path.to_string_lossy().into_owned()).with("mode", 0);
            Event::default().with_message("pipe", pipe)
        }
    }
}
