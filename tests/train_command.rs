//! `egret train`: models from ONNX and from text are trained on files of each kind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use egret::ir::{files, text};
use egret::{Tensor, Tensors, f32};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("train-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn train(model: &Path, data: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    command.arg("train").arg(model).arg("--data").arg(data).args(["--json", "--threads", "1"]);
    command.args(more).output().unwrap()
}

fn result(output: &Output) -> Value {
    let told = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", told());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", told()))
}

fn losses(result: &Value) -> Vec<f64> {
    result["epochs"].as_array().unwrap().iter().map(|e| e["loss"].as_f64().unwrap()).collect()
}

/// `x · w + b` of x `[batch, features]`, as a text graph or as ONNX.
fn linear(path: &Path, batch: &str, features: i64, outputs: usize) {
    let weight: Vec<f32> = (0..features as usize * outputs).map(|i| (i as f32 * 0.7).sin() * 0.3).collect();
    let w = Tensor::new(&[features as usize, outputs], &weight).unwrap();
    let b = Tensor::new(&[outputs], &vec![0f32; outputs]).unwrap();
    let graph = egret::trace(|t| {
        let rows = batch.parse::<i64>().map_or_else(|_| egret::Dim::from(batch), egret::Dim::from);
        let x = t.input("x", f32([rows, features.into()]));
        t.output("y", x.matmul(t.param("w", w)) + t.param("b", b));
    })
    .unwrap();
    match path.extension().is_some_and(|e| e == "onnx") {
        true => drop(egret::onnx::export::save(path, &graph).unwrap()),
        false => text::save(path, &graph).unwrap(),
    }
}

/// 60 examples of two features; whether their sum is above zero.
fn rows() -> Vec<([f32; 2], bool)> {
    (0..60)
        .map(|i| {
            let x = [(i as f32 * 0.37).sin(), (i as f32 * 0.91).cos()];
            (x, x[0] + x[1] > 0.0)
        })
        .collect()
}

#[test]
fn a_model_from_onnx_is_trained_on_a_table_of_text() {
    let folder = folder("csv");
    let model = folder.join("model.onnx");
    linear(&model, "batch", 2, 2);
    let lines: Vec<String> = rows().iter().map(|([a, b], above)| format!("{a},{b},{above}")).collect();
    std::fs::write(folder.join("data.csv"), format!("a,b,kind\n{}\n", lines.join("\n"))).unwrap();
    let out = folder.join("trained.onnx");
    let curve = folder.join("curve");
    let options = ["--loss", "cross-entropy", "--epochs", "20", "--batch", "8", "--rate", "0.1", "--valid", "0.2"];
    let more = ["-o", out.to_str().unwrap(), "--curve", curve.to_str().unwrap(), "--cosine"];
    let told = result(&train(&model, &folder.join("data.csv"), &[&options[..], &more[..]].concat()));
    let losses = losses(&told);
    assert!(losses[19] < 0.5 * losses[0], "{losses:?}");
    assert_eq!(told["steps"], 20 * 6);
    assert!(told["epochs"][19]["accuracy"].as_f64().unwrap() > 0.8, "{told}");
    assert!(std::fs::read_to_string(folder.join("curve.csv")).unwrap().lines().count() > 100);
    // what was written classifies
    let trained = egret::onnx::load(&out).unwrap();
    let mut session = egret::compile(&trained, &egret::Device::cpu().with_threads(1)).unwrap().session().unwrap();
    let rows = rows();
    let x: Vec<f32> = rows.iter().flat_map(|(x, _)| *x).collect();
    let x = Tensor::new(&[rows.len(), 2], &x).unwrap();
    let y = session.run(&[("x", &x)]).unwrap().at(0).unwrap().to_tensor();
    let y = y.as_slice::<f32>().unwrap();
    // classes in order: false, true
    let right = y.chunks(2).zip(&rows).filter(|(y, (_, above))| (y[1] > y[0]) == *above).count();
    assert!(right >= 54, "{right} of 60");
    // trained further, it begins where it ended
    let again = result(&train(&out, &folder.join("data.csv"), &["--loss", "cross-entropy", "--epochs", "1"]));
    assert!(again["epochs"][0]["loss"].as_f64().unwrap() < 0.7 * losses[0]);
}

