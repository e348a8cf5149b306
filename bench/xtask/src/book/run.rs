//! Runs what the book shows: one shell a page, in a folder and, where the system allows, a network of its own, so that
//! a page may use the ports it names.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::{Block, Page, pages};
use crate::process::{Background, output, root, target};
use crate::tools::{IPROUTE, NGINX, OPENSSL, PYTHON, build_proxy, ensure};

const DRIVER: &str = include_str!("driver.sh");

/// How long a block marked `retry` is given.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct Options {
    /// Parts of paths of pages, such as `guide`; without any all pages
    pages: Vec<String>,
    /// This binary instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// # Errors
/// A command or configuration of the book does not do what the page says.
pub fn run(options: &Options) -> Result<()> {
    let binary = match &options.binary {
        Some(binary) => binary.canonicalize().with_context(|| format!("no binary {}", binary.display()))?,
        None => build_proxy("ci")?,
    };
    check(&binary, &options.pages)
}

/// Runs the pages whose paths have one of these parts in them, all without any.
///
/// # Errors
/// As [`run`].
pub fn check(binary: &Path, parts: &[String]) -> Result<()> {
    ensure(&[PYTHON, NGINX, OPENSSL, IPROUTE])?;
    let namespace = namespace();
    if namespace.is_none() {
        println!("book: no network namespaces here: pages run with the ports of this machine");
    }
    let mut failed = Vec::new();
    for page in pages()? {
        let name = page.path.strip_prefix(root().join("docs")).unwrap_or(&page.path).display().to_string();
        if !parts.is_empty() && !parts.iter().any(|part| name.contains(part)) {
            continue;
        }
        let started = Instant::now();
        match run_page(&page, &name, binary, namespace) {
            Ok(0) => {}
            Ok(blocks) => println!("book: {name}: {blocks} blocks, {:.1} s", started.elapsed().as_secs_f64()),
            Err(error) => {
                println!("book: {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("pages that don't do what they say: {}", failed.join(", "));
    }
    Ok(())
}

/// The arguments of `unshare` that give a network of its own here.
fn namespace() -> Option<&'static str> {
    let works = |flags: &&str| {
        let mut probe = Command::new("unshare");
        probe.args([flags, "--", "ip", "link", "set", "lo", "up"]).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    ["-n", "-rn"].into_iter().find(works)
}

fn run_page(page: &Page, name: &str, binary: &Path, namespace: Option<&'static str>) -> Result<usize> {
    let base = target().join("book").join(name.replace('/', "-"));
    let (mut session, mut ran, mut folder) = (None, 0, 0);
    let mut before: Option<&Block> = None;
    for (number, block) in page.blocks.iter().enumerate() {
        let at = || format!("{}:{}", page.path.display(), block.line);
        if block.mark("fresh").is_some() {
            session = None;
        }
        let ready = match session.take() {
            Some(ready) => ready,
            None => {
                folder += 1;
                Session::begin(&base.with_extension(folder.to_string()), binary, namespace)?
            }
        };
        let session = session.insert(ready);
        let shown = page.blocks.get(number + 1).filter(|next| next.mark("output").is_some());
        let done = session.block(block, shown, before);
        ran += usize::from(done.with_context(at)?);
        before = Some(block);
    }
    Ok(ran)
}

/// A shell and its folder.
struct Session {
    folder: PathBuf,
    /// It ends what it has started in the background when its input ends.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    shell: Background,
    steps: usize,
}

impl Session {
    fn begin(folder: &Path, binary: &Path, namespace: Option<&str>) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join(".book/bin"))?;
        let folder = folder.canonicalize()?;
        let own = folder.join(".book");
        symlink(binary, own.join("bin/sixfold"))?;
        symlink(root().join("deploy"), folder.join("deploy"))?; // pages name files there as from the repository
        fs::write(own.join("driver.sh"), DRIVER)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = match namespace {
            Some(flags) => {
                let mut command = Command::new("unshare");
                command.args([flags, "--", "bash"]);
                command
            }
            None => Command::new("bash"),
        };
        command.arg(own.join("driver.sh")).arg(if namespace.is_some() { "own" } else { "shared" });
        command.env("PATH", format!("{}:{path}:/usr/sbin", own.join("bin").display()));
        command.env_remove("http_proxy").env_remove("https_proxy").env("HOME", &folder);
        let log = fs::File::create(own.join("shell.log"))?;
        command.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut shell = Background::spawn(&mut command)?;
        let orders = shell.take_stdin();
        let answers = BufReader::new(shell.take_stdout().context("the shell has no output")?);
        Ok(Self { folder, orders, answers, shell, steps: 0 })
    }

    /// Whether the block was one that is looked at.
    fn block(&mut self, block: &Block, shown: Option<&Block>, before: Option<&Block>) -> Result<bool> {
        if let Some(name) = block.mark("file") {
            let path = self.folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
            fs::write(path, &block.text)?;
            return Ok(true);
        }
        if let Some(name) = block.mark("validate") {
            return self.validate(name, &block.text, "").map(|()| true);
        }
        if block.mark("part-of").is_some() {
            return self.validate("apisix.yaml", &in_route(&block.text), "--strict").map(|()| true);
        }
        if let Some(port) = block.mark("background") {
            self.step("background", &block.text, port)?;
            return Ok(true);
        }
        let retry = block.mark("retry").is_some();
        if !retry && block.mark("run").is_none() {
            let misplaced = block.mark("output").is_some() && before.is_none_or(|b| b.mark("file").is_some());
            return if misplaced { Err(anyhow!("no command before this output")) } else { Ok(false) };
        }
        let end = Instant::now() + if retry { PATIENCE } else { Duration::ZERO };
        loop {
            let done = self.step(if retry { "retry" } else { "run" }, &block.text, "-");
            let matched = done.and_then(|printed| shown.map_or(Ok(()), |shown| same(&shown.text, &printed)));
            match matched {
                Err(error) if Instant::now() >= end => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)),
                Ok(()) => return Ok(true),
            }
        }
    }

    fn validate(&mut self, name: &str, text: &str, how: &str) -> Result<()> {
        let folder = self.folder.join(".book/validate");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), text)?;
        self.step("run", &format!("(cd .book/validate && sixfold validate {how} -c {name})\n"), "-")
            .map(|_| ())
    }

    /// Has the shell do it, and gives what was printed.
    fn step(&mut self, kind: &str, text: &str, port: &str) -> Result<String> {
        self.steps += 1;
        let (script, printed) = (format!(".book/{}.sh", self.steps), format!(".book/{}.out", self.steps));
        fs::write(self.folder.join(&script), text)?;
        let orders = self.orders.as_mut().context("the shell has no input")?;
        // A shell that has ended is told of below.
        let _ = writeln!(orders, "{kind} {script} {printed} {port}");
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let printed = fs::read_to_string(self.folder.join(printed)).unwrap_or_default();
        if answer.trim() != "done" {
            bail!("it fails:\n{text}and says:\n{printed}");
        }
        Ok(printed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.orders = None;
        let mut rest = String::new();
        let _ = self.answers.read_line(&mut rest); // until it has ended what it has started
        let _ = output(Command::new("kill").arg(self.shell.id().to_string()).stderr(Stdio::null()));
    }
}

