//! Shuffles, slices and concatenations of channels stay in blocked channels.

mod support {
    pub mod programs;
}

use std::sync::Arc;

use egret_compiler::{CompileOptions, compile};
use egret_ir::Tensors;
use egret_ir::ops::Conv;
use egret_ir::{Dim, Graph, Tracer, Var, f32, trace};
use egret_runtime::{Executable, LoadOptions};
use support::programs::{check, descriptions, positive, run};

/// Five layers of at most 44 · 9 products each, which are not negative, half a unit of f32 each.
const TOLERANCE: f64 = 5.0 * 44.0 * 9.0 * 6e-8;

fn graph(build: impl FnOnce(&Tracer<'_>)) -> Graph {
    trace(|t| build(t)).unwrap_or_else(|e| panic!("{e}"))
}

/// A convolution of 3 pixels an axis that keeps the extents.
fn conv<'t>(t: &Tracer<'t>, x: Var<'t>, filters: usize, groups: i64, name: &str) -> Var<'t> {
    let spatial = x.shape().rank() - 2;
    let channels = x.shape()[1].as_const().expect("known channels") as usize / groups as usize;
    let shape: Vec<usize> = [filters, channels].into_iter().chain(std::iter::repeat_n(3, spatial)).collect();
    let ones = vec![1; spatial];
    let w = t.param(name, positive(&shape, name.len()));
    x.conv(w, Conv::forward(&ones, &ones, &ones, &ones, groups))
}

/// Each pixel by itself, scaled down.
fn pointwise<'t>(t: &Tracer<'t>, x: Var<'t>, channels: usize, name: &str) -> Var<'t> {
    let w = t.param(name, positive(&[channels, channels, 1, 1], name.len()));
    (x.conv(w, Conv::forward(&[1, 1], &[0, 0], &[0, 0], &[1, 1], 1)) * 0.0625).relu()
}

/// Channels as `groups` rows, read by columns.
fn shuffled<'t>(x: Var<'t>, groups: i64) -> Var<'t> {
    let shape: Vec<Dim> = x.shape().to_vec();
    let channels = shape[1].as_const().expect("known channels");
    let mut apart = vec![shape[0].clone(), Dim::from(groups), Dim::from(channels / groups)];
    apart.extend(shape[2..].iter().cloned());
    let mut order: Vec<usize> = (0..apart.len()).collect();
    order.swap(1, 2);
    x.reshape(&apart[..]).transpose(&order).reshape(&shape[..])
}

