//! Parts of statistics' names that are labels: `cluster.NAME.upstream_rq_200` is `cluster.upstream_rq` with a
//! cluster's name and a response code (source/common/config/well_known_names.cc).

use super::default_tags;
use crate::matcher::StringMatcher;
use fancy_regex::{Regex, RegexBuilder};

/// Which parts of names become labels, and which statistics are shown at all (Envoy's `stats_config`).
#[derive(Debug)]
pub struct TagRules {
    /// Which of the tags are there that Envoy finds by itself (`use_all_default_tags`), all by default.
    pub defaults: DefaultTags,
    /// Tags found by a regular expression: its first group is cut out of the name, its second group, or the
    /// first when there is no other, is the value.
    pub patterns: Vec<(String, TagPattern)>,
    /// Tags of every statistic.
    pub fixed: Vec<(String, String)>,
    /// Which statistics are there.
    pub filter: StatsFilter,
}

/// Tags that Envoy finds by itself.
#[derive(Debug)]
pub enum DefaultTags {
    /// Each of them.
    All,
    /// Those that `stats_tags` names and says no value of, as labels: `envoy_cluster_name`.
    Named(Vec<String>),
}

impl DefaultTags {
    /// Whether a tag is there, by its name as a label.
    fn has(&self, label: &str) -> bool {
        match self {
            DefaultTags::All => true,
            DefaultTags::Named(labels) => labels.iter().any(|known| known == label),
        }
    }
}

/// A regular expression of a tag. Envoy reads it as ECMAScript's, so it may look ahead and refer back.
#[derive(Debug)]
pub struct TagPattern(Regex);

impl TagPattern {
    /// How often a match may go back; names are short.
    const BACKTRACKS: usize = 10_000;

    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn new(pattern: &str) -> Result<TagPattern, String> {
        let regex = RegexBuilder::new(pattern).backtrack_limit(TagPattern::BACKTRACKS).build();
        regex.map(TagPattern).map_err(|error| error.to_string())
    }
}

impl Default for TagRules {
    fn default() -> TagRules {
        TagRules {
            defaults: DefaultTags::All,
            patterns: Vec::new(),
            fixed: Vec::new(),
            filter: StatsFilter::All,
        }
    }
}

/// Envoy's `stats_matcher`.
#[derive(Debug, Default)]
pub enum StatsFilter {
    /// Every statistic is there.
    #[default]
    All,
    /// None is (`reject_all`).
    Nothing,
    /// Those that any of these matches (`inclusion_list`).
    Only(Vec<StringMatcher>),
    /// Those that none of these matches (`exclusion_list`).
    Except(Vec<StringMatcher>),
}

impl StatsFilter {
    /// Whether the statistic of this name is there.
    pub fn keeps(&self, name: &str) -> bool {
        let any = |list: &[StringMatcher]| list.iter().any(|matcher| matcher.matches(name.as_bytes()));
        match self {
            StatsFilter::All => true,
            StatsFilter::Nothing => false,
            StatsFilter::Only(list) => any(list),
            StatsFilter::Except(list) => !any(list),
        }
    }
}

/// A name without the parts that became labels, and the labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Tagged {
    /// Such as `cluster.upstream_rq`.
    pub name: String,
    /// Such as `envoy_cluster_name` and `a`.
    pub tags: Vec<(String, String)>,
}

/// What is found in a name: each finder looks at the whole of it, whatever others have found.
pub(super) struct Found<'n> {
    /// The whole name.
    pub(super) name: &'n str,
    defaults: &'n DefaultTags,
    tags: Vec<(String, String)>,
    /// What is cut out of it.
    cuts: Vec<(usize, usize)>,
}

