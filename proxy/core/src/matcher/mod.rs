//! Tests of texts, headers, queries and cookies, prepared when configuration arrives.

mod header;
mod pairs;
mod query;
mod string;
mod value;

#[cfg(test)]
pub(crate) use header::TESTED;
pub use header::{HeaderMatch, HeaderMatcher, HeaderTarget};
#[cfg(test)]
pub(crate) use pairs::STEPS;
pub(crate) use pairs::{argument, cookie_value, decode, with_argument};
pub use query::{CookieMatcher, QueryMatcher, cookie, parameter, raw_cookie};
pub use string::StringMatcher;
pub use value::{MetadataMatcher, ValueMatcher};
