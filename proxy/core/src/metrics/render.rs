//! Statistics as text: Envoy's `/stats` in its three forms, written piece by piece.

use super::tags::appears_when_used;
use super::{
    BUCKETS, Distribution, Kind as Declared, LabelledSample, Snapshot, TagRules, Tagged, Text, Value,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Which statistics are asked for.
#[derive(Default)]
pub struct Selection {
    /// `filter`: found anywhere in the name.
    pub filter: Option<regex::Regex>,
    /// `invert_filter`: takes what the filter does not find.
    pub invert: bool,
    /// `usedonly`: leaves out what was never counted or set.
    pub used_only: bool,
    /// `type`: of this kind alone.
    pub kind: Option<Kind>,
    /// `histogram_buckets`: how histograms are shown, unless as the form has them.
    pub histograms: Option<Histograms>,
    /// `text_readouts`: texts too where there are only numbers, in the Prometheus format.
    pub texts: bool,
}

/// A kind of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What only grows.
    Counters,
    /// What grows and shrinks.
    Gauges,
    /// Distributions of values.
    Histograms,
    /// Texts.
    TextReadouts,
}

/// How histograms are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Histograms {
    /// Quantiles: the way of text and JSON.
    Summary,
    /// How many values are up to the bound of each bucket: the way of Prometheus.
    Cumulative,
    /// How many values are in each bucket.
    Disjoint,
    /// How many values are in each bucket that has any, and quantiles.
    Detailed,
}

impl From<Declared> for Kind {
    fn from(kind: Declared) -> Kind {
        match kind {
            Declared::Counter => Kind::Counters,
            Declared::Gauge | Declared::Number => Kind::Gauges,
            Declared::Histogram => Kind::Histograms,
        }
    }
}

impl Selection {
    fn takes(&self, name: &str, kind: Kind, used: impl Fn() -> bool, rules: &TagRules) -> bool {
        self.takes_name(kind, name, rules) && (!self.used_only && !appears_when_used(name) || used())
    }

    fn takes_text(&self, text: &Text, rules: &TagRules) -> bool {
        (!self.used_only || text.get().is_some()) && self.takes_name(Kind::TextReadouts, text.name(), rules)
    }

    fn takes_name(&self, kind: Kind, name: &str, rules: &TagRules) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.filter.as_ref().is_none_or(|filter| filter.is_match(name) != self.invert)
            && rules.filter.keeps(name)
    }
}

/// Quantiles of histograms in `/stats`, in percent.
pub const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// How a page looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `name: value`, sorted; texts first, histograms last.
    Text,
    /// The same as `{"stats":[{"name","value"},…,{"histograms":…}]}`
    Json,
    /// The Prometheus text format, one `# TYPE` line a family, families sorted.
    Prometheus,
}

/// What is written.
pub struct Page<'a> {
    /// All statistics.
    pub statistics: &'a Snapshot,
    /// Those that are asked for.
    pub selection: &'a Selection,
    /// Which are there, and how names become labels.
    pub rules: &'a TagRules,
}

