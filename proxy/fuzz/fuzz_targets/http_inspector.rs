#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_server::listener::filters::http_inspector::fuzz(data));
