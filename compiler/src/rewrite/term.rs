//! The term language of the e-graph, and what is known of each class.

use std::fmt;
use std::hash::{Hash, Hasher};

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use egret_ir::{InferCx, Literal, Op, TensorType, Type};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::facts::computed_splat;

/// What a pattern names: a scalar function, or the operator of an anchor whether or not it has absorbed anything.
#[derive(Clone, Copy, Eq, PartialOrd, Ord)]
pub struct Kind(&'static str);

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        // nearly always the same text in memory, or another length
        std::ptr::eq(self.0, other.0) || self.0 == other.0
    }
}

impl Kind {
    /// The kind of an operator; of a fused one, its anchor's.
    pub fn of(op: &Op) -> Kind {
        match op {
            Op::Fused(fused) => Kind::of(&fused.anchor),
            other => Kind(other.home().name()),
        }
    }

    /// The kind of that name. Names of no operator are kinds that nothing has.
    pub fn named(name: &'static str) -> Kind {
        Kind(name)
    }

    /// The name in rule texts.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        self.0.as_bytes().first().hash(state);
        self.0.as_bytes().last().hash(state);
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An operator interned for one compilation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(u32);

/// A type interned for one compilation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TypeId(u32);

/// An e-node: an operator and its operands' classes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Term {
    /// The kind, first, because egg finds nodes of a kind by search in sorted lists.
    pub kind: Kind,
    /// The operator with its attributes.
    pub op: OpId,
    /// Base operands, then extras.
    pub operands: SmallVec<[Id; 4]>,
}

impl Language for Term {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        self.kind
    }

    fn matches(&self, other: &Term) -> bool {
        self.op == other.op && self.operands.len() == other.operands.len()
    }

    fn children(&self) -> &[Id] {
        &self.operands
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.operands
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.0)
    }
}

/// When a value is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BindingTime {
    /// When compiling.
    Compile,
    /// When params are loaded.
    Load,
    /// In each run.
    Run,
}

/// What is known of a class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Its type.
    pub ty: TypeId,
    /// Its element, if all are one known value.
    pub splat: Option<Literal>,
    /// When it is known.
    pub time: BindingTime,
}

/// Facts of a leaf of a neighbourhood, by the operator that stands for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafFacts {
    /// Its element, if all are one known value.
    pub splat: Option<Literal>,
    /// When it is known.
    pub time: BindingTime,
}

/// Interned operators and types of one compilation, and types of leaves: the analysis of the e-graph.
#[derive(Default)]
pub struct Universe {
    ops: Vec<Op>,
    op_ids: FxHashMap<Op, OpId>,
    types: Vec<Type>,
    type_ids: FxHashMap<Type, TypeId>,
    inferred: FxHashMap<(OpId, SmallVec<[TypeId; 4]>), Option<TypeId>>,
    leaves: FxHashMap<OpId, LeafFacts>,
}

/// The e-graph.
pub type Graph = EGraph<Term, Universe>;

impl Universe {
    /// Interns an operator.
    pub fn op_id(&mut self, op: &Op) -> OpId {
        if let Some(id) = self.op_ids.get(op) {
            return *id;
        }
        let id = OpId(self.ops.len() as u32);
        self.ops.push(op.clone());
        self.op_ids.insert(op.clone(), id);
        id
    }

    /// An interned operator.
    pub fn op(&self, id: OpId) -> &Op {
        &self.ops[id.0 as usize]
    }

    /// Interns a type.
    pub fn type_id(&mut self, ty: &Type) -> TypeId {
        if let Some(id) = self.type_ids.get(ty) {
            return *id;
        }
        let id = TypeId(self.types.len() as u32);
        self.types.push(ty.clone());
        self.type_ids.insert(ty.clone(), id);
        id
    }

    /// An interned type.
    pub fn ty(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The type of `op` on operands of these types; `None` when they do not fit, or only might.
    pub fn infer(&mut self, op: OpId, operands: &[TypeId]) -> Option<TypeId> {
        let key = (op, SmallVec::from_slice(operands));
        if let Some(known) = self.inferred.get(&key) {
            return *known;
        }
        let types: SmallVec<[Type; 4]> = operands.iter().map(|id| self.ty(*id).clone()).collect();
        let mut cx = InferCx::default();
        let result = self.op(op).home().infer(&types, &mut cx).ok().filter(|_| cx.assumptions.is_empty());
        let id = result.map(|ty| self.type_id(&ty));
        self.inferred.insert(key, id);
        id
    }

    /// States that `op` on these operand types has type `ty`, where the graph assumes equalities that make it so.
    pub fn assert_type(&mut self, op: OpId, operands: &[TypeId], ty: TypeId) {
        self.inferred.insert((op, SmallVec::from_slice(operands)), Some(ty));
    }

    /// States what is known of a leaf.
    pub fn set_leaf(&mut self, op: OpId, facts: LeafFacts) {
        self.leaves.insert(op, facts);
    }
}

impl Analysis<Term> for Universe {
    type Data = Facts;

    fn make(egraph: &mut Graph, term: &Term, _: Id) -> Facts {
        let types: SmallVec<[TypeId; 4]> = term.operands.iter().map(|id| egraph[*id].data.ty).collect();
        let splats: SmallVec<[Option<Literal>; 4]> = term.operands.iter().map(|id| egraph[*id].data.splat).collect();
        let time = term.operands.iter().map(|id| egraph[*id].data.time).max();
        let universe = &mut egraph.analysis;
        // every node is inferred before it is added, so there is a type
        let ty = universe.infer(term.op, &types).unwrap_or_else(|| universe.type_id(&Type::Tuple(Vec::new().into())));
        if let Some(leaf) = universe.leaves.get(&term.op) {
            return Facts { ty, splat: leaf.splat, time: leaf.time };
        }
        // a size that only a run knows
        let symbolic = universe.ty(ty).parts().iter().any(|part| !part.shape.is_constant());
        let time = if symbolic { BindingTime::Run } else { time.unwrap_or(BindingTime::Run) };
        Facts { ty, splat: computed_splat(universe.op(term.op), splats.into_iter(), universe.ty(ty)), time }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        let joined = Facts { ty: a.ty, splat: a.splat.or(b.splat), time: a.time.min(b.time) };
        let changed = DidMerge(joined != *a, joined.splat != b.splat || joined.time != b.time);
        *a = joined;
        changed
    }
}

/// The tensor type of a class.
pub fn tensor_type(egraph: &Graph, id: Id) -> Option<&TensorType> {
    egraph.analysis.ty(egraph[id].data.ty).tensor()
}

/// Infers and adds a node; `None` when the operands do not fit.
pub fn add(egraph: &mut Graph, op: &Op, operands: &[Id]) -> Option<Id> {
    let op_id = egraph.analysis.op_id(op);
    let types: SmallVec<[TypeId; 4]> = operands.iter().map(|id| egraph[*id].data.ty).collect();
    egraph.analysis.infer(op_id, &types)?;
    Some(egraph.add(Term { kind: Kind::of(op), op: op_id, operands: operands.into() }))
}
