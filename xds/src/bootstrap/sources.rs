//! What a bootstrap is written in: one text or several, and what the command line says of the node.

use prost::Message;
use sixfold_core::document::{Node as DocumentNode, Options};
use sixfold_core::error::{ConfigError, Place};
use sixfold_xds_api::bootstrap_with_faults;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::Bootstrap;

use crate::places::{merged_path, place_in};

/// A text (YAML, or JSON for a file called `*.json`) and the name that it has in errors.
#[derive(Debug, Clone, Copy)]
pub struct Document<'t> {
    /// The text.
    pub text: &'t str,
    /// Its name.
    pub name: &'t str,
}

/// Who this process is, where the command line says so: that goes before what is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeNames {
    /// `node.id`
    pub id: Option<String>,
    /// `node.cluster`
    pub cluster: Option<String>,
    /// `node.locality.zone`
    pub zone: Option<String>,
}

/// All that a bootstrap is made of.
#[derive(Debug)]
pub struct Sources<'t> {
    /// Texts of which each is merged over those before it, as messages are (`MergeFrom`): lists are joined, the rest of a
    /// message is merged field by field, and of a oneof, a key of a map and what is packed into an `Any` the last counts.
    pub documents: Vec<Document<'t>>,
    /// What the command line says.
    pub node: NodeNames,
}

