//! What must hold for any bytes at all that stand in a bootstrap, or in a file of resources in protobuf's text form. The
//! fuzz targets in `proxy/fuzz` call these functions, and so do tests on stable; a broken promise is a failed assertion.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use prost::Message;
use sixfold_core::compile::CompileContext;
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::Registry;
use sixfold_xds_api::parse_bootstrap;

use crate::bootstrap::{Compiled, ProcessContext, load};
use crate::rds::FileResponse;

/// What a bootstrap is taken as, or the resources and the reasons it is refused for.
type Verdict = Result<Names, BTreeSet<(Option<String>, String)>>;

/// Clusters and listeners, in their order.
type Names = (Vec<String>, Vec<String>);

/// The bytes as a bootstrap in YAML and in JSON.
///
/// One that is taken has each name once; one that is refused says why and at a place that exists. The same
/// document written as JSON, which is what merging it with the command line's makes of it, is judged alike.
pub fn bootstrap(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for file in ["envoy.yaml", "envoy.json"] {
        let verdict = judge(text, file);
        if let Ok(document) = parse_bootstrap(text, file) {
            assert_eq!(judge(&document.to_json().to_string(), "merged.json"), verdict, "as JSON");
        }
    }
}

fn judge(text: &str, file: &str) -> Verdict {
    let process = ProcessContext::new(CompileContext::detached(Registry::default()));
    match load(text, file, &process) {
        Ok(compiled) => Ok(names(&compiled)),
        Err(faults) => {
            assert!(!faults.is_empty(), "refused without a fault");
            faults.iter().for_each(|fault| check(fault, text, file));
            Err(faults.into_iter().map(|fault| (fault.resource, fault.reason)).collect())
        }
    }
}

fn names(compiled: &Compiled) -> Names {
    let Compiled { diff, .. } = compiled;
    assert!(diff.clusters.iter().all(|(_, cluster)| cluster.is_some()), "a start removes a cluster");
    assert!(diff.listeners.iter().all(|(_, listener)| listener.is_some()), "a start removes a listener");
    let clusters: Vec<String> = diff.clusters.iter().map(|(name, _)| name.to_string()).collect();
    let listeners: Vec<String> = diff.listeners.iter().map(|(name, _)| name.to_string()).collect();
    for names in [&clusters, &listeners] {
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a name twice: {names:?}");
    }
    (clusters, listeners)
}

/// The bytes as resources in protobuf's text form.
///
/// What is taken is a message that says the same in its encoded form; what is refused says why and at a place that exists.
pub fn resources_in_text(data: &[u8]) {
    let file = "cds.pb_text";
    match FileResponse::read(data, file) {
        Ok(FileResponse::Message(response)) => {
            let encoded = FileResponse::read(&response.encode_to_vec(), "cds.pb");
            let same = matches!(encoded, Ok(FileResponse::Message(again)) if again == response);
            assert!(same, "another message: {response:?}");
        }
        // A document is what no other form is.
        Ok(FileResponse::Document(_)) => {}
        Err(error) => check(&error.in_file(file), &String::from_utf8_lossy(data), file),
    }
}

fn check(error: &ConfigError, text: &str, file: &str) {
    assert!(!error.reason.is_empty(), "refused without a reason");
    assert_eq!(error.file.as_deref(), Some(file));
    let Some(place) = error.place else { return };
    // A lone CR ends a line too (YAML 1.2 section 5.4).
    let lines = text.split(['\n', '\r']).count();
    assert!(place.line >= 1 && place.column >= 1, "{error}");
    assert!(place.line as usize <= lines + 1, "{error}: there are {lines} lines");
}