impl Page<'_> {
    /// Writes the page piece by piece.
    ///
    /// # Errors
    /// Those of `out`, at once.
    pub fn write(&self, form: Form, out: &mut dyn Write) -> io::Result<()> {
        match form {
            Form::Text => self.text(out),
            Form::Json => self.json(out),
            Form::Prometheus => self.prometheus(out),
        }
    }

    /// Visits the numbers that are asked for until a visitor fails, which it does when nobody reads any more. Answers where the
    /// histograms are that are asked for.
    fn numbers(&self, mut visit: impl FnMut(&str, u64) -> io::Result<()>) -> io::Result<Vec<Member<'_>>> {
        let samples = self.statistics.labelled().iter().map(|sample| (sample.flat_name(), sample));
        let mut samples =
            samples.filter(|(name, sample)| self.takes_labelled(name, &sample.value)).peekable();
        let (mut histograms, mut name) = (Vec::new(), String::new());
        for at in self.statistics.names() {
            let Some(kind) = self.takes(at, &mut name) else { continue };
            while let Some((before, sample)) = samples.next_if(|(before, _)| *before < name) {
                match number(&sample.value) {
                    Some(n) => visit(&before, n)?,
                    None => histograms.push(Member::Labelled(sample)),
                }
            }
            if kind == Kind::Histograms {
                histograms.push(Member::At(at as u32));
            } else if let Some(n) = self.statistics.value(at).as_ref().and_then(number) {
                visit(&name, n)?;
            }
        }
        for (name, sample) in samples {
            match number(&sample.value) {
                Some(n) => visit(&name, n)?,
                None => histograms.push(Member::Labelled(sample)),
            }
        }
        Ok(histograms)
    }

    /// Visits histograms until a visitor fails.
    fn histograms(
        &self,
        members: &[Member<'_>],
        mut visit: impl FnMut(&str, &Distribution) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut name = String::new();
        for member in members {
            let value = match member {
                Member::At(at) => self.statistics.read(*at as usize, &mut name),
                Member::Labelled(sample) => {
                    name = sample.flat_name();
                    Some(sample.value)
                }
            };
            if let Some(Value::Histogram(seen)) = &value {
                visit(&name, seen)?;
            }
        }
        Ok(())
    }

    /// What is at `at`, if it is asked for, and its name in `name`. Its value, which is the sum of what all workers have
    /// counted, is not looked at before.
    fn takes(&self, at: usize, name: &mut String) -> Option<Kind> {
        let (statistics, only) = (self.statistics, self.selection.used_only);
        if only && !statistics.is_used(at) {
            return None;
        }
        let kind = statistics.name(at, name)?.into();
        let takes = self.selection.takes(name, kind, || only || statistics.is_used(at), self.rules);
        takes.then_some(kind)
    }

    /// What has labels of its own is there since it was first counted.
    fn takes_labelled(&self, name: &str, value: &Value) -> bool {
        let kind = match value {
            Value::Counter(_) => Kind::Counters,
            Value::Gauge(_) => Kind::Gauges,
            Value::Histogram(_) => Kind::Histograms,
        };
        self.selection.takes(name, kind, || true, self.rules)
    }

    /// The texts that are asked for.
    fn texts(&self) -> impl Iterator<Item = (&str, String)> {
        let texts = self.statistics.texts().iter().filter(|text| self.selection.takes_text(text, self.rules));
        texts.map(|text| (text.name(), text.get().as_deref().unwrap_or_default().to_owned()))
    }

    fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        for (name, text) in self.texts() {
            writeln!(out, "{name}: \"{}\"", escaped(&text))?;
        }
        let histograms = self.numbers(|name, n| writeln!(out, "{name}: {n}"))?;
        self.histograms(&histograms, |name, seen| match seen {
            Distribution { count: 0, .. } => writeln!(out, "{name}: No recorded values"),
            seen => match self.selection.histograms {
                None | Some(Histograms::Summary) => writeln!(out, "{name}:{}", quantiles(seen)),
                Some(Histograms::Cumulative) => writeln!(out, "{name}:{}", buckets(seen.below)),
                Some(Histograms::Disjoint) => writeln!(out, "{name}:{}", buckets(disjoint(seen))),
                Some(Histograms::Detailed) => {
                    let totals: Vec<String> = filled(seen)
                        .map(|(lower, upper, count)| format!("{lower},{}:{count}", upper - lower))
                        .collect();
                    let (totals, summary) = (totals.join(" "), quantiles(seen));
                    writeln!(
                        out,
                        "{name}:\n  totals={totals}\n  intervals=\n  summary={}",
                        summary.trim_start()
                    )
                }
            },
        })
    }

    fn json(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut comma = "";
        write!(out, "{{\"stats\":[")?;
        for (name, text) in self.texts() {
            let line = serde_json::json!({"name": name, "value": text});
            write!(out, "{}{line}", std::mem::replace(&mut comma, ","))?;
        }
        let members = self.numbers(|name, n| {
            let line = serde_json::json!({"name": name, "value": n});
            write!(out, "{}{line}", std::mem::replace(&mut comma, ","))
        })?;
        let way = self.selection.histograms.unwrap_or(Histograms::Summary);
        let supported = serde_json::json!(QUANTILES);
        let (open, close) = match way {
            Histograms::Summary => {
                (format!("{{\"supported_quantiles\":{supported},\"computed_quantiles\":["), "]}}]}")
            }
            Histograms::Cumulative | Histograms::Disjoint => ("[".to_owned(), "]}]}"),
            Histograms::Detailed => {
                (format!("{{\"supported_percentiles\":{supported},\"details\":["), "]}}]}")
            }
        };
        let mut histograms = 0;
        self.histograms(&members, |name, seen| {
            match histograms {
                0 => write!(out, "{comma}{{\"histograms\":{open}")?,
                _ => write!(out, ",")?,
            }
            histograms += 1;
            write!(out, "{}", distribution(name, seen, way))
        })?;
        write!(out, "{}", if histograms > 0 { close } else { "]}" })
    }

    fn prometheus(&self, out: &mut dyn Write) -> io::Result<()> {
        // Where the members of each family are; a name alone does not tell its family.
        let mut families: BTreeMap<String, Vec<Member<'_>>> = BTreeMap::new();
        let mut name = String::new();
        for at in self.statistics.names() {
            if self.takes(at, &mut name).is_some() {
                let family = format!("envoy_{}", sanitized(&self.rules.split(&name).name));
                families.entry(family).or_default().push(Member::At(at as u32));
            }
        }
        for sample in self.statistics.labelled() {
            if self.takes_labelled(&sample.flat_name(), &sample.value) {
                families.entry(sanitized(&sample.family)).or_default().push(Member::Labelled(sample));
            }
        }
        if self.selection.texts {
            self.prometheus_texts(out)?;
        }
        let summary = self.selection.histograms == Some(Histograms::Summary);
        for (family, members) in &families {
            for (nth, member) in members.iter().enumerate() {
                let Some((labels, value)) = self.member(member, &mut name) else { continue };
                let kind = match &value {
                    Value::Counter(_) => "counter",
                    Value::Gauge(_) => "gauge",
                    Value::Histogram(_) if summary => "summary",
                    Value::Histogram(_) => "histogram",
                };
                if nth == 0 {
                    writeln!(out, "# TYPE {family} {kind}")?;
                }
                match &value {
                    Value::Counter(n) | Value::Gauge(n) => writeln!(out, "{family}{{{labels}}} {n}")?,
                    Value::Histogram(seen) if summary => summary_of(out, family, &labels, seen)?,
                    Value::Histogram(seen) => histogram(out, family, &labels, seen)?,
                }
            }
        }
        Ok(())
    }

    /// The labels and the value of a family's member.
    fn member(&self, member: &Member<'_>, name: &mut String) -> Option<(String, Value)> {
        match member {
            Member::At(at) => {
                let value = self.statistics.read(*at as usize, name)?;
                let tags = self.rules.split(name).tags;
                Some((labels(tags.iter().map(|(tag, value)| (&**tag, &**value))), value))
            }
            Member::Labelled(sample) => {
                let own = sample.labels.iter().map(|(label, value)| (&**label, &**value));
                let fixed = self.rules.fixed.iter().map(|(tag, value)| (&**tag, &**value));
                Some((labels(own.chain(fixed)), sample.value))
            }
        }
    }
}

