//! What answers and failures come to.

use super::*;

fn passed() -> Verdict {
    Verdict::Passed { degraded: false }
}

/// Takes verdicts one after the other; what is against the endpoint after each.
fn course(check: &HealthCheck, reasons: Reasons, verdicts: &[Verdict]) -> Vec<(Change, Reasons)> {
    let (mut state, mut reasons) = (State::new(Duration::ZERO), reasons);
    let mut take = |verdict| {
        let changes = state.judge(check, reasons, verdict);
        for (reason, on) in changes.reasons {
            reasons.set(reason, on);
        }
        (changes.kind, reasons)
    };
    verdicts.iter().map(&mut take).collect()
}

#[test]
fn thresholds_are_envoys() {
    use Change::{Changed, Pending, Unchanged};
    let check = every_day(Probe::Tcp(TcpProbe::default()));
    let (well, ill) = (Reasons::empty(), Reasons::ACTIVE_CHECK);
    let (silent, failed) = (Verdict::silent("timeout"), Verdict::failed("status 500"));
    let retriable = Verdict::Failed {
        failure: Failure::Active,
        status: 503,
        retriable: true,
        exclude: false,
        reason: String::new(),
    };
    for (from, verdicts, expected) in [
        (ill, vec![passed(), passed()], vec![(Changed, well), (Unchanged, well)]),
        (
            ill,
            vec![silent.clone(), passed(), passed()],
            vec![(Unchanged, ill), (Pending, ill), (Changed, well)],
        ),
        (
            ill,
            vec![silent.clone(), passed(), silent.clone(), passed(), passed()],
            vec![(Unchanged, ill), (Pending, ill), (Unchanged, ill), (Pending, ill), (Changed, well)],
        ),
        (well, vec![silent.clone(), silent], vec![(Pending, well), (Changed, ill)]),
        (
            well,
            vec![retriable.clone(), passed(), retriable],
            vec![(Pending, well), (Unchanged, well), (Pending, well)],
        ),
        // What the endpoint says itself is enough.
        (well, vec![failed], vec![(Changed, ill)]),
    ] {
        assert_eq!(course(&check, from, &verdicts), expected, "{verdicts:?}");
    }
    let degraded = Verdict::Passed { degraded: true };
    let (shy, excluded) = (Reasons::DEGRADED_CHECK, ill | Reasons::EXCLUDED_CHECK);
    assert_eq!(course(&check, well, &[degraded, passed()]), [(Changed, shy), (Changed, well)]);
    let leave = Verdict::leave();
    let back = [(Changed, excluded), (Changed, ill), (Changed, well)];
    assert_eq!(course(&check, well, &[leave, passed(), passed()]), back);
    assert_eq!(excluded.health(), Health::Excluded);
}

#[test]
fn intervals_go_by_traffic_outcome_and_what_is_pending() {
    let mut check = every_day(Probe::Tcp(TcpProbe::default()));
    let seconds = Duration::from_secs;
    check.intervals = Intervals {
        healthy: seconds(1),
        unhealthy: seconds(2),
        to_healthy: seconds(3),
        to_unhealthy: seconds(4),
        no_traffic: seconds(5),
        no_traffic_healthy: seconds(6),
    };
    let state = State::new(Duration::ZERO);
    for (traffic, passed, change, expected) in [
        (true, true, Change::Unchanged, 1),
        (true, false, Change::Changed, 2),
        (true, true, Change::Pending, 3),
        (true, false, Change::Pending, 4),
        (false, false, Change::Unchanged, 5),
        (false, true, Change::Pending, 5),
        (false, true, Change::Changed, 6),
    ] {
        assert_eq!(state.wait(&check, change, passed, traffic), seconds(expected));
    }
    (check.jitter, check.jitter_percent) = (seconds(1), 100);
    let waits: Vec<_> = (0..300).map(|_| state.wait(&check, Change::Unchanged, true, true)).collect();
    assert!(waits.iter().all(|wait| (seconds(1)..seconds(3)).contains(wait)));
    assert!(waits.iter().any(|wait| *wait > seconds(2)), "both are added");
    // No more than a day, whatever is configured.
    (check.intervals.healthy, check.jitter_percent) = (Duration::MAX, u32::MAX);
    assert_eq!(state.wait(&check, Change::Unchanged, true, true), seconds(86_400));
}

#[test]
fn answers_are_judged_by_status_body_and_headers() {
    let mut probe = http();
    probe.expected = vec![200..300];
    probe.receive = vec![b"one".to_vec(), b"two".to_vec()];
    let says = |name: &str| {
        let mut headers = Headers::new();
        headers.set(name, b"true");
        headers
    };
    let none = Headers::new();
    assert_eq!(judge(&probe, 204, &none, b"one, two"), passed());
    assert!(!judge(&probe, 204, &none, b"two, one").passed());
    assert!(matches!(
        judge(&probe, 503, &none, b""),
        Verdict::Failed { retriable: true, failure: Failure::Active, .. }
    ));
    assert!(matches!(
        judge(&probe, 500, &none, b""),
        Verdict::Failed { retriable: false, failure: Failure::Active, .. }
    ));
    let degraded = judge(&probe, 200, &says("x-envoy-degraded"), b"onetwo");
    assert_eq!(degraded, Verdict::Passed { degraded: true });
    // Envoy looks at the wish of an answer that fails alone: with a 200 the endpoint was taken out here.
    let wish = says("x-envoy-immediate-health-check-fail");
    assert_eq!(judge(&probe, 200, &wish, b"onetwo"), passed());
    let leave = judge(&probe, 503, &wish, b"onetwo");
    assert!(matches!(leave, Verdict::Failed { exclude: true, retriable: false, .. }));
    probe.service = Some(sixfold_core::matcher::StringMatcher::exact("true"));
    assert!(judge(&probe, 200, &says("x-envoy-upstream-healthchecked-cluster"), b"onetwo").passed());
    assert!(!judge(&probe, 200, &none, b"onetwo").passed());
    assert!(contains_all(b"", &[]) && !contains_all(b"aa", &[b"a".to_vec(), b"aa".to_vec()]));
    assert_eq!([serving(&[8, 1]), serving(&[8, 2]), serving(&[])], [Some(1), Some(2), None]);
}
