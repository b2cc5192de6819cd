//! Connectionist temporal classification (Graves et al., 2006).

use egret_ir::ops::Places;
use egret_ir::{DType, Dim, Literal, TensorType, Var};

/// What counts as the logarithm of 0: sums of a few of them stay finite, so that gradients do.
const NEVER: f64 = -1e30;

/// Mean over the batch of the negative log-probability that the frames spell the labels, each divided by its number of
/// labels (PyTorch's `mean`). Class 0 is the blank.
///
/// - `log_probabilities` `[batch, frames, classes]`,
/// - `labels` `[batch, most]`, i64, of which the first `label_lengths` of each row count, none of them 0,
/// - `frame_lengths`, `label_lengths` `[batch]`, i64.
///
/// The forward recursion over the labels with blanks between them, as a `scan` over frames; its gradient is the backward
/// one. Labels that do not fit into the frames have a loss of about 1e30.
#[track_caller]
pub fn ctc<'t>(log_probabilities: Var<'t>, labels: Var<'t>, frame_lengths: Var<'t>, label_lengths: Var<'t>) -> Var<'t> {
    let t = log_probabilities.tracer();
    let dtype = log_probabilities.dtype();
    let (shape, label_shape) = (log_probabilities.shape(), labels.shape());
    let ([batch, frames, _], [_, most]) = (&shape[..], &label_shape[..]) else {
        let message = format!("ctc takes [batch, frames, classes] and [batch, most], not {shape} and {label_shape}");
        return t.fail(egret_ir::Diagnostic::new("E0612", message));
    };
    let never = t.scalar(Literal::float(NEVER, dtype));
    let whole = |value: i64| t.scalar(Literal::int(value, DType::I64));
    // blank, label, blank, …, label, blank
    let places = most.clone() * Dim::from(2) + Dim::ONE;
    let pairs = [batch.clone(), most.clone(), 1.into()];
    let blanks = whole(0).broadcast(pairs.clone());
    let last = whole(0).broadcast([batch.clone(), Dim::ONE]);
    let spelled = t.concat(&[blanks, labels.reshape(pairs)], 2).reshape([batch.clone(), most.clone() * Dim::from(2)]);
    let spelled = t.concat(&[spelled, last], 1);
    // a label may follow the label two before it, unless that is the same or this is a blank
    let before = shifted(spelled, 2, whole(0));
    let skips = spelled.equal(before).logical_or(spelled.equal(whole(0))).logical_not();
    let emitted = log_probabilities.transpose(&[1, 0, 2]);
    let place = t.iota(TensorType::new(DType::I64, [batch.clone(), places.clone()]), 1);
    let start = place.less(whole(1)).select(t.scalar(Literal::float(0.0, dtype)), never);
    let frame = t.iota(TensorType::new(DType::I64, [frames.clone()]), 0);
    let start = start.broadcast([batch.clone(), places.clone()]);
    let (end, _) = t.scan(&[start], &[emitted, frame], |t, carried, slices| {
        let (alpha, index) = (carried[0], slices[1]);
        let never = t.scalar(Literal::float(NEVER, dtype));
        let here = slices[0].gather_at(Places::Elements { axis: 1 }, spelled);
        let (one, two) = (shifted(alpha, 1, never), skips.select(shifted(alpha, 2, never), never));
        let reached = log_add(log_add(alpha, one), two) + here;
        let lives = index.less(frame_lengths).unsqueeze(&[1]);
        (vec![lives.select(reached, alpha)], Vec::new())
    });
    let final_place = label_lengths.unsqueeze(&[1]) * 2i64;
    let at = |place_wanted: Var<'t>| place.equal(place_wanted).select(end[0], never).reduce_max(&[1], false);
    let has_labels = label_lengths.greater(whole(0));
    let likelihood = log_add(at(final_place), has_labels.select(at(final_place - 1i64), never));
    let count = label_lengths.maximum(1i64).cast(dtype);
    (-likelihood / count).mean()
}

/// Columns moved `by` places to the right; `fill` comes in.
fn shifted<'t>(x: Var<'t>, by: i64, fill: Var<'t>) -> Var<'t> {
    let shape = x.shape();
    let (rows, columns) = (shape[0].clone(), shape[1].clone());
    let t = x.tracer();
    let wide = t.concat(&[fill.broadcast([rows, by.into()]), x], 1);
    wide.narrow(1, 0, columns)
}