/// A route around what a page shows of one.
fn in_route(part: &str) -> String {
    let lines: String = part.lines().map(|line| format!("    {line}\n")).collect();
    let upstream =
        if part.contains("upstream") { "" } else { "    upstream: {nodes: {'127.0.0.1:80': 1}}\n" };
    let uri = if part.starts_with("uri:") || part.contains("\nuri:") { "" } else { "    uri: /\n" };
    format!("routes:\n  - id: a\n{uri}{upstream}{lines}#END\n")
}

/// Whether a program has printed what the page shows.
fn same(shown: &str, printed: &str) -> Result<()> {
    let shown_lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let printed_lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
    if lines_fit(&shown_lines, &printed_lines) {
        return Ok(());
    }
    bail!("the page shows:\n{shown}but it prints:\n{printed}")
}

fn lines_fit(shown: &[&str], printed: &[&str]) -> bool {
    match (shown.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((&"...", rest)), _) => (0..=printed.len()).any(|skip| lines_fit(rest, &printed[skip..])),
        (Some((shown, more)), Some((printed, behind))) => {
            words_fit(&shown.split('…').collect::<Vec<_>>(), printed) && lines_fit(more, behind)
        }
        _ => false,
    }
}

/// Whether the line is these parts with anything between them.
fn words_fit(parts: &[&str], line: &str) -> bool {
    match parts {
        [] => line.is_empty(),
        [only] => *only == line,
        [first, middle @ .., last] => {
            let Some(mut rest) = line.strip_prefix(first) else { return false };
            for part in middle {
                let Some(at) = rest.find(part) else { return false };
                rest = &rest[at + part.len()..];
            }
            rest.ends_with(last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_printed() {
        for (shown, printed, fits) in [
            ("a\nb\n", "a\nb\n", true),
            ("a\n", "a\nb\n", false),
            ("a\n...\n", "a\nb\nc\n", true),
            ("...\nc\n", "a\nb\nc\n", true),
            ("...\nd\n", "a\nb\nc\n", false),
            ("date: …\n", "date: today\n", true),
            ("a … c … e\n", "a b c d e\n", true),
            ("a … e … c\n", "a b c d e\n", false),
            ("", "a\n", false),
        ] {
            assert_eq!(same(shown, printed).is_ok(), fits, "{shown:?} {printed:?}");
        }
    }
}