/// A statistic of a family: its place in the snapshot, or itself.
enum Member<'a> {
    At(u32),
    Labelled(&'a LabelledSample),
}

impl Page<'_> {
    /// Texts as labels of gauges that are always 0.
    fn prometheus_texts(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, text) in self.texts() {
            let Tagged { name, mut tags } = self.rules.split(name);
            tags.push(("text_value".to_owned(), text));
            families
                .entry(sanitized(&name))
                .or_default()
                .push(labels(tags.iter().map(|(tag, value)| (&**tag, &**value))));
        }
        for (family, members) in families {
            writeln!(out, "# TYPE envoy_{family} gauge")?;
            for labels in members {
                writeln!(out, "envoy_{family}{{{labels}}} 0")?;
            }
        }
        Ok(())
    }
}

/// A value that is one number.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Counter(n) | Value::Gauge(n) => Some(*n),
        Value::Histogram(_) => None,
    }
}

/// As Envoy writes texts that come from elsewhere (`Html::Utility::sanitize`).
fn escaped(text: &str) -> String {
    let escape = |c| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

fn histogram(out: &mut dyn Write, family: &str, labels: &str, seen: &Distribution) -> io::Result<()> {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, below) in BUCKETS.iter().zip(seen.below) {
        writeln!(out, "{family}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}")?;
    }
    writeln!(out, "{family}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", seen.count)?;
    writeln!(out, "{family}_sum{{{labels}}} {}", seen.sum)?;
    writeln!(out, "{family}_count{{{labels}}} {}", seen.count)
}

fn summary_of(out: &mut dyn Write, family: &str, labels: &str, seen: &Distribution) -> io::Result<()> {
    let comma = if labels.is_empty() { "" } else { "," };
    for q in QUANTILES {
        let value = if seen.count > 0 { quantile(seen, q) } else { f64::NAN };
        writeln!(out, "{family}{{{labels}{comma}quantile=\"{}\"}} {}", q / 100.0, short(value))?;
    }
    writeln!(out, "{family}_sum{{{labels}}} {}", seen.sum)?;
    writeln!(out, "{family}_count{{{labels}}} {}", seen.count)
}

