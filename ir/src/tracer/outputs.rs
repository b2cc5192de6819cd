//! What a traced closure may return.

use super::{Tracer, Var};

/// Results of a trace. One value is named `output`; several `output0`, `output1`, …; pairs carry their own names.
pub trait Outputs<'t> {
    /// Names the results.
    fn declare(self, t: &Tracer<'t>);
}

impl<'t> Outputs<'t> for () {
    fn declare(self, _: &Tracer<'t>) {}
}

impl<'t> Outputs<'t> for Var<'t> {
    fn declare(self, t: &Tracer<'t>) {
        t.output("output", self);
    }
}

impl<'t> Outputs<'t> for &[Var<'t>] {
    fn declare(self, t: &Tracer<'t>) {
        self.iter().enumerate().for_each(|(i, v)| t.output(&format!("output{i}"), *v));
    }
}

impl<'t> Outputs<'t> for Vec<Var<'t>> {
    fn declare(self, t: &Tracer<'t>) {
        self.as_slice().declare(t);
    }
}

impl<'t, const N: usize> Outputs<'t> for [Var<'t>; N] {
    fn declare(self, t: &Tracer<'t>) {
        self.as_slice().declare(t);
    }
}

impl<'t, S: AsRef<str>> Outputs<'t> for Vec<(S, Var<'t>)> {
    fn declare(self, t: &Tracer<'t>) {
        self.iter().for_each(|(name, v)| t.output(name.as_ref(), *v));
    }
}

impl<'t, S: AsRef<str>, const N: usize> Outputs<'t> for [(S, Var<'t>); N] {
    fn declare(self, t: &Tracer<'t>) {
        self.iter().for_each(|(name, v)| t.output(name.as_ref(), *v));
    }
}

macro_rules! tuples {
    ($(($($name:ident),*))*) => {$(
        impl<'t> Outputs<'t> for ($(tuples!(@var $name),)*) {
            #[allow(non_snake_case)]
            fn declare(self, t: &Tracer<'t>) {
                let ($($name,)*) = self;
                [$($name),*].as_slice().declare(t);
            }
        }
    )*};
    (@var $name:ident) => { Var<'t> };
}

tuples! { (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F) }
