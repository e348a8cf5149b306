//! Cookies that requests bring.

use sixfold_core::headers::{Headers, Known};

/// Takes a cookie out of the request, however often it is there. What is left stands in fields that are spelled like
/// `field`.
pub(crate) fn clear(headers: &mut Headers, field: &str, name: &[u8]) {
    let of_name =
        |pair: &&[u8]| pair.trim_ascii().strip_prefix(name).is_some_and(|rest| rest.starts_with(b"="));
    let lines: Vec<Vec<u8>> = headers
        .get_all(Known::COOKIE)
        .map(|line| {
            let kept: Vec<&[u8]> = line.split(|byte| *byte == b';').filter(|pair| !of_name(pair)).collect();
            kept.join(&b';').trim_ascii().to_vec()
        })
        .collect();
    headers.remove(Known::COOKIE);
    for line in lines.iter().filter(|line| !line.is_empty()) {
        headers.push(field.as_bytes(), line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was left was called `cookie` whatever the client had called it.
    #[test]
    fn what_is_left_is_spelled_as_it_is_said() {
        let mut headers = Headers::new();
        headers.push(b"COOKIE", b"a=1; jwt=x; b=2");
        headers.push(b"cookie", b"jwt=y");
        clear(&mut headers, "Cookie", b"jwt");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [(&b"Cookie"[..], &b"a=1; b=2"[..])]);
    }
}
