//! What must hold for any resources.

use super::*;
use sixfold_core::model::Model;

/// A file of a few resources in random states.
fn random_file(rng: &mut fastrand::Rng, certificates: &[String]) -> String {
    let mut text = String::from("routes:\n");
    for id in ["a", "b", "c", "d"] {
        let target = match rng.u8(..5) {
            0 => "upstream_id: u".to_owned(),
            1 => "service_id: s".to_owned(),
            2 => format!("upstream: {{nodes: {{'10.0.0.{}:80': 1}}}}", rng.u8(1..4)),
            3 => "plugins: {late: {}}\n    service_id: s".to_owned(),
            _ => continue,
        };
        let (uri, status) = (rng.u8(..3), u8::from(rng.u8(..5) > 0));
        text.push_str(&format!("  - id: {id}\n    uri: /{uri}/*\n    status: {status}\n    {target}\n"));
    }
    let (service, upstream) = (rng.u8(1..4), rng.u8(1..4));
    text.push_str(&format!(
        "services:\n  - id: s\n    name: n{service}\n    upstream: {{nodes: {{'10.0.1.{service}:80': 1}}}}\n\
         upstreams:\n  - id: u\n    nodes: {{'10.0.2.{upstream}:80': {}, '10.0.2.9:80': {}}}\n    retries: {}\n",
        rng.u8(..3),
        rng.u8(..3),
        rng.u8(..3)
    ));
    if rng.bool() {
        text.push_str("global_rules:\n  - {id: g, plugins: {prometheus: {}}}\n");
    }
    match certificates {
        [] => {}
        some => text.push_str(&some[rng.usize(..some.len())]),
    }
    text
}

/// What a model holds, in words that two models share.
fn shown(model: &Model) -> Vec<String> {
    let clusters = model.clusters().all().into_iter().map(|cluster| {
        let hosts: Vec<_> =
            cluster.hosts.load().iter().map(|m| format!("{} {}", m.host.label, m.weight)).collect();
        let retries = cluster.config.retry.as_ref().map(|retry| retry.num_retries);
        format!("{} {hosts:?} {retries:?}", cluster.config.name)
    });
    let mut all: Vec<String> = clusters.collect();
    let cells = model.route_tables().of_name(ROUTE_TABLE);
    let table = cells[0].load().expect("a table");
    let mut routes: Vec<_> = table
        .routes()
        .map(|route| {
            format!("{} {} {:?} {:?}", route.ids.route, route.ids.service_name, route.chain, route.action)
        })
        .collect();
    routes.sort();
    all.extend(routes);
    all.extend(model.listeners().iter().map(|listener| listener.name.to_string()));
    all
}

#[test]
fn changes_one_after_the_other_lead_where_a_fresh_start_leads() {
    let fresh = |text: &str| {
        let model = Model::default();
        let context = testing::context_of(&model);
        let mut source = TextSource::new("", context);
        model.apply_detached(update(&mut source, text));
        (model, source)
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let (model, mut source) = fresh("routes:\n");
    for step in 0..300 {
        let text = random_file(&mut rng, &[]);
        model.apply_detached(update(&mut source, &text));
        let (expected, _source) = fresh(&text);
        assert_eq!(shown(&model), shown(&expected), "step {step}:\n{text}");
        assert!(update(&mut source, &text).is_empty(), "step {step}");
    }
}

/// Everything that clients and operators could see: the model, certificates, statistics, and live hosts.
fn seen(model: &Model, source: &TextSource, context: &SourceContext) -> Vec<String> {
    let mut all = shown(model);
    let contexts = source.server_tls().map(|tls| tls.contexts()).unwrap_or_default();
    all.extend(contexts.iter().flat_map(|c| c.certificates().map(|c| c.sha256.clone()).collect::<Vec<_>>()));
    all.extend(
        context
            .compile
            .metrics()
            .samples()
            .iter()
            .map(|sample| format!("{} {:?}", sample.name, sample.value)),
    );
    for cluster in model.clusters().all() {
        all.extend(cluster.hosts.load().iter().map(|member| format!("{:p} {:?}", member.host, member.host)));
    }
    all
}

/// A file that was refused changed the weights of live traffic, the gauges and the certificates.
#[test]
fn a_candidate_that_is_dropped_has_changed_nothing() {
    let pem = |name: &str| {
        let (cert, key) = testing::certificate(&[name]);
        let indented = |text: &str| text.trim_end().replace('\n', "\n      ");
        format!(
            "ssls:\n  - id: x\n    sni: {name}\n    cert: |\n      {}\n    key: |\n      {}\n",
            indented(&cert),
            indented(&key)
        )
    };
    let certificates = [pem("a.test"), pem("b.test")];
    let model = Model::default();
    let context = testing::context_of(&model);
    let mut source = TextSource::new("", context.clone());
    let mut rng = fastrand::Rng::with_seed(11);
    let mut differ = 0;
    for step in 0..100 {
        let text = random_file(&mut rng, &certificates);
        model.apply_detached(update(&mut source, &text));
        let before = seen(&model, &source, &context);
        let other = random_file(&mut rng, &certificates);
        source.set(resources(&other));
        let store = source.source.store.clone();
        let (candidate, _) = source.source.candidate(|batch| store.changes(batch)).unwrap();
        differ += u32::from(!candidate.diff.is_empty());
        assert_eq!(seen(&model, &source, &context), before, "step {step}, while it is there:\n{other}");
        drop(candidate);
        assert_eq!(seen(&model, &source, &context), before, "step {step}:\n{other}");
        // Nor has the source: the file as it was is no change but, at most, of places in the order.
        let places = update(&mut source, &text);
        assert!(places.clusters.is_empty() && places.contexts.is_empty(), "step {step}: {places:?}");
        model.apply_detached(places);
    }
    assert!(differ > 90, "{differ}");
}
