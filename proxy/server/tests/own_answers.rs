//! Answers that the proxy makes itself: what is refused, what they look like, and what becomes of the connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::{ClientAddress, LocalReplyConfig, Profile};
use sixfold_core::header_ops::{AppendAction, HeaderAddition, HeaderOps};
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{Chain, ChainBuilder, LocalReply, Plugin, Slot, Step};
use sixfold_core::regex::Regex;
use sixfold_core::route::{Action, BodyFormat, Route};
use sixfold_core::router::PathMatch;
use sixfold_core::stream::Stream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// A proxy with a log of codes, flags and details.
fn setup() -> (Setup, Arc<Lines>) {
    let (mut setup, lines) = (Setup::new(), Arc::<Lines>::default());
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED%\n";
    let format = Arc::new(Format::envoy(format).unwrap());
    setup.access_logs = vec![AccessLog { filter: None, format, sink: lines.clone() }];
    (setup, lines)
}

async fn only_line(lines: &Lines) -> String {
    eventually(|| !lines.0.lock().is_empty()).await;
    lines.0.lock().pop().unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_client_of_an_edge_does_not_choose_its_scheme_by_an_absolute_target() {
    let request = "GET https://b.test/ HTTP/1.1\r\nHost: a\r\n\r\n";
    let refused = "403 DPE http1.https_url_on_plaintext_connection 0";
    for (profile, use_remote_address, trusted_hops, want) in [
        (Profile::Envoy, true, 0, refused),
        // Somebody before us may have ended TLS.
        (Profile::Envoy, true, 1, "200 - via_upstream 0"),
        (Profile::Envoy, false, 0, "200 - via_upstream 0"),
        (Profile::Apisix, true, 0, "200 - via_upstream 0"),
    ] {
        let up = upstream(|_, _| ok("")).await;
        let (mut setup, lines) = setup();
        setup.profile = profile;
        setup.client_address = ClientAddress { use_remote_address, trusted_hops, ..ClientAddress::default() };
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let response = ask(proxy, request).await;
        assert_eq!(only_line(&lines).await, want, "{response}");
        assert_eq!(response.contains("onnection: close"), want == refused, "{response}");
        // A target of plain HTTP is served by all.
        assert!(ask(proxy, &request.replace("https", "http")).await.starts_with("HTTP/1.1 200 "));
    }
}

/// Does what `x-do` says: `answer`, at once or after a moment; `hang`.
fn act<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    let answer = || Step::Respond(LocalReply::new(418, "no", "said_so"));
    match stream.request.headers.get(&HeaderName::new("x-do").unwrap()) {
        Some(b"answer") => answer(),
        Some(b"wait, answer") => Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer()
        })),
        Some(b"hang") => Step::Wait(Box::pin(std::future::pending())),
        _ => Step::Continue,
    }
}

fn acting() -> Arc<Chain> {
    let mut chain = ChainBuilder::new();
    chain.add("acts", Plugin::of(()).access(act).build());
    Arc::new(chain.build())
}

fn post(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: t\r\n{fields}Content-Length: 5\r\n\r\nhello")
}

/// Whether the connection lives on after the answer to this, which is complete but for its last `held` bytes.
async fn lives_on(proxy: SocketAddr, request: &str, held: usize) -> bool {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(&request.as_bytes()[..request.len() - held]).await.unwrap();
    let first = read_message(&mut client).await.unwrap();
    if first.contains("onnection: close") {
        assert!(read_message(&mut client).await.is_none(), "{first}");
        return false;
    }
    client.write_all(get("/direct").as_bytes()).await.unwrap();
    let second = read_message(&mut client).await.unwrap();
    assert!(second.ends_with("\r\n\r\nfine"), "{first}{second}");
    true
}

