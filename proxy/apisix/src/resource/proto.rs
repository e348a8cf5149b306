//! `proto`.

use serde::Deserialize;

use super::{Id, Labels};

/// A protobuf definition.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proto {
    /// What grpc-transcode refers to.
    pub id: Option<Id>,
    /// For people.
    pub name: Option<String>,
    /// For people.
    pub desc: Option<String>,
    /// For people and tools.
    pub labels: Option<Labels>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub create_time: Option<i64>,
    /// Seconds since the epoch.
    #[serde(default, deserialize_with = "super::optional_integer")]
    pub update_time: Option<i64>,
    /// The text of a .proto file, or a FileDescriptorSet in base64.
    pub content: String,
}
