//! Products.

use egret_ir::{DType, Diagnostic, Dim, Literal, Shape, TensorType, Var};

use super::Results;
use crate::cx::Cx;
use crate::graph::single;

pub(super) fn matmul<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (cx.var(0)?, cx.var(1)?);
    single(a.matmul(b))
}

/// `alpha·A·B + beta·C`, with A or B transposed.
pub(super) fn gemm<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let (a, b) = (cx.var(0)?, cx.var(1)?);
    let left = if cx.int("transA", 0) != 0 { "ba" } else { "ab" };
    let right = if cx.int("transB", 0) != 0 { "cb" } else { "bc" };
    let mut y = a.dot_general(b, &format!("{left},{right}->ac"));
    let (alpha, beta) = (cx.float("alpha", 1.0), cx.float("beta", 1.0));
    if alpha != 1.0 {
        y = y * alpha;
    }
    if let Some(c) = cx.optional(2)? {
        y = y + if beta == 1.0 { c } else { c * beta };
    }
    single(y)
}

/// An operand of an einsum with a label for each axis.
type Labelled<'t> = (Var<'t>, Vec<char>);

/// Contractions of the operands from left to right.
pub(super) fn einsum<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let equation: String = cx.text("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let (terms, result) = match equation.split_once("->") {
        Some((terms, result)) => (terms.to_string(), Some(result.to_string())),
        None => (equation.clone(), None),
    };
    let terms: Vec<&str> = terms.split(',').collect();
    if terms.len() != cx.operands() {
        return Err(cx.error(format!("`{equation}` does not name {} operands", cx.operands())));
    }
    let mut operands: Vec<Labelled<'t>> = Vec::new();
    let mut dots = 0;
    for (i, term) in terms.iter().enumerate() {
        let var = cx.var(i)?;
        let named = term.replace("...", "").chars().count();
        let more = if term.contains("...") { var.rank().saturating_sub(named) } else { 0 };
        dots = dots.max(more);
        operands.push((var, expanded(term, more)));
    }
    if operands.iter().any(|(var, labels)| var.rank() != labels.len()) {
        return Err(cx.error(format!("`{equation}` does not fit its operands")));
    }
    let every: Vec<char> = operands.iter().flat_map(|(_, labels)| labels.clone()).collect();
    let out = match result {
        Some(result) => expanded(&result, dots),
        None => {
            let once = |c: &char| every.iter().filter(|d| *d == c).count() == 1;
            let mut named: Vec<char> = every.iter().copied().filter(|c| c.is_alphabetic() && once(c)).collect();
            named.sort_unstable();
            expanded("...", dots).into_iter().chain(named).collect()
        }
    };
    let mut operands = operands.into_iter();
    let Some(mut left) = operands.next() else { return Err(cx.error("has no operands")) };
    let mut rest: Vec<Labelled<'t>> = operands.collect();
    if rest.is_empty() {
        rest.push((cx.like(left.0, 1.0), Vec::new()));
    }
    for i in 0..rest.len() {
        let right = rest[i].clone();
        let later: Vec<char> = rest[i + 1..].iter().flat_map(|(_, labels)| labels.clone()).chain(out.clone()).collect();
        let last = i + 1 == rest.len();
        let mut kept: Vec<char> = Vec::new();
        for label in left.1.iter().chain(&right.1) {
            if later.contains(label) && !kept.contains(label) {
                kept.push(*label);
            }
        }
        let target = if last { out.clone() } else { kept };
        left = (cx.made(contract(cx, left, right, &target)?)?, target);
    }
    single(left.0)
}

/// Labels with `...` spelled out: digits counted so that the last axes of two operands meet.
fn expanded(term: &str, dots: usize) -> Vec<char> {
    let digits: String = (0..dots)
        .rev()
        .filter_map(|i| char::from_digit(i as u32, 36))
        .map(|c| match c {
            '0'..='9' => c,
            // 26 letters are taken by names, so more than ten unnamed axes cannot be told apart
            _ => '?',
        })
        .collect();
    term.replace("...", &digits).chars().collect()
}

