#![allow(clippy::unwrap_used)]
use super::*;
use crate::connection::{Connection, TlsInfo};
use crate::matcher::{HeaderMatch, HeaderTarget, ValueMatcher};
use crate::matching::{Input, Then};

fn connection(peer: Option<Certificate>) -> Connection {
    let tls = TlsInfo { peer: peer.map(Arc::new), ..TlsInfo::default() };
    let (remote, local) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let plain = Connection::plain(remote, local);
    Connection { direct_remote: "10.9.9.9:1".parse().unwrap(), tls: Some(tls), ..plain }
}

fn rules(action: Action, policies: Vec<(&str, Condition)>) -> Rules {
    let policy = |(name, permissions): (&str, Condition)| {
        (Arc::from(name), Policy { permissions, principals: Condition::Always, condition: None })
    };
    Rules::new(action, policies.into_iter().map(policy).collect())
}

#[test]
fn the_action_says_what_a_policy_that_fits_means() {
    let subject = Stream::new(Arc::new(connection(None)));
    let never = || Condition::Not(Box::new(Condition::Always));
    let judged = |action, policies| {
        let rules = rules(action, policies);
        let verdict = rules.judge(&subject);
        (verdict.allowed, verdict.details().replace("rbac_access_denied_matched_policy", ""))
    };
    let told = |allowed, policy: &str| (allowed, format!("[{policy}]"));
    assert_eq!(judged(Action::Allow, vec![]), told(false, "none"));
    assert_eq!(judged(Action::Deny, vec![]), told(true, "none"));
    assert_eq!(judged(Action::Allow, vec![("a", never())]), told(false, "none"));
    let both = || vec![("b", Condition::Always), ("a b", Condition::Always)];
    assert_eq!(judged(Action::Allow, both()), told(true, "a_b"), "in the order of names");
    assert_eq!(judged(Action::Deny, both()), told(false, "a_b"));
    assert_eq!(judged(Action::Log, both()), told(true, "a_b"));
}

#[test]
fn a_tree_decides_by_its_actions() {
    let is = |path: &str| {
        let mut stream = Stream::new(Arc::new(connection(None)));
        stream.request.target.set(path.as_bytes());
        stream
    };
    let rules = |log: bool| {
        Rules::of_tree(|actions| {
            let mut act = |name, action| Then::Act(actions.action(name, action));
            let mut items = vec![
                ("/a".to_owned(), act("in", Action::Allow)),
                ("/d".to_owned(), act("out", Action::Deny)),
            ];
            if log {
                items.push(("/l".to_owned(), act("note", Action::Log)));
            }
            Ok(Tree::exact(Input::Header(HeaderTarget::Path), items, None))
        })
        .unwrap()
    };
    let judged = |log, path: &str| {
        let (rules, stream) = (rules(log), is(path));
        let Verdict { allowed, policy, place, log } = rules.judge(&stream);
        (allowed, policy.map(|name| name.to_string()), place, log)
    };
    let name = |name: &str| Some(name.to_owned());
    assert_eq!(judged(false, "/a"), (true, name("in"), 0, None));
    assert_eq!(judged(false, "/d"), (false, name("out"), 1, None));
    assert_eq!(judged(false, "/x"), (false, None, 0, None), "whom it leads nowhere is denied");
    assert_eq!(judged(true, "/l"), (true, name("note"), 2, Some(true)));
    assert_eq!(judged(true, "/a"), (true, name("in"), 0, Some(false)));
    assert_eq!(judged(true, "/x"), (false, None, 0, None));
    assert!(rules(true).names().map(|name| &**name).eq(["in", "out", "note"]));
}

/// Both texts of each hint were made anew.
#[test]
fn hints_share_their_key() {
    let mut subject = Stream::new(Arc::new(connection(None)));
    let verdict = |log| Verdict { allowed: true, policy: None, place: 0, log };
    for log in [None, Some(true), Some(false)] {
        verdict(log).hint(&mut subject);
    }
    let [(space, key, first), (again, key_again, second)] = &subject.metadata[..] else {
        panic!("two of three")
    };
    assert_eq!(
        (&**space, &**key, first, second),
        ("envoy.common", "access_log_hint", &true.into(), &false.into())
    );
    assert!(Arc::ptr_eq(space, again) && Arc::ptr_eq(key, key_again));
}

