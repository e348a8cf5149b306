//! The source tree keeps to the rules of its layout.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use xtask::layout::{self, FILE_SYSTEM, LAYERS, LINES, Source, UNSAFE_FILE};

#[test]
fn dependencies_between_crates_point_down_only() {
    let found = layout::dependencies().unwrap();
    assert_eq!(found.len(), LAYERS.len(), "crates: {:?}", found.keys());
    assert_eq!(layout::broken_layers(&found), [""; 0]);
}

#[test]
fn a_forbidden_arrow_is_found() {
    let found = BTreeMap::from([
        ("sixfold-core".to_owned(), vec!["sixfold-server".to_owned()]),
        ("sixfold-extra".to_owned(), vec![]),
    ]);
    let broken = layout::broken_layers(&found);
    assert_eq!(broken.len(), 2, "{broken:?}");
}

#[test]
fn rooms_of_a_crate_name_none_above_them() {
    let sources = layout::sources().unwrap();
    for (room, _) in layout::ROOMS {
        assert!(sources.iter().any(|source| layout::is_in(&source.path, room)), "{room} is not there");
    }
    assert_eq!(layout::broken_rooms(&sources), [""; 0]);
}

#[test]
fn a_name_from_above_is_found() {
    let of = |path: &str, text: &str| {
        layout::broken_rooms(&[Source { path: path.into(), text: text.to_owned() }]).len()
    };
    assert_eq!(of("proxy/server/src/wire/body.rs", "use crate::http::Env;"), 1);
    assert_eq!(
        of("proxy/server/src/upstream/h1.rs", "use crate::{\n    buffer::Read,\n    http::Env,\n};"),
        1
    );
    assert_eq!(
        of("proxy/server/src/upstream/h1.rs", "use crate::https;\nuse crate::{io::http, http2};\n"),
        0
    );
    assert_eq!(of("proxy/server/src/wire/body.rs", "//! See [`crate::http`].\n"), 0);
    assert_eq!(of("proxy/server/src/upstream/tests.rs", "use crate::http::Env;"), 0);
    assert_eq!(of("proxy/server/src/worker.rs", "use crate::http::Env;"), 0);
}

#[test]
fn no_source_file_is_too_long() {
    let sources = layout::sources().unwrap();
    assert!(
        sources.iter().any(|source| source.path == Path::new("proxy/core/src/lib.rs")),
        "the walk misses files"
    );
    let long = sources.iter().filter(|source| source.text.lines().count() > LINES);
    assert_eq!(long.map(|source| source.path.display().to_string()).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn functions_of_the_request_path_fit_a_screen_and_a_half() {
    let sources = layout::sources().unwrap();
    let of_path = |source: &&Source| {
        let is_test = source.path.components().any(|part| part.as_os_str() == "tests");
        !is_test && layout::REQUEST_PATH.iter().any(|room| layout::is_in(&source.path, room))
    };
    let sources: Vec<_> = sources.iter().filter(of_path).collect();
    assert!(sources.len() > 20, "the walk misses files: {}", sources.len());
    let long = sources.iter().flat_map(|source| {
        layout::long_functions(&source.text)
            .into_iter()
            .map(|name| format!("{}: {name}", source.path.display()))
    });
    assert_eq!(long.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_long_function_is_found() {
    let of = |lines: usize| {
        format!("impl A {{\n    pub(super) async fn f<T>(\n{}    }}\n}}\n", "        x;\n".repeat(lines - 2))
    };
    assert_eq!(layout::long_functions(&of(layout::FUNCTION_LINES)), [""; 0]);
    assert_eq!(layout::long_functions(&of(layout::FUNCTION_LINES + 1)), ["f: 81"]);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", of(100));
    assert_eq!(layout::long_functions(&tests), [""; 0]);
}

#[test]
fn only_the_memory_module_is_unsafe() {
    let sources = layout::sources().unwrap();
    let rust = sources.iter().filter(|source| source.path.extension().is_some_and(|e| e == "rs"));
    let others =
        rust.filter(|source| source.path != Path::new(UNSAFE_FILE) && layout::says_unsafe(&source.text));
    assert_eq!(others.map(|source| source.path.display().to_string()).collect::<Vec<_>>(), [""; 0]);
}

/// A worker that reads a file stands still for as long as its disk does.
#[test]
fn workers_use_no_files() {
    let sources = layout::sources().unwrap();
    let users = sources.iter().filter(|source| layout::is_of_workers(&source.path));
    let users = users.filter(|source| layout::uses_files(&source.text));
    let users: Vec<_> = users.map(|source| source.path.display().to_string()).collect();
    let others: Vec<_> = users.iter().filter(|user| !FILE_SYSTEM.contains(&user.as_str())).collect();
    assert_eq!(others, [""; 0]);
    let idle: Vec<_> = FILE_SYSTEM.iter().filter(|file| !users.iter().any(|user| user == *file)).collect();
    assert_eq!(idle, [&""; 0], "they need no leave any more");
}

/// A configuration that was put, and answered, was gone after a loss of power: its file was on the disk, its name was not.
#[test]
fn what_puts_files_in_the_place_of_others_has_their_names_kept() {
    let sources = layout::sources().unwrap();
    let renaming = sources.iter().filter(|source| layout::renames_files(&source.path, &source.text));
    let (kept, passing): (Vec<_>, Vec<_>) = renaming.partition(|source| layout::keeps_names(&source.text));
    let mut passing: Vec<_> = passing.iter().map(|source| source.path.display().to_string()).collect();
    passing.sort();
    assert_eq!(passing, layout::PASSING_NAMES);
    assert!(kept.len() >= 3, "the walk misses files");
}

/// Commands that write files; what is in them is no secret, or is made for its user alone where it is written.
const WRITERS: [&str; 6] = [
    "proxy/cli/src/admin.rs",
    "proxy/cli/src/arguments.rs",
    "proxy/cli/src/doctor/machine.rs",
    "proxy/cli/src/envoy.rs",
    "proxy/cli/src/replacement.rs",
    "proxy/cli/src/upgrade.rs",
];

/// Private keys and passwords stand in files of configuration: `replacement.rs` sees to who may read what is written.
#[test]
fn files_of_configuration_are_written_in_one_place() {
    let sources = layout::sources().unwrap();
    let writes = |source: &&Source| {
        let code = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        source.path.starts_with("proxy/cli/src")
            && !source.path.ends_with("tests.rs")
            && ["fs::write(", "File::create", "OpenOptions"].iter().any(|mark| code.contains(mark))
    };
    let mut found: Vec<_> =
        sources.iter().filter(writes).map(|source| source.path.display().to_string()).collect();
    found.sort();
    assert_eq!(found, WRITERS);
}

#[test]
fn what_uses_files_is_told_from_what_only_names_them() {
    assert!(layout::uses_files("use std::fs;"));
    assert!(!layout::uses_files("// std::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}"));
}

#[test]
fn the_word_counts_only_in_code() {
    assert!(layout::says_unsafe("let x = unsafe { f() };"));
    assert!(layout::says_unsafe("    unsafe fn f() {}"));
    assert!(!layout::says_unsafe("// unsafe\nlet unsafe_code = \"unsafe\";"));
}

#[test]
fn nothing_says_of_itself_that_it_is_unfinished() {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimplem", "ented!(")];
    let sources = layout::sources().unwrap();
    let unfinished = sources.iter().filter(|source| marks.iter().any(|mark| source.text.contains(mark)));
    assert_eq!(unfinished.map(|source| source.path.display().to_string()).collect::<Vec<_>>(), [""; 0]);
}
