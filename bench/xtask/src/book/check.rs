//! What can be seen of the book without running anything.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::{Block, Page};
use crate::process::root;

/// Where files of the repository are that are not in the book: a link to one has this before its path.
pub const REPOSITORY: &str = "https://github.com/sixfold/sixfold/blob/main/";

/// Languages whose blocks nobody would paste, and what a program has said.
const SHOWN: [&str; 4] = ["text", "rust", "lua", "nginx"];

/// What a mark may be, and whether it says what becomes of the block.
const MARKS: [(&str, bool); 10] = [
    ("run", true),
    ("retry", true),
    ("background", true),
    ("file", true),
    ("validate", true),
    ("part-of", true),
    ("test", true),
    ("not-run", true),
    ("output", false),
    ("fresh", false),
];

/// Blocks that nobody runs and that don't say why.
pub fn unmarked(page: &Page) -> Vec<String> {
    let faults = page.blocks.iter().filter_map(|block| Some((block.line, fault(page, block)?)));
    faults.map(|(line, fault)| format!("{}:{line}: {fault}", page.path.display())).collect()
}

fn fault(page: &Page, block: &Block) -> Option<String> {
    if block.language.is_empty() {
        return Some(
            "a block of code without a language; fence it and name one (`text` for what is only shown)"
                .into(),
        );
    }
    if let Some(unknown) = block.marks.keys().find(|mark| MARKS.iter().all(|(known, _)| known != mark)) {
        return Some(format!("no mark is called {unknown:?}"));
    }
    let test = block.mark("test").map(|test| (test, std::fs::read_to_string(root().join(test))));
    if let Some((test, text)) = test {
        let page = page.path.strip_prefix(root()).unwrap_or(&page.path);
        if !text.is_ok_and(|text| text.contains(&*page.to_string_lossy())) {
            return Some(format!("{test} is no test that reads this page"));
        }
    }
    if block.mark("not-run").is_some_and(|reason| reason.split_whitespace().count() < 3) {
        return Some("`not-run` has no reason".into());
    }
    let said = MARKS.iter().any(|(mark, says)| *says && block.mark(mark).is_some());
    let shown = SHOWN.contains(&block.language.as_str());
    (!said && !shown).then(|| {
        format!(
            "nobody runs this {}: mark it (bench/xtask/src/book.rs), or say `not-run=\"why\"`",
            block.language
        )
    })
}

/// Links that lead nowhere. Of those to other sites only the form is looked at.
pub fn broken(page: &Page, all: &[Page]) -> Vec<String> {
    let bad = page.links.iter().filter_map(|(line, link)| Some((line, link, lost(page, link, all)?)));
    bad.map(|(line, link, why)| format!("{}:{line}: {link}: {why}", page.path.display())).collect()
}

fn lost(page: &Page, link: &str, all: &[Page]) -> Option<&'static str> {
    if let Some(path) = link.strip_prefix(REPOSITORY) {
        let path = path.split('#').next().unwrap_or_default();
        return (!root().join(path).exists()).then_some("the repository has no such file");
    }
    if let Some((scheme, rest)) = link.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        let formed = scheme == "https" && host.contains('.') && !link.contains(char::is_whitespace);
        return (!formed).then_some("not https, or no host");
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.path.clone(),
        file => normal(&page.path.parent()?.join(file)),
    };
    if !target.exists() {
        return Some("no such file");
    }
    // In SUMMARY.md it is a chapter; anywhere else mdBook makes a link to README.html of it, which it does not write.
    if target.ends_with("README.md") && !page.path.ends_with("SUMMARY.md") {
        return Some("mdBook calls this page index.html: link to a page of another name");
    }
    let Some(target) = all.iter().find(|page| page.path == target) else {
        let within = target.starts_with(root().join("docs"));
        return (!within || !anchor.is_empty()).then_some("not a page of the book; link to the repository");
    };
    let missing = !anchor.is_empty() && !target.anchors.iter().any(|name| name == anchor);
    missing.then_some("the page has no such heading")
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

/// What SUMMARY.md has not, or has twice: mdBook makes a book of what is listed there, and of nothing else.
pub fn unlisted(all: &[Page]) -> Vec<String> {
    let summary = root().join("docs/SUMMARY.md");
    let listed = all.iter().find(|page| page.path == summary).map(|page| page.links.as_slice());
    let mut seen = BTreeSet::new();
    let mut faults = Vec::new();
    for (line, link) in listed.unwrap_or_default() {
        if !seen.insert(root().join("docs").join(link)) {
            faults.push(format!("docs/SUMMARY.md:{line}: {link} is there twice"));
        }
    }
    let missing = all.iter().filter(|page| page.path != summary && !seen.contains(&page.path));
    faults.extend(missing.map(|page| format!("{} is not in docs/SUMMARY.md", page.path.display())));
    faults
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn page(name: &str, text: &str) -> Page {
        Page::parse(&root().join("docs").join(name), text).unwrap()
    }

    #[test]
    fn a_block_that_nobody_runs_says_why() {
        let faults = |text: &str| unmarked(&page("a.md", text));
        for good in [
            "```sh run\nls\n```",
            "```yaml validate=apisix.yaml\n```",
            "```text\n```",
            "```text output\n```",
            "```json not-run=\"a part of an answer\"\n```",
        ] {
            assert_eq!(faults(good), Vec::<String>::new(), "{good}");
        }
        for (bad, why) in [
            ("```sh\nls\n```", "nobody runs this sh"),
            ("```yaml fresh\n```", "nobody runs this yaml"),
            ("```json\n{}\n```", "nobody runs this json"),
            ("```\nls\n```", "without a language"),
            ("    ls\n", "without a language"),
            ("```sh not-run=\"because\"\n```", "has no reason"),
            ("```sh rum\n```", "no mark is called \"rum\""),
            ("```sh test=bench/xtask/tests/layout.rs\n```", "no test that reads this page"),
        ] {
            let found = faults(bad);
            assert!(found.len() == 1 && found[0].contains(why), "{bad}: {found:?}");
        }
    }

    #[test]
    fn links_that_lead_nowhere_are_told() {
        let from = |link: &str| {
            let page = page("adr/decisions.md", &format!("# Own\n[a]({link})\n"));
            let all = [page, self::page("istio.md", "# Here\n")];
            broken(&all[0], &all).len()
        };
        let repository = format!("{REPOSITORY}LICENSE");
        for good in ["../istio.md", "../istio.md#here", "#own", "https://a.example/b", &repository] {
            assert_eq!(from(good), 0, "{good}");
        }
        let gone = format!("{REPOSITORY}LICENCE");
        let bad = [
            "../istio.md#there",
            "../README.md",
            "#here",
            "none.md",
            "http://a.example",
            "https://a",
            "../../LICENSE",
            &gone,
        ];
        for bad in bad {
            assert_eq!(from(bad), 1, "{bad}");
        }
    }
}
