//! Which operations run one behind the other without a join.

use super::bound::{Address, Bound, Op, Span};
use super::drivers::MAX_LINKS;
use super::lifetime::Uses;
use egret_program::Launch;

/// Where a convolution's arguments have what it writes.
const RESULT: usize = 2;

const PAGE: usize = 4096;

/// Lets the last operation, which `launch` was bound to, run with those before it, if a team may do so. What they use then
/// lives as long as all of them run, so that none writes where one before it still reads.
pub(crate) fn link(bound: &mut Bound, uses: &mut Uses, launch: &Launch, threads: usize) {
    let Some((last, before)) = bound.ops.len().checked_sub(2).map(|before| (before + 1, before)) else { return };
    let (Some(args), Some(read)) = (args(bound, last), args(bound, before)) else { return };
    if !follows(bound, (before, last), threads) || !is_same(bound.args[args.first], bound.args[read.first + RESULT]) {
        return;
    }
    // the longest chain that ends with the operation before
    let ends = |more: &usize| before.checked_sub(*more).is_some_and(|first| bound.ops[first].links == *more);
    let Some(more) = (0..MAX_LINKS - 1).rev().find(ends) else { return };
    let first = before - more;
    let root = |at: usize| uses.root(bound.args[at].buffer as usize);
    let result = |op: usize| self::args(bound, op).map(|args| root(args.first + RESULT));
    let earlier = || (first..last).filter_map(|op| self::args(bound, op));
    // of what the chain wrote only the input is read, and nothing of what it used is written
    let mut others = (1..args.len).filter(|i| !launch.args[*i].writes).map(|i| root(args.first + i));
    let reads_more = others.any(|other| (first..last).any(|op| result(op) == Some(other)));
    let mut written = (0..args.len).filter(|i| launch.args[*i].writes).map(|i| root(args.first + i));
    let is_used =
        |buffer: usize| earlier().any(|args| (args.first..args.first + args.len).any(|at| root(at) == buffer));
    if reads_more || written.any(is_used) {
        return;
    }
    let used: Vec<Span> = earlier().collect();
    uses.add(bound.args[args.first + RESULT].buffer as usize, first, true);
    for at in used.iter().flat_map(|args| args.first..args.first + args.len) {
        uses.add(bound.args[at].buffer as usize, last, false);
    }
    bound.most_args = bound.most_args.max(used.iter().map(|args| args.len).sum::<usize>() + args.len);
    bound.ops[first].links = last - first;
}

/// Gives results that nothing but the next operation of a chain reads a place in the scratch of each worker: rows of several
/// threads lie side by side in a block of channels, and fetching ahead would take them from one another's caches.
pub(crate) fn keep_results(bound: &mut Bound, uses: &Uses) {
    /// Half of a second-level cache.
    const MOST: usize = 512 << 10;
    /// Results that are read and written at the same time.
    const AT_ONCE: usize = 2;
    let start = bound.scratch.per_worker.next_multiple_of(PAGE);
    let mut largest = 0;
    let mut own = Vec::new();
    for first in 0..bound.ops.len() {
        let last = first + bound.ops[first].links;
        for op in first..last {
            let (Some(args), Op::Driver { plan, .. }) = (args(bound, op), &bound.ops[op].op) else { continue };
            let result = bound.args[args.first + RESULT].buffer as usize;
            let bytes = plan.own_bytes().filter(|bytes| *bytes <= MOST && uses.is_within(result, (first, last)));
            if let Some(bytes) = bytes {
                largest = largest.max(bytes.next_multiple_of(PAGE));
                own.push((op, (op - first) % AT_ONCE));
            }
        }
    }
    for (op, place) in &own {
        bound.ops[*op].own = Some(start + place * largest);
    }
    if !own.is_empty() {
        bound.scratch.per_worker = start + AT_ONCE * largest;
    }
}

fn args(bound: &Bound, op: usize) -> Option<Span> {
    match &bound.ops[op].op {
        Op::Driver { args, .. } if args.len > RESULT => Some(*args),
        _ => None,
    }
}

fn follows(bound: &Bound, (before, last): (usize, usize), threads: usize) -> bool {
    match (&bound.ops[before].op, &bound.ops[last].op) {
        (Op::Driver { plan: before, .. }, Op::Driver { plan, .. }) => plan.follows(before, threads),
        _ => false,
    }
}

fn is_same(a: Address, b: Address) -> bool {
    (a.buffer, a.offset) == (b.buffer, b.offset)
}
