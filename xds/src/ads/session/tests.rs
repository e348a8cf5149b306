#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn session(flavor: Flavor) -> Session {
    let node = Node { id: "node".to_owned(), ..Node::default() };
    let mut session = Session::new(flavor, node, false);
    session.want_all(Kind::Cluster);
    session.want_all(Kind::Listener);
    session
}

/// A request in one line: the short type, what is subscribed and unsubscribed (or named), versions, the nonce.
fn shown(request: &Request) -> String {
    let (node, kind, mut text, nonce, error) = match request {
        Request::Delta(r) => {
            let mut versions: Vec<_> = r.initial_resource_versions.iter().collect();
            versions.sort();
            let names: Vec<String> = (r.resource_names_subscribe.iter().map(|name| format!("+{name}")))
                .chain(r.resource_names_unsubscribe.iter().map(|name| format!("-{name}")))
                .chain(versions.into_iter().map(|(name, version)| format!("{name}={version}")))
                .collect();
            (&r.node, &r.type_url, names, &r.response_nonce, &r.error_detail)
        }
        Request::State(r) => {
            let mut names = r.resource_names.clone();
            names.extend((!r.version_info.is_empty()).then(|| format!("version={}", r.version_info)));
            (&r.node, &r.type_url, names, &r.response_nonce, &r.error_detail)
        }
    };
    text.insert(0, Kind::of_type_url(kind).unwrap().noun().to_owned());
    text.extend((!nonce.is_empty()).then(|| format!("@{nonce}")));
    text.extend(error.as_ref().map(|error| format!("refused: {}", error.message)));
    text.extend(node.as_ref().map(|node| format!("({})", node.id)));
    text.join(" ")
}

fn all(session: &mut Session) -> Vec<String> {
    std::iter::from_fn(|| session.next_request()).map(|request| shown(&request)).collect()
}

fn answer(kind: Kind, nonce: &str, version: &str) -> Answer {
    Answer { kind, nonce: nonce.to_owned(), version: version.to_owned(), error: None }
}

fn refusal(kind: Kind, nonce: &str) -> Answer {
    Answer { error: Some("why".to_owned()), ..answer(kind, nonce, "bad") }
}

#[test]
fn nothing_is_sent_without_a_stream_and_no_type_without_names() {
    let mut session = session(Flavor::Delta);
    assert_eq!(all(&mut session), [""; 0]);
    session.connected();
    assert_eq!(all(&mut session), ["cluster (node)", "listener"]);
    assert_eq!(all(&mut session), [""; 0]);
}

#[test]
fn subscriptions_change_before_answers_and_apart_from_them() {
    let mut session = session(Flavor::Delta);
    session.connected();
    all(&mut session);
    session.received(Kind::Cluster, "1", [].iter());
    session.answer(answer(Kind::Cluster, "1", "v1"));
    for name in ["a", "b"] {
        session.want(Kind::Endpoints, &name.into(), true);
    }
    assert_eq!(all(&mut session), ["endpoints +a +b", "cluster @1"]);
    session.want(Kind::Endpoints, &"a".into(), false);
    session.want(Kind::Endpoints, &"c".into(), true);
    session.received(Kind::Endpoints, "2", [].iter());
    session.answer(refusal(Kind::Endpoints, "2"));
    assert_eq!(all(&mut session), ["endpoints +c -a", "endpoints @2 refused: why"]);
}

#[test]
fn names_go_with_the_answer_in_the_state_of_the_world() {
    let mut session = session(Flavor::State);
    session.want(Kind::Routes, &"r".into(), true);
    session.connected();
    assert_eq!(all(&mut session), ["cluster (node)", "routes r", "listener"]);
    session.received(Kind::Routes, "1", [].iter());
    // A request of its own would carry a nonce that the control plane has answered already: it ignores that.
    session.want(Kind::Routes, &"s".into(), true);
    assert_eq!(all(&mut session), [""; 0]);
    session.answer(answer(Kind::Routes, "1", "v1"));
    assert_eq!(all(&mut session), ["routes r s version=v1 @1"]);
    session.want(Kind::Routes, &"r".into(), false);
    assert_eq!(all(&mut session), ["routes s version=v1 @1"]);
    // What is refused keeps the last version that was not.
    session.received(Kind::Routes, "2", [].iter());
    session.answer(refusal(Kind::Routes, "2"));
    assert_eq!(all(&mut session), ["routes s version=v1 @2 refused: why"]);
    // Nobody cares for an answer to what is not the last.
    session.received(Kind::Routes, "3", [].iter());
    session.received(Kind::Routes, "4", [].iter());
    session.answer(answer(Kind::Routes, "3", "v3"));
    session.answer(answer(Kind::Routes, "4", "v4"));
    assert_eq!(all(&mut session), ["routes s version=v4 @4"]);
}

