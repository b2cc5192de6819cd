//! Rewriting as a whole: kernels and bytes of every model by level, search, budgets, replay, determinism.
//!
//! `rewriting.tsv` holds, for each model, description and level, the kernels of a run (steps that launch code; views do
//! not count) and the bytes that they read and write, a slice being what it shows, symbols taken as 128. Figures may only fall: `EGRET_BLESS=1` writes
//! them anew, and refuses a rise.

mod support {
    pub mod models;
    pub mod steps;
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use egret_compiler::compile::raise;
use egret_compiler::rewrite::rules;
use egret_compiler::rewrite::{self, Budgets, Options, RewriteSet, Rewritten};
use egret_compiler::{CompileOptions, Level, compile, cost};
use egret_ir::{DType, Diagnostic, Graph, Op, Tensors, random, text};
use egret_program::DeviceDescription;
use support::models::{model, recorded};
use support::steps::{cnn_training_step, transformer};

const CPU: &str = "x86-64-avx512";
const GPU: &str = "sm_90a";
const LEVELS: [Level; 3] = [Level::None, Level::Greedy, Level::Full];

/// Models, and the most kernels of each at level `full` on [`CPU`].
const MODELS: [(&str, usize); 24] = [
    ("light/test_light_resnet50", 56),
    ("light/test_light_squeezenet", 31),
    ("light/test_light_vgg19", 24),
    ("all_minilm_l6_v2", 50),
    ("light/test_light_densenet121", 131),
    ("light/test_light_inception_v1", 69),
    ("light/test_light_shufflenet", 110),
    ("ppocr_v4_det", 104),
    ("magika_v3_3", 17),
    ("silero_vad_op18_ifless", 47),
    ("light/test_light_bvlc_alexnet", 17),
    ("light/test_light_inception_v2", 73),
    ("light/test_light_zfnet512", 17),
    ("blazeface_front", 75),
    ("byte_bidi_lstm", 32),
    ("dtln_1", 22),
    ("face_landmark", 55),
    ("mlagents_dungeon_escape", 6),
    ("mlagents_gridworld", 7),
    ("mnist_cntk", 5),
    ("ppocr_cls", 84),
    ("super_resolution", 6),
    ("ultraface_rfb320", 66),
    (CNN, 49),
];

const CNN: &str = "cnn training step";

fn device(name: &str) -> DeviceDescription {
    DeviceDescription::named(name).expect("a shipped description")
}

/// A model's graph; `None`, and a line that says so, when its files are not there.
fn graph(name: &str) -> Option<Graph> {
    if name == CNN {
        return Some(cnn_training_step());
    }
    let folder = model(name)?;
    let path = folder.join("model.onnx");
    let names = egret_onnx::inputs(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    let given: Tensors = names.into_iter().map(|(name, _)| name).zip(recorded(&folder, "input")).collect();
    Some(egret_onnx::load_for(&path, &given).unwrap_or_else(|e| panic!("{name}: {e}")).graph)
}

fn rewritten(graph: &Graph, device: &DeviceDescription, options: &Options) -> Result<Rewritten, Diagnostic> {
    let raised = raise(graph, device, &options.rules, options.exact, &mut Vec::new())?;
    rewrite::rewrite(&raised.graph, device, options)
}

fn full(graph: &Graph, device: &DeviceDescription) -> Rewritten {
    rewritten(graph, device, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Kernels and bytes of one run.
type Figures = (usize, i64);

fn figures(graph: &Graph, name: &str, level: Level) -> Result<Figures, Diagnostic> {
    let compiled = compile(graph, &device(name), &CompileOptions { level, ..CompileOptions::default() })?;
    let launches = compiled.program.launches();
    Ok((launches.len(), launches.iter().map(|launch| launch.bytes.hint(cost::SYMBOL_HINT)).sum()))
}

fn table_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rewriting.tsv")
}

const HEAD: &str = "model\tdescription\tlevel\tkernels\tbytes";

type Table = BTreeMap<(String, String, String), String>;

fn table() -> Table {
    let text = std::fs::read_to_string(table_path()).unwrap_or_default();
    let row = |line: &str| {
        let mut fields = line.splitn(4, '\t').map(String::from);
        Some(((fields.next()?, fields.next()?, fields.next()?), fields.next()?))
    };
    text.lines().skip(1).filter_map(row).collect()
}

/// Compares a model's figures with the table, or records them where they are not worse.
fn check(name: &str) {
    static LOCK: Mutex<()> = Mutex::new(());
    let Some((_, ceiling)) = MODELS.iter().find(|(have, _)| *have == name) else { panic!("{name} is not listed") };
    let Some(graph) = graph(name) else { return };
    let mut found: Vec<((String, String, String), Result<Figures, Diagnostic>)> = Vec::new();
    for level in LEVELS {
        let key = |device: &str| (name.to_string(), device.to_string(), format!("{level:?}").to_lowercase());
        let cpu = figures(&graph, CPU, level);
        if level == Level::Full {
            let kernels = cpu.as_ref().unwrap_or_else(|e| panic!("{name}: {e}")).0;
            assert!(kernels <= *ceiling, "{name}: {kernels} kernels, at most {ceiling}");
        }
        found.push((key(CPU), cpu));
        found.push((key(GPU), figures(&graph, GPU, level)));
    }
    let guard = LOCK.lock();
    let mut table = table();
    let bless = std::env::var_os("EGRET_BLESS").is_some();
    for (key, figures) in found {
        let have = table.get(&key).cloned();
        let known = have.as_deref().and_then(|row| {
            let (kernels, bytes) = row.split_once('\t')?;
            Some((kernels.parse::<usize>().ok()?, bytes.parse::<i64>().ok()?))
        });
        match (&figures, known) {
            (Ok((kernels, bytes)), Some((most, most_bytes))) => {
                assert!(*kernels <= most, "{key:?}: {kernels} kernels, the table has {most}");
                assert!(*bytes <= most_bytes, "{key:?}: {bytes} bytes, the table has {most_bytes}");
            }
            (Err(error), Some(_)) => panic!("{key:?} could be planned before: {error}"),
            (Err(error), None) if have.is_some() || bless => println!("{key:?} cannot be planned: {error}"),
            (Err(_), None) | (Ok(_), None) => assert!(bless || have.is_some(), "{key:?} is not in the table"),
        }
        let row = match figures {
            Ok((kernels, bytes)) => format!("{kernels}\t{bytes}"),
            Err(error) => format!("not planned yet\t{}", error.code),
        };
        table.insert(key, row);
    }
    if bless {
        let rows = table.iter().map(|((model, device, level), row)| format!("{model}\t{device}\t{level}\t{row}\n"));
        std::fs::write(table_path(), format!("{HEAD}\n{}", rows.collect::<String>())).expect("the table is written");
    }
    drop(guard);
}

macro_rules! models {
    ($($test:ident $name:expr;)*) => { $(#[test] fn $test() { check($name); })* };
}

models! {
    resnet50 "light/test_light_resnet50";
    squeezenet "light/test_light_squeezenet";
    vgg19 "light/test_light_vgg19";
    minilm "all_minilm_l6_v2";
    densenet121 "light/test_light_densenet121";
    inception_v1 "light/test_light_inception_v1";
    shufflenet "light/test_light_shufflenet";
    ppocr_v4_det "ppocr_v4_det";
    magika "magika_v3_3";
    silero "silero_vad_op18_ifless";
    alexnet "light/test_light_bvlc_alexnet";
    inception_v2 "light/test_light_inception_v2";
    zfnet512 "light/test_light_zfnet512";
    blazeface "blazeface_front";
    byte_bidi_lstm "byte_bidi_lstm";
    dtln "dtln_1";
    face_landmark "face_landmark";
    dungeon_escape "mlagents_dungeon_escape";
    gridworld "mlagents_gridworld";
    mnist "mnist_cntk";
    ppocr_cls "ppocr_cls";
    super_resolution "super_resolution";
    ultraface "ultraface_rfb320";
    a_training_step_of_a_cnn CNN;
}

/// DenseNet's normalised and rectified copies of ever longer concatenations are what fusion saves.
#[test]
fn densenet_moves_a_third_fewer_bytes_than_unfused() {
    let Some(graph) = graph("light/test_light_densenet121") else { return };
    let bytes = |level| figures(&graph, CPU, level).unwrap_or_else(|e| panic!("{e}")).1;
    let (none, full) = (bytes(Level::None), bytes(Level::Full));
    assert!(full * 100 <= none * 65, "{full} of {none} bytes");
}

/// A product that is read through several slices: what `merge-dots` makes.
fn merged_products(graph: &Graph) -> usize {
    let users = graph.users();
    let product = |op: &Op| match op {
        Op::Fused(fused) => matches!(&*fused.anchor, Op::DotGeneral(_)),
        op => matches!(op, Op::DotGeneral(_)),
    };
    let sliced = |id: egret_ir::NodeId| {
        users[id.index()].iter().filter(|user| matches!(graph.node(**user).op, Op::Slice(_))).count() > 1
    };
    graph.iter().filter(|(id, node)| product(&node.op) && sliced(*id)).count()
}

#[test]
fn minilm_has_an_attention_and_a_merged_projection_a_layer() {
    let Some(graph) = graph("all_minilm_l6_v2") else { return };
    let graph = full(&graph, &device(CPU)).graph;
    let attentions = graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention(_))).count();
    assert_eq!((attentions, merged_products(&graph)), (6, 6));
}

fn filetests() -> Vec<(String, Graph)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "egret"));
    paths.sort();
    let parse = |path: PathBuf| {
        let graph = text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{e}"));
        (path.display().to_string(), graph)
    };
    paths.into_iter().map(parse).collect()
}

