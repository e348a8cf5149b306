//! `/config_dump`: what the bootstrap says, what came by itself, and what became of it (admin/v3/config_dump.proto).
//!
//! What is shown is gathered as references to the bytes that are there anyway; a resource is encoded when its turn comes
//! to be written, so that a dump of thousands takes no more memory than one of them.

mod bootstrap;
mod endpoints;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use sixfold_core::cluster::Clusters;
use sixfold_xds_api::any::name_of_url;
use sixfold_xds_api::json::print::{Mask, Pretty, held_type};

use self::sections::{Item, Section};
use crate::sds::Secrets;
use crate::tracker::Tracker;

pub use self::bootstrap::{Shown, ShownLayer};

/// The host of type URLs.
const URL: &str = "type.googleapis.com/";

/// What is to be shown.
#[derive(Default)]
pub struct Request<'a> {
    /// The elements of one list alone (`resource`).
    pub resource: Option<String>,
    /// The fields of a `FieldMask` alone (`mask`).
    pub mask: Option<String>,
    /// Resources whose names are wanted alone (`name_regex`).
    pub names: Option<&'a dyn Fn(&str) -> bool>,
    /// Endpoints, too (`include_eds`).
    pub include_eds: bool,
}

/// Why nothing is shown, in Envoy's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The request is wrong.
    Wrong(String),
    /// No list has that name.
    NotFound(String),
}

/// Names of what is neither quite in force nor out of it.
#[derive(Debug, Default)]
pub struct Transient {
    /// Clusters that warm up.
    pub warming_clusters: BTreeSet<Arc<str>>,
    /// Listeners that warm up.
    pub warming_listeners: BTreeSet<Arc<str>>,
}

/// What there is to show, at one moment.
pub struct Dump {
    /// The bootstrap in force.
    pub bootstrap: Shown,
    /// What came by itself.
    pub tracker: Arc<Tracker>,
    /// Secrets, also those of files and those that have not come.
    pub secrets: Arc<Secrets>,
    /// Clusters in force.
    pub clusters: Arc<Clusters>,
    /// What is under way.
    pub transient: Transient,
}

/// Writes a dump.
pub type WriteDump = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

impl Dump {
    /// Finds out what a request asks for; what it answers writes that as JSON.
    ///
    /// # Errors
    /// The request is wrong, or asks for a list that there is not.
    pub fn find(&self, request: Request<'_>) -> Result<WriteDump, Refused> {
        let sections = self.sections(request.names.unwrap_or(&|_| true));
        let sections = sections.into_iter().filter(|section| request.include_eds || !section.is_endpoints());
        let (resource, mask) = (request.resource.unwrap_or_default(), request.mask.unwrap_or_default());
        if resource.is_empty() { all(sections, &mask) } else { one(sections, &resource, &mask) }
    }
}

/// All sections, or those that a mask fits.
fn all(sections: impl Iterator<Item = Section>, mask: &str) -> Result<WriteDump, Refused> {
    let fits = |section: &Section| Mask::paths(mask).all(|path| Mask::path_fits(section.kind, path));
    let sections: Vec<Section> = sections.filter(fits).collect();
    if sections.is_empty() {
        let reason = format!("FieldMask {mask} could not be successfully applied to any configs.");
        return Err(Refused::Wrong(reason));
    }
    let mask = Mask::parse(mask);
    Ok(Box::new(move |out| configs(out, sections.into_iter(), |out, section| section.write(out, &mask))))
}

/// The elements of one list.
fn one(
    mut sections: impl Iterator<Item = Section>,
    resource: &str,
    mask: &str,
) -> Result<WriteDump, Refused> {
    let missing = || Refused::NotFound(format!("{resource} not found in config dump"));
    let has_field = |section: &Section| !resource.contains('.') && Mask::path_fits(section.kind, resource);
    let mut section = sections.find(has_field).ok_or_else(missing)?;
    let Some(kind) = section.list_of(resource) else {
        let reason = "is not a repeated field. Use ?mask=";
        return Err(Refused::Wrong(format!("{resource} {reason}{resource} to get only this field")));
    };
    let items = section.take(resource);
    if let Some(first) = items.first()
        && !Mask::paths(mask).all(|path| fits_item(&kind, path, &first()))
    {
        let paths: String = Mask::paths(mask).map(|path| format!("paths: {path:?}\n")).collect();
        return Err(Refused::Wrong(format!("FieldMask {paths} could not be successfully used.")));
    }
    let mask = Mask::parse(mask);
    let url = format!("{URL}{kind}");
    Ok(Box::new(move |out| configs(out, items.into_iter(), |out, item: Item| out.any(&url, &item(), &mask))))
}

/// Whether a path leads to a field of an element, or of the message in the `Any` that it holds.
fn fits_item(kind: &str, path: &str, item: &[u8]) -> bool {
    let inner = path.split_once('.').and_then(|(field, inner)| Some((held_type(kind, field, item)?, inner)));
    match inner {
        Some((url, inner)) => url.is_empty() || Mask::path_fits(name_of_url(&url), inner),
        None => Mask::path_fits(kind, path),
    }
}

/// `{"configs": [...]}`
fn configs<T>(
    out: &mut dyn Write,
    items: impl ExactSizeIterator<Item = T>,
    mut write: impl FnMut(&mut Pretty<'_>, T) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = Pretty::new(out);
    out.open_object()?;
    if items.len() > 0 {
        out.key("configs")?;
        out.open_array()?;
        for item in items {
            out.item()?;
            write(&mut out, item)?;
        }
        out.close_array()?;
    }
    out.close_object()
}