#[test]
fn a_new_stream_asks_for_all_and_tells_what_was_accepted() {
    for (flavor, expected) in [
        (Flavor::Delta, ["cluster c=1 (node)", "endpoints +a +b a=2", "listener"]),
        (Flavor::State, ["cluster version=v1 (node)", "endpoints a b version=v2", "listener"]),
    ] {
        let mut session = session(flavor);
        session.connected();
        session.want(Kind::Endpoints, &"a".into(), true);
        session.want(Kind::Endpoints, &"b".into(), true);
        all(&mut session);
        session.received(Kind::Cluster, "1", [].iter());
        session.know(Kind::Cluster, &"c".into(), Some("1".to_owned()));
        session.answer(answer(Kind::Cluster, "1", "v1"));
        session.received(Kind::Endpoints, "2", [].iter());
        session.know(Kind::Endpoints, &"a".into(), Some("2".to_owned()));
        session.answer(answer(Kind::Endpoints, "2", "v2"));
        session.disconnected();
        assert_eq!(all(&mut session), [""; 0], "an answer is of its stream");
        session.connected();
        assert_eq!(all(&mut session), expected);
    }
}

#[test]
fn what_is_wanted_again_is_asked_for_again() {
    for (flavor, expected) in
        [(Flavor::Delta, ["endpoints -a", "endpoints +a"]), (Flavor::State, ["endpoints b", "endpoints a b"])]
    {
        let mut session = session(flavor);
        session.want(Kind::Endpoints, &"a".into(), true);
        session.want(Kind::Endpoints, &"b".into(), true);
        session.connected();
        all(&mut session);
        // The stream had no room in between.
        session.want(Kind::Endpoints, &"a".into(), false);
        session.want(Kind::Endpoints, &"a".into(), true);
        assert_eq!(all(&mut session), expected);
        assert_eq!(all(&mut session), [""; 0]);
    }
}

/// What crosses a response is ignored by the control plane, which then did not hear that a name was dropped.
#[test]
fn what_was_dropped_is_told_again_when_a_response_has_crossed_it() {
    let mut session = session(Flavor::State);
    let (a, b) = (Arc::from("a"), Arc::from("b"));
    session.want(Kind::Endpoints, &a, true);
    session.want(Kind::Endpoints, &b, true);
    session.connected();
    all(&mut session);
    session.want(Kind::Endpoints, &a, false);
    session.want(Kind::Endpoints, &a, true);
    assert_eq!(all(&mut session), ["endpoints b", "endpoints a b"]);
    session.received(Kind::Endpoints, "1", [b.clone()].iter());
    session.answer(answer(Kind::Endpoints, "1", "v1"));
    assert_eq!(all(&mut session), ["endpoints b version=v1 @1", "endpoints a b version=v1 @1"]);
    // It comes, so that was heard.
    session.received(Kind::Endpoints, "2", [a].iter());
    session.answer(answer(Kind::Endpoints, "2", "v2"));
    assert_eq!(all(&mut session), ["endpoints a b version=v2 @2"]);
}

#[test]
fn the_last_name_that_goes_leaves_no_wildcard_behind() {
    let mut session = session(Flavor::State);
    session.want(Kind::Routes, &"r".into(), true);
    session.connected();
    all(&mut session);
    session.want(Kind::Routes, &"r".into(), false);
    assert_eq!(all(&mut session), ["routes"]);
    session.connected();
    assert_eq!(all(&mut session), ["cluster (node)", "listener"]);
}

#[test]
fn long_errors_are_cut_and_the_node_may_go_with_every_message() {
    let mut session = Session::new(Flavor::Delta, Node { id: "n".to_owned(), ..Node::default() }, true);
    session.want_all(Kind::Cluster);
    session.connected();
    session.next_request().unwrap();
    session.received(Kind::Cluster, "1", [].iter());
    session.answer(Answer { error: Some("é".repeat(MAX_ERROR)), ..answer(Kind::Cluster, "1", "") });
    let Some(Request::Delta(request)) = session.next_request() else { panic!("one answer") };
    assert_eq!(request.error_detail.unwrap().message.len(), MAX_ERROR + 3);
    assert_eq!(request.node.unwrap().id, "n");
}

