//! The upstreams, on the load's core: an nginx, which asks itself in order to read an upload before it answers, and for gRPC a small server of our own, since nginx answers a POST before
//! it has read it, which some proxies take for a failure.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::cases::{LONG, SHORT};
use super::others::nginx_frame;
use super::peers::{LOAD_CORE, pinned};
use crate::process::{Background, free_port};
use crate::tools::self_signed;

/// A length-prefixed gRPC message of seven bytes: not compressed, field 1 is the string "hello".
const MESSAGE: &[u8] = b"\0\0\0\0\x07\x0a\x05hello";

/// What the first HTTP/1 port answers.
pub(super) const ANSWER: &str = "hello world, this is a body\n";
/// What the second HTTP/1 port answers.
pub(super) const OTHER_ANSWER: &str = "hello from the other side\n";

#[derive(Debug)]
pub(super) struct Upstream {
    pub http1: u16,
    /// HTTP/2, answers unary gRPC calls, if there is a program that does
    pub http2: u16,
    /// HTTP/1 with [`OTHER_ANSWER`]
    pub other: u16,
    dir: PathBuf,
    _processes: Vec<Background>,
}

impl Upstream {
    /// # Errors
    /// nginx or openssl fails, or the program that answers gRPC calls.
    pub(super) fn start(dir: &Path, grpc_upstream: Option<&Path>) -> Result<Self> {
        let dir = dir.join("upstream");
        let files = dir.join("files");
        fs::create_dir_all(&files)?;
        fs::write(files.join("body"), vec![b'x'; SHORT])?;
        fs::write(files.join("body-1m"), vec![b'x'; LONG])?;
        fs::write(dir.join("message"), MESSAGE)?;
        self_signed(&dir)?;
        let both = [fs::read(dir.join("cert.pem"))?, fs::read(dir.join("key.pem"))?].concat();
        fs::write(dir.join("both.pem"), both)?;

        let (http1, http2, other) = (free_port()?, free_port()?, free_port()?);
        let http = format!(
            "  open_file_cache max=10;\n  root {files};\n\
             upstream other {{ server 127.0.0.1:{other}; keepalive 64; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{http1} reuseport;\n\
               location / {{ default_type text/plain; return 200 \"{first}\"; }}\n\
               location = /body {{ sendfile on; }}\n\
               location = /body-1m {{ sendfile on; }}\n\
               location = /upload {{ client_max_body_size 0; client_body_buffer_size 2m; proxy_pass http://other;\n\
                 proxy_pass_request_body off; proxy_set_header Content-Length \"\";\n\
                 proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n\
             server {{ listen 127.0.0.1:{other} reuseport;\n\
               location / {{ default_type text/plain; return 200 \"{answer}\"; }} }}",
            files = files.display(),
            first = ANSWER.replace('\n', "\\n"),
            answer = OTHER_ANSWER.replace('\n', "\\n"),
        );
        let conf = dir.join("nginx.conf");
        fs::write(&conf, nginx_frame(&dir, "off", &http))?;
        let mut command = pinned(LOAD_CORE);
        command.arg("nginx").arg("-c").arg(conf).stderr(File::create(dir.join("stderr.log"))?);
        let mut process = Background::spawn(&mut command)?;
        process.wait_for_port(http1, Duration::from_secs(10))?;
        let mut processes = vec![process];
        if let Some(grpc_upstream) = grpc_upstream {
            let mut command = pinned(LOAD_CORE);
            command.arg(grpc_upstream).arg(format!("127.0.0.1:{http2}"));
            let mut grpc = Background::spawn(command.stderr(File::create(dir.join("grpc.log"))?))?;
            grpc.wait_for_port(http2, Duration::from_secs(10))?;
            processes.push(grpc);
        }
        Ok(Self { http1, http2, other, dir, _processes: processes })
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    pub(super) fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    /// Both in one file, as HAProxy wants them.
    pub(super) fn certificate_with_key(&self) -> PathBuf {
        self.dir.join("both.pem")
    }

    /// A file of so many bytes, [`SHORT`] or [`LONG`].
    pub(super) fn body(&self, bytes: usize) -> PathBuf {
        self.dir.join("files").join(if bytes == SHORT { "body" } else { "body-1m" })
    }

    /// The body of a gRPC call.
    pub(super) fn message(&self) -> PathBuf {
        self.dir.join("message")
    }
}
