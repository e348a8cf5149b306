//! Cookies that requests bring.

use sixfold_core::headers::{Headers, Known};

/// Takes a cookie out of the request, however often it is there.
pub(crate) fn clear(headers: &mut Headers, name: &[u8]) {
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
        headers.append(Known::COOKIE, line);
    }
}
