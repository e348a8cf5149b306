//! Addresses that are to be listened on, and who has them.

use super::Report;
use sixfold_core::listener::{BindAddress, SocketRights};
use sixfold_server::sockets;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Of a listening TCP socket and of any UDP socket in `/proc/net`.
const LISTENS: [&str; 2] = ["0A", "07"];

/// What the C library calls `EAFNOSUPPORT`.
const NO_FAMILY: i32 = 97;

/// Who has a port.
struct Holder {
    process: u32,
    name: String,
    /// Whether it serves by the file that is looked at.
    is_same: bool,
}

/// What becomes of a process that can't listen on an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Without {
    /// It does not start.
    Ends,
    /// It starts and leaves it out: nobody has asked for it.
    Starts,
}

/// Whether the address, which is from this key of `config`, can be listened on.
pub(super) fn check(
    report: &mut Report,
    key: &str,
    (address, without): (&BindAddress, Without),
    config: &Path,
) {
    let about = format!("{address} ({key})");
    if without == Without::Starts {
        return match sockets::reserve(address, 1, false, SocketRights::default()) {
            Ok(_) => report.ok("port", about, "free"),
            Err(error) => left_out(report, about, address, config, &error),
        };
    }
    if let BindAddress::Unix(path) = address {
        return unix(report, about, path);
    }
    let error = match sockets::reserve(address, 1, false, SocketRights::default()) {
        Ok(_) => return report.ok("port", about, "free"),
        Err(error) => error,
    };
    let (ip, is_udp) = match address {
        BindAddress::Udp(ip) => (Some(*ip), true),
        other => (other.ip(), false),
    };
    let no_ipv6 = ip.is_some_and(|ip| ip.is_ipv6())
        && (error.raw_os_error() == Some(NO_FAMILY) || error.kind() == ErrorKind::AddrNotAvailable);
    match error.kind() {
        ErrorKind::AddrInUse => {
            let holder = ip.and_then(|ip| holder(ip, is_udp, config));
            match holder {
                Some(Holder { process, is_same: true, .. }) => {
                    report.ok("port", about, format!("served by this configuration, process {process}"));
                }
                Some(Holder { process, name, .. }) => report.fault(
                    "port",
                    about,
                    format!("held by {name}, process {process}"),
                    "end that process, or name another port",
                ),
                None => report.fault(
                    "port",
                    about,
                    "held by a process that this user may not see",
                    "ask `ss -lntup` as root who it is, and end it or name another port",
                ),
            }
        }
        ErrorKind::PermissionDenied => report.fault(
            "port",
            about,
            "this user may not listen on it",
            "give the program CAP_NET_BIND_SERVICE, or name a port from 1024 on",
        ),
        _ if no_ipv6 => report.warning(
            "port",
            about,
            format!("this machine does not have the address: {error}"),
            "give it the address, or name another one; on a machine without IPv6 name addresses of IPv4",
        ),
        ErrorKind::AddrNotAvailable => report.fault(
            "port",
            about,
            "this machine does not have the address",
            "name an address of this machine, as `ip address` lists them",
        ),
        _ => report.fault("port", about, error.to_string(), "name another address"),
    }
}

/// An address by default that can't be had.
fn left_out(
    report: &mut Report,
    about: String,
    address: &BindAddress,
    config: &Path,
    error: &std::io::Error,
) {
    match address.ip().and_then(|ip| holder(ip, false, config)) {
        Some(Holder { process, is_same: true, .. }) => {
            report.ok("port", about, format!("served by this configuration, process {process}"));
        }
        holder => {
            let held =
                holder.map(|Holder { process, name, .. }| format!("held by {name}, process {process}"));
            let advice =
                "the gateway starts without it, since that is the default; name another address to have it";
            report.warning("port", about, held.unwrap_or_else(|| error.to_string()), advice);
        }
    }
}

/// A socket file that nobody answers at is taken over when the proxy starts.
fn unix(report: &mut Report, about: String, path: &Path) {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if path.as_os_str().as_encoded_bytes().starts_with(b"@") || folder.as_os_str().is_empty() {
        return report.ok("port", about, "is not looked at");
    }
    if UnixStream::connect(path).is_ok() {
        return report.fault("port", about, "somebody listens", "end that process, or name another path");
    }
    if !folder.is_dir() {
        return report.fault("port", about, "its folder is not there", "make the folder");
    }
    report.ok("port", about, "free");
}

fn holder(address: SocketAddr, is_udp: bool, config: &Path) -> Option<Holder> {
    let tables = if is_udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|table| {
            table.lines().filter_map(|line| socket_at(line, address.port())).collect::<Vec<_>>()
        })
        .collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()
    });
    processes.filter(|process| has(*process, &sockets)).find_map(|process| {
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        Some(Holder { process, name: name.trim_end().to_owned(), is_same: serves(process, config) })
    })
}

/// `socket:[INODE]` of a line of `/proc/net/tcp` (proc_pid_net(5)) that listens on the port.
fn socket_at(line: &str, port: u16) -> Option<String> {
    let mut columns = line.split_ascii_whitespace();
    let (_, found) = columns.nth(1)?.rsplit_once(':')?;
    let state = columns.nth(1)?;
    let is_it = u16::from_str_radix(found, 16).ok()? == port && LISTENS.contains(&state);
    is_it.then(|| columns.nth(5).map(|inode| format!("socket:[{inode}]")))?
}

fn has(process: u32, sockets: &[String]) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let target = std::fs::read_link(descriptor.path()).unwrap_or_default();
        sockets.iter().any(|socket| Path::new(socket) == target)
    })
}

/// Whether the process runs this program with this file.
fn serves(process: u32, config: &Path) -> bool {
    let own = |of: &str| std::fs::read_link(format!("/proc/{of}/exe")).ok();
    let name = |path: Option<std::path::PathBuf>| path.and_then(|path| Some(path.file_name()?.to_owned()));
    if name(own(&process.to_string())) != name(own("self")) {
        return false;
    }
    let (Ok(meant), Ok(folder)) = (config.canonicalize(), std::fs::read_link(format!("/proc/{process}/cwd")))
    else {
        return false;
    };
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    // An apisix.yaml is served by the config.yaml beside it.
    let beside = |path: &Path| {
        path.parent() == meant.parent() && path.file_name().is_some_and(|name| name != "apisix.yaml")
    };
    let of = |argument: &str| folder.join(argument).canonicalize().ok();
    line.split('\0')
        .filter(|argument| !argument.is_empty())
        .chain(["conf/config.yaml"])
        .filter_map(of)
        .any(|path| path == meant || (meant.ends_with("apisix.yaml") && path.is_file() && beside(&path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found_by_its_port() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(socket_at(line, 8080).as_deref(), Some("socket:[4711]"));
        assert_eq!(socket_at(line, 8081), None);
        assert_eq!(socket_at(&line.replace(" 0A ", " 01 "), 8080), None);
        assert_eq!(socket_at("  sl  local_address rem_address", 8080), None);
    }
}