#[tokio::test]
async fn a_body_that_came_while_the_answer_was_awaited_costs_no_connection() {
    // (what, of Envoy, of nginx)
    let cases = [
        (post("/dead", ""), true, true),
        (post("/dead", "").replace("Content-Length: 5\r\n\r\nhello", CHUNKED), true, true),
        (post("/dead", "x-do: wait, answer\r\n"), true, true),
        (post("/dead", "x-do: answer\r\n"), false, true),
        (post("/direct", ""), false, true),
        // More than may come.
        (
            post("/dead", "").replace("5\r\n\r\nhello", &format!("5000\r\n\r\n{}", "z".repeat(5000))),
            false,
            false,
        ),
    ];
    for (profile, nginx) in [(Profile::Envoy, false), (Profile::Apisix, true)] {
        let (mut setup, lines) = setup();
        setup.profile = profile;
        setup.max_body = Some(4096);
        setup.chain = acting();
        setup.cluster("dead", &[nobody()], |_| {});
        setup.route("/dead", "dead", |_| {});
        setup.routes.push(direct("/direct", "fine".into()));
        let (proxy, _) = setup.serve().await;
        for (request, of_envoy, of_nginx) in &cases {
            let want = if nginx { *of_nginx } else { *of_envoy };
            assert_eq!(lives_on(proxy, request, 0).await, want, "{profile:?}: {request}");
        }
        // What has not come can't be taken.
        assert!(!lives_on(proxy, &cases[0].0, 1).await);
        let line = lines.0.lock()[0].trim().to_owned();
        assert!(line.ends_with(" 5"), "{line}");
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";

#[tokio::test]
async fn a_request_that_came_whole_is_not_late() {
    let (mut setup, lines) = setup();
    setup.chain = acting();
    setup.timeouts.stream_idle = Some(Duration::from_millis(50));
    setup.cluster("dead", &[nobody()], |_| {});
    setup.route("/", "dead", |_| {});
    let (proxy, _) = setup.serve().await;
    let response = ask(proxy, &post("/", "x-do: hang\r\n")).await;
    assert!(response.starts_with("HTTP/1.1 504 "), "{response}");
    assert_eq!(only_line(&lines).await, "504 SI stream_idle_timeout 5");
    let response = ask(proxy, &post("/", "x-do: hang\r\n").replace(": 5", ": 6")).await;
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
}

#[tokio::test]
async fn nginx_keeps_the_connection_of_a_websocket_that_nobody_takes() {
    let (mut setup, _) = setup();
    setup.profile = Profile::Apisix;
    setup.upgrades = Box::new([("websocket".into(), true)]);
    setup.cluster("dead", &[nobody()], |_| {});
    setup.route("/dead", "dead", |_| {});
    setup.routes.push(direct("/direct", "fine".into()));
    let (proxy, _) = setup.serve().await;
    let request = get("/dead").replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(lives_on(proxy, &request, 0).await);
}

/// A chunk that is none, behind one that is.
const BAD_CHUNK: &str = "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\nzz\r\n";

/// Refuses in the place of the answer to one path.
fn replace<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    match stream.request.target.path() == b"/replaced" {
        true => Step::Respond(LocalReply::new(451, "no", "replaced")),
        false => Step::Continue,
    }
}

#[tokio::test]
async fn whoever_answers_the_route_changes_the_headers() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut setup, _) = setup();
    let mut chain = ChainBuilder::new();
    chain.add("acts", Plugin::of(()).access(act).header_filter(replace).build());
    setup.chain = Arc::new(chain.build());
    setup.timeouts.stream_idle = Some(Duration::from_millis(100));
    setup.cluster("silent", &[silent.local_addr().unwrap()], |_| {});
    setup.cluster("empty", &[], |_| {});
    setup.route("/empty", "empty", |_| {});
    setup.route("/replaced", "empty", |_| {});
    setup.route("/", "silent", |f| f.timeouts.request = None);
    let added = || HeaderAddition {
        name: HeaderName::new("x-routed").unwrap(),
        value: Format::text("yes"),
        action: AppendAction::AppendIfExistsOrAdd,
        keep_empty: false,
    };
    for one in &mut setup.routes {
        let ops = HeaderOps { add: [added()].into(), ..HeaderOps::default() };
        Arc::get_mut(one).unwrap().response_headers = ops;
    }
    let (proxy, _) = setup.serve().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (request, status) in [
        (get("/empty"), 503),
        (get("/").replace("Host", &format!("{upgrade}Host")), 403),
        (get("/"), 504),
        (get("/").replace("Host", "x-do: answer\r\nHost"), 418),
        (get("/").replace("Host", "x-do: hang\r\nHost"), 504),
        (get("/replaced"), 451),
        (format!("POST / HTTP/1.1\r\nHost: t\r\n{BAD_CHUNK}"), 400),
    ] {
        let response = ask(proxy, &request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{response}");
        assert_eq!(response.matches("x-routed: yes\r\n").count(), 1, "{request}{response}");
    }
    // No route was chosen.
    let response = ask(proxy, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(response.starts_with("HTTP/1.1 400 ") && !response.contains("x-routed"), "{response}");
}

#[tokio::test]
async fn every_fault_that_the_proxy_finds_has_the_page_of_nginx() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut setup, _) = setup();
    setup.profile = Profile::Apisix;
    setup.max_body = Some(4096);
    setup.timeouts.stream_idle = None;
    setup.timeouts.request_headers = Some(Duration::from_millis(50));
    setup.cluster("silent", &[silent.local_addr().unwrap()], |_| {});
    setup.cluster("empty", &[], |_| {});
    setup.cluster("dead", &[nobody()], |_| {});
    setup.route("/empty", "empty", |_| {});
    setup.route("/dead", "dead", |_| {});
    setup.route("/", "silent", |f| f.timeouts.read = Some(Duration::from_millis(50)));
    let (proxy, _) = setup.serve().await;
    for (request, status) in [
        (format!("POST / HTTP/1.1\r\nHost: t\r\n{BAD_CHUNK}"), 400),
        ("GET /\x01 HTTP/1.1\r\nHost: t\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHo".to_owned(), 408),
        ("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 9999\r\n\r\n".to_owned(), 413),
        (get("/dead"), 502),
        (get("/empty"), 503),
        (get("/"), 504),
    ] {
        let response = ask(proxy, &request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{response}");
        let is_page = response.contains("text/html") && response.contains("<center>openresty</center>");
        assert!(is_page, "{request}{response}");
    }
}

