//! How sizes are written.

use std::fmt;

use super::{Atom, AtomKind, Dim, Repr};

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repr::Poly(terms) = &self.0 else {
            return write!(f, "{}", self.as_const().unwrap_or(0));
        };
        // constant last, as people write it
        let ordered = terms.iter().filter(|t| !t.factors.is_empty());
        let constant = terms.iter().filter(|t| t.factors.is_empty());
        for (i, term) in ordered.chain(constant).enumerate() {
            let magnitude = term.coefficient.unsigned_abs();
            match (i, term.coefficient < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            if term.factors.is_empty() || magnitude != 1 {
                write!(f, "{magnitude}")?;
            }
            for (j, atom) in term.factors.iter().enumerate() {
                if j > 0 || magnitude != 1 {
                    f.write_str("*")?;
                }
                write!(f, "{atom:?}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            AtomKind::Symbol { name, min: 1, max: i64::MAX } => f.write_str(name),
            AtomKind::Symbol { name, min, max: i64::MAX } => write!(f, "{name}[{min}..]"),
            AtomKind::Symbol { name, min, max } => write!(f, "{name}[{min}..{max}]"),
            AtomKind::FloorDiv(a, b) => write!(f, "floordiv({a}, {b})"),
            AtomKind::Mod(a, b) => write!(f, "mod({a}, {b})"),
            AtomKind::Min(a, b) => write!(f, "min({a}, {b})"),
            AtomKind::Max(a, b) => write!(f, "max({a}, {b})"),
            AtomKind::Fresh { id, bound } => write!(f, "fresh({id}, {bound})"),
        }
    }
}
