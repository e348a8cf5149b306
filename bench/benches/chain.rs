//! What plugins cost: those that only look at a header, in chains of none, 8 and 20, and what a gateway commonly has of
//! APISIX's.
#![allow(clippy::unwrap_used)]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use divan::{Bencher, black_box};
use serde_json::json;
use sixfold_bench::fixtures::request;
use sixfold_core::plugin::{BuildContext, Chain, ChainBuilder, HeadPhase, Plugin, Slot, Step};
use sixfold_core::stream::Stream;

fn main() {
    divan::main();
}

struct Look;

impl Look {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        black_box(stream.request.headers.len());
        Step::Continue
    }

    fn plugin() -> Plugin {
        Plugin::of(Look).access(Look::access).header_filter(Look::access).build()
    }
}

fn chain(plugins: usize) -> Chain {
    let mut builder = ChainBuilder::new();
    (0..plugins).for_each(|_| builder.add("look", Look::plugin()));
    builder.build()
}

#[divan::bench(args = [0, 8, 20])]
fn access(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, mut stream) = (chain(plugins), request(1));
    bencher.bench_local(|| {
        let mut run = pin!(chain.run(HeadPhase::Access, &mut stream));
        // No plugin here waits, so the first poll is the last.
        matches!(run.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
    });
}

/// The plugins of a gateway, by priority, with their defaults.
fn gateway() -> Chain {
    let (registry, context) = (sixfold_plugins::registry(), BuildContext::detached());
    let trusted = ["127.0.0.0/8"];
    let real_ip = json!({"source": "http_x_forwarded_for", "trusted_addresses": trusted, "recursive": false});
    let range = json!({"length": 16, "char_set": "abcdef"});
    let request_id = json!({"header_name": "X-Request-Id", "include_in_response": true, "algorithm": "uuid", "range_id": range});
    let cors = json!({"allow_origins": "https://a.test,https://b.test", "allow_methods": "*", "allow_headers": "*",
        "max_age": 5, "allow_credential": false});
    let listed = ["10.0.0.0/8", "127.0.0.1", "192.168.0.0/16"];
    let ip_restriction = json!({"whitelist": listed, "message": "no", "response_code": 403});
    let proxy_rewrite =
        json!({"headers": {"set": {"X-To-Upstream": "1"}}, "use_real_request_uri_unsafe": false});
    let limit_count = json!({"count": 1u64 << 50, "time_window": 3600, "window_type": "fixed", "key": "remote_addr",
        "key_type": "var", "rejected_code": 503, "policy": "local", "allow_degradation": false,
        "show_limit_quota_header": true, "sync_interval": -1.0});
    let response_rewrite = json!({"headers": {"set": {"X-To-Client": "1"}}, "body_base64": false, "max_resp_body_size": 1 << 20});
    let mut builder = ChainBuilder::new();
    for (name, config) in [
        ("real-ip", real_ip),
        ("request-id", request_id),
        ("cors", cors),
        ("ip-restriction", ip_restriction),
        ("proxy-rewrite", proxy_rewrite),
        ("limit-count", limit_count),
        ("response-rewrite", response_rewrite),
        ("prometheus", json!({"prefer_name": false})),
    ] {
        let (_, factory) = registry.apisix(name).unwrap();
        builder.add(name, factory.build(&config, &context).unwrap());
    }
    builder.build()
}

/// All phases of these plugins for one request.
#[divan::bench]
fn plugins_of_a_gateway(bencher: Bencher<'_, '_>) {
    let chain = gateway();
    let fresh = || {
        let mut stream = request(1);
        stream.request.headers.push(b"Origin", b"https://a.test");
        stream.request.headers.push(b"X-Forwarded-For", b"192.168.1.2");
        stream.response.status = 200;
        stream
    };
    bencher.with_inputs(fresh).bench_local_refs(|stream| {
        for phase in [HeadPhase::Rewrite, HeadPhase::Access, HeadPhase::HeaderFilter] {
            let mut run = pin!(chain.run(phase, stream));
            assert!(run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        }
        chain.log(stream);
    });
}
