use super::chain::{Copies, Link, chain_scratch, run_chain};
use super::tests::{blocked, problem};
use super::*;
use crate::cpu::drivers::testing::{buffer, isas, values};
use crate::cpu::drivers::{PackPlan, RowCut, ScratchNeed};
use crate::cpu::memory::Buffer;
use egret_program::driver::{Activation, Bias, Epilogue, Operand, PackProblem, Prologue};

/// Halo of what links hand on, other than any of them needs.
const HALO: [usize; 2] = [0, 1];

/// Most chunks of a chain.
const MOST: usize = 16;

struct Made {
    problem: ConvProblem,
    plan: ConvPlan,
    weights: Buffer,
    output: Buffer,
    extras: Vec<*mut u8>,
}

/// A convolution without what it reads first.
fn made(mut p: ConvProblem, lanes: usize, isa: Isa, extras: Vec<*mut u8>) -> Made {
    p.out_halo = HALO.to_vec();
    p.out_batch_stride = ConvProblem::blocked_len(p.out_channels, &p.out_spatial, &p.out_halo, lanes);
    if p.kernel == [1, 1] {
        p.in_halo = HALO.to_vec();
        p.in_batch_stride = ConvProblem::blocked_len(p.in_channels, &p.in_spatial, &p.in_halo, lanes);
    }
    let schedule = ConvSchedule::choose(&p, lanes);
    let plan = ConvPlan::new(&p, &schedule, isa).unwrap();
    let pack = PackPlan::new(&PackProblem::for_conv(&p, &schedule), isa).unwrap();
    let taps: usize = p.kernel.iter().product();
    let given = buffer(&values(p.out_channels * p.in_channels / p.groups * taps, 3 + p.groups as u32));
    let weights = Buffer::floats(pack.packed_len()).unwrap();
    unsafe { pack.run(given.as_ptr(), weights.as_ptr(), &Team::new(1)) };
    let output = Buffer::new(MOST * apart(p.batch * p.out_batch_stride)).unwrap();
    Made { problem: p, plan, weights, output, extras }
}

/// Bytes from a copy of so many floats to the next.
fn apart(floats: usize) -> usize {
    (4 * floats).next_multiple_of(4096)
}

/// A copy of an image for each chunk, with nothing but the chunk's rows.
fn copies(image: &Buffer, p: &ConvProblem, lanes: usize, cut: RowCut) -> Buffer {
    let row = (p.in_spatial[1] + 2 * HALO[1]) * lanes;
    let mut all = Buffer::new(MOST * apart(p.batch * p.in_batch_stride)).unwrap();
    all.as_f32_mut().fill(f32::NAN);
    for chunk in 0..cut.chunks {
        let to = chunk * apart(p.batch * p.in_batch_stride) / 4;
        for (item, (first, end)) in cut.rows(chunk) {
            for block in 0..p.in_channels.div_ceil(lanes) {
                let at = item * p.in_batch_stride + block * p.in_spatial[0] * row;
                let rows = at + first * row..at + end * row;
                all.as_f32_mut()[to + rows.start..to + rows.end].copy_from_slice(&image.as_f32()[rows]);
            }
        }
    }
    all
}

impl Made {
    fn apart(&self) -> usize {
        apart(self.problem.batch * self.problem.out_batch_stride)
    }

    fn link<'a>(&'a self, input: &Buffer, extras: &'a [*mut u8], copies: Copies) -> Link<'a> {
        Link { plan: &self.plan, args: ConvArgs { extras, ..self.args(input) }, copies }
    }

    fn args(&self, input: &Buffer) -> ConvArgs<'_> {
        ConvArgs {
            input: input.as_ptr(),
            weights: self.weights.as_ptr(),
            output: self.output.as_ptr(),
            extras: &self.extras,
            outs: &[],
            hook: None,
            prologue_extras: &[],
            prologue: None,
        }
    }
}