fn contract<'t>(cx: &Cx<'_, 't>, a: Labelled<'t>, b: Labelled<'t>, out: &[char]) -> Result<Var<'t>, Diagnostic> {
    let mut names: Vec<char> = Vec::new();
    for label in a.1.iter().chain(&b.1) {
        if !names.contains(label) {
            names.push(*label);
        }
    }
    if names.len() > 26 || out.iter().any(|label| !names.contains(label)) {
        return Err(cx.error("labels that no operand has, or more than 26"));
    }
    // an extent of 1 that the other operand repeats is no axis of the contraction
    let squeezed = |own: &Labelled<'t>, other: &Labelled<'t>| -> Labelled<'t> {
        let shape = own.0.shape();
        let stays = |i: &usize| {
            let there = other.1.iter().position(|l| *l == own.1[*i]);
            !(shape[*i].is(1) && there.is_some_and(|j| !other.0.shape()[j].is(1)))
        };
        let kept: Vec<usize> = (0..own.1.len()).filter(stays).collect();
        let dims: Shape = kept.iter().map(|i| shape[*i].clone()).collect::<Vec<Dim>>().as_slice().into();
        (own.0.reshape(dims), kept.iter().map(|i| own.1[*i]).collect())
    };
    let (left, right) = (squeezed(&a, &b), squeezed(&b, &a));
    let spell = |labels: &[char]| -> String {
        labels.iter().filter_map(|l| names.iter().position(|n| n == l)).map(|i| char::from(b'a' + i as u8)).collect()
    };
    let text = format!("{},{}->{}", spell(&left.1), spell(&right.1), spell(out));
    Ok(left.0.dot_general(right.0, &text))
}

/// No larger matrix is eliminated, since each step is written out.
const LARGEST_MATRIX: i64 = 256;

/// The determinant of the last two axes: elimination with row pivots, one column after the other. The pivot's row is
/// taken out, which turns the sign when its place is odd.
pub(super) fn det<'t>(cx: &mut Cx<'_, 't>) -> Results<'t> {
    let x = cx.var(0)?;
    let rank = x.rank();
    if rank < 2 {
        return Err(cx.error(format!("{} is no matrix", x.ty())));
    }
    let extents = cx.extents(&x.shape()[rank - 2..])?;
    let (n, columns) = (extents[0], extents[1]);
    if n != columns {
        return Err(cx.error(format!("{} is not square", x.ty())));
    }
    if n > LARGEST_MATRIX {
        return Err(cx.unsupported(format!("a matrix of more than {LARGEST_MATRIX} rows")));
    }
    let lead = Shape::from(&x.shape()[..rank - 2]);
    let (one, i64s) = (cx.like(x, 1.0), DType::I64);
    let mut product = one.broadcast(lead);
    let mut rest = x;
    for rows in (1..=n).rev() {
        let column = rest.narrow(-1, 0, 1);
        let size = column.abs();
        let index = cx.t.iota(TensorType { dtype: i64s, shape: column.shape() }, rank - 2);
        let none = cx.t.scalar(Literal::int(i64::MAX, i64s));
        let pivot = size.equal(size.reduce_max(&[-2], true)).select(index, none).reduce_min(&[-2], true);
        // of NaN there is no maximum
        let pivot = pivot.minimum(rows - 1);
        let here = index.equal(pivot);
        let row = here.select(rest, cx.like(rest, 0.0)).reduce_sum(&[-2], true);
        let value = row.narrow(-1, 0, 1);
        let odd = (pivot % 2).equal(1);
        let signed = odd.select(-value, value).squeeze(&[-1, -2]);
        product = product * signed;
        if rows == 1 {
            break;
        }
        let divisor = value.equal(0.0).select(one, value);
        let below = rest - column * (row / divisor);
        // the rows but the pivot's
        let place = cx.t.iota(TensorType { dtype: i64s, shape: Shape::from([rows - 1, 1i64]) }, 0);
        let kept = place.less(pivot);
        let (first, last) = (below.narrow(-2, 0, rows - 1), below.narrow(-2, 1, rows - 1));
        rest = kept.select(first, last).narrow(-1, 1, rows - 1);
    }
    single(product)
}
