#![allow(clippy::unwrap_used)]
use super::*;

fn rules(max_count: usize) -> HeaderRules {
    HeaderRules { max_count, ..HeaderRules::ENVOY }
}

fn parts(uri: &str, fields: &[(&str, &str)]) -> http::request::Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn read(parts: &http::request::Parts, rules: &HeaderRules, profile: Profile) -> Result<RequestHead, Refused> {
    let mut head = RequestHead::default();
    read_request(parts, rules, profile, Scheme::Http, &mut head).map(|()| head)
}

/// What a client said by `:scheme` was thrown away: redirects behind a load balancer that ends TLS led back to http.
#[test]
fn the_scheme_is_the_clients_where_it_says_one_that_we_know() {
    let scheme = |uri: &str, profile: Profile, own: Scheme| {
        let mut head = RequestHead::default();
        read_request(&parts(uri, &[]), &HeaderRules::ENVOY, profile, own, &mut head).unwrap();
        head.scheme
    };
    for own in [Scheme::Http, Scheme::Https] {
        assert_eq!(scheme("https://h/", Profile::Envoy, own), Scheme::Https);
        assert_eq!(scheme("HTTPS://h/", Profile::Envoy, own), Scheme::Https);
        assert_eq!(scheme("http://h/", Profile::Envoy, own), Scheme::Http);
        assert_eq!(scheme("ftp://h/", Profile::Envoy, own), own);
        assert_eq!(scheme("https://h/", Profile::Apisix, own), own);
        assert_eq!(scheme("http://h/", Profile::Apisix, own), own);
    }
}

/// 840 cookie crumbs took 12.5 MB for one stream, once copied for each crumb and never given back.
#[test]
fn repeated_fields_of_heads_and_trailers_cost_memory_in_proportion() {
    for (name, value) in [("cookie", "a=0123456789"), ("accept", "text/html"), ("x-own", "v")] {
        for n in [500, 1000, 2000, 4000] {
            let fields = vec![(name, value); n];
            let request = parts("http://h/", &fields);
            let head = read(&request, &rules(10_000), Profile::Envoy).unwrap();
            let mut response = Response::new(());
            *response.headers_mut() = request.headers.clone();
            let (mut answer, mut trailers) = (ResponseHead::default(), Headers::new());
            read_response(&response.into_parts().0, &rules(10_000), &mut answer).unwrap();
            read_trailers(&request.headers, &rules(10_000), &mut trailers).unwrap();
            let lines = if name == "x-own" { n } else { 1 };
            for headers in [&head.headers, &answer.headers, &trailers] {
                let bytes = n * (name.len() + value.len() + 4);
                assert_eq!(headers.len(), lines);
                // 16 bytes of a field's place, in a list that grows by doubling.
                let most = 2 * bytes + 32 * n + sixfold_core::headers::FIRST;
                assert!(headers.memory() <= most, "{n} of {name}: {} bytes", headers.memory());
            }
        }
    }
}

#[test]
fn every_crumb_line_and_pseudo_header_counts() {
    let too_many = Err(Refused::Fields(HeaderFault::TooMany));
    for name in ["cookie", "accept", "x-own"] {
        let request = |n: usize| parts("http://h/p", &vec![(name, "v"); n]);
        // Four are `:method`, `:scheme`, `:authority` and `:path`.
        assert!(read(&request(96), &HeaderRules::ENVOY, Profile::Envoy).is_ok());
        assert_eq!(read(&request(97), &HeaderRules::ENVOY, Profile::Envoy).map(drop), too_many);
        let mut trailers = Headers::new();
        assert!(read_trailers(&request(100).headers, &HeaderRules::ENVOY, &mut trailers).is_ok());
        let error = read_trailers(&request(101).headers, &HeaderRules::ENVOY, &mut trailers);
        assert_eq!(error, Err(HeaderFault::TooMany));
        let response = |n: usize| {
            let mut response = Response::new(());
            *response.headers_mut() = request(n).headers;
            read_response(&response.into_parts().0, &HeaderRules::ENVOY, &mut ResponseHead::default())
        };
        assert_eq!((response(99), response(100)), (Ok(()), Err(HeaderFault::TooMany)));
    }
}

#[test]
fn underscores_follow_the_rules_in_heads_and_trailers() {
    use sixfold_core::headers::Underscores;
    let request = parts("http://h/", &[("x_user", "eve"), ("x-user", "bob")]);
    let with = |underscores| HeaderRules { underscores, ..HeaderRules::ENVOY };
    let names = |headers: &Headers| headers.iter().map(|(n, _)| n.to_vec()).collect::<Vec<_>>();
    for (action, kept) in [(Underscores::Allow, 2), (Underscores::Drop, 1)] {
        let head = read(&request, &with(action), Profile::Envoy).unwrap();
        let mut trailers = Headers::new();
        read_trailers(&request.headers, &with(action), &mut trailers).unwrap();
        for headers in [&head.headers, &trailers] {
            assert_eq!(headers.len(), kept);
            assert!(names(headers).contains(&b"x-user".to_vec()));
        }
    }
    let refused = read(&request, &with(Underscores::Reject), Profile::Envoy);
    assert_eq!(refused.map(drop), Err(Refused::Fields(HeaderFault::Underscore)));
    let refused = read_trailers(&request.headers, &with(Underscores::Reject), &mut Headers::new());
    assert_eq!(refused, Err(HeaderFault::Underscore));
}