#[test]
fn an_expression_must_be_true_beside() {
    let stream = Stream::new(Arc::new(connection(None)));
    let allowed = |text: &str| {
        let condition = Some(Program::parse(text, Default::default()).unwrap());
        let policy = Policy { permissions: Condition::Always, principals: Condition::Always, condition };
        Rules::new(Action::Allow, [("p".into(), policy)].into()).judge(&stream).allowed
    };
    assert!(allowed("request.method == 'GET'"));
    assert!(!allowed("request.method == 'PUT'") && !allowed("request.headers['x'] == ''"));
}

#[test]
fn state_metadata_of_routes_and_verified_names_are_asked_for() {
    let certificate = Certificate { uri_sans: vec!["spiffe://t/a".into()], ..Certificate::default() };
    let mut verified = connection(Some(certificate));
    let unverified = Stream::new(Arc::new(connection(Some(Certificate::default()))));
    if let Some(tls) = &mut verified.tls {
        tls.peer_validated = true;
    }
    let mut stream = Stream::new(Arc::new(verified));
    let object = |key: &str, value: &str| crate::stream::FilterObject {
        key: key.into(),
        value: value.as_bytes().into(),
        hashable: false,
        read_only: false,
    };
    stream.set_filter_state(object("role", "admin"));
    stream.set_filter_state(object("peer", "10.1.2.3:80"));
    let holds = |condition: Condition| condition.holds(&stream);
    assert!(holds(Condition::FilterState("role".into(), StringMatcher::exact("admin"))));
    assert!(!holds(Condition::FilterState("none".into(), StringMatcher::exact(""))));
    let address =
        |key: &str, invert| Condition::FilterStateAddress(key.into(), [range("10.0.0.0/8")].into(), invert);
    assert!(holds(address("peer", false)) && !holds(address("peer", true)));
    assert!(!holds(address("role", false)) && !holds(address("none", true)), "it is no address");
    let uri = |name: &str| Condition::Verified(Some((SanKind::Uri, StringMatcher::exact(name))));
    assert!(holds(Condition::Verified(None)) && holds(uri("spiffe://t/a")) && !holds(uri("spiffe://t/b")));
    assert!(!holds(Condition::Verified(Some((SanKind::Dns, StringMatcher::exact("spiffe://t/a"))))));
    assert!(!Condition::Verified(None).holds(&unverified));
    let value = ValueMatcher::Bool(true);
    let (namespace, key, path) = ("n".into(), "k".into(), Box::default());
    let metadata = MetadataMatcher { namespace, key, path, value, invert: true };
    assert!(!holds(Condition::RouteMetadata(metadata.into())), "there is no route");
}

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn conditions_are_asked_of_the_connection_and_of_the_request() {
    let certificate = Certificate {
        uri_sans: vec!["spiffe://t/a".into()],
        dns_sans: vec!["a.test".into()],
        subject: "CN=a".into(),
        ..Certificate::default()
    };
    let (known, stranger): (Stream, Stream) =
        [Some(certificate), None].map(|peer| Stream::new(Arc::new(connection(peer)))).into();
    let mut stream = Stream::new(Arc::new(connection(None)));
    stream.remote = "192.0.2.1:1".parse().unwrap();
    stream.request.target.set(b"/a?b");
    stream.request.headers.push(b"x-a", b"1");
    stream.metadata.push(("n".into(), "k".into(), Value::Bool(true)));
    let holds = |condition: Condition| [&known, &stranger, &stream].map(|subject| condition.holds(subject));
    let name = |name: &str| Condition::Authenticated(Some(StringMatcher::exact(name)));
    assert_eq!(holds(Condition::Authenticated(None)), [true, false, false]);
    for own in ["spiffe://t/a", "a.test", "CN=a"] {
        assert_eq!(holds(name(own)), [true, false, false], "{own}");
    }
    assert_eq!(holds(name("")), [false; 3], "without a certificate there is no name");
    assert_eq!(holds(Condition::Source(range("10.0.0.1/32"))), [true; 3]);
    assert_eq!(holds(Condition::DirectRemote(range("10.9.0.0/16"))), [true; 3]);
    assert_eq!(holds(Condition::Remote(range("192.0.2.0/24"))), [false, false, true]);
    assert_eq!(holds(Condition::Destination(range("10.0.0.2/32"))), [true; 3]);
    assert_eq!(holds(Condition::DestinationPort(80..81)), [true; 3]);
    assert_eq!(holds(Condition::DestinationPort(79..80)), [false; 3]);
    assert_eq!(holds(Condition::Path(StringMatcher::exact("/a"))), [false, false, true]);
    assert_eq!(holds(Condition::ServerName(StringMatcher::exact(""))), [true; 3]);
    let header = |invert| {
        Condition::Header(Box::new(HeaderMatcher {
            target: HeaderTarget::of_request("x-a"),
            test: HeaderMatch::Present(true),
            invert,
            missing_is_empty: false,
        }))
    };
    assert_eq!(holds(header(false)), [false, false, true]);
    assert_eq!(holds(header(true)), [true, true, false]);
    let template = |text| Condition::PathTemplate(Template::parse(text).unwrap().into());
    assert_eq!(holds(template("/{one}")), [false, false, true]);
    assert_eq!(holds(template("/{one}/**")), [false; 3]);
    let noted = |invert| {
        let value = ValueMatcher::Bool(true);
        let (namespace, key, path) = ("n".into(), "k".into(), Box::default());
        Condition::Metadata(MetadataMatcher { namespace, key, path, value, invert }.into())
    };
    assert_eq!(holds(noted(false)), [false, false, true]);
    assert_eq!(holds(noted(true)), [true, true, false]);
    let both = Condition::All([Condition::Always, header(false)].into());
    assert_eq!(holds(both), [false, false, true]);
    assert_eq!(
        holds(Condition::Any([header(false), Condition::Authenticated(None)].into())),
        [true, false, true]
    );
}

