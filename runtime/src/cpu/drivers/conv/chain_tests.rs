use super::chain::{Link, run_chain};
use super::tests::{blocked, problem};
use super::*;
use crate::cpu::drivers::testing::{buffer, isas, values};
use crate::cpu::drivers::{PackPlan, ScratchNeed};
use crate::cpu::memory::Buffer;
use egret_program::driver::{Activation, Bias, Epilogue, Operand, PackProblem, Prologue};

/// Halo of what links hand on, other than any of them needs.
const HALO: [usize; 2] = [0, 1];

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
    let output = Buffer::floats(p.batch * p.out_batch_stride).unwrap();
    Made { problem: p, plan, weights, output, extras }
}

impl Made {
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
/// residual: whatever the team and whoever keeps results, every bit is that of one after the other.
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
            let need = links.iter().fold(ScratchNeed::default(), |need, link| need.max(link.plan.scratch()));
            let run = |threads: usize, kept: usize| {
                for link in &links {
                    let all = link.output.len() / 4;
                    // SAFETY: nobody else uses the output.
                    unsafe { std::slice::from_raw_parts_mut(link.output.as_ptr::<f32>(), all) }.fill(7.0);
                }
                let room = links[0].plan.item_bytes().unwrap().next_multiple_of(4096);
                let start = need.per_worker.next_multiple_of(4096);
                let team = Team::new(threads);
                let need = ScratchNeed { per_worker: start + 2 * room, shared: 0 };
                let scratch = ScratchPool::new(threads, need).unwrap();
                if threads == 1 {
                    for (link, input) in links.iter().zip(inputs) {
                        unsafe { link.plan.run(&link.args(input), &team, &scratch) };
                    }
                } else {
                    let own = |i: usize| (i < kept).then_some(start + i * room);
                    let linked = links.iter().zip(inputs).enumerate();
                    let linked = linked.map(|(i, (it, x))| Link { plan: &it.plan, args: it.args(x), own: own(i) });
                    let chain: Vec<Link<'_>> = linked.collect();
                    unsafe { run_chain(&chain, &team, &scratch) };
                }
                links[2].output.as_f32().to_vec()
            };
            let want = run(1, 0);
            for threads in 2..5 {
                let follow = |i: usize| links[i].plan.follows(&links[i - 1].plan, threads);
                followed += usize::from(follow(1) && follow(2));
                for kept in 0..3 {
                    let got = run(threads, kept);
                    let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} case {case}, {threads} threads, {kept} kept");
                }
            }
            assert!(!links[0].plan.follows(&links[1].plan, 2), "it reads neighbours");
        }
    }
    assert!(followed > 0, "no chain is worth it");
}
