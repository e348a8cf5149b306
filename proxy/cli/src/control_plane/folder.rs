//! The resources of a folder.

use prost::Message;
use sixfold_core::document::{Entry, Node, Object, Options, Value};
use sixfold_core::error::{ConfigContext, ConfigError, Faults, collect, nearest};
use sixfold_core::files;
use sixfold_xds::ads::Kind;
use sixfold_xds_api::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource as Wrapped};
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::{any, json, message_from_node, wire};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// A resource with a name and a version of its own around it.
const WRAPPER: &str = "envoy.service.discovery.v3.Resource";
/// No file is larger.
const MAX_FILE: usize = 64 << 20;

/// A resource as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resource {
    pub(super) value: Any,
    /// Of its bytes.
    pub(super) version: String,
}

/// Resources by type URL and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Resources(BTreeMap<String, BTreeMap<String, Arc<Resource>>>);

impl Resources {
    /// Those of a type.
    pub(super) fn of(&self, type_url: &str) -> impl Iterator<Item = (&String, &Arc<Resource>)> {
        self.0.get(type_url).into_iter().flatten()
    }

    /// One of them.
    pub(super) fn get(&self, type_url: &str, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(type_url)?.get(name)
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    pub(super) fn put(&mut self, name: &str, value: Any) {
        let mut hasher = DefaultHasher::new();
        value.value.hash(&mut hasher);
        let version = format!("{:016x}", hasher.finish());
        let of_type = self.0.entry(value.type_url.clone()).or_default();
        of_type.insert(name.to_owned(), Arc::new(Resource { value, version }));
    }
}

/// A folder of files (`*.yaml`, `*.yml`, `*.json`), and its folders: each is one resource with `@type`, a list of
/// them, or a DiscoveryResponse.
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Why it can't be looked at, which is told once.
    fault: Option<String>,
}

struct File {
    /// When it was written, and its size.
    stamp: (SystemTime, u64),
    /// The last good.
    resources: Vec<(String, Any)>,
}

/// What has become of the folder.
pub(super) struct Look {
    pub(super) changed: bool,
    /// What is wrong in files that are new or have changed: they stay what they were.
    pub(super) faults: Vec<String>,
}

impl Folder {
    /// Nothing is read yet.
    pub(super) fn new(path: PathBuf) -> Folder {
        Folder { path, files: BTreeMap::new(), fault: None }
    }

