#![allow(clippy::unwrap_used)]
use super::super::{
    Address, CAUSES, ClusterConfig, Clusters, Criteria, HostConfig, OutlierDetection, Policy, Reasons,
};
use super::*;
use crate::metrics::Registry;

fn cluster() -> Arc<Cluster> {
    let mut config = ClusterConfig::named("c");
    config.balance.policy = Policy::ApisixLeastConn;
    let hosts = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| HostConfig::new(Address::Ip(a.parse().unwrap())));
    Cluster::new(config, hosts.into(), None, &Registry::new()).unwrap()
}

fn choose(cluster: &Arc<Cluster>) -> InFlight {
    let choice = Choice {
        worker: 0,
        hash: None,
        random: 0,
        attempt: 0,
        tried: &[],
        predicates: &[],
        host_attempts: 1,
        previous_priorities: None,
        subset: Criteria::NONE,
        destination: None,
    };
    cluster.choose(&choice).unwrap()
}

#[test]
fn an_attempt_counts_from_its_beginning_to_its_drop_and_is_reported_once() {
    let cluster = cluster();
    let mut first = choose(&cluster);
    let host = first.host().clone();
    assert_eq!(host.active_requests.load(Relaxed), 0, "it is only chosen");
    first.begin(Instant::now(), false);
    first.begin(Instant::now(), false);
    first.attached();
    assert_eq!((host.active_requests.load(Relaxed), cluster.stats.upstream_rq_active().get()), (1, 1));
    // The balancer counts the choice: the next one goes to the other host, and back once it is dropped.
    let second = choose(&cluster);
    assert_ne!(second.host().id, host.id);
    drop(first);
    assert_eq!((host.active_requests.load(Relaxed), cluster.stats.upstream_rq_active().get()), (0, 0));
    assert_eq!((host.total_requests.load(Relaxed), host.failed_requests.load(Relaxed)), (1, 0));
    let third = choose(&cluster);
    assert_eq!(third.host().id, host.id, "the balancer heard of the end");
    // A choice that came to nothing is told too, and counts nowhere.
    drop(second);
    let fourth = choose(&cluster);
    assert_ne!(fourth.host().id, host.id);
    assert_eq!(fourth.host().total_requests.load(Relaxed), 0);
}

#[test]
fn an_attempt_is_over_when_it_is_ended_and_not_again_when_it_is_dropped() {
    let cluster = cluster();
    let mut attempt = choose(&cluster);
    let host = attempt.host().clone();
    attempt.begin(Instant::now(), false);
    attempt.end(OutcomeKind::Timeout, 504, Instant::now());
    let seen = || (host.active_requests.load(Relaxed), host.failed_requests.load(Relaxed));
    assert_eq!((seen(), cluster.stats.upstream_rq_active().get()), ((0, 1), 0));
    attempt.end(OutcomeKind::Timeout, 504, Instant::now());
    drop(attempt);
    assert_eq!((seen(), cluster.stats.upstream_rq_active().get()), ((0, 1), 0));
}

/// Succeeded, failed, and took too long at the host of an attempt that `run` has gone its way.
fn counted(run: impl FnOnce(&mut InFlight)) -> [u64; 3] {
    let mut attempt = choose(&cluster());
    let host = attempt.host().clone();
    run(&mut attempt);
    drop(attempt);
    [&host.succeeded_requests, &host.failed_requests, &host.timed_out_requests].map(|n| n.load(Relaxed))
}

#[test]
fn failures_of_the_endpoint_count_and_what_was_given_up_or_refused_does_not() {
    for (kind, seen) in [
        (OutcomeKind::ConnectFailure, [0, 1, 0]),
        (OutcomeKind::ConnectTimeout, [0, 1, 0]),
        (OutcomeKind::Timeout, [0, 1, 1]),
        (OutcomeKind::Reset, [0, 1, 0]),
        (OutcomeKind::Protocol, [0, 1, 0]),
        (OutcomeKind::Overflow, [0, 0, 0]),
        (OutcomeKind::Cancelled, [0, 0, 0]),
    ] {
        let end = |attempt: &mut InFlight| attempt.end(kind, kind.status(), Instant::now());
        assert_eq!(counted(end), seen, "{kind:?}");
    }
}

/// An answer of 503 was one that went well, and so was whatever a TCP connection came to.
#[test]
fn the_status_of_an_answer_tells_whether_it_went_well() {
    let answered = |status, end| {
        counted(|attempt| {
            attempt.answered(status, &Headers::new(), false);
            attempt.end(end, status, Instant::now());
        })
    };
    assert_eq!(answered(404, OutcomeKind::Response), [1, 0, 0]);
    assert_eq!(answered(503, OutcomeKind::Response), [0, 1, 0]);
    assert_eq!(answered(200, OutcomeKind::Reset), [1, 0, 0], "its head had come");
    let settled = |status| counted(|attempt| attempt.settle(OutcomeKind::Response, status));
    assert_eq!((settled(200), settled(500)), ([1, 0, 0], [0, 1, 0]));
    for kind in [OutcomeKind::Response, OutcomeKind::ConnectFailure] {
        let raw = counted(|attempt| {
            attempt.begin_raw(Instant::now());
            attempt.settle(kind, 200);
        });
        assert_eq!(raw, [0, 0, 0]);
    }
}

