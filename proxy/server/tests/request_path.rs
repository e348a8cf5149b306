//! The request path over real sockets: bodies, reuse of connections, retries, deadlines, drain.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use parking_lot::Mutex;
use sixfold_core::access_log::AccessLog;
use sixfold_core::cluster::{Criteria, Policy};
use sixfold_core::format::Format;
use sixfold_core::header_ops::{AppendAction, HeaderAddition, HeaderOps};
use sixfold_core::headers::HeaderName;
use sixfold_core::matcher::HeaderTarget;
use sixfold_core::route::{
    Action, ClusterChoice, DirectResponse, Forward, ForwardOptions, HashInput, HashPolicy, HostRewrite,
    Route, Timeouts, WeightedCluster, WeightedClusters,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_request_goes_to_its_cluster_and_back_over_one_upstream_connection() {
    let up = upstream(|_, request| ok(request.lines().next().unwrap())).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    for i in 0..5 {
        client.write_all(get(&format!("/x{i}?q")).as_bytes()).await.unwrap();
        let response = read_message(&mut client).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.ends_with(&format!("GET /x{i}?q HTTP/1.1")), "{response}");
    }
    assert_eq!((up.connections.load(SeqCst), up.requests.load(SeqCst)), (1, 5));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let up = upstream(|_, request| ok(request.split(' ').nth(1).unwrap())).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all([get("/1"), get("/2"), get("/3")].concat().as_bytes()).await.unwrap();
    for i in 1..=3 {
        assert!(read_message(&mut client).await.unwrap().ends_with(&format!("/{i}")));
    }
}

#[tokio::test]
async fn bodies_pass_in_both_framings_and_any_size() {
    let up = upstream(|_, request| {
        let body = request.split_once("\r\n\r\n").unwrap().1;
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        )
        .into()
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let body = "z".repeat(300_000);
    let sized = format!("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let response = ask(proxy, &sized).await;
    assert_eq!(response.matches('z').count(), body.len());
    let chunked =
        "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let response = ask(proxy, chunked).await;
    assert!(response.contains("abc") && response.contains("de"), "{response}");
}

#[tokio::test]
async fn a_route_of_nothing_and_a_cluster_of_nothing_have_their_answers() {
    let mut setup = Setup::new();
    setup.cluster("empty", &[], |_| {});
    setup.route("/gone", "nobody", |_| {});
    setup.route("/empty", "empty", |_| {});
    let (proxy, _) = setup.serve().await;
    assert!(ask(proxy, &get("/")).await.starts_with("HTTP/1.1 404 Not Found\r\n"));
    assert!(ask(proxy, &get("/gone")).await.starts_with("HTTP/1.1 503 "));
    let response = ask(proxy, &get("/empty")).await;
    assert!(response.starts_with("HTTP/1.1 503 ") && response.ends_with("no healthy upstream"), "{response}");
}

/// A pseudo header, or Host by its name, chose no cluster.
#[tokio::test]
async fn a_cluster_may_be_named_by_any_header_of_the_request() {
    let up = upstream(|_, _| ok("")).await;
    let mut setup = Setup::new();
    setup.cluster("test", &[up.address], |_| {});
    for (prefix, name) in
        [("/pseudo", ":authority"), ("/host", "Host"), ("/other", "x-to"), ("/none", ":nonsense")]
    {
        let to = ClusterChoice::Header(HeaderTarget::of_request(name).into(), setup.clusters.clone());
        setup.routes.push(Arc::new(route(prefix, Action::Forward(Forward::to(to)))));
    }
    let (proxy, _) = setup.serve().await;
    for (path, status) in [("/pseudo", 200), ("/host", 200), ("/other", 503), ("/none", 503)] {
        let response = ask(proxy, &get(path)).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
    }
    let other = ask(proxy, "GET /other HTTP/1.1\r\nHost: a\r\nX-To: test\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 200 "), "{other}");
}

#[tokio::test]
async fn retries_replay_the_body_and_stop_at_their_number() {
    let up = upstream(|n, request| {
        let body = request.split_once("\r\n\r\n").unwrap().1;
        if n < 2 || body == "always" { status(503) } else { ok(body) }
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |f| f.retry = retry("5xx", 2));
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(response.starts_with("HTTP/1.1 200 OK") && response.ends_with("hello"), "{response}");
    assert_eq!(up.requests.load(SeqCst), 3);
    let response = ask(proxy, "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\n\r\nalways").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(up.requests.load(SeqCst), 6);
}

#[tokio::test]
async fn an_upstream_that_closes_is_a_503_and_a_dead_one_too() {
    let up = upstream(|_, _| Vec::new()).await;
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut setup = Setup::new();
    setup.cluster("closer", &[up.address], |_| {});
    setup.cluster("dead", &[dead], |_| {});
    setup.route("/closer", "closer", |_| {});
    setup.route("/dead", "dead", |_| {});
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &get("/closer")).await;
    assert!(response.ends_with("reset reason: connection termination"), "{response}");
    let response = ask(proxy, &get("/dead")).await;
    assert!(response.ends_with("reset reason: remote connection failure"), "{response}");
}

#[tokio::test]
async fn a_slow_upstream_is_a_504_and_its_connection_is_not_used_again() {
    let up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new();
    setup.cluster("a", &[up.local_addr().unwrap()], |_| {});
    setup.route("/slow", "a", |f| f.timeouts.request = Some(Duration::from_millis(300)));
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &get("/slow")).await;
    assert!(
        response.starts_with("HTTP/1.1 504 ") && response.ends_with("upstream request timeout"),
        "{response}"
    );
    let (mut slow, _) = up.accept().await.unwrap();
    // The proxy has closed it, or hears now what nobody waits for.
    let _ = slow.write_all(&ok("late")).await;
    let asked = tokio::spawn(async move { ask(proxy, &get("/")).await });
    let (mut other, _) = tokio::time::timeout(Duration::from_secs(10), up.accept()).await.unwrap().unwrap();
    read_message(&mut other).await.unwrap();
    other.write_all(&ok("in time")).await.unwrap();
    let response = asked.await.unwrap();
    assert!(response.ends_with("in time"), "{response}");
}

