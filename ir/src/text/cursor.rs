//! A place in a text, and the small things that are read there.

use std::rc::Rc;

use crate::diagnostic::{Diagnostic, Origin};
use crate::dim::Dim;
use crate::dtype::DType;
use crate::scalar::{Literal, ScalarExpr, ScalarFn, ScalarValue};
use crate::types::{Shape, TensorType, Type};

/// Sizes, programs and regions may be nested this deep.
const DEPTH: usize = 200;

/// A part of a text, read from its start.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    end: usize,
    depth: usize,
    /// Where lines end.
    ends: Rc<[usize]>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Cursor<'a> {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Cursor { text, at: 0, end: text.len(), depth: 0, ends }
    }

    /// An error here: line and column, from 1, then what is wrong.
    pub(super) fn error(&self, message: impl AsRef<str>) -> Diagnostic {
        let mut place = self.clone();
        place.skip();
        let before = &self.text[..place.at];
        let line = place.line();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Diagnostic::new("E0601", format!("{line}:{column}: {}", message.as_ref())).at(Origin::Text { line })
    }

    /// The line, from 1.
    pub(super) fn line(&self) -> u32 {
        self.ends.partition_point(|end| *end < self.at) as u32 + 1
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..self.end]
    }

    /// Skips white space and comments, which run from `//` to the end of the line.
    pub(super) fn skip(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    pub(super) fn is_done(&mut self) -> bool {
        self.skip();
        self.at >= self.end
    }

    /// Takes `token` if it is next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(super) fn expect(&mut self, token: &str) -> Result<(), Diagnostic> {
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("`{token}` is expected"))) }
    }

    /// Skips to behind `token`.
    pub(super) fn skip_past(&mut self, token: &str) -> Result<(), Diagnostic> {
        let found = self.rest().find(token).ok_or_else(|| self.error(format!("`{token}` is expected")))?;
        self.at += found + token.len();
        Ok(())
    }

    /// A run of letters, digits, `_` and `.`; perhaps empty.
    pub(super) fn word(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    /// A number: everything that may stand in one.
    fn number(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let mut length = 0;
        for (i, c) in rest.char_indices() {
            let sign = matches!(c, '+' | '-') && (i == 0 || matches!(rest.as_bytes()[i - 1], b'e' | b'E'));
            if !c.is_ascii_alphanumeric() && c != '.' && !sign {
                break;
            }
            length = i + c.len_utf8();
        }
        self.at += length;
        &rest[..length]
    }

    pub(super) fn int(&mut self) -> Result<i64, Diagnostic> {
        let before = self.clone();
        self.number().parse().map_err(|_| before.error("a whole number is expected"))
    }

    pub(super) fn float(&mut self) -> Result<f64, Diagnostic> {
        let before = self.clone();
        let number = self.number();
        let bits = number.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()).map(f64::from_bits);
        let plain = || if number == "nan" { Some(f64::NAN) } else { number.parse().ok() };
        bits.or_else(plain).ok_or_else(|| before.error("a number is expected"))
    }

    pub(super) fn truth(&mut self) -> Result<bool, Diagnostic> {
        let before = self.clone();
        match self.word() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(before.error("`true` or `false` is expected")),
        }
    }

    /// An element of a tensor.
    pub(super) fn element(&mut self, dtype: DType) -> Result<ScalarValue, Diagnostic> {
        let before = self.clone();
        Ok(match dtype {
            DType::Bool => ScalarValue::Bool(self.truth()?),
            // rounding twice, to f64 and then to the type, could differ from rounding once
            DType::F32 => match self.number() {
                hex if hex.starts_with("0x") || hex == "nan" => ScalarValue::Float(before.clone().float()?),
                text => {
                    let value: f32 = text.parse().map_err(|_| before.error("a number is expected"))?;
                    ScalarValue::Float(f64::from(value))
                }
            },
            dtype if dtype.is_float() => ScalarValue::Float(self.float()?),
            _ => {
                let value: i128 = self.number().parse().map_err(|_| before.error("a whole number is expected"))?;
                match ScalarValue::Int(value).cast(dtype) == ScalarValue::Int(value) {
                    true => ScalarValue::Int(value),
                    false => return Err(before.error(format!("{value} does not fit {dtype}"))),
                }
            }
        })
    }

    /// `1.5:f32`.
    pub(super) fn literal(&mut self) -> Result<Literal, Diagnostic> {
        // the type stands behind the value, but says how to read it
        let mut ahead = self.clone();
        ahead.number();
        ahead.expect(":")?;
        let dtype = ahead.dtype()?;
        let value = self.element(dtype)?;
        self.expect(":")?;
        self.dtype()?;
        Ok(Literal::new(value, dtype))
    }

    pub(super) fn dtype(&mut self) -> Result<DType, Diagnostic> {
        let before = self.clone();
        self.word().parse().map_err(|why: String| before.error(why))
    }

    /// A name in quotes.
    pub(super) fn quoted(&mut self) -> Result<String, Diagnostic> {
        self.expect("\"")?;
        let mut text = String::new();
        let start = self.clone();
        loop {
            let mut chars = self.rest().chars();
            let Some(c) = chars.next() else { return Err(start.error("a name is not closed")) };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(text),
                '\\' => {
                    let Some(escaped) = chars.next() else { return Err(start.error("a name is not closed")) };
                    self.at += escaped.len_utf8();
                    if escaped != 'u' {
                        text.push(escaped);
                        continue;
                    }
                    let code = self.rest().strip_prefix('{').and_then(|r| r.split_once('}')).map(|(code, _)| code);
                    let found = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
                    let (Some(code), Some(c)) = (code, found) else { return Err(self.error("a bad escape")) };
                    self.at += code.len() + 2;
                    text.push(c);
                }
                c => text.push(c),
            }
        }
    }

    /// Items between brackets, separated by commas.
    pub(super) fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, Diagnostic>,
    ) -> Result<Vec<T>, Diagnostic> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            if !self.eat(",") {
                return Err(self.error(format!("`,` or `{close}` is expected")));
            }
        }
    }

    /// Reads something that may hold itself.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Diagnostic>) -> Result<T, Diagnostic> {
        if self.depth >= DEPTH {
            return Err(self.error("nested too deep"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// A sum of products.
    pub(super) fn dim(&mut self) -> Result<Dim, Diagnostic> {
        self.nested(|c| {
            let mut sum = c.signed(Dim::ZERO)?;
            loop {
                c.skip();
                if !matches!(c.rest().as_bytes().first(), Some(b'+' | b'-')) {
                    return Ok(sum);
                }
                sum = c.signed(sum)?;
            }
        })
    }

    fn signed(&mut self, sum: Dim) -> Result<Dim, Diagnostic> {
        let negative = self.eat("-");
        let _ = !negative && self.eat("+");
        let mut product = self.atom()?;
        while self.eat("*") {
            product = product * self.atom()?;
        }
        Ok(if negative { sum - product } else { sum + product })
    }

    fn atom(&mut self) -> Result<Dim, Diagnostic> {
        let before = self.clone();
        let word = self.word();
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse::<i64>().map(Dim::from).map_err(|_| before.error("a size is expected"));
        }
        if word.is_empty() || word.contains('.') {
            return Err(before.error("a size is expected"));
        }
        if self.eat("(") {
            if word == "fresh" {
                let id = u32::try_from(self.int()?).map_err(|_| before.error("a bad number"))?;
                self.expect(",")?;
                let bound = self.dim()?;
                self.expect(")")?;
                return Ok(Dim::fresh(id, bound));
            }
            let a = self.dim()?;
            self.expect(",")?;
            let b = self.dim()?;
            self.expect(")")?;
            return match word {
                "floordiv" => Ok(a.floor_div(&b)),
                "mod" => Ok(a.modulo(&b)),
                "min" => Ok(a.minimum(&b)),
                "max" => Ok(a.maximum(&b)),
                _ => Err(before.error(format!("`{word}` is no function of sizes"))),
            };
        }
        if !self.eat("[") {
            return Ok(Dim::symbol(word));
        }
        let range = self.word();
        self.expect("]")?;
        let bounds = range.split_once("..").and_then(|(min, max)| {
            let max = if max.is_empty() { i64::MAX } else { max.parse().ok()? };
            Some((min.parse::<i64>().ok()?, max))
        });
        let (min, max) = bounds.ok_or_else(|| before.error("a range such as `[2..8]` is expected"))?;
        Ok(Dim::symbol_in(word, min, max))
    }

    pub(super) fn shape(&mut self) -> Result<Shape, Diagnostic> {
        self.list("[", "]", Cursor::dim).map(Shape::from_iter)
    }

    pub(super) fn ty(&mut self) -> Result<Type, Diagnostic> {
        let tensor = |c: &mut Self| Ok(TensorType { dtype: c.dtype()?, shape: c.shape()? });
        let mut ahead = self.clone();
        if ahead.eat("(") {
            return self.list("(", ")", tensor).map(|parts| Type::Tuple(parts.into()));
        }
        tensor(self).map(Type::Tensor)
    }

    /// A scalar program.
    pub(super) fn expr(&mut self) -> Result<ScalarExpr, Diagnostic> {
        self.nested(|c| {
            let mut ahead = c.clone();
            let word = ahead.word();
            if let Some(arg) = word.strip_prefix('p').and_then(|n| n.parse::<u16>().ok()) {
                *c = ahead;
                return Ok(ScalarExpr::arg(usize::from(arg)));
            }
            if word == "cast" && ahead.eat("<") {
                let dtype = ahead.dtype()?;
                ahead.expect(">")?;
                ahead.expect("(")?;
                let inner = ahead.expr()?;
                ahead.expect(")")?;
                *c = ahead;
                return Ok(inner.cast(dtype));
            }
            let Some(f) = ScalarFn::from_name(word) else { return c.literal().map(ScalarExpr::constant) };
            let args = ahead.list("(", ")", Cursor::expr)?;
            if args.len() != f.arity() {
                return Err(c.error(format!("`{word}` takes {} operands, not {}", f.arity(), args.len())));
            }
            *c = ahead;
            Ok(ScalarExpr::unfolded(f, args))
        })
    }

    /// The text of one value, to be read later: up to a comma or a closing brace that is not its own.
    pub(super) fn value(&mut self) -> Result<Cursor<'a>, Diagnostic> {
        self.skip();
        let start = self.clone();
        let (mut open, mut quoted, mut escaped) = (0usize, false, false);
        for (i, c) in self.rest().char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                '(' | '[' | '{' => open += 1,
                ',' | '}' if open == 0 => {
                    let mut inner = start.clone();
                    inner.end = start.at + i;
                    self.at += i;
                    return Ok(inner);
                }
                ')' | ']' | '}' if open > 0 => open -= 1,
                _ => {}
            }
        }
        Err(start.error("an attribute is not closed"))
    }
}
