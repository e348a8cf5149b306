#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::testing::{self, Service};
use prost::Message;
use sixfold_core::cluster::{Cluster, ClusterConfig};
use sixfold_core::metrics::Registry;
use sixfold_core::plugin::{
    BodyFilters, CalloutResponse, Chain, ChainBuilder, Direction, Filtered, HeadPhase, Outcome, SharedState,
};
use sixfold_xds_api::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};

/// The filter with a script, and what it is built with.
struct Filter {
    chain: Chain,
    context: BuildContext,
    service: Arc<Service>,
}

fn source(text: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() }
}

fn filter(text: &str) -> Filter {
    let own = ProtoLua { default_source_code: Some(source(text)), ..ProtoLua::default() };
    build_with(&own, &[]).unwrap()
}

fn build_with(own: &ProtoLua, overrides: &[LuaPerRoute]) -> Result<Filter, String> {
    build_in(own, overrides, &Arc::default())
}

/// The same beside others of the connection manager.
fn build_in(own: &ProtoLua, overrides: &[LuaPerRoute], shared: &Arc<SharedState>) -> Result<Filter, String> {
    let answer =
        CalloutResponse { status: 201, headers: Default::default(), body: Bytes::from_static(b"told") };
    let (context, service) = testing::context_with(Some(answer));
    let context = BuildContext { scope: "http.in.".into(), shared: shared.clone(), ..context };
    let cluster = Cluster::new(ClusterConfig::named("b"), Vec::new(), None, &Registry::new()).unwrap();
    context.clusters.cell("b").swap(Some(cluster));
    let overrides: Vec<Vec<u8>> = overrides.iter().map(Message::encode_to_vec).collect();
    let overrides: Vec<&[u8]> = overrides.iter().map(Vec::as_slice).collect();
    let config = own.encode_to_vec();
    let given =
        sixfold_core::plugin::FilterConfig { config: &config, overrides: &overrides, superseded: false };
    let plugin = factory().build(&given, &context).map_err(|error| error.to_string())?;
    let mut builder = ChainBuilder::new().reverse_response();
    builder.add("lua", plugin);
    Ok(Filter { chain: builder.build(), context, service })
}

fn stream() -> Stream {
    testing::stream("/x", &[("x-a", "1"), ("x-a", "2")])
}

impl Filter {
    fn run(&self, phase: HeadPhase, stream: &mut Stream) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.chain.run(phase, stream))
    }

    fn request(&self, stream: &mut Stream) -> Outcome {
        self.run(HeadPhase::Access, stream)
    }

    /// A response of these pieces, the last of which comes with its trailers: what becomes of its body.
    fn response(&self, stream: &mut Stream, pieces: &[&str], trailers: &[(&str, &str)]) -> String {
        stream.response.status = 200;
        assert!(matches!(self.run(HeadPhase::HeaderFilter, stream), Outcome::Done));
        let (mut filters, mut out) = (BodyFilters::new(Direction::Response), Vec::new());
        for (at, piece) in pieces.iter().enumerate() {
            let last = at + 1 == pieces.len();
            for (name, value) in trailers.iter().filter(|_| last) {
                stream.response_trailers.append(*name, value.as_bytes());
            }
            match filters.push(&self.chain, stream, piece.as_bytes(), last) {
                Filtered::Same => out.extend_from_slice(piece.as_bytes()),
                Filtered::Data(data) => out.extend_from_slice(&data),
                other => panic!("{other:?}"),
            }
        }
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(filters.poll_trailers(&self.chain, stream, &mut cx).is_ready());
        String::from_utf8(out).unwrap()
    }

    fn errors(&self) -> u64 {
        self.context.metrics.sum("http.in.lua.", "errors")
    }
}

fn header<'a>(stream: &'a Stream, name: &str) -> &'a str {
    stream.request.headers.get_str(name).unwrap_or("none")
}

/// A header that a script of one line adds to the request.
fn told(expression: &str) -> String {
    let filter = filter(&format!("function envoy_on_request(h) h:headers():add('x-told', {expression}) end"));
    let mut stream = stream();
    filter.request(&mut stream);
    assert_eq!(filter.errors(), 0, "{expression}");
    header(&stream, "x-told").to_owned()
}

#[test]
fn scripts_change_requests_and_have_the_route_chosen_again() {
    let filter = filter(
        "function envoy_on_request(h) h:headers():replace(':path', '/y') h:headers():remove('x-a') end",
    );
    let mut stream = stream();
    assert!(matches!(filter.request(&mut stream), Outcome::ClearRoute(_)));
    assert_eq!((stream.request.target.full(), header(&stream, "x-a")), (&b"/y"[..], "none"));
}

