#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::{self, Alone, context, response_header, stream};
use sixfold_core::connection::Connection;
use sixfold_core::runtime::Runtime;
use smallvec::smallvec;

const BUCKET: &str = "token_bucket: {max_tokens: 2, tokens_per_fill: 1, fill_interval: 3600s}";
const ON: &str =
    "filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}";

fn built(config: &str, levels: &[&str], context: &BuildContext) -> Result<Alone, String> {
    testing::filter_of_in::<Config, Config>(&factory(), config, levels, context)
}

fn limit(config: &str) -> Alone {
    built(&format!("{{stat_prefix: rl, {config}}}"), &[], &context()).unwrap()
}

async fn statuses(filter: &Alone, requests: usize) -> Vec<u16> {
    let mut answers = Vec::new();
    for _ in 0..requests {
        let reply = filter.access(&mut stream("/", &[])).await;
        answers.push(reply.map_or(200, |reply| reply.status));
    }
    answers
}

#[tokio::test]
async fn requests_beyond_the_tokens_are_limited_and_counted() {
    let context = context();
    let filter = built(&format!("{{stat_prefix: rl, {BUCKET}, {ON}}}"), &[], &context).unwrap();
    assert_eq!(statuses(&filter, 4).await, [200, 200, 429, 429]);
    let counted = ["enabled", "ok", "rate_limited", "enforced"];
    let counted = counted.map(|name| context.metrics.sum("rl.http_local_rate_limit.", name));
    assert_eq!(counted, [4, 2, 2, 2]);
}

#[tokio::test]
async fn it_is_off_and_enforces_nothing_unless_told_to() {
    assert_eq!(statuses(&limit(BUCKET), 4).await, [200; 4]);
    let counts = limit(&format!(
        "{BUCKET}, filter_enabled: {{default_value: {{numerator: 100}}}}, request_headers_to_add_when_not_enforced: [{{header: {{key: x-over, value: 'yes'}}}}]"
    ));
    assert_eq!(statuses(&counts, 2).await, [200; 2]);
    let mut third = stream("/", &[]);
    assert!(counts.access(&mut third).await.is_none());
    assert_eq!(third.request.headers.get("x-over"), Some(&b"yes"[..]));
}

#[tokio::test]
async fn the_runtime_may_turn_it_on() {
    let values = [("rl.on".to_owned(), serde_json::json!(100))].into();
    let context = BuildContext { runtime: Arc::new(Runtime::new(values)), ..context() };
    let on = "default_value: {numerator: 0}, runtime_key: rl.on";
    let config =
        format!("{{stat_prefix: rl, {BUCKET}, filter_enabled: {{{on}}}, filter_enforced: {{{on}}}}}");
    assert_eq!(statuses(&built(&config, &[], &context).unwrap(), 3).await, [200, 200, 429]);
}

#[tokio::test]
async fn the_answer_says_what_it_is_told_to() {
    let filter = limit(&format!(
        "{BUCKET}, {ON}, status: {{code: ServiceUnavailable}}, enable_x_ratelimit_headers: DRAFT_VERSION_03, rate_limited_as_resource_exhausted: true, response_headers_to_add: [{{header: {{key: x-rl, value: 'yes'}}}}]"
    ));
    let mut first = stream("/", &[]);
    assert!(filter.access(&mut first).await.is_none());
    filter.header_filter(&mut first).await;
    let shown = |stream: &Stream| {
        ["limit", "remaining"]
            .map(|name| response_header(stream, &format!("x-ratelimit-{name}")).map(str::to_owned))
    };
    assert_eq!(shown(&first), [Some("2".to_owned()), Some("1".to_owned())]);
    assert_eq!(response_header(&first, "x-ratelimit-reset"), Some("0"));
    statuses(&filter, 1).await;
    let mut limited = stream("/", &[]);
    let reply = filter.access(&mut limited).await.unwrap();
    assert_eq!((reply.status, reply.grpc_status, reply.flag), (503, Some(8), Some(Flag::RL)));
    assert_eq!((&*reply.body, &*reply.details), (LIMITED.as_bytes(), LIMITED));
    assert_eq!(reply.headers.get("x-rl"), Some(&b"yes"[..]));
    filter.header_filter(&mut limited).await;
    assert_eq!(shown(&limited), [Some("2".to_owned()), Some("0".to_owned())]);
    // A status that is no failure counts for none.
    let odd = limit(&format!(
        "{ON}, status: {{code: OK}}, enable_retry_after_header: true, token_bucket: {{max_tokens: 1, fill_interval: 3600s}}"
    ));
    statuses(&odd, 1).await;
    let reply = odd.access(&mut stream("/", &[])).await.unwrap();
    assert_eq!((reply.status, reply.headers.get("retry-after")), (429, Some(&b"3600"[..])));
}

