//! A page as mdBook's own parser sees it: headings, links, blocks of code.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

#[derive(Debug, Default)]
pub struct Page {
    pub path: PathBuf,
    /// What `#...` of a link may name.
    pub anchors: Vec<String>,
    pub links: Vec<(usize, String)>,
    pub blocks: Vec<Block>,
}

/// A block of code, or a command in a comment.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    pub line: usize,
    /// Empty where the page says none, as of a block that is indented.
    pub language: String,
    pub marks: BTreeMap<String, String>,
    pub text: String,
}

impl Block {
    pub fn mark(&self, name: &str) -> Option<&str> {
        self.marks.get(name).map(String::as_str)
    }
}

impl Page {
    /// # Errors
    /// The file can't be read, or has marks that can't be.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(path, &text)
    }

    /// # Errors
    /// A mark is not `name`, `name=value` or `name="some words"`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut page = Self { path: path.to_owned(), ..Self::default() };
        let options = Options::ENABLE_TABLES | Options::ENABLE_HEADING_ATTRIBUTES;
        let (mut heading, mut block): (Option<String>, Option<Block>) = (None, None);
        for (event, place) in Parser::new_ext(text, options).into_offset_iter() {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => page.anchor(&heading.take().unwrap_or_default()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line(text, &place), dest_url.into_string()));
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match &kind {
                        CodeBlockKind::Fenced(info) => info,
                        CodeBlockKind::Indented => "",
                    };
                    let line = line(text, &place);
                    let read = Block::begin(line, info);
                    block = Some(read.with_context(|| format!("{}:{line}", path.display()))?);
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Html(html) => page.blocks.extend(hidden(line(text, &place), &html)),
                Event::Text(words) | Event::Code(words) => {
                    if let Some(block) = &mut block {
                        block.text.push_str(&words);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&words);
                    }
                }
                _ => {}
            }
        }
        Ok(page)
    }

    /// The name of a heading as mdBook (and GitHub) make it.
    fn anchor(&mut self, heading: &str) {
        let kept = heading.chars().filter_map(|c| match c {
            c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c.to_ascii_lowercase()),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        });
        let name: String = kept.collect();
        let before = self.anchors.iter().filter(|anchor| **anchor == name).count();
        self.anchors.push(if before == 0 { name } else { format!("{name}-{before}") });
    }
}

impl Block {
    fn begin(line: usize, info: &str) -> Result<Self> {
        let (language, marks) = info.trim().split_once(' ').unwrap_or((info.trim(), ""));
        let language = language.split(',').next().unwrap_or_default().to_owned();
        Ok(Self { line, language, marks: marks_of(marks)?, text: String::new() })
    }
}

fn marks_of(mut rest: &str) -> Result<BTreeMap<String, String>> {
    let mut marks = BTreeMap::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(marks);
        }
        let end = rest.find([' ', '=']).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let value = match behind.strip_prefix("=\"") {
            Some(quoted) => {
                let Some((value, behind)) = quoted.split_once('"') else {
                    bail!("{name} has a quotation that does not end");
                };
                rest = behind;
                value
            }
            None => {
                let behind = behind.strip_prefix('=').unwrap_or(behind);
                let end = behind.find(' ').unwrap_or(behind.len());
                let (value, behind) = behind.split_at(if rest.contains('=') { end } else { 0 });
                rest = behind;
                value
            }
        };
        marks.insert(name.to_owned(), value.to_owned());
    }
}

/// `<!-- run: COMMAND -->`
fn hidden(line: usize, html: &str) -> Option<Block> {
    let (mark, command) = html.trim().strip_prefix("<!--")?.strip_suffix("-->")?.split_once(": ")?;
    let marks = marks_of(mark).ok()?;
    let known = marks.contains_key("run") || marks.contains_key("background");
    known.then(|| Block { line, language: "sh".into(), marks, text: command.trim().to_owned() + "\n" })
}

fn line(text: &str, place: &Range<usize>) -> usize {
    text.get(..place.start).map_or(0, |before| before.matches('\n').count()) + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn page(text: &str) -> Page {
        Page::parse(Path::new("a.md"), text).unwrap()
    }

    #[test]
    fn blocks_have_their_language_and_marks() {
        let page = page(
            "# A\n\n```sh run\nls\n```\n\n```yaml file=a.yaml fresh\na: 1\n```\n\n```sh not-run=\"no cluster here\"\nx\n```\n\n    indented\n\n<!-- background=81: serve -->\n\n```rust,ignore\n```\n",
        );
        let seen: Vec<_> =
            page.blocks.iter().map(|b| (b.line, b.language.as_str(), b.text.as_str())).collect();
        let expected = [
            (3, "sh", "ls\n"),
            (7, "yaml", "a: 1\n"),
            (11, "sh", "x\n"),
            (15, "", "indented\n"),
            (17, "sh", "serve\n"),
            (19, "rust", ""),
        ];
        assert_eq!(seen, expected);
        assert_eq!(page.blocks[0].mark("run"), Some(""));
        assert_eq!(page.blocks[1].marks.len(), 2);
        assert_eq!(page.blocks[1].mark("file"), Some("a.yaml"));
        assert_eq!(page.blocks[2].mark("not-run"), Some("no cluster here"));
        assert_eq!(page.blocks[4].mark("background"), Some("81"));
        let open = Page::parse(Path::new("a.md"), "```sh not-run=\"x\n```\n").unwrap_err();
        assert!(format!("{open:#}").starts_with("a.md:1: not-run"), "{open:#}");
    }

    #[test]
    fn headings_are_named_as_in_the_book() {
        let page = page("# What `x` is, and why\n\n## Twice\n\n## Twice\n\n[a](b.md#c) ![i](i.svg)\n");
        assert_eq!(page.anchors, ["what-x-is-and-why", "twice", "twice-1"]);
        assert_eq!(page.links, [(7, "b.md#c".to_owned()), (7, "i.svg".to_owned())]);
    }
}