/// It was an error that ended the script, and the request that it was to refuse, or to change, went on.
#[test]
fn what_a_script_can_not_write_does_not_go_on() {
    for call in [
        "add('a b', '1')",
        "add('x', 'a\\nb')",
        "replace('x-a', '\\r')",
        "replace('x-a', '\\0')",
        "add(string.rep('a', 70000), '1')",
        "replace(':path', 'none')",
        "replace(':path', '/a b')",
        "replace(':method', 'a b')",
        "replace(':method', 'CONNECT')",
        "replace('host', '')",
        "replace(':scheme', 'ftp')",
    ] {
        let alone = filter(&format!("function envoy_on_request(h) h:headers():{call} end"));
        let mut s = stream();
        let Outcome::Respond(reply) = alone.request(&mut s) else { panic!("{call} goes on") };
        assert_eq!((reply.status, alone.errors(), s.request.target.full()), (503, 0, &b"/x"[..]), "{call}");
        let refusing = filter(&format!(
            "function envoy_on_request(h) h:headers():{call} h:respond({{[':status'] = '403'}}, 'no') end"
        ));
        let Outcome::Respond(reply) = refusing.request(&mut stream()) else { panic!("{call} goes on") };
        assert_eq!(reply.status, 403, "{call}");
    }
    let mended = filter(
        "function envoy_on_request(h) local a = h:headers() a:replace('x-a', '\\n') a:replace('x-a', '3') a:add('b c', '1')
         a:remove('b c') a:replace(':path', 'none') a:replace(':path', '/y') end",
    );
    let mut s = stream();
    mended.request(&mut s);
    assert_eq!((header(&s, "x-a"), s.request.target.full(), s.request.headers.len()), ("3", &b"/y"[..], 1));
    let response = filter(
        "function envoy_on_response(h) h:headers():replace('x-a', 'a\\nb') h:headers():add('x-b', '1') end",
    );
    s.response.headers.append("x-a", b"1");
    response.run(HeadPhase::HeaderFilter, &mut s);
    assert_eq!((s.response.headers.len(), s.response.headers.get_str("x-b")), (1, Some("1")));
}

/// The connection ended without an answer, or with half of one.
#[test]
fn a_script_does_not_say_how_a_response_is_framed() {
    for change in
        ["add('content-length', '7')", "replace('Content-Length', 'abc')", "replace('content-length', '2')"]
    {
        let filter = filter(&format!(
            "function envoy_on_response(h) h:headers():{change} h:headers():replace('connection', 'close')
             h:headers():add('Upgrade', 'a') h:headers():add('x-b', '1') end"
        ));
        let mut s = stream();
        s.response.headers.append("content-length", b"5");
        assert_eq!(filter.response(&mut s, &["hello"], &[]), "hello");
        assert_eq!((s.response.headers.len(), s.response.headers.get_str("x-b")), (1, Some("1")), "{change}");
    }
}

#[test]
fn an_answer_counts_however_its_headers_are_spelled() {
    for field in ["['x-why'] = 'for\\n'", "['bad name'] = '1'", "[':odd'] = '1'"] {
        let filter = filter(&format!(
            "function envoy_on_request(h) h:respond({{[':status'] = '403', ['x-a'] = '1', {field}}}, 'no') end"
        ));
        let Outcome::Respond(reply) = filter.request(&mut stream()) else { panic!("{field} goes on") };
        assert_eq!((reply.status, reply.headers.len(), filter.errors()), (403, 1, 0), "{field}");
    }
}

/// A callout says that it can't be asked, and the script hears that there is no answer.
#[test]
fn a_call_that_can_not_be_written_is_no_error_of_the_script() {
    for field in ["['x-user'] = 'bob\\n'", "['bad name'] = '1'", "[':method'] = 'a b'"] {
        let filter = filter(&format!(
            "function envoy_on_request(h)
               local c = {{[':method'] = 'GET', [':path'] = '/', [':authority'] = 'svc'}}
               for name, value in pairs({{{field}}}) do c[name] = value end
               local a = h:httpCall('b', c, '', 500)
               h:headers():add('x-told', a[':status'])
             end"
        ));
        let mut stream = stream();
        filter.request(&mut stream);
        assert_eq!((filter.errors(), header(&stream, "x-told")), (0, "201"), "{field}");
        assert!(!filter.service.asked.lock()[0].headers.is_sound(), "{field}");
    }
}

