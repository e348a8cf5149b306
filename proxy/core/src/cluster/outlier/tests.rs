#![allow(clippy::unwrap_used)]
use super::super::{Address, HostConfig};
use super::*;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> OutlierDetection {
    OutlierDetection {
        max_ejection: 70 * SECOND,
        max_ejected_percent: 100,
        consecutive_5xx: 3,
        consecutive_gateway: 2,
        consecutive_local: 2,
        success_rate: SuccessRate { hosts: 5, requests: 10, stdev_factor: 1900 },
        failure_percentage: FailurePercentage { hosts: 5, requests: 10, threshold: 85 },
        enforcing: [100; CAUSES],
        ..OutlierDetection::default()
    }
}

fn outliers(config: &OutlierDetection, hosts: u16) -> (Arc<Outliers>, HostSet) {
    let host = |port| HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into()));
    let set = HostSet::new((1..=hosts).map(host).collect(), None);
    let outliers = Outliers::new(config, None, &Registry::new(), "c", false);
    outliers.follow(&set);
    (outliers, set)
}

fn answer(outliers: &Outliers, host: &Host, status: u16) {
    outliers.report(host, &Outcome { worker: 0, kind: OutcomeKind::Response, status, span: None });
}

fn fail(outliers: &Outliers, host: &Host, kind: OutcomeKind) {
    outliers.report(host, &Outcome { worker: 0, kind, status: kind.status(), span: None });
}

fn host(set: &HostSet, at: usize) -> Arc<Host> {
    set.iter().nth(at).unwrap().host.clone()
}

#[test]
fn failures_in_a_row_eject_and_an_answer_between_them_does_not() {
    let (outliers, set) = outliers(&config(), 2);
    let (first, now) = (host(&set, 0), Instant::now());
    for status in [500, 500, 200, 500, 501, 404, 500, 500] {
        answer(&outliers, &first, status);
    }
    assert!(!outliers.eject(now));
    answer(&outliers, &first, 500);
    assert!(outliers.eject(now) && first.reasons() == Reasons::EJECTED);
    assert_eq!(outliers.stats.ejections_enforced_consecutive_5xx().get(), 1);
    assert_eq!(
        (outliers.stats.ejections_active().get(), outliers.stats.ejections_enforced_total().get()),
        (1, 1)
    );
    // What never was an answer counts as 503 or 504; what was given up counts not at all.
    let second = host(&set, 1);
    for kind in
        [OutcomeKind::Timeout, OutcomeKind::Cancelled, OutcomeKind::Overflow, OutcomeKind::ConnectFailure]
    {
        fail(&outliers, &second, kind);
    }
    assert!(outliers.eject(now));
    assert_eq!(outliers.stats.ejections_enforced_consecutive_gateway_failure().get(), 1);
}

#[test]
fn failures_of_our_own_count_apart_where_that_is_wanted() {
    let (outliers, set) = outliers(&OutlierDetection { split_local: true, ..config() }, 1);
    let (host, now) = (host(&set, 0), Instant::now());
    fail(&outliers, &host, OutcomeKind::ConnectFailure);
    answer(&outliers, &host, 503);
    fail(&outliers, &host, OutcomeKind::ConnectFailure);
    assert!(!outliers.eject(now));
    fail(&outliers, &host, OutcomeKind::ConnectTimeout);
    assert!(outliers.eject(now));
    assert_eq!(outliers.stats.ejections_enforced_consecutive_local_origin_failure().get(), 1);
}

#[test]
fn an_ejection_takes_longer_each_time_and_ends_at_a_look() {
    let (outliers, set) = outliers(&config(), 1);
    let (host, mut now) = (host(&set, 0), Instant::now());
    // The third is as long as the longest.
    for seconds in [30, 60, 70] {
        for _ in 0..2 {
            answer(&outliers, &host, 503);
        }
        assert!(outliers.eject(now));
        assert!(!outliers.look(now + (seconds - 1) * SECOND) && host.reasons() == Reasons::EJECTED);
        now += seconds * SECOND;
        assert!(outliers.look(now) && host.reasons().is_empty());
    }
    for _ in 0..3 {
        assert!(!outliers.look(now));
    }
    answer(&outliers, &host, 503);
    answer(&outliers, &host, 503);
    outliers.eject(now);
    assert!(outliers.look(now + 30 * SECOND), "clean intervals are forgiven");
}

