//! The HTTP/1 codec, both sides: bytes to heads and bodies, and back. No sockets here.
//!
//! [`HeadParser`] reads heads into the message types of `sixfold_core`, [`framing`] alone decides where a
//! message ends, [`Decoder`] reads bodies without copying, [`encode`] writes. What is accepted and how a
//! refusal is answered follows Envoy or nginx, by [`Profile`].

pub mod body;
mod chars;
pub mod encode;
pub mod error;
mod fields;
pub mod framing;
pub mod fuzz;
pub mod hop;
mod lines;
pub mod options;
pub mod parse;
pub mod reason;
mod target;
mod upgrade;

pub use body::{Decoded, Decoder};
pub use encode::{BodyEncoder, EncodedResponse, ResponseContext, encode_request, encode_response};
pub use error::{EncodeError, H1Error};
pub use framing::{BodyLength, RequestKind};
pub use options::{H1Options, HeaderCase, Profile};
pub use parse::{HeadParser, Parsed, ParsedResponse};
pub(crate) use target::check_authority;
pub(crate) use upgrade::is_upgrade;

#[cfg(test)]
mod tests;
