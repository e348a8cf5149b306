//! What judging a request costs: a hundred policies as istiod writes them, trees, and expressions.

use divan::{Bencher, black_box};
use sixfold_core::cel::Program;
use sixfold_core::connection::{Certificate, Connection, TlsInfo};
use sixfold_core::matcher::{HeaderMatch, HeaderMatcher, HeaderTarget, StringMatcher};
use sixfold_core::matching::{Input, Then, Tree};
use sixfold_core::rbac::{Action, Condition, Policy, Rules};
use sixfold_core::stream::Stream;
use std::sync::Arc;

const POLICIES: usize = 100;

fn main() {
    divan::main();
}

/// A request over mutual TLS for the path of a policy.
fn request(policy: usize) -> Stream {
    let certificate = Certificate {
        uri_sans: vec!["spiffe://cluster.local/ns/shop/sa/frontend".to_owned()],
        subject: String::new(),
        ..Certificate::default()
    };
    let tls = TlsInfo { peer: Some(Arc::new(certificate)), peer_validated: true, ..TlsInfo::default() };
    let (client, own) = (([10, 1, 2, 3], 4000).into(), ([10, 0, 0, 1], 8080).into());
    let mut stream = Stream::new(Arc::new(Connection { tls: Some(tls), ..Connection::plain(client, own) }));
    stream.request.authority = b"shop.test".to_vec();
    stream.request.target.set(format!("/api/v1/items{policy}/list?page=2").as_bytes());
    stream.request.headers.push(b"x-request-id", b"7c2f6d5e-0000-4000-8000-000000000000");
    stream.request.headers.push(b"user-agent", b"bench");
    stream
}

fn any(condition: Condition) -> Condition {
    Condition::Any(Box::new([condition]))
}

fn all<const N: usize>(conditions: [Condition; N]) -> Condition {
    any(Condition::All(Box::new(conditions)))
}

/// A rule of an AuthorizationPolicy: a path, a method and a service account.
fn policy(number: usize, path: StringMatcher, condition: Option<Program>) -> (Arc<str>, Policy) {
    let method = Condition::Header(Box::new(HeaderMatcher {
        target: HeaderTarget::Method,
        test: HeaderMatch::String(StringMatcher::exact("GET")),
        invert: false,
        missing_is_empty: false,
    }));
    let account = StringMatcher::exact("spiffe://cluster.local/ns/shop/sa/frontend");
    let policy = Policy {
        permissions: all([any(Condition::Path(path)), any(method)]),
        principals: all([any(Condition::Authenticated(Some(account)))]),
        condition,
    };
    (format!("ns[shop]-policy[p{number}]-rule[0]").into(), policy)
}

fn judge(bencher: Bencher<'_, '_>, rules: &Rules, stream: &Stream) {
    bencher.bench_local(|| black_box(rules.judge(black_box(stream)).allowed));
}

fn exact(number: usize) -> StringMatcher {
    StringMatcher::exact(&format!("/api/v1/items{number}/list"))
}

fn hundred(path: impl Fn(usize) -> StringMatcher) -> Rules {
    Rules::new(Action::Allow, (0..POLICIES).map(|number| policy(number, path(number), None)).collect())
}

/// No policy fits: all of them are tried.
#[divan::bench]
fn policies_of_paths_none_fits(bencher: Bencher<'_, '_>) {
    judge(bencher, &hundred(exact), &request(POLICIES));
}

#[divan::bench]
fn policies_of_paths_the_last_fits(bencher: Bencher<'_, '_>) {
    judge(bencher, &hundred(exact), &request(99));
}

#[divan::bench]
fn policies_of_prefixes_none_fits(bencher: Bencher<'_, '_>) {
    let prefix = |number| StringMatcher::Prefix(format!("/api/v1/items{number}/").into_bytes().into(), false);
    judge(bencher, &hundred(prefix), &request(POLICIES));
}

/// Paths fit all, who asks fits none: nothing tells policies apart before the last condition.
#[divan::bench]
fn policies_of_accounts_none_fits(bencher: Bencher<'_, '_>) {
    let policies = (0..POLICIES).map(|number| {
        let path = StringMatcher::Prefix(b"/api/"[..].into(), false);
        let (name, mut policy) = policy(number, path, None);
        let account = StringMatcher::exact(&format!("spiffe://cluster.local/ns/shop/sa/other{number}"));
        policy.principals = all([any(Condition::Authenticated(Some(account)))]);
        (name, policy)
    });
    judge(bencher, &Rules::new(Action::Allow, policies.collect()), &request(1));
}

/// One policy with an expression.
#[divan::bench]
fn a_condition(bencher: Bencher<'_, '_>) {
    let text = "request.headers['user-agent'] == 'bench' && request.url_path.startsWith('/api/')";
    let Ok(program) = Program::parse(text, Default::default()) else { return };
    let rules = [policy(1, exact(1), Some(program))].into();
    judge(bencher, &Rules::new(Action::Allow, rules), &request(1));
}

/// A tree in place of rules, of a thousand paths.
#[divan::bench]
fn a_tree_of_paths(bencher: Bencher<'_, '_>) {
    let rules = Rules::of_tree(|actions| {
        let paths = (0..1000).map(|number| {
            let action = actions.action("p", Action::Allow);
            (format!("/api/v1/items{number}/"), Then::Act(action))
        });
        Ok(Tree::prefix(Input::Header(HeaderTarget::Path), paths.collect(), None))
    });
    let Ok(rules) = rules else { return };
    judge(bencher, &rules, &request(900));
}