#[test]
fn services_are_asked_and_the_script_goes_on() {
    let filter = filter(
        "function envoy_on_request(handle)
           local h, body = handle:httpCall('b', {[':method'] = 'POST', [':path'] = '/p', [':authority'] = 'svc', x = {'1', '2'}}, 'hi', 500)
           handle:headers():add('x-told', h[':status'] .. body)
         end",
    );
    let mut stream = stream();
    filter.request(&mut stream);
    assert_eq!(header(&stream, "x-told"), "201told");
    let asked = filter.service.asked.lock();
    assert_eq!((asked[0].uri.as_str(), &asked[0].body[..]), ("http://svc/p", &b"hi"[..]));
    assert_eq!(asked[0].timeout, std::time::Duration::from_millis(500));
    assert_eq!(asked[0].headers.get_all("x").collect::<Vec<_>>(), [b"1", b"2"]);
    // As of all requests of Envoy's own.
    assert_eq!(asked[0].headers.get_str("x-envoy-internal"), Some("true"));
    assert_eq!(asked[0].headers.get_str("x-envoy-expected-rq-timeout-ms"), Some("500"));
}

/// A time that is no number would be no time at all.
#[test]
fn a_call_has_a_time_that_is_a_number() {
    for (time, errors) in [("0/0", 1), ("-1", 1), ("1/0", 0)] {
        let filter = filter(&format!(
            "function envoy_on_request(h) h:httpCall('b', {{[':method'] = 'GET', [':path'] = '/', [':authority'] = 'svc'}}, '', {time}) end"
        ));
        filter.request(&mut stream());
        assert_eq!(filter.errors(), errors, "{time}");
    }
}

#[test]
fn an_answer_ends_the_script() {
    let filter = filter(
        "function envoy_on_request(h)
           h:respond({[':status'] = 401, ['x-why'] = 'no'}, 'denied')
           h:headers():add('x-never', '1')
         end",
    );
    let mut stream = stream();
    let Outcome::Respond(reply) = filter.request(&mut stream) else { panic!("no answer") };
    assert_eq!((reply.status, &reply.body[..], header(&stream, "x-never")), (401, &b"denied"[..], "none"));
    assert_eq!(reply.headers.get("x-why"), Some(&b"no"[..]));
}

/// Neither by running for ever, nor by catching the error that says so, nor by filling the memory.
#[test]
fn no_script_holds_its_worker() {
    for script in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local c = coroutine.wrap(function() while true do end end) while true do pcall(c) end",
        "local t = {} while true do t[#t + 1] = string.rep('x', 1000000) .. #t end",
        "string.find(string.rep('a', 60), string.rep('a*', 30) .. 'b')",
        "string.match(string.rep('a', 60), string.rep('a?', 60) .. string.rep('a', 60) .. 'b')",
        "for _ in string.gmatch(string.rep('a', 60), string.rep('a-', 30) .. 'b') do end",
        "for _ in (string.gfind or string.gmatch)(string.rep('a', 60), string.rep('a-', 30) .. 'b') do end",
        "string.gsub(string.rep('a', 60), string.rep('[abc]*', 30) .. 'd', '')",
        "string.gsub(string.rep('a', 60), string.rep('a*', 30) .. 'b', {})",
        "while true do pcall(string.find, string.rep('a', 60), string.rep('a*', 30) .. 'b') end",
        "string.rep('x', 1000000):gsub('x', string.rep('y', 1000000))",
        "string.rep('(', 1000000):find('%b()')",
        "local s = string.rep('a', 1000000) while true do s:find('b', 1, true) end",
        "while true do string.rep('ab', 4000000) end",
        "while true do pcall(string.rep, 'ab', 1000000000) end",
        "local s = string.rep('ab', 2000000) while true do s:upper() s:lower() s:reverse() end",
        "local s, i = string.rep('a', 4000000), 0 while true do i = i + 1 s:sub(1 + i % 7, -2) end",
        "local s = string.rep('a', 4000) while true do s:byte(1, 4000) end",
        "local s = string.rep('a', 1000000) while true do string.format('%q', s) end",
        "local s = string.rep('a', 4000000) local a, b = s .. 'b', s .. 'c' while true do local _ = a < b end",
        "local s = string.rep('a', 4000000) while true do local _ = s .. 'b' end",
        "local t = {} for i = 1, 100000 do t[i] = 'abcdefgh' end while true do table.concat(t) end",
        "local t = {} while true do table.insert(t, 1, 1) end",
        "local t = {} for i = 1, 100000 do t[i] = i end while true do table.remove(t, 1) t[#t + 1] = 1 end",
        "local t = {} for i = 1, 100000 do t[i] = i * 7919 % 100003 end while true do table.sort(t) t[1] = 1e9 end",
        "local s = string.rep('a', 1000000) local t = {} for i = 1, 50000 do t[i] = i % 2 == 0 and s or s .. 'b' end \
         table.sort(t)",
        "local s = '--' .. string.rep('a', 4000000) while true do loadstring(s) end",
        "local t = {} for i = 1, 500000 do t[i] = {} end while true do collectgarbage() end",
        "local s = string.rep('a', 1000000) while true do h:base64Escape(s) end",
        "local s = string.rep('a', 60000) while true do h:headers():replace('x-a', s) end",
        "local s = string.rep('a', 60000) h:headers():replace('x-a', s) while true do h:headers():get('x-a') end",
        "local i = 0 while true do i = i + 1 h:headers():add('x-a' .. i, 'v') end",
        "local i = 0 while true do i = i + 1 h:streamInfo():dynamicMetadata():set('a', 'b' .. i, 'c') end",
        "local s = string.rep('a', 100000) while true do h:logTrace(s) end",
    ] {
        let filter = filter(&format!("function envoy_on_request(h) {script} end"));
        let begun = worked();
        let outcome = filter.request(&mut stream());
        let took = worked() - begun;
        assert_eq!(filter.errors(), 1, "{script}");
        // The request went on, unjudged.
        assert!(matches!(outcome, Outcome::Respond(reply) if reply.status == 500), "{script}");
        // Its turn is half a second; what the last call of the library has begun it ends.
        assert!(took.as_millis() < 2_500, "{took:?}: {script}");
    }
}