    /// Reads what is new.
    pub(super) fn look(&mut self) -> Look {
        let mut look = Look { changed: false, faults: Vec::new() };
        let mut found = BTreeMap::new();
        if let Err(error) = find(&self.path, &mut found) {
            let fault = format!("{}: {error}", self.path.display());
            if self.fault.as_ref() != Some(&fault) {
                look.faults.push(fault.clone());
            }
            self.fault = Some(fault);
            return look;
        }
        self.fault = None;
        let before = self.files.len();
        self.files.retain(|path, _| found.contains_key(path));
        look.changed |= self.files.len() != before;
        for (path, stamp) in found {
            if self.files.get(&path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let read = read(&path);
            let file = self.files.entry(path).or_insert(File { stamp, resources: Vec::new() });
            file.stamp = stamp;
            match read {
                Ok(resources) if resources == file.resources => {}
                Ok(resources) => {
                    file.resources = resources;
                    look.changed = true;
                }
                Err(error) => look.faults.extend(error.into_all().iter().map(ToString::to_string)),
            }
        }
        look
    }

    /// All of them; of two of one name the one of the later file counts.
    pub(super) fn resources(&self) -> Resources {
        let mut all = Resources::default();
        for (name, value) in self.files.values().flat_map(|file| &file.resources) {
            all.put(name, value.clone());
        }
        all
    }
}

fn find(folder: &Path, found: &mut BTreeMap<PathBuf, (SystemTime, u64)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        // It may have gone meanwhile.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            find(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known))
        {
            found.insert(path, (metadata.modified()?, metadata.len()));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<(String, Any)>, ConfigError> {
    let file = path.display().to_string();
    let text = files::read_text(path, MAX_FILE)
        .map_err(|error| ConfigError::new(error.to_string()).in_file(&file))?;
    resources(&text, &file).map_err(|error| error.in_file(&file))
}

/// The resources of a text, with their names.
fn resources(text: &str, file: &str) -> Result<Vec<(String, Any)>, ConfigError> {
    let node = Node::parse(text, &Options { wide_numbers_as_text: true, ..Options::envoy(file) })?;
    let node = response(node)?;
    let decoded = message_from_node::<DiscoveryResponse>(&node);
    let items = node.get("resources").and_then(Node::as_array).unwrap_or_default();
    let checked = items.iter().enumerate().map(|(index, item)| {
        // A name that is misspelt is not missing as well.
        let is_misspelt = |fault: &ConfigError| {
            let of_item =
                fault.field.as_deref().and_then(|field| field.strip_prefix(&format!("resources[{index}].")));
            of_item.is_some()
                && NAMES.iter().any(|name| fault.reason.contains(&format!("did you mean \"{name}\"")))
        };
        let faults = decoded.as_ref().err().into_iter().flat_map(|fault| fault.clone().into_all());
        check(item, !faults.into_iter().any(|fault| is_misspelt(&fault))).in_index(index).in_key("resources")
    });
    let mut faults = Faults::default();
    checked.for_each(|checked| faults.take(checked));
    let decoded = faults.keep(decoded);
    let DiscoveryResponse { resources, .. } = faults.end(decoded)?.unwrap_or_default();
    let named = resources.into_iter().enumerate().map(|(index, value)| named(value).in_index(index));
    collect(named).in_key("resources")
}

/// Fields that the name of a resource stands in.
const NAMES: [&str; 3] = ["name", "cluster_name", "clusterName"];

/// Looks at what a resource is and what it is called, with their places: what can't be decoded elsewhere in the file is told
/// together with it.
fn check(item: &Node, looks_at_name: bool) -> Result<(), ConfigError> {
    let (item, within) = match item.get("resource") {
        Some(inner) if kind(item) == Some(WRAPPER) => (inner, "resource."),
        _ => (item, ""),
    };
    // Without a type, or with one that nobody knows, it is no message.
    let Some(found) = kind(item).filter(|kind| json::is_known_type(kind)) else { return Ok(()) };
    let known = Kind::ALL.map(|kind| any::name_of_url(kind.type_url()));
    if !known.contains(&found) {
        let place = item.get("@type").map_or(item.place, |kind| kind.place);
        let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
        let near = nearest(found.rsplit('.').next().unwrap_or(found), known.map(last));
        let near = known.into_iter().find(|name| near == Some(last(name)));
        let near = near.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        let reason = format!("{found} is no resource of xDS{near}");
        return Err(ConfigError::field(&format!("{within}@type"), reason).at(place));
    }
    let field = if found == any::name_of_url(Kind::Endpoints.type_url()) { "cluster_name" } else { "name" };
    let given = NAMES.iter().find_map(|name| item.get(name));
    let is_named = given.is_some_and(|name| name.as_str().is_none_or(|name| !name.is_empty()));
    if looks_at_name && !is_named {
        let reason = if given.is_some() { "must not be empty" } else { "is missing" };
        let place = given.map_or(item.place, |name| name.place);
        return Err(ConfigError::field(&format!("{within}{field}"), reason).at(place));
    }
    Ok(())
}

/// The type of a message.
fn kind(item: &Node) -> Option<&str> {
    item.get("@type").and_then(Node::as_str).map(any::name_of_url)
}

fn named(value: Any) -> Result<(String, Any), ConfigError> {
    let value = match any::name_of_url(&value.type_url) {
        WRAPPER => {
            let wrapped = Wrapped::decode(value.value.as_slice()).ok().and_then(|wrapped| wrapped.resource);
            wrapped.ok_or_else(|| ConfigError::field("resource", "is missing"))?
        }
        _ => value,
    };
    // In all types of resources the name is the first field.
    let name = wire::text(&value.value, 1).filter(|name| !name.is_empty()).map(str::to_owned);
    Ok((name.ok_or_else(|| ConfigError::field("name", "is missing"))?, value))
}

/// A list of resources, or one, as the DiscoveryResponse that it stands for.
fn response(node: Node) -> Result<Node, ConfigError> {
    let place = node.place;
    let list = match &node.value {
        Value::Array(_) => node,
        Value::Object(object) if object.get("@type").is_some() => {
            Node { place, value: Value::Array(vec![node]) }
        }
        _ => return Ok(node),
    };
    let entry = Entry { key: "resources".to_owned(), key_place: place, value: list };
    Ok(Node { place, value: Value::Object(Object::new(vec![entry])?) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

    #[test]
    fn a_file_is_a_resource_a_list_or_a_response() {
        let one = format!("{{\"@type\": {CLUSTER}, name: a}}");
        for text in [one.clone(), format!("[{one}]"), format!("resources: [{one}]")] {
            let resources = resources(&text, "x.yaml").unwrap();
            assert_eq!(resources.len(), 1);
            assert_eq!((resources[0].0.as_str(), resources[0].1.type_url.as_str()), ("a", CLUSTER));
        }
        let wrong = format!("{{\"@type\": {CLUSTER},\n nam: a}}");
        for text in [wrong.clone(), format!("[{wrong}]"), format!("resources: [{wrong}]")] {
            let wrong = resources(&text, "x.yaml").unwrap_err();
            assert!(wrong.to_string().starts_with("2:2: resources[0].nam: "), "{wrong}");
        }
        let unnamed = format!("[{{\"@type\": {CLUSTER}}}, {one}, {{\"@type\": {CLUSTER}}}]");
        let all = resources(&unnamed, "x.yaml").unwrap_err().into_all();
        let fields: Vec<_> = all.iter().filter_map(|error| error.field.as_deref()).collect();
        assert_eq!(fields, ["resources[0].name", "resources[2].name"]);
    }

    /// What a resource is and what it is called was looked at when the rest of the file was good, and had no line.
    #[test]
    fn all_faults_of_a_file_are_told_together_with_their_places() {
        let http = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
        let text = format!(
            "- {{\"@type\": {CLUSTER}, type: STATIC}}\n- {{\"@type\": {http}}}\n\
             - {{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguratio, name: r}}\n\
             - {{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteAction, cluster: c}}\n\
             - {{\"@type\": {CLUSTER}, name: c, connect_timeout: soon}}\n\
             - {{\"@type\": {CLUSTER}, nam: c}}\n\
             - \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: x\n  resource: {{\"@type\": {CLUSTER}, name: ''}}\n\
             - {{\"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment}}\n"
        );
        let all = resources(&text, "x.yaml").unwrap_err().into_all();
        let told = |field: &str| {
            let fault = all.iter().find(|fault| fault.field.as_deref() == Some(field));
            let fault = fault.unwrap_or_else(|| panic!("{field}: {all:?}"));
            (fault.place.unwrap().line, fault.reason.clone())
        };
        assert_eq!(told("resources[0].name"), (1, "is missing".to_owned()));
        assert_eq!(
            told("resources[1].@type"),
            (2, "envoy.extensions.filters.http.cors.v3.Cors is no resource of xDS".to_owned())
        );
        assert_eq!(told("resources[3].@type").0, 4);
        assert_eq!(told("resources[4].connect_timeout").0, 5);
        assert_eq!(told("resources[5].nam").0, 6);
        assert_eq!(told("resources[6].resource.name"), (9, "must not be empty".to_owned()));
        assert_eq!(told("resources[7].cluster_name").0, 10);
        assert_eq!(all.len(), 8, "{all:?}");
    }

    #[test]
    fn a_folder_that_is_gone_is_told_once() {
        let path = std::env::temp_dir().join(format!("sixfold-folder-gone-{}", std::process::id()));
        let mut folder = Folder::new(path.clone());
        assert_eq!([folder.look().faults.len(), folder.look().faults.len()], [1, 0]);
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(folder.look().faults.len(), 0);
        std::fs::remove_dir_all(path).unwrap();
        assert_eq!(folder.look().faults.len(), 1);
    }

    #[test]
    fn a_file_that_is_wrong_keeps_what_it_was() {
        let path = std::env::temp_dir().join(format!("sixfold-folder-{}", std::process::id()));
        std::fs::create_dir_all(path.join("more")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
        write("a.yaml", &format!("{{\"@type\": {CLUSTER}, name: a}}"));
        write("more/b.json", &format!("{{\"@type\": \"{CLUSTER}\", \"name\": \"b\"}}"));
        write("notes.txt", "no resource");
        let mut folder = Folder::new(path.clone());
        let look = folder.look();
        assert!(look.changed && look.faults.is_empty(), "{:?}", look.faults);
        let before = folder.resources();
        assert_eq!(before.len(), 2);
        assert!(!folder.look().changed);
        write("a.yaml", "{ broken");
        let look = folder.look();
        assert_eq!((look.changed, look.faults.len(), folder.resources() == before), (false, 1, true));
        write("a.yaml", &format!("{{\"@type\": {CLUSTER}, nam: a,\n connect_timout: 1s}}"));
        let faults = folder.look().faults;
        assert!(
            faults.len() == 2 && faults[1].contains("a.yaml:2:2: resources[0].connect_timout"),
            "{faults:?}"
        );
        std::fs::remove_file(path.join("a.yaml")).unwrap();
        assert!(folder.look().changed);
        assert_eq!(folder.resources().len(), 1);
        std::fs::remove_dir_all(path).unwrap();
    }
}