#[tokio::test]
async fn a_bucket_may_have_no_room_or_not_be_there() {
    assert_eq!(statuses(&limit(ON), 3).await, [200; 3]);
    let none = limit(&format!("{ON}, token_bucket: {{max_tokens: 0, fill_interval: 1s}}"));
    assert_eq!(statuses(&none, 2).await, [429; 2]);
}

#[tokio::test]
async fn each_connection_may_have_its_own_tokens() {
    let filter = limit(&format!("{BUCKET}, {ON}, local_rate_limit_per_downstream_connection: true"));
    let on = |connection: &Arc<Connection>| {
        let (mut stream, filter) = (Stream::new(connection.clone()), &filter);
        async move { filter.access(&mut stream).await.is_none() }
    };
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([127, 0, 0, 1], 9080).into());
    let [one, other] = [(); 2].map(|()| Arc::new(Connection::plain(client, own)));
    assert!(on(&one).await && on(&one).await && !on(&one).await);
    assert!(on(&other).await, "another connection");
}

#[tokio::test]
async fn the_most_specific_level_holds_and_needs_a_bucket() {
    let own = "{stat_prefix: rl}";
    let level = format!("{{stat_prefix: rl, {ON}, token_bucket: {{max_tokens: 1, fill_interval: 3600s}}}}");
    let filter = built(own, &[&format!("{{stat_prefix: rl, {BUCKET}}}"), &level], &context()).unwrap();
    assert_eq!(statuses(&filter, 2).await, [200, 429]);
    let refused = |config: &str, levels: &[&str]| built(config, levels, &context()).err().unwrap();
    assert_eq!(
        refused(own, &["{stat_prefix: rl}"]),
        "token_bucket: is missing: settings of a route must have one"
    );
    assert_eq!(
        refused("{stat_prefix: rl, token_bucket: {max_tokens: 1, fill_interval: 0.01s}}", &[]),
        "token_bucket.fill_interval: must be at least 50ms"
    );
    assert_eq!(
        refused(
            "{stat_prefix: rl, token_bucket: {max_tokens: 1, tokens_per_fill: 0, fill_interval: 1s}}",
            &[]
        ),
        "token_bucket.tokens_per_fill: must be greater than 0"
    );
    assert_eq!(
        refused("{stat_prefix: rl, local_cluster_rate_limit: {}}", &[]),
        "local_cluster_rate_limit: needs cluster_manager.local_cluster_name in the bootstrap"
    );
}

/// Requests of these users, and what becomes of them.
async fn users(filter: &Alone, users: &[&str]) -> Vec<u16> {
    let mut answers = Vec::new();
    for user in users {
        let mut stream = stream("/", &[("x-user", user)]);
        let reply = filter.access(&mut stream).await;
        filter.header_filter(&mut stream).await;
        answers.push(reply.map_or(200, |reply| reply.status));
    }
    answers
}

const BY_USER: &str =
    "rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}]";

#[tokio::test]
async fn descriptors_have_buckets_of_their_own() {
    let bucket = |max: u32| {
        format!("token_bucket: {{max_tokens: {max}, tokens_per_fill: {max}, fill_interval: 3600s}}")
    };
    let config = format!(
        "{ON}, {}, {BY_USER}, descriptors: [{{entries: [{{key: user, value: alice}}], {}}}, {{entries: [{{key: user}}], {}}}]",
        bucket(100),
        bucket(1),
        bucket(2)
    );
    let filter = limit(&config);
    let sent = ["alice", "alice", "bob", "bob", "bob", "carol"];
    assert_eq!(users(&filter, &sent).await, [200, 429, 200, 200, 429, 200]);
    // Those of another instance are others.
    assert_eq!(users(&limit(&config), &["bob"]).await, [200]);
    let shown = limit(&format!("{config}, enable_x_ratelimit_headers: DRAFT_VERSION_03"));
    let mut stream = stream("/", &[("x-user", "bob")]);
    shown.access(&mut stream).await;
    shown.header_filter(&mut stream).await;
    let of = |name: &str| response_header(&stream, name).map(str::to_owned);
    assert_eq!((of("x-ratelimit-limit"), of("x-ratelimit-remaining")), (Some("2".into()), Some("1".into())));
}

