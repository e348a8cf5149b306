//! Which entity a reference is to, found without a look at each of them.

use crate::import::document::{text, text_of};
use sixfold_core::document::Node;
use std::collections::HashMap;

/// What an entity is called by.
const KEYS: [&str; 3] = ["name", "id", "username"];

/// Entities of one kind by their names, with their places in a list.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<(&'static str, String), usize>);

impl Names {
    /// Of all entities of a list.
    pub(super) fn of<'n>(entities: impl IntoIterator<Item = &'n Node>) -> Names {
        let mut names = Names::default();
        entities.into_iter().enumerate().for_each(|(at, entity)| names.add(at, entity));
        names
    }

    /// Adds an entity. Of those that are called alike the first counts.
    pub(super) fn add(&mut self, at: usize, entity: &Node) {
        for key in KEYS {
            if let Some(own) = text_of(entity, key) {
                self.0.entry((key, own)).or_insert(at);
            }
        }
    }

    /// Which entity a name, an id, or an object with one of them is of.
    pub(super) fn find(&self, reference: &Node) -> Option<usize> {
        let whole = text(reference);
        let wanted = KEYS.iter().filter_map(|key| {
            let wanted = whole.clone().or_else(|| text_of(reference, key))?;
            self.0.get(&(*key, wanted)).copied()
        });
        wanted.min()
    }
}
