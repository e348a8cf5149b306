//! Answers that the proxy makes itself: what is refused, what they look like, and what becomes of the connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use sixfold_core::access_log::AccessLog;
use sixfold_core::format::Format;
use sixfold_core::hcm::{ClientAddress, Profile};
use std::sync::Arc;

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
