//! What is logged of checks.

use super::*;
use sixfold_core::access_log::LogSink;
use sixfold_core::cluster::EventLog;

#[derive(Default)]
struct Lines(Mutex<String>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        self.0.lock().push_str(std::str::from_utf8(line).unwrap());
    }
}

/// As Envoy 1.40 wrote them.
#[test]
fn what_checks_find_is_logged() {
    use sixfold_core::cluster::{HostSet, Locality};
    let lines = Arc::new(Lines::default());
    let log = EventLog::new(lines.clone(), "h");
    let metadata = serde_json::json!({"envoy.lb": {"a": "b"}});
    let host = HostConfig {
        metadata: metadata.as_object().cloned().unwrap().into(),
        locality: Some(Arc::new(Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() })),
        ..HostConfig::new(Address::Ip(([127, 0, 0, 1], 45577).into()))
    };
    let set = HostSet::new(vec![host], None);
    let member = set.iter().next().unwrap();
    let (well, ill, degraded) = (Reasons::empty(), Reasons::ACTIVE_CHECK, Reasons::DEGRADED_CHECK);
    let events = |check: &HealthCheck, first, before, after, verdict: &Verdict| {
        let taken = Taken { change: Change::Unchanged, changed: false, first, before, after };
        super::super::events::tell(&log, check, member, &taken, verdict);
        let written = std::mem::take(&mut *lines.0.lock());
        let head = r#"{"health_checker_type":"HTTP","host":{"socket_address":{"protocol":"TCP","address":"127.0.0.1","port_value":45577,"resolver_name":"","ipv4_compat":false,"network_namespace_filepath":""}},"cluster_name":"h","#;
        let tail = r#""metadata":{"filter_metadata":{"envoy.lb":{"a":"b"}},"typed_filter_metadata":{}},"locality":{"region":"r","zone":"z","sub_zone":"s"}"#;
        let short = |line: &str| {
            let (before, rest) = line.strip_prefix(head).unwrap().split_once("\"timestamp\":\"").unwrap();
            let (between, after) = rest.split_once("\",").unwrap().1.split_once(tail).unwrap();
            format!("{before}@{between}#{after}")
        };
        written.lines().map(short).collect::<Vec<_>>()
    };
    let quiet = every_day(Probe::Http(Box::new(http())));
    let loud =
        HealthCheck { log_failures: true, log_success: true, ..every_day(Probe::Http(Box::new(http()))) };
    let (pass, status) = (Verdict::Passed { degraded: false }, judge(&http(), 500, &Headers::new(), b""));
    let none = [""; 0];
    assert_eq!(events(&quiet, true, ill, well, &pass), [r#""add_healthy_event":{"first_check":true},@#}"#]);
    assert_eq!(events(&loud, false, ill, well, &pass), [r#""add_healthy_event":{"first_check":false},@#}"#]);
    assert_eq!(events(&quiet, false, ill, ill, &pass), none);
    assert_eq!(events(&loud, false, ill, ill, &pass), [r#"@#,"successful_health_check_event":{}}"#]);
    let ejected = r#""eject_unhealthy_event":{"failure_type":"ACTIVE","http_status_code":500},@#}"#;
    let failed = r#"@"health_check_failure_event":{"failure_type":"ACTIVE","first_check":false,"http_status_code":500},#}"#;
    assert_eq!(events(&quiet, false, well, ill, &status), [ejected]);
    assert_eq!(events(&loud, false, well, ill, &status), [ejected, failed]);
    let first = r#"@"health_check_failure_event":{"failure_type":"NETWORK_TIMEOUT","first_check":true,"http_status_code":0},#}"#;
    assert_eq!(events(&quiet, true, ill, ill, &Verdict::late()), [first]);
    let more = Verdict::Passed { degraded: true };
    assert_eq!(events(&quiet, false, well, degraded, &more), [r#"@"degraded_healthy_host":{},#}"#]);
    assert_eq!(events(&quiet, false, degraded, well, &pass), [r#"@"no_longer_degraded_host":{},#}"#]);
    let passive = r#""eject_unhealthy_event":{"failure_type":"PASSIVE","http_status_code":0},@#}"#;
    assert_eq!(events(&quiet, false, well, ill, &Verdict::leave()), [passive]);
    assert_eq!(events(&quiet, false, well, well, &Verdict::silent("refused")), none);
}

/// Whoever checks writes to the logs of the check: what was found, and that an endpoint has asked to be left alone.
#[tokio::test]
async fn checkers_write_to_the_logs_of_their_checks() {
    let (endpoint, checker, lines) = (Endpoint::start().await, checker(), Arc::new(Lines::default()));
    let check = HealthCheck {
        unhealthy_threshold: 1,
        events: vec![EventLog::new(lines.clone(), "c")],
        ..check(SOON, Probe::Http(Box::new(http())))
    };
    let cluster = cluster(&[endpoint.address], Some(check), None);
    let cell = sixfold_core::cluster::Clusters::default().cell("c");
    cell.swap(Some(cluster.clone()));
    checks_of(&checker, &cluster).all_checked().await;
    let says = |text: &str| lines.0.lock().contains(text);
    assert!(says("\"add_healthy_event\":{\"first_check\":true}"), "{}", lines.0.lock());
    endpoint.status.store(503, Relaxed);
    until("told of its failure", || says("\"eject_unhealthy_event\":{\"failure_type\":\"ACTIVE\"")).await;
    endpoint.status.store(200, Relaxed);
    until("told of its return", || says("\"add_healthy_event\":{\"first_check\":false}")).await;
    // An endpoint without metadata had empty one.
    assert!(!says("PASSIVE") && !says("\"metadata\""));
    let mut leave = Headers::new();
    leave.set("x-envoy-immediate-health-check-fail", b"true");
    traffic::choose(&cluster).unwrap().answered(200, &leave, true);
    until("told of its wish", || says("\"failure_type\":\"PASSIVE\"")).await;
}
