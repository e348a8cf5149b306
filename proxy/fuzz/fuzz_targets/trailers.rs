#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sixfold_server::h1::fuzz::trailers(data));
