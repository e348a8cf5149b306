#![allow(clippy::unwrap_used)]
use super::*;
use crate::hcm::ApisixPath;
use crate::stream::fixture::stream;

fn envoy(normalize: bool, merge: bool, escaped: EscapedSlashes) -> PathOptions {
    PathOptions { normalize, merge_slashes: merge, escaped_slashes: escaped, ..PathOptions::default() }
}

#[track_caller]
fn paths(options: PathOptions, cases: &[(&str, &str)]) {
    for (raw, want) in cases {
        let mut s = stream(raw, &[]);
        assert_eq!(prepare(&options, &mut s), Prepared::Ready, "{raw}");
        assert_eq!(String::from_utf8_lossy(s.request.target.full()), *want, "{raw}");
    }
}

#[test]
fn nothing_is_normalised_by_default() {
    let same = |p| (p, p);
    paths(
        envoy(false, false, EscapedSlashes::Keep),
        &["/x/../admin", "//admin", "/%61dmin", "/x%2f..%2fadmin", "/./admin", "/a%5cb"].map(same),
    );
}

#[test]
fn slashes_merge_in_the_path_alone() {
    paths(
        envoy(false, true, EscapedSlashes::Keep),
        &[
            ("//admin", "/admin"),
            ("/a//b///c", "/a/b/c"),
            ("/a//b?x=//y", "/a/b?x=//y"),
            ("/a//", "/a/"),
            ("///", "//"),
            ("/x//../admin", "/x/../admin"),
        ],
    );
}

#[test]
fn dot_segments_go_before_slashes_merge() {
    paths(
        envoy(true, true, EscapedSlashes::Keep),
        &[
            ("/x//../admin", "/x/admin"),
            ("/x/..//admin", "/admin"),
            ("//x//..//admin", "/x/admin"),
            ("/a/%2e%2e//admin", "/admin"),
        ],
    );
}

