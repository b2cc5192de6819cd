//! Each rule of the verifier finds its fault.

use super::*;
use crate::kernel::{KernelBuilder, LoopKind};

fn rules(build: impl FnOnce(&mut KernelBuilder)) -> Vec<&'static str> {
    let mut k = KernelBuilder::with_threads([64, 1, 1]);
    build(&mut k);
    match k.finish() {
        Ok(_) => Vec::new(),
        Err(findings) => findings.into_iter().map(|f| f.rule).collect(),
    }
}

#[test]
fn each_rule_finds_its_fault() {
    use crate::kernel::Access::{Read, Write};
    let f32 = DType::F32;
    assert_eq!(
        rules(|k| {
            let x = k.buffer(f32, Read);
            k.store(x, 0, 1.0f32)
        }),
        ["access"]
    );
    assert_eq!(
        rules(|k| {
            let y = k.buffer(f32, Write);
            k.store(y, 0, 1.0f64)
        }),
        ["type"]
    );
    assert_eq!(
        rules(|k| {
            let y = k.buffer(f32, Write);
            k.store(y, 0, Expr::Var(Var(9)).cast(f32))
        }),
        ["undefined"]
    );
    assert_eq!(
        rules(|k| {
            let s = k.scratch(f32, 4, Space::Register);
            k.store(s, 4, 1.0f32)
        }),
        ["bounds"]
    );
    assert_eq!(rules(|k| k.status(true, 0)), ["status"]);
    assert_eq!(rules(|k| k.for_step(0, 4, 0, LoopKind::Serial, |_, _| {})), ["loop"]);
    assert_eq!(
        rules(|k| {
            let n = k.dim();
            k.for_(0, n, LoopKind::Unroll, |_, _| {})
        }),
        ["loop"]
    );
    assert_eq!(
        rules(|k| {
            let n = k.dim();
            k.for_(0, n, LoopKind::Thread(0), |k, _| k.barrier())
        }),
        ["uniform"]
    );
    assert_eq!(rules(|k| k.for_(0, 64, LoopKind::Thread(0), |k, _| k.barrier())), [""; 0]);
    assert_eq!(
        rules(|k| {
            k.scratch(f32, 60_000, Space::Shared);
        }),
        ["budget"]
    );
    let vector = |k: &mut KernelBuilder| {
        let v = k.variable(0.0f32);
        k.for_(0, 9, LoopKind::Vector, |k, _| k.assign(v, 1.0f32));
    };
    assert_eq!(rules(vector), ["vector"]);
    let constant = |k: &mut KernelBuilder| k.push(Stmt::Assign { var: Var(7), value: 0.into() });
    assert_eq!(rules(constant), ["undefined", "mutable"]);
}

#[test]
fn a_block_reduction_makes_a_value_uniform() {
    let of = |reduce: bool| {
        rules(|k| {
            let n = k.dim();
            let v = k.variable(0i64);
            k.for_(0, n, LoopKind::Thread(0), |k, i| k.accumulate(v, ReduceOp::Sum, i));
            if reduce {
                k.block_reduce(v, ReduceOp::Sum);
            }
            k.if_(Expr::from(v).greater(0), |k| k.barrier());
        })
    };
    assert_eq!(of(true), [""; 0]);
    assert_eq!(of(false), ["uniform"]);
}
