//! Filters of a mesh's sidecars and plugins of a gateway with the requests that they judge, run as the request path runs them: what each costs a request.

mod apisix;
mod limits;
mod mesh;
mod policies;
mod tokens;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use prost::{Message, Name};
use serde_json::Value;
use sixfold_core::connection::{Certificate, Connection, TlsInfo};
use sixfold_core::detached::Nowhere;
use sixfold_core::document::Node;
use sixfold_core::metrics;
use sixfold_core::plugin::{
    BuildContext, Chain, ChainBuilder, FilterConfig, HeadPhase, Outcome, Passed, RequestPhases,
};
use sixfold_core::stream::Stream;
use sixfold_xds_api::json::message_from_node;

/// Requests that are made before any of them is run, so that making them is not measured. Few, so that they stay in the cache.
const BATCH: usize = 16;

/// A filter in one configuration.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name on the command line and among the goals.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    make: fn() -> Result<Ready>,
}

/// All of them, in the order of the report.
pub const CASES: [Case; 17] = [
    case("rbac-paths", "rbac, 100 policies, each of a path", policies::of_paths),
    case("rbac-principals", "rbac, 100 policies, each of a service account", policies::of_principals),
    case("rbac-one-path", "rbac, 100 policies of one path, each of a service account", policies::of_one_path),
    case("rbac-namespaces", "rbac, 100 policies of one path, each of a namespace", policies::of_namespaces),
    case(
        "rbac-addresses",
        "rbac, 100 policies of one path, each of a range of addresses",
        policies::of_addresses,
    ),
    case("jwt", "jwt_authn, RS256, a token that is verified with a key at hand", tokens::verified),
    case("jwt-cache", "jwt_authn, RS256, a token that came before", tokens::cached),
    case("limit", "local_ratelimit, one bucket", limits::one_bucket),
    case("limit-descriptors", "local_ratelimit, 100 descriptors of a header's value", limits::descriptors),
    case("limit-values", "local_ratelimit, a descriptor of any value of a header", limits::values),
    case("metadata", "istio.metadata_exchange, inbound", mesh::metadata),
    case("stats", "istio.stats, inbound", mesh::stats_of_called),
    case("stats-caller", "istio.stats, outbound", mesh::stats_of_caller),
    case("gateway", "eight plugins of a gateway, from real-ip to prometheus", apisix::gateway),
    case("limit-count", "limit-count and prometheus", apisix::counted),
    case("jwt-auth", "jwt-auth, HS256", apisix::jwt_auth),
    case("key-auth", "key-auth among 10,000 consumers", apisix::key_auth),
];

const fn case(name: &'static str, title: &'static str, make: fn() -> Result<Ready>) -> Case {
    Case { name, title, make }
}

/// A chain that was built, and what makes requests that it lets pass.
pub struct Ready {
    chain: Arc<Chain>,
    request: Box<dyn Fn() -> Stream>,
}

impl Case {
    /// The chain and its requests.
    ///
    /// # Errors
    /// The filter refuses its configuration, or a request.
    pub fn ready(self) -> Result<Ready> {
        let ready = (self.make)()?;
        // Once before anything is measured: what is made when it is first needed is made.
        ensure!(run(&ready.chain, &mut ready.request()), "{}: the request does not pass", self.name);
        Ok(ready)
    }
}

impl Ready {
    /// A request that has not met the chain.
    pub fn request(&self) -> Stream {
        (self.request)()
    }

    /// Runs a request through the chain and drops it.
    pub fn run(&self, stream: Stream) -> bool {
        run_and_drop(&self.chain, stream)
    }

    /// Nanoseconds that the filter adds to a request: the median, over so many batches, of the difference between its chain and one
    /// without filters.
    pub fn nanoseconds(&self, batches: usize) -> f64 {
        let empty = Chain::empty();
        let mut differences: Vec<f64> =
            (0..batches).map(|_| self.batch(&self.chain) - self.batch(&empty)).collect();
        differences.sort_by(f64::total_cmp);
        differences.get(batches / 2).copied().unwrap_or_default()
    }

    /// Nanoseconds a request of a batch.
    fn batch(&self, chain: &Arc<Chain>) -> f64 {
        let requests: Vec<Stream> = (0..BATCH).map(|_| self.request()).collect();
        let started = Instant::now();
        for request in requests {
            std::hint::black_box(run_and_drop(chain, std::hint::black_box(request)));
        }
        started.elapsed().as_nanos() as f64 / BATCH as f64
    }
}