#[test]
fn normalisation_is_chromiums() {
    paths(
        envoy(true, false, EscapedSlashes::Keep),
        &[
            ("/%61%7E", "/a~"),
            ("/a\\b", "/a/b"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/..;x/b", "/b"),
            ("/.;/admin", "/admin"),
            ("/a/.;x=1;y/b", "/a/b"),
            ("/a/%2e;x/b", "/a/b"),
            ("/a/%2E.;x/b", "/b"),
            ("/a/.;", "/a/"),
            ("/a/..;", "/"),
            ("/a/b/..;x\\y/c", "/a/c"),
            ("/a/.b;x/..c;d/;e", "/a/.b;x/..c;d/;e"),
            ("/a/...", "/a/..."),
            ("/a.b/.c", "/a.b/.c"),
            ("/a|b\"<>", "/a%7Cb%22%3C%3E"),
            ("/%2f%aB", "/%2f%aB"),
            ("/%zz", "/%zz"),
            ("/%%3041", "/%25041"),
            ("/a//b", "/a//b"),
            ("/a?b=/../c", "/a?b=/../c"),
        ],
    );
    for bad in ["/%00", "/a%00b"] {
        let options = envoy(true, false, EscapedSlashes::Keep);
        assert_eq!(prepare(&options, &mut stream(bad, &[])), FAILED);
    }
}

#[test]
fn escaped_slashes_are_kept_refused_redirected_or_decoded() {
    let reject = envoy(false, false, EscapedSlashes::Reject);
    for bad in ["/a%2Fb", "/a%5Cb", "/a%2fb"] {
        assert_eq!(prepare(&reject, &mut stream(bad, &[])), FAILED);
    }
    paths(reject, &[("/a/b?x=%2F", "/a/b?x=%2F"), ("/a%252Fb", "/a%252Fb")]);
    let redirect = envoy(false, false, EscapedSlashes::UnescapeAndRedirect);
    for (raw, to) in [("/a%2Fb?x=%2F", "/a/b?x=%2F"), ("/a%5Cb", "/a\\b"), ("/x%2F..%2Fadmin", "/x/../admin")]
    {
        let prepared = prepare(&redirect, &mut stream(raw, &[]));
        assert_eq!(prepared, Prepared::Redirect(to.as_bytes().to_vec()));
    }
    paths(redirect, &[("/a/b", "/a/b")]);
    // The redirect went out before anything else was looked at.
    let normalised = envoy(true, true, EscapedSlashes::UnescapeAndRedirect);
    assert_eq!(prepare(&normalised, &mut stream("/a%2Fb%00", &[])), FAILED);
    assert_eq!(
        prepare(&normalised, &mut stream("/x%2F..%2F%2fadmin?q", &[])),
        Prepared::Redirect(b"/admin?q".to_vec())
    );
    paths(
        envoy(true, true, EscapedSlashes::UnescapeAndForward),
        &[
            ("/a%2Fb?x=%2F", "/a/b?x=%2F"),
            ("/a%5Cb", "/a/b"),
            ("/x%2F..%2Fadmin", "/admin"),
            ("/x%2f%2fadmin", "/x/admin"),
        ],
    );
}

#[test]
fn fragments_and_missing_paths_are_refused() {
    let options = PathOptions::default();
    assert_eq!(prepare(&options, &mut stream("/a#b", &[])), FAILED);
    assert_eq!(prepare(&options, &mut stream("*", &[])), Prepared::Reject(404, "absolute_path_rejected"));
    assert_eq!(prepare(&options, &mut stream("", &[])), Prepared::Reject(404, "missing_path_rejected"));
    let mut connect = stream("", &[]);
    connect.request.method = Method::CONNECT;
    assert_eq!(prepare(&options, &mut connect), Prepared::Ready);
}

#[test]
fn a_fragment_is_cut_where_it_does_not_refuse_the_request() {
    let cut = PathOptions { cut_fragment: true, normalize: true, ..PathOptions::default() };
    paths(
        cut,
        &[("/a#b", "/a"), ("/a?b=c#d?e", "/a?b=c"), ("/a#b?c", "/a"), ("/x/../a#", "/a"), ("/#/..", "/")],
    );
}

#[test]
fn hosts_lose_what_the_options_say() {
    let host = |options: PathOptions, host: &str| {
        let mut s = stream("/", &[]);
        s.request.authority = host.as_bytes().to_vec();
        assert_eq!(prepare(&options, &mut s), Prepared::Ready);
        String::from_utf8(s.request.authority).unwrap()
    };
    let any = PathOptions { strip_any_port: true, ..PathOptions::default() };
    let matching = PathOptions { strip_matching_port: true, ..PathOptions::default() };
    let dot = PathOptions { strip_trailing_dot: true, ..PathOptions::default() };
    assert_eq!(host(any, "a:1"), "a");
    assert_eq!(host(any, "[::1]:1"), "[::1]");
    assert_eq!(host(matching, "a:80"), "a:80");
    assert_eq!(host(matching, "a:9080"), "a");
    assert_eq!(host(dot, "foo.com."), "foo.com");
    assert_eq!(host(dot, "foo.com.:80"), "foo.com:80");
    assert_eq!(host(PathOptions::default(), "foo.com."), "foo.com.");
}

fn apisix(options: ApisixPath, raw: &str) -> Result<Stream, Prepared> {
    let options = PathOptions { apisix: Some(options), ..PathOptions::default() };
    let mut s = stream(raw, &[]);
    match prepare(&options, &mut s) {
        Prepared::Ready => Ok(s),
        other => Err(other),
    }
}

#[test]
fn nginx_decodes_resolves_and_merges() {
    for (raw, want) in [
        ("/a/b", "/a/b"),
        ("/a//b", "/a/b"),
        ("/a/./b/../c", "/a/c"),
        ("/a/..", "/"),
        ("/a/b/.", "/a/b/"),
        ("/%61%2f..%2Fb", "/b"),
        ("/a%2F%2e%2e%2Fb", "/b"),
        ("/a%20b", "/a b"),
        ("/a%3Fb", "/a?b"),
        ("/...", "/..."),
        ("/.a/..b", "/.a/..b"),
    ] {
        assert_eq!(normalize(raw).as_deref(), Some(want.as_bytes()), "{raw}");
    }
    for bad in ["/..", "/a/../..", "/%00", "/%zz", "/%+1", "/%2", "/%2e%2e/"] {
        assert_eq!(normalize(bad), None, "{bad}");
    }
    fn normalize(raw: &str) -> Option<Cow<'_, [u8]>> {
        super::nginx::normalize(raw.as_bytes())
    }
}

