//! Statistics as lines of statsd (source/extensions/stat_sinks/common/statsd).
//!
//! Envoy sends each value of a histogram when it is recorded; here those of one bucket are one line, with a sample rate that says
//! how many there were.

use super::flush::{Change, Flush, Point};
use super::{BUCKETS, Distribution};
use std::fmt::Write as _;

/// How tags are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tags {
    /// They stay in the name.
    InName,
    /// `name:1|c|#tag:value,tag:value`
    DogStatsd,
    /// `name;tag=value;tag=value:1|c`
    Graphite,
}

/// What lines look like.
#[derive(Debug, Clone)]
pub struct Lines {
    /// What stands before each name, with a dot between; `envoy` by default.
    pub prefix: String,
    /// Where tags stand.
    pub tags: Tags,
}

impl Lines {
    /// Hands out the lines, each without an end.
    pub fn each(&self, flush: &Flush, mut take: impl FnMut(&str)) {
        let mut line = String::new();
        for point in &flush.points {
            let (head, tail) = self.around(flush, point);
            let mut one = |value: std::fmt::Arguments<'_>| {
                line.clear();
                line.push_str(&head);
                // A string has room for all.
                let _ = line.write_fmt(value);
                line.push_str(&tail);
                take(&line);
            };
            match &point.change {
                Change::Counter { delta, .. } => one(format_args!(":{delta}|c")),
                Change::Gauge(value) => one(format_args!(":{value}|g")),
                Change::Histogram { delta, .. } => {
                    for (value, count) in values(delta) {
                        match count {
                            1 => one(format_args!(":{value}|ms")),
                            count => one(format_args!(":{value}|ms|@{}", 1.0 / count as f64)),
                        }
                    }
                }
            }
        }
    }

    /// What of a point stands before and behind its value.
    fn around(&self, flush: &Flush, point: &Point) -> (String, String) {
        if self.tags == Tags::InName {
            return (format!("{}.{}", self.prefix, point.name), String::new());
        }
        let tagged = flush.tagged(point);
        let (mut head, mut tail) = (format!("{}.{}", self.prefix, tagged.name), String::new());
        for (tag, value) in &tagged.tags {
            match self.tags {
                Tags::Graphite => head.extend([";", tag, "=", value]),
                _ => tail.extend([if tail.is_empty() { "|#" } else { "," }, tag, ":", value]),
            }
        }
        (head, tail)
    }
}

/// A value for each bucket that has any, and how many there are: the mean where that is known, else the middle of the bucket.
fn values(seen: &Distribution) -> impl Iterator<Item = (u64, u64)> + '_ {
    let uppers = BUCKETS.iter().map(|upper| Some(*upper)).chain([None]);
    let mut lower = 0.0;
    uppers.zip(seen.counts()).filter_map(move |(upper, count)| {
        let from = lower;
        lower = upper.unwrap_or(from);
        let value = match upper {
            _ if count == seen.count => seen.sum.checked_div(count).unwrap_or_default(),
            Some(upper) => f64::midpoint(from, upper) as u64,
            None => from as u64,
        };
        (count > 0).then_some((value, count))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::flush::Latch;
    use super::super::{Registry, TagRules};
    use super::*;
    use std::sync::Arc;

    crate::stat_block! {
        /// For the test.
        pub struct TestStats { counters: [upstream_rq_200], gauges: [open], histograms: [time] }
    }

    fn lines(tags: Tags, record: &[u64]) -> Vec<String> {
        let registry = Registry::new();
        let stats = TestStats::new(&registry, "cluster.a.");
        stats.upstream_rq_200().add(3);
        stats.open().set(2);
        record.iter().for_each(|value| stats.time().record(*value));
        let (flush, mut all) = (Latch::new(registry, Arc::new(TagRules::default())).flush(), Vec::new());
        Lines { prefix: "pre".into(), tags }.each(&flush, |line| all.push(line.to_owned()));
        all
    }

    #[test]
    fn lines_are_envoys() {
        assert_eq!(
            lines(Tags::InName, &[28]),
            ["pre.cluster.a.open:2|g", "pre.cluster.a.time:28|ms", "pre.cluster.a.upstream_rq_200:3|c"]
        );
        assert_eq!(
            lines(Tags::DogStatsd, &[28]),
            [
                "pre.cluster.open:2|g|#envoy.cluster_name:a",
                "pre.cluster.time:28|ms|#envoy.cluster_name:a",
                "pre.cluster.upstream_rq:3|c|#envoy.response_code:200,envoy.cluster_name:a",
            ]
        );
        let graphite = "pre.cluster.upstream_rq;envoy.response_code=200;envoy.cluster_name=a:3|c";
        assert_eq!(lines(Tags::Graphite, &[])[1], graphite);
    }

    #[test]
    fn values_of_a_bucket_are_one_line_that_stands_for_all() {
        let times = |record: &[u64]| {
            let lines = lines(Tags::DogStatsd, record);
            let of = lines.iter().filter_map(|line| line.strip_prefix("pre.cluster.time:"));
            of.map(|line| line.strip_suffix("|#envoy.cluster_name:a").unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(times(&[28, 32]), ["30|ms|@0.5"]);
        assert_eq!(times(&[0, 3, 28, 30, 45, 40, 9_000_000]), ["0|ms", "3|ms", "37|ms|@0.25", "3600000|ms"]);
    }
}
