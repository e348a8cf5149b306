//! Pages that say something about the source tree say what is true.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use xtask::book::{self, check};
use xtask::process::root;

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let dependencies = manifest["workspace"]["dependencies"].as_table().unwrap();
    let named = dependencies.keys().filter(|name| !name.starts_with("sixfold")).map(String::as_str);
    let page = read("docs/dependencies.md");
    let rows = page.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    let explained: BTreeSet<&str> = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert_eq!(named.collect::<BTreeSet<_>>(), explained, "left: Cargo.toml, right: docs/dependencies.md");
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = Vec::new();
    for place in [root(), root().join("docs"), root().join("proxy/conformance"), root().join("bench")] {
        collect(&place, place == root().join("docs"), &mut pages);
    }
    assert!(pages.len() > 10, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(file).exists(), "{}: {link}", page.display());
        }
    }
}

#[test]
fn every_page_is_in_the_book_once() {
    let faults = check::unlisted(&book::pages().unwrap());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn links_of_the_book_lead_to_pages_and_headings() {
    let pages = book::pages().unwrap();
    let faults: Vec<_> = pages.iter().flat_map(|page| check::broken(page, &pages)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A table of limits had rows with a cell too many, which pushed what happens beyond them off the page.
#[test]
fn rows_of_a_table_have_as_many_cells_as_its_head() {
    let bars = |line: &str| line.replace(r"\|", "").matches('|').count();
    let (mut pages, mut faults) = (Vec::new(), Vec::new());
    collect(&root().join("docs"), true, &mut pages);
    for page in pages {
        let (mut head, mut in_block) = (None, false);
        for (number, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            in_block ^= line.trim_start().starts_with("```");
            let is_row = !in_block && line.starts_with('|');
            head = is_row.then(|| head.unwrap_or_else(|| bars(line)));
            if head.is_some_and(|head| head != bars(line)) {
                faults.push(format!("{}:{}", page.display(), number + 1));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
}

/// `cargo xtask book` runs what is marked, and the tests that are named read the rest.
#[test]
fn every_example_of_the_book_is_run_or_says_why_not() {
    let faults: Vec<_> = book::pages().unwrap().iter().flat_map(check::unmarked).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_first_page_leads_to_all_that_the_book_has() {
    let linked = |page: &str| -> BTreeSet<String> {
        let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let elsewhere = |link: &str| link.starts_with("..") || link.contains("://") || link == "README.md";
        let of_book = |link: &&str| link.ends_with(".md") && !elsewhere(link);
        links.filter(of_book).filter(|link| !link.starts_with("adr/0")).map(str::to_owned).collect()
    };
    let (page, summary) = (linked(&read("docs/README.md")), linked(&read("docs/SUMMARY.md")));
    assert!(page.len() > 10, "{page:?}");
    assert_eq!(page, summary, "left: docs/README.md, right: docs/SUMMARY.md");
}

/// What a plugin can say of itself: the builders of its factory, and of its handlers.
#[test]
fn the_page_on_plugins_names_every_builder() {
    let page = read("docs/plugins/write-one.md");
    let builders = |file: &str, of: &str| -> Vec<String> {
        let text = read(file);
        let (_, behind) = text.split_once(&format!("\nimpl{of} {{")).unwrap();
        let (block, _) = behind.split_once("\n}\n").unwrap();
        let named = block.split("#[must_use]\n    pub fn ").skip(1);
        named.map(|rest| rest.split(['<', '(']).next().unwrap().to_owned()).collect()
    };
    let factory = builders("proxy/core/src/plugin/factory.rs", " ApisixFactory");
    let handlers =
        builders("proxy/core/src/plugin/handlers.rs", "<T: Send + Sync + 'static> PluginBuilder<T>");
    assert!(factory.len() > 8 && handlers.len() > 10, "{factory:?} {handlers:?}");
    let of_factory = factory.iter().filter(|name| !page.contains(&format!("`.{name}(")));
    let is_phase = |name: &&String| ["`", "("].iter().any(|end| page.contains(&format!("`{name}{end}")));
    let of_handlers = handlers.iter().filter(|name| !is_phase(name));
    let missing: Vec<_> = of_factory.chain(of_handlers).collect();
    assert!(missing.is_empty(), "docs/plugins/write-one.md lacks {missing:?}");
}

fn collect(dir: &Path, deep: bool, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && deep {
            collect(&path, deep, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}
