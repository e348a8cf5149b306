//! `/etc/hosts` (hosts(5)) and `/etc/resolv.conf` (resolv.conf(5)), read beside those who ask.

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::system_conf::parse_resolv_conf;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What a system has without a file of its own.
const NO_FILE: &[u8] = b"nameserver 127.0.0.1\n";

/// The names of a hosts file.
pub(super) type Names = HashMap<String, Vec<IpAddr>>;

/// A file, and what it looked like when it was read.
pub(super) struct File {
    path: PathBuf,
    seen: Option<(SystemTime, u64)>,
}

impl File {
    pub(super) fn new(path: PathBuf) -> File {
        File { path, seen: None }
    }

    /// Reads it when it is another one than before; a missing one is empty.
    pub(super) fn look(&mut self) -> Option<Vec<u8>> {
        let meta = std::fs::metadata(&self.path).ok();
        let now = meta.and_then(|meta| Some((meta.modified().ok()?, meta.len())));
        if self.seen == now {
            return None;
        }
        self.seen = now;
        Some(std::fs::read(&self.path).unwrap_or_default())
    }
}

/// The servers and search domains that a resolv.conf names; those of a system without one when it names none.
pub(super) fn system(text: &[u8]) -> (ResolverConfig, ResolverOpts) {
    let parsed = parse_resolv_conf(text).or_else(|error| {
        if !text.is_empty() {
            tracing::warn!(%error, "resolv.conf names no server, that on this machine is asked");
        }
        parse_resolv_conf(NO_FILE)
    });
    parsed.unwrap_or_default()
}

/// The names of a hosts file; lines that are none are passed over.
pub(super) fn names(text: &[u8]) -> Names {
    let text = String::from_utf8_lossy(text);
    let mut names = Names::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(address) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) else { continue };
        for name in words {
            let addresses = names.entry(name.to_ascii_lowercase()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_read_when_it_was_written() {
        let path = std::env::temp_dir().join(format!("sixfold-dns-file-{}", std::process::id()));
        let mut file = File::new(path.clone());
        assert_eq!(file.look(), None, "there is none yet");
        // The second has the first's time where clocks are coarse.
        for text in ["192.0.2.1 a", "192.0.2.1 a\n192.0.2.2 a"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(file.look().as_deref(), Some(text.as_bytes()));
            assert_eq!(file.look(), None);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.look().as_deref(), Some(&b""[..]), "it is gone");
    }

    #[test]
    fn lines_are_addresses_and_names() {
        let names = names(b"127.0.0.1 localhost Me # me too\n::1 localhost\nbad line\n# no\n\n127.0.0.1 me");
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(names["localhost"], [ip("127.0.0.1"), ip("::1")]);
        assert_eq!(names["me"], [ip("127.0.0.1")]);
        assert_eq!(names.len(), 2);
    }

    /// Without the file nothing started.
    #[test]
    fn a_system_without_servers_asks_its_own() {
        for text in [&b""[..], b"search a.test\n", b"nameserver nonsense\n"] {
            let (config, _) = system(text);
            let servers: Vec<_> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
            assert_eq!(servers, ["127.0.0.1"], "{}", String::from_utf8_lossy(text));
        }
        let (config, _) = system(b"nameserver 192.0.2.53\nsearch a.test b.test\n");
        assert_eq!(
            (config.name_servers()[0].ip.to_string(), config.search().len()),
            ("192.0.2.53".into(), 2)
        );
    }
}
