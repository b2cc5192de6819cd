//! Symbolic extents: polynomials in normal form over opaque atoms.
//!
//! A [`Dim`] is a sum of integer multiples of products of [`Atom`]s, kept sorted, so that structural equality of two
//! dims that are equal polynomials holds. What is not a polynomial (`floordiv`, `mod`, `min`, `max`, a size known only
//! at run time) is an atom. Equality of different normal forms is decided by ranges, and may be unknown.

mod fresh;
mod text;

use std::collections::BTreeMap;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// Values of symbols, by name.
pub type Bindings = BTreeMap<Arc<str>, i64>;

/// An extent: a polynomial over [`Atom`]s.
///
/// ```
/// use egret_ir::Dim;
/// let b = Dim::symbol("batch");
/// assert_eq!(b.clone() * Dim::from(2) + b.clone(), b * Dim::from(3));
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
enum Repr {
    Const(i64),
    /// Sorted by factors; coefficients are not zero; never a constant alone.
    Poly(Arc<[Term]>),
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Term {
    factors: SmallVec<[Atom; 2]>,
    coefficient: i64,
}

/// An indivisible part of a [`Dim`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Atom(Arc<AtomKind>);

/// What an [`Atom`] stands for.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AtomKind {
    /// A named size, bound when a program runs; `min..=max` is promised by whoever binds it.
    Symbol {
        /// The name users bind it by.
        name: Arc<str>,
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// Quotient rounded towards negative infinity.
    FloorDiv(Dim, Dim),
    /// Remainder with the sign of the divisor.
    Mod(Dim, Dim),
    /// The lesser.
    Min(Dim, Dim),
    /// The greater.
    Max(Dim, Dim),
    /// A size that only the data tell, at most `bound`.
    Fresh {
        /// Distinguishes data-dependent sizes of one graph.
        id: u32,
        /// Upper bound, used to reserve memory.
        bound: Dim,
    },
}

/// The answer to a question about symbolic values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Holds for every binding.
    Yes,
    /// Holds for no binding.
    No,
    /// Depends on the binding, or the ranges do not tell.
    Unknown,
}

