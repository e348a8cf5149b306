//! The floor of the load tests: a forwarder of TCP connections on a single-threaded Tokio that looks at nothing.
//!
//! `tcp-forward LISTEN UPSTREAM`, both as `ADDRESS:PORT`. What a proxy spends above this is the price of HTTP.

use std::env;
use std::io::{self, Error, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BUFFER: usize = 16 * 1024;

fn main() -> io::Result<()> {
    let mut words = env::args().skip(1);
    let (Some(listen), Some(upstream)) = (words.next(), words.next()) else {
        return Err(Error::new(ErrorKind::InvalidInput, "usage: tcp-forward LISTEN UPSTREAM"));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&listen, upstream))
}

async fn serve(listen: &str, upstream: String) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (downstream, _) = listener.accept().await?;
        let upstream = upstream.clone();
        tokio::spawn(async move {
            if let Err(error) = forward(downstream, &upstream).await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

/// Both directions in one task, as a proxy drives its two connections.
async fn forward(mut downstream: TcpStream, upstream: &str) -> io::Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    downstream.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (mut there, mut back) = (vec![0; BUFFER], vec![0; BUFFER]);
    loop {
        let (bytes, to) = tokio::select! {
            read = downstream.read(&mut there) => (there.get(..read?), &mut upstream),
            read = upstream.read(&mut back) => (back.get(..read?), &mut downstream),
        };
        match bytes {
            Some(bytes) if !bytes.is_empty() => to.write_all(bytes).await?,
            _ => return Ok(()),
        }
    }
}
