//! `sixfold quickstart`: a gateway on loopback with routes to try, and two upstream nodes to send them to.

use crate::Failure;
use crate::arguments::QuickstartOptions;
use crate::{gateway, logging};
use http::StatusCode;
use sixfold_core::plugin::Registry;
use sixfold_server::surface::{Answer, Query, Reply, Surface};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

/// Port of the gateway if it is free.
const PORT: u16 = 9080;

/// One route to try.
struct Example {
    /// What it shows.
    title: &'static str,
    /// The plugin that it needs, if it needs one.
    plugin: Option<&'static str>,
    /// The route, as an item of `routes`.
    route: &'static str,
    /// Options of curl and the path.
    curl: (&'static str, &'static str),
}

const EXAMPLES: &[Example] = &[
    Example {
        title: "a route to two nodes, in turn (ask twice)",
        plugin: None,
        route: "  - id: demo
    uri: /demo/*
    upstream_id: demo
",
        curl: ("", "/demo/hello?x=1"),
    },
    Example {
        title: "a route for one method and one host, with another Host for the upstream",
        plugin: None,
        route: "  - id: host
    uri: /host
    host: shop.example
    methods: [GET]
    upstream:
      type: roundrobin
      pass_host: rewrite
      upstream_host: internal.example
      nodes: {NODES}
",
        curl: ("-H 'Host: shop.example' ", "/host"),
    },
    Example {
        title: "a route that looks at the query: only with ?version=2",
        plugin: None,
        route: "  - id: version
    uri: /version
    vars: [[arg_version, '==', '2']]
    upstream_id: demo
",
        curl: ("", "/version?version=2"),
    },
    Example {
        title: "a route that answers by itself",
        plugin: Some("mocking"),
        route: "  - id: mock
    uri: /mock
    plugins:
      mocking:
        response_status: 200
        content_type: application/json
        response_example: '{\"answer\": 42}'
",
        curl: ("", "/mock"),
    },
    Example {
        title: "a route that rewrites the path: /old/x becomes /new/x",
        plugin: Some("proxy-rewrite"),
        route: "  - id: rewrite
    uri: /old/*
    plugins:
      proxy-rewrite:
        regex_uri: [^/old/(.*), /new/$1]
    upstream_id: demo
",
        curl: ("", "/old/x"),
    },
];

/// Serves until it is told to end.
pub(crate) fn run(options: &QuickstartOptions) -> Result<(), Failure> {
    let log = logging::start(&logging::LogSettings {
        level: &options.log.log_level,
        components: "",
        form: options.log.log_format,
        path: None,
    })?;
    let nodes = [demo_node("one")?, demo_node("two")?];
    let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port.map_or_else(free_port, Ok)?));
    let plugins = crate::process::plugins();
    let examples: Vec<&Example> = EXAMPLES.iter().filter(|example| example.is_served(&plugins)).collect();
    let directory = match &options.directory {
        Some(directory) => directory.clone(),
        None => std::env::temp_dir().join(format!("sixfold-quickstart-{}", std::process::id())),
    };
    write_configuration(&directory, gateway, &examples, &nodes.each_ref().map(|node| node.address))?;
    let invitation = invitation(gateway, &directory, &examples);
    let served = gateway::serve(&directory.join("config.yaml"), log, move |_| {
        // Who started it can do without.
        let _ = write!(std::io::stdout(), "{invitation}");
    });
    if options.directory.is_none() {
        // What was only for this process; nobody needs to know if it is gone already.
        let _ = std::fs::remove_dir_all(&directory);
    }
    served
}

/// [`PORT`], or another one when a gateway runs there.
fn free_port() -> Result<u16, Failure> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    // The listener of the gateway opens it again.
    Ok(bind(PORT).or_else(|_| bind(0))?.local_addr()?.port())
}

impl Example {
    fn is_served(&self, plugins: &Registry) -> bool {
        self.plugin.is_none_or(|plugin| plugins.apisix(plugin).is_some())
    }
}

fn write_configuration(
    directory: &Path,
    gateway: SocketAddr,
    examples: &[&Example],
    nodes: &[SocketAddr],
) -> Result<(), Failure> {
    let failed = |path: &Path, e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
    let files = ["config.yaml", "apisix.yaml"].map(|name| directory.join(name));
    if let Some(there) = files.iter().find(|file| file.symlink_metadata().is_ok()) {
        let file = there.display();
        return Err(Failure::new(format!(
            "--directory: {file} is there already and is not written over: choose another folder, or serve this one by \
             `sixfold run -c {}`",
            files[0].display()
        )));
    }
    std::fs::create_dir_all(directory).map_err(|e| failed(directory, e))?;
    let config = format!(
        "deployment:\n  role: data_plane\n  role_data_plane:\n    config_provider: yaml\napisix:\n  node_listen:\n    \
         - {{ip: {}, port: {}}}\n  ssl: {{enable: false}}\nnginx_config:\n  http: {{enable_access_log: false}}\n",
        gateway.ip(),
        gateway.port()
    );
    let nodes: Vec<String> = nodes.iter().map(|node| format!("\"{node}\": 1")).collect();
    let nodes = format!("{{{}}}", nodes.join(", "));
    let routes: String = examples.iter().map(|example| example.route.replace("{NODES}", &nodes)).collect();
    let resources = format!(
        "# Edit this file while the gateway runs: a change applies at once, one with a fault not at all.\n\
         routes:\n{routes}upstreams:\n  - id: demo\n    type: roundrobin\n    nodes: {nodes}\n#END\n"
    );
    for (path, text) in files.iter().zip([config, resources]) {
        std::fs::write(path, text).map_err(|e| failed(path, e))?;
    }
    Ok(())
}

fn invitation(gateway: SocketAddr, directory: &Path, examples: &[&Example]) -> String {
    let mut text = format!("A gateway is serving on http://{gateway} until Ctrl-C.\n");
    for example in examples {
        let (options, path) = example.curl;
        // Writing to a string never fails.
        let _ = write!(text, "\n# {}\ncurl -i {options}'http://{gateway}{path}'\n", example.title);
    }
    let file = directory.join("apisix.yaml");
    let _ = write!(text, "\nIts routes are in {}: edit them and ask again.\n", file.display());
    text
}

/// An upstream node that tells what it was asked.
struct Demo(&'static str);

impl Answer for Demo {
    fn at_once(&self, query: &Query) -> Option<Reply> {
        let headers: serde_json::Map<String, serde_json::Value> = query
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
            .collect();
        let parameters: Vec<String> =
            query.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let body = serde_json::json!({
            "node": self.0,
            "method": query.method.as_str(),
            "path": query.path,
            "query": parameters.join("&"),
            "headers": headers,
        });
        Some(Reply::json(StatusCode::OK, format!("{body:#}\n")))
    }

    fn answer(&self, _: &Query) -> Reply {
        Reply::text(StatusCode::NOT_FOUND, "")
    }
}

fn demo_node(name: &'static str) -> Result<Surface, Failure> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Surface::start(&format!("demo-{name}"), any, Arc::new(Demo(name)))?)
}
