//! Activations in the normal form of scalar programs: every spelling of GELU, SiLU and ReLU becomes the function.
//!
//! Sums and products are viewed as flat lists of factors here, and only here; the programs themselves are binary.

use egret_ir::{DType, ExprKind, ScalarExpr, ScalarFn};
use smallvec::SmallVec;

/// The program with activations named, from the inside out.
pub fn recognise(program: &ScalarExpr, dtypes: &[DType]) -> ScalarExpr {
    let mut arithmetic = true;
    program.visit(&mut |e| {
        if let ExprKind::Apply(f, _) = e.kind() {
            arithmetic &= is_arithmetic(*f);
        }
    });
    if arithmetic { program.clone() } else { renamed(program, dtypes) }
}

/// Whether a function is made of sums and products: of such alone no activation is.
pub fn is_arithmetic(f: ScalarFn) -> bool {
    use ScalarFn::*;
    matches!(f, Add | Sub | Mul | Div | Neg | Pow)
}

fn renamed(program: &ScalarExpr, dtypes: &[DType]) -> ScalarExpr {
    let rebuilt = match program.kind() {
        ExprKind::Arg(_) | ExprKind::Const(_) => return program.clone(),
        ExprKind::Cast(dtype, inner) => renamed(inner, dtypes).cast(*dtype),
        ExprKind::Apply(f, args) => {
            let args: SmallVec<[ScalarExpr; 3]> = args.iter().map(|a| renamed(a, dtypes)).collect();
            ScalarExpr::apply(*f, args, program.dtype(dtypes))
        }
    };
    let dtype = rebuilt.dtype(dtypes);
    if !dtype.is_float() {
        return rebuilt;
    }
    named(&rebuilt, dtype).unwrap_or(rebuilt)
}

fn named(e: &ScalarExpr, dtype: DType) -> Option<ScalarExpr> {
    let un = |f: ScalarFn, x: &ScalarExpr| ScalarExpr::apply(f, [x.clone()], dtype);
    if let Some([a, b]) = e.operands_of(ScalarFn::Max) {
        let zero = |x: &ScalarExpr| x.as_const().is_some_and(|l| l.as_f64() == 0.0);
        return match (zero(a), zero(b)) {
            (true, false) => Some(un(ScalarFn::Relu, b)),
            (false, true) => Some(un(ScalarFn::Relu, a)),
            _ => None,
        };
    }
    // log(1 + eˣ)
    let exponent = match (e.operands_of(ScalarFn::Log), e.operands_of(ScalarFn::Log1p)) {
        (Some([sum]), _) => one_plus_exp(sum),
        (_, Some([exp])) => exp.operands_of(ScalarFn::Exp).map(|x| x[0].clone()),
        _ => None,
    };
    if let Some(x) = exponent {
        return Some(un(ScalarFn::Softplus, &x));
    }
    // 1 / (1 + e⁻ˣ)
    let product = Product::of(e);
    if product.below.len() == 1
        && let Some(x) = one_plus_exp_of_minus(&product.below[0], dtype)
    {
        let sigmoid = un(ScalarFn::Sigmoid, &x);
        let rest = Product { below: SmallVec::new(), ..product };
        return Some(if rest.above.is_empty() && rest.scale == 1.0 {
            sigmoid
        } else {
            let whole = rest.expr(dtype);
            let made = ScalarExpr::apply(ScalarFn::Mul, [whole, sigmoid], dtype);
            named(&made, dtype).unwrap_or(made)
        });
    }
    if !product.below.is_empty() {
        return None;
    }
    for (i, factor) in product.above.iter().enumerate() {
        let mut others = product.clone();
        others.above.remove(i);
        let [x] = others.above.as_slice() else { continue };
        // x·sigmoid(x)
        if factor.operands_of(ScalarFn::Sigmoid).is_some_and(|s| s[0] == *x) && near(others.scale, 1.0) {
            return Some(un(ScalarFn::Silu, x));
        }
        // x·sigmoid(1.702 x)
        if let Some([inner]) = factor.operands_of(ScalarFn::Sigmoid)
            && scaled(inner).is_some_and(|(c, y)| y == *x && near(c, 1.702))
            && near(others.scale, 1.0)
        {
            return Some(un(ScalarFn::QuickGelu, x));
        }
        // x·tanh(softplus(x))
        if let Some([inner]) = factor.operands_of(ScalarFn::Tanh)
            && inner.operands_of(ScalarFn::Softplus).is_some_and(|s| s[0] == *x)
            && near(others.scale, 1.0)
        {
            return Some(un(ScalarFn::Mish, x));
        }
        // c·x·clamp(a·x + b, 0, h) with c·a = ⅙, b = 3a, h = 6a
        if let Some((a, b, high)) = clamped(factor, x)
            && near(others.scale * a, 1.0 / 6.0)
            && near(b, 3.0 * a)
            && near(high, 6.0 * a)
        {
            return Some(un(ScalarFn::HardSwish, x));
        }
        // c·x·(b + b·erf(x/√2)) with c·b = ½, and the same with tanh
        let Some([p, q]) = factor.operands_of(ScalarFn::Add) else { continue };
        let (constant, curve) = match (p.as_const(), q.as_const()) {
            (Some(c), None) => (c.as_f64(), q),
            (None, Some(c)) => (c.as_f64(), p),
            _ => continue,
        };
        let curve = Product::of(curve);
        if !curve.below.is_empty() || curve.above.len() != 1 || !near(curve.scale, constant) {
            continue;
        }
        if !near(others.scale * constant, 0.5) {
            continue;
        }
        if let Some([inner]) = curve.above[0].operands_of(ScalarFn::Erf)
            && scaled(inner).is_some_and(|(c, y)| y == *x && near(c, std::f64::consts::FRAC_1_SQRT_2))
        {
            return Some(un(ScalarFn::Gelu, x));
        }
        if let Some([inner]) = curve.above[0].operands_of(ScalarFn::Tanh)
            && is_gelu_tanh_argument(inner, x)
        {
            return Some(un(ScalarFn::GeluTanh, x));
        }
    }
    None
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-6 * b.abs().max(1e-30)
}

