//! Loops and branches. What their graphs read from outside they read by name, as ONNX allows.

use egret_ir::ops::{If, Scan, While};
use egret_ir::{DType, Diagnostic, Graph, TensorType, Type};

use super::{Arg, Export};
use crate::export::writer::{graph, int, ints};

/// The types of a region's inputs.
fn input_types(region: &Graph) -> impl Iterator<Item = TensorType> + '_ {
    region.inputs().iter().map(|id| region.tensor_type(*id).clone())
}

/// Values with the types of a region's outputs.
fn typed(region: &Graph, names: Vec<String>) -> Vec<(String, TensorType)> {
    names.into_iter().zip(region.outputs()).map(|(name, (_, id))| (name, region.tensor_type(*id).clone())).collect()
}

fn names(x: &[Arg]) -> Vec<String> {
    x.iter().map(|arg| arg.name.to_string()).collect()
}

impl<'g> Export<'g> {
    pub(super) fn scan(&mut self, scan: &'g Scan, x: &[Arg]) -> Result<Vec<String>, Diagnostic> {
        let looped = scan.carried + scan.scanned;
        let mut operands = names(&x[..looped]);
        // a loop needs something to go over
        let bare = scan.scanned == 0;
        if bare {
            operands.push(self.counter(&scan.length, 0)?);
        }
        self.w.open();
        let mut formal: Vec<(String, TensorType)> =
            input_types(&scan.body).take(looped).map(|ty| (self.w.fresh("v"), ty)).collect();
        let inputs: Vec<String> = formal.iter().map(|(name, _)| name.clone()).chain(names(&x[looped..])).collect();
        if bare {
            formal.push((self.w.fresh("trip"), TensorType::scalar(DType::I64)));
        }
        let results = self.graph(&scan.body, &inputs)?;
        let count = results.len();
        let body = self.w.close(&formal, &typed(&scan.body, results));
        let scanned = scan.scanned.max(1);
        let mut attributes = vec![graph("body", body), int("num_scan_inputs", scanned as i64)];
        if scan.reverse {
            attributes.push(ints("scan_input_directions", vec![1; scanned]));
            attributes.push(ints("scan_output_directions", vec![1; count - scan.carried]));
        }
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        Ok(self.w.ops("Scan", &operands, attributes, count))
    }

    pub(super) fn branch(&mut self, branch: &'g If, x: &[Arg], ty: &Type) -> Result<Vec<String>, Diagnostic> {
        let split = 1 + branch.then.inputs().len();
        let mut attributes = Vec::with_capacity(2);
        let regions = [("then_branch", &branch.then, 1..split), ("else_branch", &branch.otherwise, split..x.len())];
        for (name, region, range) in regions {
            self.w.open();
            let results = self.graph(region, &names(&x[range]))?;
            attributes.push(graph(name, self.w.close(&[], &typed(region, results))));
        }
        Ok(self.w.ops("If", &[x[0].name], attributes, ty.parts().len()))
    }

    pub(super) fn looped(&mut self, op: &'g While, x: &[Arg]) -> Result<Vec<String>, Diagnostic> {
        let tested = op.condition.inputs().len() - op.carried;
        let first = names(&x[..op.carried]);
        let seen = names(&x[op.carried..op.carried + tested]);
        let captured = names(&x[op.carried + tested..]);
        let all = |carries: &[String], rest: &[String]| [carries, rest].concat();
        let starts = self.graph(&op.condition, &all(&first, &seen))?;
        let bound = match &op.bound {
            Some(bound) => self.scalar_size(bound)?,
            None => String::new(),
        };
        let zero = self.w.int(0);
        self.w.open();
        let scalar = TensorType::scalar;
        let trip = (self.w.fresh("trip"), scalar(DType::I64));
        let goes_on = (self.w.fresh("goes_on"), scalar(DType::Bool));
        let carries: Vec<(String, TensorType)> =
            input_types(&op.body).take(op.carried).map(|ty| (self.w.fresh("v"), ty)).collect();
        let trips = (self.w.fresh("trips"), scalar(DType::I64));
        let inputs: Vec<String> = carries.iter().map(|(name, _)| name.clone()).collect();
        let mut results = typed(&op.body, self.graph(&op.body, &all(&inputs, &captured))?);
        let next: Vec<String> = results[..op.carried].iter().map(|(name, _)| name.clone()).collect();
        let test = self.graph(&op.condition, &all(&next, &seen))?;
        let one = self.w.int(1);
        let counted = self.w.op("Add", &[&trips.0, &one]);
        results.insert(op.carried, (counted, scalar(DType::I64)));
        results.splice(0..0, test.into_iter().map(|name| (name, scalar(DType::Bool))));
        let count = results.len() - 1;
        let formal: Vec<(String, TensorType)> =
            [trip, goes_on].into_iter().chain(carries).chain(std::iter::once(trips)).collect();
        let body = self.w.close(&formal, &results);
        let start = starts.first().map_or("", String::as_str);
        let mut operands: Vec<&str> = vec![&bound, start];
        operands.extend(first.iter().map(String::as_str));
        operands.push(&zero);
        Ok(self.w.ops("Loop", &operands, vec![graph("body", body)], count))
    }
}
