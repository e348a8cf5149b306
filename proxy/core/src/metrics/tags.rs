//! Parts of statistics' names that are labels: `cluster.NAME.upstream_rq_200` is `cluster.upstream_rq` with a
//! cluster's name and a response code (source/common/config/well_known_names.cc).

use crate::matcher::StringMatcher;
use fancy_regex::{Regex, RegexBuilder};

/// Which parts of names become labels, and which statistics are shown at all (Envoy's `stats_config`).
#[derive(Debug)]
pub struct TagRules {
    /// `use_all_default_tags`, on by default.
    pub defaults: bool,
    /// Tags found by a regular expression: its first group is cut out of the name, its second group, or the
    /// first when there is no other, is the value.
    pub patterns: Vec<(String, TagPattern)>,
    /// Tags of every statistic.
    pub fixed: Vec<(String, String)>,
    /// Which statistics are there.
    pub filter: StatsFilter,
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
        TagRules { defaults: true, patterns: Vec::new(), fixed: Vec::new(), filter: StatsFilter::All }
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

impl TagRules {
    /// Splits a name.
    pub fn split(&self, name: &str) -> Tagged {
        let mut tagged = Tagged { name: name.to_owned(), tags: Vec::new() };
        for (tag, pattern) in &self.patterns {
            let Ok(Some(groups)) = pattern.0.captures(&tagged.name) else { continue };
            let Some(cut) = groups.get(1) else { continue };
            let value = groups.get(2).unwrap_or(cut).as_str().to_owned();
            let range = cut.range();
            tagged.name.replace_range(range, "");
            tagged.tags.push((tag.clone(), value));
        }
        if self.defaults {
            split_by_default(&mut tagged);
        }
        tagged.tags.extend(self.fixed.iter().cloned());
        tagged
    }
}

/// Blocks of statistics below a resource's: they belong to the name of the statistic, not to the resource's.
const SUB_BLOCKS: &[&str] = &[
    "circuit_breakers.default",
    "circuit_breakers.high",
    "outlier_detection",
    "health_check",
    "external",
    "internal",
    "canary",
    "ssl",
    "http1",
    "http2",
    "ext_authz",
    "fault",
    "rbac",
    "jwt_authn",
    "tracing",
    "local_rate_limit",
    "http_local_rate_limit",
    "ratelimit",
    "cors",
    "csrf",
    "buffer",
    "client_ssl_auth",
    "original_dst",
    "default",
    "update_no_rebuild",
];

fn split_by_default(tagged: &mut Tagged) {
    response_code(tagged);
    let resources: [(&str, &str); 5] = [
        ("cluster", "envoy_cluster_name"),
        ("http", "envoy_http_conn_manager_prefix"),
        ("tcp", "envoy_tcp_prefix"),
        ("listener", "envoy_listener_address"),
        ("vhost", "envoy_virtual_host"),
    ];
    let Some((kind, tag, rest)) = resources.iter().find_map(|(kind, tag)| {
        let rest = tagged.name.strip_prefix(kind)?.strip_prefix('.')?;
        Some((*kind, *tag, rest.to_owned()))
    }) else {
        return;
    };
    let Some((resource, statistic)) = resource_and_statistic(&rest) else { return };
    // A resource's name may hold a resource of another kind: `listener.ADDR.http.PREFIX`, `vhost.V.route.R`.
    let inner: &[(&str, &str, &str)] = match kind {
        "listener" => &[(".http.", "http.", "envoy_http_conn_manager_prefix")],
        "vhost" => {
            &[(".vcluster.", "vcluster.", "envoy_virtual_cluster"), (".route.", "route.", "envoy_route")]
        }
        _ => &[],
    };
    let nested = inner.iter().find_map(|(separator, word, tag)| {
        let (outer, inner) = resource.split_once(separator)?;
        Some((outer, *word, *tag, inner))
    });
    match nested {
        Some((outer, word, inner_tag, inner)) => {
            tagged.tags.push((inner_tag.to_owned(), inner.to_owned()));
            tagged.tags.push((tag.to_owned(), outer.to_owned()));
            tagged.name = format!("{kind}.{word}{statistic}");
        }
        None => {
            tagged.tags.push((tag.to_owned(), resource.to_owned()));
            tagged.name = format!("{kind}.{statistic}");
        }
    }
}

/// Splits `NAME.statistic` or `NAME.sub_block.statistic`; a name may hold dots.
fn resource_and_statistic(rest: &str) -> Option<(&str, &str)> {
    let (mut resource, _) = rest.rsplit_once('.')?;
    while let Some(shorter) = SUB_BLOCKS
        .iter()
        .find_map(|block| resource.strip_suffix(block)?.strip_suffix('.').filter(|name| !name.is_empty()))
    {
        resource = shorter;
    }
    Some((resource, rest.get(resource.len() + 1..)?))
}

/// `_200` is a response code, `_2xx` a class of them.
fn response_code(tagged: &mut Tagged) {
    let Some((stem, code)) = tagged.name.rsplit_once("_rq_") else { return };
    let [first, second, third] = code.as_bytes() else { return };
    if !first.is_ascii_digit() {
        return;
    }
    let class = char::from(*first).to_string();
    let (name, tag, value) = match (second, third) {
        (b'x', b'x') => (format!("{stem}_rq_xx"), "envoy_response_code_class", class),
        (b'0'..=b'9', b'0'..=b'9') => (format!("{stem}_rq"), "envoy_response_code", code.to_owned()),
        _ => return,
    };
    tagged.tags.push((tag.to_owned(), value));
    tagged.name = name;
}

/// Whether a counter is one that Envoy makes with its first response: of a code, or a cluster's of a class. Those of TLS
/// it makes where there is TLS.
pub(super) fn appears_when_used(name: &str) -> bool {
    if name.rsplit_once('.').is_some_and(|(scope, _)| scope.ends_with(".ssl")) {
        return true;
    }
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
            (
                "cluster.outbound|80||x.svc.circuit_breakers.default.cx_open",
                "cluster.circuit_breakers.default.cx_open envoy_cluster_name=outbound|80||x.svc",
            ),
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
        ] {
            assert_eq!(split(&TagRules::default(), name), expected);
        }
    }

    #[test]
    fn patterns_as_istio_sets_them() {
        let rules = TagRules {
            defaults: false,
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