/// Depthwise (also with taken channels, also with a stride) or dense, then two pointwise ones, the first of groups with a
/// residual, and then taken channels of what that wrote: whatever the team and whatever chunks have copies of, every bit is that
/// of one after the other.
#[test]
fn chains_compute_what_their_links_do() {
    let mut followed = 0;
    for isa in isas() {
        let l = isa.lanes_f32();
        let channels = 2 * l + 6;
        for (case, (batch, spatial)) in [(1, [12, 9]), (2, [6, 14]), (1, [17, 30]), (3, [1, 8])].into_iter().enumerate()
        {
            let groups = if case == 1 { 1 } else { channels };
            let stride = if case == 2 { [2, 1] } else { [1, 1] };
            let pads: (&[usize], &[usize]) = (&[1, 1], &[1, 1]);
            let mut first = problem(
                ConvForm::Forward,
                batch,
                (channels, channels),
                groups,
                &spatial,
                &[3, 3],
                &stride,
                &[1, 1],
                pads,
                l,
            );
            let places = first.out_spatial.clone();
            let pointwise = |channels, groups| {
                let (one, none): (&[usize], &[usize]) = (&[1, 1], &[0, 0]);
                problem(ConvForm::Forward, batch, channels, groups, &places, one, one, one, (none, none), l)
            };
            if case == 0 {
                let taken = (0..channels as u32).map(|c| (c * 5) % channels as u32).collect();
                first.prologue = Some(Prologue::Taken { of: channels as u32, channels: taken });
            }
            let pixels = |spatial: &[usize]| spatial.iter().product::<usize>();
            let image = blocked(&first, true, &values(batch * channels * pixels(&spatial), 1), isa);
            let bias = buffer(&values(3 * l, 5));
            let mut third = pointwise((channels, 3 * l), 1);
            third.epilogue =
                Epilogue::Direct { bias: Some(Bias::PerColumn), residual: None, activation: Activation::None };
            let third = made(third, l, isa, vec![bias.as_ptr()]);
            let residual = blocked(&third.problem, true, &values(batch * channels * pixels(&places), 2), isa);
            let mut second = pointwise((channels, channels), 2);
            let full = Operand::Full { halo: HALO.to_vec(), batch_stride: third.problem.in_batch_stride };
            second.epilogue = Epilogue::Direct { bias: None, residual: Some(full), activation: Activation::Relu };
            let links = [made(first, l, isa, Vec::new()), made(second, l, isa, vec![residual.as_ptr()]), third];
            let inputs = [&image, &links[0].output, &links[1].output];
            let one: &[usize] = &[1, 1];
            let mut last =
                problem(ConvForm::Forward, batch, (channels, channels), channels, &places, &[3, 3], one, one, pads, l);
            let taken = (0..channels as u32).map(|c| (c * 7) % channels as u32).collect();
            last.prologue = Some(Prologue::Taken { of: channels as u32, channels: taken });
            (last.in_halo, last.in_batch_stride) = (HALO.to_vec(), links[1].problem.out_batch_stride);
            let last = made(last, l, isa, Vec::new());
            let all = || links.iter().chain([&last]);
            let need = all().fold(ScratchNeed::default(), |need, link| need.max(link.plan.scratch()));
            let clear = || {
                for link in all() {
                    let floats = link.output.len() / 4;
                    // SAFETY: nobody else uses the output.
                    unsafe { std::slice::from_raw_parts_mut(link.output.as_ptr::<f32>(), floats) }.fill(f32::NAN);
                }
            };
            let written = |link: &Made| {
                let floats = link.problem.batch * link.problem.out_batch_stride;
                link.output.as_f32()[..floats].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let room = RowCut { items: 1, height: 1, together: 1, chunks: MOST };
            let need = need.max(chain_scratch(room));
            let scratch = |threads| ScratchPool::new(threads, need).unwrap();
            clear();
            for (link, input) in all().zip(inputs.into_iter().chain([&links[1].output])) {
                unsafe { link.plan.run(&link.args(input), &Team::new(1), &scratch(1)) };
            }
            let want = [written(&links[2]), written(&last)];
            for threads in 2..5 {
                let follow = |i: usize| links[i].plan.follows(&links[i - 1].plan, threads);
                followed += usize::from(follow(1) && follow(2));
                let (team, scratch) = (Team::new(threads), scratch(threads));
                let cut = links[0].plan.row_cut(threads).unwrap();
                let of_chunks = copies(&residual, &links[1].problem, l, cut);
                for copied in 0..8 {
                    let is_copied = |i: usize| copied >> i & 1 == 1;
                    let apart = |i: usize| if is_copied(i) { links[i].apart() } else { 0 };
                    let (extras, residual) = match is_copied(2) {
                        true => (vec![of_chunks.as_ptr()], links[1].apart()),
                        false => (links[1].extras.clone(), 0),
                    };
                    let chain = [
                        links[0].link(&image, &[], Copies { output: apart(0), ..Copies::default() }),
                        links[1].link(
                            &links[0].output,
                            &extras,
                            Copies { input: apart(0), residual, output: apart(1) },
                        ),
                        links[2].link(
                            &links[1].output,
                            &links[2].extras,
                            Copies { input: apart(1), ..Copies::default() },
                        ),
                    ];
                    let after = last.link(&links[1].output, &[], Copies { input: apart(1), ..Copies::default() });
                    clear();
                    unsafe {
                        run_chain(&chain, cut, &team, &scratch);
                        run_chain(&[after], cut, &team, &scratch);
                    }
                    let got = [written(&links[2]), written(&last)];
                    assert!(got == want, "{isa} case {case}, {threads} threads, copies {copied:#b}");
                }
            }
            assert!(!links[0].plan.follows(&links[1].plan, 2), "it reads neighbours");
        }
    }
    assert!(followed > 0, "no chain is worth it");
}