/// Quantiles as in a line of text.
fn quantiles(seen: &Distribution) -> String {
    QUANTILES.iter().map(|q| format!(" P{q}(nan,{})", short(quantile(seen, *q)))).collect()
}

/// Counts by bucket as in a line of text: none of the last interval, which is not kept.
fn buckets(counts: [u64; BUCKETS.len()]) -> String {
    BUCKETS.iter().zip(counts).map(|(bound, count)| format!(" B{}(0,{count})", general(*bound))).collect()
}

/// As `%g` of C writes a bound.
fn general(bound: f64) -> String {
    if bound < 1e6 { bound.to_string() } else { format!("{}e+06", bound / 1e6) }
}

/// How many values are in each bucket.
fn disjoint(seen: &Distribution) -> [u64; BUCKETS.len()] {
    let mut below = 0;
    seen.below.map(|cumulative| cumulative.saturating_sub(std::mem::replace(&mut below, cumulative)))
}

/// Bounds and counts of the buckets that have values.
fn filled(seen: &Distribution) -> impl Iterator<Item = (f64, f64, u64)> {
    let lower = std::iter::once(0.0).chain(BUCKETS);
    let all = lower.zip(BUCKETS).zip(disjoint(seen)).map(|((lower, upper), count)| (lower, upper, count));
    all.filter(|(_, _, count)| *count > 0)
}

/// A histogram in JSON.
fn distribution(name: &str, seen: &Distribution, way: Histograms) -> serde_json::Value {
    let values = QUANTILES.map(|q| {
        let value = (seen.count > 0).then(|| quantile(seen, q));
        serde_json::json!({"interval": null, "cumulative": value})
    });
    let bucket = |(bound, count): (&f64, u64)| serde_json::json!({"upper_bound": bound, "interval": 0, "cumulative": count});
    let buckets =
        |counts: [u64; BUCKETS.len()]| -> Vec<_> { BUCKETS.iter().zip(counts).map(bucket).collect() };
    match way {
        Histograms::Summary => serde_json::json!({"name": name, "values": values}),
        Histograms::Cumulative => serde_json::json!({"name": name, "buckets": buckets(seen.below)}),
        Histograms::Disjoint => serde_json::json!({"name": name, "buckets": buckets(disjoint(seen))}),
        Histograms::Detailed => {
            let totals: Vec<_> = filled(seen)
                .map(|(lower, upper, count)| {
                    serde_json::json!({"lower_bound": lower, "width": upper - lower, "count": count})
                })
                .collect();
            serde_json::json!({"name": name, "totals": totals, "intervals": [], "percentiles": values})
        }
    }
}

/// A name that Prometheus takes: letters, digits, `_`.
fn sanitized(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn labels<'t>(tags: impl Iterator<Item = (&'t str, &'t str)>) -> String {
    let mut out = String::new();
    for (i, (tag, value)) in tags.enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        // Writing to a string never fails.
        let _ = write!(out, "{comma}{}=\"{value}\"", sanitized(tag));
    }
    out
}

