//! The rules of `deny.toml` about dependencies: banned crates, duplicates, licences, sources.
//!
//! The file has the format of cargo-deny, which can be run beside this; these checks need only cargo itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{cargo, output, root};

/// The parts of `deny.toml` that are checked here. Every entry carries its reason.
#[derive(Debug, Deserialize)]
pub struct Rules {
    graph: Graph,
    bans: Bans,
    licenses: Licenses,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Entry>,
    skip: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// One package of the tree that is built for the target platforms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
}

/// # Errors
/// All rules that are broken, one a line.
pub fn run() -> Result<()> {
    let text = fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml")?;
    let packages = packages(&rules.graph.targets)?;
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let broken = rules.broken(&packages, &lock);
    if !broken.is_empty() {
        bail!("deny.toml:\n{}", broken.join("\n"));
    }
    println!("deny.toml: {} packages, all within its rules", packages.len());
    Ok(())
}

impl Rules {
    fn broken(&self, packages: &BTreeSet<Package>, lock: &str) -> Vec<String> {
        let mut broken = Vec::new();
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for Package { name, version, license } in packages {
            versions.entry(name).or_default().insert(version);
            if let Some(ban) = self.bans.deny.iter().find(|ban| ban.name == *name) {
                broken.push(format!("  {name} is banned: {}", ban.reason));
            }
            if !licence_allowed(license, &self.licenses.allow) {
                broken.push(format!("  {name} {version}: licence not on the list: {license}"));
            }
        }
        for (name, versions) in &versions {
            let mut counted: Vec<&str> = versions.iter().copied().collect();
            counted.retain(|version| !self.bans.skip.iter().any(|skip| skip.covers(name, version)));
            if counted.len() > 1 {
                broken.push(format!("  {name} is here in several versions: {}", counted.join(", ")));
            }
        }
        for skip in &self.bans.skip {
            let used = versions.iter().any(|(name, versions)| versions.iter().any(|v| skip.covers(name, v)));
            if !used {
                broken.push(format!("  the exception for {} is no longer needed", skip.name));
            }
        }
        let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
        for source in sources.collect::<BTreeSet<_>>() {
            let source = source.trim_matches('"');
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !self.sources.allow_registry.iter().any(|allowed| allowed == registry) {
                broken.push(format!("  a package comes from {source}"));
            }
        }
        broken
    }
}

impl Entry {
    /// `name` covers every version, `name@1.2` those that begin so.
    fn covers(&self, name: &str, version: &str) -> bool {
        match self.name.split_once('@') {
            Some((crate_name, prefix)) => crate_name == name && version.starts_with(prefix),
            None => self.name == name,
        }
    }
}

/// What is compiled for these platforms; crates that only tests use are not shipped and not counted.
fn packages(targets: &[String]) -> Result<BTreeSet<Package>> {
    let mut packages = BTreeSet::new();
    for target in targets {
        let mut command = cargo();
        command.args(["tree", "--locked", "--workspace", "--edges", "normal,build", "--prefix", "none"]);
        let text = output(command.args(["--format", "{p}|{l}", "--target", target]))?;
        packages.extend(text.lines().filter_map(parse_package));
    }
    Ok(packages)
}

fn parse_package(line: &str) -> Option<Package> {
    let (package, license) = line.split_once('|')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?);
    let license = license.trim_end_matches(" (*)");
    Some(Package {
        name: name.into(),
        version: version.trim_start_matches('v').into(),
        license: license.into(),
    })
}

/// Evaluates an SPDX expression: `AND` binds tighter than `OR`, `/` is an old way to write `OR`.
fn licence_allowed(expression: &str, allow: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let spaced = spaced.replace(" WITH ", "-WITH-");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = any_of(&words, &mut at, allow);
    allowed && at == words.len() && !words.is_empty()
}

fn any_of(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let mut allowed = all_of(words, at, allow);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= all_of(words, at, allow);
    }
    allowed
}

fn all_of(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let mut allowed = one_of(words, at, allow);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= one_of(words, at, allow);
    }
    allowed
}

fn one_of(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word != "(" {
        return allow.iter().any(|allowed| allowed == word);
    }
    let allowed = any_of(words, at, allow);
    *at += 1; // the closing parenthesis
    allowed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rules() -> Rules {
        toml::from_str(
            r#"
            graph = { targets = [] }
            sources = { allow-registry = ["https://registry"] }
            licenses = { allow = ["MIT", "ISC", "BSD-3-Clause"] }
            [bans]
            deny = [{ crate = "bad", reason = "it is bad" }]
            skip = [{ crate = "twice@1", reason = "old" }]
            "#,
        )
        .unwrap()
    }

    fn package(name: &str, version: &str, license: &str) -> Package {
        Package { name: name.into(), version: version.into(), license: license.into() }
    }

    #[test]
    fn an_expression_needs_all_of_and_and_one_of_or() {
        let allow = ["MIT".to_owned(), "ISC".to_owned()];
        for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND ISC", "ISC AND (GPL-3.0 OR MIT)"] {
            assert!(licence_allowed(good, &allow), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT-WITH-x", "MIT MIT"] {
            assert!(!licence_allowed(bad, &allow), "{bad}");
        }
    }

    #[test]
    fn each_rule_is_reported_with_the_crate() {
        let packages = [
            package("bad", "1.0.0", "MIT"),
            package("copyleft", "1.0.0", "GPL-3.0"),
            package("double", "1.0.0", "MIT"),
            package("double", "2.0.0", "MIT"),
        ];
        let broken = rules().broken(&packages.into(), "source = \"git+https://somewhere\"\n").join("\n");
        for part in
            ["bad is banned: it is bad", "copyleft 1.0.0", "double is here", "twice@1 is no", "git+https"]
        {
            assert!(broken.contains(part), "{part} is not in {broken}");
        }
    }

    #[test]
    fn what_is_within_the_rules_passes() {
        let packages = [package("twice", "1.0.0", "MIT"), package("twice", "2.0.0", "MIT")];
        assert_eq!(rules().broken(&packages.into(), "source = \"registry+https://registry\"\n"), [""; 0]);
    }

    #[test]
    fn a_line_of_the_tree_is_parsed_without_its_marks() {
        let parsed = parse_package("syn v2.0.1 (proc-macro)|MIT OR Apache-2.0 (*)").unwrap();
        assert_eq!(parsed, package("syn", "2.0.1", "MIT OR Apache-2.0"));
    }
}
