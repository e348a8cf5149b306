//! Request ids.

/// A random UUID (RFC 9562 version 4) in its text form.
pub(super) fn uuid_v4() -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    // Version and variant have fixed bits.
    let id = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut digits = id.to_be_bytes().into_iter().flat_map(|b| [b >> 4, b & 15]);
    std::array::from_fn(|at| match at {
        8 | 13 | 18 | 23 => b'-',
        _ => digits.next().map_or(b'0', |digit| HEX[usize::from(digit)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids_of_version_4() {
        let (a, b) = (uuid_v4(), uuid_v4());
        assert_ne!(a, b);
        for id in [a, b] {
            assert!(id.iter().enumerate().all(|(i, c)| match i {
                8 | 13 | 18 | 23 => *c == b'-',
                14 => *c == b'4',
                19 => b"89ab".contains(c),
                _ => c.is_ascii_hexdigit() && !c.is_ascii_uppercase(),
            }));
        }
    }
}
