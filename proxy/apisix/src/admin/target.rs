//! What a path is about.

use crate::resource::Kind;
use crate::store::Key;

/// A resource, or all of a kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) kind: Kind,
    /// The id in the path; of a secret that below its manager.
    pub(super) id: Option<&'a str>,
    /// The consumer of a credential, the manager of a secret.
    pub(super) parent: Option<&'a str>,
    /// What follows the id.
    pub(super) rest: Vec<&'a str>,
}

impl<'a> Target<'a> {
    /// Of the segments behind the prefix.
    ///
    /// # Errors
    /// The name of a resource that there is not.
    pub(super) fn of(segments: &[&'a str]) -> Result<Target<'a>, &'a str> {
        let present = |segment: &&str| !segment.is_empty();
        match segments {
            ["consumers", consumer, "credentials", rest @ ..] => Ok(Target {
                kind: Kind::Credential,
                id: rest.first().copied().filter(present),
                parent: Some(consumer),
                rest: rest.get(1..).unwrap_or_default().to_vec(),
            }),
            ["secrets", rest @ ..] => Ok(Target {
                kind: Kind::Secret,
                parent: rest.first().copied().filter(present),
                id: rest.get(1).copied().filter(present),
                rest: rest.get(2..).unwrap_or_default().to_vec(),
            }),
            // Of a plugin that is not here; taken for its service it would be written in that one's place.
            ["services", _, section @ "graphql_cost_decorations", ..] => Err(section),
            [section, rest @ ..] => {
                let kind = Kind::from_section(section).ok_or(*section)?;
                let id = rest.first().copied().filter(present);
                Ok(Target { kind, id, parent: None, rest: rest.get(1..).unwrap_or_default().to_vec() })
            }
            [] => Err(""),
        }
    }

    /// What one with this id is kept under.
    pub(super) fn key(&self, id: &str) -> Key {
        key(self.kind, self.parent, id)
    }
}

/// What a resource of this id is kept under, below its consumer or manager if it has one.
pub(super) fn key(kind: Kind, parent: Option<&str>, id: &str) -> Key {
    match (kind, parent) {
        (Kind::Credential, Some(consumer)) => Key::of_credential(consumer, id),
        (Kind::Secret, Some(manager)) => Key::new(Kind::Secret, format!("{manager}/{id}").as_str()),
        (kind, _) => Key::new(kind, id),
    }
}