#[test]
fn apisix_matches_the_decoded_path_and_sends_a_safe_one() {
    let s = apisix(ApisixPath::default(), "/a%20b//c?x=%2F").unwrap();
    assert_eq!(s.var("uri"), Some(&b"/a b/c"[..]));
    assert_eq!(s.var("request_uri"), Some(&b"/a b/c?x=%2F"[..]));
    assert_eq!(s.var("real_request_uri"), Some(&b"/a%20b//c?x=%2F"[..]));
    assert_eq!(s.request.target.full(), b"/a%20b/c?x=%2F");
    assert_eq!(s.original_target, b"/a%20b//c?x=%2F");
    let plain = apisix(ApisixPath::default(), "/a/c?x").unwrap();
    assert!(plain.vars.is_empty() && plain.original_target.is_empty());
    let fragment = apisix(ApisixPath::default(), "/a?b#c").unwrap();
    assert_eq!(fragment.request.target.full(), b"/a?b");
    assert_eq!(apisix(ApisixPath::default(), "/a/../..").err(), Some(Prepared::Reject(400, "")));
}

#[test]
fn apisixs_upstreams_get_the_target_that_was_sent_unless_a_plugin_has_made_it() {
    let sent = |settled: bool| {
        let mut stream = apisix(ApisixPath::default(), "/a%5Fb%20c?q=%5F").unwrap();
        if settled {
            settle_target(&mut stream);
        }
        restore_target(&mut stream);
        String::from_utf8(stream.request.target.full().to_vec()).unwrap()
    };
    assert_eq!([sent(false), sent(true)], ["/a%5Fb%20c?q=%5F", "/a_b%20c?q=%5F"]);
}

#[test]
fn apisix_options_change_what_is_matched() {
    let tail = ApisixPath { delete_tail_slash: true, ..ApisixPath::default() };
    assert_eq!(apisix(tail, "/a/").unwrap().var("uri"), Some(&b"/a"[..]));
    assert_eq!(apisix(tail, "/").unwrap().var("uri"), Some(&b""[..]));
    let servlet = ApisixPath { like_servlet: true, ..ApisixPath::default() };
    let s = apisix(servlet, "/a;x=1/b;y").unwrap();
    assert_eq!((s.var("uri"), s.request.target.full()), (Some(&b"/a/b"[..]), &b"/a;x=1/b;y"[..]));
    for bad in ["/a/..;x/b", "/a/.;/b", "/a/%252e%252e;/b", "/a/;x/b"] {
        assert!(apisix(servlet, bad).is_err(), "{bad}");
    }
    let slash = ApisixPath { match_encoded_slash: true, ..ApisixPath::default() };
    let s = apisix(slash, "/a%2fb/%63").unwrap();
    assert_eq!((s.var("uri"), s.var("router_uri")), (Some(&b"/a/b/c"[..]), Some(&b"/a%2Fb/c"[..])));
    assert_eq!(apisix(slash, "/a%2f%2fb").unwrap().var("router_uri"), None);
}

#[test]
fn normalisation_is_idempotent() {
    let mut random = fastrand::Rng::with_seed(7);
    let alphabet = b"ab/.%2eE5cC;\\|3061fF";
    for _ in 0..20_000 {
        let len = random.usize(0..14);
        let mut path = vec![b'/'];
        path.extend((0..len).map(|_| alphabet[random.usize(0..alphabet.len())]));
        if let Some(once) = canonical::canonicalize(&path) {
            let twice = canonical::canonicalize(&once);
            assert_eq!(twice.as_deref(), Some(&*once), "{}", String::from_utf8_lossy(&path));
            let merged = merge_slashes(&once).into_owned();
            if merged != b"//" {
                assert_eq!(*merge_slashes(&merged), merged);
            }
        }
        if let Some(once) = nginx::normalize(&path) {
            let safe = escape(&once);
            assert_eq!(
                nginx::normalize(&safe).as_deref(),
                Some(&*once),
                "{}",
                String::from_utf8_lossy(&path)
            );
        }
    }
}