/// A script's own errors let its message go on, as in Envoy; one that a bound has ended does not, for whoever sent the
/// message could have seen to it: here by a name that takes the pattern's steps.
#[test]
fn a_bound_lets_nothing_go_on() {
    let script = "if h:headers():get('x-name'):match('.*Bad') then h:respond({[':status'] = '401'}, '') end";
    let text =
        format!("function envoy_on_request(h) {script} end function envoy_on_response(h) h:none() end");
    let filter = filter(&text);
    let request = |name: &str| {
        let mut stream = stream();
        stream.request.headers.append("x-name", name.as_bytes());
        match filter.request(&mut stream) {
            Outcome::Respond(reply) => (reply.status, reply.details),
            _ => (200, "".into()),
        }
    };
    let over = |name: &str| filter.context.metrics.sum("http.in.lua.", name);
    assert_eq!(request("good").0, 200);
    assert_eq!(
        (request(&"a".repeat(5_000)), over("over_bounds")),
        ((500, "lua_script_over_bounds".into()), 1)
    );
    assert!(matches!(filter.run(HeadPhase::HeaderFilter, &mut stream()), Outcome::Done));
    assert_eq!((over("errors"), over("over_bounds")), (2, 1));
}

/// What it would have taken out of a response goes nowhere either: not its head, and not the rest of its body.
#[test]
fn responses_end_with_the_bounds_of_their_scripts() {
    let forever = "while true do end";
    let head = filter(&format!("function envoy_on_response(h) {forever} end"));
    let outcome = head.run(HeadPhase::HeaderFilter, &mut stream());
    assert!(matches!(outcome, Outcome::Respond(reply) if reply.status == 500));
    let text = format!("function envoy_on_response(h) for _ in h:bodyChunks() do {forever} end end");
    let body = filter(&text);
    let mut stream = stream();
    assert!(matches!(body.run(HeadPhase::HeaderFilter, &mut stream), Outcome::Done));
    let mut filters = BodyFilters::new(Direction::Response);
    let pushed = filters.push(&body.chain, &mut stream, b"a", false);
    assert!(matches!(pushed, Filtered::Respond(reply) if reply.status == 500));
}

/// How long this thread has had a processor: other tests have the machine too.
fn worked() -> std::time::Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    std::time::Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
}

/// What is counted does what it does in LuaJIT.
#[test]
fn functions_that_are_counted_do_the_same() {
    for (expression, expected) in [
        ("('ab'):rep(2, '-') .. ('ab'):rep(-1) .. ('x'):rep('2')", "ab-abxx"),
        ("('abc'):sub(2) .. ('abc'):sub(-2, -2) .. ('a'):rep(300):sub(299)", "bcbaa"),
        ("('aB'):upper() .. ('aB'):lower() .. ('ab'):reverse() .. string.upper(5)", "ABabba5"),
        ("table.concat({('abc'):byte(1, -1)}, ' ') .. #{('a'):rep(40):byte(1, 40)}", "97 98 9940"),
        ("string.format('%s-%d', 'a', 3)", "a-3"),
        (
            "(function() local t = {1, 2} table.insert(t, 1, 0) table.insert(t, 9) t[9] = table.remove(t, 1) \
          table.remove(t) return table.concat(t, ',') end)()",
            "1,2",
        ),
        (
            "(function() local t = {3, 1, 2} table.sort(t) local s = table.concat(t) \
          table.sort(t, function(a, b) return a > b end) return s .. table.concat(t) end)()",
            "123321",
        ),
        ("loadstring('return 7')()", "7"),
        (
            "select(2, pcall(function() local _ = ('x'):rep({}) end)):match('bad argument.*')",
            "bad argument #1 to 'rep' (number expected, got table)",
        ),
    ] {
        assert_eq!(told(expression), expected, "{expression}");
    }
}

