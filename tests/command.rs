//! The command: exit statuses, batches, and graphs that are written and read back.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use egret::{Tensor, f32};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("command-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn egret(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egret")).args(args).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn status(output: &Output) -> i32 {
    let out = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    output.status.code().unwrap_or_else(|| panic!("{}{}", out(&output.stdout), out(&output.stderr)))
}

/// `y = relu(x·w) + 1`, with x `[n, 3]`.
fn model(folder: &Path) -> PathBuf {
    let w = Tensor::new(&[3, 2], &[1.0f32, -2.0, 3.0, 4.0, -5.0, 6.0]).unwrap();
    let graph = egret::trace(|t| {
        let x = t.input("x", f32(["n", "three"]));
        t.output("y", x.matmul(t.param("w", w)).relu() + 1.0);
    });
    let path = folder.join("model.txt");
    egret::ir::text::save(&path, &graph.unwrap()).unwrap();
    path
}

fn inputs(folder: &Path, x: &Tensor) -> PathBuf {
    let folder = folder.join("inputs");
    std::fs::create_dir_all(&folder).unwrap();
    egret::onnx::write_tensor(&folder.join("input_0.pb"), "x", x).unwrap();
    folder
}

#[test]
fn a_run_is_traced() {
    let folder = folder("trace");
    let (model, trace) = (model(&folder), folder.join("trace.json"));
    let output = egret(&["run", text(&model), "--dim", "n=4", "--dim", "three=3", "--trace", text(&trace)]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    let trace: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    let events: Vec<_> = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
    assert!(!events.is_empty());
    let mut end = 0.0;
    for event in events {
        // one step after the other
        let begin = event["ts"].as_f64().unwrap();
        assert!(begin >= end - 1e-3, "{event}");
        end = begin + event["dur"].as_f64().unwrap();
    }
}

#[test]
fn exit_statuses() {
    let folder = folder("statuses");
    let model = model(&folder);
    let x = Tensor::new(&[2, 3], &[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap();
    let (given, expected) = (inputs(&folder, &x), folder.join("expected"));
    std::fs::create_dir_all(&expected).unwrap();
    let right = Tensor::new(&[2, 2], &[2.0f32, 1.0, 4.0, 5.0]).unwrap();
    let run = |want: &Tensor| {
        egret::onnx::write_tensor(&expected.join("output_0.pb"), "y", want).unwrap();
        status(&egret(&["run", text(&model), "--inputs", text(&given), "--expect", text(&expected)]))
    };
    assert_eq!(run(&right), 0);
    assert_eq!(run(&Tensor::new(&[2, 2], &[2.0f32, 1.0, 4.0, 5.5]).unwrap()), 1);
    assert_eq!(run(&Tensor::zeros(egret::DType::F32, &[2])), 1);
    assert_eq!(status(&egret(&["run", text(&folder.join("missing.onnx"))])), 1);
    assert_eq!(status(&egret(&["run"])), 2);
    assert_eq!(status(&egret(&["run", text(&model), "--dim", "m=2"])), 2);
    assert_eq!(status(&egret(&["frobnicate"])), 2);
    // a message with a graph of one node, whose operator nobody has
    let unknown = folder.join("unknown.onnx");
    let node = [b"\x22\x07Unheard".as_slice(), b"\x12\x01y"].concat();
    let graph = [&[0x0a, node.len() as u8], node.as_slice(), b"\x62\x03\x0a\x01y"].concat();
    std::fs::write(&unknown, [&[0x3a, graph.len() as u8], graph.as_slice()].concat()).unwrap();
    let refused = egret(&["run", text(&unknown)]);
    assert_eq!(status(&refused), 3);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("E0303") && said.contains("Unheard: y"), "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_batch_outlives_what_fails_in_it() {
    let folder = folder("batch");
    let model = model(&folder);
    let x = Tensor::new(&[1, 3], &[1.0f32, 2.0, 3.0]).unwrap();
    let given = inputs(&folder, &x);
    let (list, empty) = (folder.join("list.tsv"), folder.join("empty.onnx"));
    std::fs::write(&empty, []).unwrap();
    let line = |model: &Path, i: usize| {
        format!("{}\t{}\t{}\n", text(model), text(&given), folder.join(i.to_string()).display())
    };
    let models = [empty, folder.join("missing.onnx"), model];
    let lines: String = models.iter().enumerate().map(|(i, model)| line(model, i)).collect();
    std::fs::write(&list, lines).unwrap();
    assert_eq!(status(&egret(&["run", "--batch", text(&list)])), 1);
    let said = |i: usize| std::fs::read_to_string(folder.join(i.to_string()).join("status")).unwrap();
    assert!(said(0).starts_with("error: E0301"), "{}", said(0));
    assert!(said(1).starts_with("error: "), "{}", said(1));
    assert_eq!(said(2), "ok");
    let (_, y) = egret::onnx::read_tensor(&folder.join("2/output_0.pb")).unwrap();
    assert_eq!(y.as_slice::<f32>(), Some(&[1.0f32, 25.0][..]));
    std::fs::write(&list, "one field\n").unwrap();
    assert_eq!(status(&egret(&["run", "--batch", text(&list)])), 2);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn stages_are_read_back_and_verified() {
    let folder = folder("stages");
    let model = model(&folder);
    for stage in ["imported", "raised", "rewritten"] {
        let path = folder.join(format!("{stage}.txt"));
        assert_eq!(status(&egret(&["dump", text(&model), "--stage", stage, "-o", text(&path)])), 0, "{stage}");
        assert_eq!(status(&egret(&["verify", text(&path), "--dim", "n=4", "--dim", "three=3"])), 0, "{stage}");
    }
    for (format, start) in [("dot", "digraph"), ("json", "{")] {
        let dumped = egret(&["dump", text(&model), "--stage", "rewritten", "--format", format]);
        assert_eq!(status(&dumped), 0);
        assert!(String::from_utf8_lossy(&dumped.stdout).starts_with(start));
    }
    assert_eq!(status(&egret(&["dump", text(&model), "--stage", "plan", "--format", "dot"])), 2);
    assert_eq!(status(&egret(&["ops", "--json"])), 0);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn programs_are_files_and_have_estimates() {
    let folder = folder("programs");
    let model = model(&folder);
    let file = folder.join("model.egret");
    assert_eq!(status(&egret(&["compile", text(&model), "-o", text(&file)])), 0);
    let (exe, state) = egret_runtime::Executable::open(&file, Default::default()).unwrap();
    let x = Tensor::new(&[1, 3], &[1.0f32, 2.0, 3.0]).unwrap();
    let mut session = exe.session_with(&state).unwrap();
    let outputs = session.run(&[("x", &x)]).unwrap();
    assert_eq!(outputs.get("y").unwrap().as_slice::<f32>(), Some(&[1.0f32, 25.0][..]));
    // any other byte is told from what was written
    let bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(7).position(|part| part == b"x86-64-" || part == b"aarch64").unwrap();
    for (position, code) in [(at, "E0503"), (8, "E0515")] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x55;
        std::fs::write(&file, damaged).unwrap();
        let error = egret_runtime::Executable::open(&file, Default::default()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    let estimated = egret(&["estimate", text(&model), "--dim", "n=4", "--dim", "three=3", "--json"]);
    assert_eq!(status(&estimated), 0);
    let said = String::from_utf8_lossy(&estimated.stdout).into_owned();
    for name in egret::DeviceDescription::names() {
        assert!(said.contains(&format!("\"{name}\"")), "{said}");
    }
    assert_eq!(status(&egret(&["estimate", text(&model), "--device", "abacus"])), 2);
    for (stage, part) in [("asm", "ret"), ("cuda", "__global__"), ("clif", "function")] {
        let dumped = egret(&["dump", text(&model), "--stage", stage]);
        assert_eq!(status(&dumped), 0);
        assert!(String::from_utf8_lossy(&dumped.stdout).contains(part), "{stage}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn graphs_are_exported() {
    let folder = folder("export");
    let model = model(&folder);
    let given = inputs(&folder, &Tensor::new(&[2, 3], &[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap());
    let (onnx, expected) = (folder.join("model.onnx"), folder.join("expected"));
    assert_eq!(status(&egret(&["export", text(&model), "-o", text(&onnx)])), 0);
    assert_eq!(status(&egret(&["run", text(&model), "--inputs", text(&given), "--outputs", text(&expected)])), 0);
    assert_eq!(status(&egret(&["run", text(&onnx), "--inputs", text(&given), "--expect", text(&expected)])), 0);
    let training = folder.join("training.txt");
    let graph = egret::trace(|t| {
        let w = t.state("w", Tensor::new(&[1], &[1.0f32]).unwrap());
        t.update(w, w * 0.5);
        t.output("y", w);
    });
    egret::ir::text::save(&training, &graph.unwrap()).unwrap();
    let refused = egret(&["export", text(&training), "-o", text(&onnx)]);
    assert_eq!(status(&refused), 3);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("[E0314] the state `w`"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_gradients_keep_is_listed() {
    let folder = folder("saved");
    let model = folder.join("gradients.txt");
    let weight = |shape: &[usize]| Tensor::zeros(egret::DType::F32, shape);
    let graph = egret::trace(|t| {
        let (a, b) = (t.param("a", weight(&[256, 512])), t.param("b", weight(&[512, 256])));
        let hidden = t.input("x", f32([512, 256])).matmul(a).gelu();
        let y = hidden.matmul(b);
        let found = t.grad((y * y).mean(), &[a, b]);
        t.output("da", found[0]);
        t.output("db", found[1]);
    });
    egret::ir::text::save(&model, &graph.unwrap()).unwrap();
    let said = |policy: &str| {
        let output = egret(&["explain", text(&model), "--saved", "--remat", policy]);
        assert_eq!(status(&output), 0, "{policy}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let all = said("save_everything");
    assert!(all.contains("read by") && !all.contains("computed again"), "{all}");
    let least = said("min_cut");
    assert!(least.contains("computed again: 1 nodes") && least.contains("gelu"), "{least}");
    assert_eq!(status(&egret(&["explain", text(&model), "--saved", "--remat", "some"])), 2);
    let stage = egret(&["dump", text(&model), "--stage", "rematerialised", "--remat", "min_cut"]);
    assert!(String::from_utf8_lossy(&stage.stdout).contains("= recompute("));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn rules_are_listed_and_kernels_explained() {
    let folder = folder("rules");
    let model = folder.join("product.txt");
    let graph = "graph {
  %x = input \"x\" : f32[n, 3]
  %w = input \"w\" : f32[3, 2]
  %y = dot_general(%x, %w) {lhs=ab, rhs=bc, out=ac} : f32[n, 2]
  %z = relu(%y) : f32[n, 2]
  output \"y\" = %z
}";
    std::fs::write(&model, graph).unwrap();
    let said = |args: &[&str]| {
        let output = egret(args);
        assert_eq!(status(&output), 0, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rules = said(&["rules"]);
    assert!(rules.contains("epilogue-unary (epilogue, exact)") && rules.contains("dot-softmax"), "{rules}");
    let one = said(&["rules", "dot-softmax"]);
    assert!(one.contains("(softmax $s (dot_general $d ?a ?b ..e))") && !one.contains("epilogue"), "{one}");
    assert_eq!(status(&egret(&["rules", "no-such-rule"])), 2);
    let unused = egret(&["rules", "--unused", text(&model)]);
    let names = String::from_utf8_lossy(&unused.stdout).into_owned();
    assert_eq!(status(&unused), 1);
    assert!(names.contains("dot-softmax") && !names.contains("epilogue-unary"), "{names}");

    let explained = said(&["explain", text(&model)]);
    assert!(explained.contains("by       epilogue-unary: dot_general with"), "{explained}");
    assert!(explained.contains("e-nodes in") && explained.contains("proved"), "{explained}");
    let without = said(&["explain", text(&model), "--without", "epilogue-unary"]);
    assert!(!without.contains("epilogue-unary"), "{without}");
    assert_eq!(status(&egret(&["explain", text(&model), "--without", "no-such-rule"])), 2);
    // nodes also go by their number in the raised graph
    let pair = said(&["explain", text(&model), "--pair", "%2", "%3"]);
    assert!(pair.contains("both are in") && pair.contains("epilogue-unary"), "{pair}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What a loop computes in each step is explained as the graph around it is.
#[test]
fn nodes_inside_loops_are_explained() {
    let folder = folder("loop");
    let model = folder.join("loop.txt");
    let graph = "graph {
  %h = input \"h\" : f32[2, 3]
  %xs = input \"xs\" : f32[4, 2, 3]
  %w = input \"w\" : f32[3, 3]
  %s = scan(%h, %xs, %w) {carried=1, scanned=1, length=4, reverse=false, body={
    %0 = input \"carry0\" : f32[2, 3]
    %1 = input \"slice0\" : f32[2, 3]
    %2 = input \"captured0\" : f32[3, 3]
    %3 = dot_general(%0, %2) {lhs=ab, rhs=bc, out=ac} : f32[2, 3]
    %4 = add(%3, %1) : f32[2, 3]
    %5 = tanh(%4) : f32[2, 3]
    output \"carry0\" = %5
  }} : (f32[2, 3])
  %y = proj(%s) {index=0} : f32[2, 3]
  output \"y\" = %y
}";
    std::fs::write(&model, graph).unwrap();
    let said = |args: &[&str]| {
        let output = egret(&[&["explain", text(&model)], args].concat());
        assert_eq!(status(&output), 0, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let node = said(&["--node", "line 11"]);
    assert!(node.contains("in the body of %3 scan: f32[2, 3]"), "{node}");
    assert!(node.contains("by       epilogue-binary") && node.contains("by       epilogue-unary"), "{node}");
    let pair = said(&["--pair", "line 9", "line 11"]);
    assert!(pair.contains("dot_general of line 9 in the body of %3 scan") && pair.contains("both are in"), "{pair}");
    let apart = said(&["--pair", "line 5", "line 11"]);
    assert!(apart.contains("they are rewritten apart"), "{apart}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// What `hwbench` writes is a device, and a roofline has a floor for every step that moves something.
#[test]
fn machines_are_measured_and_described() {
    let folder = folder("machine");
    let (model, description) = (model(&folder), folder.join("host.json"));
    let output = egret(&["hwbench", "--span", "0", "--threads", "2", "--out", text(&description), "--json"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    let measured: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|v| v > 0.0);
    assert!(measured["peak_gflops"].as_array().unwrap().iter().all(positive), "{measured}");
    let levels = measured["levels"].as_array().unwrap();
    assert!(levels.len() >= 3 && levels.iter().all(|level| positive(&level["read_gbps"][0])), "{measured}");
    assert!(measured["kernels"].as_array().unwrap().iter().all(|kernel| positive(&kernel["share"])), "{measured}");

    let device = format!("cpu:{}", text(&description));
    let dims = ["--dim", "n=40", "--dim", "three=3"];
    let bench = ["bench", text(&model), "--device", &device, "--runs", "3", "--roofline", "--json"];
    let output = egret(&[&bench[..], &dims[..]].concat());
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = told["roofline"]["steps"].as_array().unwrap();
    assert!(
        !steps.is_empty() && steps.iter().all(|step| positive(&step["us"]) && positive(&step["floor_us"])),
        "{told}"
    );

    let output = egret(&["bench", text(&model), "--device", "cpu:nowhere.json"]);
    assert_eq!(status(&output), 2, "a description that is not there is wrong usage");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.json"));
}

/// What is measured is kept, read again, told and cleared; the interpreter has nothing to tune.
#[test]
fn schedules_are_tuned_where_asked() {
    let folder = folder("tune");
    let model = model(&folder);
    let dims = ["--dim", "n=400", "--dim", "three=3"];
    let egret = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_egret");
        Command::new(program).env("EGRET_CACHE", folder.join("cache")).args(args).output().unwrap()
    };
    let run = |more: &[&str]| {
        let output = egret(&[&["run", text(&model), "--json", "--threads", "1"], &dims[..], more].concat());
        assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (value, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (plain, said) = run(&[]);
    assert!(plain["tuning"].is_null() && said.is_empty(), "{said}");
    let (first, said) = run(&["--tune", "1"]);
    assert!(said.contains("tuned: 1 problems measured, 0 from the table"), "{said}");
    let measurements = first["tuning"][0]["measurements"].as_array().unwrap();
    assert!((2..=4).contains(&measurements.len()), "{first}");
    assert!(measurements.iter().all(|m| !m["us"].as_array().unwrap().is_empty()), "{first}");
    assert_eq!(first["outputs"], plain["outputs"]);
    let (second, said) = run(&["--tune", "1"]);
    assert!(said.contains("tuned: 0 problems measured, 1 from the table"), "{said}");
    assert_eq!(second["tuning"][0]["measurements"], first["tuning"][0]["measurements"]);

    let list = egret(&["cache", "list"]);
    let listed = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(listed.contains("tuning: 1 entries") && listed.contains("by the model"), "{listed}");
    assert_eq!(status(&egret(&["cache", "clear"])), 0);
    let listed = egret(&["cache", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["tuning"]["entries"].as_array().map(Vec::len), Some(0), "{listed}");

    let wrong = egret(&["run", text(&model), "--tune", "3"]);
    assert_eq!(status(&wrong), 2);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no effort of tuning"));
    let refused = egret(&[&["run", text(&model), "--device", "interpreter", "--tune", "1"], &dims[..]].concat());
    assert_eq!(status(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("E0808"));
    std::fs::remove_dir_all(&folder).unwrap();
}