/// A path that many cold expressions had to be tried for was answered with 404, as if there were no route.
#[tokio::test]
async fn routes_that_were_not_looked_through_are_none_that_do_not_exist() {
    for profile in [Profile::Envoy, Profile::Apisix] {
        let up = upstream(|_, _| ok("")).await;
        let (mut setup, lines) = setup();
        setup.profile = profile;
        setup.cluster("a", &[up.address], |_| {});
        for i in 0..600 {
            let path = PathMatch::Regex(Regex::full(&format!("/.*{i:04x}(?:y|z)*[0-9]")).unwrap().into());
            setup.routes.push(Arc::new(Route { path, ..route("/", Action::NonForwarding) }));
        }
        setup.route("/", "a", |_| {});
        let (proxy, _) = setup.serve().await;
        let path: String = (0..600).map(|i| format!("{i:04x}")).collect();
        let request = format!("GET /{path}x HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut answers = Vec::new();
        for _ in 0..3 {
            ask(proxy, &request).await;
            answers.push(only_line(&lines).await);
        }
        assert_eq!(answers[0], "503 - route_search_cut_short 0");
        assert_eq!(answers[2], "200 - via_upstream 0", "what is compiled stays so");
    }
}

/// All answers of our own begin with their status, and end with where the request had gone.
fn formatted() -> LocalReplyConfig {
    let format = "own %RESPONSE_CODE% %LOCAL_REPLY_BODY% %UPSTREAM_REMOTE_ADDRESS%";
    let format = BodyFormat { format: Format::envoy(format).unwrap(), content_type: "text/plain".into() };
    LocalReplyConfig { mappers: Vec::new(), body_format: Some(Arc::new(format)) }
}

fn as_it_is<'a>(_: &'a (), stream: &'a mut Stream, _: Slot) -> Step<'a> {
    match stream.request.target.path() {
        b"/as-it-is" => Step::Respond(LocalReply { as_it_is: true, ..LocalReply::new(200, "", "itself") }),
        _ => Step::Continue,
    }
}

/// It was formatted like the others, and a client of gRPC got a status in its place.
#[tokio::test]
async fn what_a_plugin_answers_by_itself_is_not_formatted() {
    let mut setup = Setup::new();
    setup.local_reply = formatted();
    let mut chain = ChainBuilder::new();
    chain.add("answers", Plugin::of(()).access(as_it_is).build());
    setup.chain = Arc::new(chain.build());
    let proxy = setup.serve().await.0;
    for fields in ["", "Content-Type: application/grpc\r\n"] {
        let answer =
            whole(proxy, &format!("GET /as-it-is HTTP/1.1\r\nHost: t\r\n{fields}Connection: close\r\n\r\n"))
                .await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("content-length: 0\r\n"), "{answer}");
        assert!(!answer.contains("own ") && !answer.contains("grpc-status"), "{answer}");
    }
}