#[tokio::test]
async fn a_truncated_response_is_cut_for_the_client_too() {
    let up = upstream(|n, _| match n {
        0 => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec(),
        _ => Vec::new(),
    })
    .await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    // Its head comes before that.
    setup.route("/", "a", |f| f.timeouts.request = Some(Duration::from_secs(3)));
    let (proxy, _) = setup.serve().await;
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(get("/").as_bytes()).await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    let text = String::from_utf8(all).unwrap();
    assert!(text.contains("content-length: 10") && text.ends_with("abc"), "{text}");
}

#[tokio::test]
async fn bytes_that_are_no_request_are_refused_and_the_connection_ends() {
    let (proxy, _) = Setup::new().serve().await;
    for (bytes, status) in [
        ("GARBAGE\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.0\r\n\r\n", "426 Upgrade Required"),
        ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "501 Not Implemented"),
    ] {
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(bytes.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        let text = String::from_utf8(all).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{text}");
        assert!(text.contains("connection: close\r\n"), "{text}");
    }
}

/// An upstream that counts what it is asked, and gives one answer for each permit.
async fn held() -> (std::net::SocketAddr, Arc<AtomicUsize>, Arc<Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, permits) = (asked.clone(), answers.clone());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (count, permits) = (count.clone(), permits.clone());
            tokio::spawn(async move {
                while read_message(&mut socket).await.is_some() {
                    count.fetch_add(1, SeqCst);
                    permits.acquire().await.unwrap().forget();
                    if socket.write_all(&ok("done")).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked, answers)
}

#[tokio::test]
async fn draining_ends_idle_connections_and_closes_after_the_response() {
    let (up, asked, answers) = held().await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, drain) = setup.serve().await;
    let mut idle = TcpStream::connect(proxy).await.unwrap();
    let mut busy = TcpStream::connect(proxy).await.unwrap();
    answers.add_permits(1);
    idle.write_all(get("/").as_bytes()).await.unwrap();
    read_message(&mut idle).await.unwrap();
    busy.write_all(get("/").as_bytes()).await.unwrap();
    eventually(|| asked.load(SeqCst) == 2).await;
    drain.start(sixfold_server::drain::DrainStrategy::Immediate, None);
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    answers.add_permits(1);
    let response = read_message(&mut busy).await.unwrap();
    assert!(response.contains("connection: close") && response.ends_with("done"), "{response}");
    assert_eq!(busy.read(&mut [0; 1]).await.unwrap(), 0);
}

