//! What is counted of the codecs, under `http1.` and `http2.` of the process for clients and of a cluster for its
//! endpoints (common/http/http1/codec_stats.h, common/http/http2/codec_stats.h).

crate::stat_block! {
    /// Of HTTP/1.
    pub struct Http1Counts {
        counters: [requests_rejected_with_underscores_in_headers],
        gauges: [], histograms: [],
        zeros: [
            Counter "dropped_headers_with_underscores", Counter "metadata_not_supported_error", Counter "response_flood",
        ],
    }
}

crate::stat_block! {
    /// Of HTTP/2.
    pub struct Http2Counts {
        counters: [
            goaway_sent, inbound_empty_frames_flood, inbound_priority_frames_flood,
            inbound_window_update_frames_flood, keepalive_timeout, outbound_control_flood,
            requests_rejected_with_underscores_in_headers, rx_messaging_error, rx_reset, stream_refused_errors,
            trailers, tx_flush_timeout, tx_reset,
        ],
        gauges: [streams_active],
        histograms: [],
        zeros: [
            Counter "cookies_total_bytes_too_large", Counter "dropped_headers_with_underscores",
            Counter "header_list_size_too_large", Counter "header_overflow", Counter "headers_cb_no_stream",
            Counter "metadata_empty_frames", Counter "outbound_flood",
            Gauge "deferred_stream_close", Gauge "outbound_control_frames_active", Gauge "outbound_frames_active",
            Gauge "pending_send_bytes",
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    /// The names that Envoy 1.40 has, but for those of the libraries within.
    #[test]
    fn the_names_are_envoys() {
        let registry = Registry::new();
        let _shown = (Http1Counts::new(&registry, "http1."), Http2Counts::new(&registry, "http2."));
        let names: Vec<String> = registry.samples().into_iter().map(|sample| sample.name).collect();
        let expected = [
            "http1.dropped_headers_with_underscores",
            "http1.metadata_not_supported_error",
            "http1.requests_rejected_with_underscores_in_headers",
            "http1.response_flood",
            "http2.cookies_total_bytes_too_large",
            "http2.deferred_stream_close",
            "http2.dropped_headers_with_underscores",
            "http2.goaway_sent",
            "http2.header_list_size_too_large",
            "http2.header_overflow",
            "http2.headers_cb_no_stream",
            "http2.inbound_empty_frames_flood",
            "http2.inbound_priority_frames_flood",
            "http2.inbound_window_update_frames_flood",
            "http2.keepalive_timeout",
            "http2.metadata_empty_frames",
            "http2.outbound_control_flood",
            "http2.outbound_control_frames_active",
            "http2.outbound_flood",
            "http2.outbound_frames_active",
            "http2.pending_send_bytes",
            "http2.requests_rejected_with_underscores_in_headers",
            "http2.rx_messaging_error",
            "http2.rx_reset",
            "http2.stream_refused_errors",
            "http2.streams_active",
            "http2.trailers",
            "http2.tx_flush_timeout",
            "http2.tx_reset",
        ];
        assert_eq!(names, expected);
    }
}
