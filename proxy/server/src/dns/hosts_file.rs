//! `/etc/hosts` (hosts(5)).

use crate::refresh::refresh_every;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The names of a hosts file. It is read beside those who ask: workers do, for callouts.
pub(super) struct HostsFile(Arc<ArcSwap<Names>>);

type Names = HashMap<String, Vec<IpAddr>>;

impl HostsFile {
    /// Reads the file, and looks at it again for as long as this lives.
    pub(super) fn new(path: Option<PathBuf>) -> HostsFile {
        let names = Arc::<ArcSwap<Names>>::default();
        if let Some(path) = path {
            let mut file = File { path, seen: None };
            file.look(&names);
            refresh_every("hosts", LOOK, &names, move |names| file.look(names));
        }
        HostsFile(names)
    }

    /// The addresses of a name; none when the file does not hold it or can't be read.
    pub(super) fn lookup(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.0.load().get(&name).cloned().unwrap_or_default()
    }
}

/// The file, and when what was read of it was written.
struct File {
    path: PathBuf,
    seen: Option<SystemTime>,
}

impl File {
    /// Reads it when it is another one than before.
    fn look(&mut self, names: &ArcSwap<Names>) {
        let changed = std::fs::metadata(&self.path).and_then(|m| m.modified()).ok();
        if self.seen != changed {
            let text = std::fs::read(&self.path).unwrap_or_default();
            names.store(Arc::new(parse(&String::from_utf8_lossy(&text))));
            self.seen = changed;
        }
    }
}

fn parse(text: &str) -> Names {
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
    use super::*;

    /// Whoever asked read the file, a worker with a callout among them.
    #[test]
    fn a_look_up_reads_nothing_and_a_look_does() {
        let path = std::env::temp_dir().join(format!("sixfold-hosts-file-{}", std::process::id()));
        let hosts = HostsFile(Arc::default());
        let mut file = File { path: path.clone(), seen: None };
        for (text, before, after) in [("192.0.2.1 a", 0, 1), ("192.0.2.1 a\n192.0.2.2 a", 1, 2)] {
            std::fs::write(&path, text).unwrap();
            file.seen = None;
            assert_eq!(hosts.lookup("A.").len(), before);
            file.look(&hosts.0);
            assert_eq!(hosts.lookup("A.").len(), after);
        }
        std::fs::remove_file(&path).unwrap();
        file.look(&hosts.0);
        assert!(hosts.lookup("a").is_empty(), "the file is gone");
    }

    #[test]
    fn lines_are_addresses_and_names() {
        let names = parse("127.0.0.1 localhost Me # me too\n::1 localhost\nbad line\n# no\n\n127.0.0.1 me");
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(names["localhost"], [ip("127.0.0.1"), ip("::1")]);
        assert_eq!(names["me"], [ip("127.0.0.1")]);
        assert_eq!(names.len(), 2);
    }
}
