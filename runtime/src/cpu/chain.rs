//! Which operations run one behind the other without a join.

use super::bound::{Address, Bound, Item, Op, Span};
use super::drivers::{Copies, MAX_LINKS, RowCut, Spread, chain_scratch};
use super::lifetime::Uses;
use egret_program::Launch;

/// Where a convolution's arguments have what it writes.
const RESULT: usize = 2;

const PAGE: usize = 4096;

/// Most bytes of all copies of a result.
const MOST: usize = 4 << 20;

/// Lets the last operation, which `launch` was bound to, run with those before it, if a team may do so: then it is cut by rows.
/// What they use lives as long as all of them run, so that none writes where one before it still reads.
pub(crate) fn link(bound: &mut Bound, uses: &mut Uses, launch: &Launch, threads: usize) -> Option<Spread> {
    let (last, before) = bound.ops.len().checked_sub(2).map(|before| (before + 1, before))?;
    let (args, read) = (args(bound, last)?, args(bound, before)?);
    if !follows(bound, (before, last), threads) || !is_same(bound.args[args.first], bound.args[read.first + RESULT]) {
        return None;
    }
    // the longest chain that ends with the operation before
    let ends = |more: &usize| before.checked_sub(*more).is_some_and(|first| bound.ops[first].links == *more);
    let more = (0..MAX_LINKS - 1).rev().find(ends)?;
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
        return None;
    }
    let used: Vec<Span> = earlier().collect();
    uses.add(bound.args[args.first + RESULT].buffer as usize, first, true);
    for at in used.iter().flat_map(|args| args.first..args.first + args.len) {
        uses.add(bound.args[at].buffer as usize, last, false);
    }
    bound.most_args = bound.most_args.max(used.iter().map(|args| args.len).sum::<usize>() + args.len);
    bound.ops[first].links = last - first;
    Some(Spread::Rows)
}

/// Cuts chains. Results that only chains of the same cut use, and of those only their own rows or through a map, get a copy for
/// each chunk: that many `bytes`.
pub(crate) fn cut(bound: &mut Bound, uses: &Uses, bytes: &mut [usize], threads: usize) {
    for first in 0..bound.ops.len() {
        let Item { op: Op::Driver { plan, .. }, links: links @ 1.., .. } = &bound.ops[first] else { continue };
        let (links, cut) = (*links, plan.row_cut(threads));
        if let Some(cut) = cut {
            bound.scratch = bound.scratch.max(chain_scratch(cut));
        }
        for link in &mut bound.ops[first..=first + links] {
            link.cut = cut.map(|cut| (cut, Copies::default()));
        }
    }
    for op in 0..bound.ops.len() {
        let (Some((cut, Copies { output: 0, .. })), Some(args)) = (bound.ops[op].cut, args(bound, op)) else {
            continue;
        };
        let result = bound.args[args.first + RESULT].buffer as usize;
        let apart = bytes[result].next_multiple_of(PAGE);
        if cut.chunks > 1
            && apart.checked_mul(cut.chunks).is_some_and(|all| all <= MOST)
            && copy(bound, uses, result, cut, apart).is_some()
        {
            bytes[result] = apart * cut.chunks;
        }
    }
}

/// Says to all that use a buffer how far copies for the chunks of a cut lie apart, if all of them can use these.
fn copy(bound: &mut Bound, uses: &Uses, buffer: usize, cut: RowCut, apart: usize) -> Option<()> {
    let mut changed = Vec::new();
    for op in uses.users(buffer)? {
        let item = bound.ops.get(op)?;
        let (Op::Driver { plan, args }, Some((_, mut copies))) = (&item.op, item.cut.filter(|(of, _)| *of == cut))
        else {
            return None;
        };
        for argument in 0..args.len {
            let address = bound.args[args.first + argument];
            if uses.root(address.buffer as usize) == buffer {
                let whole = address.buffer as usize == buffer && address.offset == 0;
                *plan.copies(argument, &mut copies).filter(|_| whole)? = apart;
            }
        }
        changed.push((op, copies));
    }
    for (op, copies) in changed {
        bound.ops[op].cut = Some((cut, copies));
    }
    Some(())
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
