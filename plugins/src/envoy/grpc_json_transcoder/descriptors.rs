//! What a set of descriptors says of services: `google.api.http` is an option that its definitions need not hold.

use prost::Message;
use prost_reflect::DescriptorPool;
use sixfold_core::error::ConfigError;
use sixfold_xds_api::pb::google::api::HttpRule;

/// google/protobuf/descriptor.proto, without what is not looked at.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}

/// A service.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) method: Vec<Method>,
}

/// A method; its types are names with a dot before them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Method {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) input_type: String,
    #[prost(string, tag = "3")]
    pub(super) output_type: String,
    #[prost(message, optional, tag = "4")]
    options: Option<Options>,
    #[prost(bool, tag = "5")]
    pub(super) client_streaming: bool,
    #[prost(bool, tag = "6")]
    pub(super) server_streaming: bool,
}

impl Method {
    /// Its option `google.api.http`.
    pub(super) fn rule(&self) -> Option<&HttpRule> {
        self.options.as_ref()?.http.as_ref()
    }
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    /// google/api/annotations.proto
    #[prost(message, optional, tag = "72295728")]
    http: Option<HttpRule>,
}

/// Services and types.
pub(super) struct Descriptors {
    files: Files,
    pub(super) pool: DescriptorPool,
}

impl Descriptors {
    /// Those of an encoded `FileDescriptorSet`.
    pub(super) fn new(set: &[u8]) -> Result<Descriptors, ConfigError> {
        let files = Files::decode(set)
            .map_err(|error| ConfigError::new(format!("is no set of file descriptors: {error}")))?;
        let pool = DescriptorPool::decode(set)
            .map_err(|error| ConfigError::new(format!("is no set of file descriptors: {error}")))?;
        Ok(Descriptors { files, pool })
    }

    /// The service of this full name.
    pub(super) fn service(&self, full_name: &str) -> Option<&Service> {
        let (package, name) = full_name.rsplit_once('.').unwrap_or(("", full_name));
        let files = self.files.file.iter().filter(|file| file.package == package);
        files.flat_map(|file| &file.service).find(|service| service.name == name)
    }
}
