//! Request headers that only one plugin may set.

use crate::headers::{HeaderName, Headers};

/// Names of request headers by which a plugin tells the upstream what it has found out, such as who the client
/// is. A client must not be able to say it itself, neither by that name nor by one that servers take for the
/// same: CGI and its heirs spell `X-User`, `X_User` and `X.User` alike.
#[derive(Debug, Default)]
pub struct OwnedHeaders {
    names: Box<[HeaderName]>,
}

impl OwnedHeaders {
    /// Owns these names and their aliases.
    pub fn new(names: Vec<HeaderName>) -> OwnedHeaders {
        OwnedHeaders { names: names.into() }
    }

    /// The names, without aliases.
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Removes every header of an owned name or an alias of one.
    pub fn strip(&self, headers: &mut Headers) {
        if !self.names.is_empty() {
            headers
                .retain(|_, name, _| !self.names.iter().any(|owned| alike(owned.as_str().as_bytes(), name)));
        }
    }
}

/// Whether two names are one to a server that tells only letters and digits apart.
fn alike(a: &[u8], b: &[u8]) -> bool {
    let fold = |byte: &u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    a.len() == b.len() && a.iter().map(fold).eq(b.iter().map(fold))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn aliases_leave_with_the_name() {
        let owned = OwnedHeaders::new(vec![HeaderName::new("X-User").unwrap()]);
        let mut headers = Headers::new();
        for name in ["x-user", "X_USER", "x_User", "X.User", "x-users", "xuser", "x--user"] {
            headers.push(name.as_bytes(), b"eve");
        }
        owned.strip(&mut headers);
        let left: Vec<_> = headers.iter().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(left, [b"x-users".to_vec(), b"xuser".to_vec(), b"x--user".to_vec()]);
    }
}