// A request that was on its way to an idle connection when draining began was lost: the connection was closed at once.
#[tokio::test]
async fn a_request_on_its_way_when_draining_begins_is_answered() {
    let up = upstream(|_, _| ok("done")).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, drain) = setup.serve().await;
    let mut kept = TcpStream::connect(proxy).await.unwrap();
    kept.write_all(get("/").as_bytes()).await.unwrap();
    read_message(&mut kept).await.unwrap();
    let mut fresh = TcpStream::connect(proxy).await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    drain.start(sixfold_server::drain::DrainStrategy::Immediate, None);
    tokio::time::sleep(Duration::from_millis(30)).await;
    for client in [&mut kept, &mut fresh] {
        client.write_all(get("/").as_bytes()).await.unwrap();
        let response = read_message(client).await.unwrap();
        assert!(response.contains("connection: close") && response.ends_with("done"), "{response}");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_by_the_same_path() {
    let up = upstream(|_, request| ok(request.split_once("\r\n\r\n").unwrap().1)).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let socket = TcpStream::connect(proxy).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for body in ["", "hello"] {
        let request =
            http::Request::post("http://test/x").header("content-length", body.len()).body(()).unwrap();
        let (response, mut send) = client.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            send.send_data(bytes::Bytes::from_static(body.as_bytes()), true).unwrap();
        }
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut got = Vec::new();
        let mut stream = response.into_body();
        while let Some(data) = stream.data().await {
            got.extend_from_slice(&data.unwrap());
        }
        assert_eq!(got, body.as_bytes());
    }
}

#[tokio::test]
async fn a_websocket_that_the_upstream_turns_down_ends_with_its_head() {
    let up = upstream(|_, request| {
        let body = "Content-Type: text/html\r\nContent-Length: 5\r\nX-Up: 1\r\n\r\nhello";
        let status = if request.starts_with("GET /denied") { "403 Forbidden" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\n{body}").into_bytes()
    })
    .await;
    let mut setup = Setup::new();
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let upgrade = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    };
    let response = whole(proxy, &upgrade("/")).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("x-up: 1"), "{response}");
    assert!(!head.contains("content-type") && !head.contains("content-length: 5"), "{response}");
    assert!(head.contains("connection: close") && body.is_empty(), "{response}");
    // An error of the upstream is passed on whole.
    let response = whole(proxy, &upgrade("/denied")).await;
    assert!(response.starts_with("HTTP/1.1 403 ") && response.ends_with("hello"), "{response}");
}

/// The client got the 101 and what followed it, though it had asked for no other protocol.
#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_an_error_of_the_upstream() {
    let up =
        upstream(|_, _| b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nraw bytes".to_vec()).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    setup.route("/", "a", |_| {});
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &get("/")).await;
    assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
    assert!(response.ends_with("reset reason: protocol error"), "{response}");
}

#[tokio::test]
async fn a_content_type_that_the_route_adds_to_a_direct_response_is_the_only_one() {
    let mut setup = Setup::new();
    let direct = |prefix: &str, ops: HeaderOps| {
        let response = DirectResponse { status: 200, body: "{}".into(), body_format: None };
        let action = Action::Direct(response.into());
        Arc::new(Route { response_headers: ops, ..route(prefix, action) })
    };
    let json = HeaderAddition {
        name: HeaderName::new("content-type").unwrap(),
        value: Format::text("application/json"),
        action: AppendAction::AppendIfExistsOrAdd,
        keep_empty: false,
    };
    setup.routes = vec![
        direct("/json", HeaderOps { add: [json].into(), ..HeaderOps::default() }),
        direct("/", HeaderOps::default()),
    ];
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &get("/json")).await;
    assert_eq!(response.matches("content-type").count(), 1, "{response}");
    assert!(response.contains("content-type: application/json\r\n"), "{response}");
    assert!(ask(proxy, &get("/")).await.contains("content-type: text/plain\r\n"));
}

