#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::context;
use prost::Message;
use serde_json::json;
use sixfold_core::connection::{Connection, TlsInfo};
use sixfold_core::listener::{ClientBytes, FilterStep};
use sixfold_core::plugin::{BuildContext, LocalNode, Scope, Slot};
use sixfold_core::stream::Stream;

const SLOT: Slot = Slot::new(0, Scope::Route);

fn filter(name: &str, labels: &[&str]) -> Arc<dyn ConnectionFilter> {
    let metadata =
        json!({"WORKLOAD_NAME": name, "NAMESPACE": "default", "LABELS": {"app": name, "role": "x"}});
    let node = LocalNode { id: name.into(), metadata: metadata.as_object().unwrap().clone() };
    let config = MetadataExchange {
        protocol: "istio-peer-exchange".into(),
        enable_discovery: true,
        additional_labels: labels.iter().map(|label| (*label).to_owned()).collect(),
    };
    let context = BuildContext { node: Arc::new(node), ..context() };
    factory().build(&config.encode_to_vec(), &context).unwrap()
}

fn connection(alpn: &[u8]) -> Stream {
    let address = ([127, 0, 0, 1], 80).into();
    let tls = Some(TlsInfo { alpn: Some(alpn.into()), ..TlsInfo::default() });
    Stream::new(Arc::new(Connection { tls, ..Connection::plain(address, address) }))
}

/// What becomes of bytes of the client: whether they are held, what goes on of them, and what the client gets.
fn seen(
    filter: &dyn ConnectionFilter,
    connection: &mut Stream,
    bytes: &[u8],
    end: bool,
) -> (bool, Vec<u8>, Vec<u8>) {
    let (mut received, mut answer) = (bytes.to_vec(), Vec::new());
    let step = filter.on_data(
        connection,
        SLOT,
        &mut ClientBytes { received: &mut received, end, answer: &mut answer },
    );
    (matches!(step, FilterStep::Hold), received, answer)
}

/// What a filter says before all else.
fn said(filter: &dyn ConnectionFilter) -> Vec<u8> {
    let (mut connection, mut said) = (connection(b"istio-peer-exchange"), Vec::new());
    assert!(matches!(filter.on_new_connection(&mut connection, SLOT), FilterStep::Continue));
    filter.on_write(&mut connection, SLOT, &mut said);
    said
}

#[test]
fn both_ends_learn_who_is_at_the_other() {
    let (web, db) = (filter("web", &["role"]), filter("db", &["role"]));
    let mut called = connection(b"istio-peer-exchange");
    db.on_new_connection(&mut called, SLOT);
    assert!(called.peers.awaited.downstream);
    let bytes = [said(&*web), b"hello".to_vec()].concat();
    let mut answers = Vec::new();
    for cut in [1, 8, 30] {
        let (held, left, answer) = seen(&*db, &mut called, &bytes[..cut], false);
        assert_eq!((held, left), (true, bytes[..cut].to_vec()));
        answers.extend(answer);
    }
    assert_eq!(answers, said(&*db), "it is said once");
    assert_eq!(seen(&*db, &mut called, &bytes, false), (false, b"hello".to_vec(), Vec::new()));
    let peer = called.peers.named("downstream_peer").unwrap();
    assert_eq!((&*peer.workload, &*peer.namespace, &*peer.app), ("web", "default", "web"));
    assert_eq!(peer.labels, [("role".into(), "x".into())]);
    assert!(!called.peers.awaited.downstream);
}

/// The form on the wire is Istio's, whoever is at the other end: magic, length, `Any` of a `Struct` with two keys.
#[test]
fn the_frame_is_istios() {
    let frame = said(&*filter("web", &[]));
    let length = u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize;
    assert_eq!((&frame[..4], frame.len()), (&[0x3d, 0x23, 0x04, 0x67][..], 8 + length));
    let any = sixfold_xds_api::pb::google::protobuf::Any::decode(&frame[8..]).unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
    let told = sixfold_xds_api::pb::google::protobuf::Struct::decode(&*any.value).unwrap();
    assert_eq!(
        sixfold_xds_api::any::struct_to_json(told),
        json!({
            "x-envoy-peer-metadata": {"WORKLOAD_NAME": "web", "NAMESPACE": "default", "LABELS": {"app": "web"}},
            "x-envoy-peer-metadata-id": "web",
        })
    );
}

#[test]
fn a_peer_without_the_filter_is_nobody_and_what_it_sends_goes_on() {
    let db = filter("db", &[]);
    let other = |bytes: &[u8], end| {
        let mut called = connection(b"istio-peer-exchange");
        db.on_new_connection(&mut called, SLOT);
        let (held, left, _) = seen(&*db, &mut called, bytes, end);
        (held, left, called.peers.downstream.is_some() || called.peers.awaited.downstream)
    };
    assert_eq!(other(b"GET /", false), (false, b"GET /".to_vec(), false));
    assert_eq!(other(&[0x3d], true), (false, vec![0x3d], false));
    // An `Any` of something else, and bytes that are none.
    for message in [&b"\x0a\x01x"[..], b"\xff"] {
        let length = (message.len() as u32).to_be_bytes();
        let frame = [&[0x3d, 0x23, 0x04, 0x67], &length[..], message, b"rest"].concat();
        assert_eq!(other(&frame, false), (false, b"rest".to_vec(), false));
    }
}

#[test]
fn connections_that_have_not_agreed_on_it_are_left_alone() {
    let (db, mut plain) = (filter("db", &[]), connection(b"istio"));
    assert!(!db.is_concerned(&plain.connection));
    assert!(matches!(db.on_new_connection(&mut plain, SLOT), FilterStep::Done));
    let mut said = Vec::new();
    db.on_write(&mut plain, SLOT, &mut said);
    assert_eq!((said, plain.peers.awaited.downstream), (Vec::new(), false));
    let refused = factory().build(&[], &context()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(refused, "protocol: must not be empty");
}