/// A script that catches its errors sees where they are said to be.
#[test]
fn errors_name_the_script_as_in_envoy() {
    let text = "\nfunction envoy_on_request(h)\n local _, why = pcall(error, 'x', 0)\n \
                _, why = pcall(function() error('no') end) h:headers():add('x-told', why)\nend";
    let filter = filter(text);
    let mut stream = stream();
    filter.request(&mut stream);
    assert_eq!(header(&stream, "x-told"), "[string \"...\"]:4: no");
    // So do those of ours, which are text too.
    let failing = |call: &str| {
        let text = format!(
            "function envoy_on_request(h)\n local _, why = pcall(function()\n  {call} end)\n \
             local _, again = xpcall(function() {call} end, function(e) return 'handled ' .. e end)\n \
             local _, other = coroutine.resume(coroutine.create(function() {call} end))\n \
             h:headers():add('x-told', why) h:headers():add('x-again', again) h:headers():add('x-other', other) end"
        );
        let (filter, mut stream) = (super::tests::filter(&text), self::stream());
        filter.request(&mut stream);
        [("x-told", 3, ""), ("x-again", 4, "handled "), ("x-other", 5, "")].map(|(name, line, before)| {
            let told = header(&stream, name);
            let place = format!("{before}[string \"function envoy_on_request(h)...\"]:{line}: ");
            told.strip_prefix(&place).unwrap_or_else(|| panic!("{call}: {told}")).to_owned()
        })
    };
    let all = |text: &str| [text, text, text].map(str::to_owned);
    assert_eq!(failing("h:headers():get()"), all("bad argument #1 (string expected, got no value)"));
    assert_eq!(
        failing("h:httpCall('none', {}, '', 1)"),
        all("http call cluster invalid. Must be configured")
    );
    let filter = super::tests::filter("function envoy_on_request(h)\n h:respond({}, 'x') end");
    filter.request(&mut self::stream());
    assert_eq!(filter.errors(), 1);
    assert!(Vm::new("error('at load')").err().unwrap().starts_with("[string \"error('at load')\"]:1: "));
}

/// LuaJIT's own functions, and those in their place, of many texts and patterns.
#[test]
fn patterns_match_as_luajit_s_do() {
    let lua = mlua::Lua::new();
    lua.load(include_str!("tests/patterns.lua")).exec().unwrap();
    let budget = Arc::new(budget::Budget::new());
    strings::bound(&lua, &budget).unwrap();
    let compare: mlua::Function = lua.globals().get("compare").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut some = |words: &[&str], most: usize| -> String {
        (0..random.usize(..=most)).map(|_| words[random.usize(..words.len())]).collect()
    };
    let items = [
        "a", "b", ".", "%a", "%d", "%S", "%w", "[ab]", "[^a]", "[]a]", "[a-c%d]", "[%]-]", "(", ")", "()",
        "*", "+", "-", "?", "^", "$", "%1", "%2", "%b()", "%f[a]", "%f[^%z]", "%", "[", "%%", "%.", "]",
        "\0", "%z", "[a", "%bx",
    ];
    for _ in 0..20_000 {
        let text = some(&["a", "b", "c", "1", " ", "(", ")", "]", "%", "\0", "ab"], 8);
        let with = some(&["x", "%1", "%0", "%2", "%%", "%", "%a"], 3);
        let pattern = some(&items, 5);
        budget.renew();
        compare.call::<()>((text, pattern, with)).unwrap();
    }
}

/// The last value of a key counts.
#[test]
fn metadata_is_of_its_namespace() {
    let set =
        "local m = h:streamInfo():dynamicMetadata() m:set('a', 'k', 1) m:set('b', 'k', 2) m:set('a', 'k', 3)";
    let filter = filter(&format!(
        "function envoy_on_request(h)
           {set}
           h:headers():add('x-told', m:get('a').k .. ' ' .. m:get('b').k .. ' ' .. select('#', m:get('c')))
         end"
    ));
    let mut stream = stream();
    filter.request(&mut stream);
    assert_eq!((header(&stream, "x-told"), filter.errors()), ("3 2 0", 0));
}

/// Nor is there room for more by another wait, or in the filter state.
#[test]
fn what_is_kept_beside_a_message_is_bounded() {
    for set in [
        "h:streamInfo():dynamicMetadata():set('a', 'k' .. i, text)",
        "h:streamInfo():filterState():set('f', 'k' .. i, text)",
    ] {
        let filter = filter(&format!(
            "function envoy_on_request(h)
               local text, i = ('x'):rep(100000), 0
               while i < 100 and pcall(function() {set} end) do i = i + 1 end
               h:headers():add('x-told', i)
             end"
        ));
        let mut stream = stream();
        filter.request(&mut stream);
        assert_eq!((header(&stream, "x-told"), filter.errors()), ("10", 0), "{set}");
    }
}