/// There was none.
#[tokio::test]
async fn a_direct_response_that_created_or_redirects_says_where() {
    let mut setup = Setup::new();
    for status in [200, 201, 202, 299, 300, 304, 399, 400, 503] {
        let response = DirectResponse { status, body: "".into(), body_format: None };
        setup.routes.push(Arc::new(route(&format!("/{status}"), Action::Direct(response.into()))));
    }
    let (proxy, _) = setup.serve().await;
    for status in [200, 201, 202, 299, 300, 304, 399, 400, 503] {
        let response = ask(proxy, &get(&format!("/{status}/a?b=1"))).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        let located = response.contains(&format!("\r\nlocation: http://test/{status}/a?b=1\r\n"));
        assert_eq!(located, [201, 300, 304, 399].contains(&status), "{response}");
        assert_eq!(response.contains("location"), located, "{response}");
    }
}

#[tokio::test]
async fn a_grpc_timeout_that_bounds_the_stream_ends_it_with_deadline_exceeded() {
    let seen = Arc::new(Mutex::new(String::new()));
    let heads = seen.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let up = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let head = read_message(&mut socket).await.unwrap();
        heads.lock().push_str(&head);
        // It never answers.
        let _ = read_message(&mut socket).await;
    });
    let mut setup = Setup::new();
    setup.cluster("a", &[up], |_| {});
    setup.route("/", "a", |f| {
        f.timeouts = Timeouts {
            by_stream: true,
            grpc_timeout_header_max: Some(Duration::ZERO),
            ..Timeouts::default()
        };
    });
    let (proxy, _) = setup.serve().await;
    let head = "POST /s/m HTTP/1.1\r\nHost: t\r\nContent-Type: application/grpc\r\nTE: trailers\r\n";
    let response = ask(proxy, &format!("{head}grpc-timeout: 200m\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 200 OK") && response.contains("grpc-status: 4\r\n"), "{response}");
    let head = seen.lock().to_ascii_lowercase();
    assert!(head.contains("grpc-timeout: 200m\r\n"), "{head}");
    assert!(!head.contains("x-envoy-expected-rq-timeout-ms"), "{head}");
}

#[tokio::test]
async fn header_changes_of_the_route_see_what_the_upstream_is_told() {
    let up = upstream(|n, request| if n == 2 { status(503) } else { ok(request) }).await;
    let addition = |name: &str, value: &str| HeaderAddition {
        name: HeaderName::new(name).unwrap(),
        value: Format::envoy(value).unwrap(),
        action: AppendAction::AppendIfExistsOrAdd,
        keep_empty: false,
    };
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    for path in ["/seen", "/removed", "/again"] {
        setup.route(path, "a", |f| f.retry = retry("5xx", 1));
        let route = Arc::get_mut(setup.routes.last_mut().unwrap()).unwrap();
        route.request_headers = match path {
            "/seen" => {
                let add = [addition("x-seen", "%REQ(x-envoy-expected-rq-timeout-ms)%")].into();
                HeaderOps { add, ..HeaderOps::default() }
            }
            _ => {
                let remove = [HeaderName::new("x-envoy-expected-rq-timeout-ms").unwrap()].into();
                HeaderOps { remove, ..HeaderOps::default() }
            }
        };
    }
    let (proxy, _) = setup.serve().await;
    let told = "x-envoy-expected-rq-timeout-ms: ";
    let seen = ask(proxy, &get("/seen")).await;
    assert!(seen.contains(&format!("{told}15000\r\n")) && seen.contains("x-seen: 15000\r\n"), "{seen}");
    let removed = ask(proxy, &get("/removed")).await;
    assert!(!removed.contains(told), "{removed}");
    // A further attempt is told what is left to it, whatever the first one was told.
    let again = ask(proxy, &get("/again")).await;
    assert!(again.starts_with("HTTP/1.1 200 ") && again.contains(told), "{again}");
}

/// An upstream whose connection ends so after these bytes.
async fn ends(said: &'static str, reset: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_message(&mut socket).await.unwrap();
            socket.write_all(said.as_bytes()).await.unwrap();
            if reset {
                // What was said is read first.
                clock::settle().await;
                socket.set_zero_linger().unwrap();
            }
        }
    });
    address
}

