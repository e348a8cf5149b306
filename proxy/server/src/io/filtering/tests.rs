#![allow(clippy::unwrap_used)]
use super::*;
use crate::buffer::ReadBuffer;
use crate::deadline::{Deadline, within};
use crate::io::{Io, Socket, Transport};
use crate::tls::Unnamed;
use sixfold_core::tls::{
    ClientContext, ClientSettings, Identity, Pem, ServerContext, ServerSettings, ServerTls,
};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers so many bytes whenever the client sends something, and ends the connection or goes on.
#[derive(Debug)]
struct Talks {
    bytes: usize,
    closes: bool,
    asked: AtomicUsize,
}

impl Talks {
    fn new(bytes: usize, closes: bool) -> Arc<Talks> {
        Arc::new(Talks { bytes, closes, asked: AtomicUsize::new(0) })
    }
}

impl ConnectionFilter for Talks {
    fn on_data(&self, _: &mut Stream, _: Slot, bytes: &mut ClientBytes<'_>) -> FilterStep {
        self.asked.fetch_add(1, Relaxed);
        bytes.answer.resize(bytes.answer.len() + self.bytes, b'x');
        if self.closes { FilterStep::Close(Closing::default()) } else { FilterStep::Continue }
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, client)
}

async fn behind(mut io: Io, filter: Arc<Talks>) -> Io {
    let any = "127.0.0.1:1".parse().unwrap();
    let filters: Arc<[Arc<dyn ConnectionFilter>]> = Arc::new([filter]);
    let begun = Filtering::begin(&filters, Stream::new(Arc::new(Connection::plain(any, any)))).await;
    io.filter(begun.unwrap_or_else(|refused| refused));
    io
}

/// Reads once; 0 is the end, of whatever kind.
async fn fill(io: &mut Io) -> usize {
    let (mut read, mut deadline) = (ReadBuffer::default(), Deadline::after(Duration::from_secs(30)));
    within(&mut deadline, |_, cx| read.poll_fill(io, cx)).await.unwrap().unwrap_or(0)
}

/// What the client was slow to read of it was lost.
#[tokio::test]
async fn what_a_filter_says_before_it_ends_the_connection_is_all_sent() {
    const LONG: usize = 24 << 20;
    let (server, mut client) = sockets().await;
    let mut io = behind(Io::plain(Socket::tcp(server)), Talks::new(LONG, true)).await;
    let listens = async {
        client.write_all(b"?").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.map(|_| heard.len())
    };
    let serves = async move {
        assert_eq!(fill(&mut io).await, 0);
    };
    assert_eq!(tokio::join!(serves, listens).1.unwrap(), LONG);
}

/// What TLS had taken and the socket had not was never sent.
#[tokio::test]
async fn an_answer_is_flushed_though_nothing_else_is_written() {
    const PIECE: usize = 32 << 10;
    let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = Identity { chain: Pem::Inline(chain.into()), key: Pem::Inline(key.into()) };
    let settings = ServerSettings { identities: vec![identity], ..ServerSettings::default() };
    let tls = ServerTls::single(ServerContext::new(settings).unwrap());
    let (server, client) = sockets().await;
    let config = ClientContext::new(ClientSettings::default()).unwrap().config(crate::connect::Alpn::None);
    let name = rustls_pki_types::ServerName::try_from("a.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut limit = Deadline::after(Duration::from_secs(30));
    let accept = crate::tls::accept(Socket::tcp(server), &tls, Unnamed::Close, &mut limit);
    let (accepted, client) = tokio::join!(accept, connector.connect(name, client));
    let (accepted, mut client) = (accepted.unwrap(), client.unwrap());
    let filter = Talks::new(PIECE, false);
    let mut io = behind(accepted.io, filter.clone()).await;
    while !io.filtering().unwrap().is_unflushed() {
        client.write_all(b"?").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(fill(&mut io).await, 1);
    }
    assert!(io.filtering().unwrap().answer().is_empty());
    let listens = async {
        let mut heard = vec![0; filter.asked.load(Relaxed) * PIECE];
        let heard = tokio::time::timeout(Duration::from_secs(20), client.read_exact(&mut heard)).await;
        client.shutdown().await.unwrap();
        heard.is_ok_and(|heard| heard.is_ok())
    };
    assert!(tokio::join!(fill(&mut io), listens).1, "the end of it never came");
}

/// Takes the first thing that the client says for itself, and says something before all that others do.
#[derive(Debug)]
struct Greets;

impl ConnectionFilter for Greets {
    fn on_write(&self, _: &mut Stream, _: Slot, answer: &mut Vec<u8>) {
        answer.extend_from_slice(b"hi ");
    }

    fn on_data(&self, _: &mut Stream, _: Slot, bytes: &mut ClientBytes<'_>) -> FilterStep {
        bytes.received.clear();
        FilterStep::Done
    }
}

/// Nothing being left of what had come was taken for the client's end.
#[tokio::test]
async fn a_filter_may_take_all_that_has_come_and_speak_first() {
    let (server, mut client) = sockets().await;
    let any = "127.0.0.1:1".parse().unwrap();
    let filters: Arc<[Arc<dyn ConnectionFilter>]> = Arc::new([Arc::new(Greets)]);
    let begun = Filtering::begin(&filters, Stream::new(Arc::new(Connection::plain(any, any)))).await;
    let mut io = Io::plain(Socket::tcp(server));
    io.filter(begun.unwrap_or_else(|refused| refused));
    let mut deadline = Deadline::after(Duration::from_secs(30));
    for word in ["one", "two"] {
        let written = within(&mut deadline, |_, cx| io.poll_write(cx, word.as_bytes())).await;
        assert_eq!(written.unwrap().unwrap(), 3);
    }
    let mut heard = [0; 9];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hi onetwo");
    client.write_all(b"for the filter").await.unwrap();
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.write_all(b"rest").await.unwrap();
    };
    assert_eq!(tokio::join!(fill(&mut io), later).0, 4);
}