/// Nobody looks whether it is sound.
#[test]
fn compiled_code_is_not_taken() {
    for (expression, expected) in [
        ("tostring(string.dump)", "nil"),
        ("(select(2, load('\\27LJ\\2')))", "attempt to load chunk with wrong mode"),
        ("(select(2, loadstring('\\27LJ\\2', 'n', 'b')))", "attempt to load chunk with wrong mode"),
        ("(select(2, load(function() return '\\27LJ\\2' end)))", "attempt to load chunk with wrong mode"),
        ("load('return x', 'n', 't', {x = 5})()", "5"),
    ] {
        assert_eq!(told(expression), expected, "{expression}");
    }
    assert_eq!(Vm::new("\u{1b}LJ\u{2}").err().unwrap(), "attempt to load a binary chunk (mode is 't')");
}

#[test]
fn files_and_processes_are_out_of_reach() {
    for name in [
        "io",
        "require",
        "module",
        "package",
        "dofile",
        "loadfile",
        "jit",
        "debug",
        "os.execute",
        "os.remove",
        "os.exit",
        "os.getenv",
        "os.rename",
        "os.tmpname",
        "os.setlocale",
    ] {
        assert_eq!(told(&format!("tostring({name})")), "nil", "{name}");
    }
    assert_eq!(told("type(os.time()) .. bit.band(6, 3)"), "number2");
}

#[test]
fn a_script_sees_its_surroundings() {
    assert_eq!(told("h:streamInfo():protocol()"), "HTTP/1.1");
    assert_eq!(told("h:streamInfo():downstreamRemoteAddress()"), "10.1.2.3:4000");
    assert_eq!(told("tostring(h:connection():ssl())"), "nil");
    assert_eq!(told("h:base64Escape('ab')"), "YWI=");
    assert_eq!(told("h:timestamp(EnvoyTimestampResolution.MICROSECOND) > 1e15 and 'us' or 'ms'"), "us");
    assert_eq!(told("table.concat({h:headers():get('x-a'), h:headers():getNumValues('x-a')}, ' ')"), "1,2 2");
}

/// What one request has left in a global variable stood for the next one's.
#[test]
fn objects_of_one_request_are_of_no_use_to_another() {
    let filter = filter(
        "local kept
         function envoy_on_request(h)
           if kept then kept:headers():add('x-stolen', '1') end
           kept = h
         end",
    );
    filter.request(&mut stream());
    let mut second = stream();
    filter.request(&mut second);
    assert_eq!((filter.errors(), header(&second, "x-stolen")), (1, "none"));
}

#[test]
fn bodies_pass_in_pieces() {
    let filter = filter(
        "function envoy_on_response(h)
           for piece in h:bodyChunks() do piece:setBytes('<' .. piece:getBytes(0, piece:length()) .. '>') end
         end",
    );
    let body = filter.response(&mut stream(), &["ab", "c", ""], &[]);
    assert_eq!((body.as_str(), filter.errors()), ("<ab><c>", 0));
}

/// The script of the response took the place of that of the request, and got its pieces too.
#[test]
fn a_request_goes_on_behind_the_head_of_its_response() {
    let filter = filter(
        "function envoy_on_request(h)
           for piece in h:bodyChunks() do piece:setBytes('<' .. piece:getBytes(0, piece:length()) .. '>') end
         end
         function envoy_on_response(h)
           for piece in h:bodyChunks() do piece:setBytes('(' .. piece:getBytes(0, piece:length()) .. ')') end
         end",
    );
    let mut stream = stream();
    assert!(matches!(filter.request(&mut stream), Outcome::Done));
    stream.response.status = 200;
    assert!(matches!(filter.run(HeadPhase::HeaderFilter, &mut stream), Outcome::Done));
    let (request, response) = (Direction::Request, Direction::Response);
    for (direction, seen) in [(request, "<ping>"), (response, "(ping)"), (request, "<ping>")] {
        match BodyFilters::new(direction).push(&filter.chain, &mut stream, b"ping", false) {
            Filtered::Data(data) => assert_eq!(seen.as_bytes(), data),
            other => panic!("{seen}: {other:?}"),
        }
    }
    assert_eq!(filter.errors(), 0);
}