/// Kept whole, so that instructions can be counted of it alone.
#[inline(never)]
fn run_and_drop(chain: &Arc<Chain>, mut stream: Stream) -> bool {
    run(chain, &mut stream)
}

/// All phases of a request and its response; whether it passes. No filter here waits.
fn run(chain: &Arc<Chain>, stream: &mut Stream) -> bool {
    let mut chain = chain.clone();
    let phases = async {
        let mut request = RequestPhases::default();
        loop {
            match request.run(&mut chain, stream).await {
                Passed::Done => break,
                Passed::ClearRoute | Passed::Identified => {}
                _ => return false,
            }
        }
        for phase in [HeadPhase::BeforeProxy, HeadPhase::HeaderFilter] {
            if chain.has(phase) && !matches!(chain.run(phase, stream).await, Outcome::Done) {
                return false;
            }
        }
        chain.log(stream);
        true
    };
    matches!(pin!(phases).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(true))
}

/// A context in which filters of one connection manager are built.
fn context() -> BuildContext {
    BuildContext {
        scope: "http.bench.".into(),
        ..BuildContext::new(Arc::new(Nowhere), metrics::Registry::new())
    }
}

/// A chain of one filter of this configuration.
fn chain<M: Message + Default + Name>(config: Value, context: &BuildContext) -> Result<Arc<Chain>> {
    let message: M = message_from_node(&Node::from_json(config)).map_err(|error| anyhow!("{error}"))?;
    let registry = sixfold_plugins::registry();
    let factory = registry.filter(&M::full_name()).ok_or_else(|| anyhow!("no filter {}", M::full_name()))?;
    let given = FilterConfig { config: &message.encode_to_vec(), ..FilterConfig::default() };
    let plugin = factory.build(&given, context).map_err(|error| anyhow!("{error}"))?;
    let mut builder = ChainBuilder::new().reverse_response();
    builder.add("filter", plugin);
    Ok(Arc::new(builder.build()))
}

/// A request over mutual TLS from a service account of the namespace `shop`, with the headers of a browser's call.
fn request(target: &str, headers: &[(&str, &str)]) -> Stream {
    let named =
        |uri: &str| Some(Arc::new(Certificate { uri_sans: vec![uri.to_owned()], ..Certificate::default() }));
    let tls = TlsInfo {
        peer: named("spiffe://cluster.local/ns/shop/sa/frontend"),
        local: named("spiffe://cluster.local/ns/default/sa/server"),
        peer_validated: true,
        ..TlsInfo::default()
    };
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([10, 0, 0, 1], 9080).into());
    let mut stream = Stream::new(Arc::new(Connection { tls: Some(tls), ..Connection::plain(client, own) }));
    stream.request.authority = b"server.default.svc.cluster.local:9080".to_vec();
    stream.request.target.set(target.as_bytes());
    let usual = [
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("x-forwarded-proto", "https"),
        ("x-request-id", "7c2f6d5e-0000-4000-8000-000000000000"),
    ];
    for (name, value) in usual.iter().chain(headers) {
        stream.request.headers.push(name.as_bytes(), value.as_bytes());
    }
    stream.response.status = 200;
    stream.response.headers.push(b"content-type", b"text/html");
    stream.response.headers.push(b"content-length", b"5");
    stream
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_case_is_measured_by_requests_that_pass() {
        for case in CASES {
            let ready = case.ready().unwrap_or_else(|error| panic!("{}: {error}", case.name));
            assert!((0..3).all(|_| ready.run(ready.request())), "{}", case.name);
        }
    }

    #[test]
    fn names_tell_cases_apart() {
        for (at, case) in CASES.iter().enumerate() {
            assert!(CASES.iter().skip(at + 1).all(|other| other.name != case.name), "{}", case.name);
        }
    }

    /// What is measured is the judgement: a request of somebody else is refused.
    #[test]
    fn policies_and_tokens_are_judged() {
        let judges = |case: &&Case| case.name.starts_with("rbac") || case.name.starts_with("jwt");
        for case in CASES.iter().filter(judges) {
            let ready = case.ready().unwrap();
            let mut other = ready.request();
            other.request.target.set(b"/other");
            other.request.headers.remove("authorization");
            other.connection =
                Arc::new(Connection::plain(([10, 9, 9, 9], 1).into(), ([10, 0, 0, 1], 1).into()));
            other.remote = ([10, 9, 9, 9], 1).into();
            assert!(!ready.run(other), "{}", case.name);
        }
    }
}
