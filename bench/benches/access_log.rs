//! What a line of an access log costs.

use divan::{Bencher, black_box};
use serde_json::json;
use sixfold_bench::fixtures::request;
use sixfold_core::format::{ENVOY_DEFAULT, Format, JsonOptions};

fn main() {
    divan::main();
}

fn write(bencher: Bencher<'_, '_>, format: Result<Format, String>) {
    let Ok(format) = format else { return };
    let mut stream = request(1);
    stream.response.status = 200;
    stream.start_time = std::time::SystemTime::now();
    let mut line = Vec::new();
    bencher.bench_local(|| {
        line.clear();
        format.write_log(black_box(&stream), &mut line);
        black_box(line.len())
    });
}

#[divan::bench]
fn envoys_default_line(bencher: Bencher<'_, '_>) {
    write(bencher, Format::envoy(ENVOY_DEFAULT));
}

#[divan::bench]
fn apisix_default_line(bencher: Bencher<'_, '_>) {
    let line = "$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent \
                $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status";
    write(bencher, Format::nginx_log(line));
}

#[divan::bench]
fn json_line(bencher: Bencher<'_, '_>) {
    let document = json!({
        "start": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%", "code": "%RESPONSE_CODE%",
        "bytes": "%BYTES_SENT%", "agent": "%REQ(USER-AGENT)%", "host": "%UPSTREAM_HOST%",
    });
    write(bencher, Format::json(&document, JsonOptions::default()));
}
