//! An APISIX gateway whose resources are kept in memory: what a change costs that comes from within the process.
//!
//! `gateway-in-memory CONFIG ROUTES PORT`: config.yaml, how many routes there are, and the port of 127.0.0.1 where the
//! upstream that each route brings is. The n-th route takes `/svc/N/*`. Each line `N PORT` of standard input gives the
//! n-th route another port; the end of the input ends the program.

use std::error::Error;
use std::io::stdin;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fmt};

use sixfold_apisix::config::{Config, EnvVars};
use sixfold_apisix::resource::Kind;
use sixfold_apisix::store::{Key, MemoryStore, StoreExt};
use sixfold_apisix::{Feed, Source, SourceContext, Update, load_config};
use sixfold_core::compile::CompileContext;
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{BuildContext, Callout};
use sixfold_server::admin::Lifecycle;
use sixfold_server::callout::{CalloutConfig, Callouts};
use sixfold_server::dns::{DnsCache, ResolverConfig};
use sixfold_server::log_file::LogFiles;
use sixfold_server::server::Server;
use sixfold_server::worker::Options;

/// When access logs are written at the latest, as by `sixfold run`.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [config, routes, port] = words.as_slice() else {
        return Err("usage: gateway-in-memory CONFIG ROUTES PORT".into());
    };
    let store = MemoryStore::default();
    for n in 1..=routes.parse()? {
        put(&store, n, port.parse()?)?;
    }
    let config = load_config(&PathBuf::from(config), &EnvVars::Process).map_err(several)?;
    let _gateway = start(config, store.clone())?;
    for line in stdin().lines() {
        let line = line?;
        let (n, port) = line.split_once(' ').ok_or_else(|| format!("not `N PORT`: {line}"))?;
        put(&store, n.parse()?, port.parse()?)?;
    }
    Ok(())
}

/// What serves as long as it is held.
struct Gateway {
    _feed: Feed,
    _server: Server,
    _logs: LogFiles,
}

/// The same parts as of `sixfold run`, but for the store.
fn start(config: Config, store: MemoryStore) -> Result<Gateway, Box<dyn Error>> {
    let registry = Registry::default();
    let dns = DnsCache::start(ResolverConfig::default())?;
    let callout: Arc<dyn Callout> = Arc::new(Callouts::new(dns.clone(), CalloutConfig::default()));
    let build = BuildContext::new(callout.clone(), registry.clone());
    let workers = config.worker_processes.unwrap_or(1);
    let options = Options { concurrency: workers, ..Options::default() };
    let server = Server::start(options, registry.clone(), Arc::default(), callout, Lifecycle::default())?;
    server.set_dns(dns);
    let logs = LogFiles::new(FLUSH_INTERVAL, &registry);
    let plugins = sixfold_plugins::registry();
    let compile = CompileContext::new(server.model(), plugins, build, Arc::new(logs.clone()));
    let context = SourceContext::new(compile, EnvVars::Process);
    let mut source = Source::new(config, Arc::new(store), context);
    let Update { diff, refused, .. } = source.pull().map_err(several)?;
    if !refused.is_empty() {
        return Err(several(refused).into());
    }
    server.apply_blocking(diff).map_err(several)?;
    let applying = server.clone();
    let feed = Feed::start(source, move |diff| {
        for error in applying.apply_blocking(diff).err().into_iter().flatten() {
            eprintln!("part of a change is not in force: {error}");
        }
    })?;
    Ok(Gateway { _feed: feed, _server: server, _logs: logs })
}

/// Gives the n-th route an upstream at `port`.
fn put(store: &MemoryStore, n: usize, port: u16) -> Result<(), Box<dyn Error>> {
    let value = format!(
        r#"{{"uri": "/svc/{n}/*", "upstream": {{"type": "roundrobin", "nodes": {{"127.0.0.1:{port}": 1}}}}}}"#
    );
    store.put(&Key::new(Kind::Route, n.to_string().as_str()), value.into())?;
    Ok(())
}

fn several(errors: Vec<impl fmt::Display>) -> String {
    errors.into_iter().map(|error| error.to_string()).collect::<Vec<_>>().join("\n")
}
