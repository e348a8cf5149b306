//! The bootstrap in force, and what is in its lists.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::RuntimeLayer;
use sixfold_xds_api::pb::envoy::config::bootstrap::v3::runtime_layer::LayerSpecifier;
use sixfold_xds_api::wire;

use crate::bootstrap::runtime_values;

/// Field numbers of `static_resources.listeners`, `.clusters` and `.secrets`.
const LISTENERS: [u32; 2] = [2, 1];
const CLUSTERS: [u32; 2] = [2, 2];
const SECRETS: [u32; 2] = [2, 3];

/// Field numbers of `layered_runtime.layers`.
const LAYERS: [u32; 2] = [17, 1];

/// A bootstrap to be shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Encoded.
    pub encoded: Arc<[u8]>,
    /// When it was read.
    pub at: SystemTime,
}

/// A part of encoded bytes that others hold, too.
#[derive(Clone, Debug)]
pub(super) struct Part {
    whole: Arc<[u8]>,
    range: Range<usize>,
}

impl Part {
    pub(super) fn whole(whole: Arc<[u8]>) -> Part {
        let range = 0..whole.len();
        Part { whole, range }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.whole.get(self.range.clone()).unwrap_or_default()
    }

    /// The messages that a path of field numbers leads to.
    pub(super) fn messages(&self, path: &[u32]) -> Vec<Part> {
        let found = wire::messages(self.bytes(), path).into_iter();
        let start = self.range.start;
        found
            .map(|range| Part { whole: self.whole.clone(), range: start + range.start..start + range.end })
            .collect()
    }

    /// The text of a field.
    pub(super) fn text(&self, number: u32) -> &str {
        wire::text(self.bytes(), number).unwrap_or_default()
    }
}

/// A layer of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLayer {
    /// Its name.
    pub name: String,
    /// Its values as text, if it is static.
    pub values: BTreeMap<String, String>,
    /// Whether it is an `admin_layer`.
    pub is_admin: bool,
}

impl Shown {
    fn parts(&self, path: &[u32]) -> Vec<Part> {
        Part::whole(self.encoded.clone()).messages(path)
    }

    /// The layers of its runtime.
    pub fn runtime(&self) -> Vec<ShownLayer> {
        let layers = self.parts(&LAYERS).into_iter();
        let layers = layers.filter_map(|layer| RuntimeLayer::decode(layer.bytes()).ok());
        layers
            .map(|RuntimeLayer { name, layer_specifier }| ShownLayer {
                name,
                is_admin: matches!(layer_specifier, Some(LayerSpecifier::AdminLayer(_))),
                values: match &layer_specifier {
                    Some(LayerSpecifier::StaticLayer(values)) => runtime_values(values),
                    _ => BTreeMap::new(),
                },
            })
            .collect()
    }

    pub(super) fn listeners(&self) -> Vec<Part> {
        self.parts(&LISTENERS)
    }

    pub(super) fn clusters(&self) -> Vec<Part> {
        self.parts(&CLUSTERS)
    }

    pub(super) fn secrets(&self) -> Vec<Part> {
        self.parts(&SECRETS)
    }
}
