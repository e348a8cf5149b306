//! What files bring, and what is shown of it.

use super::*;

const CLUSTER: &str = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ROUTES: &str = "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

impl Proxy {
    fn read(&mut self, kind: Kind, path: &str, text: &str) {
        let channel = Channel::of(kind, &Source::Path(path.into()));
        self.machine.read(&channel, Ok(text.as_bytes().to_vec()), self.now);
        self.work();
    }

    /// Names of a kind, each with what is wrong with it.
    fn wrong(&self, kind: Kind) -> Vec<(String, String)> {
        let all = self.context.tracker.of(kind).into_iter();
        all.filter_map(|(key, tracked)| Some((key.name.to_string(), tracked.refused?.reason))).collect()
    }

    fn what_is_wrong(&self, kind: Kind, name: &str) -> String {
        let [(of, reason)] = &self.wrong(kind)[..] else { panic!("{:?}", self.wrong(kind)) };
        assert_eq!(of, name);
        reason.clone()
    }
}

/// They had the name of the resource and of the field, and no place.
#[test]
fn faults_of_meaning_are_told_with_file_and_line() {
    let mut proxy = Proxy::with_clusters_of(Source::Path("/cds.yaml".into()));
    let text =
        format!("resources:\n- {CLUSTER}\n  name: a\n  lb_subset_config:\n    subset_selectors: [{{}}]\n");
    proxy.read(Kind::Cluster, "/cds.yaml", &text);
    let reason = proxy.what_is_wrong(Kind::Cluster, "a");
    assert!(
        reason.starts_with("/cds.yaml:5:24: ") && reason.contains("subset_selectors[0].keys: "),
        "{reason}"
    );
    // What the file no longer says is not shown as what is wrong with it.
    proxy.read(Kind::Cluster, "/cds.yaml", "resources: [");
    assert_eq!(proxy.wrong(Kind::Cluster), []);
    proxy.read(Kind::Cluster, "/cds.yaml", &text);
    proxy.read(Kind::Cluster, "/cds.yaml", &format!("resources: [{{{CLUSTER}, name: b}}]"));
    assert_eq!((proxy.wrong(Kind::Cluster), proxy.hosts("b")), (vec![], Some(0)));
}

/// They were counted, and nothing or an older fault was shown.
#[test]
fn routes_of_a_file_that_is_wrong_as_a_whole_are_shown_as_wrong() {
    let mut proxy = Proxy::new();
    let file = std::env::temp_dir().join(format!("sixfold-rds-{}.yaml", std::process::id()));
    std::fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap();
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let listener = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{{filters: [{{name: h, typed_config: \
         {{\"@type\": {manager}, stat_prefix: s, http_filters: [{ROUTER}], rds: {{route_config_name: r, config_source: \
         {{path_config_source: {{path: {path}}}}}}}}}}}]}}]}}"
    );
    proxy.bring::<ProtoCluster>(&[], &[]);
    assert_eq!(proxy.bring::<ProtoListener>(&[("l", &listener)], &[]), ["ok"]);
    let route = |name: &str| format!("{{{ROUTES}, name: {name}}}");
    let cases = [
        (format!("resources: [{}, {}]", route("r"), route("s")), ":1:1: resources: must be one"),
        (format!("resources: [{}, {}]", route("r"), route("r")), ":1:1: resources: must be one"),
        (String::new(), ":"),
        (format!("resources:\n- {ROUTES}\n  name: s\n"), ":3:3: resources[0].name: must be \"r\""),
    ];
    for (text, wanted) in cases {
        proxy.read(Kind::Routes, path, &text);
        let reason = proxy.what_is_wrong(Kind::Routes, "r");
        assert!(reason.starts_with(&format!("{path}{wanted}")), "{text}: {reason}");
    }
    proxy.read(Kind::Routes, path, &format!("resources: [{}]", route("r")));
    assert_eq!(proxy.wrong(Kind::Routes), []);
    std::fs::remove_file(&file).unwrap();
}
