//! `sixfold validate` and the small commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Output;
use support::{Directory, bootstrap, output, sixfold};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    text(&output.stderr)
}

#[test]
fn good_files_of_each_kind() {
    let directory = Directory::new();
    let envoy = directory.write("e.yaml", &bootstrap(1, 2, "x", &directory.0.join("a.log")));
    let config = directory
        .write("config.yaml", "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n");
    let resources = directory
        .write("apisix.yaml", "routes:\n  - {id: a, uri: /, upstream: {nodes: {'a.test:80': 1}}}\n#END\n");
    for (file, what) in
        [(&envoy, "Envoy bootstrap"), (&config, "APISIX configuration"), (&resources, "APISIX resources")]
    {
        let output = output(&["validate", "-c", file]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stdout).starts_with(&format!("{file}: {what}")), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    let reported = "nginx_config: {max_pending_timers: 5}\n";
    let config = directory.write(
        "config.yaml",
        &format!("deployment: {{role: data_plane, role_data_plane: {{config_provider: yaml}}}}\n{reported}"),
    );
    let output = output(&["validate", "-c", &config]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let warning = text(&output.stderr);
    assert!(
        warning.starts_with("warning: ") && warning.contains("nginx_config.max_pending_timers"),
        "{warning}"
    );
}

/// It failed with `it is for gateways alone to ask`, so that no unit could check its file before it starts a gateway.
#[test]
fn a_configuration_with_its_resources_in_an_etcd_is_checked_without_them() {
    let directory = Directory::new();
    for role in ["data_plane", "traditional"] {
        let text = |more: &str| {
            format!(
                "deployment:\n  role: {role}\n  role_{role}: {{config_provider: etcd}}\n  \
                 admin: {{admin_listen: {{port: {}}}}}\n  etcd: {{host: ['http://127.0.0.1:1'], timeout: 1}}\n{more}",
                support::free_port()
            )
        };
        let config = directory.write("config.yaml", &text(""));
        let done = output(&["validate", "-c", &config]);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            told.starts_with(&format!("{config}: APISIX configuration: OK; resources in etcd")),
            "{told}"
        );
        let config = directory.write("config.yaml", &text("apisix: {node_listen: [0.5]}\n"));
        let faults = refused(&output(&["validate", "-c", &config]));
        assert!(faults.contains("apisix.node_listen[0]"), "{faults}");
    }
}

#[test]
fn faults_are_named_with_place_field_and_reason() {
    let directory = Directory::new();
    let bad = bootstrap(1, 2, "x", &directory.0.join("a.log")).replace("stat_prefix: in", "stat_prefx: in");
    let file = directory.write("bad.yaml", &bad);
    let message = refused(&output(&["validate", "-c", &file]));
    assert!(message.starts_with(&format!("{file}:15:")), "{message}");
    assert!(
        message.contains("stat_prefx: unknown field") && message.contains("did you mean \"stat_prefix\""),
        "{message}"
    );

    let file =
        directory.write("apisix.yaml", "routes:\n  - id: a\n    uri: /\n    upstream_id: none\n#END\n");
    let message = refused(&output(&["validate", "-c", &file]));
    assert_eq!(message, format!("{file}:4:5: route \"a\": upstream_id: there is no upstream \"none\"\n"));

    let file = directory.write("broken.yaml", "a: [1,\n");
    assert!(refused(&output(&["validate", "-c", &file])).starts_with(&format!("{file}:")));
    let file = directory.write("other.yaml", "some: thing\n");
    assert!(refused(&output(&["validate", "-c", &file])).contains("neither an Envoy bootstrap"));
    let missing = directory.path("missing.yaml");
    let unread = output(&["validate", "-c", &missing]);
    assert_eq!(unread.status.code(), Some(2), "a file that can't be read is no verdict: {unread:?}");
    assert!(text(&unread.stderr).starts_with(&missing));
    let binary = directory.path("binary.yaml");
    std::fs::write(&binary, b"routes:\n- \xff\n#END\n").unwrap();
    let message = refused(&output(&["validate", "-c", &binary]));
    assert_eq!(message, format!("{binary}:2:3: not UTF-8 from here\n"));
}

#[test]
fn what_apisix_would_ignore_is_a_warning_unless_one_is_strict() {
    let directory = Directory::new();
    let role = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
    let config =
        directory.write("config.yaml", &format!("{role}apisix:\n  enable_debug: false\n  node_listne: 1\n"));
    directory.write("apisix.yaml", "x: 1\nroutes: []\nroutes: []\n#END\n");
    let lenient = output(&["validate", "-c", &config]);
    assert_eq!(lenient.status.code(), Some(0), "{lenient:?}");
    let warnings = text(&lenient.stderr);
    for part in [
        ":3:3: apisix.enable_debug: ",
        "did you mean \"node_listen\"?",
        "apisix.yaml:1:1: x: ",
        "duplicate key",
    ] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
    assert_eq!(
        refused(&output(&["validate", "--strict", "-c", &config])).lines().count(),
        warnings.lines().count()
    );
    assert_eq!(output(&["validate", "-c", &directory.path("apisix.yaml")]).status.code(), Some(0));
}

/// A misspelt name of a filter was told by nobody, and what it should have done was not done.
#[test]
fn settings_of_routes_that_no_filter_reads_are_a_warning_unless_one_is_strict() {
    let directory = Directory::new();
    let good = bootstrap(1, 2, "x", &directory.0.join("a.log"));
    let domains = "domains: [\"*\"]";
    let settings = "typed_per_filter_config: {ruter: {'@type': \
                    type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}";
    let file = directory
        .write("e.yaml", &good.replacen(domains, &format!("{domains}\n              {settings}"), 1));
    let lenient = output(&["validate", "-c", &file]);
    assert_eq!(lenient.status.code(), Some(0), "{lenient:?}");
    let warning = text(&lenient.stderr);
    assert!(
        warning.starts_with(&format!("warning: {file}:")) && warning.contains("no filter is called"),
        "{warning}"
    );
    assert!(refused(&output(&["validate", "--strict", "-c", &file])).contains("no filter is called"));
}

#[test]
fn version_and_completions() {
    assert_eq!(text(&output(&["version"]).stdout), format!("sixfold {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&output(&["completions", shell]).stdout).contains("quickstart"));
    }
    // A wrong option is clap's affair: exit code 2.
    assert_eq!(output(&["--no-such-option"]).status.code(), Some(2));
}

/// It was a warning, and every callout failed.
#[test]
fn a_file_of_authorities_that_is_not_there_is_an_error_of_its_key() {
    let directory = Directory::new();
    directory.write("apisix.yaml", "#END\n");
    let role = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
    for (key, said) in [
        ("ssl: {ssl_trusted_certificate: /no/such.pem}", "apisix.ssl.ssl_trusted_certificate: "),
        ("dns_resolver: [nowhere]", "apisix.dns_resolver[0]: expected an address"),
    ] {
        let config = directory.write("config.yaml", &format!("{role}apisix:\n  {key}\n"));
        let message = refused(&output(&["validate", "-c", &config]));
        assert!(message.starts_with(&format!("{config}:3:")) && message.contains(said), "{message}");
    }
}

/// A file without resources was "empty"; `run` serves it.
#[test]
fn a_file_without_resources_is_right() {
    let directory = Directory::new();
    let file = directory.write("apisix.yaml", "#END\n");
    let output = output(&["validate", "-c", &file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

const LEFT_OUT: &str = "bootstrap_extensions:
  - name: inside
    typed_config: {'@type': type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
static_resources: {}
";

/// The log alone told of it, which is no place to look for one who validates a file.
#[test]
fn what_is_left_out_of_a_bootstrap_is_a_warning() {
    let directory = Directory::new();
    let file = directory.write("b.yaml", LEFT_OUT);
    let told = output(&["validate", "-c", &file]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    let warning = text(&told.stderr);
    assert!(
        warning.starts_with(&format!("warning: {file}: bootstrap extension \"inside\""))
            && warning.contains("left out"),
        "{warning}"
    );
    assert!(
        refused(&output(&["validate", "--strict", "-c", &file])).contains("there are no internal listeners")
    );
}

/// Faults had the place in a text that nobody has written.
#[test]
fn faults_of_a_file_have_their_places_whatever_the_options_add() {
    let directory = Directory::new();
    let file = directory.write("b.yaml", "static_resources:\n  clusters:\n    - {name: a, type: NONE}\n");
    for options in [&["--service-node", "n"][..], &["--config-yaml", "admin: {}"]] {
        let arguments = [&["envoy", "--mode", "validate", "-c", &file][..], options].concat();
        let message = refused(&output(&arguments));
        assert!(message.starts_with(&format!("{file}:3:")), "{message}");
    }
    let message =
        refused(&output(&["envoy", "--mode", "validate", "-c", &file, "--config-yaml", "admin:{}"]));
    assert!(message.starts_with(&format!("{file}:3:")), "{message}");
    assert!(message.contains("\n--config-yaml:1:1: must be an object"), "{message}");
}

/// Beside a fault of the file another was told, of the node that the command line names, and `validate` could not be told it.
#[test]
fn a_node_of_the_command_line_is_not_missing() {
    let directory = Directory::new();
    let lds = directory.write("lds.yaml", "resources: []\n");
    let bootstrap = format!("dynamic_resources: {{lds_config: {{path_config_source: {{path: {lds}}}}}}}\n");
    let file = directory.write("b.yaml", &bootstrap);
    let node = ["--service-node", "a", "--service-cluster", "b"];
    let told = output(&[&["validate", "-c", &file][..], &node].concat());
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(refused(&output(&["validate", "-c", &file])).contains("needs the id and the cluster of a node"));
    let file = directory.write("b.yaml", &format!("{bootstrap}typo: 1\n"));
    let message = refused(&output(&[&["envoy", "--mode", "validate", "-c", &file][..], &node].concat()));
    assert!(message.starts_with(&format!("{file}:2:1: typo: unknown field")), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    let empty = output(&["envoy", "--mode", "validate", "--config-yaml", ""]);
    assert!(refused(&empty).contains("one of --config-path and --config-yaml is needed"));
}

/// They became the name of a file.
#[test]
fn what_nginx_takes_for_an_access_log_and_is_no_path_is_refused() {
    let directory = Directory::new();
    directory.write("apisix.yaml", "#END\n");
    let role = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
    for value in ["syslog:server=127.0.0.1:514", "logs/access.log combined", "logs/$host.log", "''"] {
        let file = format!("{role}nginx_config:\n  http:\n    access_log: {value}\n");
        let config = directory.write("config.yaml", &file);
        let message = refused(&output(&["validate", "-c", &config]));
        let place = format!("{config}:4:");
        assert!(
            message.starts_with(&place) && message.contains("nginx_config.http.access_log: "),
            "{message}"
        );
    }
}

/// A closed standard output was a panic.
#[test]
fn a_standard_output_that_is_full_is_an_error() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let directory = Directory::new();
    let file = directory.write("apisix.yaml", "#END\n");
    // Of `validate` 1 would be a verdict.
    for (arguments, code) in
        [(&["validate", "-c", &file][..], 2), (&["completions", "bash"], 1), (&["version"], 1)]
    {
        let ended = sixfold().args(arguments).stdout(full()).output().unwrap();
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        assert!(text(&ended.stderr).contains("No space left"), "{ended:?}");
    }
}

/// A fault of config.yaml hid its warnings and the other file, and one of that file as a whole its resources.
#[test]
fn faults_of_both_files_are_told_at_once() {
    let directory = Directory::new();
    let role = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";
    let config = format!("{role}apisix:\n  node_listne: 1\n  enable_ipv6: 7\n  id: ${{{{SIXFOLD_NONE}}}}\n");
    let config = directory.write("config.yaml", &config);
    let resources = directory.write(
        "apisix.yaml",
        "routes:
  - {id: a, uri: /a, upstream_id: none, frob: 1}
  - {id: b, uri: /b, host: '${{SIXFOLD_NONE}}', upstream_id: '${{SIXFOLD_MORE}}'}
  - {id: c, uri: /c, upstream_id: u}
upstreams: [{id: u, nodes: {'${{SIXFOLD_NONE}}:80': 1}}]
services: 5
",
    );
    let output = output(&["validate", "-c", &config]);
    let said = refused(&output);
    let parts = [
        (&config, ":3:3: apisix.node_listne: unknown field; did you mean"),
        (
            &config,
            ":5:7: apisix.id: failed to handle configuration: can't find environment variable SIXFOLD_NONE",
        ),
        (&config, ":4:16: apisix.enable_ipv6: "),
        (&resources, ": the file does not end with #END"),
        (&resources, ":2:22: route \"a\": upstream_id: there is no upstream \"none\""),
        (&resources, ":2:41: route \"a\": frob: additional properties forbidden, found frob"),
        (&resources, ":3:29: failed to handle configuration: can't find environment variable SIXFOLD_NONE"),
        (&resources, ":3:63: failed to handle configuration: can't find environment variable SIXFOLD_MORE"),
        // Not that of route "c": its upstream is wrong in nothing but the variable below.
        (&resources, ":5:30: failed to handle configuration: can't find environment variable SIXFOLD_NONE"),
        (&resources, ":6:11: services: expected a list, found a number"),
    ];
    for (file, part) in parts {
        assert!(said.contains(&format!("{file}{part}")), "{part}: {said}");
    }
    assert_eq!(said.lines().count(), parts.len(), "{said}");
    // What config.yaml says of resources is not known, and those that are not there are no fault of their own.
    std::fs::remove_file(&resources).unwrap();
    assert_eq!(refused(&self::output(&["validate", "-c", &config])).lines().count(), 3);
}

#[test]
fn findings_are_told_as_json() {
    let directory = Directory::new();
    let resources = "routes:\n  - {id: a, uri: /, upstream_id: none, nmae: x}\n#END\n";
    let file = directory.write("apisix.yaml", resources);
    let output = output(&["validate", "-c", &file, "--output", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["valid"], &found["kind"]), (&false.into(), &"APISIX resources".into()));
    let fault = &found["errors"][0];
    assert_eq!((fault["line"].as_u64(), fault["column"].as_u64()), (Some(2), Some(21)));
    assert_eq!(
        (fault["resource"].as_str(), fault["field"].as_str()),
        (Some("route \"a\""), Some("upstream_id"))
    );
    assert!(fault["message"].as_str().unwrap().ends_with(fault["reason"].as_str().unwrap()), "{fault}");
    let envoy = directory.write("e.yaml", "static_resources: {listeners: [{nmae: x}]}\n");
    let found = self::output(&["validate", "-c", &envoy, "-o", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert!(found["errors"].to_string().contains("nmae"), "{found}");
    let other = directory.write("o.yaml", "other: 1\n");
    let found = self::output(&["validate", "-c", &other, "-o", "json"]);
    assert!(text(&found.stdout).contains("\"kind\": null"), "{found:?}");
}

#[test]
fn resources_are_dumped_as_a_file_that_is_read_as_the_same() {
    let directory = Directory::new();
    let resources = "routes:
  - {id: a, uri: /a, plugins: {key-auth: {}}, upstream: {nodes: {'127.0.0.1:1': 1}}}
consumers:
  - {username: jack}
  - {id: jack/credentials/c, plugins: {key-auth: {key: 'k: #'}}}
#END
";
    let file = directory.write("apisix.yaml", resources);
    let dumped = output(&["dump", "-c", &file]);
    assert!(dumped.status.success(), "{dumped:?}");
    let again = directory.write("again.yaml", &text(&dumped.stdout));
    assert!(output(&["validate", "--strict", "-c", &again]).status.success());
    assert_eq!(text(&output(&["dump", "-c", &again]).stdout), text(&dumped.stdout));
    let json = output(&["dump", "-c", &file, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["consumers"][1]["id"], "jack/credentials/c");
    let envoy = directory.write("e.yaml", "static_resources: {}\n");
    assert!(refused(&output(&["dump", "-c", &envoy])).contains("is an Envoy bootstrap"));
}
