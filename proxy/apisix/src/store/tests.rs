#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::*;
use crate::config::{EnvVars, PluginNames};
use crate::testing::Folder;

const PATIENCE: Duration = Duration::from_secs(20);

struct Directory(Folder);

impl Directory {
    fn new(name: &str) -> Directory {
        Directory(Folder::made(&format!("store-{name}")))
    }

    fn file(&self) -> PathBuf {
        self.0.file("apisix.yaml")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.file("next"), text).unwrap();
        std::fs::rename(self.0.file("next"), self.file()).unwrap();
    }

    fn store(&self) -> FileStore {
        FileStore::new(self.file(), Format::Yaml, EnvVars::Fixed(HashMap::new()))
    }
}

/// The changes of a call, by key: order, or nothing for what goes.
#[derive(Default)]
struct Taken(BTreeMap<String, Option<u64>>);

impl Sink for Taken {
    fn plugins(&mut self, _: Option<EnabledPlugins>) {}

    fn change(&mut self, change: Change) {
        self.0.insert(change.key.to_string(), change.value.map(|_| change.order));
    }

    fn start_over(&mut self) {
        self.0.clear();
    }
}

fn taken(store: &dyn Store) -> Result<BTreeMap<String, Option<u64>>, Vec<String>> {
    let mut taken = Taken::default();
    match store.changes(&mut taken) {
        Ok(_) => Ok(taken.0),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
    }
}

fn keys(store: &dyn Store) -> Vec<String> {
    taken(store)
        .unwrap()
        .into_iter()
        .map(|(key, order)| format!("{}{key}", if order.is_some() { '+' } else { '-' }))
        .collect()
}

fn watched(store: &dyn Store) -> (Watch, Receiver<()>) {
    let (told, calls) = channel();
    let watch = store.watch(Arc::new(move || {
        let _ = told.send(());
    }));
    (watch.unwrap(), calls)
}

#[test]
fn a_file_tells_what_has_changed_in_it() {
    let directory = Directory::new("changes");
    let store = directory.store();
    let routes = |list: &[&str]| format!("routes:\n{}#END\n", list.join(""));
    let (a, b, c) = ("- {id: a, uri: /a}\n", "- {id: b, uri: /b}\n", "- {id: c, uri: /c}\n");
    directory.write(&routes(&[a, c]));
    assert_eq!(keys(&store), ["+route \"a\"", "+route \"c\""]);
    assert_eq!(keys(&store), [""; 0]);
    directory.write(&routes(&[a, b, c]));
    assert_eq!(keys(&store), ["+route \"b\""]);
    directory.write(&routes(&[a, "- {id: b, uri: /bb}\n"]));
    assert_eq!(keys(&store), ["+route \"b\"", "-route \"c\""]);
    assert_eq!(store.origin(&Key::new(Kind::Route, "b")).unwrap().line, 3);
    // Another order is told of all that may stand elsewhere now.
    directory.write(&routes(&["- {id: b, uri: /bb}\n", a]));
    let taken = taken(&store).unwrap();
    assert!(taken["route \"b\""] < taken["route \"a\""], "{taken:?}");
}

#[test]
fn items_that_come_between_others_are_ordered_between_them() {
    let directory = Directory::new("orders");
    let store = directory.store();
    let mut ids: Vec<usize> = vec![0, 1];
    let mut orders: BTreeMap<String, u64> = BTreeMap::new();
    for id in 2..60 {
        // Always between the first two, so that room runs out.
        ids.insert(1, id);
        let items: String = ids.iter().map(|id| format!("- {{id: r{id}, uri: /{id}}}\n")).collect();
        directory.write(&format!("routes:\n{items}#END\n"));
        for (key, order) in taken(&store).unwrap() {
            orders.insert(key, order.unwrap());
        }
        let sequence: Vec<u64> = ids.iter().map(|id| orders[&format!("route \"r{id}\"")]).collect();
        assert!(sequence.is_sorted_by(|a, b| a < b), "{id}: {sequence:?}");
    }
}

/// The file was compared with how it was when the watch began, not with how it was when it was read.
#[test]
fn a_change_between_the_first_look_and_the_watch_is_told() {
    let directory = Directory::new("race");
    let store = directory.store();
    directory.write("routes:\n- {id: a, uri: /a}\n#END\n");
    assert_eq!(keys(&store), ["+route \"a\""]);
    directory.write("routes:\n- {id: b, uri: /b}\n#END\n");
    let (_watch, calls) = watched(&store);
    calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(keys(&store), ["-route \"a\"", "+route \"b\""]);
}

/// A file that could not be read was not looked at again before it changed once more.
#[test]
fn a_file_that_could_not_be_read_is_tried_again() {
    let directory = Directory::new("again");
    let store = directory.store();
    directory.write("routes:\n- {id: a, uri: /a}\n#END\n");
    assert_eq!(keys(&store), ["+route \"a\""]);
    let (_watch, calls) = watched(&store);
    // Nothing can be read through a link that leads nowhere.
    std::os::unix::fs::symlink(directory.0.file("target"), directory.0.file("next")).unwrap();
    std::fs::rename(directory.0.file("next"), directory.file()).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    assert!(taken(&store).unwrap_err()[0].contains("can't be opened"));
    // The watch sees nothing of this.
    std::fs::create_dir(directory.0.file("elsewhere")).unwrap();
    std::fs::write(directory.0.file("elsewhere/file"), "routes:\n- {id: b, uri: /b}\n#END\n").unwrap();
    std::fs::rename(directory.0.file("elsewhere/file"), directory.0.file("target")).unwrap();
    let found = std::iter::from_fn(|| {
        calls.recv_timeout(PATIENCE).unwrap();
        Some(taken(&store))
    });
    let found = found.flatten().find(|taken| !taken.is_empty()).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["route \"a\"", "route \"b\""]);
}

