//! What NVRTC makes of every distinct kernel of some graphs: no warning of lost performance, nothing beyond a block's limits,
//! no spill in an innermost loop, and no other but those that `docs/results/spills.tsv` lists with bytes and reason. That
//! table may only shrink: `EGRET_BLESS=1` writes it anew, and refuses a row that is new or has more bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use egret_compiler::{CompileOptions, compile};
use egret_ir::Graph;
use egret_program::{CudaCode, DeviceDescription, KernelBody, Program, Target};
use egret_runtime::cuda::nvrtc::{Nvrtc, Resources};

use super::sass;

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;
/// Kernels that are compiled together: they have the code that each has by itself.
const TOGETHER: usize = 16;

pub fn device(name: &str) -> DeviceDescription {
    DeviceDescription::named(name).unwrap_or_else(|e| panic!("{e}"))
}

pub fn program(name: &str, graph: &Graph, description: &str) -> Program {
    let compiled = compile(graph, &device(description), &CompileOptions::default());
    compiled.unwrap_or_else(|e| panic!("{name} for {description}: {e}")).program
}

/// Which graph, family and architecture spill.
type Row = (String, String, String);
/// Bytes, of all kernels of a row, and the reason.
type Table = BTreeMap<Row, (u32, String)>;

const HEAD: &str = "graph\tfamily\tarchitecture\tbytes\treason";

fn table_path() -> PathBuf {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("docs"));
    docs.into_iter().find(|docs| docs.is_dir()).expect("docs").join("results/spills.tsv")
}

fn table() -> Table {
    let text = std::fs::read_to_string(table_path()).unwrap_or_default();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [graph, family, arch, bytes, reason] = fields.as_slice() else { panic!("{line}") };
        assert!(!reason.is_empty(), "no reason for {line}");
        let key = (graph.to_string(), family.to_string(), arch.to_string());
        (key, (bytes.parse().expect("bytes"), reason.to_string()))
    };
    text.lines().skip(1).map(row).collect()
}

/// A kernel to compile: where it was met first, and for what.
struct Text {
    graph: String,
    description: &'static str,
    name: String,
    family: String,
    code: CudaCode,
}

/// Every distinct text once an architecture.
#[derive(Default)]
pub struct Texts {
    texts: BTreeMap<(&'static str, String), Text>,
    graphs: BTreeSet<String>,
}

impl Texts {
    /// Adds the kernels of a graph.
    pub fn add(&mut self, name: &str, graph: &Graph, description: &'static str) {
        self.graphs.insert(name.to_string());
        for kernel in program(name, graph, description).kernels {
            let KernelBody::Cuda(code) = kernel.body else { panic!("{}", kernel.name) };
            self.texts.entry((description, kernel.name.clone())).or_insert_with(|| Text {
                graph: name.to_string(),
                description,
                name: kernel.name,
                family: kernel.family,
                code,
            });
        }
    }

    /// Compiles all, and compares what spills with the table.
    pub fn check(self, nvrtc: &Nvrtc) {
        let mut work: Vec<Text> = self.texts.into_values().collect();
        // the longest first, so that processors finish together
        work.sort_by_key(|text| (text.description, Reverse(text.code.source.len())));
        let started = std::time::Instant::now();
        let (found, mut known) = (spills(nvrtc, &work), table());
        println!("{} texts in {:.1} s, {} rows spill", work.len(), started.elapsed().as_secs_f64(), found.len());
        let mut more = Vec::new();
        let mut rows = Table::new();
        for (row, bytes) in found {
            let (most, reason) = known.remove(&row).unwrap_or((0, "not told yet".to_string()));
            if bytes > most {
                more.push(format!("{row:?} spills {bytes} bytes, {most} before"));
            }
            rows.insert(row, (bytes, reason));
        }
        assert!(more.is_empty(), "{}", more.join("\n"));
        if std::env::var_os("EGRET_BLESS").is_some() {
            // rows of graphs that are checked elsewhere stay
            rows.extend(known.into_iter().filter(|(row, _)| !self.graphs.contains(&row.0)));
            let line = |(row, (bytes, reason)): (&Row, &(u32, String))| {
                format!("{}\t{}\t{}\t{bytes}\t{reason}\n", row.0, row.1, row.2)
            };
            let rows: String = rows.iter().map(line).collect();
            std::fs::write(table_path(), format!("{HEAD}\n{rows}")).expect("the table is written");
        }
    }
}

/// What kernels for one architecture need, in their order; a warning of lost performance is an error here.
fn resources(nvrtc: &Nvrtc, texts: &[&Text], arch: &str) -> Vec<Resources> {
    let codes: Vec<&CudaCode> = texts.iter().map(|text| &text.code).collect();
    let source = CudaCode::together(&codes).expect("a prelude");
    let made = match nvrtc.compile(&source, &texts[0].name, arch, &[]) {
        Ok(made) => made.kernels,
        // whose is it?
        Err(_) if texts.len() > 1 => return texts.iter().flat_map(|text| resources(nvrtc, &[text], arch)).collect(),
        Err(error) => panic!("{} ({}) of {}: {error}", texts[0].name, texts[0].family, texts[0].graph),
    };
    let of = |text: &&Text| made.iter().find(|kernel| kernel.name == text.name).cloned();
    texts.iter().map(|text| of(text).unwrap_or_else(|| panic!("{}: {made:?}", text.name))).collect()
}

/// Bytes that a kernel spills, once it is found within limits.
fn spilled(nvrtc: &Nvrtc, text: &Text, resources: &Resources) -> u32 {
    let Text { description, name, family, code, .. } = text;
    let Target::Cuda { arch, shared_bytes, .. } = device(description).target else { panic!("{description}") };
    let threads: u32 = code.threads.iter().product();
    assert!(resources.registers * threads <= REGISTERS, "{name} ({family}) for {arch}: {resources:?}");
    let shared = resources.shared_bytes + code.shared_bytes;
    assert!(shared <= shared_bytes, "{name} ({family}) for {arch}: {shared} bytes of shared memory");
    let bytes = resources.spill_bytes.max(resources.stack_bytes);
    if bytes > 0 {
        let made = nvrtc.compile(&code.source, name, &arch, &[]).unwrap_or_else(|e| panic!("{family}: {e}"));
        let (all, innermost) = sass::spills(&made.image, &arch).expect("a CUBIN");
        assert!(all > 0, "{name}: {bytes} bytes are spilled, which its code does not show");
        // arrays that are indexed lie in local memory too, and are no spills
        let spilled = resources.spill_bytes > 0;
        assert!(!spilled || innermost == 0, "{name} ({family}, {}) for {arch} spills in an innermost loop", text.graph);
    }
    bytes
}

fn spills(nvrtc: &Nvrtc, work: &[Text]) -> BTreeMap<Row, u32> {
    let batches: Vec<&[Text]> =
        work.chunk_by(|a, b| a.description == b.description).flat_map(|texts| texts.chunks(TOGETHER)).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<Row, u32>::new()));
    let some = || {
        while let Some(batch) = batches.get(next.fetch_add(1, Relaxed)) {
            let texts: Vec<&Text> = batch.iter().collect();
            let arch = device(batch[0].description).arch().expect("a GPU").to_string();
            for (text, resources) in batch.iter().zip(resources(nvrtc, &texts, &arch)) {
                let bytes = spilled(nvrtc, text, &resources);
                if bytes > 0 {
                    let row = (text.graph.clone(), text.family.clone(), text.description.to_string());
                    *found.lock().unwrap().entry(row).or_default() += bytes;
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        // a panic of any is the test's
        for one in all {
            one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    found.into_inner().unwrap()
}
