//! Request headers that only one plugin may set.

use crate::headers::{HeaderName, Headers};

/// Names of request headers by which a plugin tells the upstream what it has found out, such as who the client
/// is. A client must not be able to say it itself, neither by that name nor by one that servers take for the
/// same: CGI and its heirs spell `X-User`, `X_User` and `X.User` alike.
///
/// They leave the request before any plugin of its chain runs, so that none can be told by the client what only the
/// owner may say. What the owner itself judges of the client's ([`OwnedHeaders::judging`]) stays until it runs.
#[derive(Debug, Default)]
pub struct OwnedHeaders {
    names: Box<[HeaderName]>,
    /// Those that leave at the edge.
    at_edge: Box<[HeaderName]>,
}

impl OwnedHeaders {
    /// Owns these names and their aliases.
    pub fn new(names: Vec<HeaderName>) -> OwnedHeaders {
        OwnedHeaders { at_edge: names.clone().into(), names: names.into() }
    }

    /// The plugin looks at what the client says under a name for which `judged` holds, a credential for instance: that
    /// stays for those that run before it.
    #[must_use]
    pub fn judging(mut self, judged: impl Fn(&HeaderName) -> bool) -> OwnedHeaders {
        self.at_edge = self.names.iter().filter(|name| !judged(name)).cloned().collect();
        self
    }

    /// The names, without aliases.
    pub fn names(&self) -> &[HeaderName] {
        &self.names
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Removes every header of an owned name or an alias of one: the plugin says now what they are, or that they are not.
    pub fn strip(&self, headers: &mut Headers) {
        strip(&self.names, headers);
    }

    /// Removes those that no plugin needs of the client.
    pub(super) fn strip_at_edge(&self, headers: &mut Headers) {
        strip(&self.at_edge, headers);
    }
}

fn strip(names: &[HeaderName], headers: &mut Headers) {
    if !names.is_empty() {
        headers.retain(|_, name, _| !names.iter().any(|owned| alike(owned.as_str().as_bytes(), name)));
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
