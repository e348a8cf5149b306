//! `/etc/hosts` (hosts(5)).

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

/// The names of a hosts file, read anew when the file has changed.
pub(super) struct HostsFile {
    path: Option<PathBuf>,
    read: Mutex<(Option<SystemTime>, Names)>,
}

type Names = HashMap<String, Vec<IpAddr>>;

impl HostsFile {
    pub(super) fn new(path: Option<PathBuf>) -> HostsFile {
        HostsFile { path, read: Mutex::default() }
    }

    /// The addresses of a name; none when the file does not hold it or can't be read.
    pub(super) fn lookup(&self, name: &str) -> Vec<IpAddr> {
        let Some(path) = &self.path else { return Vec::new() };
        let changed = std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let mut read = self.read.lock();
        if read.0 != changed {
            let text = std::fs::read(path).unwrap_or_default();
            *read = (changed, parse(&String::from_utf8_lossy(&text)));
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        read.1.get(&name).cloned().unwrap_or_default()
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

    #[test]
    fn lines_are_addresses_and_names() {
        let names = parse("127.0.0.1 localhost Me # me too\n::1 localhost\nbad line\n# no\n\n127.0.0.1 me");
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        assert_eq!(names["localhost"], [ip("127.0.0.1"), ip("::1")]);
        assert_eq!(names["me"], [ip("127.0.0.1")]);
        assert_eq!(names.len(), 2);
    }
}
