#![allow(clippy::unwrap_used)]

use super::*;
use crate::cluster::{Address, HostConfig, HostSet};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

fn fields(pairs: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in pairs {
        let name = crate::headers::HeaderName::new(name).unwrap();
        headers.append(&name, value.as_bytes());
    }
    headers
}

fn metrics(names: &[&str]) -> Box<[Metric]> {
    names.iter().filter_map(|name| Metric::of(name)).collect()
}

fn config() -> LoadReports {
    LoadReports { metrics: metrics(&["named_metrics.a", "named_metrics.b"]), ..LoadReports::default() }
}

/// The weight of a report; `None` where there is none.
fn weight(config: &LoadReports, pairs: &[(&str, &str)]) -> Option<u32> {
    read::load(&fields(pairs), &config.metrics)?.weight(config)
}

fn said(value: &str) -> Option<u32> {
    weight(&config(), &[("endpoint-load-metrics", value)])
}

/// Numbers of a message with these fields in protobuf's encoding.
fn message(numbers: &[(u8, f64)]) -> Vec<u8> {
    numbers.iter().flat_map(|(field, value)| [&[field << 3 | 1][..], &value.to_le_bytes()].concat()).collect()
}

/// A map's entry.
fn entry(field: u8, key: &str, value: f64) -> Vec<u8> {
    let inner = [&[0x0a, key.len() as u8], key.as_bytes(), &[0x11], &value.to_le_bytes()].concat();
    [&[field << 3 | 2, inner.len() as u8][..], &inner].concat()
}

/// What Envoy 1.40 showed in `/clusters` of endpoints that sent these.
#[test]
fn reports_in_text_weigh_as_in_envoy() {
    for (value, weight) in [
        ("TEXT cpu_utilization:0.1,rps_fractional:100", Some(1000)),
        ("TEXT cpu_utilization=0.1,rps_fractional=100", Some(1000)),
        ("TEXT  cpu_utilization: 0.1 , rps_fractional:100,,", Some(1000)),
        ("TEXT cpu_utilization :0.1,rps_fractional:100", None),
        ("TEXT cpu_utilization:0.1,rps_fractional:100,application_utilization:-1", None),
        ("TEXT cpu_utilization:0.1,rps_fractional:100,eps:-1", None),
        ("TEXT cpu_utilization:0.1,rps_fractional:100,named_metrics.x:-1", None),
        ("TEXT named_metrics.b:0.1,rps_fractional:100", Some(1000)),
        ("TEXT named_metrics.b:0.1,named_metrics.b:0.1,rps_fractional:100", None),
        ("TEXT named_metrics.a:0.1,named_metrics.b:0.2,cpu_utilization:9,rps_fractional:100", Some(500)),
        ("TEXT utilization.b:0.1,cpu_utilization:0.1,rps_fractional:100", Some(1000)),
        ("TEXT cpu_utilization:0.1:5,rps_fractional:100", None),
        ("TEXT cpu_utilization:0.1,rps:100", None),
        ("TEXT cpu_utilization:0.1,rps_fractional:100,mem_utilization:7", Some(1000)),
        ("TEXT named_metrics.:1,cpu_utilization:0.1,rps_fractional:100", None),
        ("TEXT CPU_utilization:0.1,rps_fractional:100", None),
        ("TEXT cpu_utilization:0.1;rps_fractional:100", None),
        ("TEXT cpu_utilization:.1,rps_fractional:1e2", Some(1000)),
        ("TEXT cpu_utilization:0.1,rps_fractional:inf", None),
        ("TEXT cpu_utilization:nan,rps_fractional:100", None),
        ("TEXT cpu_utilization:0.1f,rps_fractional:100", None),
        ("TEXT cpu_utilization:0.1,rps_fractional:0x64", Some(1000)),
        ("TEXT cpu_utilization:0.1,rps_fractional:+100", Some(1000)),
        ("TEXT cpu_utilization:1.5,rps_fractional:100", Some(66)),
        ("TEXT cpu_utilization:1.5,rps_fractional:100,application_utilization:0.1", Some(1000)),
        ("TEXT cpu_utilization:1,rps_fractional:0.5", Some(0)),
        ("TEXT cpu_utilization:1e-300,rps_fractional:1e300", Some(u32::MAX)),
        ("TEXT cpu_utilization:0.1", None),
        ("TEXT rps_fractional:100", None),
        ("TEXT", None),
        ("text cpu_utilization:0.1,rps_fractional:100", None),
        ("cpu_utilization:0.1,rps_fractional:100", None),
    ] {
        assert_eq!(said(value), weight, "{value}");
    }
}