/// Each response of a control plane that did not read added one, for as long as it sent.
#[test]
fn answers_that_nobody_takes_hold_the_control_plane_back() {
    let mut session = session(Flavor::Delta);
    session.want_all(Kind::Cluster);
    session.connected();
    all(&mut session);
    for n in 0..MAX_ANSWERS {
        assert!(session.has_room(), "{n}");
        session.received(Kind::Cluster, &n.to_string(), [].iter());
        session.answer(answer(Kind::Cluster, &n.to_string(), ""));
    }
    assert!(!session.has_room());
    assert!(session.next_request().is_some() && session.has_room());
}

/// It went out with a nonce that was the last no longer, and was ignored with the names in it.
#[test]
fn an_answer_that_was_overtaken_while_it_waited_for_the_stream_does_not_go_out() {
    let mut session = session(Flavor::State);
    session.want(Kind::Routes, &"r".into(), true);
    session.connected();
    all(&mut session);
    session.received(Kind::Routes, "1", [].iter());
    session.answer(answer(Kind::Routes, "1", "v1"));
    session.received(Kind::Routes, "2", [].iter());
    assert_eq!(all(&mut session), [""; 0]);
    session.want(Kind::Routes, &"s".into(), true);
    session.answer(answer(Kind::Routes, "2", "v2"));
    assert_eq!(all(&mut session), ["routes r s version=v2 @2"]);
    // Of the incremental protocol each is answered.
    let mut session = self::session(Flavor::Delta);
    session.connected();
    all(&mut session);
    session.received(Kind::Cluster, "1", [].iter());
    session.answer(answer(Kind::Cluster, "1", ""));
    session.received(Kind::Cluster, "2", [].iter());
    session.answer(answer(Kind::Cluster, "2", ""));
    assert_eq!(all(&mut session).len(), 2);
}

#[test]
fn what_the_state_of_the_world_lacks_of_what_was_asked_for_is_absent() {
    for (flavor, expected) in [(Flavor::State, &["b"][..]), (Flavor::Delta, &[])] {
        let mut session = session(flavor);
        ["a", "b", "c"].iter().for_each(|name| session.want(Kind::Secret, &(*name).into(), true));
        session.connected();
        all(&mut session);
        session.know(Kind::Secret, &"c".into(), Some("1".to_owned()));
        session.received(Kind::Secret, "1", [].iter());
        // Asked for later than the response was made.
        session.want(Kind::Secret, &"late".into(), true);
        let absent = session.absent(Kind::Secret, |name| name == "a");
        assert_eq!(absent.iter().map(|name| &**name).collect::<Vec<_>>(), expected);
    }
}

/// A response that was on its way when a name was asked for counted it absent, and who needed it went on without.
#[test]
fn what_was_asked_for_after_the_request_that_a_response_answers_is_not_absent() {
    let mut session = session(Flavor::State);
    let names = ["a", "b", "c"].map(Arc::<str>::from);
    session.want(Kind::Secret, &names[0], true);
    session.connected();
    all(&mut session);
    session.want(Kind::Secret, &names[1], true);
    assert_eq!(all(&mut session), ["secret a b"]);
    let absent = |session: &Session| session.absent(Kind::Secret, |name| name == "a").len();
    // It answers the first request.
    session.received(Kind::Secret, "1", names[..1].iter());
    assert_eq!(absent(&session), 0);
    session.answer(answer(Kind::Secret, "1", "v1"));
    session.want(Kind::Secret, &names[2], true);
    assert_eq!(all(&mut session), ["secret a b c version=v1 @1"]);
    // That one may have crossed the last.
    session.received(Kind::Secret, "2", names[..1].iter());
    assert_eq!(session.absent(Kind::Secret, |name| name == "a"), [names[1].clone()]);
    session.answer(answer(Kind::Secret, "2", "v2"));
    // Nobody knows whether what is dropped and asked for again is meant by the next.
    session.want(Kind::Secret, &names[1], false);
    session.want(Kind::Secret, &names[1], true);
    assert_eq!(all(&mut session), ["secret a c version=v2 @2", "secret a b c version=v2 @2"]);
    session.received(Kind::Secret, "3", names[..1].iter());
    assert_eq!(session.absent(Kind::Secret, |name| name == "a"), [names[2].clone()]);
}
