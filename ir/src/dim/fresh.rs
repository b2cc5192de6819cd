//! Sizes that only the data tell.

use std::collections::BTreeMap;
use std::sync::Arc;

#[allow(unused_imports, reason = "named in documentation")]
use super::Bindings;
use super::{AtomKind, Dim, Repr, Term};

impl Dim {
    /// The name under which [`Bindings`] hold the value of a data-dependent size. No symbol of a text has such a name.
    pub fn fresh_name(id: u32) -> Arc<str> {
        format!("fresh({id})").into()
    }

    /// Number and bound, if this is a data-dependent size and nothing else.
    pub fn as_fresh(&self) -> Option<(u32, &Dim)> {
        let Repr::Poly(terms) = &self.0 else { return None };
        let [Term { factors, coefficient: 1 }] = &terms[..] else { return None };
        match factors.as_slice() {
            [atom] => match &*atom.0 {
                AtomKind::Fresh { id, bound } => Some((*id, bound)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Calls `visit` with the number and bound of every data-dependent size, repeats included.
    pub fn fresh_sizes(&self, visit: &mut dyn FnMut(u32, &Dim)) {
        let Repr::Poly(terms) = &self.0 else { return };
        for atom in terms.iter().flat_map(|term| &term.factors) {
            match &*atom.0 {
                AtomKind::Symbol { .. } => {}
                AtomKind::FloorDiv(a, b) | AtomKind::Mod(a, b) | AtomKind::Min(a, b) | AtomKind::Max(a, b) => {
                    a.fresh_sizes(visit);
                    b.fresh_sizes(visit);
                }
                AtomKind::Fresh { id, bound } => {
                    bound.fresh_sizes(visit);
                    visit(*id, bound);
                }
            }
        }
    }

    /// Whether a run must have begun before the value is known.
    pub fn is_data_dependent(&self) -> bool {
        let mut found = false;
        self.fresh_sizes(&mut |_, _| found = true);
        found
    }

    /// A bound from above without data-dependent sizes; `i64::MAX` where none is known.
    pub fn upper_bound(&self) -> Dim {
        if !self.is_data_dependent() {
            return self.clone();
        }
        // sums of products of sizes grow with each of them
        let grows = self.polynomial().iter().all(|(coefficient, factors)| {
            let plain = |kind: &AtomKind| matches!(kind, AtomKind::Symbol { .. } | AtomKind::Fresh { .. });
            *coefficient >= 0 && factors.iter().all(plain)
        });
        if !grows {
            return Dim::from(self.range().1);
        }
        let mut bounds: BTreeMap<Arc<str>, Dim> = BTreeMap::new();
        self.fresh_sizes(&mut |id, bound| {
            bounds.insert(Dim::fresh_name(id), bound.upper_bound());
        });
        self.substitute(&|name| bounds.get(name).cloned())
    }
}
