//! A driver of a program, bound: its plan, its hooks, and the order of its arguments.

use egret_program::driver::hook::{EpilogueFn, RowsFn, ScoreFn};
use egret_program::driver::{Driver, Epilogue, Prologue, Score};
use egret_simd::Isa;

use super::drivers::{
    AttentionArgs, AttentionGradArgs, AttentionGradPlan, AttentionPlan, ChannelsPlan, ConvArgs, ConvPlan, Copies,
    DriverError, GemmArgs, GemmPlan, Link, NonZeroPlan, PackPlan, PoolArgs, PoolGradArgs, PoolGradPlan, PoolPlan,
    RelayoutPlan, RowCut, ScratchNeed, ScratchPool, Spread, SuppressionArgs, SuppressionPlan, TopKPlan, UniqueArgs,
    UniquePlan,
};
use super::team::Team;

/// A driver whose extents are known.
#[derive(Debug)]
pub(crate) struct DriverPlan {
    form: Form,
    /// Operands of fixed meaning, then how many extras, outputs, extras and outputs of the finisher.
    fixed: usize,
    extras: usize,
    outs: usize,
    finisher_extras: usize,
    hook: Option<EpilogueFn>,
    finisher: Option<RowsFn>,
}

#[derive(Debug)]
enum Form {
    Conv(Box<ConvPlan>),
    Pool(Box<PoolPlan>),
    PoolGrad(Box<PoolGradPlan>),
    Gemm(Box<GemmPlan>),
    Attention { plan: Box<AttentionPlan>, lse: bool },
    AttentionGrad(Box<AttentionGradPlan>),
    Relayout(Box<RelayoutPlan>),
    Channels(Box<ChannelsPlan>),
    Pack(Box<PackPlan>),
    TopK(TopKPlan),
    NonZero(NonZeroPlan),
    Unique(UniquePlan),
    Suppression(SuppressionPlan),
}

/// Extra operands and outputs of an epilogue.
fn epilogue_operands(epilogue: &Epilogue) -> (usize, usize) {
    match epilogue {
        Epilogue::Direct { bias, residual, .. } => (usize::from(bias.is_some()) + usize::from(residual.is_some()), 0),
        Epilogue::Hook { extras, outs, .. } => (extras.len(), outs.len()),
    }
}

/// Operands of a score.
fn score_operands(score: &Score) -> usize {
    match score {
        Score::Plain { mask, truth, .. } => usize::from(mask.is_some()) + usize::from(truth.is_some()),
        Score::Hook { extras, .. } => extras.len(),
    }
}

