//! Tests of texts, headers, queries and cookies, prepared when configuration arrives.

mod header;
mod query;
mod string;

#[cfg(test)]
pub(crate) use header::TESTED;
pub use header::{HeaderMatch, HeaderMatcher, HeaderTarget};
pub use query::{CookieMatcher, QueryMatcher, cookie, parameter, raw_cookie};
pub use string::StringMatcher;
