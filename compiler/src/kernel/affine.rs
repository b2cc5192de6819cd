//! Element indices as affine functions of a loop variable.

use super::expr::{BinaryOp, Expr};
use super::ir::Var;

/// `index = base + coefficient · var`, with a base that does not mention the variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    /// The index where the variable is zero.
    pub base: Expr,
    /// Elements an iteration.
    pub coefficient: i64,
}

impl Affine {
    /// The affine form of an `i64` expression in one variable; `None` where it is not affine with a constant
    /// coefficient, or where its base would load from memory.
    pub fn of(index: &Expr, var: Var) -> Option<Affine> {
        if !index.mentions(var) {
            let loads = index.any(&mut |e| matches!(e, Expr::Load { .. }));
            return (!loads).then(|| Affine { base: index.clone(), coefficient: 0 });
        }
        match index {
            Expr::Var(_) => Some(Affine { base: Expr::int(0), coefficient: 1 }),
            Expr::Binary(op @ (BinaryOp::Add | BinaryOp::Sub), a, b) => {
                let (a, b) = (Affine::of(a, var)?, Affine::of(b, var)?);
                let coefficient = match op {
                    BinaryOp::Add => a.coefficient.checked_add(b.coefficient)?,
                    _ => a.coefficient.checked_sub(b.coefficient)?,
                };
                Some(Affine { base: a.base.binary(*op, b.base), coefficient })
            }
            Expr::Binary(BinaryOp::Mul, a, b) => {
                let (inner, factor) = match (a.as_int(), b.as_int()) {
                    (_, Some(factor)) => (a, factor),
                    (Some(factor), _) => (b, factor),
                    _ => return None,
                };
                let inner = Affine::of(inner, var)?;
                let coefficient = inner.coefficient.checked_mul(factor)?;
                Some(Affine { base: inner.base * factor, coefficient })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_strides() {
        let (i, n) = (Expr::Var(Var(0)), Expr::Dim(0));
        let of = |e: Expr| Affine::of(&e, Var(0)).map(|a| a.coefficient);
        assert_eq!(of(&n * 3 + &i), Some(1));
        assert_eq!(of((&i - &n) * 4), Some(4));
        assert_eq!(of(n.clone()), Some(0));
        assert_eq!(of(&n * &i), None);
        assert_eq!(of(&i / 2), None);
        assert_eq!(Affine::of(&(&n * 3 + &i + 5), Var(0)).map(|a| a.base), Some(&n * 3 + 5));
    }
}
