//! Convolution in blocked channels with a zero halo: direct, of f32, integers or words, or by Winograd's minimal filtering.

mod chain;
#[cfg(test)]
mod chain_tests;
mod direct;
#[cfg(test)]
mod epilogue_tests;
mod geometry;
mod hooked;
mod image;
mod mapped;
#[cfg(test)]
mod mapped_tests;
#[cfg(test)]
mod tests;
mod weight_gradient;
mod winograd;
#[cfg(test)]
mod winograd_tests;
#[cfg(test)]
mod word_tests;
mod words;

pub(crate) use chain::{Copies, Link, MAX_LINKS, chain_scratch, run_chain};
pub(crate) use geometry::{Surface, dims, gradient_phases};
pub(crate) use hooked::{Hooked, Lattice, Place};

use super::kernels::check_isa;
use super::{DriverError, ScratchNeed, ScratchPool, Spread};
use crate::cpu::team::Team;
use direct::Direct;
use egret_program::driver::hook::EpilogueFn;
use egret_program::driver::{ConvEngine, ConvForm, ConvInput, ConvProblem, ConvSchedule};
use egret_simd::Isa;
use image::ImageConv;
use mapped::MappedConv;
use weight_gradient::WeightGradient;
use winograd::Winograd;
use words::WordConv;

/// Operands of a convolution. Lengths are those of the problem, plus the slack of
/// [`SLACK`](crate::cpu::memory::SLACK) readable bytes behind each.
#[derive(Clone, Copy, Debug)]
pub struct ConvArgs<'a> {
    /// Forward and weight gradient: x. Input gradient: the gradient of y.
    pub input: *const f32,
    /// Forward and input gradient: the packed weights (see [`PackPlan`](super::PackPlan)). Weight gradient: the gradient
    /// of y.
    pub weights: *const f32,
    /// What is written (not read with a hook, whose outputs are `outs`).
    pub output: *mut f32,
    /// Extra operands of the epilogue: direct: the bias, then the residual, as far as they exist; hook: its extras.
    pub extras: &'a [*mut u8],
    /// Outputs of the hook.
    pub outs: &'a [*mut u8],
    /// The hook, if the problem has one.
    pub hook: Option<EpilogueFn>,
    /// Operands of the prologue.
    pub prologue_extras: &'a [*mut u8],
    /// The prologue's hook, if it has one.
    pub prologue: Option<EpilogueFn>,
}

/// A convolution whose extents are known.
#[derive(Debug)]
pub struct ConvPlan {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Direct(Direct),
    Image(ImageConv),
    Mapped(MappedConv),
    WeightGradient(Box<WeightGradient>),
    Winograd(Box<Winograd>),
    Words(Box<WordConv>),
}

impl ConvPlan {
    /// Binds.
    ///
    /// # Errors
    /// If the numbers contradict each other, a halo is too small, or the form does not exist: weight gradients of groups
    /// whose channels are not multiples of L (except depthwise), images with groups or three spatial dims (weight
    /// gradients: with groups or padding), gradients with respect to images, Winograd, words and integers of another problem than
    /// [`ConvProblem::has_winograd`], [`ConvProblem::has_words`] and [`ConvProblem::has_shorts`] tell, words on a processor without
    /// their unit.
    pub fn new(problem: &ConvProblem, schedule: &ConvSchedule, isa: Isa) -> Result<ConvPlan, DriverError> {
        check_isa(isa, schedule.lanes)?;
        let lanes = isa.lanes_f32();
        let (i, o) = (problem.in_channels, problem.out_channels);
        if problem.groups == 0 || i % problem.groups != 0 || o % problem.groups != 0 {
            return Err(DriverError::Problem("groups must divide the channels"));
        }
        let of_group = |channels: usize| (channels / problem.groups).is_multiple_of(lanes);
        let whole = problem.groups == 1 || problem.is_depthwise() || of_group(i) && of_group(o);
        if problem.form == ConvForm::WeightGradient && !whole {
            return Err(DriverError::Unsupported("weight gradients of groups that share a vector"));
        }
        if let Some(prologue) = &problem.prologue {
            if problem.input == ConvInput::Image {
                return Err(DriverError::Unsupported("prologues of row-major images"));
            }
            let mapped = MappedConv::new(problem, prologue, schedule, isa)?;
            return Ok(ConvPlan { form: Form::Mapped(mapped) });
        }
        if schedule.engine == ConvEngine::Shorts && !problem.has_shorts() {
            return Err(DriverError::Unsupported("integers but forward, without an activation"));
        }
        let form = match (problem.form, problem.input) {
            _ if let ConvEngine::Words(words) = schedule.engine => {
                Form::Words(Box::new(WordConv::new(problem, schedule, words, isa)?))
            }
            _ if matches!(schedule.engine, ConvEngine::Winograd { .. }) => {
                Form::Winograd(Box::new(Winograd::new(problem, schedule, isa)?))
            }
            (ConvForm::WeightGradient, _) => Form::WeightGradient(Box::new(WeightGradient::new(problem, isa)?)),
            (ConvForm::Forward, ConvInput::Image) => Form::Image(ImageConv::new(problem, schedule, isa)?),
            (_, ConvInput::Blocked) => Form::Direct(Direct::new(problem, schedule, isa)?),
            (_, ConvInput::Image) => {
                return Err(DriverError::Unsupported("input gradients of a row-major image"));
            }
        };
        Ok(ConvPlan { form })
    }

    /// The plan for a team of so many threads, which wrote the input so.
    pub(crate) fn reading(mut self, spread: Spread, threads: usize) -> ConvPlan {
        match &mut self.form {
            Form::Direct(direct) => {
                (direct.read, direct.known) = (spread, None);
                direct.known = Some((threads, direct.cut(threads)));
            }
            Form::Mapped(mapped) => {
                mapped.reads(spread);
                mapped.direct.known = None;
                mapped.direct.known = Some((threads, mapped.cut(threads)));
            }
            _ => {}
        }
        self
    }

    /// Who of a team writes the output.
    pub(crate) fn spread(&self, threads: usize) -> Spread {
        match &self.form {
            Form::Direct(direct) => direct.spread(threads),
            Form::Mapped(mapped) => mapped.spread(threads),
            _ => Spread::Rows,
        }
    }

    /// Scratch that `run` needs.
    pub fn scratch(&self) -> ScratchNeed {
        match &self.form {
            Form::Direct(d) => d.scratch(),
            Form::Image(i) => i.scratch(),
            Form::Mapped(m) => m.scratch(),
            Form::WeightGradient(w) => w.scratch(),
            Form::Winograd(w) => w.scratch(),
            Form::Words(w) => w.scratch(),
        }
    }

    /// Computes.
    ///
    /// # Safety
    /// The operands have the extents of the problem (see [`ConvArgs`]), halos of what is read are zero, the output
    /// overlaps no operand except the residual element by element, and `scratch` was made for this team and at least
    /// [`scratch`](ConvPlan::scratch).
    pub unsafe fn run(&self, args: &ConvArgs<'_>, team: &Team, scratch: &ScratchPool) {
        // SAFETY: the caller's.
        unsafe {
            match &self.form {
                Form::Direct(d) => d.run(args, team, scratch),
                Form::Image(i) => i.run(args, team, scratch),
                Form::Mapped(m) => m.run(args, team, scratch),
                Form::WeightGradient(w) => w.run(args, team, scratch),
                Form::Winograd(w) => w.run(args, team, scratch),
                Form::Words(w) => w.run(args, team, scratch),
            }
        }
    }
}