#[test]
fn only_so_many_leave_and_detections_may_only_count() {
    let failing = |outliers: &Outliers, set: &HostSet| {
        for member in set.iter() {
            for _ in 0..3 {
                answer(outliers, &member.host, 500);
            }
        }
        outliers.eject(Instant::now());
        let stats = &outliers.stats;
        let detected = stats.ejections_detected_consecutive_5xx().get();
        (stats.ejections_active().get(), stats.ejections_overflow().get(), detected)
    };
    let ten = OutlierDetection { max_ejected_percent: 10, ..config() };
    let (few, set) = outliers(&ten, 9);
    assert_eq!(failing(&few, &set), (0, 9, 9));
    let (one, set) = outliers(&OutlierDetection { always_one: true, ..ten.clone() }, 9);
    assert_eq!(failing(&one, &set), (1, 8, 9));
    let (many, set) = outliers(&ten, 20);
    assert_eq!(failing(&many, &set), (2, 18, 20));
    let (idle, set) = outliers(&OutlierDetection { enforcing: [0; CAUSES], ..config() }, 2);
    assert_eq!(failing(&idle, &set), (0, 0, 2));
    assert_eq!(failing(&idle, &set), (0, 0, 4), "it goes on to be counted");
}

/// They were not counted at all. `ejections_total` is of two kinds alone, whether they are enforced or not, and the others
/// are of what is detected.
#[test]
fn the_deprecated_counters_go_on() {
    let (enforced, set) = outliers(&config(), 2);
    let counted = |outliers: &Outliers| {
        let stats = &outliers.stats;
        let (total, in_a_row) = (stats.ejections_total().get(), stats.ejections_consecutive_5xx().get());
        (total, in_a_row, stats.ejections_success_rate().get(), stats.ejections_enforced_total().get())
    };
    let failing = |outliers: &Outliers, set: &HostSet, at: usize| {
        for _ in 0..5 {
            answer(outliers, &host(set, at), 500);
        }
        outliers.eject(Instant::now());
    };
    failing(&enforced, &set, 0);
    assert_eq!(counted(&enforced), (1, 1, 0, 1));
    let (idle, set) = outliers(&OutlierDetection { enforcing: [0; CAUSES], ..config() }, 2);
    failing(&idle, &set, 0);
    assert_eq!(counted(&idle), (1, 1, 0, 0));
    let (none_may_go, set) =
        outliers(&OutlierDetection { max_ejected_percent: 10, always_one: false, ..config() }, 2);
    failing(&none_may_go, &set, 0);
    assert_eq!(counted(&none_may_go), (0, 1, 0, 0));
    assert_eq!(none_may_go.stats.ejections_overflow().get(), 1);
}

#[test]
fn rates_are_compared_once_enough_endpoints_have_enough_requests() {
    let quiet = OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 0, ..config() };
    let run = |config: &OutlierDetection, hosts: u16, bad: u32| {
        let (outliers, set) = outliers(config, hosts);
        for (at, member) in set.iter().enumerate() {
            for nth in 0..20 {
                answer(&outliers, &member.host, if at == 0 && nth < bad { 500 } else { 200 });
            }
        }
        outliers.look(Instant::now());
        let enough = hosts >= 5 && config.success_rate.requests <= 20;
        let rate = enough.then(|| 100.0 - f64::from(bad) * 5.0);
        assert_eq!(outliers.success_rates(&host(&set, 0)), [rate, None]);
        let [[mean, threshold], local] = outliers.averages();
        match enough {
            true => assert!((mean - (100.0 - f64::from(bad))).abs() < 1e-9 && threshold < mean),
            false => assert_eq!([mean, threshold], [-1.0, -1.0]),
        }
        assert_eq!(local, [-1.0, -1.0]);
        let stats = &outliers.stats;
        let rare = (stats.ejections_success_rate().get(), stats.ejections_detected_success_rate().get());
        assert_eq!(rare.0, rare.1);
        (stats.ejections_enforced_success_rate().get(), stats.ejections_enforced_failure_percentage().get())
    };
    assert_eq!(run(&quiet, 5, 10), (1, 0));
    assert_eq!(run(&quiet, 4, 10), (0, 0), "too few endpoints");
    let only_failures = {
        let mut config = quiet.clone();
        config.enforcing[Cause::SuccessRate as usize] = 0;
        config
    };
    assert_eq!(run(&only_failures, 5, 17), (0, 1));
    assert_eq!(run(&only_failures, 5, 16), (0, 0));
    let mut busy = quiet;
    (busy.success_rate.requests, busy.failure_percentage.requests) = (21, 21);
    assert_eq!(run(&busy, 5, 20), (0, 0), "too few requests");
}

