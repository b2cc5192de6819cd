//! The labels of an attention by what they run over.

use egret_ir::ops::{Attention, Labels};
use smallvec::SmallVec;

/// Labels of an attention in the terms of its kernels.
pub struct Roles {
    /// Outer axes, those that keys and values share last.
    pub outer: SmallVec<[u8; 8]>,
    /// How many outer axes keys and values share: heads of queries that read the same keys.
    pub shared: usize,
    /// `None` of a single query.
    pub query: Option<u8>,
    /// Keys.
    pub key: u8,
    /// Channels of queries and keys.
    pub channel: u8,
    /// Channels of values.
    pub value: u8,
}

/// Most outer axes that kernels have.
const MAX_OUTER: usize = 8;

impl Roles {
    /// The roles of an attention; `None` where a label has several.
    pub fn new(attention: &Attention) -> Option<Roles> {
        let Attention { q, k, v, o, scores, .. } = attention;
        let distinct = |labels: &Labels| (0..labels.0.len()).all(|i| !labels.0[..i].contains(&labels.0[i]));
        if ![q, k, v, o, scores].into_iter().all(distinct) {
            return None;
        }
        let (key, rest) = scores.0.split_last()?;
        let query = rest.last().copied().filter(|l| q.has(*l) && !k.has(*l));
        if attention.causal.is_some() && query.is_none() {
            return None;
        }
        let outer = &rest[..rest.len() - usize::from(query.is_some())];
        let only = |labels: &Labels| -> Option<u8> {
            let mut inner = labels.0.iter().copied().filter(|l| !scores.has(*l));
            inner.next().filter(|_| inner.next().is_none())
        };
        let (channel, value) = (only(q)?, only(v)?);
        let shares = |l: &u8| !k.has(*l) && !v.has(*l);
        let ordered: SmallVec<[u8; 8]> =
            outer.iter().copied().filter(|l| !shares(l)).chain(outer.iter().copied().filter(shares)).collect();
        let fits = only(k) == Some(channel)
            && channel != value
            && only(o) == Some(value)
            && v.has(*key)
            && query.is_none_or(|l| o.has(l) && !v.has(l))
            && o.0.len() == outer.len() + 1 + usize::from(query.is_some())
            && outer.len() <= MAX_OUTER;
        fits.then(|| Roles {
            shared: ordered.iter().filter(|l| shares(l)).count(),
            outer: ordered,
            query,
            key: *key,
            channel,
            value,
        })
    }

    /// Whether each gradient is a sum that one pass makes: queries lack no outer axis, keys and values none but the shared.
    pub fn has_gradient(&self, attention: &Attention) -> bool {
        let own = &self.outer[..self.outer.len() - self.shared];
        self.outer.iter().all(|l| attention.q.has(*l)) && own.iter().all(|l| attention.k.has(*l) && attention.v.has(*l))
    }
}