impl Found<'_> {
    /// Takes a default tag whose value is at one place, for which another is cut out, if it is wanted.
    pub(super) fn take(&mut self, tag: &str, value: (usize, usize), cut: (usize, usize)) {
        if self.defaults.has(tag) {
            self.put(tag, value, cut);
        }
    }

    fn put(&mut self, tag: &str, value: (usize, usize), cut: (usize, usize)) {
        let value = self.name.get(value.0..value.1).unwrap_or_default();
        self.tags.push((tag.to_owned(), value.to_owned()));
        self.cuts.push(cut);
    }

    /// Takes a word as a tag, and cuts it out with its dot.
    pub(super) fn take_word(&mut self, tag: &str, start: usize, end: usize) {
        self.take(tag, (start, end), (start, end + 1));
    }

    /// What is left of the name, and the tags.
    fn into_tagged(mut self) -> Tagged {
        self.cuts.sort_unstable();
        let (mut name, mut at) = (String::with_capacity(self.name.len()), 0);
        for (start, end) in self.cuts {
            name.push_str(self.name.get(at..start).unwrap_or_default());
            at = at.max(end);
        }
        name.push_str(self.name.get(at..).unwrap_or_default());
        Tagged { name, tags: self.tags }
    }
}

impl TagRules {
    /// Splits a name.
    pub fn split(&self, name: &str) -> Tagged {
        let mut found = Found { name, defaults: &self.defaults, tags: Vec::new(), cuts: Vec::new() };
        for (tag, pattern) in &self.patterns {
            let Ok(Some(groups)) = pattern.0.captures(name) else { continue };
            let Some(cut) = groups.get(1) else { continue };
            let value = groups.get(2).unwrap_or(cut);
            found.put(tag, (value.start(), value.end()), (cut.start(), cut.end()));
        }
        if !matches!(&self.defaults, DefaultTags::Named(names) if names.is_empty()) {
            default_tags::find(&mut found);
        }
        let mut tagged = found.into_tagged();
        tagged.tags.extend(self.fixed.iter().cloned());
        tagged
    }
}