/// `log(eᵃ + eᵇ)`.
fn log_add<'t>(a: Var<'t>, b: Var<'t>) -> Var<'t> {
    let (most, least) = (a.maximum(b), a.minimum(b));
    most + ((least - most).exp() + 1.0).log()
}

#[cfg(test)]
mod tests {
    use super::*;
    use egret_ir::{Tensor, Tensors, f32, i64, interpret, trace};

    /// The negative log-probability of labels under frames, over all paths.
    fn by_hand(frames: &[Vec<f64>], labels: &[usize]) -> f64 {
        let classes = frames[0].len();
        let mut sum = 0.0;
        for path in 0..classes.pow(frames.len() as u32) {
            let steps: Vec<usize> = (0..frames.len()).map(|i| path / classes.pow(i as u32) % classes).collect();
            let mut spelled = steps.clone();
            spelled.dedup();
            spelled.retain(|class| *class != 0);
            if spelled == labels {
                sum += steps.iter().zip(frames).map(|(class, frame)| frame[*class]).sum::<f64>().exp();
            }
        }
        -sum.ln()
    }

    #[test]
    fn operands_that_do_not_fit_are_told_with_their_shapes() {
        let refused = trace(|t| {
            let lengths = |name| t.input(name, i64([3]));
            let labels = t.input("labels", i64([3, 2]));
            let loss = ctc(t.input("x", f32([3, 4])), labels, lengths("frames"), lengths("counts"));
            t.output("loss", loss);
        });
        let error = refused.expect_err("two axes are too few");
        assert_eq!(error.code, "E0612");
        assert!(error.message.contains("[3, 4]") && error.message.contains("[3, 2]"), "{error}");
    }

    #[test]
    fn it_is_the_sum_over_all_paths() {
        let (batch, frames, classes, most) = (3, 5, 4, 3);
        let logits: Vec<f32> = (0..batch * frames * classes).map(|i| ((i * 37 % 17) as f32 - 8.0) / 5.0).collect();
        // a repeated label, which needs a blank between; one of fewer frames; an empty one
        let labels = [[2i64, 2, 1], [3, 1, 0], [0, 0, 0]];
        let (frame_lengths, label_lengths) = ([5i64, 3, 4], [3i64, 2, 0]);
        let graph = trace(|t| {
            let logits = t.input("x", f32([batch as i64, frames as i64, classes as i64]));
            let labels = t.input("labels", i64([batch as i64, most as i64]));
            let lengths = |name| t.input(name, i64([batch as i64]));
            let loss = ctc(logits.log_softmax(-1), labels, lengths("frames"), lengths("counts"));
            t.output("loss", loss);
            t.output("gradient", t.grad(loss, &[logits])[0]);
        })
        .unwrap();
        let run = |logits: &[f32]| {
            let tensors = Tensors::from([
                ("x".into(), Tensor::new(&[batch, frames, classes], logits).unwrap()),
                ("labels".into(), Tensor::new(&[batch, most], labels.as_flattened()).unwrap()),
                ("frames".into(), Tensor::new(&[batch], &frame_lengths).unwrap()),
                ("counts".into(), Tensor::new(&[batch], &label_lengths).unwrap()),
            ]);
            interpret(&graph, &tensors, &Tensors::new()).unwrap().outputs
        };
        let outputs = run(&logits);
        let mut want = 0.0;
        for item in 0..batch {
            let frame = |f: usize| {
                let row = &logits[(item * frames + f) * classes..][..classes];
                let log_sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                row.iter().map(|x| f64::from(*x) - log_sum).collect::<Vec<f64>>()
            };
            let frames: Vec<Vec<f64>> = (0..frame_lengths[item] as usize).map(frame).collect();
            let count = label_lengths[item] as usize;
            let labels: Vec<usize> = labels[item][..count].iter().map(|l| *l as usize).collect();
            want += by_hand(&frames, &labels) / count.max(1) as f64 / batch as f64;
        }
        let have = outputs[0].1.get(0).as_f64();
        assert!((have - want).abs() < 1e-6, "{have} for {want}");
        // frames beyond the length have no gradient; the others sum to zero over the classes
        let gradient: Vec<f64> = outputs[1].1.values().map(|g| g.as_f64()).collect();
        for (row, g) in gradient.chunks(classes).enumerate() {
            let counts = row % frames < frame_lengths[row / frames] as usize;
            assert!(g.iter().sum::<f64>().abs() < 1e-6);
            assert_eq!(g.iter().any(|g| *g != 0.0), counts, "row {row}: {g:?}");
        }
    }
}
