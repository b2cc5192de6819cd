//! Gradients: of scalars, with their value, and by rules of one's own.

use std::panic::Location;

use super::control::Region;
use super::{Kind, Tracer, Var, add, with};
use crate::diagnostic::Diagnostic;
use crate::ops::{CustomVjp, Proj};

/// What a gradient of one's own reads.
pub struct Backward<'a, 't> {
    /// The operands.
    pub operands: &'a [Var<'t>],
    /// The results on them.
    pub results: &'a [Var<'t>],
    /// The gradients of the loss by the results; zeros where it does not depend on one.
    pub upstream: &'a [Var<'t>],
}

impl<'t> Tracer<'t> {
    /// A scalar function of values, and its gradients by them.
    ///
    /// ```
    /// use egret_ir::{Tensor, Tensors, f32, interpret, trace};
    /// let graph = trace(|t| {
    ///     let x = t.input("x", f32([2]));
    ///     let (value, gradients) = t.value_and_grad(&[x], |x| (x[0] * x[0]).sum());
    ///     [("value", value), ("gradient", gradients[0])]
    /// })?;
    /// let x = Tensor::new(&[2], &[3.0f32, -1.0]).unwrap();
    /// let outcome = interpret(&graph, &Tensors::from([("x".into(), x)]), &Tensors::new()).unwrap();
    /// assert_eq!(outcome.output("gradient").unwrap().as_slice::<f32>(), Some(&[6.0f32, -2.0][..]));
    /// # Ok::<(), egret_ir::Diagnostic>(())
    /// ```
    #[track_caller]
    pub fn value_and_grad(
        &self,
        wrt: &[Var<'t>],
        function: impl FnOnce(&[Var<'t>]) -> Var<'t>,
    ) -> (Var<'t>, Vec<Var<'t>>) {
        let value = function(wrt);
        let gradients = self.grad(value, wrt);
        (value, gradients)
    }

    /// The results of `forward` on these operands, whose gradient is what `backward` gives: one value for each operand
    /// that is a float, of its type. For rules that are more exact or cheaper than what differentiation finds, or that
    /// pretend, such as a gradient that passes a rounding.
    ///
    /// Neither closure may read other values than it is given: what they depend on are operands. Second derivatives are
    /// those of `backward`.
    ///
    /// ```
    /// use egret_ir::{Tensor, Tensors, f32, interpret, trace};
    /// let graph = trace(|t| {
    ///     let x = t.input("x", f32([2]));
    ///     // rounds; its gradient is that of the identity (Bengio et al., 2013)
    ///     let rounded = t.custom_vjp(&[x], |_, x| vec![x[0].round()], |_, b| vec![b.upstream[0]])[0];
    ///     t.grad((rounded * rounded).sum(), &[x])
    /// })?;
    /// let x = Tensor::new(&[2], &[2.25f32, -0.75]).unwrap();
    /// let outcome = interpret(&graph, &Tensors::from([("x".into(), x)]), &Tensors::new()).unwrap();
    /// assert_eq!(outcome.outputs[0].1.as_slice::<f32>(), Some(&[4.0f32, -2.0][..]));
    /// # Ok::<(), egret_ir::Diagnostic>(())
    /// ```
    #[track_caller]
    pub fn custom_vjp<F, B>(&self, operands: &[Var<'t>], forward: F, backward: B) -> Vec<Var<'t>>
    where
        F: FnOnce(&Tracer<'t>, &[Var<'t>]) -> Vec<Var<'t>>,
        B: FnOnce(&Tracer<'t>, &Backward<'_, 't>) -> Vec<Var<'t>>,
    {
        let caller = Location::caller();
        let inputs = |t: &Tracer<'t>, name: &str, of: &[Var<'t>]| -> Vec<Var<'t>> {
            of.iter().enumerate().map(|(i, v)| t.input(&format!("{name}{i}"), v.ty())).collect()
        };
        let declare = |t: &Tracer<'t>, values: &[Var<'t>]| {
            values.iter().enumerate().for_each(|(i, v)| t.output(&format!("y{i}"), *v));
        };
        // types of results, as values of this graph that nothing reads
        let (traced, types) = self.region(Kind::Region, caller, |t| {
            let x = inputs(t, "x", operands);
            let y = forward(t, &x);
            declare(t, &y);
            y.iter().map(|y| y.ty()).collect::<Vec<_>>()
        });
        let poisoned = || vec![Var::poisoned(self.key); types.len()];
        let Some(forward) = self.closed(traced, caller) else { return poisoned() };
        let (traced, ()) = self.region(Kind::Region, caller, |t| {
            let operands = inputs(t, "x", operands);
            let typed = |name: &str| -> Vec<Var<'t>> {
                types.iter().enumerate().map(|(i, ty)| t.input(&format!("{name}{i}"), ty.clone())).collect()
            };
            let (results, upstream) = (typed("y"), typed("dy"));
            let gradients = backward(t, &Backward { operands: &operands, results: &results, upstream: &upstream });
            declare(t, &gradients);
        });
        let Some(backward) = self.closed(traced, caller) else { return poisoned() };
        let custom = CustomVjp { forward: forward.graph, backward: backward.graph };
        let tuple = add(self.key, custom.into(), operands, caller);
        (0..types.len()).map(|index| add(self.key, Proj { index }.into(), &[tuple], caller)).collect()
    }

    /// The region, if it reads nothing from outside; records an error if it does.
    fn closed(&self, region: Option<Region<'t>>, caller: &'static Location<'static>) -> Option<Region<'t>> {
        let region = region?;
        if region.captured.is_empty() {
            return Some(region);
        }
        let message = "a function with its own gradient reads a value from outside";
        let error = Diagnostic::new("E0104", message).help("give it among the operands");
        with(self.key, |building| building.fail(error, caller));
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::{Tensor, Tensors, f32, i64, interpret, trace};

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(&[values.len()], values).unwrap()
    }

    #[test]
    fn the_rule_is_used_and_differentiated() {
        // x² with the gradient 3x·dy, whose own gradient is 3dy
        let graph = trace(|t| {
            let x = t.input("x", f32([2]));
            let square =
                |x| t.custom_vjp(&[x], |_, x| vec![x[0] * x[0]], |_, b| vec![b.operands[0] * b.upstream[0] * 3.0])[0];
            let y = square(square(x) * 2.0);
            let first = t.grad(y.sum(), &[x])[0];
            [("y", y), ("first", first), ("second", t.grad(first.sum(), &[x])[0])]
        })
        .unwrap();
        let outcome = interpret(&graph, &Tensors::from([("x".into(), tensor(&[1.0, -2.0]))]), &Tensors::new()).unwrap();
        let of = |name: &str| outcome.output(name).unwrap().as_slice::<f32>().unwrap().to_vec();
        assert_eq!(of("y"), [4.0, 64.0]);
        // u = 2x²: 3u · 2 · 3x = 36x³
        assert_eq!(of("first"), [36.0, -288.0]);
        // by u: 18x · 2 · 3x, by x: 18u = 36x²
        assert_eq!(of("second"), [108.0 + 36.0, 432.0 + 144.0]);
    }

    #[test]
    fn several_results_and_integer_operands_have_their_places() {
        let graph = trace(|t| {
            let (x, i) = (t.input("x", f32([3])), t.input("i", i64([2])));
            let parts = t.custom_vjp(
                &[i, x],
                |_, x| vec![x[1].gather(x[0], 0), x[1] * 5.0],
                |_, b| vec![b.upstream[1] + b.results[0].sum()],
            );
            t.grad(parts[0].sum() + (parts[1] * 2.0).sum(), &[x])
        })
        .unwrap();
        let i = Tensor::new(&[2], &[2i64, 0]).unwrap();
        let inputs = Tensors::from([("x".into(), tensor(&[1.0, 2.0, 4.0])), ("i".into(), i)]);
        let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        assert_eq!(outcome.outputs[0].1, tensor(&[7.0; 3]));
    }

    #[test]
    fn rules_work_in_loops() {
        let graph = trace(|t| {
            let (x, first) = (t.input("x", f32([4])), t.input("first", f32([0i64; 0])));
            let (last, _) = t.scan(&[first], &[x], |t, carried, x| {
                let step = t.custom_vjp(
                    &[carried[0], x[0]],
                    |_, v| vec![v[0] + v[1]],
                    |_, b| vec![b.upstream[0] * 2.0, b.upstream[0]],
                );
                (step, vec![])
            });
            t.grad(last[0], &[x])
        })
        .unwrap();
        let one = Tensor::new(&[], &[1.0f32]).unwrap();
        let inputs = Tensors::from([("x".into(), tensor(&[1.0; 4])), ("first".into(), one)]);
        let outcome = interpret(&graph, &inputs, &Tensors::new()).unwrap();
        assert_eq!(outcome.outputs[0].1, tensor(&[8.0, 4.0, 2.0, 1.0]));
        assert!(!crate::ops::has_custom(&crate::autodiff::expand(&graph).unwrap()));
    }

    #[test]
    fn rules_that_do_not_fit_are_refused() {
        let refused = |f: for<'t> fn(&crate::Tracer<'t>, crate::Var<'t>) -> Vec<crate::Var<'t>>| {
            let error = trace(|t| f(t, t.input("x", f32([2])))).unwrap_err();
            assert!(!error.origin.is_empty(), "{error}");
            error.code
        };
        assert_eq!(refused(|t, x| t.custom_vjp(&[x], |_, v| vec![v[0] * x], |_, b| vec![b.upstream[0]])), "E0104");
        assert_eq!(refused(|t, x| t.custom_vjp(&[x], |_, v| vec![v[0]], |_, _| vec![])), "E0101");
        assert_eq!(refused(|t, x| t.custom_vjp(&[x], |_, v| vec![v[0]], |_, b| vec![b.upstream[0].sum()])), "E0101");
    }
}