/// The head waits for the body, and is the script's until then.
#[test]
fn a_script_that_wants_the_whole_response_has_its_head_too() {
    let filter = filter(
        "function envoy_on_response(h)
           local body = h:body()
           h:headers():add('x-had', body and body:getBytes(0, body:length()) or 'none')
           if body then body:setBytes('short') end
         end",
    );
    let had = |ends: bool, pieces: &[&str]| {
        let mut stream = stream();
        stream.ends_with_head = ends;
        stream.response.headers.set("content-length", b"6");
        let body = filter.response(&mut stream, pieces, &[]);
        let header = |name| stream.response.headers.get_str(name).unwrap_or("missing").to_owned();
        (header("x-had"), body, header("content-length"), stream.response_head_held().is_some())
    };
    let told = |had: &str, body: &str, length: &str, held| (had.into(), body.into(), length.into(), held);
    assert_eq!(had(false, &["abc", "def", ""]), told("abcdef", "short", "5", true));
    assert_eq!(had(false, &[""]), told("none", "", "6", true));
    assert_eq!(had(true, &[""]), told("none", "", "6", false));
    assert_eq!(filter.errors(), 0);
}

/// Filters behind have had the head before the body is there: the length that a compressor has taken off came back, and clients
/// waited for bytes that were not to come.
#[test]
fn the_length_of_a_body_that_is_encoded_behind_the_script_is_not_told() {
    let filter = filter("function envoy_on_response(h) h:body():setBytes('other') end");
    let length = |sized: bool, behind: fn(&mut Stream)| {
        let mut stream = stream();
        stream.response.status = 200;
        if sized {
            stream.response.headers.set("content-length", b"4");
        }
        assert!(matches!(filter.run(HeadPhase::HeaderFilter, &mut stream), Outcome::Done));
        behind(&mut stream);
        match BodyFilters::new(Direction::Response).push(&filter.chain, &mut stream, b"body", true) {
            Filtered::Data(data) => assert_eq!(data, "other"),
            other => panic!("{other:?}"),
        }
        stream.response.headers.get_str("content-length").map(str::to_owned)
    };
    assert_eq!(length(true, |_| {}).as_deref(), Some("5"));
    assert_eq!(length(false, |_| {}).as_deref(), Some("5"));
    let unsized_behind = |stream: &mut Stream| assert!(stream.response.headers.remove("content-length"));
    assert_eq!(length(true, unsized_behind), None);
    assert_eq!(length(false, |stream| stream.response.headers.set("content-encoding", b"gzip")), None);
    assert_eq!(filter.errors(), 0);
}

#[test]
fn a_script_that_wants_the_whole_request_goes_on_once_it_is_there() {
    let filter = filter(
        "function envoy_on_request(h)
           local body = h:body()
           body:setBytes(body:getBytes(0, 2) .. '!')
         end",
    );
    let mut stream = stream();
    assert!(matches!(
        filter.request(&mut stream),
        Outcome::ReadBody(_, ReadBody { limit: LONGEST_BODY, .. })
    ));
    stream.request_body = Some(Bytes::from_static(b"hello"));
    assert!(matches!(filter.request(&mut stream), Outcome::Done));
    let wanted = (Some(Bytes::from_static(b"he!")), "3", 0);
    assert_eq!((stream.request_body.clone(), header(&stream, "content-length"), filter.errors()), wanted);
}

#[test]
fn scripts_see_and_change_trailers() {
    for before in ["for _ in h:bodyChunks() do end", ""] {
        let filter = filter(&format!(
            "function envoy_on_response(h)
               {before}
               local trailers = h:trailers()
               local was = trailers and trailers:get('x-t') or 'none'
               h:streamInfo():dynamicMetadata():set('n', 'was', was)
               if trailers then trailers:replace('x-t', was .. '!') trailers:add('x-new', '1') end
             end"
        ));
        let seen = |trailers: &[(&str, &str)]| {
            let mut stream = stream();
            assert_eq!(filter.response(&mut stream, &["ab", ""], trailers), "ab");
            let now = |name| stream.response_trailers.get_str(name).unwrap_or("none").to_owned();
            let was: Vec<String> = stream.metadata.iter().map(|(_, _, value)| value.to_string()).collect();
            (was.concat(), now("x-t"), now("x-new"))
        };
        let told = |was: &str, now: &str, new: &str| (was.to_owned(), now.to_owned(), new.to_owned());
        assert_eq!(seen(&[("x-t", "1")]), told("\"1\"", "1!", "1"), "{before}");
        assert_eq!(seen(&[]), told("\"none\"", "none", "none"), "{before}");
        assert_eq!(filter.errors(), 0, "{before}");
    }
}

