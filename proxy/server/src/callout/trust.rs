//! Whom callouts to free URIs trust.

use crate::refresh::refresh_every;
use sixfold_core::tls::{ClientContext, ClientSettings, ClientTls, Pem, Validation, system_authorities};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the file of authorities is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// TLS towards the hosts of free URIs. While the authorities can't be read connecting to those that are verified fails.
pub(super) struct Trust {
    verified: Arc<ClientTls>,
    anyone: Arc<ClientTls>,
}

impl Trust {
    /// Reads the file, and looks at it again beside the workers for as long as this lives: an unreadable file may be
    /// there later, and authorities change.
    pub(super) fn start(file: Option<PathBuf>) -> Trust {
        let anyone = ClientTls::new(context(None).ok());
        let verified = ClientTls::new(None);
        let mut file = File { file, seen: None, told: None };
        file.look(&verified);
        refresh_every("trust", LOOK, &verified, move |verified| file.look(verified));
        Trust { verified, anyone }
    }

    /// Settings for a service that is verified or not.
    pub(super) fn client(&self, verify: bool) -> Arc<ClientTls> {
        if verify { self.verified.clone() } else { self.anyone.clone() }
    }
}

/// A file of authorities, and what was seen of it.
struct File {
    file: Option<PathBuf>,
    seen: Option<(PathBuf, SystemTime)>,
    told: Option<String>,
}

impl File {
    /// Puts the authorities in force when they are others than before.
    fn look(&mut self, verified: &ClientTls) {
        let found = self.file.clone().or_else(system_authorities);
        let loaded = match found {
            None => Err("no file of trusted certificates found".to_owned()),
            Some(path) => match std::fs::metadata(&path).and_then(|m| m.modified()) {
                Ok(changed) if self.seen.as_ref().is_some_and(|seen| *seen == (path.clone(), changed)) => {
                    return;
                }
                Ok(changed) => context(Some(path.clone())).map(|context| (context, path, changed)),
                Err(error) => Err(format!("trusted certificates {}: {error}", path.display())),
            },
        };
        match loaded {
            Ok((context, path, changed)) => {
                verified.replace(Some(context));
                (self.seen, self.told) = (Some((path, changed)), None);
            }
            // What was read before serves on.
            Err(reason) => {
                if self.told.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "no trusted certificates for callouts");
                    self.told = Some(reason);
                }
            }
        }
    }
}

/// Settings that verify by a file of authorities, or take anyone.
fn context(authorities: Option<PathBuf>) -> Result<Arc<ClientContext>, String> {
    let verify = authorities.is_some();
    let validation =
        authorities.map(|path| Validation { trusted_ca: Some(Pem::File(path)), ..Validation::default() });
    let settings = ClientSettings {
        validation,
        auto_host_sni: true,
        auto_san_validation: verify,
        ..ClientSettings::default()
    };
    ClientContext::new(settings).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // A file that could not be read at the first callout was an error for ever.
    #[test]
    fn authorities_that_come_or_change_later_are_taken_and_what_was_there_stays() {
        let path = std::env::temp_dir().join(format!("sixfold-trust-{}.pem", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let verified = ClientTls::new(None);
        let mut file = File { file: Some(path.clone()), seen: None, told: None };
        file.look(&verified);
        assert!(verified.context().is_none() && file.told.is_some());
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        file.look(&verified);
        let first = verified.context().unwrap();
        file.look(&verified);
        assert!(Arc::ptr_eq(&first, &verified.context().unwrap()), "nothing has changed");
        std::fs::remove_file(&path).unwrap();
        file.look(&verified);
        assert!(Arc::ptr_eq(&first, &verified.context().unwrap()), "what was read serves on");
    }
}
