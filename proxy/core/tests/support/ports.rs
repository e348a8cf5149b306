//! Ports for tests and tools, of which nobody else gets one while this process lives. Other crates take this file by its path.
//!
//! A port that was free a moment ago may be somebody else's by the time it is used: the next test asks the kernel as well, and
//! every connection that goes out takes one. So they come from below those that the kernel gives (`ip_local_port_range`, from
//! 32768 on by default), and for each there is a file that is locked until the process ends.

use std::fs::{OpenOptions, create_dir_all, metadata};
use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// How many were looked at.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of any address, of TCP and UDP, on which nobody listens; it is this process's until that ends.
///
/// # Errors
/// All are taken, or there is no place for their files.
pub fn free_port() -> Result<u16> {
    let folder = folder()?;
    for _ in 0..COUNT {
        // Processes begin at different ones, so that they seldom look at the same.
        let at = std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Relaxed));
        let port = FIRST + u16::try_from(at % u32::from(COUNT)).unwrap_or_default();
        let file = folder.join(port.to_string());
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        if file.try_lock().is_ok() && is_unused(port) {
            // Nobody closes it, so it stays locked until the process ends.
            let _ = file.into_raw_fd();
            return Ok(port);
        }
    }
    Err(Error::new(ErrorKind::AddrInUse, "no port is left for tests"))
}

/// Where the files are: users have their own, which others may not write.
fn folder() -> Result<PathBuf> {
    let user = metadata("/proc/self")?.uid();
    let folder = std::env::temp_dir().join(format!("sixfold-ports-{user}"));
    create_dir_all(&folder)?;
    Ok(folder)
}

fn is_unused(port: u16) -> bool {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok()
}
