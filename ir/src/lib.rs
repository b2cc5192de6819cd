//! Egret's graph IR: types, operators, tracer, text form, reference interpreter, autodiff.