/// The answer was the upstream's, which no configuration changes, and told the attempts.
#[tokio::test]
async fn a_websocket_that_is_turned_down_is_an_answer_of_our_own() {
    for (local_reply, body) in [(LocalReplyConfig::default(), ""), (formatted(), "own 200  127.0.0.1:")] {
        let up = upstream(|_, _| b"HTTP/1.1 200 OK\r\nX-Up: 1\r\nContent-Length: 2\r\n\r\nhi".to_vec()).await;
        let (mut setup, lines) = setup();
        setup.local_reply = local_reply;
        setup.host.attempt_count_in_response = true;
        setup.upgrades = Box::new([("websocket".into(), true)]);
        setup.cluster("a", &[up.address], |_| {});
        setup.route("/", "a", |_| {});
        let proxy = setup.serve().await.0;
        let request = "GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let answer = whole(proxy, request).await;
        let (head, got) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("x-up: 1"), "{answer}");
        assert!(got.starts_with(body) && got.is_empty() == body.is_empty(), "{answer}");
        assert!(!head.contains("x-envoy-"), "{answer}");
        assert_eq!(only_line(&lines).await, "200 - websocket_handshake_unsuccessful 0");
    }
}

/// Attempts were told of whatever had been tried, and not where no endpoint was; an endpoint that nobody could
/// reach was named as one that was connected to.
#[tokio::test]
async fn the_routers_own_answers_tell_the_attempts() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new();
    setup.local_reply = formatted();
    setup.host.attempt_count_in_response = true;
    setup.cluster("empty", &[], |_| {});
    setup.cluster("dead", &[nobody()], |_| {});
    setup.cluster("silent", &[silent.local_addr().unwrap()], |_| {});
    let short = Some(Duration::from_millis(100));
    setup.route("/empty", "empty", |_| {});
    setup.route("/dead", "dead", |forward| forward.retry = retry("connect-failure", 1));
    setup.route("/slow", "silent", |forward| forward.timeouts.request = short);
    setup.route("/idle", "silent", |forward| forward.timeouts.idle = short);
    setup.route("/long", "silent", |forward| {
        (forward.timeouts.max_stream, forward.timeouts.by_stream) = (short, true);
    });
    let proxy = setup.serve().await.0;
    for (path, count) in [
        ("/empty", Some(1)),
        ("/dead", Some(2)),
        ("/slow", Some(1)),
        ("/idle", None),
        ("/long", None),
        ("/no", None),
    ] {
        let answer = ask(proxy, &get(path)).await;
        let told =
            answer.split_once("x-envoy-attempt-count: ").map(|(_, rest)| rest.split_once('\r').unwrap().0);
        assert_eq!(told, count.map(|count: u32| count.to_string()).as_deref(), "{path}: {answer}");
        let connected = ["/slow", "/idle", "/long"].contains(&path);
        assert_eq!(answer.contains(" 127.0.0.1:"), connected, "{path}: {answer}");
    }
}