/// Why a dim has no value under some bindings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// A symbol has no value.
    #[error("no value is bound to the dimension `{0}`")]
    Unbound(Arc<str>),
    /// A symbol's value is outside its range.
    #[error("dimension `{name}` is {value}, outside {min}..={max}")]
    Range {
        /// The symbol.
        name: Arc<str>,
        /// The value bound to it.
        value: i64,
        /// Least legal value.
        min: i64,
        /// Greatest legal value.
        max: i64,
    },
    /// The arithmetic does not fit into 64 bits, or divides by zero.
    #[error("the size `{0}` overflows or divides by zero")]
    Arithmetic(String),
    /// A size that only the data tell.
    #[error("the size `{0}` is known only at run time")]
    DataDependent(String),
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Dim(Repr::Const(value))
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Dim::from(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<i32> for Dim {
    fn from(value: i32) -> Self {
        Dim::from(i64::from(value))
    }
}

impl From<&str> for Dim {
    /// The symbol of that name, at least 1.
    fn from(name: &str) -> Self {
        Dim::symbol(name)
    }
}

impl Dim {
    /// The extent 1.
    pub const ONE: Dim = Dim(Repr::Const(1));
    /// The extent 0.
    pub const ZERO: Dim = Dim(Repr::Const(0));

    /// A symbol that is at least 1.
    pub fn symbol(name: &str) -> Dim {
        Dim::symbol_in(name, 1, i64::MAX)
    }

    /// A symbol within `min..=max`.
    pub fn symbol_in(name: &str, min: i64, max: i64) -> Dim {
        Dim::atom(AtomKind::Symbol { name: name.into(), min, max })
    }

    /// A data-dependent size of at most `bound`.
    pub fn fresh(id: u32, bound: Dim) -> Dim {
        Dim::atom(AtomKind::Fresh { id, bound })
    }

    fn atom(kind: AtomKind) -> Dim {
        let factors = smallvec![Atom(Arc::new(kind))];
        Dim(Repr::Poly(Arc::from([Term { factors, coefficient: 1 }])))
    }

    /// The value, if it is the same under every binding.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(value) => Some(value),
            Repr::Poly(_) => None,
        }
    }

    /// Whether this is the constant `value`.
    pub fn is(&self, value: i64) -> bool {
        self.as_const() == Some(value)
    }

    fn terms(&self) -> SmallVec<[Term; 4]> {
        match &self.0 {
            Repr::Const(0) => SmallVec::new(),
            Repr::Const(value) => smallvec![Term { factors: SmallVec::new(), coefficient: *value }],
            Repr::Poly(terms) => terms.iter().cloned().collect(),
        }
    }

    fn normal(mut terms: SmallVec<[Term; 4]>) -> Dim {
        terms.sort_by(|a, b| a.factors.cmp(&b.factors));
        let mut merged: SmallVec<[Term; 4]> = SmallVec::new();
        for term in terms {
            match merged.last_mut() {
                Some(last) if last.factors == term.factors => {
                    last.coefficient = last.coefficient.saturating_add(term.coefficient);
                }
                _ => merged.push(term),
            }
        }
        merged.retain(|term| term.coefficient != 0);
        match merged.as_slice() {
            [] => Dim::ZERO,
            [only] if only.factors.is_empty() => Dim::from(only.coefficient),
            _ => Dim(Repr::Poly(merged.into_iter().collect())),
        }
    }

    /// `self / by` rounded towards negative infinity; exact when every term divides.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if by.is(1) || self.is(0) {
            return self.clone();
        }
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            return Dim::from(a.wrapping_div_euclid(b) - i64::from(b < 0 && a.rem_euclid(b) != 0));
        }
        if let Some(exact) = self.exact_div(by) {
            return exact;
        }
        // (k·d + r) / d = k + r / d, which keeps spellings of one size together
        if let Some(divisor) = by.as_const().filter(|b| *b > 0) {
            let (whole, rest): (SmallVec<[Term; 4]>, SmallVec<[Term; 4]>) =
                self.terms().into_iter().partition(|term| term.coefficient % divisor == 0);
            if !whole.is_empty() && !rest.is_empty() {
                let whole =
                    whole.into_iter().map(|term| Term { coefficient: term.coefficient / divisor, ..term }).collect();
                return Dim::normal(whole) + Dim::normal(rest).floor_div(by);
            }
        }
        Dim::atom(AtomKind::FloorDiv(self.clone(), by.clone()))
    }

    /// `self / by` when the quotient is a polynomial without remainder.
    pub fn exact_div(&self, by: &Dim) -> Option<Dim> {
        if self == by && !by.is(0) {
            return Some(Dim::ONE);
        }
        let divisor = match by.terms().as_slice() {
            [only] => only.clone(),
            _ => return None,
        };
        let mut quotient: SmallVec<[Term; 4]> = SmallVec::new();
        for term in self.terms() {
            if term.coefficient % divisor.coefficient != 0 {
                return None;
            }
            let mut factors = term.factors.clone();
            for factor in &divisor.factors {
                let at = factors.iter().position(|f| f == factor)?;
                factors.remove(at);
            }
            quotient.push(Term { factors, coefficient: term.coefficient / divisor.coefficient });
        }
        Some(Dim::normal(quotient))
    }

    /// `self / by` rounded up.
    pub fn ceil_div(&self, by: &Dim) -> Dim {
        (self.clone() + by.clone() - Dim::ONE).floor_div(by)
    }

    /// Remainder with the sign of the divisor.
    pub fn modulo(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b > 0
        {
            return Dim::from(a.rem_euclid(b));
        }
        match self.exact_div(by) {
            Some(_) => Dim::ZERO,
            None => Dim::atom(AtomKind::Mod(self.clone(), by.clone())),
        }
    }

    /// The lesser of two dims.
    pub fn minimum(&self, other: &Dim) -> Dim {
        match (other.clone() - self.clone()).range() {
            (low, _) if low >= 0 => self.clone(),
            (_, high) if high <= 0 => other.clone(),
            _ if self <= other => Dim::atom(AtomKind::Min(self.clone(), other.clone())),
            _ => Dim::atom(AtomKind::Min(other.clone(), self.clone())),
        }
    }

    /// The greater of two dims.
    pub fn maximum(&self, other: &Dim) -> Dim {
        match (other.clone() - self.clone()).range() {
            (low, _) if low >= 0 => other.clone(),
            (_, high) if high <= 0 => self.clone(),
            _ if self <= other => Dim::atom(AtomKind::Max(self.clone(), other.clone())),
            _ => Dim::atom(AtomKind::Max(other.clone(), self.clone())),
        }
    }

    /// Bounds of the value over all bindings; `i64::MIN` and `i64::MAX` mean unbounded.
    pub fn range(&self) -> (i64, i64) {
        let Repr::Poly(terms) = &self.0 else {
            let value = self.as_const().unwrap_or(0);
            return (value, value);
        };
        terms.iter().fold((0, 0), |total, term| {
            let product =
                term.factors.iter().fold((term.coefficient, term.coefficient), |p, atom| mul_range(p, atom.range()));
            (add_bound(total.0, product.0), add_bound(total.1, product.1))
        })
    }

    /// Whether two dims are equal under every binding, under none, or perhaps.
    pub fn equals(&self, other: &Dim) -> Truth {
        let difference = self.clone() - other.clone();
        match difference.as_const() {
            Some(0) => Truth::Yes,
            Some(_) => Truth::No,
            None => match difference.range() {
                (low, high) if low > 0 || high < 0 => Truth::No,
                _ => Truth::Unknown,
            },
        }
    }

    /// The value under `bindings`.
    ///
    /// # Errors
    /// A symbol without a value or outside its range, overflow, a division by zero, a data-dependent size.
    pub fn eval(&self, bindings: &Bindings) -> Result<i64, DimError> {
        let Repr::Poly(terms) = &self.0 else {
            return Ok(self.as_const().unwrap_or(0));
        };
        let overflow = || DimError::Arithmetic(self.to_string());
        let mut total = 0i64;
        for term in terms.iter() {
            let mut product = term.coefficient;
            for atom in &term.factors {
                product = product.checked_mul(atom.eval(bindings)?).ok_or_else(overflow)?;
            }
            total = total.checked_add(product).ok_or_else(overflow)?;
        }
        Ok(total)
    }

    /// The dim with the symbols in `bindings` replaced by their values.
    pub fn bind(&self, bindings: &Bindings) -> Dim {
        self.substitute(&|name| bindings.get(name).map(|value| Dim::from(*value)))
    }

    /// The dim with each symbol replaced by what `map` gives for its name, and each data-dependent size by what it gives
    /// for its [`fresh_name`](Dim::fresh_name).
    pub fn substitute(&self, map: &dyn Fn(&str) -> Option<Dim>) -> Dim {
        let Repr::Poly(terms) = &self.0 else { return self.clone() };
        terms.iter().fold(Dim::ZERO, |total, term| {
            let product = term.factors.iter().fold(Dim::from(term.coefficient), |p, atom| {
                p * match &*atom.0 {
                    AtomKind::Symbol { name, .. } => map(name).unwrap_or_else(|| Dim::atom((*atom.0).clone())),
                    AtomKind::FloorDiv(a, b) => a.substitute(map).floor_div(&b.substitute(map)),
                    AtomKind::Mod(a, b) => a.substitute(map).modulo(&b.substitute(map)),
                    AtomKind::Min(a, b) => a.substitute(map).minimum(&b.substitute(map)),
                    AtomKind::Max(a, b) => a.substitute(map).maximum(&b.substitute(map)),
                    AtomKind::Fresh { id, bound } => {
                        map(&Dim::fresh_name(*id)).unwrap_or_else(|| Dim::fresh(*id, bound.substitute(map)))
                    }
                }
            });
            total + product
        })
    }

    /// Calls `visit` with every symbol's name and range, in structural order, repeats included.
    pub fn symbols(&self, visit: &mut dyn FnMut(&Arc<str>, i64, i64)) {
        let Repr::Poly(terms) = &self.0 else { return };
        for atom in terms.iter().flat_map(|term| &term.factors) {
            match &*atom.0 {
                AtomKind::Symbol { name, min, max } => visit(name, *min, *max),
                AtomKind::FloorDiv(a, b) | AtomKind::Mod(a, b) | AtomKind::Min(a, b) | AtomKind::Max(a, b) => {
                    a.symbols(visit);
                    b.symbols(visit);
                }
                AtomKind::Fresh { bound, .. } => bound.symbols(visit),
            }
        }
    }

    /// A representative value for cost models: symbols count as `symbol`, clipped to their range; data-dependent sizes as
    /// their bounds.
    pub fn hint(&self, symbol: i64) -> i64 {
        let mut bindings = Bindings::new();
        self.symbols(&mut |name, min, max| {
            bindings.insert(name.clone(), symbol.clamp(min, max));
        });
        self.fresh_sizes(&mut |id, bound| {
            let most = bound.eval(&bindings).unwrap_or(symbol);
            bindings.insert(Dim::fresh_name(id), if most == i64::MAX { symbol } else { most });
        });
        self.eval(&bindings).unwrap_or(symbol)
    }

    /// The sum of terms `coefficient · product of atoms`, as text shows them.
    pub fn polynomial(&self) -> Vec<(i64, Vec<AtomKind>)> {
        self.terms().into_iter().map(|t| (t.coefficient, t.factors.iter().map(|a| (*a.0).clone()).collect())).collect()
    }
}