#[test]
fn what_is_wrong_is_told_when_it_is_loaded() {
    let fault = |own: &ProtoLua, overrides: &[LuaPerRoute]| build_with(own, overrides).err().unwrap();
    let own = |text: &str| ProtoLua { default_source_code: Some(source(text)), ..ProtoLua::default() };
    assert!(fault(&own("function ("), &[]).starts_with("script load error: "));
    assert!(fault(&own("error('at load')"), &[]).contains("at load"));
    let paths = ProtoLua { package_paths: vec!["x".into()], ..ProtoLua::default() };
    assert_eq!(fault(&paths, &[]), "package_paths: is not supported");
    #[allow(deprecated)]
    let both = ProtoLua { inline_code: "x = 1".into(), ..own("y = 1") };
    assert!(fault(&both, &[]).starts_with("inline_code: "));
    let named = ProtoLua { source_codes: [("n".to_owned(), source("("))].into(), ..ProtoLua::default() };
    assert!(fault(&named, &[]).starts_with("source_codes.n: "));
    assert!(build_with(&own("x = 1"), &[]).unwrap().chain.members()[0].plugin.is_idle());
}

#[test]
fn routes_have_scripts_and_contexts_of_their_own() {
    let script =
        |who: &str| source(&format!("function envoy_on_request(h) h:headers():add('x-who', '{who}') end"));
    let own = ProtoLua {
        default_source_code: Some(script("default")),
        source_codes: [("named".to_owned(), script("named"))].into(),
        ..ProtoLua::default()
    };
    let who = |r#override: Option<Override>| {
        let filter = build_with(&own, &[LuaPerRoute { r#override, ..LuaPerRoute::default() }]).unwrap();
        let mut stream = stream();
        filter.request(&mut stream);
        header(&stream, "x-who").to_owned()
    };
    assert_eq!(who(None), "default");
    assert_eq!(who(Some(Override::Name("named".into()))), "named");
    assert_eq!(who(Some(Override::Name("nobody".into()))), "none");
    assert_eq!(who(Some(Override::Disabled(true))), "none");
    assert_eq!(who(Some(Override::SourceCode(script("own")))), "own");
}

#[test]
fn values_become_lua_s_and_json_again() {
    let lua = mlua::Lua::new();
    let value = serde_json::json!({"a": [1, 2.5, "x"], "b": {"c": true, "d": null}, "e": -7});
    let mut left = 8 * size_of::<serde_json::Value>() + "abcex".len();
    let back = values::of_lua(&values::to_lua(&lua, &value).unwrap(), &mut left).unwrap();
    assert_eq!(back, serde_json::json!({"a": [1, 2.5, "x"], "b": {"c": true}, "e": -7}));
    let circle: mlua::Value = lua.load("local t = {} t.t = t return t").eval().unwrap();
    assert!(values::of_lua(&circle, &mut usize::MAX.clone()).is_err());
    let twice: mlua::Value =
        lua.load("local t = {'x'} for _ = 1, 40 do t = {t, t} end return t").eval().unwrap();
    assert!(values::of_lua(&twice, &mut 1_000_000).is_err());
}

/// Each route had a machine of its own on each worker, also for the script of another.
#[test]
fn routes_with_one_script_share_its_machine() {
    let text = "count = 0 function envoy_on_request(h) count = count + 1 \
                h:headers():replace('x-n', count .. (h:filterContext():get('tier') or '')) end";
    let own = ProtoLua { default_source_code: Some(source(text)), ..ProtoLua::default() };
    let shared = Arc::default();
    let of_tier = |tier: &str| {
        let route: LuaPerRoute = testing::read(&format!("{{filter_context: {{tier: {tier}}}}}"));
        build_in(&own, &[route], &shared).unwrap()
    };
    let routes = [of_tier("gold"), of_tier("silver")];
    for (filter, expected) in [(&routes[0], "1gold"), (&routes[1], "2silver"), (&routes[0], "3gold")] {
        let mut s = stream();
        drop(filter.request(&mut s));
        assert_eq!(testing::request_header(&s, "x-n"), Some(expected));
    }
    // Whoever has a state of its own in Envoy has one here.
    let named = ProtoLua { source_codes: [("other".to_owned(), source(text))].into(), ..own.clone() };
    let count = |overrides: &[LuaPerRoute]| {
        let (filter, mut s) = (build_in(&named, overrides, &shared).unwrap(), stream());
        drop(filter.request(&mut s));
        testing::request_header(&s, "x-n").map(str::to_owned)
    };
    let of = |r#override| [LuaPerRoute { r#override: Some(r#override), ..LuaPerRoute::default() }];
    assert_eq!(count(&of(Override::Name("other".to_owned()))).as_deref(), Some("1"));
    for _ in 0..2 {
        assert_eq!(count(&of(Override::SourceCode(source(text)))).as_deref(), Some("1"));
    }
    assert_eq!(count(&[]).as_deref(), Some("4"));
    assert!(factory().told_apart, "routes that say the same would share an instance");
}
