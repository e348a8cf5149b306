//! Workers, listeners, codecs, TLS, upstream pools and the request path of sixfold

pub mod h1;