impl Atom {
    fn range(&self) -> (i64, i64) {
        match &*self.0 {
            AtomKind::Symbol { min, max, .. } => (*min, *max),
            AtomKind::Fresh { bound, .. } => (0, bound.range().1),
            AtomKind::FloorDiv(a, b) => match (a.range(), b.as_const()) {
                ((low, high), Some(by)) if by > 0 => (
                    if low == i64::MIN { low } else { low.div_euclid(by) },
                    if high == i64::MAX { high } else { high.div_euclid(by) },
                ),
                ((low, high), None) if low >= 0 && b.range().0 > 0 => (0, high),
                _ => (i64::MIN, i64::MAX),
            },
            AtomKind::Mod(_, b) => match b.range() {
                (low, high) if low > 0 => (0, if high == i64::MAX { high } else { high - 1 }),
                _ => (i64::MIN, i64::MAX),
            },
            AtomKind::Min(a, b) => (a.range().0.min(b.range().0), a.range().1.min(b.range().1)),
            AtomKind::Max(a, b) => (a.range().0.max(b.range().0), a.range().1.max(b.range().1)),
        }
    }

    fn eval(&self, bindings: &Bindings) -> Result<i64, DimError> {
        let text = || DimError::Arithmetic(format!("{self:?}"));
        match &*self.0 {
            AtomKind::Symbol { name, min, max } => {
                let value = *bindings.get(name).ok_or_else(|| DimError::Unbound(name.clone()))?;
                if value < *min || value > *max {
                    return Err(DimError::Range { name: name.clone(), value, min: *min, max: *max });
                }
                Ok(value)
            }
            AtomKind::FloorDiv(a, b) => {
                let (a, b) = (a.eval(bindings)?, b.eval(bindings)?);
                let quotient = a.checked_div(b).ok_or_else(text)?;
                Ok(quotient - i64::from(a % b != 0 && (a < 0) != (b < 0)))
            }
            AtomKind::Mod(a, b) => {
                let (a, b) = (a.eval(bindings)?, b.eval(bindings)?);
                let rest = a.checked_rem(b).ok_or_else(text)?;
                Ok(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
            }
            AtomKind::Min(a, b) => Ok(a.eval(bindings)?.min(b.eval(bindings)?)),
            AtomKind::Max(a, b) => Ok(a.eval(bindings)?.max(b.eval(bindings)?)),
            AtomKind::Fresh { id, bound } => {
                let name = Dim::fresh_name(*id);
                let unknown = || DimError::DataDependent(format!("{self:?}"));
                let value = *bindings.get(&name).ok_or_else(unknown)?;
                let max = bound.eval(bindings)?;
                if value < 0 || value > max {
                    return Err(DimError::Range { name, value, min: 0, max });
                }
                Ok(value)
            }
        }
    }
}

fn add_bound(a: i64, b: i64) -> i64 {
    match (a, b) {
        (i64::MAX, _) | (_, i64::MAX) => i64::MAX,
        (i64::MIN, _) | (_, i64::MIN) => i64::MIN,
        _ => a.saturating_add(b),
    }
}

fn mul_range(a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    let products = [a.0.saturating_mul(b.0), a.0.saturating_mul(b.1), a.1.saturating_mul(b.0), a.1.saturating_mul(b.1)];
    (products.into_iter().min().unwrap_or(0), products.into_iter().max().unwrap_or(0))
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), other.as_const()) {
            return Dim::from(a.saturating_add(b));
        }
        let mut terms = self.terms();
        terms.extend(other.terms());
        Dim::normal(terms)
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + other * Dim::from(-1)
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), other.as_const()) {
            return Dim::from(a.saturating_mul(b));
        }
        let mut products: SmallVec<[Term; 4]> = SmallVec::new();
        for a in self.terms() {
            for b in other.terms() {
                let mut factors = a.factors.clone();
                factors.extend(b.factors.iter().cloned());
                factors.sort();
                products.push(Term { factors, coefficient: a.coefficient.saturating_mul(b.coefficient) });
            }
        }
        Dim::normal(products)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n() -> Dim {
        Dim::symbol("n")
    }

    #[test]
    fn polynomials_have_one_form() {
        let m = Dim::symbol("m");
        assert_eq!((n() + m.clone()) * (n() - m.clone()), n() * n() - m.clone() * m);
        assert_eq!((n() * Dim::from(6)).floor_div(&Dim::from(3)), n() * Dim::from(2));
        assert_eq!((n() * Dim::from(4) + Dim::from(3)).floor_div(&Dim::from(2)), n() * Dim::from(2) + Dim::ONE);
        assert_eq!((n() * n()).floor_div(&n()), n());
        assert_eq!(Dim::from(-7).floor_div(&Dim::from(2)), Dim::from(-4));
    }

    #[test]
    fn equality_is_three_valued() {
        assert_eq!((n() + Dim::ONE).equals(&n()), Truth::No);
        assert_eq!(n().equals(&Dim::symbol("m")), Truth::Unknown);
        assert_eq!(n().equals(&Dim::ZERO), Truth::No);
        assert_eq!(Dim::symbol_in("k", 2, 5).equals(&Dim::from(6)), Truth::No);
    }

    #[test]
    fn evaluation_checks_ranges() {
        let mut values = Bindings::new();
        assert!(matches!(n().eval(&values), Err(DimError::Unbound(_))));
        values.insert("n".into(), 0);
        assert!(matches!(n().eval(&values), Err(DimError::Range { .. })));
        values.insert("n".into(), 7);
        assert_eq!(n().floor_div(&Dim::from(2)).eval(&values), Ok(3));
        assert_eq!(n().maximum(&Dim::from(9)).eval(&values), Ok(9));
        assert!((n() * Dim::from(i64::MAX)).eval(&values).is_err());
    }

    #[test]
    fn data_dependent_sizes_are_bound_like_symbols() {
        let size = Dim::fresh(3, n() * Dim::from(2));
        let twice = size.clone() * Dim::from(2) + Dim::ONE;
        let mut values = Bindings::from([("n".into(), 4)]);
        assert!(matches!(twice.eval(&values), Err(DimError::DataDependent(_))));
        assert_eq!(twice.upper_bound(), n() * Dim::from(4) + Dim::ONE);
        assert_eq!((n() - size.clone()).upper_bound(), Dim::from(i64::MAX));
        assert_eq!((size.as_fresh().map(|f| f.0), twice.as_fresh()), (Some(3), None));
        values.insert(Dim::fresh_name(3), 5);
        assert_eq!((twice.eval(&values), twice.bind(&values)), (Ok(11), Dim::from(11)));
        values.insert(Dim::fresh_name(3), 9);
        assert!(matches!(twice.eval(&values), Err(DimError::Range { max: 8, .. })));
    }

    #[test]
    fn text_is_stable() {
        let text = (n() * Dim::from(2) - Dim::from(3) + Dim::symbol("m").floor_div(&Dim::from(2))).to_string();
        assert_eq!(text, "2*n + floordiv(m, 2) - 3");
    }
}