impl<'t> Sources<'t> {
    /// One text.
    pub fn one(text: &'t str, name: &'t str) -> Sources<'t> {
        Sources { documents: vec![Document { text, name }], node: NodeNames::default() }
    }

    /// What is right of it, and what is wrong, with file, place and the path in the whole.
    ///
    /// # Errors
    /// A text that is no document.
    pub(super) fn read(&self) -> std::result::Result<(Bootstrap, Vec<ConfigError>), Vec<ConfigError>> {
        let (mut whole, mut faults) = (Bootstrap::default(), Vec::new());
        for (at, Document { text, name }) in self.documents.iter().enumerate() {
            let (read, wrong) = bootstrap_with_faults(text, name).map_err(ConfigError::into_all)?;
            if at == 0 {
                whole = read;
            } else {
                let merged = whole.merge(read.encode_to_vec().as_slice());
                merged.map_err(|error| vec![ConfigError::new(error.to_string()).in_file(*name)])?;
            }
            let Some(wrong) = wrong else { continue };
            let earlier = self.roots(at);
            faults.extend(wrong.into_all().into_iter().map(|mut fault| {
                fault.field = fault.field.map(|path| merged_path(&earlier, &path));
                fault
            }));
        }
        self.name_node(&mut whole);
        Ok((whole, faults))
    }

    fn name_node(&self, whole: &mut Bootstrap) {
        let NodeNames { id, cluster, zone } = &self.node;
        if id.is_none() && cluster.is_none() && zone.is_none() {
            return;
        }
        let node = whole.node.get_or_insert_default();
        node.id = id.clone().unwrap_or(std::mem::take(&mut node.id));
        node.cluster = cluster.clone().unwrap_or(std::mem::take(&mut node.cluster));
        if let Some(zone) = zone {
            node.locality.get_or_insert_default().zone.clone_from(zone);
        }
    }

    /// The first so many documents, as far as they can be read.
    fn roots(&self, count: usize) -> Vec<DocumentNode> {
        let documents = self.documents.iter().take(count);
        let read = documents
            .map_while(|Document { text, name }| DocumentNode::parse(text, &Options::envoy(name)).ok());
        read.collect()
    }

    /// Gives faults with the paths of their fields a file and a place, in whose order they come.
    pub(super) fn placed(&self, faults: Vec<(String, ConfigError)>) -> Vec<ConfigError> {
        let roots = self.roots(self.documents.len());
        let name = |at: usize| self.documents.get(at).map_or("", |document| document.name);
        let placed = faults.into_iter().map(|(path, mut fault)| {
            let (at, place) = match fault.place {
                Some(place) => (0, Some(place)),
                None => place_in(&roots, &path).map_or((0, None), |(at, place)| (at, Some(place))),
            };
            fault.place = place;
            fault.in_file(name(at))
        });
        let mut faults: Vec<ConfigError> = placed.collect();
        let rank = |fault: &ConfigError| -> (Option<usize>, Option<Place>) {
            let file = fault.file.as_deref();
            (self.documents.iter().position(|document| Some(document.name) == file), fault.place)
        };
        faults.sort_by_key(rank);
        faults
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bootstrap::load_merged;
    use crate::testing::process;

    const FILE: &str = "\
node: {id: a, metadata: {x: {y: 1}, z: 1}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}
static_resources:
  clusters:
  - name: one
    typed_extension_protocol_options: {}
    load_assignment: {cluster_name: one}
stats_flush_interval: 5s
tracing:
  http:
    name: zipkin
    typed_config:
      '@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig
      collector_cluster: one
      collector_endpoint: /a
      collector_endpoint_version: HTTP_JSON
      trace_id_128bit: true
";

    fn sources<'t>(over: &'t str) -> Sources<'t> {
        let documents =
            vec![Document { text: FILE, name: "e.yaml" }, Document { text: over, name: "--config-yaml" }];
        Sources { documents, node: NodeNames::default() }
    }

    fn merged(over: &str) -> Bootstrap {
        let (whole, faults) = sources(over).read().unwrap();
        assert_eq!(faults, [], "{over}");
        whole
    }

    fn faults(over: &str) -> Vec<String> {
        let faults = load_merged(&sources(over), &process()).map(drop).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    /// JSON was merged key by key: one value for a list took the file's items away, what is packed was mixed with what was
    /// packed before, another member of a oneof was refused beside the file's, and a null deleted.
    #[test]
    fn texts_are_merged_as_messages_are() {
        let names = |value: &Bootstrap| -> Vec<String> {
            let clusters = &value.static_resources.as_ref().unwrap().clusters;
            clusters.iter().map(|cluster| cluster.name.clone()).collect()
        };
        for list in ["[{name: two}]", "{name: two}"] {
            assert_eq!(names(&merged(&format!("static_resources: {{clusters: {list}}}"))), ["one", "two"]);
        }
        let plain = merged("{}");
        assert_eq!(merged("{tracing: null, admin: null}"), plain);
        let packed = |value: &Bootstrap| {
            use sixfold_xds_api::pb::envoy::config::trace::v3::tracing::http::ConfigType;
            let http = value.tracing.clone().unwrap().http.unwrap();
            let ConfigType::TypedConfig(config) = http.config_type.unwrap();
            (config.type_url, config.value.len())
        };
        let other = "tracing: {http: {typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: x}}}";
        let (kind, bytes) = packed(&merged(other));
        assert!(kind.ends_with("OpenTelemetryConfig") && bytes == 3, "{kind} of {bytes} bytes");
        let same = "tracing: {http: {typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: b}}}";
        assert_eq!(packed(&merged(same)).1, 3, "nothing of the file's is left");
        let pipe = merged("admin: {address: {pipe: {path: /a}}}").admin.unwrap().address.unwrap();
        assert!(format!("{pipe:?}").contains("Pipe(") && !format!("{pipe:?}").contains("SocketAddress("));
        let node = merged("node: {cluster: b, metadata: {x: {w: 2}}}").node.unwrap();
        assert_eq!((&*node.id, &*node.cluster), ("a", "b"));
        let metadata = sixfold_xds_api::any::struct_to_json(node.metadata.unwrap());
        assert_eq!(metadata, serde_json::json!({"x": {"w": 2}, "z": 1}));
        let interval = merged("stats_flush_interval: {nanos: 7}").stats_flush_interval.unwrap();
        assert_eq!((interval.seconds, interval.nanos), (5, 7));
    }

    /// They were at a column of a text that nobody has.
    #[test]
    fn faults_are_where_they_were_written() {
        let two = "static_resources:\n  clusters:\n  - name: two\n    typo: 1\n";
        let told = faults(two);
        assert!(told[0].starts_with("--config-yaml:4:5: cluster \"two\": typo: unknown field"), "{told:?}");
        let refused = two.replace("typo: 1", "lrs_server: {self: {}}");
        let told = faults(&refused);
        assert_eq!(told, ["--config-yaml:4:5: cluster \"two\": lrs_server: is not supported"]);
        let of_file = FILE.replace("load_assignment: {", "lrs_server: {self: {}}\n    load_assignment: {");
        let documents = vec![
            Document { text: &of_file, name: "e.yaml" },
            Document { text: "stats_flush_interval: 6s\nhds_config: {}\n", name: "--config-yaml" },
        ];
        let all = load_merged(&Sources { documents, node: NodeNames::default() }, &process());
        let told: Vec<_> = all.map(drop).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "e.yaml:7:5: cluster \"one\": lrs_server: is not supported",
                "--config-yaml:2:1: hds_config: is not supported"
            ]
        );
        assert!(faults("[]")[0].starts_with("--config-yaml:1:1: must be an object"));
        assert!(faults("a: [\n")[0].starts_with("--config-yaml:"));
    }

    #[test]
    fn the_command_line_names_the_node_before_all_texts() {
        let names = NodeNames { id: Some("c".to_owned()), zone: Some("z".to_owned()), cluster: None };
        let whole = Sources { node: names, ..sources("node: {id: b, cluster: b}") }.read().unwrap().0;
        let node = whole.node.unwrap();
        assert_eq!((&*node.id, &*node.cluster, &*node.locality.unwrap().zone), ("c", "b", "z"));
    }
}