/// `c·y`, if the program is one factor scaled by a constant.
fn scaled(e: &ScalarExpr) -> Option<(f64, ScalarExpr)> {
    let product = Product::of(e);
    match (product.above.as_slice(), product.below.as_slice()) {
        ([y], []) => Some((product.scale, y.clone())),
        _ => None,
    }
}

/// `√(2/π)·(x + 0.044715·x³)`, also distributed.
fn is_gelu_tanh_argument(e: &ScalarExpr, x: &ScalarExpr) -> bool {
    const OUTER: f64 = 0.797_884_560_802_865_4;
    const CUBIC: f64 = 0.044715;
    let Some((linear, cubic)) = odd_cubic(e, x) else { return false };
    near(linear, OUTER) && near(cubic, OUTER * CUBIC)
}

/// `(a, c)` when the program is `a·x + c·x³`.
fn odd_cubic(e: &ScalarExpr, x: &ScalarExpr) -> Option<(f64, f64)> {
    let product = Product::of(e);
    if !product.below.is_empty() {
        return None;
    }
    let powers = product.above.iter().filter(|f| *f == x).count();
    match product.above.len() - powers {
        0 if powers == 1 => Some((product.scale, 0.0)),
        0 if powers == 3 => Some((0.0, product.scale)),
        1 => {
            let sum = product.above.iter().find(|f| *f != x)?;
            let [p, q] = sum.operands_of(ScalarFn::Add)? else { return None };
            if powers == 0 {
                let (a, b) = (odd_cubic(p, x)?, odd_cubic(q, x)?);
                return Some((product.scale * (a.0 + b.0), product.scale * (a.1 + b.1)));
            }
            // x·(1 + c·x²)
            let (one, square) = if p.as_const().is_some() { (p, q) } else { (q, p) };
            let square = Product::of(square);
            let squares = square.above.len() == 2 && square.above.iter().all(|f| f == x) && square.below.is_empty();
            (powers == 1 && squares)
                .then(|| one.as_const().map(|c| (product.scale * c.as_f64(), product.scale * square.scale)))?
        }
        _ => None,
    }
}