/// Each journal gives the chosen graph again; each step is repeated at most once, and an e-graph is rebuilt no more often
/// than when it was made, so that the whole is linear in the length of the journals.
#[test]
fn replays_give_the_graph_in_linear_time() {
    let models = MODELS.iter().filter_map(|(name, _)| Some((name.to_string(), graph(name)?)));
    for (name, graph) in models.chain(filetests()).chain([("transformer".to_string(), transformer(6, true))]) {
        for device in [device(CPU), device(GPU)] {
            let rewritten = full(&graph, &device);
            let (again, done) = rewritten.replay_counted().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(again == rewritten.graph, "{name}: the journal does not give the chosen graph");
            assert!(done.repeated <= done.steps, "{name}: {done:?}");
            let report = rewritten.report();
            let rebuilds: usize = report.phases.iter().map(|p| 2 * p.parts * p.iterations + p.parts).sum();
            assert!(done.rebuilds <= rebuilds + report.distinct, "{name}: {done:?}, {report:?}");
        }
    }
}

/// Every rule is used by a model or a file test: one that nothing uses is not there.
#[test]
fn no_rule_is_unused() {
    let mut used: BTreeSet<&'static str> = BTreeSet::new();
    let graphs: Vec<Graph> = MODELS.iter().filter_map(|(name, _)| graph(name)).collect();
    if graphs.is_empty() {
        println!("skipped: the models that use the rules are not there");
        return;
    }
    let step = transformer(1, true);
    let files = filetests();
    let of_files = files.iter().flat_map(|(_, graph)| [(graph, CPU), (graph, "x86-64-avx512-bf16")]);
    for (graph, name) in graphs.iter().chain([&step]).map(|graph| (graph, CPU)).chain(of_files) {
        let device = device(name);
        let set = RewriteSet::standard();
        let raised = raise(graph, &device, &set, false, &mut Vec::new()).unwrap_or_else(|e| panic!("{e}"));
        used.extend(raised.log.iter().map(|applied| applied.rule));
        let options = Options::default();
        used.extend(rewrite::rewrite(&raised.graph, &device, &options).unwrap_or_else(|e| panic!("{e}")).applied());
    }
    let all = rules::all().iter().map(|(_, rule)| rule.name).chain(rules::code_rules().iter().map(|rule| rule.name));
    let unused: Vec<&str> = all.filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "no model and no file test uses {unused:?}");
}

