//! Workloads of a mesh in the form that is sent: a `google.protobuf.Struct`.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, string};
use sixfold_core::error::ConfigError;
use sixfold_core::peer_exchange::PeerExchange;
use sixfold_core::plugin::BuildContext;
use sixfold_core::workload::{Peer, Told, Workload, identity};
use std::sync::Arc;

use crate::any::struct_to_json;
use crate::istio_pb::envoy::tcp::metadataexchange::config::MetadataExchange;
use crate::pb::google::protobuf::value::Kind;
use crate::pb::google::protobuf::{Any, Struct};
use crate::values::not_empty;

/// Field numbers of `google.protobuf.Value`.
const STRING: u32 = 3;
const STRUCT: u32 = 5;

/// The workload that a peer has sent; `additional` are the labels that are kept beside Istio's own. `None` when the bytes are no
/// struct.
pub fn decode(bytes: &[u8], additional: &[Box<str>]) -> Option<Workload> {
    Some(of_struct(Struct::decode(bytes).ok()?, additional))
}

/// The workload of a node's metadata.
pub fn of_struct(value: Struct, additional: &[Box<str>]) -> Workload {
    match struct_to_json(value) {
        serde_json::Value::Object(map) => Workload::of_metadata(&map, additional),
        _ => Workload::default(),
    }
}

/// What is sent of a workload. Its members are in the order of their keys: the same workload gives the same bytes.
pub fn encode(workload: &Workload) -> Vec<u8> {
    let Told { texts, labels } = workload.told();
    let mut of_labels = Vec::new();
    for (name, text) in labels {
        add_text(&mut of_labels, name, text);
    }
    let (mut out, mut labels) = (Vec::new(), Some(of_labels));
    for (key, text) in texts {
        if key > LABELS {
            labels.take().into_iter().for_each(|labels| add_struct(&mut out, LABELS, &labels));
        }
        add_text(&mut out, key, &text);
    }
    labels.into_iter().for_each(|labels| add_struct(&mut out, LABELS, &labels));
    out
}

/// The object that expressions and logs see of a workload, in the order of its keys.
pub fn encode_object(workload: &Workload) -> Vec<u8> {
    let mut out = Vec::new();
    let serde_json::Value::Object(members) = workload.to_json() else { return out };
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|(key, _)| *key);
    for (key, value) in members {
        match value {
            serde_json::Value::Object(labels) => {
                let mut of_labels = Vec::new();
                let texts = labels.iter().filter_map(|(name, text)| Some((name, text.as_str()?)));
                texts.for_each(|(name, text)| add_text(&mut of_labels, name, text));
                add_struct(&mut out, key, &of_labels);
            }
            value => add_text(&mut out, key, value.as_str().unwrap_or_default()),
        }
    }
    out
}

const LABELS: &str = "LABELS";

/// What the two ends of a connection of TCP send each other: an `Any` with a struct of the workload and the node's id.
const STRUCT_TYPE: &str = "type.googleapis.com/google.protobuf.Struct";
const METADATA: &str = "x-envoy-peer-metadata";
const ID: &str = "x-envoy-peer-metadata-id";

/// The exchange that a message configures. Listeners and clusters that ask for the same share one.
///
/// # Errors
/// A protocol that is missing.
pub fn exchange(config: &MetadataExchange, context: &BuildContext) -> Result<Arc<PeerExchange>, ConfigError> {
    let MetadataExchange {
        protocol,
        // Peers are not looked up by address: Envoy does so only with its bootstrap extension of workload discovery.
        enable_discovery: _,
        additional_labels,
    } = config;
    not_empty(protocol, "protocol")?;
    let labels: Box<[Box<str>]> = additional_labels.iter().map(|label| label.as_str().into()).collect();
    let mut members = Vec::new();
    add_struct(&mut members, METADATA, &encode(&context.node.workload(&labels)));
    if !context.node.id.is_empty() {
        add_text(&mut members, ID, &context.node.id);
    }
    let own = Any { type_url: STRUCT_TYPE.to_owned(), value: members }.encode_to_vec();
    let key = format!("peer exchange {protocol:?} {labels:?} {}", identity(&own));
    Ok(context.shared.get_or_insert(&key, || {
        PeerExchange::new(protocol, &own, move |bytes| peer(bytes, &labels), &context.metrics)
    }))
}

/// Who has sent this of itself.
fn peer(bytes: &[u8], labels: &[Box<str>]) -> Option<Peer> {
    let told = Any::decode(bytes).ok().filter(|any| any.type_url == STRUCT_TYPE)?;
    let mut told = Struct::decode(told.value.as_slice()).ok()?;
    match told.fields.remove(METADATA)?.kind? {
        Kind::StructValue(metadata) => Some(Peer::new(of_struct(metadata, labels))),
        _ => None,
    }
}

/// Adds a member that is a text.
pub fn add_text(out: &mut Vec<u8>, key: &str, text: &str) {
    let mut value = Vec::new();
    string::encode(STRING, &text.to_owned(), &mut value);
    add(out, key, &value);
}

/// Adds a member that is an encoded struct.
pub fn add_struct(out: &mut Vec<u8>, key: &str, members: &[u8]) {
    let mut value = Vec::new();
    add_bytes(&mut value, STRUCT, members);
    add(out, key, &value);
}

fn add(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let mut entry = Vec::new();
    string::encode(1, &key.to_owned(), &mut entry);
    add_bytes(&mut entry, 2, value);
    add_bytes(out, 1, &entry);
}

fn add_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_sent_is_read_again() {
        let sent = Workload {
            instance: "a-1".into(),
            namespace: "default".into(),
            workload: "a".into(),
            kind: Some("deployment"),
            service: "a".into(),
            app: "a".into(),
            zone: "z".into(),
            labels: vec![("role".into(), "x".into())],
            ..Workload::default()
        };
        let bytes = encode(&sent);
        assert_eq!(decode(&bytes, &["role".into()]), Some(sent));
        assert_eq!(encode(&decode(&bytes, &["role".into()]).unwrap()), bytes);
        assert_eq!(decode(b"\xff", &[]), None);
        // Labels are there even if there are none.
        assert_eq!(encode(&Workload::default()), b"\x0a\x0c\x0a\x06LABELS\x12\x02\x2a\x00");
    }
}