/// By instruction set, how many launches a family has.
fn launches(graph: &Graph, family: &str) -> Vec<usize> {
    let count = |device: &_| {
        let program = compile(graph, device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        program.launches().iter().filter(|launch| program.kernel(launch.kernel).family == family).count()
    };
    descriptions().iter().map(count).collect()
}

fn assert_launches(graph: &Graph, family: &str, count: usize) {
    let found = launches(graph, family);
    assert!(found.iter().all(|n| *n == count), "{family}: {found:?}, not {count}");
}

#[test]
fn shuffles_are_no_kernel() {
    for (channels, groups, batch) in [(24, 2, 2), (36, 3, 1), (68, 4, 1), (40, 5, 2)] {
        let network = graph(|t| {
            let x = t.input("x", f32([Dim::from(batch), Dim::from(8), "h".into(), "w".into()] as [Dim; 4]));
            let first = conv(t, x, channels, 1, "first").relu();
            let second = conv(t, shuffled(first, groups), channels, channels as i64, "depthwise");
            t.output("y", conv(t, second, 5, 1, "last"));
        });
        // the depthwise convolution takes them itself
        assert_launches(&network, "channels", 0);
        assert_launches(&network, "map", 0);
        // the image and the result
        assert!(launches(&network, "relayout").iter().all(|n| *n <= 2));
        for (h, w) in [(5, 7), (1, 1), (40, 33)] {
            check(&network, &[("x", positive(&[batch as usize, 8, h, w], h))], TOLERANCE);
        }
    }
}

/// What others read too is written once.
#[test]
fn shuffles_that_are_read_twice_are_one_kernel() {
    let network = graph(|t| {
        let x = t.input("x", f32([1, 8, 6, 7]));
        let mixed = shuffled(conv(t, x, 24, 1, "first").relu(), 2);
        let sum = conv(t, mixed, 24, 24, "depthwise") + mixed;
        t.output("y", conv(t, sum, 5, 1, "last"));
    });
    assert_launches(&network, "channels", 1);
    check(&network, &[("x", positive(&[1, 8, 6, 7], 2))], TOLERANCE);
}

/// Units of two branches: half of the channels pass, the others are convolved, and both are shuffled.
#[test]
fn channels_that_pass_beside_a_branch() {
    let network = graph(|t| {
        let x = t.input("x", f32([2, 6, 6, 5]));
        let mut at = conv(t, x, 44, 1, "stem").relu();
        for unit in 0..3 {
            let (pass, other) = (at.slice(1, 0, 22, 1), at.slice(1, 22, 44, 1));
            let other = conv(t, other, 22, 1, &format!("branch {}", "x".repeat(unit))).relu();
            at = shuffled(t.concat(&[pass, other], 1), 2);
        }
        t.output("y", conv(t, at, 5, 1, "last"));
    });
    // for each unit the branch's input and the sum of both, and the last shuffle
    assert_launches(&network, "channels", 7);
    assert_launches(&network, "concat", 0);
    assert_launches(&network, "map", 0);
    check(&network, &[("x", positive(&[2, 6, 6, 5], 1))], TOLERANCE);
}

/// Parts that begin within a vector, of one to three spatial axes, and every other channel.
#[test]
fn parts_of_any_width() {
    for spatial in [&[9usize][..], &[5, 6], &[3, 4, 5]] {
        let shape: Vec<i64> = [1, 7].into_iter().chain(spatial.iter().map(|n| *n as i64)).collect();
        let network = graph(|t| {
            let x = t.input("x", f32(&shape[..]));
            let (a, b) = (conv(t, x, 10, 1, "a").relu(), conv(t, x, 21, 1, "second"));
            let (all, both) = (t.concat(&[b, a, b.slice(1, 1, 20, 3)], 1), t.concat(&[a, b], 1));
            t.output("y", conv(t, all, 4, 1, "last") + conv(t, both, 4, 1, "another"));
        });
        assert_launches(&network, "channels", 2);
        assert_launches(&network, "concat", 0);
        let given: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        check(&network, &[("x", positive(&given, 3))], TOLERANCE);
    }
}

/// What moves pixels, or mixes them with channels or items, is no movement of channels.
#[test]
fn movement_of_more_than_channels() {
    let other: [&dyn for<'t> Fn(Var<'t>) -> Var<'t>; 6] = [
        // pixels become channels
        &|x| x.reshape([2, 4, 4, 24, 4]).transpose(&[0, 1, 4, 2, 3]).reshape([2, 16, 4, 24]),
        // rows and columns swap
        &|x| x.transpose(&[0, 1, 3, 2]),
        // items and channels swap
        &|x| shuffled(x.transpose(&[1, 0, 2, 3]), 2),
        // columns are left out
        &|x| x.slice(3, 0, 24, 2),
        // one item of two
        &|x| x.slice(0, 1, 2, 1),
        // axes of 1 among those of channels and pixels
        &|x| x.reshape([2, 1, 16, 1, 4, 24]).transpose(&[0, 2, 1, 3, 4, 5]).reshape([2, 16, 4, 24]),
    ];
    for (i, moved) in other.into_iter().enumerate() {
        let network = graph(|t| {
            let x = t.input("x", f32([2, 3, 4, 24]));
            let first = conv(t, x, 16, 1, "first");
            t.output("y", conv(t, moved(first), 4, 1, &format!("last {i}")));
        });
        check(&network, &[("x", positive(&[2, 3, 4, 24], i))], TOLERANCE);
    }
}

