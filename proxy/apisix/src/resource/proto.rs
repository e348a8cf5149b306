//! `proto`.

resource! {
    /// A protobuf definition.
    pub struct Proto {
        /// The text of a .proto file, or a FileDescriptorSet in base64.
        pub content: String,
    }
}
