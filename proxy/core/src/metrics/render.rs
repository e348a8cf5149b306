//! Statistics as text: Envoy's `/stats` in its three forms. Names are put together here, and nowhere else.

use super::tags::appears_when_used;
use super::{BUCKETS, Sample, TagRules, Value};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Which statistics are asked for.
#[derive(Default)]
pub struct Selection {
    /// `filter`: found anywhere in the name.
    pub filter: Option<regex::Regex>,
    /// `usedonly`: leaves out what never was anything but zero.
    pub used_only: bool,
}

impl Selection {
    fn takes(&self, sample: &Sample, rules: &TagRules) -> bool {
        let used = match &sample.value {
            Value::Counter(n) | Value::Gauge(n) => *n != 0,
            Value::Histogram(_, count, _) => *count != 0,
        };
        (used || !self.used_only && !appears_when_used(&sample.name))
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(&sample.name))
            && rules.filter.keeps(&sample.name)
    }
}

/// Quantiles of histograms in `/stats`.
const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// `name: value`, sorted; histograms last.
pub fn text(samples: &[Sample], selection: &Selection, rules: &TagRules) -> String {
    let mut out = String::new();
    let mut histograms = String::new();
    for sample in samples.iter().filter(|sample| selection.takes(sample, rules)) {
        // Writing to a string never fails.
        let _ = match &sample.value {
            Value::Counter(n) | Value::Gauge(n) => writeln!(out, "{}: {n}", sample.name),
            Value::Histogram(_, 0, _) => writeln!(histograms, "{}: No recorded values", sample.name),
            Value::Histogram(buckets, count, _) => {
                let of = |q: &f64| format!("P{q}(nan,{})", short(quantile(buckets, *count, *q)));
                let all: Vec<String> = QUANTILES.iter().map(of).collect();
                writeln!(histograms, "{}: {}", sample.name, all.join(" "))
            }
        };
    }
    out + &histograms
}

/// `{"stats":[{"name","value"},…,{"histograms":…}]}`
pub fn json(samples: &[Sample], selection: &Selection, rules: &TagRules) -> String {
    let mut stats = Vec::new();
    let mut histograms = Vec::new();
    for sample in samples.iter().filter(|sample| selection.takes(sample, rules)) {
        match &sample.value {
            Value::Counter(n) | Value::Gauge(n) => {
                stats.push(serde_json::json!({"name": sample.name, "value": n}));
            }
            Value::Histogram(buckets, count, _) => {
                let values = QUANTILES.iter().map(|q| {
                    let value = (*count > 0).then(|| quantile(buckets, *count, *q));
                    serde_json::json!({"interval": null, "cumulative": value})
                });
                let values: Vec<_> = values.collect();
                histograms.push(serde_json::json!({"name": sample.name, "values": values}));
            }
        }
    }
    if !histograms.is_empty() {
        stats.push(serde_json::json!({
            "histograms": {"supported_quantiles": QUANTILES, "computed_quantiles": histograms}
        }));
    }
    serde_json::json!({ "stats": stats }).to_string()
}

/// The Prometheus text format, one `# TYPE` line a family, families sorted.
pub fn prometheus(samples: &[Sample], selection: &Selection, rules: &TagRules) -> String {
    let mut families: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| selection.takes(sample, rules)) {
        let tagged = rules.split(&sample.name);
        let name = format!("envoy_{}", sanitized(&tagged.name));
        let labels = labels(&tagged.tags);
        let kind = match &sample.value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(..) => "histogram",
        };
        let (_, lines) = families.entry(name.clone()).or_insert_with(|| (kind, String::new()));
        match &sample.value {
            Value::Counter(n) | Value::Gauge(n) => {
                let _ = writeln!(lines, "{name}{{{labels}}} {n}");
            }
            Value::Histogram(buckets, count, sum) => histogram(lines, &name, &labels, buckets, *count, *sum),
        }
    }
    let mut out = String::new();
    for (name, (kind, lines)) in families {
        let _ = write!(out, "# TYPE {name} {kind}\n{lines}");
    }
    out
}

