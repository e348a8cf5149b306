//! What must hold of expressions of any bytes at all. The fuzz target in `proxy/fuzz` calls this, and so does a test on
//! stable; a broken promise is a failed assertion.

use super::{Extras, Program};
use crate::connection::Connection;
use crate::stream::Stream;
use std::sync::Arc;

/// The bytes as the text of an expression. One that is taken has one value for a request, which is JSON where that is
/// asked for.
pub fn expression(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let extras = Extras { string_conversion: true, string_concat: true, string_functions: true };
    let Ok(program) = Program::parse(&text, extras) else { return };
    let stream = request();
    let (mut plain, mut again, mut json) = (Vec::new(), Vec::new(), Vec::new());
    let has_value = program.write(&stream, false, &mut plain);
    assert_eq!(program.write(&stream, false, &mut again), has_value);
    assert_eq!(again, plain);
    assert_eq!(program.write(&stream, true, &mut json), has_value);
    assert_eq!(program.holds(&stream), has_value && json == b"true");
    if let (true, Ok(json)) = (has_value, std::str::from_utf8(&json)) {
        assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
    }
}

fn request() -> Stream {
    let address = ([127, 0, 0, 1], 80).into();
    let mut stream = Stream::new(Arc::new(Connection::plain(address, address)));
    stream.request.target.set(b"/a/b?c=d");
    for (name, value) in
        [(&b"x-n"[..], &b"2147483647"[..]), (b"x-z", b"+-9:0"), (b"x-b", b"\xff"), (b"x-n", b"1")]
    {
        stream.request.headers.push(name, value);
    }
    stream.response.status = 503;
    stream.metadata.push(("n".into(), "k".into(), serde_json::json!({"l": ["x", 1], "t": true})));
    // Two results of one expression are compared.
    stream.start_time = std::time::UNIX_EPOCH;
    stream
}
