//! `sixfold quickstart`: a gateway on loopback with routes to try, and two upstream nodes to send them to.

use crate::Failure;
use crate::admin::write_key;
use crate::arguments::QuickstartOptions;
use crate::replacement::{Rights, replace};
use crate::{gateway, logging};
use http::StatusCode;
use sixfold_apisix::admin::generate_key;
use sixfold_apisix::resource::Kind;
use sixfold_apisix::store::{EmbeddedStore, Key, Store, Write};
use sixfold_core::document::{Node, Object, Options};
use sixfold_core::plugin::Registry;
use sixfold_server::surface::{Answer, Query, Reply, Surface};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Port of the gateway if it is free.
const PORT: u16 = 9080;
/// Port of its Admin API if it is free.
const ADMIN_PORT: u16 = 9180;

/// One route to try.
struct Example {
    /// What it shows.
    title: &'static str,
    /// The plugin that it needs, if it needs one.
    plugin: Option<&'static str>,
    /// The resources that it is made of, as an apisix.yaml has them.
    resources: &'static str,
    /// Options of curl and the path.
    curl: (&'static str, &'static str),
}

const EXAMPLES: &[Example] = &[
    Example {
        title: "a route to two nodes, in turn (ask twice)",
        plugin: None,
        resources: "routes:
  - id: demo
    uri: /demo/*
    upstream_id: demo
",
        curl: ("", "/demo/hello?x=1"),
    },
    Example {
        title: "a route for one method and one host, with another Host for the upstream",
        plugin: None,
        resources: "routes:
  - id: host
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
        resources: "routes:
  - id: version
    uri: /version
    vars: [[arg_version, '==', '2']]
    upstream_id: demo
",
        curl: ("", "/version?version=2"),
    },
    Example {
        title: "a route that answers by itself",
        plugin: Some("mocking"),
        resources: "routes:
  - id: mock
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
        resources: "routes:
  - id: rewrite
    uri: /old/*
    plugins:
      proxy-rewrite:
        regex_uri: [^/old/(.*), /new/$1]
    upstream_id: demo
",
        curl: ("", "/old/x"),
    },
    Example {
        title: "a route for those who have a key: five requests a minute for each of them",
        plugin: Some("key-auth"),
        resources: "consumers:
  - username: visitor
    plugins:
      key-auth: {key: let-me-in}
routes:
  - id: keyed
    uri: /keyed
    plugins:
      key-auth: {}
      limit-count: {count: 5, time_window: 60, rejected_code: 429, key: consumer_name}
    upstream_id: demo
",
        curl: ("-H 'apikey: let-me-in' ", "/keyed"),
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
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let places = Places {
        gateway: loopback(options.port.map_or_else(|| free_port(PORT), Ok)?),
        admin: loopback(free_port(ADMIN_PORT)?),
        directory: match &options.directory {
            Some(directory) => directory.clone(),
            None => std::env::temp_dir().join(format!("sixfold-quickstart-{}", std::process::id())),
        },
    };
    let plugins = crate::process::plugins();
    let examples: Vec<&Example> = EXAMPLES.iter().filter(|example| example.is_served(&plugins)).collect();
    let key = places.write(&examples, &nodes.each_ref().map(|node| node.address))?;
    let invitation = places.invitation(&key, &examples);
    let served = gateway::serve(&places.directory.join("config.yaml"), log, None, move |_| {
        // Who started it can do without.
        let _ = write!(std::io::stdout(), "{invitation}");
    });
    if options.directory.is_none() {
        // What was only for this process; nobody needs to know if it is gone already.
        let _ = std::fs::remove_dir_all(&places.directory);
    }
    served
}

/// This port, or another one when somebody listens there.
fn free_port(port: u16) -> Result<u16, Failure> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    // Who listens there opens it again.
    Ok(bind(port).or_else(|_| bind(0))?.local_addr()?.port())
}

/// Where the gateway is.
struct Places {
    gateway: SocketAddr,
    admin: SocketAddr,
    directory: PathBuf,
}

impl Example {
    fn is_served(&self, plugins: &Registry) -> bool {
        self.plugin.is_none_or(|plugin| plugins.apisix(plugin).is_some())
    }
}

impl Places {
    /// Writes config.yaml and the store with the examples; answers the key of the Admin API.
    fn write(&self, examples: &[&Example], nodes: &[SocketAddr]) -> Result<String, Failure> {
        let failed = |path: &Path, e: std::io::Error| Failure::new(format!("{}: {e}", path.display()));
        let config = self.directory.join("config.yaml");
        let data = self.directory.join("data");
        let store = data.join("resources.redb");
        if let Some(there) = [&config, &store].iter().find(|file| file.symlink_metadata().is_ok()) {
            let file = there.display();
            return Err(Failure::new(format!(
                "--directory: {file} is there already and is not written over: choose another folder, or serve this one by \
                 `sixfold run -c {}`",
                config.display()
            )));
        }
        std::fs::create_dir_all(&self.directory).map_err(|e| failed(&self.directory, e))?;
        let (ip, port, admin) = (self.gateway.ip(), self.gateway.port(), self.admin.port());
        let text = format!(
            "deployment:\n  role: traditional\n  role_traditional:\n    config_provider: embedded\n  admin:\n    \
             admin_listen: {{ip: {ip}, port: {admin}}}\napisix:\n  node_listen:\n    - {{ip: {ip}, port: {port}}}\n  \
             ssl: {{enable: false}}\nnginx_config:\n  http: {{enable_access_log: false}}\n"
        );
        replace(&config, &text, Rights::Same).map_err(|e| failed(&config, e))?;
        let opened = EmbeddedStore::open(&store).map_err(Failure::new)?;
        for writes in resources(examples, nodes)? {
            opened.commit(writes).map_err(|error| Failure::new(error.to_string()))?;
        }
        let key = generate_key().map_err(Failure::new)?;
        let file = data.join("admin-key");
        write_key(&file, &key).map_err(|e| failed(&file, e))?;
        Ok(key)
    }

    fn invitation(&self, key: &str, examples: &[&Example]) -> String {
        let Places { gateway, admin, directory } = self;
        let mut text = format!("A gateway is serving on http://{gateway} until Ctrl-C.\n");
        for example in examples {
            let (options, path) = example.curl;
            // Writing to a string never fails.
            let _ = write!(text, "\n# {}\ncurl -i {options}'http://{gateway}{path}'\n", example.title);
        }
        let _ = write!(
            text,
            "\n# its routes change by the Admin API: from now on /release stands for /version\n\
             curl -i -X PATCH -H 'X-API-KEY: {key}' -d '{{\"uri\": \"/release\"}}' \
             'http://{admin}/apisix/admin/routes/version'\n\
             curl -i 'http://{gateway}/release?version=2'\n\nAll of it is in {}.\n",
            directory.display()
        );
        text
    }
}

/// The examples' resources, each kind in the order in which they need each other.
fn resources(examples: &[&Example], nodes: &[SocketAddr]) -> Result<Vec<Vec<Write>>, Failure> {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("\"{node}\": 1")).collect();
    let nodes = format!("{{{}}}", nodes.join(", "));
    let upstream = format!("upstreams:\n  - id: demo\n    type: roundrobin\n    nodes: {nodes}\n");
    let texts = examples.iter().map(|example| example.resources.replace("{NODES}", &nodes));
    let mut all = Vec::new();
    for text in std::iter::once(upstream).chain(texts) {
        let read =
            Node::parse(&text, &Options::default()).map_err(|error| Failure::new(error.to_string()))?;
        let mut writes = Vec::new();
        for entry in read.as_object().map(Object::entries).unwrap_or_default() {
            let Some(kind) = Kind::from_section(&entry.key) else { continue };
            for item in entry.value.as_array().unwrap_or_default() {
                let id = item.get("id").or_else(|| item.get("username")).and_then(Node::as_str);
                let key = Key::new(kind, id.unwrap_or_default());
                writes.push(Write::put(key, item.to_json().to_string().into()));
            }
        }
        all.push(writes);
    }
    Ok(all)
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