/// `(a, b, h)` when the program is `a·x + b` held between 0 and `h`.
fn clamped(e: &ScalarExpr, x: &ScalarExpr) -> Option<(f64, f64, f64)> {
    let held = |e: &ScalarExpr| -> Option<(f64, ScalarExpr)> {
        let [p, q] = e.operands_of(ScalarFn::Min)? else { return None };
        match (p.as_const(), q.as_const()) {
            (Some(high), None) => Some((high.as_f64(), q.clone())),
            (None, Some(high)) => Some((high.as_f64(), p.clone())),
            _ => None,
        }
    };
    // the bounds in either order
    let (high, inner) = match e.operands_of(ScalarFn::Relu) {
        Some([below]) => held(below)?,
        _ => {
            let (high, above) = held(e)?;
            (high, above.operands_of(ScalarFn::Relu)?[0].clone())
        }
    };
    let [p, q] = inner.operands_of(ScalarFn::Add)? else { return None };
    let (constant, linear) = if p.as_const().is_some() { (p, q) } else { (q, p) };
    let (a, y) = scaled(linear)?;
    (y == *x).then_some((a, constant.as_const()?.as_f64(), high))
}

/// `x` when the program is `1 + eˣ`.
fn one_plus_exp(e: &ScalarExpr) -> Option<ScalarExpr> {
    let [p, q] = e.operands_of(ScalarFn::Add)? else { return None };
    let (one, exp) = if p.as_const().is_some() { (p, q) } else { (q, p) };
    if one.as_const()?.as_f64() != 1.0 {
        return None;
    }
    let [power] = exp.operands_of(ScalarFn::Exp)? else { return None };
    Some(power.clone())
}

/// `x` when the program is `1 + e⁻ˣ`.
fn one_plus_exp_of_minus(e: &ScalarExpr, dtype: DType) -> Option<ScalarExpr> {
    let mut negated = Product::of(&one_plus_exp(e)?);
    negated.scale = -negated.scale;
    Some(negated.expr(dtype))
}

/// A product viewed as a constant, factors above and factors below the line.
#[derive(Clone)]
struct Product {
    scale: f64,
    above: SmallVec<[ScalarExpr; 4]>,
    below: SmallVec<[ScalarExpr; 2]>,
}

impl Product {
    fn of(e: &ScalarExpr) -> Product {
        let mut product = Product { scale: 1.0, above: SmallVec::new(), below: SmallVec::new() };
        product.collect(e, true);
        product.above.sort();
        product.below.sort();
        product
    }

    fn collect(&mut self, e: &ScalarExpr, above: bool) {
        if let Some(literal) = e.as_const() {
            let value = literal.as_f64();
            self.scale = if above { self.scale * value } else { self.scale / value };
        } else if let Some([a, b]) = e.operands_of(ScalarFn::Mul) {
            self.collect(a, above);
            self.collect(b, above);
        } else if let Some([a, b]) = e.operands_of(ScalarFn::Div) {
            self.collect(a, above);
            self.collect(b, !above);
        } else if let Some([a]) = e.operands_of(ScalarFn::Neg) {
            self.scale = -self.scale;
            self.collect(a, above);
        } else if let Some([a]) = e.operands_of(ScalarFn::Recip) {
            self.collect(a, !above);
        } else if above {
            self.above.push(e.clone());
        } else {
            self.below.push(e.clone());
        }
    }

