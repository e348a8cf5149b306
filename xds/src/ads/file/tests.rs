#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use prost::Message;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::cluster::v3::Cluster;

const TYPE: &str = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster";

fn read(name: &str, text: &str) -> Result<Update> {
    let update = update(Kind::Cluster, Path::new(name), text.as_bytes())?;
    let resources = update.resources.into_iter();
    Ok(Update { resources: resources.map(|it| Resource { origin: None, ..it }).collect(), ..update })
}

/// Names of the resources, each with what is wrong.
fn shown(update: &Update) -> Vec<(String, String)> {
    let of = |resource: &Resource| match &resource.content {
        Content::Value(_) => (resource.name.to_string(), String::new()),
        Content::Fault(fault) => (resource.name.to_string(), fault.to_string()),
        Content::Heartbeat => panic!("no heartbeat"),
    };
    update.resources.iter().map(of).collect()
}

#[test]
fn a_file_is_read_as_the_end_of_its_name_says() {
    let yaml = format!("version_info: \"7\"\nresources:\n- {{{TYPE}, name: c}}\n");
    let from_yaml = read("cds.yaml", &yaml).unwrap();
    assert_eq!((from_yaml.whole, from_yaml.version.as_str()), (true, "7"));
    assert_eq!(shown(&from_yaml), [("c".to_owned(), String::new())]);
    let json = format!("{{\"versionInfo\": \"7\", \"resources\": [{{{TYPE}, \"name\": \"c\"}}]}}");
    let json = json.replace(
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "\"type.googleapis.com/envoy.config.cluster.v3.Cluster\"",
    );
    assert_eq!(read("cds.json", &json).unwrap(), from_yaml);
    assert!(read("cds.json", &yaml).is_err(), "YAML");
    let response = DiscoveryResponse {
        version_info: "7".to_owned(),
        resources: vec![any::pack(&Cluster { name: "c".to_owned(), ..Cluster::default() })],
        ..DiscoveryResponse::default()
    };
    let encoded = response.encode_to_vec();
    assert_eq!(update(Kind::Cluster, Path::new("CDS.PB"), &encoded).unwrap(), from_yaml);
    assert!(update(Kind::Cluster, Path::new("cds.pb"), &[0xff]).is_err());
    let text = "version_info: \"7\" resources { [type.googleapis.com/envoy.config.cluster.v3.Cluster] { name: \"c\" } }";
    assert_eq!(read("cds.pb_text", text).unwrap(), from_yaml);
}

/// One value that does not fit its type took all others of its file with it.
#[test]
fn what_is_wrong_with_one_resource_is_told_of_that() {
    let text = format!(
        "resources:\n- {{{TYPE}, name: good}}\n- {TYPE}\n  name: bad\n  connect_timeout: soon\n\
         - \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name: l\n"
    );
    let update = read("cds.yaml", &text).unwrap();
    let [good, bad, other] = &shown(&update)[..] else { panic!("{update:?}") };
    assert_eq!(good, &("good".to_owned(), String::new()));
    assert_eq!(bad.0, "bad");
    assert!(bad.1.starts_with("cds.yaml:5:20: connect_timeout: "), "{}", bad.1);
    assert_eq!(other.0, "l");
    assert!(other.1.contains("must be of type envoy.config.cluster.v3.Cluster"), "{}", other.1);
    assert!(update.whole, "each can be told from those that are gone");
}

#[test]
fn a_file_that_is_no_response_is_refused_as_a_whole() {
    let cases = [
        ("resources: [", "cds.yaml:"),
        ("resource: []", "resource"),
        (&format!("resources:\n- {{{TYPE}, connect_timeout: soon}}\n"), "resources[0].connect_timeout"),
    ];
    for (text, reason) in cases {
        let error = read("cds.yaml", text).unwrap_err().in_file("cds.yaml").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_file_of_routes_has_one_route_configuration() {
    let kind = "\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    let read = |text: &str, name: &str| routes(Path::new("rds.yaml"), text.as_bytes(), name);
    let one = format!("resources: [{{{kind}, name: r}}]");
    assert_eq!(read(&one, "r").unwrap().0, [10, 1, b'r']);
    let two = format!("resources: [{{{kind}, name: r}}, {{{kind}, name: s}}]");
    let cases = [
        (&one, "s", "rds.yaml:1:85: resources[0].name: must be \"s\", which is asked for, not \"r\""),
        (&two, "r", "1:1: resources: must be one route configuration, not 2"),
        (&"resources: []".to_owned(), "r", "1:1: resources: must be one route configuration, not 0"),
    ];
    for (text, name, reason) in cases {
        assert_eq!(read(text, name).unwrap_err().to_string(), reason);
    }
}

/// Once they were messages, faults had lost their places.
#[test]
fn faults_of_meaning_have_their_places() {
    let text = format!(
        "version_info: a\nresources:\n- {TYPE}\n  name: c\n  lbSubsetConfig:\n    subset_selectors:\n    - {{}}\n\
         - \"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource\n  name: d\n  resource:\n    {TYPE}\n    name: d\n"
    );
    let update = update(Kind::Cluster, Path::new("cds.yaml"), text.as_bytes()).unwrap();
    let told = |index: usize, field: &str| {
        let origin = update.resources[index].origin.as_ref().unwrap();
        origin.place(ConfigError::field(field, "is wrong")).to_string()
    };
    assert_eq!(
        told(0, "lb_subset_config.subset_selectors[0].keys"),
        "cds.yaml:7:7: lb_subset_config.subset_selectors[0].keys: is wrong"
    );
    assert_eq!(told(1, "name"), "cds.yaml:12:5: name: is wrong");
    let whole = update.resources[1].origin.as_ref().unwrap().place(ConfigError::new("is wrong"));
    assert_eq!(whole.to_string(), "cds.yaml:10:3: is wrong");
}
