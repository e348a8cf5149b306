//! `sixfold validate` and the small commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Output;
use support::{Directory, bootstrap, output};

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
    assert!(refused(&output(&["validate", "-c", &missing])).starts_with(&missing));
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
