//! The rules about the shape of the source tree: which crate may use which, how long a file may be, where
//! `unsafe` may stand, which files may open others. `tests/layout.rs` holds the tree to them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{cargo, output, root};

/// The crates of this workspace and which others of it each may depend on, in any way (tests included).
pub const LAYERS: &[(&str, &[&str])] = &[
    ("sixfold-core", &[]),
    ("sixfold-server", &["sixfold-core"]),
    ("sixfold-apisix", &["sixfold-core"]),
    ("sixfold-xds-api", &["sixfold-core"]),
    ("sixfold-xds", &["sixfold-core", "sixfold-xds-api"]),
    ("sixfold-plugins", &["sixfold-core", "sixfold-xds-api"]),
    (
        "sixfold",
        &[
            "sixfold-core",
            "sixfold-server",
            "sixfold-apisix",
            "sixfold-xds-api",
            "sixfold-xds",
            "sixfold-plugins",
        ],
    ),
    (
        "sixfold-bench",
        &[
            "sixfold",
            "sixfold-core",
            "sixfold-server",
            "sixfold-apisix",
            "sixfold-xds-api",
            "sixfold-xds",
            "sixfold-plugins",
        ],
    ),
    ("xtask", &[]),
];

/// Where functions of the request path stand.
pub const REQUEST_PATH: &[&str] = &["proxy/server/src/http", "proxy/server/src/h1"];

/// The most lines that a function of the request path may have, its head counted: what fits a screen and a half.
pub const FUNCTION_LINES: usize = 80;

/// The functions of a source that are longer than [`FUNCTION_LINES`], by the indentation that rustfmt gives them: `name: lines`.
/// Those behind its `#[cfg(test)]` do not count.
pub fn long_functions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let mut long = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let Some((before, after)) = code.split_once("fn ") else { continue };
        let words = ["pub", "pub(super)", "pub(crate)", "const", "async", "unsafe"];
        if !before.split_whitespace().all(|word| words.contains(&word)) {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let body = lines[first..].iter().position(|line| *line == end).map_or(0, |at| at + 1);
        if body > FUNCTION_LINES && !line.ends_with(';') {
            let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            long.push(format!("{name}: {body}"));
        }
    }
    long
}

/// Modules of a crate that may not name these others of it, so that arrows inside a crate point down as well.
pub const ROOMS: &[(&str, &[&str])] = &[
    ("proxy/core/src/balance", OF_A_REQUEST),
    ("proxy/core/src/cluster", OF_A_REQUEST),
    ("proxy/core/src/cluster", &["balance"]),
    ("proxy/core/src/matcher", OF_A_REQUEST),
    ("proxy/core/src/matcher", &["balance", "cluster", "retry", "tls"]),
    ("proxy/core/src/retry", OF_A_REQUEST),
    ("proxy/core/src/retry", &["balance", "cluster"]),
    ("proxy/server/src/upstream", &["http", "listener", "server", "tcp_proxy", "worker"]),
    ("proxy/server/src/wire", &["http", "listener", "server", "tcp_proxy", "upstream", "worker"]),
];

/// The modules of the core that know a request's context, and stand on those that know none.
const OF_A_REQUEST: &[&str] = &[
    "access_log",
    "expr",
    "format",
    "hash",
    "hcm",
    "header_ops",
    "internal_redirect",
    "listener",
    "mirror",
    "model",
    "plugin",
    "rate_limit",
    "redirect",
    "rewrite",
    "route",
    "router",
    "stream",
];

/// The longest that a source file may be.
pub const LINES: usize = 800;

/// The one file that may say `unsafe`.
pub const UNSAFE_FILE: &str = "proxy/server/src/memory.rs";

/// The crates whose code workers run.
const OF_WORKERS: &[&str] = &["proxy/core/src", "proxy/server/src", "plugins/src"];

/// The files of these crates that may use the file system, which may stall: what they do there is done beside the workers,
/// when configuration is compiled, or before it serves.
pub const FILE_SYSTEM: &[&str] = &[
    "plugins/src/apisix/prometheus/metrics.rs",
    "proxy/core/src/log_sink.rs",
    "proxy/core/src/files.rs",
    "proxy/core/src/format/envoy.rs",
    "proxy/server/src/budget.rs",
    "proxy/server/src/callout/trust.rs",
    "proxy/server/src/dns/files.rs",
    "proxy/server/src/listener/accept.rs",
    "proxy/server/src/listener/manager.rs",
    "proxy/server/src/log_file/archive.rs",
    "proxy/server/src/log_file/output.rs",
    "proxy/server/src/log_file/rotation.rs",
    "proxy/server/src/memory.rs",
    "proxy/server/src/sockets.rs",
];