/// A hundred policies for one path, each for another client, were all asked of each request.
#[test]
fn what_tells_more_policies_apart_is_looked_for() {
    let both = |path: &str, name: &str| {
        let path = Condition::Path(StringMatcher::exact(path));
        let name = Condition::Authenticated(Some(StringMatcher::exact(name)));
        Policy { permissions: path, principals: name, condition: None }
    };
    let peer = Certificate { uri_sans: vec!["n7".into()], ..Certificate::default() };
    let mut subject = Stream::new(Arc::new(connection(Some(peer))));
    subject.request.target.set(b"/p7");
    let candidates = |policy: &dyn Fn(usize) -> Policy| {
        let policies: Vec<Policy> = (0..100).map(policy).collect();
        Index::new(policies.iter()).unwrap().candidates(&subject).to_vec()
    };
    assert_eq!(candidates(&|i| both("/p7", &format!("n{i}"))), [7]);
    assert_eq!(candidates(&|i| both(&format!("/p{i}"), "n7")), [7]);
}

/// A hundred policies for one path, each for a namespace or a range of addresses, were all asked of each request.
#[test]
fn namespaces_and_addresses_tell_policies_apart() {
    let of = |principals: Condition| {
        let permissions = Condition::Path(StringMatcher::exact("/p"));
        Policy { permissions, principals, condition: None }
    };
    let uri_sans = vec!["spiffe://cluster.local/ns/n7/sa/a7".into()];
    let mut subject =
        Stream::new(Arc::new(connection(Some(Certificate { uri_sans, ..Certificate::default() }))));
    subject.request.target.set(b"/p");
    subject.remote = "10.7.0.1:1".parse().unwrap();
    let candidates = |principals: &dyn Fn(usize) -> Condition| {
        let policies: Vec<Policy> = (0..100).map(|i| of(principals(i))).collect();
        Index::new(policies.iter()).unwrap().candidates(&subject).to_vec()
    };
    let name = |test| Condition::Authenticated(Some(test));
    let regex = |text: String| StringMatcher::Regex(crate::regex::Regex::full(&text).unwrap());
    let text = |text: String| text.into_bytes().into();
    assert_eq!(candidates(&|i| name(regex(format!(".*/ns/n{i}/.*")))), [7]);
    assert_eq!(candidates(&|i| name(StringMatcher::Suffix(text(format!("/sa/a{i}")), false))), [7]);
    let prefix = |i| StringMatcher::Prefix(text(format!("spiffe://cluster.local/ns/n{i}/")), false);
    assert_eq!(candidates(&|i| name(prefix(i))), [7]);
    assert_eq!(candidates(&|i| Condition::Remote(range(&format!("10.{i}.0.0/16")))), [7]);
    assert_eq!(candidates(&|i| Condition::DirectRemote(range(&format!("10.{}.9.1/16", i + 2)))), [7]);
}

