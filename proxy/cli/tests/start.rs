//! `sixfold run` and `quickstart` start anywhere: in an empty folder, and beside another gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Instant;
use support::{Directory, LIMIT, Process, free_port, get, read, send, sixfold};

const YAML: &str = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";

/// Ports that APISIX has by default, in the hands of somebody else: of this test, or of who had them before.
fn hold_default_ports() -> Vec<(u16, std::io::Result<TcpListener>)> {
    [9080, 9180, 9090, 9091, 9443, 7085].map(|port| (port, TcpListener::bind(("0.0.0.0", port)))).into()
}

fn gateway(directory: &Directory, config: &str) -> Process {
    let config = directory.write("config.yaml", config);
    directory.write(
        "apisix.yaml",
        "routes:\n  - {id: a, uri: /a, plugins: {mocking: {response_example: hi}}}\n#END\n",
    );
    let folder = directory.path("empty");
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = sixfold();
    command.args(["run", "-c", &config]).current_dir(folder);
    Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// It ended where there is no logs/, and blamed apisix.yaml for a key of config.yaml.
#[test]
fn run_starts_in_an_empty_folder_and_beside_another_gateway() {
    let held = hold_default_ports();
    let (directory, port) = (Directory::new(), free_port());
    let mut process = gateway(&directory, &format!("{YAML}apisix: {{node_listen: {port}}}\n"));
    process.until("an answer", || get(port, "/a").filter(|response| response.status == 200));
    let log = directory.0.join("empty/logs/access.log");
    process.until("a line in logs/access.log", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.contains("GET /a"))
    });
    process.signal("TERM");
    assert_eq!(process.wait(), 0);
    let errors = process.errors();
    for (port, key) in [
        (7085, "no status: apisix.status"),
        (9091, "no metrics: plugin_attr.prometheus.export_addr"),
        (9443, "no TLS: apisix.ssl.listen"),
    ] {
        // Whoever else holds a port may have let go of it by now.
        if held.iter().any(|(held, listener)| *held == port && listener.is_ok()) {
            assert!(errors.contains(key) && errors.contains(&format!(":{port}")), "{key}: {errors}");
        }
    }
}

/// Its addresses were listened on once to see whether they are free: who connected then was reset, and who waited for the port
/// took it for a gateway that serves.
#[test]
fn whoever_can_connect_is_answered() {
    let (directory, port) = (Directory::new(), free_port());
    let _process = gateway(&directory, &format!("{YAML}apisix: {{node_listen: {port}}}\n"));
    let start = Instant::now();
    // Without a pause: the moment was a short one.
    let mut first = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
    };
    send(&mut first, "GET", "/a", &[]);
    assert_eq!(read(&mut first).map(|response| response.status), Some(200));
}

#[test]
fn quickstart_takes_another_port_beside_another_gateway() {
    let _held = hold_default_ports();
    let directory = Directory::new();
    let mut command = sixfold();
    command.arg("quickstart").env("TMPDIR", &directory.0).current_dir(&directory.0);
    let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let curl = lines.into_iter().find(|line| line.starts_with("curl ") && line.contains("/mock"));
    let curl = curl.unwrap_or_else(|| panic!("{}", process.errors()));
    let port: u16 = curl.split("127.0.0.1:").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    assert_ne!(port, 9080);
    assert_eq!(get(port, "/mock").unwrap().status, 200);
    process.signal("INT");
    assert_eq!(process.wait(), 0);
    // Each one left its folder behind.
    let left: Vec<_> =
        std::fs::read_dir(&directory.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let left: Vec<_> =
        left.iter().filter(|name| name.to_string_lossy().starts_with("sixfold-quickstart")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What was asked for and can't be had is an error of the key that asked, with its line.
#[test]
fn a_configured_address_that_is_taken_names_its_key_and_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let free = free_port();
    for (config, place) in [
        (
            format!("apisix:\n  node_listen:\n    - {{ip: 127.0.0.1, port: {port}}}\n"),
            "config.yaml:4:7: apisix.node_listen[0]: can't listen on 127.0.0.1:",
        ),
        (
            format!(
                "apisix:\n  node_listen: {free}\n  ssl:\n    listen: [{{ip: 127.0.0.1, port: {port}}}]\n"
            ),
            "config.yaml:5:14: apisix.ssl.listen[0]: can't listen on 127.0.0.1:",
        ),
        (
            format!("apisix:\n  node_listen: {free}\n  status: {{ip: 127.0.0.1, port: {port}}}\n"),
            "config.yaml:4:3: apisix.status: can't listen on 127.0.0.1:",
        ),
        (
            format!(
                "apisix: {{node_listen: {free}}}\nplugin_attr:\n  prometheus:\n    export_addr: {{ip: 127.0.0.1, port: {port}}}\n"
            ),
            "config.yaml:5:5: plugin_attr.prometheus.export_addr: can't listen on 127.0.0.1:",
        ),
        (
            format!(
                "apisix: {{node_listen: {free}}}\nnginx_config:\n  http:\n    access_log: /no/such/folder/a.log\n"
            ),
            "config.yaml:5:5: nginx_config.http.access_log: can't open /no/such/folder/a.log: ",
        ),
    ] {
        let directory = Directory::new();
        let mut process = gateway(&directory, &format!("{YAML}{config}"));
        assert_eq!(process.wait(), 1);
        let errors = process.errors();
        assert!(errors.contains(place), "{place}\nnot in\n{errors}");
    }
}

/// config.yaml was read whatever the profile, and the resources of the profile with it.
#[test]
fn a_profile_chooses_both_files_unless_one_is_named() {
    let directory = Directory::new();
    std::fs::create_dir(directory.path("conf")).unwrap();
    let (plain, profiled) = (free_port(), free_port());
    for (name, port) in [("config", plain), ("config-prod", profiled)] {
        let text = format!("{YAML}apisix: {{node_listen: {port}, ssl: {{enable: false}}, status: null}}\n");
        directory.write(&format!("conf/{name}.yaml"), &text);
    }
    for name in ["apisix", "apisix-prod"] {
        let text = format!(
            "routes:\n  - {{id: a, uri: /a, plugins: {{mocking: {{response_example: of {name}}}}}}}\n#END\n"
        );
        directory.write(&format!("conf/{name}.yaml"), &text);
    }
    for (arguments, profile, port, body) in [
        (&["run"][..], "prod", profiled, "of apisix-prod"),
        (&["run"][..], "", plain, "of apisix"),
        (&["run", "-c", "conf/config.yaml"][..], "prod", plain, "of apisix-prod"),
    ] {
        let mut command = sixfold();
        command.args(arguments).current_dir(&directory.0).env("APISIX_PROFILE", profile);
        let mut process = Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let answer = process.until("an answer", || get(port, "/a").filter(|response| response.status == 200));
        assert_eq!(answer.body, body, "{arguments:?} {profile}");
        process.signal("TERM");
        assert_eq!(process.wait(), 0);
    }
}