#[test]
fn reports_in_json_weigh_as_in_envoy() {
    for (value, weight) in [
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100}"#, Some(1000)),
        (r#"JSON  {"cpuUtilization":"0.1","rpsFractional":1e2,"rps":7}"#, Some(1000)),
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100,"named_metrics":{"a":2}}"#, Some(50)),
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100,"named_metrics":null}"#, Some(1000)),
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100,"application_utilization":-1}"#, Some(1000)),
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100,"rps_fractional":200}"#, Some(2000)),
        (r#"JSON {"cpu_utilization":-0.1,"rps_fractional":100}"#, None),
        (r#"JSON {"cpu_utilization":0.4,"rps_fractional":100,"foo":1}"#, None),
        (r#"JSON {"cpu_utilization":0.4,"rps_fractional":null}"#, None),
        (r#"JSON {"cpu_utilization":"NaN","rps_fractional":100}"#, Some(0)),
        (r#"JSON {"cpu_utilization":0.1,"rps_fractional":100} x"#, None),
        (r#"JSON{"cpu_utilization":0.1,"rps_fractional":100}"#, None),
        ("JSON [1]", None),
        ("JSON", None),
    ] {
        assert_eq!(said(value), weight, "{value}");
    }
}

#[test]
fn reports_in_binary_weigh_as_in_envoy_and_go_before_others() {
    let told = [(1, 0.1), (6, 100.0)];
    let both = STANDARD.encode(message(&told));
    let bin = |value: &str| weight(&config(), &[("endpoint-load-metrics-bin", value)]);
    assert_eq!((bin(&both), said(&format!("BIN {both}"))), (Some(1000), Some(1000)));
    assert_eq!(bin(both.trim_end_matches('=')), Some(1000));
    assert_eq!(said(&format!("BIN  {both}")), None);
    let more = |extra: Vec<u8>| bin(&STANDARD.encode([message(&told), extra].concat()));
    assert_eq!(more(entry(8, "a", 0.5)), Some(200));
    assert_eq!(more(entry(8, "c", 0.5)), Some(1000), "nobody asks for it");
    assert_eq!(more(vec![3 << 3, 0x96, 1]), Some(1000), "rps");
    assert_eq!(more(message(&[(15, 1.0)])), Some(1000), "a field of later versions");
    assert_eq!(more(vec![0xff]), None);
    for cut in 1..18 {
        assert_eq!(bin(&STANDARD.encode(&message(&told)[..cut])), None, "{cut}");
    }
    let pairs = [
        ("endpoint-load-metrics-bin", "!!!!"),
        ("endpoint-load-metrics", "TEXT cpu_utilization:1,rps_fractional:9"),
    ];
    assert_eq!(weight(&config(), &pairs), None);
    assert_eq!(weight(&config(), &[]), None);
}

#[test]
fn utilization_is_what_the_configuration_names() {
    let of = |names: &[&str], value: &str| {
        let config = LoadReports { metrics: metrics(names), ..config() };
        weight(&config, &[("endpoint-load-metrics", value)])
    };
    let busy = "TEXT cpu_utilization:0.1,rps_fractional:100,mem_utilization:0.25,application_utilization:0.5";
    assert_eq!(of(&["mem_utilization"], busy), Some(400));
    assert_eq!(of(&["named_metrics.none"], busy), Some(200));
    assert_eq!(of(&["utilization.x", "request_cost.x"], busy), Some(200));
    let maps = r#"JSON {"rps_fractional":100,"cpu_utilization":0.1,"request_cost":{"x":0.9},"utilization":{"y":0.8}}"#;
    assert_eq!(of(&["utilization.x", "request_cost.x"], maps), Some(111));
    assert_eq!(
        of(&["named_metrics.*"], "TEXT rps_fractional:100,named_metrics.a:0.25,named_metrics.b:0.5"),
        Some(200)
    );
    assert_eq!(Metric::of("no_such_metric"), None);
}

#[test]
fn errors_count_as_utilization() {
    let of = |error_penalty: f64| {
        let config = LoadReports { error_penalty, ..config() };
        weight(&config, &[("endpoint-load-metrics", "TEXT cpu_utilization:0.1,rps_fractional:100,eps:10")])
    };
    assert_eq!((of(0.0), of(2.0)), (Some(1000), Some(333)));
    let idle = LoadReports { error_penalty: 1.0, ..config() };
    let failing = [("endpoint-load-metrics", "TEXT rps_fractional:100,eps:100")];
    assert_eq!((weight(&config(), &failing), weight(&idle, &failing)), (None, Some(100)));
}

#[test]
fn a_report_counts_after_the_blackout_and_until_it_is_old() {
    let hosts = (1..=4).map(|port| HostConfig::new(Address::Ip(([127, 0, 0, 1], port).into())));
    let set = HostSet::new(hosts.collect(), None);
    let members = &set.levels[0].members;
    let config = config();
    let start = Instant::now() + Duration::from_secs(1);
    let after = |millis| start + Duration::from_millis(millis);
    let weights = || members.iter().map(|m| m.host.reported().unwrap().weight()).collect::<Vec<_>>();
    let equal = config.weigh(members, start);
    assert_eq!(weights(), [1; 4]);
    for (member, cpu) in members.iter().zip(["0.1", "0.2"]) {
        let report =
            fields(&[("endpoint-load-metrics", &format!("TEXT cpu_utilization:{cpu},rps_fractional:100"))]);
        assert!(config.take(&report, &member.host, start));
    }
    assert!(!config.take(&fields(&[]), &members[2].host, start));
    assert_eq!(config.weigh(members, after(9_999)), equal);
    let first = config.weigh(members, after(10_000));
    assert_ne!(first, equal);
    assert_eq!(weights(), [1000, 500, 750, 750], "who says nothing has the median");
    let again = fields(&[("endpoint-load-metrics", "TEXT cpu_utilization:0.4,rps_fractional:100")]);
    assert!(config.take(&again, &members[1].host, after(100_000)));
    assert_ne!(config.weigh(members, after(100_000)), first);
    assert_eq!(weights(), [1000, 250, 625, 625], "a later report counts at once");
    let last = config.weigh(members, after(180_001));
    assert_eq!(weights(), [250; 4], "the first one is old");
    assert!(config.take(&again, &members[0].host, after(180_001)));
    assert_eq!(config.weigh(members, after(190_000)), last, "it is new again");
}