/// Rules of raise are in the explanation of a graph with gradients, at the nodes that they gave.
#[test]
fn raises_before_gradients_are_explained() {
    let graph = transformer(2, true);
    let device = device(CPU);
    let raised =
        raise(&graph, &device, &RewriteSet::standard(), false, &mut Vec::new()).unwrap_or_else(|e| panic!("{e}"));
    let rewritten = rewrite::rewrite(&raised.graph, &device, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let named = |rule: &str, op: fn(&Op) -> bool| {
        let at = |node: egret_ir::NodeId| {
            let node = raised.graph.node(node);
            let inner = node.operands.first().is_some_and(|of| op(&raised.graph.node(*of).op));
            op(&node.op) || matches!(node.op, Op::Proj(_)) && inner
        };
        raised.log.iter().filter(|applied| applied.rule == rule && at(applied.node)).count()
    };
    assert_eq!(named("attention", |op| matches!(op, Op::Attention(_))), 2, "{:?}", raised.log);
    let attention = rewritten.original().iter().find(|(_, node)| matches!(node.op, Op::Attention(_))).map(|(id, _)| id);
    let pair = rewritten.pair(attention.expect("an attention"), attention.expect("an attention")).expect("a pair");
    assert_eq!(pair.together.len(), 1);
}

/// A random graph of about `size` nodes, each of which some result needs.
fn random_graph(seed: u64, size: usize) -> Graph {
    let mut graph = random::real(seed, size, DType::F32).unwrap_or_else(|e| panic!("{e}")).graph;
    let users = graph.users();
    let unread = |id: &egret_ir::NodeId| users[id.index()].is_empty() && graph.ty(*id).tensor().is_some();
    let ids: Vec<egret_ir::NodeId> = graph.iter().map(|(id, _)| id).filter(unread).collect();
    ids.into_iter().for_each(|id| graph.add_output(format!("unread{}", id.index()), id));
    graph
}

/// The chosen cost is the proved optimum in at least 95 of 100 random graphs, and never more than 5 % above it.
#[test]
fn the_search_finds_the_optimum() {
    const STEPS: usize = 20_000_000;
    let device = device(CPU);
    let (mut proved, mut best, mut worst) = (0, 0, 1.0f64);
    for seed in 0..100 {
        let graph = random_graph(seed, 60);
        let report = full(&graph, &device).report();
        let budgets = Budgets { steps: STEPS, ..Budgets::default() };
        let longer = rewritten(&graph, &device, &Options { budgets, ..Options::default() });
        let optimum = longer.unwrap_or_else(|e| panic!("{e}")).report();
        if optimum.proved < optimum.distinct {
            println!("seed {seed} is not proved: {} against {}", report.cost, optimum.cost);
            continue;
        }
        proved += 1;
        let ratio = report.cost / optimum.cost;
        worst = worst.max(ratio);
        best += usize::from(ratio <= 1.0 + 1e-9);
        if ratio > 1.0 + 1e-9 {
            println!("seed {seed}: {ratio:.4}, {} of {} parts proved", report.proved, report.distinct);
        }
    }
    println!("{proved} proved, {best} of these found, at worst {worst:.4} of the optimum");
    assert!(proved >= 95, "only {proved} optima are proved");
    assert!(best * 100 >= 95 * proved, "{best} of {proved} are the optimum");
    assert!(worst <= 1.05, "{worst} of the optimum");
}

/// A graph beyond every budget compiles, and the report says where it stopped.
#[test]
fn beyond_the_budgets() {
    let graph = transformer(2, true);
    let device = device(CPU);
    for (budget, budgets) in [
        ("iterations", Budgets { iterations: 1, ..Budgets::default() }),
        ("e-nodes", Budgets { nodes: 4, ..Budgets::default() }),
        ("", Budgets { steps: 1, ..Budgets::default() }),
    ] {
        let rewritten = rewritten(&graph, &device, &Options { budgets, ..Options::default() });
        let rewritten = rewritten.unwrap_or_else(|e| panic!("{budget}: {e}"));
        assert!(rewritten.replay().unwrap_or_else(|e| panic!("{budget}: {e}")) == rewritten.graph);
        let report = rewritten.report();
        if budget.is_empty() {
            assert!(report.proved < report.distinct, "{report:?}");
        } else {
            let stopped = |phase: &str| report.stopped.contains(&("fuse", budget)) && phase == "fuse";
            assert!(stopped("fuse"), "{report:?}");
            let total = report.phases.iter().find(|phase| phase.name == "fuse").expect("the phase");
            assert!(total.stopped.iter().any(|(have, parts)| *have == budget && *parts > 0), "{total:?}");
        }
    }
}

/// Depth adds places, but no distinct neighbourhood. E-nodes may differ a little: which values live long depends on depth.
#[test]
fn depth_is_saturated_once() {
    let device = device(CPU);
    for train in [false, true] {
        let (few, many) = (full(&transformer(6, train), &device), full(&transformer(96, train), &device));
        let (few, many) = (few.report(), many.report());
        println!("train {train}: {} and {} parts, {} distinct", few.parts, many.parts, many.distinct);
        assert_eq!(many.distinct, few.distinct, "train {train}");
        assert!(many.nodes * 10 <= few.nodes * 13, "train {train}: {} and {} e-nodes", few.nodes, many.nodes);
    }
}

/// The text of a plan.
fn plan(graph: &Graph) -> String {
    let compiled = compile(graph, &device(CPU), &CompileOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let steps = format!("{:?}", compiled.program.steps);
    let kernels: Vec<&str> = compiled.program.kernels.iter().map(|kernel| kernel.text.as_str()).collect();
    format!("{}{steps}{}", text::print(&compiled.rewritten.graph), kernels.join("\n"))
}

/// Two runs, and any number of threads that compile, give one plan.
#[test]
fn plans_do_not_depend_on_the_run_or_on_threads() {
    let graphs = [transformer(2, false), transformer(1, true), cnn_training_step()];
    let first: Vec<String> = graphs.iter().map(plan).collect();
    let on_threads = |threads: usize| -> Vec<String> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| graphs.iter().map(plan).collect())
    };
    assert!(first == on_threads(1), "one thread gives another plan");
    assert!(first == on_threads(2), "two threads give another plan");
    let other = std::thread::spawn(|| plan(&transformer(2, false))).join().expect("a plan");
    assert!(first[0] == other, "a new thread gives another plan");
}

