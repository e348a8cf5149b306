//! Secrets in files, and files that secrets name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::files::{self, Found, Rounds, Stamp};
use sixfold_xds_api::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, GenericSecret, Secret, TlsCertificate, secret,
};
use sixfold_xds_api::values::Result;

use super::key::SecretKey;
use crate::rds;
use crate::unknown::Unknown;

/// The largest file that a secret names, in bytes: that of all authorities of the world is a quarter of one MiB.
const MAX_CONTENT: usize = 16 << 20;

/// Files that a secret names, as they were when they were read.
#[derive(Clone, Debug, Default)]
pub(super) struct Stamps(Vec<(PathBuf, Stamp)>);

impl Stamps {
    /// Whether one of them is another now.
    pub(super) fn have_changed(&self, now: &BTreeMap<PathBuf, Stamp>) -> bool {
        self.0.iter().any(|(path, before)| now.get(path).is_some_and(|now| now != before))
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().map(|(path, _)| path)
    }
}

/// Looks at files again and again.
pub(super) struct Looks {
    rounds: Rounds,
    /// What the file that a secret is in was when it was read last.
    pub(super) seen: BTreeMap<SecretKey, Stamp>,
    /// Why the last of a secret was refused, so that this is said once.
    pub(super) refused: BTreeMap<SecretKey, String>,
    stamp: fn(&Path) -> io::Result<Stamp>,
}

impl Looks {
    /// None yet.
    pub(super) fn new() -> Looks {
        Looks::by(files::stamp)
    }

    /// The same, by another way to tell what a file is now.
    pub(super) fn by(stamp: fn(&Path) -> io::Result<Stamp>) -> Looks {
        Looks { rounds: Rounds::default(), seen: BTreeMap::new(), refused: BTreeMap::new(), stamp }
    }

    /// What these files are now, but for those that are gone for a moment, since they are being replaced, and those whose
    /// disks do not answer, which hold up no other.
    pub(super) fn now(&self, paths: BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Stamp> {
        let (mut now, stamp) = (BTreeMap::new(), self.stamp);
        let asked = self.rounds.ask(
            paths.into_iter().map(|path| (path, ())),
            move |path, ()| stamp(path),
            |found| {
                if let Found::Answer(path, Ok(stamp)) = found {
                    now.insert(path.to_owned(), stamp);
                }
            },
        );
        if let Err(error) = asked {
            tracing::error!("files of secrets are not looked at: {error}");
        }
        now
    }
}

/// A file that secrets are in.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    files::read_promptly(path, MAX_DOCUMENT_BYTES)
}

/// The secret of a name in a DiscoveryResponse.
pub(super) fn secret(text: &[u8], path: &Path, name: &str, unknown: &Unknown) -> Result<Secret> {
    let file = path.display().to_string();
    let secrets: Vec<Secret> = rds::resources_of_file(text, &file, unknown)?;
    // Envoy takes the only one there is, whose name must be right.
    let named = secrets.into_iter().find(|secret| secret.name == name);
    named.ok_or_else(|| {
        ConfigError::field("resources", format!("there is no secret \"{name}\"")).in_file(&file)
    })
}

/// The secret with the contents of the files that it names in the place of their names.
pub(super) fn with_contents(message: &Secret) -> Result<(Secret, Stamps)> {
    let (mut value, mut stamps) = (message.clone(), Stamps::default());
    match &mut value.r#type {
        Some(secret::Type::TlsCertificate(TlsCertificate { certificate_chain, private_key, .. })) => {
            stamps.fill(certificate_chain).in_key("certificate_chain").in_key("tls_certificate")?;
            stamps.fill(private_key).in_key("private_key").in_key("tls_certificate")?;
        }
        Some(secret::Type::ValidationContext(CertificateValidationContext { trusted_ca, crl, .. })) => {
            stamps.fill(trusted_ca).in_key("trusted_ca").in_key("validation_context")?;
            stamps.fill(crl).in_key("crl").in_key("validation_context")?;
        }
        Some(secret::Type::GenericSecret(GenericSecret { secret, .. })) => {
            stamps.fill(secret).in_key("secret").in_key("generic_secret")?;
        }
        Some(secret::Type::SessionTicketKeys(_)) | None => {}
    }
    Ok((value, stamps))
}

impl Stamps {
    fn fill(&mut self, source: &mut Option<DataSource>) -> Result<()> {
        let Some(DataSource { specifier: Some(specifier), .. }) = source else { return Ok(()) };
        let Specifier::Filename(path) = specifier else { return Ok(()) };
        let path = PathBuf::from(&*path);
        let read = files::promptly(&path, |path| {
            let file = files::open(path)?;
            Ok((Stamp::of(file.metadata())?, file.read(MAX_CONTENT)?))
        });
        let (stamp, content) = read.map_err(|error: io::Error| {
            ConfigError::field("filename", format!("can't read {}: {error}", path.display()))
        })?;
        *specifier = Specifier::InlineBytes(content);
        self.0.push((path, stamp));
        Ok(())
    }
}
