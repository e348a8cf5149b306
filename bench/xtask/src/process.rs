//! Running other programs, and where things are.

use std::env;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

#[allow(unreachable_pub)]
#[path = "../../../proxy/core/tests/support/ports.rs"]
mod ports;

/// The workspace's own folder.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// Where cargo builds: `CARGO_TARGET_DIR`, else `target` in the workspace.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The first executable of this name on `PATH`, then in the places where Debian and Go's own installer put
/// programs that a plain user's `PATH` may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The cargo that runs this very program, or the one on `PATH`.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Prints the command and runs it to its end; an exit status other than 0 is an error.
///
/// # Errors
/// The program is missing, or did not end well.
pub fn execute(command: &mut Command) -> Result<()> {
    let line = describe(command);
    println!("$ {line}");
    succeeded(command.status().with_context(|| format!("cannot start: {line}"))?, &line)
}

/// Runs the command and gives what it wrote to standard output.
///
/// # Errors
/// The program is missing, or did not end well.
pub fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start: {line}"))?;
    let out = child.wait_with_output()?;
    succeeded(out.status, &line)?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn succeeded(status: ExitStatus, line: &str) -> Result<()> {
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// A program in the background. It is ended when this is dropped, whatever happens in between.
#[derive(Debug)]
pub struct Background {
    child: Child,
}

impl Background {
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start: {}", describe(command)))?;
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, once, if it was piped.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, once, if it was piped.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits until something accepts connections on this port of 127.0.0.1.
    ///
    /// # Errors
    /// The program ended, or `limit` passed.
    pub fn wait_for_port(&mut self, port: u16, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("ended before it listened on port {port}: {status}");
            }
            sleep(Duration::from_millis(20));
        }
        bail!("nothing listened on port {port} within {limit:?}")
    }
}

impl Background {
    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel can't say what became of it.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGTERM and waits for the end; none when `limit` passed before.
    ///
    /// # Errors
    /// The kernel can't say what became of it.
    pub fn end(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        // What has ended and was waited for has no id any more.
        if let Some(status) = self.status()? {
            return Ok(Some(status));
        }
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.status()? {
                return Ok(Some(status));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(None)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // SIGTERM first, so that programs with children of their own (nginx, Envoy's launcher) take them along.
        if !matches!(self.end(Duration::from_secs(3)), Ok(None)) {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody else gets.
///
/// # Errors
/// No port is free.
pub fn free_port() -> Result<u16> {
    Ok(ports::free_port()?)
}