/// At twice the bandwidth of memory the weights of three products together are no burden, and they are merged.
#[test]
fn twice_the_bandwidth_changes_a_choice() {
    let (_, graph) =
        filetests().into_iter().find(|(name, _)| name.ends_with("wide_projections.egret")).expect("the file");
    let slow = device(CPU);
    let mut fast = slow.clone();
    fast.memory_gbps *= 2.0;
    assert_eq!(merged_products(&full(&graph, &slow).graph), 0);
    assert_eq!(merged_products(&full(&graph, &fast).graph), 1);
}

/// Milliseconds of each phase up to rewriting, the least of several runs.
#[test]
#[ignore = "times, which are told and not asserted; a release build gives the figures of the documentation"]
fn times() {
    let device = device(CPU);
    let random = |seed| random_graph(seed, 5_000);
    let models = ["light/test_light_resnet50", "all_minilm_l6_v2"].into_iter();
    let graphs = models
        .filter_map(|name| Some((name.to_string(), graph(name)?)))
        .chain([6, 96].map(|layers| (format!("{layers} layers"), transformer(layers, false))))
        .chain([6, 96].map(|layers| (format!("{layers} layers, trained"), transformer(layers, true))))
        .chain([("5,000 random nodes".to_string(), random(1)), ("5,000 others".to_string(), random(2))]);
    for (name, graph) in graphs {
        let mut least: Vec<(&str, f64)> = Vec::new();
        let mut report = rewrite::Report::default();
        let mut nodes = 0;
        for _ in 0..5 {
            let mut phases = Vec::new();
            let raised =
                raise(&graph, &device, &RewriteSet::standard(), false, &mut phases).unwrap_or_else(|e| panic!("{e}"));
            let start = std::time::Instant::now();
            // as the compiler does
            let gradients = raised.forward.contains(&true);
            let rewritten = rewrite::rewrite(&raised.graph, &device, &Options { gradients, ..Options::default() });
            phases.push(("rewrite", start.elapsed()));
            nodes = graph.nodes().len().max(raised.graph.nodes().len());
            report = rewritten.unwrap_or_else(|e| panic!("{e}")).report();
            for (i, (phase, time)) in phases.into_iter().enumerate() {
                let time = time.as_secs_f64() * 1e3;
                match least.get_mut(i) {
                    Some((_, have)) => *have = have.min(time),
                    None => least.push((phase, time)),
                }
            }
        }
        let total: f64 = least.iter().map(|(_, time)| time).sum();
        let each: Vec<String> = least.iter().map(|(phase, time)| format!("{phase} {time:.2}")).collect();
        println!("{name}: {total:.2} ms ({}), {:.2} us a node of {nodes}", each.join(", "), total * 1e3 / nodes as f64);
        let (parts, distinct, proved) = (report.parts, report.distinct, report.proved);
        println!(
            "    {parts} parts, {distinct} distinct, {proved} proved, {} e-nodes, {:?}",
            report.nodes, report.stopped
        );
    }
}
