//! Header rules at the edge.

use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::plugin::LocalReply;
use sixfold_core::stream::Stream;

pub(crate) fn request(_hcm: &HttpConnectionManager, _stream: &mut Stream) -> Option<LocalReply> {
    None
}

pub(crate) fn response(_hcm: &HttpConnectionManager, _stream: &mut Stream) {}
