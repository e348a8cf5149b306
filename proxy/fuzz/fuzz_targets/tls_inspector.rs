#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_server::listener::filters::tls_inspector::fuzz(data));