impl DriverPlan {
    /// Binds. `args` is how many arguments the launch has.
    pub(crate) fn new(
        driver: &Driver,
        hook: Option<EpilogueFn>,
        finisher: Option<RowsFn>,
        args: usize,
        isa: Isa,
    ) -> Result<DriverPlan, DriverError> {
        let (mut extras, mut outs, mut finisher_operands) = (0, 0, (0, 0));
        let (mut wants_hook, mut wants_finisher) = (false, false);
        let (form, fixed) = match driver {
            Driver::Conv(problem, schedule) => {
                (extras, outs) = epilogue_operands(&problem.epilogue);
                wants_hook = matches!(problem.epilogue, Epilogue::Hook { .. });
                // the prologue's hook and operands take the finisher's place
                wants_finisher = matches!(problem.prologue, Some(Prologue::Hook { .. }));
                finisher_operands.0 = problem.prologue.as_ref().map_or(0, Prologue::operands);
                (Form::Conv(Box::new(ConvPlan::new(problem, schedule, isa)?)), 3)
            }
            Driver::Pool(problem) => {
                (extras, outs) = epilogue_operands(&problem.epilogue);
                wants_hook = matches!(problem.epilogue, Epilogue::Hook { .. });
                (Form::Pool(Box::new(PoolPlan::new(problem, isa)?)), 2)
            }
            Driver::PoolGrad(problem) => (Form::PoolGrad(Box::new(PoolGradPlan::new(problem, isa)?)), 3),
            Driver::Gemm(problem, schedule) => {
                (extras, outs) = epilogue_operands(&problem.epilogue);
                wants_hook = matches!(problem.epilogue, Epilogue::Hook { .. });
                if let Some(f) = &problem.finisher {
                    finisher_operands = (f.extras.len(), f.outs.len());
                }
                (Form::Gemm(Box::new(GemmPlan::new(problem, schedule, isa)?)), 3)
            }
            Driver::Attention(problem, schedule) => {
                extras = score_operands(&problem.score);
                wants_hook = matches!(problem.score, Score::Hook { .. });
                let plan = Box::new(AttentionPlan::new(problem, schedule, isa)?);
                (Form::Attention { plan, lse: problem.lse.is_some() }, 4 + usize::from(problem.lse.is_some()))
            }
            Driver::AttentionGrad(problem, schedule) => {
                extras = score_operands(&problem.forward.score);
                wants_hook = matches!(problem.forward.score, Score::Hook { .. });
                // the slope of the score
                wants_finisher = wants_hook;
                (Form::AttentionGrad(Box::new(AttentionGradPlan::new(problem, schedule, isa)?)), 9)
            }
            Driver::Relayout(problem) => (Form::Relayout(Box::new(RelayoutPlan::new(problem, isa)?)), 2),
            Driver::Channels(problem) => {
                (Form::Channels(Box::new(ChannelsPlan::new(problem, isa)?)), problem.sources.len() + 1)
            }
            Driver::Pack(problem) => (Form::Pack(Box::new(PackPlan::new(problem, isa)?)), 2),
            Driver::TopK(problem) => (Form::TopK(TopKPlan::new(problem)?), 3),
            Driver::NonZero(problem) => (Form::NonZero(NonZeroPlan::new(problem)?), 3),
            Driver::Unique(problem) => (Form::Unique(UniquePlan::new(problem)?), 6),
            Driver::Suppression(problem) => (Form::Suppression(SuppressionPlan::new(problem)?), 7),
        };
        if wants_hook != hook.is_some() {
            return Err(DriverError::Problem("the epilogue and the hook of the kernel contradict each other"));
        }
        wants_finisher |= finisher_operands.1 > 0;
        if wants_finisher != finisher.is_some() {
            return Err(DriverError::Problem("the finisher and the hook of the kernel contradict each other"));
        }
        let plan = DriverPlan { form, fixed, extras, outs, finisher_extras: finisher_operands.0, hook, finisher };
        if fixed + extras + outs + finisher_operands.0 + finisher_operands.1 != args {
            return Err(DriverError::Problem("the number of arguments is not that of the problem"));
        }
        Ok(plan)
    }

    /// The plan for a team of so many threads, which wrote the first operand so.
    pub(crate) fn reading(mut self, spread: Spread, threads: usize) -> DriverPlan {
        if let Form::Conv(plan) = self.form {
            self.form = Form::Conv(Box::new(plan.reading(spread, threads)));
        }
        self
    }

    /// Who of a team writes the result.
    pub(crate) fn spread(&self, threads: usize) -> Spread {
        match &self.form {
            Form::Conv(plan) => plan.spread(threads),
            _ => Spread::Rows,
        }
    }

    /// Scratch that `run` needs.
    pub(crate) fn scratch(&self) -> ScratchNeed {
        match &self.form {
            Form::Conv(plan) => plan.scratch(),
            Form::Pool(plan) => plan.scratch(),
            Form::PoolGrad(plan) => plan.scratch(),
            Form::Gemm(plan) => plan.scratch(),
            Form::Attention { plan, .. } => plan.scratch(),
            Form::AttentionGrad(plan) => plan.scratch(),
            Form::TopK(plan) => plan.scratch(),
            Form::Unique(plan) => plan.scratch(),
            Form::Suppression(plan) => plan.scratch(),
            Form::Relayout(_) | Form::Channels(_) | Form::Pack(_) | Form::NonZero(_) => ScratchNeed::default(),
        }
    }