#[test]
fn an_authority_is_held_to_the_rules_of_host() {
    type Row =
        (&'static str, &'static [(&'static str, &'static str)], Option<&'static str>, Option<&'static str>);
    let rows: &[Row] = &[
        ("http://a.test:80/", &[("host", "other")], Some("a.test:80"), Some("a.test:80")),
        ("http://user@a.test/", &[], None, None),
        ("http://a..test/", &[], Some("a..test"), None),
        ("http://.a.test/", &[], Some(".a.test"), Some(".a.test")),
        ("http://a.test./", &[], Some("a.test."), Some("a.test.")),
        ("/", &[("host", "a.test")], Some("a.test"), Some("a.test")),
        ("/", &[("host", "a.test"), ("host", "b.test")], None, None),
        ("/", &[("host", "a b")], None, None),
        ("/", &[("host", "user@a.test")], None, None),
        ("/", &[("host", "")], Some(""), None),
        ("/", &[], Some(""), None),
    ];
    for (uri, fields, envoy, apisix) in rows {
        let request = parts(uri, fields);
        for (profile, want) in [(Profile::Envoy, envoy), (Profile::Apisix, apisix)] {
            let head = read(&request, &HeaderRules::ENVOY, profile);
            let got = head.as_ref().map(|h| std::str::from_utf8(&h.authority).unwrap());
            assert_eq!(got.map_err(|e| *e), want.ok_or(Refused::Authority), "{uri} {fields:?} {profile:?}");
            assert!(head.is_ok_and(|h| !h.headers.contains(Known::HOST)) == want.is_some());
        }
    }
}

/// `x: admin` was not matched by a rule on ` admin`, and then read as `admin` by the upstream that got it over HTTP/1.
#[test]
fn blanks_around_a_value_are_no_part_of_it() {
    let fields = [
        ("x-own", " v"),
        ("accept", "\ta, b \t"),
        ("x-blank", " \t"),
        ("cookie", " a=1 "),
        ("cookie", "b=2 "),
    ];
    let request = parts("http://h/", &fields);
    let mut response = Response::new(());
    *response.headers_mut() = request.headers.clone();
    for rules in [HeaderRules::ENVOY, HeaderRules::APISIX] {
        let head = read(&request, &rules, Profile::Envoy).unwrap();
        let (mut answer, mut trailers) = (ResponseHead::default(), Headers::new());
        read_response(&response.clone().into_parts().0, &rules, &mut answer).unwrap();
        read_trailers(&request.headers, &rules, &mut trailers).unwrap();
        for headers in [&head.headers, &answer.headers, &trailers] {
            let wanted = [("x-own", "v"), ("accept", "a, b"), ("x-blank", ""), ("cookie", "a=1; b=2")];
            let got = headers
                .iter()
                .map(|(n, v)| (std::str::from_utf8(n).unwrap(), std::str::from_utf8(v).unwrap()));
            assert!(got.eq(wanted), "{headers:?}");
        }
    }
}

/// Such a field was taken, and left out in silence where it was to be written.
#[test]
fn a_name_that_is_no_token_is_refused() {
    let mut request = parts("http://h/", &[]);
    request.headers.append(HeaderName::from_lowercase(b"x\"").unwrap(), HeaderValue::from_static("1"));
    let refused = read(&request, &HeaderRules::APISIX, Profile::Apisix);
    assert_eq!(refused.map(drop), Err(Refused::Fields(HeaderFault::Name)));
    let bytes = (0..=u8::MAX).filter(|b| !sixfold_core::headers::is_token(&[*b]));
    let taken: Vec<u8> = bytes.filter(|b| HeaderName::from_lowercase(&[b'x', *b]).is_ok()).collect();
    assert_eq!(taken, b"\"", "what the library takes beyond tokens");
}

#[test]
fn trailers_hold_no_field_of_framing_or_routing() {
    let fields =
        parts("http://h/", &[("content-length", "1"), ("host", "x"), ("te", "trailers"), ("x-sum", "1")]);
    let mut trailers = Headers::new();
    trailers.push(b"x-old", b"of another message");
    read_trailers(&fields.headers, &HeaderRules::APISIX, &mut trailers).unwrap();
    assert_eq!(trailers.iter().collect::<Vec<_>>(), [(&b"x-sum"[..], &b"1"[..])]);
}

/// The library's map panics beyond 24,576 entries, unless it is asked nicely.
#[test]
fn more_fields_than_the_library_takes_are_an_error() {
    let mut head = RequestHead { authority: b"h".to_vec(), ..RequestHead::default() };
    head.target.set(b"/");
    for i in 0..30_000 {
        head.headers.push(format!("x-{i}").as_bytes(), b"v");
    }
    assert_eq!(write_request(&head, Scheme::Http).map(drop), Err(HeadError::TooMany));
    let answer = ResponseHead { status: 200, headers: head.headers.clone(), ..ResponseHead::default() };
    assert_eq!(write_response(&answer).map(drop), Err(HeadError::TooMany));
    assert_eq!(to_map(&head.headers).map(drop), Err(HeadError::TooMany));
    let mut count = 0;
    head.headers.retain(|_, _, _| {
        count += 1;
        count <= 24_000
    });
    assert_eq!(write_request(&head, Scheme::Http).unwrap().headers().len(), 24_000);
}