/// A quantile, in percent, by straight lines between the bounds of the buckets.
pub fn quantile(seen: &Distribution, q: f64) -> f64 {
    let rank = (seen.count as f64 * q / 100.0).max(1.0);
    let mut below = 0;
    let mut lower = 0.0;
    for (bound, cumulative) in BUCKETS.iter().zip(seen.below) {
        if cumulative as f64 >= rank {
            let share = (rank - below as f64) / (cumulative - below).max(1) as f64;
            return lower + (bound - lower) * share;
        }
        (below, lower) = (cumulative, *bound);
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
    use super::super::Registry;
    use super::*;

    crate::stat_block! {
        /// For the test.
        pub struct Few {
            counters: [upstream_rq_200, upstream_rq_503], gauges: [upstream_cx_active], histograms: [upstream_rq_time],
        }
    }

    fn written(form: Form, selection: &Selection) -> String {
        let registry = Registry::new();
        let (a, _b) = (Few::new(&registry, "cluster.a."), Few::new(&registry, "cluster.b\"x."));
        a.upstream_cx_active().add(2);
        a.upstream_rq_200().add(4);
        (6..10).for_each(|ms| a.upstream_rq_time().record(ms));
        let (statistics, rules) = (registry.snapshot(), TagRules::default());
        let mut out = Vec::new();
        Page { statistics: &statistics, selection, rules: &rules }.write(form, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_lines_and_selections() {
        let all = written(Form::Text, &Selection::default());
        assert!(all.starts_with("cluster.a.upstream_cx_active: 2\ncluster.a.upstream_rq_200: 4\ncluster.b\"x.upstream_cx_active: 0\n"), "{all}");
        assert!(all.contains("cluster.a.upstream_rq_time: P0(nan,6.25) P25(nan,6.25) P50(nan,7.5)"), "{all}");
        assert!(all.ends_with("cluster.b\"x.upstream_rq_time: No recorded values\n"));
        let used = Selection {
            used_only: true,
            filter: Some(regex::Regex::new("^cluster.*active").unwrap()),
            ..Selection::default()
        };
        assert_eq!(written(Form::Text, &used), "cluster.a.upstream_cx_active: 2\n");
        let others = Selection { invert: true, kind: Some(Kind::Counters), ..used };
        assert_eq!(written(Form::Text, &others), "cluster.a.upstream_rq_200: 4\n");
        let texts = Selection { kind: Some(Kind::TextReadouts), ..Selection::default() };
        assert_eq!(written(Form::Text, &texts), "");
    }

    /// What went back to zero was left out, of which Envoy knows that it was used.
    #[test]
    fn what_is_zero_again_was_used() {
        let registry = Registry::new();
        let (a, _b) = (Few::new(&registry, "cluster.a."), Few::new(&registry, "cluster.b."));
        a.upstream_cx_active().inc();
        a.upstream_cx_active().dec();
        let statistics = registry.snapshot();
        let selection = Selection { used_only: true, ..Selection::default() };
        let mut out = Vec::new();
        let page = Page { statistics: &statistics, selection: &selection, rules: &TagRules::default() };
        page.write(Form::Text, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "cluster.a.upstream_cx_active: 0\n");
    }

    #[test]
    fn texts_come_first_and_are_labels_of_prometheus() {
        let registry = Registry::new();
        let few = Few::new(&registry, "cluster.a.");
        few.upstream_rq_200().inc();
        let texts = ["lds.version_text", "cds.version_text"].map(|name| registry.text(name));
        texts[1].set("a<\"b\">");
        let statistics = registry.snapshot();
        let written = |form, selection: &Selection| {
            let mut out = Vec::new();
            let page = Page { statistics: &statistics, selection, rules: &TagRules::default() };
            page.write(form, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let used = Selection { used_only: true, ..Selection::default() };
        let text = written(Form::Text, &used);
        let first = "cds.version_text: \"a&lt;&quot;b&quot;&gt;\"\ncluster.a.upstream_rq_200: 1\n";
        assert_eq!(text, first);
        assert!(written(Form::Text, &Selection::default()).contains("\nlds.version_text: \"\"\n"));
        let json: serde_json::Value = serde_json::from_str(&written(Form::Json, &used)).unwrap();
        assert_eq!(json["stats"][0], serde_json::json!({"name": "cds.version_text", "value": "a<\"b\">"}));
        assert!(!written(Form::Prometheus, &used).contains("version_text"));
        let texts = Selection { texts: true, ..Selection::default() };
        let line =
            "# TYPE envoy_cds_version_text gauge\nenvoy_cds_version_text{text_value=\"a<\\\"b\\\">\"} 0\n";
        assert!(written(Form::Prometheus, &texts).contains(line));
    }

    #[test]
    fn histograms_are_shown_in_four_ways() {
        let way = |form, histograms| {
            let filter = Some(regex::Regex::new("^cluster.a.*time").unwrap());
            written(form, &Selection { filter, histograms: Some(histograms), ..Selection::default() })
        };
        let name = "cluster.a.upstream_rq_time";
        let cumulative = way(Form::Text, Histograms::Cumulative);
        assert!(
            cumulative.starts_with(&format!("{name}: B0.5(0,0) B1(0,0) B5(0,0) B10(0,4) B25(0,4) ")),
            "{cumulative}"
        );
        assert!(cumulative.ends_with(" B600000(0,4) B1.8e+06(0,4) B3.6e+06(0,4)\n"), "{cumulative}");
        let disjoint = way(Form::Text, Histograms::Disjoint);
        assert!(disjoint.contains(" B5(0,0) B10(0,4) B25(0,0) "), "{disjoint}");
        let detailed = way(Form::Text, Histograms::Detailed);
        assert!(
            detailed.starts_with(&format!("{name}:\n  totals=5,5:4\n  intervals=\n  summary=P0(nan,6.25) ")),
            "{detailed}"
        );
        let json =
            |histograms| -> serde_json::Value { serde_json::from_str(&way(Form::Json, histograms)).unwrap() };
        let buckets = &json(Histograms::Cumulative)["stats"][0]["histograms"][0];
        assert_eq!((&buckets["name"], &buckets["buckets"][4]["cumulative"]), (&name.into(), &4.into()));
        assert_eq!(json(Histograms::Disjoint)["stats"][0]["histograms"][0]["buckets"][4]["cumulative"], 0);
        let details = &json(Histograms::Detailed)["stats"][0]["histograms"]["details"][0];
        assert_eq!(details["totals"], serde_json::json!([{"lower_bound": 5.0, "width": 5.0, "count": 4}]));
        let summary = way(Form::Prometheus, Histograms::Summary);
        assert!(summary.contains("# TYPE envoy_cluster_upstream_rq_time summary\n"), "{summary}");
        assert!(summary.contains("{envoy_cluster_name=\"a\",quantile=\"0.5\"} 7.5\n"), "{summary}");
    }

    #[test]
    fn json_holds_the_same() {
        let json: serde_json::Value =
            serde_json::from_str(&written(Form::Json, &Selection::default())).unwrap();
        assert_eq!(json["stats"][1], serde_json::json!({"name": "cluster.a.upstream_rq_200", "value": 4}));
        let histograms = &json["stats"][3]["histograms"]["computed_quantiles"];
        assert_eq!(histograms[0]["values"][2]["cumulative"], 7.5);
        assert_eq!(histograms[1]["values"][2]["cumulative"], serde_json::Value::Null);
        for filter in ["^nothing$", "active", "time"] {
            let some = Selection { filter: Some(regex::Regex::new(filter).unwrap()), ..Selection::default() };
            let json: serde_json::Value = serde_json::from_str(&written(Form::Json, &some)).unwrap();
            assert_eq!(json["stats"].as_array().unwrap().is_empty(), filter == "^nothing$");
        }
    }

    #[test]
    fn prometheus_families() {
        let out = written(Form::Prometheus, &Selection::default());
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

    /// Every value was summed up, twice, before its name was asked for.
    #[test]
    fn values_are_read_of_what_is_asked_for_alone() {
        let registry = Registry::new();
        let all: Vec<Few> = (0..10).map(|n| Few::new(&registry, &format!("cluster.{n}."))).collect();
        all[3].upstream_cx_active().inc();
        all[4].upstream_rq_time().record(7);
        let filter = |text| Some(regex::Regex::new(text).unwrap());
        let used_only = true;
        for (selection, lines, reads) in [
            (Selection { filter: filter("^nothing"), ..Selection::default() }, 0, 0),
            (Selection { filter: filter("7.upstream_cx_active"), ..Selection::default() }, 1, 1),
            (Selection { kind: Some(Kind::Histograms), ..Selection::default() }, 10, 10),
            (Selection { used_only, ..Selection::default() }, 2, 2),
            (Selection { used_only, filter: filter("active"), ..Selection::default() }, 1, 1),
        ] {
            let (statistics, rules) = (registry.snapshot(), TagRules::default());
            let mut out = Vec::new();
            let page = Page { statistics: &statistics, selection: &selection, rules: &rules };
            page.write(Form::Text, &mut out).unwrap();
            let out = String::from_utf8(out).unwrap();
            let read = statistics.reads.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!((out.lines().count(), read), (lines, reads), "{out}");
        }
    }

    /// A page was put together whole, with a string for each statistic, before its first byte was sent.
    #[test]
    fn a_page_is_written_as_it_is_made() {
        struct Stops(usize);
        impl Write for Stops {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let registry = Registry::new();
        let _all: Vec<Few> = (0..1000).map(|n| Few::new(&registry, &format!("cluster.{n}."))).collect();
        let (statistics, rules, selection) = (registry.snapshot(), TagRules::default(), Selection::default());
        let page = Page { statistics: &statistics, selection: &selection, rules: &rules };
        for form in [Form::Text, Form::Json, Form::Prometheus] {
            let mut out = Stops(3);
            assert_eq!(page.write(form, &mut out).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
