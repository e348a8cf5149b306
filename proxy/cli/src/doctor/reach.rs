//! Servers that a configuration needs: whether they take connections, and how they show who they are.

use super::Report;
use super::machine::Names;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long connecting may take, and each step of a handshake.
const PATIENCE: Duration = Duration::from_secs(3);

/// How a server is spoken to by TLS.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// The name that it is asked for.
    pub(super) name: String,
}

/// Whether a server answers that is from this key; what it answered with, if it does.
pub(super) fn check(
    report: &mut Report,
    names: &mut Names,
    key: &str,
    (host, port): (&str, u16),
    tls: Option<Tls>,
) -> Option<SocketAddr> {
    let about = format!("{host}:{port} ({key})");
    let addresses = match names.addresses(host) {
        Ok(addresses) => addresses,
        Err(reason) => {
            report.fault("server", about, reason, "mend the name, or the DNS of this machine");
            return None;
        }
    };
    let mut reason = "it has no address".to_owned();
    for address in addresses.into_iter().map(|ip| SocketAddr::new(ip, port)) {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                handshake(report, about, stream, tls);
                return Some(address);
            }
            Err(error) => reason = format!("{address}: {error}"),
        }
    }
    report.fault("server", about, reason, "start it, or mend its address or what is in between");
    None
}

/// The same of a unix socket.
pub(super) fn check_unix(report: &mut Report, key: &str, path: &str) {
    let about = format!("{path} ({key})");
    match UnixStream::connect(Path::new(path)) {
        Ok(_) => report.ok("server", about, "takes connections"),
        Err(error) => report.fault("server", about, error.to_string(), "start it, or mend its path"),
    }
}

fn handshake(report: &mut Report, about: String, mut stream: TcpStream, tls: Option<Tls>) {
    let Some(Tls { config, name }) = tls else {
        return report.ok("server", about, "takes connections");
    };
    match shake(&mut stream, config, name) {
        Ok(version) => report.ok("server", about, format!("takes connections, {version}")),
        Err(reason) => report.fault(
            "server",
            about,
            format!("TLS: {reason}"),
            "hold its certificate against the authorities and names that are configured, and this machine's clock",
        ),
    }
}

fn shake(stream: &mut TcpStream, config: Arc<ClientConfig>, name: String) -> Result<String, String> {
    let told = |error: std::io::Error| error.to_string();
    stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(told)?;
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let mut connection = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    while connection.is_handshaking() {
        let (read, written) = connection.complete_io(stream).map_err(told)?;
        if read == 0 && written == 0 {
            return Err("the connection was closed".to_owned());
        }
    }
    Ok(connection.protocol_version().map_or_else(|| "TLS".to_owned(), |version| format!("{version:?}")))
}