    fn expr(&self, dtype: DType) -> ScalarExpr {
        let mul = |a: ScalarExpr, b: &ScalarExpr| ScalarExpr::apply(ScalarFn::Mul, [a, b.clone()], dtype);
        let start = match (self.above.first(), self.scale) {
            (Some(first), 1.0) => self.above[1..].iter().fold(first.clone(), mul),
            (_, scale) => self.above.iter().fold(ScalarExpr::float(scale, dtype), mul),
        };
        self.below.iter().fold(start, |a, b| ScalarExpr::apply(ScalarFn::Div, [a, b.clone()], dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ScalarFn::*;

    const F: DType = DType::F32;

    fn x() -> ScalarExpr {
        ScalarExpr::arg(0)
    }
    fn c(v: f64) -> ScalarExpr {
        ScalarExpr::float(v, F)
    }
    fn ap<const N: usize>(f: ScalarFn, args: [ScalarExpr; N]) -> ScalarExpr {
        ScalarExpr::apply(f, args, F)
    }

    #[test]
    fn six_spellings_of_gelu_are_one() {
        let erf = || ap(Erf, [ap(Mul, [x(), c(std::f64::consts::FRAC_1_SQRT_2)])]);
        let erf_div = || ap(Erf, [ap(Div, [x(), c(std::f64::consts::SQRT_2)])]);
        let spellings = [
            ap(Mul, [ap(Mul, [c(0.5), x()]), ap(Add, [c(1.0), erf()])]),
            ap(Mul, [ap(Mul, [x(), ap(Add, [erf_div(), c(1.0)])]), c(0.5)]),
            ap(Mul, [x(), ap(Mul, [c(0.5), ap(Add, [c(1.0), erf_div()])])]),
            ap(Mul, [x(), ap(Add, [c(0.5), ap(Mul, [c(0.5), erf()])])]),
            ap(Div, [ap(Mul, [x(), ap(Add, [c(1.0), erf()])]), c(2.0)]),
            ap(Mul, [ap(Div, [x(), c(2.0)]), ap(Add, [c(1.0), erf_div()])]),
        ];
        for spelling in spellings {
            assert_eq!(recognise(&spelling, &[F]), ap(Gelu, [x()]), "{spelling}");
        }
    }

    #[test]
    fn tanh_gelu_silu_and_relu_are_named() {
        let k = 0.797_884_560_802_865_4;
        let cube = || ap(Mul, [ap(Mul, [x(), x()]), x()]);
        let arguments = [
            ap(Mul, [c(k), ap(Add, [x(), ap(Mul, [c(0.044715), cube()])])]),
            ap(Mul, [ap(Mul, [c(k), x()]), ap(Add, [c(1.0), ap(Mul, [c(0.044715), ap(Mul, [x(), x()])])])]),
        ];
        for argument in arguments {
            let e = ap(Mul, [ap(Mul, [c(0.5), x()]), ap(Add, [c(1.0), ap(Tanh, [argument])])]);
            assert_eq!(recognise(&e, &[F]), ap(GeluTanh, [x()]));
        }
        let sigmoid = ap(Div, [c(1.0), ap(Add, [c(1.0), ap(Exp, [ap(Neg, [x()])])])]);
        assert_eq!(recognise(&sigmoid, &[F]), ap(Sigmoid, [x()]));
        assert_eq!(recognise(&ap(Mul, [x(), sigmoid]), &[F]), ap(Silu, [x()]));
        let quick = |k| ap(Mul, [ap(Sigmoid, [ap(Mul, [c(k), x()])]), x()]);
        assert_eq!(recognise(&quick(1.702), &[F]), ap(QuickGelu, [x()]));
        assert_ne!(recognise(&quick(1.7), &[F]), ap(QuickGelu, [x()]));
        let silu = ap(Div, [x(), ap(Add, [c(1.0), ap(Exp, [ap(Neg, [x()])])])]);
        assert_eq!(recognise(&silu, &[F]), ap(Silu, [x()]));
        assert_eq!(recognise(&ap(Max, [x(), c(0.0)]), &[F]), ap(Relu, [x()]));
        let softplus = || ap(Log, [ap(Add, [c(1.0), ap(Exp, [x()])])]);
        assert_eq!(recognise(&softplus(), &[F]), ap(Softplus, [x()]));
        assert_eq!(recognise(&ap(Log1p, [ap(Exp, [x()])]), &[F]), ap(Softplus, [x()]));
        assert_eq!(recognise(&ap(Mul, [ap(Tanh, [softplus()]), x()]), &[F]), ap(Mish, [x()]));
        let six = |e| ap(Min, [ap(Max, [e, c(0.0)]), c(6.0)]);
        let hard = [
            ap(Div, [ap(Mul, [x(), six(ap(Add, [x(), c(3.0)]))]), c(6.0)]),
            ap(Mul, [x(), ap(Div, [six(ap(Add, [x(), c(3.0)])), c(6.0)])]),
            ap(Mul, [x(), ap(Min, [c(1.0), ap(Relu, [ap(Add, [ap(Mul, [x(), c(1.0 / 6.0)]), c(0.5)])])])]),
            ap(Mul, [x(), ap(Max, [c(0.0), ap(Min, [c(1.0), ap(Add, [ap(Div, [x(), c(6.0)]), c(0.5)])])])]),
        ];
        for spelling in hard {
            assert_eq!(recognise(&spelling, &[F]), ap(HardSwish, [x()]), "{spelling}");
        }
        assert_ne!(recognise(&ap(Mul, [x(), six(ap(Add, [x(), c(3.0)]))]), &[F]), ap(HardSwish, [x()]));
        // near misses keep their spelling
        let other = ap(Mul, [ap(Mul, [c(0.5), x()]), ap(Add, [c(1.0), ap(Erf, [x()])])]);
        assert_eq!(recognise(&other, &[F]), other);
    }
}
