//! nginx's syntax, with its includes (`ngx_conf_file.c`).

use crate::Failure;
use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::{ConfigError, Place};
use sixfold_core::files;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Includes and blocks within each other.
const MAX_DEPTH: usize = 32;

/// Files that are included, in all.
const MAX_FILES: usize = 1000;

/// A directive with its block.
#[derive(Debug, Clone)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    /// Empty for those that end with `;`.
    pub(super) block: Vec<Directive>,
    pub(super) file: Arc<str>,
    pub(super) line: u32,
}

impl Directive {
    /// Itself without its block.
    pub(super) fn shown(&self) -> String {
        let words = std::iter::once(&self.name).chain(&self.arguments);
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn argument(&self, at: usize) -> &str {
        self.arguments.get(at).map(String::as_str).unwrap_or_default()
    }
}

enum Token {
    Word(String, u32),
    End(u32),
    Open(u32),
    Close(u32),
}

/// The directives of a file, those that it includes in their places.
pub(super) fn file(path: &Path) -> Result<Vec<Directive>, Failure> {
    let mut reader = Reader { root: path.parent().unwrap_or(Path::new(".")).to_owned(), left: MAX_FILES };
    Ok(reader.file(path, 0)?)
}

struct Reader {
    /// What relative names of included files are below of.
    root: PathBuf,
    left: usize,
}

impl Reader {
    fn file(&mut self, path: &Path, depth: usize) -> Result<Vec<Directive>, ConfigError> {
        let name = path.display().to_string();
        let told = |reason: String| ConfigError::new(reason).in_file(&name);
        self.left = self.left.checked_sub(1).ok_or_else(|| told("includes too many files".to_owned()))?;
        let bytes = files::read(path, MAX_DOCUMENT_BYTES).map_err(|error| told(error.to_string()))?;
        let text = String::from_utf8_lossy(&bytes);
        let tokens = tokens(&text).map_err(|error| error.in_file(&name))?;
        let mut tokens = tokens.into_iter();
        let file: Arc<str> = name.as_str().into();
        self.block(&mut tokens, &file, depth, false).map_err(|error| error.in_file(&name))
    }

    fn block(
        &mut self,
        tokens: &mut std::vec::IntoIter<Token>,
        file: &Arc<str>,
        depth: usize,
        is_within: bool,
    ) -> Result<Vec<Directive>, ConfigError> {
        let fault = |reason: &str, line: u32| ConfigError::new(reason).at(Place::new(line, 1));
        if depth > MAX_DEPTH {
            return Err(ConfigError::new("blocks and includes are nested too deep"));
        }
        let (mut found, mut words) = (Vec::new(), Vec::new());
        let mut begin = 0;
        while let Some(token) = tokens.next() {
            match token {
                Token::Word(word, line) => {
                    if words.is_empty() {
                        begin = line;
                    }
                    words.push(word);
                }
                Token::End(line) | Token::Open(line) if words.is_empty() => {
                    return Err(fault("a directive is expected", line));
                }
                Token::End(_) => {
                    let directive = directive(&mut words, file, begin, Vec::new());
                    if directive.name == "include" {
                        found.extend(self.include(&directive, depth)?);
                    } else {
                        found.push(directive);
                    }
                }
                Token::Open(_) => {
                    let mut directive = directive(&mut words, file, begin, Vec::new());
                    directive.block = self.block(tokens, file, depth + 1, true)?;
                    found.push(directive);
                }
                Token::Close(_) if is_within && words.is_empty() => return Ok(found),
                Token::Close(line) => return Err(fault("unexpected \"}\"", line)),
            }
        }
        match is_within || !words.is_empty() {
            true => Err(ConfigError::new("the file ends within a block or directive")),
            false => Ok(found),
        }
    }

