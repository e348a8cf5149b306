//! What a proxy needs of its machine: a clock, descriptors, folders that it may write, names.

use super::Report;
use sixfold_core::cluster::DnsFamily;
use sixfold_server::descriptors;
use sixfold_server::dns::{DnsCache, Question, ResolverConfig};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock before the start of 2026 is one that nobody has set.
const EARLIEST: i64 = 1_767_225_600;

/// Fewer descriptors than this hold up a gateway under load: each request that is forwarded has two.
const FEW_DESCRIPTORS: usize = 8192;

/// How long all questions for a name may take.
const PATIENCE: Duration = Duration::from_secs(6);

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whether the clock can be right.
pub(super) fn clock(report: &mut Report, file: &Path) {
    let written = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    let written = written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let written = written.and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default();
    if now() < EARLIEST {
        let advice = "set it: certificates are held against it";
        report.fault("clock", "this machine", "is before 2026", advice);
    } else if now() + 60 < written {
        let reason = format!("is before {} was written", file.display());
        report.warning("clock", "this machine", reason, "set it: certificates are held against it");
    } else {
        report.ok("clock", "this machine", "is set");
    }
}

/// How many descriptors a proxy would have.
pub(super) fn descriptors(report: &mut Report) {
    descriptors::raise_limit();
    let limit = descriptors::limit();
    let (about, reason) = ("this user", format!("{limit} at once"));
    if limit < FEW_DESCRIPTORS {
        let advice = "raise the hard limit (LimitNOFILE of a unit, `ulimit -Hn`)";
        report.warning("descriptors", about, reason, advice);
    } else {
        report.ok("descriptors", about, reason);
    }
}

/// Whether files can be written to a folder; one that is not there may be made if `is_made`.
pub(super) fn writable(report: &mut Report, about: &str, folder: &Path, is_made: bool) {
    if !is_made && !folder.is_dir() {
        let about = format!("{} ({about})", folder.display());
        return report.fault("folder", about, "is not there", "make it");
    }
    let there = folder.ancestors().find(|above| above.as_os_str().is_empty() || above.exists());
    let there = there.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let about = format!("{} ({about})", folder.display());
    let probe = there.join(format!(".sixfold-doctor-{}", std::process::id()));
    match std::fs::OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(_) => {
            let _ = std::fs::remove_file(&probe);
            report.ok("folder", about, if there == folder { "is writable" } else { "can be made" });
        }
        Err(error) => {
            let reason = format!("can't be written: {}: {error}", there.display());
            report.fault("folder", about, reason, "let this user write it, or name another one");
        }
    }
}

/// Asks for names as a proxy does, each once.
pub(super) struct Names {
    dns: Result<(DnsCache, tokio::runtime::Runtime), String>,
    known: BTreeMap<String, Result<Vec<IpAddr>, String>>,
}

impl Names {
    pub(super) fn new(config: ResolverConfig) -> Names {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let dns = DnsCache::start(config).map_err(|error| error.to_string());
        let dns = dns.and_then(|dns| Ok((dns, runtime.map_err(|error| error.to_string())?)));
        Names { dns, known: BTreeMap::new() }
    }

    /// The addresses of a name or an address.
    pub(super) fn addresses(&mut self, name: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let found = self.ask(name);
        self.known.insert(name.to_owned(), found.clone());
        found
    }

    fn ask(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let (dns, runtime) = self.dns.as_ref().map_err(String::clone)?;
        let question = Question::new(name, DnsFamily::V4Preferred, None);
        let asked = async { tokio::time::timeout(PATIENCE, dns.look_up(&question)).await };
        match runtime.block_on(asked) {
            Err(_) => Err(format!("no DNS server has answered within {} s", PATIENCE.as_secs())),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(answer)) if answer.addresses.is_empty() => Err("there is no such name".to_owned()),
            Ok(Ok(answer)) => Ok(answer.addresses.to_vec()),
        }
    }

    /// Whether a name, which is from this key, has an address.
    pub(super) fn check(&mut self, report: &mut Report, key: &str, name: &str) {
        let about = format!("{name} ({key})");
        match self.addresses(name) {
            Ok(addresses) => {
                let shown: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                report.ok("name", about, shown.join(", "));
            }
            Err(reason) => report.fault("name", about, reason, "mend the name, or the DNS of this machine"),
        }
    }
}
