#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::connection::{Certificate, TlsInfo};
use crate::stream::{FilterObject, fixture};
use std::sync::Arc;

const ALL: Extras = Extras { string_conversion: true, string_concat: true, string_functions: true };

fn request() -> Stream {
    let certificate = Certificate {
        uri_sans: vec!["spiffe://t/ns/a/sa/b".into()],
        subject: "CN=a".into(),
        ..Certificate::default()
    };
    let tls = TlsInfo { version: "TLSv1.3", peer: Some(Arc::new(certificate)), ..TlsInfo::default() };
    let headers =
        [("x-a", "1"), ("x-a", "2"), ("user-agent", "curl"), ("content-length", "12"), ("x-p", "^a")];
    let mut stream = fixture::with_tls("/a/b?c=d&e", &headers, Some(tls));
    stream.response.status = 503;
    stream.response.headers.push(b"x-r", b"r");
    stream.metadata.push(("n".into(), "k".into(), serde_json::json!({"list": ["x", 1], "t": true})));
    let (key, value) = ("o".into(), b"text"[..].into());
    stream.set_filter_state(FilterObject { key, value, hashable: false, read_only: false });
    stream.start_time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_600_000_000_250);
    stream
}

/// What an expression is printed as; `-` if it has no value.
fn value(stream: &Stream, text: &str) -> String {
    let program = Program::parse(text, ALL).unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut out = Vec::new();
    match program.write(stream, false, &mut out) {
        true => String::from_utf8(out).unwrap(),
        false => "-".to_owned(),
    }
}