#[test]
fn tensors_fit_a_model_of_fixed_batch_and_a_run_is_resumed() {
    let folder = folder("npz");
    let model = folder.join("model.txt");
    linear(&model, "8", 2, 1);
    let rows = rows();
    let x: Vec<f64> = rows.iter().flat_map(|(x, _)| x.map(f64::from)).collect();
    let y: Vec<f64> = rows.iter().map(|(x, _)| f64::from(2.0 * x[0] - x[1] + 0.5)).collect();
    // f64, and of other shapes with as many elements: cast and reshaped
    let tensors = Tensors::from([
        ("x".to_string(), Tensor::new(&[60, 2, 1], &x).unwrap()),
        ("target".to_string(), Tensor::new(&[60], &y).unwrap()),
    ]);
    let data = folder.join("data.npz");
    files::write_npz(&data, &tensors).unwrap();
    let run = |name: &str, epochs: &str, resume: bool| {
        let out = folder.join(format!("{name}.safetensors"));
        let checkpoints = folder.join(format!("{name}.run"));
        let mut more = vec!["--loss", "mse", "--rate", "0.05", "--epochs", epochs, "--optimiser", "momentum"];
        more.extend(["-o", out.to_str().unwrap(), "--checkpoints", checkpoints.to_str().unwrap(), "--valid", "0.3"]);
        if resume {
            more.push("--resume");
        }
        let told = result(&train(&model, &data, &more));
        (told, files::read_safetensors(&out).unwrap())
    };
    let (told, whole) = run("whole", "12", false);
    // the model takes batches of 8: 42 examples in batches of 8, and two whole batches of the 18 others
    assert_eq!(told["steps"], 12 * 5);
    assert!(told["epochs"][11]["valid_loss"].as_f64().unwrap() < 0.05, "{told}");
    run("parts", "5", false);
    let (_, parts) = run("parts", "12", true);
    assert_eq!(whole.keys().collect::<Vec<_>>(), ["b", "w"]);
    for (name, tensor) in &whole {
        assert_eq!(tensor.bytes(), parts[name].bytes(), "{name}");
    }
}

#[test]
fn a_recorded_model_learns_from_folders_of_images() {
    let model = xtask::data().join("training/cnn/forward.onnx");
    if !model.exists() {
        println!("skipped: {} is not there", model.display());
        return;
    }
    let folder = folder("images");
    for class in ["bright", "dark"] {
        std::fs::create_dir_all(folder.join("data").join(class)).unwrap();
    }
    let graph = egret::onnx::load(&model).unwrap();
    let (input, output) = (graph.tensor_type(graph.inputs()[0]).clone(), graph.tensor_type(graph.outputs()[0].1));
    println!("{input} to {output}");
    let side = input.shape[2].as_const().unwrap() as u32;
    for i in 0..96u8 {
        let class = ["bright", "dark"][usize::from(i % 2)];
        let value = if i % 2 == 0 { 200 } else { 40 };
        let noise = |x: u32, y: u32| (x * 31 + y * 17 + u32::from(i) * 7) as u8 % 50;
        let image = image::GrayImage::from_fn(side, side, |x, y| image::Luma([value + noise(x, y)]));
        image.save(folder.join("data").join(class).join(format!("{i:02}.png"))).unwrap();
    }
    let more = ["--loss", "cross-entropy", "--epochs", "10", "--rate", "0.003", "--valid", "0"];
    let losses = losses(&result(&train(&model, &folder.join("data"), &more)));
    assert!(losses[9] < 0.3 * losses[0], "{losses:?}");
}

#[test]
fn what_does_not_fit_is_told() {
    let folder = folder("wrong");
    let model = folder.join("model.txt");
    linear(&model, "batch", 3, 2);
    std::fs::write(folder.join("two.csv"), "a,b,kind\n1,2,x\n").unwrap();
    let refused = |data: &Path, more: &[&str], code: &str, words: &str| {
        let output = train(&model, data, more);
        assert_eq!(output.status.code(), Some(1));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (have, message) = (told["error"]["code"].as_str().unwrap(), told["error"]["message"].as_str().unwrap());
        assert!(have == code && message.contains(words), "{have}: {message}");
    };
    let classes = ["--loss", "cross-entropy"];
    refused(&folder.join("two.csv"), &classes, "E0957", "examples of `features` are f32[2]; `x` is f32[batch, 3]");
    refused(&folder.join("none.csv"), &classes, "E0602", "none.csv");
    std::fs::write(folder.join("empty.csv"), "a,b,c,kind\n").unwrap();
    refused(&folder.join("empty.csv"), &classes, "E0605", "empty");
    let tensors = Tensors::from([("x".to_string(), Tensor::new(&[2, 3], &[0f32; 6]).unwrap())]);
    files::write_npz(&folder.join("alone.npz"), &tensors).unwrap();
    refused(&folder.join("alone.npz"), &classes, "E0957", "--target");
    let labels = ("label".to_string(), Tensor::new(&[2], &[0i64, 7]).unwrap());
    files::write_npz(&folder.join("labels.npz"), &tensors.into_iter().chain([labels]).collect()).unwrap();
    let one = ["--loss", "cross-entropy", "--epochs", "1", "--valid", "0"];
    refused(&folder.join("labels.npz"), &one, "E0511", "label");
    std::fs::create_dir_all(folder.join("nothing")).unwrap();
    refused(&folder.join("nothing"), &classes, "E0957", "no data");
    assert_eq!(train(&model, &folder.join("two.csv"), &["--loss", "hinge"]).status.code(), Some(2));
}