#[tokio::test]
async fn the_default_bucket_may_be_spared_and_a_shadow_only_counts() {
    let one = "token_bucket: {max_tokens: 1, fill_interval: 3600s}";
    let many = "token_bucket: {max_tokens: 9, fill_interval: 3600s}";
    let alice = format!("descriptors: [{{entries: [{{key: user, value: alice}}], {many}}}]");
    let both = limit(&format!("{ON}, {one}, {BY_USER}, {alice}"));
    assert_eq!(users(&both, &["alice", "alice"]).await, [200, 429]);
    let spared =
        limit(&format!("{ON}, {one}, {BY_USER}, {alice}, always_consume_default_token_bucket: false"));
    assert_eq!(users(&spared, &["alice", "alice", "bob", "bob"]).await, [200, 200, 200, 429]);
    let context = context();
    let shadow = format!(
        "{{stat_prefix: rl, {ON}, {BY_USER}, descriptors: [{{entries: [{{key: user, value: alice}}], {one}, shadow_mode: true}}]}}"
    );
    let shadow = built(&shadow, &[], &context).unwrap();
    assert_eq!(users(&shadow, &["alice", "alice"]).await, [200, 200]);
    let counted = ["rate_limited", "shadow_mode", "enforced"];
    let counted = counted.map(|name| context.metrics.sum("rl.http_local_rate_limit.", name));
    assert_eq!(counted, [1, 1, 0]);
}

/// An empty bucket that only counts ended the search: the stricter limit that was tried out removed the one in force.
#[tokio::test]
async fn a_shadow_leaves_the_others_in_force() {
    let bucket = |max: u32| format!("token_bucket: {{max_tokens: {max}, fill_interval: 3600s}}");
    let both = "rate_limits: [{actions: [{request_headers: {header_name: x-user, descriptor_key: user}}]}, \
                {actions: [{generic_key: {descriptor_value: all}}]}]";
    let strict = format!("{{entries: [{{key: user}}], {}, shadow_mode: true}}", bucket(1));
    let enforced = format!("{{entries: [{{key: generic_key, value: all}}], {}}}", bucket(2));
    let context = context();
    let config = format!("{{stat_prefix: rl, {ON}, {both}, descriptors: [{strict}, {enforced}]}}");
    let filter = built(&config, &[], &context).unwrap();
    assert_eq!(users(&filter, &["a"; 5]).await, [200, 200, 429, 429, 429]);
    let counted = ["ok", "rate_limited", "shadow_mode", "enforced"];
    let counted = counted.map(|name| context.metrics.sum("rl.http_local_rate_limit.", name));
    assert_eq!(counted, [1, 4, 1, 3]);
    // The default bucket is one of them.
    let filter = limit(&format!("{ON}, {}, {both}, descriptors: [{strict}]", bucket(2)));
    assert_eq!(users(&filter, &["a"; 4]).await, [200, 200, 429, 429]);
    let told = filter.chain.members()[1].plugin.foretell(&stream("/", &[("x-user", "a")]));
    assert_eq!(
        told.unwrap(),
        [
            "counts it as limited once a bucket of 1 tokens is empty",
            "answers 429 (local_rate_limited) once a bucket of 2 tokens is empty"
        ]
    );
}

/// 4 workers: what a process shares is asserted over all of them.
#[test]
fn wildcards_count_for_the_process() {
    let config: Config = testing::read(
        "{stat_prefix: rl, descriptors: [{entries: [{key: user}], token_bucket: {max_tokens: 100, fill_interval: 3600s}}]}",
    );
    let buckets = Buckets::new(&None, true, &config.descriptors, Counters::of(&context().shared)).unwrap();
    let descriptor = Descriptor { entries: smallvec![("user", "bob".into())], ..Descriptor::default() };
    let now = Instant::now();
    let allowed: usize = std::thread::scope(|scope| {
        let count = || {
            (0..100).filter(|_| buckets.judge(std::slice::from_ref(&descriptor), 1.0, now).allowed).count()
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(allowed, 100);
}

#[test]
fn descriptors_are_checked() {
    let refused = |descriptors: &str| {
        built(&format!("{{stat_prefix: rl, descriptors: [{descriptors}]}}"), &[], &context()).err().unwrap()
    };
    let one = "{entries: [{key: a, value: b}], token_bucket: {max_tokens: 1, fill_interval: 1s}}";
    assert_eq!(
        refused(&format!("{one}, {one}")),
        "descriptors[1]: is there already: two with the same entries"
    );
    assert_eq!(
        refused("{token_bucket: {max_tokens: 1, fill_interval: 1s}}"),
        "descriptors[0].entries: must not be empty"
    );
    assert_eq!(
        refused("{entries: [{key: a}], token_bucket: {max_tokens: 1, fill_interval: 0.01s}}"),
        "descriptors[0].token_bucket.fill_interval: must be at least 50ms"
    );
}