#[test]
fn expressions_have_their_values() {
    let stream = request();
    for (text, wanted) in [
        // Literals and operators.
        ("1 + 2 * 3 - 4", "3"),
        ("-7 / 2", "-3"),
        ("-7 % 3", "-1"),
        ("- -1", "1"),
        ("--1", "1"),
        ("!!true", "true"),
        ("0x1F", "31"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775807 + 1", "-"),
        ("5u - 6u", "-"),
        ("1.5e1 + .5", "15.5"),
        ("1 / 0", "-"),
        ("1 + 1.0", "-"),
        ("1 == 1.0 && 1u == 1 && 1 < 1.5 && 2u > 1", "true"),
        ("'a' == b'a'", "false"),
        ("'a' < 'b' && b'a' < b'b' && false < true", "true"),
        ("'a' < 1", "-"),
        ("'\\x41\\u00e9\\n\\101' == 'A\u{e9}\\nA'", "true"),
        (r"r'\d' == '\\d'", "true"),
        ("'''a'b''' + \"c\"", "a'bc"),
        ("true ? 1 : 1 / 0", "1"),
        // What one side decides holds although the other has no value.
        ("false && 1 / 0 == 1", "false"),
        ("1 / 0 == 1 && false", "false"),
        ("1 / 0 == 1 || true", "true"),
        ("1 / 0 == 1 || false", "-"),
        ("true && 1", "-"),
        // Lists and maps.
        ("2 in [1, 2] && !(3 in [1, 2])", "true"),
        ("'a' in {'a': 1} && {'a': 1}.a == 1 && {'a': 1}['a'] == 1", "true"),
        ("[1, 2][1] == 2 && [1, [2]] == [1.0, [2]]", "true"),
        ("[1][1]", "-"),
        ("{'a': 1, 'a': 2}", "-"),
        ("{'a': [1]} == {'a': [1]}", "true"),
        ("size([1, 2]) + size('\u{e9}') + 'abc'.size() + size(b'ab') + size({1: 2})", "9"),
        // Functions.
        ("'abc'.startsWith('ab') && 'abc'.endsWith('c') && 'abc'.contains('b')", "true"),
        ("'abc'.matches('b+') && matches('abc', '^a.c$') && !'abc'.matches('^b')", "true"),
        ("int('12') + int(3.9) + int(4u)", "19"),
        ("bool('true') && !bool('f')", "true"),
        ("bool('yes')", "-"),
        ("'abc'.matches(request.headers['x-p']) && !'bcd'.matches(request.headers['x-p'])", "true"),
        ("'abc'.matches(request.headers['x-a'] + '(')", "-"),
        (
            "'a'.matches(request.path.replace('/', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'))",
            "-",
        ),
        ("[1] + [2]", "-"),
        ("uint(-1)", "-"),
        ("double('1.5') + double(1)", "2.5"),
        ("string(1) + string(true) + string(b'x')", "1truex"),
        ("bytes('a') == b'a'", "true"),
        ("type(1) == int && type('') == string && type(type(1)) == type", "true"),
        ("'a,b,c'.split(',')[1] + 'a,b,c'.split(',', 2)[1]", "bb,c"),
        ("'aaa'.replace('a', 'b', 2) + 'aB'.lowerAscii() + 'aB'.upperAscii()", "bbaabAB"),
        // Times.
        ("request.time > timestamp('2020-09-13T12:26:40Z')", "true"),
        ("request.time - timestamp('2020-09-13T12:26:40Z') == duration('250ms')", "true"),
        ("request.time", "2020-09-13T12:26:40.25+00:00"),
        ("duration('1h1m1.5s')", "1h1m1.5s"),
        ("duration('90s') + duration('-1.5ms')", "1m29.9985s"),
        ("duration('1500us')", "1.5ms"),
        ("request.time.getFullYear() + request.time.getMonth() + request.time.getDayOfWeek()", "2028"),
        ("request.time.getHours('+02:30') * 100 + request.time.getMinutes('+02:30')", "1456"),
        ("duration('90m').getHours() + duration('90m').getMinutes()", "91"),
        ("timestamp('never')", "-"),
        // Attributes.
        ("request.path + ' ' + request.url_path + ' ' + request.query", "/a/b?c=d&e /a/b c=d&e"),
        ("request.method + request.scheme + request.host + request.protocol", "GEThttporacle.testHTTP/1.1"),
        ("request.headers['x-a']", "1,2"),
        (
            "request.headers['X-A'] + request.headers.host + request.headers[':path']",
            "1,2oracle.test/a/b?c=d&e",
        ),
        ("request.headers['x-none']", "-"),
        ("has(request.headers.x) || has(request.headers['user-agent'].x)", "-"),
        ("has(request.headers.host) && !has(request.headers.none) && !has(request.nothing)", "true"),
        ("'x-a' in request.headers && !('x-b' in request.headers)", "true"),
        ("request['headers']['x-a'] + request[string('path')]", "1,2/a/b?c=d&e"),
        ("request.useragent + string(request.size)", "curl12"),
        ("request.nothing == 1 || nothing == 1", "-"),
        (
            "response.code == 503 && response.headers['x-r'] == 'r' && response.headers[':status'] == '503'",
            "true",
        ),
        ("response.grpc_status", "14"),
        ("response.code_details", "-"),
        ("source.address + string(source.port)", "10.1.2.3:40004000"),
        ("destination.port", "9080"),
        ("connection.mtls && connection.tls_version == 'TLSv1.3'", "true"),
        ("connection.uri_san_peer_certificate.startsWith('spiffe://t/')", "true"),
        ("connection.dns_san_peer_certificate", "-"),
        ("metadata.filter_metadata['n']['k'].list[0]", "x"),
        ("metadata.filter_metadata.n.k.list[1] == 1 && metadata.filter_metadata.n.k.t", "true"),
        ("metadata.filter_metadata['m']['k']", "-"),
        ("filter_state['o'] == b'text'", "true"),
        ("filter_state.o == 'text'", "false"),
        ("xds.route_name", "-"),
        ("metadata", ""),
        ("null == null", "true"),
        ("null", "NULL"),
        ("[1.0]", "CelList value"),
        ("{1: 2}", "CelMap value"),
        ("type(1)", "CelType value"),
        ("2.0", "2"),
        ("1e10", "1e+10"),
        ("0.1 + 0.2", "0.3"),
        ("1.0 / 3.0", "0.333333"),
        ("-0.00001234567", "-1.23457e-05"),
        ("123456.7", "123457"),
    ] {
        assert_eq!(value(&stream, text), wanted, "{text}");
    }
}

#[test]
fn a_condition_holds_that_is_true() {
    let stream = request();
    for (text, wanted) in [
        ("request.method == 'GET'", true),
        ("request.method", false),
        ("request.none == 1", false),
        ("false", false),
    ] {
        assert_eq!(Program::parse(text, Extras::default()).unwrap().holds(&stream), wanted, "{text}");
    }
}

#[test]
fn json_has_numbers_and_truths_and_quotes_the_rest() {
    let stream = request();
    for (text, wanted) in [
        ("1", "1"),
        ("true", "true"),
        ("'a\"b'", "\"a\\\"b\""),
        ("null", "null"),
        ("0.0 / 0.0", "\"NaN\""),
        ("1.5", "1.5"),
        ("[1]", "\"CelList value\""),
    ] {
        let mut out = Vec::new();
        assert!(Program::parse(text, ALL).unwrap().write(&stream, true, &mut out));
        assert_eq!(String::from_utf8(out).unwrap(), wanted, "{text}");
    }
}

#[test]
fn what_is_none_is_refused() {
    for (text, wanted) in [
        ("", "it ends too early"),
        ("1 +", "it ends too early"),
        ("(1", "it ends too early, but ')'"),
        ("1 2", "Int(2) is not expected"),
        ("a..b", "a name must follow '.'"),
        ("'a", "a text has no end at 1"),
        ("'\\q'", "'\\q' stands for nothing at 1"),
        ("1 # 2", "'#' is not expected at 3"),
        ("99999999999999999999", "'99999999999999999999' is no number at 1"),
        ("9223372036854775808", "a number is too large"),
        (
            "request.headers.all(k, true)",
            "comprehensions (all, exists, exists_one, map, filter) are not supported",
        ),
        ("T{a: 1}", "'{' is not expected"),
        ("has(1)", "has() takes a field, as in has(request.headers.host)"),
        ("nothing(1)", "there is no function nothing()"),
        ("size(1, 2)", "size() does not take 2 arguments"),
        ("'a'.size(2)", "size() does not take 1 arguments"),
        ("getHours(request.time)", "there is no function getHours()"),
        ("'1'.int()", "there is no function int()"),
        ("string(1)", "string() has to be enabled by enable_string_conversion"),
        ("'a'.lowerAscii()", "lowerAscii() has to be enabled by enable_string_functions"),
    ] {
        assert_eq!(Program::parse(text, Extras::default()).unwrap_err(), wanted, "{text}");
    }
    assert!(Program::parse("'a'.matches('(')", Extras::default()).unwrap_err().starts_with("matches(): "));
    // `+` of texts has no value unless it is asked for.
    let concat = Program::parse("request.path + 'a'", Extras::default()).unwrap();
    assert!(!concat.write(&request(), false, &mut Vec::new()));
}

/// What a configuration holds is read by recursion, and what it makes of a request must not grow without a bound.
#[test]
fn depth_and_size_have_bounds() {
    let deep = |n: usize| format!("{}1{}", "(".repeat(n), ")".repeat(n));
    assert!(Program::parse(&deep(60), Extras::default()).is_ok());
    assert!(Program::parse(&deep(100_000), Extras::default()).unwrap_err().contains("nested deeper"));
    let chains = (0..60).fold("1".to_owned(), |text, _| format!("({text}{})", " + 1".repeat(60)));
    assert!(Program::parse(&chains, Extras::default()).unwrap_err().contains("parts"));
    assert!(Program::parse(&"-".repeat(100_000), Extras::default()).is_err());
    assert!(Program::parse(&format!("1{}", " + 1".repeat(100_000)), Extras::default()).is_err());
    assert!(Program::parse(&format!("a{}", ".b".repeat(100_000)), Extras::default()).is_err());
    let wide = format!("[{}1]", "1,".repeat(2000));
    assert!(Program::parse(&wide, Extras::default()).unwrap_err().contains("parts"));
    let mut stream = request();
    stream.request.target.set(&[&b"/"[..], &[b'a'; 60_000]].concat());
    let grown = Program::parse("request.path.replace('a', request.path)", ALL).unwrap();
    assert!(!grown.write(&stream, false, &mut Vec::new()));
    let doubled = (0..6).fold("request.path".to_owned(), |text, _| format!("({text} + {text})"));
    assert!(!Program::parse(&doubled, ALL).unwrap().write(&stream, false, &mut Vec::new()));
}

/// A worker's stack holds the deepest expressions that are taken while they are read, evaluated and dropped, and those
/// that are refused.
#[test]
fn the_stack_of_a_thread_is_enough_for_all_of_them() {
    let parens = |n: usize, inner: &str| format!("{}{inner}{}", "(".repeat(n), ")".repeat(n));
    let lists = |n: usize, inner: &str| format!("{}{inner}{}", "[".repeat(n), "][0]".repeat(n));
    let maps = |n: usize, inner: &str| format!("{}{inner}{}", "{1: ".repeat(n), "}[1]".repeat(n));
    let taken = [
        format!("request.headers{}", ".b".repeat(250)),
        format!("request.size{}", " + 1".repeat(250)),
        format!("request.nothing == 1{}", " || request.size == 1".repeat(140)),
        format!("false{}", " || request.mtls".repeat(250)),
        format!("request.path{}", ".lowerAscii()".repeat(250)),
        format!("request.path{}", ".replace('a', 'b')".repeat(250)),
        format!("[1]{}", "[0]".repeat(250)),
        (0..60).fold("1".to_owned(), |text, _| format!("({text}{})", " + request.size".repeat(3))),
        (0..60).fold("1".to_owned(), |text, _| format!("{{1: {text}{}}}[1]", " + 1".repeat(2))),
        (0..60).fold("1".to_owned(), |text, _| format!("true ? ({text}) : {{1: 1}}")),
        parens(60, "1"),
        lists(60, &format!("request.path{}", ".lowerAscii()".repeat(120))),
        maps(60, &format!("request.path{}", ".lowerAscii()".repeat(120))),
        format!("{}1", "-request.size + ".repeat(200)),
    ];
    let refused = [
        format!("request{}", ".b".repeat(1020)),
        format!("request.size{}", " + 1".repeat(100_000)),
        format!("request.path{}", "['a']".repeat(100_000)),
        format!("request.path{}", ".lowerAscii()".repeat(100_000)),
        (0..63).fold("a".to_owned(), |text, _| format!("a{}[{text}]", "[0]".repeat(60))),
        (0..63).fold("1".to_owned(), |text, _| format!("({text}{})", " + 1".repeat(60))),
        "[".repeat(100_000),
    ];
    let all = move || {
        let stream = request();
        for text in taken {
            let program = Program::parse(&text, ALL).unwrap_or_else(|e| panic!("{text}: {e}"));
            let _ = program.write(&stream, true, &mut Vec::new());
        }
        for text in refused {
            assert!(Program::parse(&text, ALL).is_err(), "{text}");
        }
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(all).unwrap().join().unwrap();
}

#[test]
fn what_functions_make_has_bounds() {
    let mut stream = request();
    stream.request.target.set(&[&b"/"[..], &[b'a'; (1 << 20) - 1]].concat());
    assert_eq!(value(&stream, "size(request.path.replace('/', 'b'))"), "1048576");
    assert_eq!(
        value(&stream, "size(request.path.replace('/', 'bb'))"),
        "-",
        "what follows the last place counts"
    );
    assert_eq!(value(&stream, "size(request.path.split('a'))"), "-");
    assert_eq!(value(&stream, "size(request.path.split('a', 1024))"), "1024");
    assert_eq!(value(&stream, "size(request.path.split('a', 1025))"), "-");
}

#[test]
fn a_zone_is_a_sign_and_two_small_numbers() {
    let stream = request();
    for (zone, wanted) in [
        ("UTC", "12"),
        ("", "12"),
        ("01:00", "13"),
        ("+1:30", "13"),
        ("-12:27", "23"),
        ("2147483647:00", "-"),
        ("-2147483647:2147483647", "-"),
        ("256:00", "-"),
        ("26:00", "-"),
        ("+-9:0", "-"),
        ("-+9:0", "-"),
        ("++9:0", "-"),
        ("9:+1", "-"),
        ("9:-1", "-"),
        ("9", "-"),
        ("9:", "-"),
        (":9", "-"),
        ("9:0:0", "-"),
        ("Europe/Paris", "-"),
    ] {
        assert_eq!(value(&stream, &format!("request.time.getHours('{zone}')")), wanted, "{zone}");
    }
}

#[test]
fn the_fuzz_target_holds() {
    let words = [
        "request.headers['x-n']",
        "(",
        ")",
        "[",
        "]",
        "{1: ",
        "}",
        ".",
        " + ",
        " || ",
        "? 1 : ",
        "'",
        "9223372036854775807",
        "1e400",
        ".split('a')",
        ".getHours(",
        "has(",
        "!",
        "-",
    ];
    crate::stable::run("cel", &words, fuzz::expression);
}