/// Files that rename others which nobody misses after a loss of power: a process's id, and logs, which are not waited for.
pub const PASSING_NAMES: &[&str] = &["proxy/cli/src/upgrade.rs", "proxy/server/src/log_file/rotation.rs"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

/// Each crate of the workspace with the crates of the workspace that it names as dependencies.
///
/// # Errors
/// `cargo metadata` fails.
pub fn dependencies() -> Result<BTreeMap<String, Vec<String>>> {
    let text = output(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--locked"]))?;
    let metadata: Metadata = serde_json::from_str(&text)?;
    let ours = |member: Member| {
        let names = member.dependencies.into_iter().filter(|dependency| dependency.path.is_some());
        (member.name, names.map(|dependency| dependency.name).collect())
    };
    Ok(metadata.packages.into_iter().map(ours).collect())
}

/// What goes against [`LAYERS`], one line each.
pub fn broken_layers(found: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, uses) in found {
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| layer == name) else {
            broken.push(format!("{name} has no place in the table of layers"));
            continue;
        };
        let forbidden = uses.iter().filter(|used| !allowed.contains(&used.as_str()));
        broken.extend(forbidden.map(|used| format!("{name} must not depend on {used}")));
    }
    broken
}

/// What goes against [`ROOMS`], one line each. Tests of a room may name what they like.
pub fn broken_rooms(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for (room, above) in ROOMS {
        for source in sources.iter().filter(|source| is_in(&source.path, room) && !is_test(&source.path)) {
            let code = code_of(&source.text);
            let names = above.iter().filter(|module| names_module(&code, module));
            broken.extend(names.map(|module| format!("{} must not name {module}", source.path.display())));
        }
    }
    broken
}

/// Whether a file is the module's own or lies below it.
pub fn is_in(path: &Path, room: &str) -> bool {
    path.starts_with(room) || path.with_extension("") == Path::new(room)
}

/// Whether code names a module of its crate: as `crate::module`, or within `use crate::{...}`.
fn names_module(code: &str, module: &str) -> bool {
    let is_word = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    code.split("crate::").skip(1).any(|rest| match rest.strip_prefix('{') {
        Some(group) => {
            let group = group.split(';').next().unwrap_or_default();
            group.match_indices(module).any(|(at, _)| {
                let before = group[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                    && is_word(&group[at + module.len()..])
            })
        }
        None => rest.strip_prefix(module).is_some_and(is_word),
    })
}

/// A source file of the project, by its path from the root.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// All Rust and Python sources.
///
/// # Errors
/// A folder or a file cannot be read.
pub fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for top in ["proxy", "xds", "plugins", "bench", "deploy", "docs"] {
        if root().join(top).is_dir() {
            walk(Path::new(top), &mut found)?;
        }
    }
    Ok(found)
}

fn walk(dir: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(root().join(dir)).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if entry.file_type()?.is_dir() {
            if !hidden && entry.file_name() != "target" {
                walk(&path, found)?;
            }
        } else if [Some(OsStr::new("rs")), Some(OsStr::new("py"))].contains(&path.extension()) {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read {}", path.display()))?;
            found.push(Source { path, text });
        }
    }
    Ok(())
}

/// Whether Rust code (not a comment, not a string) says `unsafe`.
pub fn says_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let code = without_strings(line.split("//").next().unwrap_or_default());
        code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
    })
}

fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join(" ")
}

/// Whether a file belongs to what workers run; its tests do not.
pub fn is_of_workers(path: &Path) -> bool {
    !is_test(path) && OF_WORKERS.iter().any(|top| path.starts_with(top))
}

fn is_test(path: &Path) -> bool {
    path.file_name() == Some(OsStr::new("tests.rs")) || path.iter().any(|part| part == "tests")
}

/// The code in front of a file's tests, without comments.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]).collect()
}

/// Whether the code in front of a file's tests puts files in the place of others.
pub fn renames_files(path: &Path, text: &str) -> bool {
    let is_ours = ["proxy", "plugins", "xds"].iter().any(|top| path.starts_with(top));
    is_ours && !is_test(path) && code_of(text).contains("fs::rename(")
}

/// Whether it has the disk keep their names.
pub fn keeps_names(text: &str) -> bool {
    code_of(text).contains("keep_name(")
}

/// Whether the code in front of a file's tests uses the file system.
pub fn uses_files(text: &str) -> bool {
    let code = code_of(text);
    ["std::fs", "tokio::fs", "File::open(", "OpenOptions"].iter().any(|mark| code.contains(mark))
}