#[tokio::test]
async fn a_response_that_breaks_off_breaks_the_protocol() {
    let body = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf";
    for (said, reset, want) in [
        ("", false, "503 UC upstream_reset_before_response_started{connection_termination}"),
        ("", true, "503 UC upstream_reset_before_response_started{connection_termination}"),
        ("HTTP/1.1 200 OK\r\nX", false, "502 UPE upstream_reset_before_response_started{protocol_error}"),
        ("HTTP/1.1 200 OK\r\nX", true, "502 UPE upstream_reset_before_response_started{protocol_error}"),
        (body, false, "200 UPE upstream_reset_after_response_started{protocol_error}"),
        (body, true, "200 UPE upstream_reset_after_response_started{protocol_error}"),
        ("HTTP/1.1 200 OK\r\n\r\nwhole", false, "200 - via_upstream"),
    ] {
        let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
        let format = Format::envoy("%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%").unwrap();
        let log = AccessLog { filter: None, format: Arc::new(format), sink: lines.clone() };
        setup.access_logs = vec![log];
        setup.cluster("a", &[ends(said, reset).await], |_| {});
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let mut client = TcpStream::connect(proxy).await.unwrap();
        client.write_all(get("/").as_bytes()).await.unwrap();
        eventually(|| !lines.0.lock().is_empty()).await;
        let line = lines.0.lock()[0].trim().to_owned();
        assert!(line.starts_with(want), "{said:?} {reset}: {line}");
    }
}

/// Every cluster sent the cookie, as if it would bring the client back to its endpoint.
#[tokio::test]
async fn a_cookie_is_made_for_a_balancer_that_hashes() {
    let up = upstream(|_, _| ok("")).await;
    let mut setup = Setup::new();
    let maglev = Policy::Maglev { table_size: 11, use_hostname: false };
    setup.cluster("plain", &[up.address], |_| {});
    setup.cluster("hashed", &[up.address], |config| config.balance.policy = maglev);
    for cluster in ["plain", "hashed"] {
        let ttl = Some(Duration::from_secs(10));
        let input = HashInput::Cookie { name: "c".into(), ttl, path: "".into(), attributes: Box::default() };
        setup.route(&format!("/{cluster}"), cluster, |forward| {
            forward.hash = [HashPolicy { input, terminal: false }].into();
        });
    }
    let (proxy, _) = setup.serve().await;
    for (cluster, made) in [("plain", false), ("hashed", true)] {
        let response = ask(proxy, &get(&format!("/{cluster}"))).await;
        assert_eq!(response.contains("set-cookie: c="), made, "{response}");
    }
}

/// Changes saw no attempt, and the host that came in place of the weighted cluster's.
#[tokio::test]
async fn changes_of_requests_see_the_first_attempt_and_the_host_of_the_weighted_cluster() {
    let set = |name: &str, format: &str| {
        let addition = HeaderAddition {
            name: HeaderName::new(name).unwrap(),
            value: Format::envoy(format).unwrap(),
            action: AppendAction::OverwriteIfExistsOrAdd,
            keep_empty: false,
        };
        HeaderOps { remove: Box::default(), add: Box::new([addition]) }
    };
    let up = upstream(|_, request| ok(request)).await;
    let mut setup = Setup::new();
    setup.cluster("a", &[up.address], |_| {});
    for (prefix, host_rewrite) in
        [("/both", Some(HostRewrite::Literal(b"route"[..].into()).into())), ("/", None)]
    {
        let member = WeightedCluster {
            cluster: ClusterChoice::Named(setup.clusters.cell("a")),
            weight: 1,
            request_headers: set("x-member", "%REQ(host)%"),
            response_headers: HeaderOps::default(),
            host_rewrite: Some("member".into()),
            metadata_match: Criteria::default(),
            chain: None,
        };
        let clusters =
            WeightedClusters { clusters: Box::new([member]), total: 1, random_header: None, use_hash: false };
        let to = Forward::to(ClusterChoice::Weighted(clusters.into()));
        let options = ForwardOptions { host_rewrite, ..ForwardOptions::default() };
        let mut route = route(prefix, Action::Forward(Forward { options: options.into(), ..to }));
        route.request_headers = set("x-route", "%REQ(host)% %UPSTREAM_REQUEST_ATTEMPT_COUNT%");
        setup.routes.push(Arc::new(route));
    }
    let proxy = setup.serve().await.0;
    for (path, host) in [("/both", "route"), ("/one", "member")] {
        let answer = ask(proxy, &get(path)).await.to_ascii_lowercase();
        for line in [format!("host: {host}"), "x-member: test".to_owned(), "x-route: member 1".to_owned()] {
            assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
        }
    }
}