/// Whether a counter is one that Envoy makes with its first response: of a code, or a cluster's of a class.
pub(super) fn appears_when_used(name: &str) -> bool {
    let Some((_, code)) = name.rsplit_once("_rq_") else { return false };
    match code.as_bytes() {
        [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9'] => true,
        [b'0'..=b'9', b'x', b'x'] => name.starts_with("cluster."),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn split(rules: &TagRules, name: &str) -> String {
        let tagged = rules.split(name);
        tagged.tags.iter().fold(tagged.name, |text, (tag, value)| format!("{text} {tag}={value}"))
    }

    #[test]
    fn default_tags() {
        for (name, expected) in [
            ("server.live", "server.live"),
            ("cluster.a.upstream_rq_total", "cluster.upstream_rq_total envoy_cluster_name=a"),
            ("cluster.a.upstream_rq_200", "cluster.upstream_rq envoy_response_code=200 envoy_cluster_name=a"),
            (
                "cluster.a.upstream_rq_2xx",
                "cluster.upstream_rq_xx envoy_response_code_class=2 envoy_cluster_name=a",
            ),
            // Of a name with dots the first word is the tag.
            (
                "cluster.outbound|80||x.svc.circuit_breakers.default.cx_open",
                "cluster.svc.circuit_breakers.default.cx_open envoy_cluster_name=outbound|80||x",
            ),
            ("cluster.plain.grpc.0", "cluster.grpc.0 envoy_cluster_name=plain"),
            (
                "cluster.plain.grpc.a.B.M.14",
                "cluster.grpc.M.14 envoy_grpc_bridge_method=B envoy_grpc_bridge_service=a envoy_cluster_name=plain",
            ),
            ("http.in.rbac.allowed", "http.rbac.allowed envoy_http_conn_manager_prefix=in"),
            (
                "http.in.rbac.istio_.shadow_denied",
                "http.rbac.shadow_denied envoy_rbac_http_prefix=istio_ envoy_http_conn_manager_prefix=in",
            ),
            (
                "http.in.rbac.q_.policy.po.allowed",
                "http.rbac.policy.allowed envoy_rbac_policy_name=po envoy_rbac_http_prefix=q_ envoy_http_conn_manager_prefix=in",
            ),
            (
                "http.in.rbac.policy.po.allowed",
                "http.rbac.policy.allowed envoy_rbac_policy_name=po envoy_http_conn_manager_prefix=in",
            ),
            ("tcp.rbac.sh_.shadow_denied", "sh_.shadow_denied envoy_tcp_prefix=rbac envoy_rbac_prefix=tcp"),
            (
                "lrp.http_local_rate_limit.ok",
                "http_local_rate_limit.ok envoy_local_http_ratelimit_prefix=lrp",
            ),
            (
                "http.in.rds.a.b.update_success",
                "http.rds.update_success envoy_rds_route_config=a.b envoy_http_conn_manager_prefix=in",
            ),
            ("http.in.rds.in|80||.version", "http.rds.in|80||.version envoy_http_conn_manager_prefix=in"),
            (
                "listener.127.0.0.1_80.ssl.versions.TLSv1.3",
                "listener.ssl.versions envoy_ssl_version=TLSv1.3 envoy_listener_address=127.0.0.1_80",
            ),
            ("listener.my.l.downstream_cx_total", "listener.l.downstream_cx_total envoy_listener_address=my"),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total"),
            (
                "http.in.downstream_rq_5xx",
                "http.downstream_rq_xx envoy_response_code_class=5 envoy_http_conn_manager_prefix=in",
            ),
            (
                "listener.0.0.0.0_80.downstream_cx_total",
                "listener.downstream_cx_total envoy_listener_address=0.0.0.0_80",
            ),
            (
                "listener.0.0.0.0_80.http.in.downstream_rq_completed",
                "listener.http.downstream_rq_completed envoy_http_conn_manager_prefix=in envoy_listener_address=0.0.0.0_80",
            ),
            (
                "vhost.v.route.r.upstream_rq_total",
                "vhost.route.upstream_rq_total envoy_route=r envoy_virtual_host=v",
            ),
            ("tcp.t.idle_timeout", "tcp.idle_timeout envoy_tcp_prefix=t"),
            ("cluster_manager.cds.update_success", "cluster_manager.cds.update_success"),
            ("proxy_proto.versions.v2.found", "proxy_proto.found envoy_proxy_protocol_version=2"),
            ("proxy_proto.not_found_allowed", "proxy_proto.not_found_allowed"),
            ("downstream_cx_proxy_proto_error", "downstream_cx_proxy_proto_error"),
        ] {
            assert_eq!(split(&TagRules::default(), name), expected);
        }
    }

    #[test]
    fn patterns_as_istio_sets_them() {
        let rules = TagRules {
            defaults: DefaultTags::Named(Vec::new()),
            patterns: vec![
                (
                    "cluster_name".into(),
                    TagPattern::new(r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)").unwrap(),
                ),
                ("response_code".into(), TagPattern::new(r"_rq(_(\d{3}))(?=$)").unwrap()),
            ],
            fixed: vec![("node".into(), "n".into())],
            filter: StatsFilter::Only(vec![StringMatcher::Prefix(b"cluster.".as_slice().into(), false)]),
        };
        assert_eq!(
            split(&rules, "cluster.xds-grpc.upstream_rq_200"),
            "cluster.upstream_rq cluster_name=xds-grpc response_code=200 node=n"
        );
        assert!(rules.filter.keeps("cluster.a.x") && !rules.filter.keeps("http.a.x"));
    }

    /// A default tag that was named beside `use_all_default_tags: false` did nothing, and each cluster had series of its own
    /// name.
    #[test]
    fn default_tags_may_be_named_one_by_one() {
        let named = DefaultTags::Named(vec!["envoy_cluster_name".to_owned()]);
        let rules = TagRules { defaults: named, ..TagRules::default() };
        assert_eq!(
            split(&rules, "cluster.a.upstream_rq_200"),
            "cluster.upstream_rq_200 envoy_cluster_name=a"
        );
        assert_eq!(split(&rules, "http.in.downstream_rq_5xx"), "http.in.downstream_rq_5xx");
    }

    #[test]
    fn counters_of_codes_appear_with_their_first_response() {
        assert!(
            appears_when_used("cluster.a.upstream_rq_204") && appears_when_used("cluster.a.upstream_rq_4xx")
        );
        assert!(
            !appears_when_used("http.a.downstream_rq_4xx")
                && !appears_when_used("cluster.a.upstream_rq_total")
        );
    }
}
