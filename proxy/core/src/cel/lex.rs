//! Words of an expression.

use super::ast::Constant;

/// A word.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Literal(Constant),
    /// `.`, `&&`, `(`, ...
    Sign(&'static str),
    End,
}

/// Signs, the longer ones first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ".", ",", ":", "?", "<", ">", "!", "+",
    "-", "*", "/", "%",
];

/// Cuts a text into words.
///
/// # Errors
/// What is no word, with its place.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let blank = rest.len() - rest.trim_start().len();
        if blank > 0 {
            at += blank;
        } else if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else {
            let (token, len) = token(rest).map_err(|reason| format!("{reason} at {}", at + 1))?;
            found.push(token);
            at += len;
        }
    }
    found.push(Token::End);
    Ok(found)
}

fn token(rest: &str) -> Result<(Token, usize), String> {
    if let Some((constant, len)) = quoted(rest)? {
        return Ok((Token::Literal(constant), len));
    }
    let first = rest.chars().next().unwrap_or_default();
    let number_follows = rest.get(1..2).is_some_and(|next| next.starts_with(|c: char| c.is_ascii_digit()));
    if first.is_ascii_digit() || (first == '.' && number_follows) {
        return number(rest).map(|(constant, len)| (Token::Literal(constant), len));
    }
    if first.is_ascii_alphabetic() || first == '_' {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = rest.get(..len).unwrap_or_default();
        let token = match word {
            "true" => Token::Literal(Constant::Bool(true)),
            "false" => Token::Literal(Constant::Bool(false)),
            "null" => Token::Literal(Constant::Null),
            "in" => Token::Sign("in"),
            word => Token::Ident(word.to_owned()),
        };
        return Ok((token, len));
    }
    match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
        Some(sign) => Ok((Token::Sign(sign), sign.len())),
        None => Err(format!("'{first}' is not expected")),
    }
}

fn number(rest: &str) -> Result<(Constant, usize), String> {
    let hex = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X"));
    let (digits, radix, start) = match hex {
        Some(digits) => (digits, 16, 2),
        None => (rest, 10, 0),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (whole, after) = digits.split_at(end);
    let bytes = after.as_bytes();
    let exponent = matches!(bytes.first(), Some(b'e' | b'E'));
    let fraction = bytes.first() == Some(&b'.') && bytes.get(1).is_some_and(u8::is_ascii_digit);
    if radix == 10 && (fraction || exponent) {
        let len = double_len(rest);
        let text = rest.get(..len).unwrap_or_default();
        let double = text.parse().map_err(|_| format!("'{text}' is no number"))?;
        return Ok((Constant::Double(double), len));
    }
    if matches!(bytes.first(), Some(b'u' | b'U')) {
        let uint = u64::from_str_radix(whole, radix).map_err(|_| format!("'{whole}u' is no number"))?;
        return Ok((Constant::Uint(uint), start + end + 1));
    }
    // Its sign stands before it: the least number of all is one more than the greatest.
    let int = u64::from_str_radix(whole, radix).map_err(|_| format!("'{whole}' is no number"))?;
    let int = i64::try_from(int).or(if int == 1 << 63 { Ok(i64::MIN) } else { Err(()) });
    Ok((Constant::Int(int.map_err(|()| format!("'{whole}' is too large"))?), start + end))
}

fn double_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let mut at = digits(0);
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        let end = digits(at + 1 + sign);
        if end > at + 1 + sign {
            at = end;
        }
    }
    at
}

/// A string or bytes with their prefixes; `None` if `rest` begins with neither.
fn quoted(rest: &str) -> Result<Option<(Constant, usize)>, String> {
    let prefix = rest.len() - rest.trim_start_matches(['r', 'R', 'b', 'B']).len();
    let (kinds, text) = rest.split_at(prefix);
    let quote = match text.as_bytes().first() {
        Some(quote @ (b'"' | b'\'')) if prefix <= 2 => char::from(*quote),
        _ => return Ok(None),
    };
    let (raw, bytes) = (kinds.contains(['r', 'R']), kinds.contains(['b', 'B']));
    let triple = text.get(..3).is_some_and(|start| start.chars().all(|c| c == quote));
    let open = if triple { 3 } else { 1 };
    let mut out = Vec::new();
    let mut at = open;
    loop {
        let left = text.get(at..).filter(|left| !left.is_empty()).ok_or("a text has no end")?;
        if left.chars().take(open).all(|c| c == quote) && left.len() >= open {
            at += open;
            break;
        }
        let c = left.chars().next().unwrap_or_default();
        if c == '\\' && !raw {
            at += escape(left, bytes, &mut out)?;
            continue;
        }
        if c == '\n' && !triple {
            return Err("a text has no end".to_owned());
        }
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        at += c.len_utf8();
    }
    let constant = if bytes {
        Constant::Bytes(out)
    } else {
        Constant::String(String::from_utf8(out).map_err(|_| "a text is no UTF-8")?)
    };
    Ok(Some((constant, prefix + at)))
}

/// What an escape stands for; answers its length.
fn escape(left: &str, bytes: bool, out: &mut Vec<u8>) -> Result<usize, String> {
    let kind = left.chars().nth(1).ok_or("a text has no end")?;
    let plain = match kind {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => kind as u8,
        'x' | 'X' => return code(left, 2, 2, 16, bytes, out),
        'u' => return code(left, 2, 4, 16, false, out),
        'U' => return code(left, 2, 8, 16, false, out),
        '0'..='3' => return code(left, 1, 3, 8, bytes, out),
        _ => return Err(format!("'\\{kind}' stands for nothing")),
    };
    out.push(plain);
    Ok(2)
}

fn code(
    left: &str,
    from: usize,
    len: usize,
    radix: u32,
    byte: bool,
    out: &mut Vec<u8>,
) -> Result<usize, String> {
    let digits = left.get(from..from + len).unwrap_or_default();
    let number = u32::from_str_radix(digits, radix).map_err(|_| format!("'\\{digits}' is no character"))?;
    if byte {
        out.push(u8::try_from(number).map_err(|_| format!("'\\{digits}' is no byte"))?);
    } else {
        let c = char::from_u32(number).ok_or_else(|| format!("'\\{digits}' is no character"))?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(from + len)
}