/// Opening one waited for ever.
#[test]
fn a_pipe_in_the_place_of_the_file_is_refused() {
    let directory = Directory::new("pipe");
    let made = std::process::Command::new("mkfifo").arg(directory.file()).status().unwrap();
    assert!(made.success());
    assert!(taken(&directory.store()).unwrap_err()[0].ends_with("is no regular file"));
}

#[test]
fn a_store_in_memory_tells_each_key_once() {
    let store = MemoryStore::default();
    let key = Key::new(Kind::Route, "a");
    let (_watch, calls) = watched(&store);
    store.put(&key, "{}".into()).unwrap();
    store.put(&key, r#"{"uri": "/"}"#.into()).unwrap();
    calls.recv_timeout(PATIENCE).unwrap();
    assert_eq!(keys(&store), ["+route \"a\""]);
    assert_eq!(keys(&store), [""; 0]);
    assert_eq!(store.delete(&key), Ok(true));
    assert_eq!(keys(&store), ["-route \"a\""]);
    assert!(
        matches!(FileStore::new(PathBuf::from("f"), Format::Yaml, EnvVars::Process).put(&key, "{}".into()), Err(StoreError::ReadOnly(name)) if name == "f")
    );
}

/// All that is told of a file that is looked through, and the resources that were read; plugins, where the file lists them.
type LookedThrough = (Vec<String>, Vec<String>, Option<EnabledPlugins>);

fn looked_through(text: &str, format: Format) -> LookedThrough {
    #[derive(Default)]
    struct Read(Vec<String>, Option<EnabledPlugins>);
    impl Sink for Read {
        fn plugins(&mut self, listed: Option<EnabledPlugins>) {
            self.1 = listed;
        }

        fn change(&mut self, change: Change) {
            let read = change.value.filter(|value| !value.is_unread());
            self.0.extend(read.map(|_| change.key.to_string()));
        }

        fn start_over(&mut self) {
            *self = Read::default();
        }
    }
    let mut read = Read::default();
    let resources = Resources { text, format, name: "f" };
    let environment = EnvVars::Fixed(HashMap::new());
    let (warnings, errors) = Listing::default().look_through(resources, &environment, &mut read);
    (warnings.iter().chain(&errors).map(ToString::to_string).collect(), read.0, read.1)
}

/// What was left of it became the catalog, and every plugin of every route was unknown.
#[test]
fn a_list_of_plugins_with_a_fault_enables_nothing_by_itself() {
    let routes = "routes:\n  - {id: a, uri: /a}\n#END\n";
    for list in ["plugins: [limit-count, {name: cors}]\n", "plugins:\n  - limit-count\n  - name: cors\n"] {
        let (told, read, plugins) = looked_through(&format!("{list}{routes}"), Format::Yaml);
        assert_eq!((told.len(), read.len(), plugins), (1, 1, None), "{told:?}");
        assert!(told[0].contains("plugins[0]: "), "{told:?}");
    }
    let unset = format!("plugins: [{{name: '${{{{A}}}}'}}]\n{routes}");
    let (told, _, plugins) = looked_through(&unset, Format::Yaml);
    assert_eq!((told.len(), plugins), (1, None), "{told:?}");
    let list = "plugins: [{name: cors}, {name: limit-conn, stream: true}]\n";
    let (told, _, plugins) = looked_through(&format!("{list}{routes}"), Format::Yaml);
    let named = |name: &str| Some(PluginNames::from_iter([name]));
    let listed = EnabledPlugins { http: named("cors"), streams: named("limit-conn") };
    assert_eq!((told.len(), plugins), (0, Some(listed)), "{told:?}");
}

/// What stands for the variables was shown, with faults that it had: of one id, of unknown keys, of another type.
#[test]
fn nothing_is_told_of_what_stands_for_a_variable() {
    let cases = [
        "upstreams:\n  - {id: '${{A}}', nodes: {}}\n  - {id: '${{A}}', nodes: {}}\n#END\n",
        "'${{A}}': []\nroutes: '${{B}}'\n#END\n",
        "upstreams: [{id: u, nodes: {'${{A}}': 1, '${{A}}': 2}}]\n#END\n",
    ];
    for text in cases {
        let (told, ..) = looked_through(text, Format::Yaml);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|one| one.contains("can't find environment variable")), "{told:?}");
    }
}

/// They became one key: a false warning, and in JSON a false error that dropped the object.
#[test]
fn keys_with_variables_that_are_not_set_are_not_equal() {
    let yaml = "upstreams:\n  - {id: u, nodes: {'${{A}}:80': 1, '${{B}}:80': 1}}\nroutes: [{id: a, uri: /a}]\n#END\n";
    let json = r#"{"upstreams": [{"id": "u", "nodes": {"${{A}}:80": 1, "${{B}}:80": 1}}], "routes": [{"id": "a", "uri": "/a"}]}"#;
    for (text, format) in [(yaml, Format::Yaml), (json, Format::Json)] {
        let (told, read, _) = looked_through(text, format);
        assert_eq!((told.len(), read), (2, vec!["route \"a\"".to_owned()]), "{told:?}");
        for (error, name) in told.iter().zip(["A", "B"]) {
            assert!(error.ends_with(&format!("can't find environment variable {name}")), "{error}");
        }
    }
}
