//! Each rule of the verifier finds its fault.

use super::*;
use crate::kernel::{KernelBuilder, LoopKind, MatrixKind, Turn};

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
    assert_eq!(
        rules(|k| {
            let below = k.scratch(f32, 4, Space::Shared);
            k.scratch_over(f32, 5, below);
        }),
        ["over"]
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

/// A copy into a tile, what `before` does, and a read of the tile.
fn copied(len: u32, align: u32, before: impl FnOnce(&mut KernelBuilder)) -> Vec<&'static str> {
    use crate::kernel::Access::{Read, Write};
    rules(|k| {
        let (x, y) = (k.buffer(DType::F32, Read), k.buffer(DType::F32, Write));
        let tile = k.scratch(DType::F32, 256, Space::Shared);
        k.align_buffer(x, align);
        k.for_(0, 64, LoopKind::Thread(0), |k, t| {
            k.copy_async((tile, &t * 4), (x, &t * 4), len, Some(t.less(60)));
            k.commit_copies();
            before(k);
            k.store(y, &t, tile.load(&t));
        });
    })
}

#[test]
fn tiles_are_read_after_a_wait_and_a_barrier() {
    let wait = |k: &mut KernelBuilder| k.wait_copies(0);
    assert_eq!(copied(4, 16, |k| (wait(k), k.barrier()).1), [""; 0]);
    assert_eq!(copied(4, 16, wait), ["wait"]);
    assert_eq!(copied(4, 16, |k| k.barrier()), ["wait"]);
    assert_eq!(copied(4, 16, |k| (k.barrier(), wait(k)).1), ["wait"]);
}

#[test]
fn copies_have_a_width_and_an_alignment() {
    let arrive = |k: &mut KernelBuilder| (k.wait_copies(0), k.barrier()).1;
    assert_eq!(copied(1, 4, arrive), [""; 0]);
    assert_eq!(copied(3, 16, arrive), ["tile", "align", "tile"]);
    assert_eq!(copied(4, 8, arrive), ["align"]);
}

#[test]
fn matrices_are_a_whole_warps() {
    let matrices = |part: bool, threads: u32, word: DType| {
        let mut k = KernelBuilder::with_threads([threads, 1, 1]);
        let tile = k.scratch(DType::BF16, 512, Space::Shared);
        let words = k.scratch(word, 4, Space::Register);
        let sums = k.scratch(DType::F32, 4, Space::Register);
        k.for_(0, i64::from(threads), LoopKind::Thread(0), |k, t| {
            let multiply = |k: &mut KernelBuilder| {
                k.load_matrices((words, 0), (tile, &t % 32 * 8), Turn::Halves);
                k.multiply(MatrixKind::BF16, (sums, 0), (words, 0), (words, 2));
            };
            if part {
                k.if_(t.less(5), multiply);
            } else {
                multiply(k);
            }
        });
        k.finish().err().unwrap_or_default().into_iter().map(|f| f.rule).collect::<Vec<_>>()
    };
    assert_eq!(matrices(false, 64, DType::U32), [""; 0]);
    assert_eq!(matrices(true, 64, DType::U32), ["uniform", "uniform"]);
    assert_eq!(matrices(false, 48, DType::U32), ["tile", "tile"]);
    assert_eq!(matrices(false, 64, DType::F32), ["type", "type", "type"]);
}

#[test]
fn a_loop_may_wait_before_it_copies() {
    use crate::kernel::Access::{Read, Write};
    let of = |waits: bool| {
        rules(|k| {
            let (x, y) = (k.buffer(DType::F32, Read), k.buffer(DType::F32, Write));
            let tile = k.scratch(DType::F32, 128, Space::Shared);
            k.align_buffer(x, 4);
            k.for_(0, 64, LoopKind::Thread(0), |k, t| {
                k.for_(0, 9, LoopKind::Serial, |k, i| {
                    if waits {
                        k.wait_copies(0);
                    }
                    k.barrier();
                    k.copy_async((tile, &i % 2 * 64 + &t), (x, &i * 64 + &t), 1, None);
                    k.commit_copies();
                    k.if_(i.greater(0), |k| k.store(y, &t, tile.load((&i - 1) % 2 * 64 + &t)));
                });
            });
        })
    };
    assert_eq!(of(true), [""; 0]);
    assert_eq!(of(false), ["wait"]);
}