/// It depended on the protocol and on outlier detection in heads, and on nothing in trailers.
#[test]
fn the_status_of_grpc_counts_where_the_request_is_of_grpc() {
    let fields = |code: Option<&str>| {
        let mut fields = Headers::new();
        code.iter().for_each(|code| fields.append("grpc-status", code.as_bytes()));
        fields
    };
    let head_only = |is_grpc, status, head| {
        counted(|attempt| {
            attempt.begin(Instant::now(), is_grpc);
            attempt.answered(status, &fields(head), true);
        })
    };
    let whole = |is_grpc, status, head, trailers| {
        counted(|attempt| {
            attempt.begin(Instant::now(), is_grpc);
            attempt.answered(status, &fields(head), false);
            attempt.trailed(&fields(trailers));
        })
    };
    let cut = |kind| {
        counted(|attempt| {
            attempt.begin(Instant::now(), true);
            attempt.answered(200, &fields(None), false);
            attempt.settle(kind, 200);
        })
    };
    let (well, ill) = ([1, 0, 0], [0, 1, 0]);
    for (code, seen) in [("0", well), ("5", well), ("14", ill), ("x", ill)] {
        assert_eq!(head_only(true, 200, Some(code)), seen, "head {code}");
        assert_eq!(whole(true, 200, None, Some(code)), seen, "trailers {code}");
        assert_eq!(whole(true, 200, Some("0"), Some(code)), seen, "not the head's, trailers {code}");
        assert_eq!(whole(true, 200, Some(code), None), ill, "head {code} with a body and no trailers");
        assert_eq!(head_only(false, 200, Some(code)), well, "no gRPC, head {code}");
        assert_eq!(whole(false, 200, None, Some(code)), well, "no gRPC, trailers {code}");
    }
    assert_eq!((head_only(true, 200, None), whole(true, 200, None, None)), (ill, ill), "without a status");
    assert_eq!(cut(OutcomeKind::Reset), ill);
    for kind in [OutcomeKind::Cancelled, OutcomeKind::Response] {
        assert_eq!(cut(kind), [0, 0, 0], "nobody waited for its end");
    }
    assert_eq!(whole(true, 503, Some("0"), Some("0")), ill, "the head decides");
}

/// A 404 that was retried was one that went well.
#[test]
fn what_is_set_aside_is_an_error() {
    let aside = |kind| {
        counted(|attempt| {
            attempt.answered(404, &Headers::new(), false);
            attempt.set_aside();
            attempt.settle(kind, 404);
        })
    };
    assert_eq!((aside(OutcomeKind::Response), aside(OutcomeKind::Cancelled)), ([0, 1, 0], [0, 1, 0]));
}

/// It was told at the end, of those too that lost without having been late, and the endpoint was counted a timeout.
#[test]
fn one_that_is_late_is_told_once_and_counts_by_its_end() {
    let detection = OutlierDetection {
        max_ejected_percent: 100,
        consecutive_5xx: 3,
        consecutive_gateway: 0,
        consecutive_local: 0,
        enforcing: [100; CAUSES],
        ..OutlierDetection::default()
    };
    let mut config = ClusterConfig::named("c");
    config.outlier_detection = Some(Arc::new(detection));
    let host = HostConfig::new(Address::Ip("10.0.0.1:80".parse().unwrap()));
    let cluster = Cluster::new(config, vec![host], None, &Registry::new()).unwrap();
    // Only of what is in force endpoints are followed.
    Clusters::default().cell("c").swap(Some(cluster.clone()));
    let late = |end: Option<(OutcomeKind, u16)>| {
        let mut attempt = choose(&cluster);
        attempt.begin(Instant::now(), false);
        attempt.late(Instant::now());
        end.iter().for_each(|(kind, status)| attempt.settle(*kind, *status));
        let host = attempt.host().clone();
        drop(attempt);
        [&host.failed_requests, &host.timed_out_requests].map(|n| n.load(Relaxed))
    };
    let ejects = || cluster.outliers.as_ref().unwrap().eject(Instant::now());
    assert_eq!(late(None), [0, 0], "it lost");
    assert_eq!(late(Some((OutcomeKind::Response, 200))), [0, 0]);
    assert!(!ejects(), "and a good answer begins anew");
    assert_eq!(late(Some((OutcomeKind::Timeout, 504))), [1, 1]);
    assert_eq!(late(Some((OutcomeKind::Timeout, 504))), [2, 2]);
    assert!(!ejects(), "they were told twice");
    assert_eq!(late(None), [2, 2]);
    assert!(ejects(), "three in a row");
}

/// Each request of a session looked through all endpoints.
#[test]
fn an_endpoint_is_chosen_by_its_address_as_long_as_it_may_be_used() {
    let cluster = cluster();
    let at =
        |address: &str| cluster.choose_address(address.parse().unwrap(), 0).map(|f| f.host().label.clone());
    assert_eq!(at("10.0.0.2:80").as_deref(), Some("10.0.0.2:80"));
    assert_eq!((at("10.0.0.2:81"), at("10.0.0.3:80")), (None, None));
    let before = cluster.hosts.load_full();
    let address = "10.0.0.1:80".parse().unwrap();
    let member = before.at(address).unwrap().clone();
    member.host.set_reason(Reasons::EJECTED, true);
    assert_eq!(at("10.0.0.1:80"), None, "as soon as it is ill");
    cluster.refresh();
    let after = cluster.hosts.load_full();
    assert!(!Arc::ptr_eq(&before, &after) && Arc::ptr_eq(after.at(address).unwrap(), &member));
    assert!(Arc::ptr_eq(&before.by_address, &after.by_address), "the same endpoints are listed once");
    cluster.update_hosts(vec![HostConfig::new(Address::Ip("10.0.0.3:80".parse().unwrap()))]);
    assert_eq!((at("10.0.0.3:80").as_deref(), at("10.0.0.2:80")), (Some("10.0.0.3:80"), None));
}
