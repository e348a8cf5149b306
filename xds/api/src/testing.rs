//! What the tests of several modules share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prost::{Message, Name};
use sixfold_core::document::{Node, Options};

use crate::message_from_node;

/// A message from YAML.
pub(crate) fn read<M: Message + Default + Name>(yaml: &str) -> M {
    let node = Node::parse(yaml, &Options { wide_numbers_as_text: true, ..Options::default() }).unwrap();
    message_from_node(&node).unwrap()
}
