//! What a status of gRPC is in HTTP, and the other way round (source/common/grpc/status.cc).

/// The HTTP status of a gRPC status (`grpcToHttpStatus`).
pub fn to_http(code: u32) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The gRPC status of an HTTP status (`httpToGrpcStatus`).
pub fn of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_their_counterparts() {
        let codes: Vec<u16> = (0..18).map(to_http).collect();
        let statuses =
            [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401, 500];
        assert_eq!(codes, statuses);
        assert_eq!([400, 401, 403, 404, 429, 503, 500, 418].map(of_http), [13, 16, 7, 12, 14, 14, 2, 2]);
    }
}