fn histogram(out: &mut String, name: &str, labels: &str, buckets: &[u64], count: u64, sum: u64) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, below) in BUCKETS.iter().zip(buckets) {
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
}

/// A name that Prometheus takes: letters, digits, `_`.
fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn labels(tags: &[(String, String)]) -> String {
    let mut out = String::new();
    for (i, (tag, value)) in tags.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{comma}{}=\"{value}\"", sanitized(tag));
    }
    out
}

/// A quantile by straight lines between the bounds of the buckets.
fn quantile(buckets: &[u64], count: u64, q: f64) -> f64 {
    let rank = (count as f64 * q / 100.0).max(1.0);
    let mut below = 0;
    let mut lower = 0.0;
    for (bound, cumulative) in BUCKETS.iter().zip(buckets) {
        if *cumulative as f64 >= rank {
            let share = (rank - below as f64) / (cumulative - below).max(1) as f64;
            return lower + (bound - lower) * share;
        }
        (below, lower) = (*cumulative, *bound);
    }
    lower
}

/// At most two digits after the point.
fn short(n: f64) -> f64 {
    (n * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn samples() -> Vec<Sample> {
        let sample = |name: &str, value| Sample { name: name.into(), value };
        let mut buckets = vec![0; BUCKETS.len()];
        buckets[3..].fill(4);
        vec![
            sample("cluster.a.upstream_cx_active", Value::Gauge(2)),
            sample("cluster.a.upstream_rq_200", Value::Counter(4)),
            sample("cluster.a.upstream_rq_503", Value::Counter(0)),
            sample("cluster.a.upstream_rq_time", Value::Histogram(buckets, 4, 30)),
            sample("cluster.b\"x.upstream_cx_active", Value::Gauge(0)),
            sample("cluster.b\"x.upstream_rq_time", Value::Histogram(vec![0; BUCKETS.len()], 0, 0)),
        ]
    }

    #[test]
    fn text_lines_and_selections() {
        let all = text(&samples(), &Selection::default(), &TagRules::default());
        assert!(all.starts_with("cluster.a.upstream_cx_active: 2\ncluster.a.upstream_rq_200: 4\ncluster.b\"x.upstream_cx_active: 0\n"), "{all}");
        assert!(all.contains("cluster.a.upstream_rq_time: P0(nan,6.25) P25(nan,6.25) P50(nan,7.5)"), "{all}");
        assert!(all.ends_with("cluster.b\"x.upstream_rq_time: No recorded values\n"));
        let used =
            Selection { used_only: true, filter: Some(regex::Regex::new("^cluster.*active").unwrap()) };
        assert_eq!(text(&samples(), &used, &TagRules::default()), "cluster.a.upstream_cx_active: 2\n");
    }

    #[test]
    fn json_holds_the_same() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&samples(), &Selection::default(), &TagRules::default())).unwrap();
        assert_eq!(json["stats"][1], serde_json::json!({"name": "cluster.a.upstream_rq_200", "value": 4}));
        assert_eq!(json["stats"][3]["histograms"]["computed_quantiles"][0]["values"][2]["cumulative"], 7.5);
    }

    #[test]
    fn prometheus_families() {
        let out = prometheus(&samples(), &Selection::default(), &TagRules::default());
        let start = concat!(
            "# TYPE envoy_cluster_upstream_cx_active gauge\n",
            "envoy_cluster_upstream_cx_active{envoy_cluster_name=\"a\"} 2\n",
            "envoy_cluster_upstream_cx_active{envoy_cluster_name=\"b\\\"x\"} 0\n",
            "# TYPE envoy_cluster_upstream_rq counter\n",
            "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 4\n",
            "# TYPE envoy_cluster_upstream_rq_time histogram\n",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"0.5\"} 0\n",
        );
        assert!(out.starts_with(start), "{out}");
        assert!(out.contains("le=\"10\"} 4\n") && out.contains("le=\"+Inf\"} 4\n"));
        assert!(out.contains("envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\"} 30\n"));
        assert_eq!(out.matches("# TYPE").count(), 3);
    }
}