/// Units of a depthwise convolution and two pointwise ones with a residual, which run without joins between: whatever the
/// team, however often, and whether each step is measured or not, every bit is that of one thread.
#[test]
fn separable_convolutions_agree_on_any_team() {
    for (batch, channels, rows) in [(1, 40, 12), (2, 24, 9), (1, 72, 31)] {
        let network = graph(|t| {
            let mut x = t.input("x", f32([batch, channels, rows, 10]));
            let mut read = pointwise(t, x, channels, "zeroth");
            for unit in 0..5 {
                let taken = if unit >= 2 { shuffled(read, 4) } else { read };
                let depthwise = conv(t, taken, channels, channels as i64, &format!("depthwise{unit}"));
                let w = t.param(&format!("first{unit}"), positive(&[channels, channels, 1, 1], unit));
                let first = depthwise.conv(w, Conv::forward(&[1, 1], &[0, 0], &[0, 0], &[1, 1], 1));
                x = (first * 0.0625 + x).relu();
                read = pointwise(t, x, channels, &format!("second{unit}"));
            }
            t.output("y", x + read);
        });
        let given: Tensors = [("x".to_string(), positive(&[batch, channels, rows, 10], 3))].into_iter().collect();
        let weights = |name: &str| network.weights.get(name).map(|w| w.materialise());
        for device in descriptions() {
            let program =
                compile(&network, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
            let want = run(&program, &weights, &given, 1).unwrap_or_else(|e| panic!("{e}"));
            for threads in 2..5 {
                let options = LoadOptions { threads, isa: None };
                let executable =
                    Executable::load(Arc::new(program.clone()), &weights, options).unwrap_or_else(|e| panic!("{e}"));
                let mut session = executable.session().unwrap_or_else(|e| panic!("{e}"));
                for i in 0..20 {
                    session.profile(i % 4 == 3);
                    let outputs = session.run(&[("x", &given["x"])]).unwrap_or_else(|e| panic!("{e}"));
                    let have = outputs.get("y").map(|y| y.to_tensor());
                    assert!(
                        have.as_ref() == Some(&want[0].1),
                        "{batch}×{channels}, {threads} threads, {}",
                        device.name
                    );
                }
            }
        }
    }
}

/// Without a join a thread still reads its neighbours' rows of the image while they write the result of the pointwise
/// convolution: that must not lie where the image does, as it may on one thread. Nor do copies of what lies between.
#[test]
fn chains_do_not_overwrite_what_neighbours_read() {
    let network = graph(|t| {
        let mut x = t.input("x", f32([1, 48, 16, 12]));
        for unit in 0..4 {
            let depthwise = conv(t, x, 48, 48, &format!("depthwise{unit}"));
            x = pointwise(t, depthwise, 48, &format!("pointwise{unit}"));
        }
        t.output("y", x);
    });
    let x = positive(&[1, 48, 16, 12], 3);
    let weights = |name: &str| network.weights.get(name).map(|w| w.materialise());
    for device in descriptions() {
        let program = compile(&network, &device, &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}")).program;
        let arena = |threads: usize| {
            let options = LoadOptions { threads, isa: None };
            let executable = Executable::load(Arc::new(program.clone()), &weights, options);
            let mut session = executable.and_then(|it| it.session()).unwrap_or_else(|e| panic!("{e}"));
            session.run(&[("x", &x)]).map(|_| ()).unwrap_or_else(|e| panic!("{e}"));
            session.memory().arena_bytes
        };
        let image = 48 * 16 * 12 * 4;
        assert!(arena(2) >= arena(1) + 2 * image, "{}: {} and {}", device.name, arena(1), arena(2));
    }
}
