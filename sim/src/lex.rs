//! PTX text to tokens, each with its line.

use crate::error::ParseError;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tok<'a> {
    /// A directive, an opcode with its modifiers, a register, a label: letters, digits, `_ $ % .` and `::`.
    Word(&'a str),
    /// An integer, as 64 bits of two's complement.
    Int(u64),
    /// A floating-point literal, exact in f64 (`0f…` literals are widened).
    Float(f64),
    /// What stands between quotation marks.
    Str,
    /// Any other sign.
    Sign(char),
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// The tokens of a text; comments are left out.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1).copied().unwrap_or(0);
        let start = at;
        let tok = match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | 0 => {
                at += 1;
                continue;
            }
            b'/' if next == b'/' => {
                at += bytes[at..].iter().position(|&b| b == b'\n').unwrap_or(bytes.len() - at);
                continue;
            }
            b'/' if next == b'*' => {
                let end = text[at..].find("*/").ok_or_else(|| ParseError::at(text, line, "comment without an end"))?;
                line += newlines(&bytes[at..at + end]);
                at += end + 2;
                continue;
            }
            b'"' => {
                let end = bytes[at + 1..].iter().position(|&b| b == b'"');
                let end = end.ok_or_else(|| ParseError::at(text, line, "string without an end"))?;
                out.push(Token { tok: Tok::Str, line });
                line += newlines(&bytes[at..at + end]);
                at += end + 2;
                continue;
            }
            b'0'..=b'9' => {
                at += number_length(&bytes[at..]);
                number(&text[start..at]).ok_or_else(|| ParseError::at(text, line, "a number that PTX does not have"))?
            }
            _ if is_word(byte) => {
                at += word_length(&bytes[at..]);
                Tok::Word(&text[start..at])
            }
            _ if byte.is_ascii_graphic() => {
                at += 1;
                Tok::Sign(byte as char)
            }
            _ => return Err(ParseError::at(text, line, "a character that PTX does not have")),
        };
        out.push(Token { tok, line });
    }
    Ok(out)
}

fn newlines(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|&&b| b == b'\n').count() as u32
}

/// Length of the word at the start; `::` belongs to it, a lone colon does not.
fn word_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        if is_word(bytes[at]) {
            at += 1;
        } else if bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(|&b| is_word(b)) {
            at += 2;
        } else {
            break;
        }
    }
    at
}

/// Length of the number at the start; an exponent may have a sign.
fn number_length(bytes: &[u8]) -> usize {
    let prefixed = bytes.len() > 1 && bytes[0] == b'0' && bytes[1].is_ascii_alphabetic();
    let mut at = 0;
    while at < bytes.len() {
        let sign = matches!(bytes[at], b'+' | b'-') && !prefixed && at > 0 && matches!(bytes[at - 1], b'e' | b'E');
        if !(bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.' || sign) {
            break;
        }
        at += 1;
    }
    at
}

fn number(text: &str) -> Option<Tok<'static>> {
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
    if let Some(digits) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        let bits = u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 8)?;
        return Some(Tok::Float(f32::from_bits(bits).into()));
    }
    if let Some(digits) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        return radix(digits, 16).filter(|_| digits.len() == 16).map(|bits| Tok::Float(f64::from_bits(bits)));
    }
    if text.contains('.') || (text.contains(['e', 'E']) && !text.starts_with("0x") && !text.starts_with("0X")) {
        return text.parse().ok().map(Tok::Float);
    }
    let text = text.strip_suffix('U').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return radix(digits, 16).map(Tok::Int);
    }
    if let Some(digits) = text.strip_prefix("0b") {
        return radix(digits, 2).map(Tok::Int);
    }
    text.parse().ok().map(Tok::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_signs_and_lines() {
        let all = tokens("ld.shared::cta.f32 %f1, [%r2+-4]; // x\n/* y\n */ $L: 0f3F800000 0x10U 1e-3").unwrap();
        let toks: Vec<_> = all.iter().map(|t| t.tok).collect();
        assert_eq!(toks[0], Tok::Word("ld.shared::cta.f32"));
        assert_eq!(toks[5], Tok::Sign('+'));
        assert_eq!(toks[7], Tok::Int(4));
        assert_eq!(&toks[10..], &[Tok::Word("$L"), Tok::Sign(':'), Tok::Float(1.0), Tok::Int(16), Tok::Float(1e-3)]);
        assert_eq!(all[10].line, 3);
    }

    #[test]
    fn odd_text_is_an_error_with_its_line() {
        for text in ["\n\"", "\n/* ", "\n0f12", "\né", "\n99999999999999999999999"] {
            assert_eq!(tokens(text).unwrap_err().line, 2, "{text:?}");
        }
    }
}