#[test]
fn what_is_counted_goes_on_with_the_next_cluster() {
    let (first, set) = outliers(&config(), 2);
    let host = host(&set, 0);
    for _ in 0..2 {
        answer(&first, &host, 503);
    }
    first.eject(Instant::now());
    let registry = Registry::new();
    let same = Outliers::new(&config(), Some(&first), &registry, "c", true);
    assert!(Arc::ptr_eq(&first, &same));
    let other = OutlierDetection { interval: SECOND, ..config() };
    let other = Outliers::new(&other, Some(&first), &registry, "c", true);
    other.follow(&set);
    assert!(other.look(Instant::now() + 31 * SECOND) && host.reasons().is_empty());
    // An endpoint that leaves takes its ejection along.
    for _ in 0..3 {
        answer(&other, &host, 500);
    }
    other.eject(Instant::now());
    assert_eq!(other.stats.ejections_active().get(), 1);
    other.follow(&HostSet::default());
    assert_eq!(other.stats.ejections_active().get(), 0);
}

/// As Envoy 1.40 wrote them.
#[test]
fn what_becomes_of_outliers_is_logged() {
    #[derive(Default)]
    struct Lines(Mutex<String>);
    impl crate::log_sink::LogSink for Lines {
        fn write(&self, line: &[u8]) {
            self.0.lock().push_str(std::str::from_utf8(line).unwrap());
        }
    }
    let lines = Arc::new(Lines::default());
    let log = crate::cluster::EventLog::new(lines.clone(), "c");
    let written = || {
        let lines: Vec<String> = std::mem::take(&mut *lines.0.lock()).lines().map(str::to_owned).collect();
        let without_time = |line: String| {
            let (before, rest) = line.split_once(",\"timestamp\":\"").unwrap();
            format!("{before}{}", rest.split_once('"').unwrap().1)
        };
        lines.into_iter().map(without_time).collect::<Vec<_>>()
    };
    let quiet = OutlierDetection { log: Some(log), consecutive_gateway: 0, ..config() };
    let (logged, set) = outliers(&quiet, 2);
    let (first, now) = (host(&set, 0), Instant::now());
    let fail = |outliers: &Outliers| (0..3).for_each(|_| answer(outliers, &first, 500));
    fail(&logged);
    logged.eject(now);
    assert_eq!(
        written(),
        [
            r#"{"type":"CONSECUTIVE_5XX","cluster_name":"c","upstream_url":"127.0.0.1:1","action":"EJECT","num_ejections":1,"enforced":true,"eject_consecutive_event":{}}"#
        ]
    );
    logged.look(now + 31 * SECOND);
    assert_eq!(
        written(),
        [
            r#"{"type":"CONSECUTIVE_5XX","secs_since_last_action":"31","cluster_name":"c","upstream_url":"127.0.0.1:1","action":"UNEJECT","num_ejections":1,"enforced":false}"#
        ]
    );
    fail(&logged);
    logged.eject(now + 36 * SECOND);
    assert!(written()[0].contains(r#""secs_since_last_action":"5","cluster_name""#));
    assert!(logged.passed_check(&first) && written()[0].contains("UNEJECT"));
    // A look and a check may find it at once.
    fail(&logged);
    logged.eject(now + 37 * SECOND);
    let monitor = logged.monitors.load().get(&first.id).cloned().unwrap();
    let back = || logged.give_back(&monitor, &mut monitor.ejection.lock(), now + 38 * SECOND);
    assert_eq!((back(), back(), written().len()), (true, false, 2), "it left and came back");
    let mut counted = quiet.clone();
    counted.enforcing = [0; CAUSES];
    let (counting, _) = outliers(&counted, 0);
    counting.follow(&set);
    fail(&counting);
    counting.eject(now);
    let line = written().remove(0);
    assert!(line.contains(r#""num_ejections":0,"enforced":false,"eject_consecutive_event""#), "{line}");
    let rates = OutlierDetection { consecutive_5xx: 0, ..quiet };
    let (rated, set) = outliers(&rates, 5);
    for (at, member) in set.iter().enumerate() {
        (0..20).for_each(|nth| answer(&rated, &member.host, if at == 0 && nth < 18 { 500 } else { 200 }));
    }
    rated.look(now);
    let line = written().remove(0);
    let tail = r#""enforced":true,"eject_success_rate_event":{"host_success_rate":10,"cluster_average_success_rate":82,"cluster_success_rate_ejection_threshold":13}}"#;
    assert!(line.starts_with(r#"{"type":"SUCCESS_RATE","#) && line.ends_with(tail), "{line}");
}
