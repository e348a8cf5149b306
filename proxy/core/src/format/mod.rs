//! Format strings: Envoy's `%OPERATOR(args):length%` and APISIX's `$variable`, compiled to one list of
//! parts. One engine for header values, access logs, bodies, rewrites and hash keys.

use crate::stream::Stream;

/// A compiled format.
#[derive(Debug)]
pub struct Format {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(Box<[u8]>),
}

impl Format {
    /// Plain text.
    pub fn text(text: &str) -> Format {
        Format { parts: vec![Part::Text(text.as_bytes().into())] }
    }

    /// For header values: a missing value is nothing.
    pub fn write_header(&self, stream: &Stream, out: &mut Vec<u8>) {
        let _ = stream;
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
            }
        }
    }
}
