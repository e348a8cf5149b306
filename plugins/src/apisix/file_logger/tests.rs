#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]
use super::*;
use crate::testing::{build, context, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sixfold_core::access_log::LogTarget;
use std::path::Path;

/// Files in memory: path and text.
#[derive(Default)]
struct Memory(Arc<Mutex<Vec<(PathBuf, String)>>>);

struct MemoryFile(Arc<Mutex<Vec<(PathBuf, String)>>>, PathBuf);

/// What the list has of a file that has begun.
const BEGUN: &str = "begun";

impl MakeSink for Memory {
    fn sink(&self, _: &LogTarget) -> Result<Arc<dyn LogSink>, String> {
        Err("not at once".to_owned())
    }

    fn opened_late(&self, path: &Path) -> Arc<dyn LogSink> {
        Arc::new(MemoryFile(self.0.clone(), path.to_owned()))
    }
}

impl LogSink for MemoryFile {
    fn write(&self, line: &[u8]) {
        self.0.lock().push((self.1.clone(), String::from_utf8_lossy(line).into_owned()));
    }

    fn start_opening(&self) {
        self.0.lock().push((self.1.clone(), BEGUN.to_owned()));
    }
}

fn set_metadata(context: &BuildContext, metadata: Value) {
    let config = serde_json::from_value(metadata).unwrap();
    let read = LoggerMetadata::read(config).unwrap();
    context.metadata.change(NAME, Some(Arc::new(read))).put_in_force();
}

#[test]
fn each_request_is_a_line_of_its_file() {
    let memory = Memory::default();
    let written = memory.0.clone();
    let context = BuildContext { log_sinks: Arc::new(memory), ..context() };
    let format = json!({"u": "$uri"});
    let own = build(NAME, &json!({"path": "own.log", "log_format": format}), &context).unwrap();
    let general = build(NAME, &json!({"log_format": format}), &context).unwrap();
    own.log(&mut stream("/a", &[]));
    // Nobody has said where.
    general.log(&mut stream("/lost", &[]));
    set_metadata(&context, json!({"path": "general.log"}));
    general.log(&mut stream("/b", &[]));
    own.log(&mut stream("/c", &[]));
    set_metadata(&context, json!({"path": "other.log"}));
    general.log(&mut stream("/d", &[]));
    // Each has its writer before its first line, and none is started by a request.
    let lines: Vec<_> =
        written.lock().iter().map(|(p, line)| format!("{} {}", p.display(), line.trim_end())).collect();
    assert_eq!(
        lines,
        [
            "own.log begun",
            "own.log {\"u\":\"/a\"}",
            "general.log begun",
            "general.log {\"u\":\"/b\"}",
            "own.log {\"u\":\"/c\"}",
            "other.log begun",
            "other.log {\"u\":\"/d\"}"
        ]
    );
}

/// What is refused has started no thread.
#[test]
fn nothing_begins_before_it_is_in_force() {
    let memory = Memory::default();
    let written = memory.0.clone();
    let context = BuildContext { log_sinks: Arc::new(memory), ..context() };
    set_metadata(&context, json!({"path": "general.log"}));
    let build = |config: Value| {
        let mut whole = json!({"include_req_body": false, "include_resp_body": false,
            "max_req_body_bytes": 1, "max_resp_body_bytes": 1});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        factory().build(&whole, &context).unwrap()
    };
    let (own, general) = (build(json!({"path": "own.log"})), build(json!({})));
    set_metadata(&context, json!({"path": "other.log"}));
    assert_eq!(*written.lock(), []);
    let _in_force = [own, general].map(crate::testing::Alone::new);
    let begun = |path: &str| (PathBuf::from(path), BEGUN.to_owned());
    assert_eq!(*written.lock(), [begun("own.log"), begun("other.log")]);
}

#[test]
fn a_path_is_wanted_where_all_metadata_is_known() {
    let context = BuildContext { metadata_is_whole: true, ..context() };
    let error = build(NAME, &json!({}), &context).err().unwrap();
    assert_eq!(error, "property \"path\" is not set in either the plugin conf or the metadata");
    set_metadata(&context, json!({"path": "general.log"}));
    assert!(build(NAME, &json!({}), &context).is_ok());
}

#[test]
fn requests_are_chosen_by_expressions() {
    let memory = Memory::default();
    let written = memory.0.clone();
    let context = BuildContext { log_sinks: Arc::new(memory), ..context() };
    let matches = json!([[["arg_name", "==", "jack"]], [["arg_name", "==", "rose"]], ["arg_age", ">", "3"]]);
    let config = json!({"path": "f", "match": matches, "log_format": {"q": "$args"}});
    let plugin = build(NAME, &config, &context).unwrap();
    for query in ["name=jack", "name=jim", "name=rose", "age=4"] {
        plugin.log(&mut stream(&format!("/?{query}"), &[]));
    }
    let lines: Vec<_> = written.lock().iter().map(|(_, line)| line.clone()).collect();
    assert_eq!(lines, ["begun", "{\"q\":\"name=jack\"}\n", "{\"q\":\"name=rose\"}\n"]);
    let none = build(NAME, &json!({"path": "f", "match": []}), &context).unwrap();
    none.log(&mut stream("/", &[]));
    assert_eq!(written.lock().len(), 4, "the second one has begun, and says nothing");
    let error = build(NAME, &json!({"path": "f", "match": [[["a", "=", "b"]]]}), &context).err().unwrap();
    assert!(error.ends_with("failed to validate the 'match' expression: invalid operator '='"), "{error}");
}