    /// A convolution's arguments among all.
    fn conv_args<'a>(&self, args: &'a [*mut u8]) -> ConvArgs<'a> {
        let (fixed, rest) = args.split_at(self.fixed);
        let (extras, rest) = rest.split_at(self.extras);
        let (outs, rest) = rest.split_at(self.outs);
        let arg = |i: usize| fixed[i].cast::<f32>();
        let (input, weights, output, prologue_extras) = (arg(0), arg(1), arg(2), &rest[..self.finisher_extras]);
        let (hook, prologue) = (self.hook, self.finisher);
        ConvArgs { input, weights, output, extras, outs, hook, prologue_extras, prologue }
    }

    /// The convolution that it is as a link of a chain.
    pub(crate) fn link<'a>(&'a self, args: &'a [*mut u8], copies: Copies) -> Option<Link<'a>> {
        match &self.form {
            Form::Conv(plan) => Some(Link { plan, args: self.conv_args(args), copies }),
            _ => None,
        }
    }

    /// How a chain that begins with it is cut.
    pub(crate) fn row_cut(&self, threads: usize) -> Option<RowCut> {
        match &self.form {
            Form::Conv(plan) => plan.row_cut(threads),
            _ => None,
        }
    }

    /// The one of `copies` that a link's argument may have.
    pub(crate) fn copies<'a>(&self, argument: usize, copies: &'a mut Copies) -> Option<&'a mut usize> {
        let Form::Conv(plan) = &self.form else { return None };
        match argument {
            0 if plan.reads_copies() => Some(&mut copies.input),
            2 if self.hook.is_none() => Some(&mut copies.output),
            _ if self.hook.is_none() && Some(argument) == plan.residual().map(|extra| self.fixed + extra) => {
                Some(&mut copies.residual)
            }
            _ => None,
        }
    }

    /// Whether a team may go on with it behind `before`, whose result is its first operand, without a join.
    pub(crate) fn follows(&self, before: &DriverPlan, threads: usize) -> bool {
        match (&self.form, &before.form) {
            (Form::Conv(plan), Form::Conv(before)) => plan.follows(before, threads),
            _ => false,
        }
    }

    /// Computes.
    ///
    /// # Safety
    /// The arguments are those that [`DriverArgs`](egret_program::program::DriverArgs) lists, as the drivers require them.
    pub(crate) unsafe fn run(&self, args: &[*mut u8], team: &Team, scratch: &ScratchPool) {
        let (fixed, rest) = args.split_at(self.fixed);
        let (extras, rest) = rest.split_at(self.extras);
        let (outs, rest) = rest.split_at(self.outs);
        let (finisher_extras, finisher_outs) = rest.split_at(self.finisher_extras);
        let arg = |i: usize| fixed[i].cast::<f32>();
        // SAFETY: the caller's.
        unsafe {
            match &self.form {
                Form::Conv(plan) => plan.run(&self.conv_args(args), team, scratch),
                Form::Pool(plan) => {
                    let (input, output) = (arg(0), arg(1));
                    plan.run(&PoolArgs { input, output, extras, outs, hook: self.hook }, team, scratch);
                }
                Form::PoolGrad(plan) => {
                    plan.run(&PoolGradArgs { x: arg(0), dy: arg(1), dx: arg(2) }, team, scratch);
                }
                Form::Gemm(plan) => {
                    let outs = if self.finisher.is_some() { finisher_outs } else { outs };
                    let (a, b, c) = (fixed[0].cast_const(), fixed[1].cast_const(), fixed[2]);
                    let (hook, finisher) = (self.hook, self.finisher);
                    plan.run(&GemmArgs { a, b, c, extras, outs, hook, finisher, finisher_extras }, team, scratch);
                }
                Form::Attention { plan, lse } => {
                    let lse = if *lse { arg(4) } else { std::ptr::null_mut() };
                    let hook: Option<ScoreFn> = self.hook;
                    let args = AttentionArgs { q: arg(0), k: arg(1), v: arg(2), o: arg(3), lse, extras, hook };
                    plan.run(&args, team, scratch);
                }
                Form::AttentionGrad(plan) => {
                    let args = AttentionGradArgs {
                        q: arg(0),
                        k: arg(1),
                        v: arg(2),
                        o: arg(3),
                        lse: arg(4),
                        extras,
                        hook: self.hook,
                        slope: self.finisher,
                        grad_o: arg(5),
                        grad_q: arg(6),
                        grad_k: arg(7),
                        grad_v: arg(8),
                    };
                    plan.run(&args, team, scratch);
                }
                Form::Relayout(plan) => plan.run(arg(0), arg(1), team),
                Form::Channels(plan) => plan.run(fixed, team),
                Form::Pack(plan) => plan.run(fixed[0], fixed[1], team),
                Form::TopK(plan) => plan.run(fixed[0], fixed[1], fixed[2].cast(), team, scratch),
                Form::NonZero(plan) => plan.run(fixed[0], fixed[1].cast(), fixed[2].cast()),
                Form::Unique(plan) => {
                    let args = UniqueArgs {
                        x: fixed[0],
                        values: fixed[1],
                        first: fixed[2].cast(),
                        inverse: fixed[3].cast(),
                        counts: fixed[4].cast(),
                        count: fixed[5].cast(),
                    };
                    plan.run(&args, scratch);
                }
                Form::Suppression(plan) => {
                    let args = SuppressionArgs {
                        boxes: fixed[0].cast(),
                        scores: fixed[1].cast(),
                        most: fixed[2].cast(),
                        overlap: fixed[3].cast(),
                        score: fixed[4].cast(),
                        rows: fixed[5].cast(),
                        count: fixed[6].cast(),
                    };
                    plan.run(&args, scratch);
                }
            }
        }
    }
}
