//! What is shown as in force, and what as refused.

use super::*;
use crate::resource::Kind;
use crate::store::Key;

fn uri(source: &TextSource, id: &str) -> Option<String> {
    let kept = source.in_force().get(&Key::new(Kind::Route, id))?;
    let value: serde_json::Value = serde_json::from_slice(&kept.value).unwrap();
    Some(value["uri"].as_str().unwrap().to_owned())
}

fn refused(source: &TextSource) -> Vec<(String, Serves, String)> {
    let told = |refused: RefusedResource| {
        let faults: Vec<String> = refused.faults.iter().map(ToString::to_string).collect();
        (refused.key.to_string(), refused.serves, faults.join("; "))
    };
    source.in_force().refused().into_iter().map(told).collect()
}

/// What was refused was shown as if it were in force, and after a while nothing told of it.
#[test]
fn what_was_refused_is_told_beside_what_is_in_force() {
    let mut source = testing::source("");
    let good = "upstreams:\n  - {id: u, nodes: {}}\nroutes:\n  - {id: a, uri: /a, upstream_id: u}\n#END\n";
    source.update(resources(good)).unwrap();
    assert_eq!((uri(&source, "a").as_deref(), refused(&source)), (Some("/a"), vec![]));
    // A wrong value, one that never was right, and one that serves errors.
    let bad = "upstreams:\n  - {id: u, nodes: {}}\nroutes:\n  - {id: a, uri: /b, plugins: {none: {}}}\n  \
               - {id: b, uri: /b, priority: x}\n  - {id: c, uri: /c, upstream_id: v}\n#END\n";
    source.update(resources(bad)).unwrap();
    assert_eq!(uri(&source, "a").as_deref(), Some("/a"), "the last good value");
    assert_eq!((uri(&source, "b"), uri(&source, "c").as_deref()), (None, Some("/c")));
    let told = refused(&source);
    let told: Vec<_> = told.iter().map(|(key, serves, _)| (key.as_str(), *serves)).collect();
    assert_eq!(
        told,
        [("route \"a\"", Serves::Earlier), ("route \"b\"", Serves::Nothing), ("route \"c\"", Serves::Itself)]
    );
    let listed = source.in_force().list(Kind::Route);
    let listed: Vec<_> = listed.iter().map(|(key, kept)| (key.id.as_str(), kept.created)).collect();
    assert_eq!(listed, [("a", 1), ("c", 2)]);
    let one = source.in_force().get(&Key::new(Kind::Route, "c")).unwrap();
    assert_eq!((one.created, one.modified), (2, 2));
    // Places are those of the file as it is now.
    let moved = format!("# a line\n{bad}");
    source.update(resources(&moved)).unwrap();
    assert!(refused(&source)[0].2.starts_with("apisix.yaml:5:"), "{:?}", refused(&source));
    // A file that can't be read changes nothing, and says so.
    assert!(source.update(resources("routes: [\n#END\n")).is_err());
    assert_eq!((source.in_force().why_unread().len(), uri(&source, "a").as_deref()), (1, Some("/a")));
    source.update(resources(good)).unwrap();
    assert!(refused(&source).is_empty() && source.in_force().why_unread().is_empty());
    assert_eq!(uri(&source, "c"), None);
}

/// One that others hang on stays when it is taken out of the file.
#[test]
fn what_could_not_be_deleted_is_shown() {
    let mut source = testing::source("");
    let route = "routes:\n  - {id: a, uri: /a, upstream_id: u}\n#END\n";
    source.update(resources(&format!("upstreams:\n  - {{id: u, nodes: {{}}}}\n{route}"))).unwrap();
    source.update(resources(route)).unwrap();
    let all = source.in_force().list(Kind::Upstream);
    let told = refused(&source);
    assert_eq!((all.len(), told.len(), told[0].1), (1, 1, Serves::Earlier), "{told:?}");
    // It is none of the file's any more, and was shown with numbers of the inside.
    let one = source.in_force().get(&Key::new(Kind::Upstream, "u")).unwrap();
    let numbers = |kept: &crate::store::Kept| (kept.created, kept.modified);
    assert_eq!((numbers(&all[0].1), numbers(&one)), ((1, 1), (1, 1)));
}

#[test]
fn numbers_tell_how_many_were_refused() {
    let mut source = testing::source("");
    let bad = "routes:\n  - {id: a, uri: /a, plugins: {none: {}}}\n  - {id: b, uri: 1}\n#END\n";
    source.update(resources(bad)).unwrap();
    let metrics = source.context.compile.metrics().clone();
    let of = |name: &str| metrics.sum("apisix_config.", name);
    assert_eq!((of("is_followed"), of("is_read"), of("routes"), of("upstreams")), (1, 1, 2, 0));
    source.update(resources("routes: []\n#END\n")).unwrap();
    assert_eq!(metrics.sum("apisix_config.", "routes"), 0);
    assert!(source.update(resources("routes: [\n#END\n")).is_err());
    assert_eq!(metrics.sum("apisix_config.", "is_read"), 0);
}