    /// The directives of included files, in the order of their names; the directive itself where there is none.
    fn include(&mut self, directive: &Directive, depth: usize) -> Result<Vec<Directive>, ConfigError> {
        let path = self.root.join(directive.argument(0));
        let (folder, pattern) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
        let (Some(folder), Some(pattern)) = (folder, pattern) else { return Ok(vec![directive.clone()]) };
        let mut paths: Vec<PathBuf> = match pattern.split_once('*') {
            None => vec![path.clone()],
            Some((before, after)) => std::fs::read_dir(folder)
                .map(|entries| {
                    let names = entries.flatten().map(|entry| entry.path());
                    let fits = |path: &PathBuf| {
                        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                            name.len() >= before.len() + after.len()
                                && name.starts_with(before)
                                && name.ends_with(after)
                        })
                    };
                    names.filter(fits).collect()
                })
                .unwrap_or_default(),
        };
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            found.extend(self.file(&path, depth + 1)?);
        }
        Ok(found)
    }
}

fn directive(words: &mut Vec<String>, file: &Arc<str>, line: u32, block: Vec<Directive>) -> Directive {
    let mut words = std::mem::take(words).into_iter();
    let name = words.next().unwrap_or_default();
    Directive { name, arguments: words.collect(), block, file: file.clone(), line }
}

fn tokens(text: &str) -> Result<Vec<Token>, ConfigError> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while let Some(char) = chars.next() {
        match char {
            '\n' => line += 1,
            char if char.is_whitespace() => {}
            '#' => while chars.next_if(|char| *char != '\n').is_some() {},
            ';' => found.push(Token::End(line)),
            '{' => found.push(Token::Open(line)),
            '}' => found.push(Token::Close(line)),
            first => {
                let begin = line;
                let quote = matches!(first, '"' | '\'').then_some(first);
                let mut word = if quote.is_some() { String::new() } else { String::from(first) };
                if first == '\\' {
                    word = escaped(chars.next());
                }
                let mut is_closed = quote.is_none();
                while let Some(next) = chars.peek().copied() {
                    let ends = next.is_whitespace() || matches!(next, ';' | '{');
                    // `${name}` is a variable.
                    let is_variable = next == '{' && word.ends_with('$');
                    if quote.is_none() && ends && !is_variable {
                        break;
                    }
                    chars.next();
                    line += u32::from(next == '\n');
                    match next {
                        next if quote == Some(next) => {
                            is_closed = true;
                            break;
                        }
                        '\\' => word.push_str(&escaped(chars.next())),
                        next => word.push(next),
                    }
                }
                if !is_closed {
                    return Err(ConfigError::new("a quotation mark is not closed").at(Place::new(begin, 1)));
                }
                found.push(Token::Word(word, begin));
            }
        }
    }
    Ok(found)
}

/// What stands for a backslash and the character behind it.
fn escaped(char: Option<char>) -> String {
    match char {
        Some('n') => "\n".to_owned(),
        Some('t') => "\t".to_owned(),
        Some('r') => "\r".to_owned(),
        Some(char @ ('"' | '\'' | '\\')) => char.to_string(),
        Some(char) => format!("\\{char}"),
        None => "\\".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Vec<Directive>, ConfigError> {
        let mut reader = Reader { root: PathBuf::new(), left: 10 };
        reader.block(&mut tokens(text)?.into_iter(), &"f".into(), 0, false)
    }

    #[test]
    fn words_quotes_and_blocks_are_read_as_nginx_does() {
        let found =
            read("a 'b c' \"d\\n\" # no\n;\nlocation ~ \\.php$ { return 200 \"x;y\"; }\nset $a ${b}c;")
                .unwrap();
        assert_eq!(found[0].arguments, ["b c", "d\n"]);
        assert_eq!((found[1].argument(1), found[1].line), ("\\.php$", 3));
        assert_eq!(found[1].block[0].arguments, ["200", "x;y"]);
        assert_eq!(found[2].arguments, ["$a", "${b}c"]);
        for text in ["a", "a {", "}", ";", "a \"b;"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