mod indexed {
    use super::*;
    use proptest::prelude::*;

    fn part_of_name() -> &'static str {
        "/?[ab]?/?[ab]?/?"
    }

    fn name_test(text: &str, kind: usize) -> StringMatcher {
        let bytes = || text.as_bytes().into();
        match kind {
            0 => StringMatcher::Prefix(bytes(), false),
            1 => StringMatcher::Suffix(bytes(), false),
            2 => StringMatcher::Contains(bytes(), false),
            _ => StringMatcher::Regex(crate::regex::Regex::full(&format!(".*{text}.*")).unwrap()),
        }
    }

    fn any_condition() -> impl Strategy<Value = Condition> {
        let text = "/?[ab]{0,2}";
        let leaf = prop_oneof![
            text.prop_map(|text: String| Condition::Path(StringMatcher::exact(&text))),
            text.prop_map(|text: String| Condition::Path(StringMatcher::Prefix(
                text.into_bytes().into(),
                false
            ))),
            text.prop_map(|text: String| Condition::Path(StringMatcher::Exact(
                text.into_bytes().into(),
                true
            ))),
            "[ab]{0,1}".prop_map(|text: String| Condition::Authenticated(Some(StringMatcher::exact(&text)))),
            (part_of_name(), 0..4usize)
                .prop_map(|(text, kind)| Condition::Authenticated(Some(name_test(&text, kind)))),
            ("10\\.[01]\\.0\\.[01]/(0|15|16|32)", 0..3usize).prop_map(|(net, side)| {
                let net = range(&net);
                [Condition::Source(net), Condition::DirectRemote(net), Condition::Remote(net)]
                    .into_iter()
                    .nth(side)
                    .unwrap()
            }),
            any::<bool>().prop_map(|always| match always {
                true => Condition::Always,
                false => Condition::Authenticated(None),
            }),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..3).prop_map(|all| Condition::All(all.into())),
                prop::collection::vec(inner.clone(), 1..3).prop_map(|any| Condition::Any(any.into())),
                inner.prop_map(|one| Condition::Not(one.into())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// The index leaves out no policy that would fit, and keeps their order.
        #[test]
        fn policies_are_found_as_by_asking_all(
            policies in prop::collection::vec((any_condition(), any_condition()), 2..12),
            path in prop::option::of("/?[ab]{0,3}"),
            names in prop::option::of(prop::collection::vec("/?[ab]?/?[ab]?/?[ab]?", 0..3)),
            addresses in prop::array::uniform3("10\\.[01]\\.0\\.[01]:1"),
        ) {
            let peer = names.map(|uri_sans| Certificate { uri_sans, ..Certificate::default() });
            let [remote, direct_remote, forwarded] = addresses.map(|address| address.parse().unwrap());
            let mut stream = Stream::new(Arc::new(Connection { remote, direct_remote, ..connection(peer) }));
            stream.remote = forwarded;
            stream.request.target.set(path.unwrap_or_default().as_bytes());
            let policies: BTreeMap<Arc<str>, Policy> = policies.into_iter().enumerate().map(|(at, (permissions, principals))| {
                (format!("{at:02}").into(), Policy { permissions, principals, condition: None })
            }).collect();
            let wanted = policies.iter().find(|(_, policy)| policy.fits(&stream)).map(|(name, _)| name.clone());
            let rules = Rules::new(Action::Allow, policies);
            prop_assert_eq!(rules.judge(&stream).policy, wanted.as_ref());
        }
    }
}
