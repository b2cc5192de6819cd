//! Programs of `generate`: steps in braces, each `p<number> = …;`, then the value.
//!
//! ```text
//! { p1 = dim n; p2 = load 0 [sub(p1, p0)] clamp; p5 = reduce_sum p3 < 4 { p4 = load 1 [p3] fault; mul(p2, p4) }; p5 }
//! ```

use std::fmt::Write;

use super::cursor::Cursor;
use crate::diagnostic::Diagnostic;
use crate::ops::{Block, InnerKind, Outside, Step};

/// Appends the text of a block whose first value has number `next`.
pub(super) fn print(text: &mut String, block: &Block, next: &mut usize) -> std::fmt::Result {
    text.push_str("{ ");
    for step in block.steps.iter() {
        write!(text, "p{} = ", step.value(*next))?;
        match step {
            Step::Dim(dim) => write!(text, "dim {dim}")?,
            Step::Let(e) => write!(text, "{e}")?,
            Step::Load { operand, index, outside } => {
                let index: Vec<String> = index.iter().map(|e| e.to_string()).collect();
                write!(text, "load {operand} [{}] ", index.join(", "))?;
                match outside {
                    Outside::Fault => text.push_str("fault"),
                    Outside::Clamp => text.push_str("clamp"),
                    Outside::Fill(value) => write!(text, "fill {value}")?,
                }
            }
            Step::Reduce { kind, extent, count, body } => {
                write!(text, "{} p{next} < {extent} ", kind.name())?;
                if let Some(count) = count {
                    write!(text, "count {count} ")?;
                }
                *next += 1;
                print(text, body, next)?;
            }
        }
        *next += 1;
        text.push_str("; ");
    }
    write!(text, "{} }}", block.result)
}

/// Reads a block whose first value has number `next`.
pub(super) fn parse(c: &mut Cursor, next: &mut usize) -> Result<Block, Diagnostic> {
    c.nested(|c| {
        c.expect("{")?;
        let mut steps = Vec::new();
        loop {
            let before = c.clone();
            let named = c.word().strip_prefix('p').and_then(|n| n.parse::<usize>().ok());
            let Some(number) = named.filter(|_| c.eat("=")) else {
                *c = before;
                let result = c.expr()?;
                c.expect("}")?;
                return Ok(Block { steps: steps.into(), result });
            };
            steps.push(step(c, next)?);
            if number != *next {
                return Err(before.error(format!("this value has number {next}")));
            }
            *next += 1;
            c.expect(";")?;
        }
    })
}

fn step(c: &mut Cursor, next: &mut usize) -> Result<Step, Diagnostic> {
    let before = c.clone();
    match c.word() {
        "dim" => Ok(Step::Dim(c.dim()?)),
        "load" => {
            let operand = usize::try_from(c.int()?).map_err(|_| before.error("an operand's number is expected"))?;
            let index = c.list("[", "]", Cursor::expr)?.into();
            let place = c.clone();
            let outside = match c.word() {
                "fault" => Outside::Fault,
                "clamp" => Outside::Clamp,
                "fill" => Outside::Fill(c.literal()?),
                _ => return Err(place.error("`fault`, `clamp` or `fill` is expected")),
            };
            Ok(Step::Load { operand, index, outside })
        }
        word => {
            let kinds = [InnerKind::Sum, InnerKind::Max, InnerKind::Min];
            let Some(kind) = kinds.into_iter().find(|kind| kind.name() == word) else {
                *c = before;
                return c.expr().map(Step::Let);
            };
            let place = c.clone();
            if c.word().strip_prefix('p').and_then(|n| n.parse().ok()) != Some(*next) {
                return Err(place.error(format!("the counter of this loop is p{next}")));
            }
            c.expect("<")?;
            let extent = c.dim()?;
            let mut ahead = c.clone();
            let count = match ahead.word() {
                "count" => {
                    *c = ahead;
                    Some(c.expr()?)
                }
                _ => None,
            };
            *next += 1;
            let body = parse(c, next)?;
            Ok(Step::Reduce { kind, extent, count, body })
        }
    }
}
