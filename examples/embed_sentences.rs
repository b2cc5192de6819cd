//! Sentence embeddings by MiniLM, and how alike sentences are.
//!
//! ```text
//! cargo run --release --example embed_sentences -- MODEL.onnx --vocab vocab.txt "A cat sleeps." "A kitten naps."
//! cargo run --release --example embed_sentences -- MODEL.onnx < lines-of-token-ids
//! ```
//!
//! With a WordPiece vocabulary the arguments are sentences; without, lines of standard input are token ids.

use std::path::{Path, PathBuf};

use clap::Parser;
use egret::{Device, Diagnostic, Tensor};
use tokenizers::Tokenizer;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;

#[derive(Parser)]
struct Args {
    /// The model, with inputs `input_ids`, `attention_mask` and, as a rule, `token_type_ids`.
    model: PathBuf,
    /// A WordPiece vocabulary: a token a line.
    #[arg(long)]
    vocab: Option<PathBuf>,
    /// Sentences.
    sentences: Vec<String>,
    /// Where it runs: `cpu`, or a GPU as `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

fn main() {
    if let Err(error) = embed(&Args::parse()) {
        eprintln!("error: {}", error.diagnostic());
        std::process::exit(1);
    }
}

fn wrong(why: impl ToString) -> egret::Error {
    Diagnostic::new("E0961", why.to_string()).into()
}

/// BERT's own tokenizer over a vocabulary file.
fn tokenizer(path: &Path) -> egret::Result<Tokenizer> {
    let text = std::fs::read(path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
    let vocabulary = WordPiece::read_bytes(&text).map_err(wrong)?;
    let marker = |name: &str| {
        let id = vocabulary.get(name).ok_or_else(|| wrong(format!("the vocabulary has no {name}")))?;
        Ok::<_, egret::Error>((name.to_string(), *id))
    };
    let markers = BertProcessing::new(marker("[SEP]")?, marker("[CLS]")?);
    let model = WordPiece::builder().vocab(vocabulary).build().map_err(wrong)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::default())).map_err(wrong)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(markers));
    Ok(tokenizer)
}

/// The sentences as token ids.
fn token_ids(args: &Args) -> egret::Result<Vec<(String, Vec<i64>)>> {
    if let Some(path) = &args.vocab {
        let tokenizer = tokenizer(path)?;
        let encode = |sentence: &String| {
            let encoding = tokenizer.encode(sentence.as_str(), true).map_err(wrong)?;
            Ok((sentence.clone(), encoding.get_ids().iter().map(|id| i64::from(*id)).collect()))
        };
        return args.sentences.iter().map(encode).collect();
    }
    let parse = |line: &str| -> egret::Result<(String, Vec<i64>)> {
        let ids: Result<Vec<i64>, _> = line.split_whitespace().map(str::parse).collect();
        Ok((line.to_string(), ids.map_err(|e| wrong(format!("`{line}` is no line of token ids: {e}")))?))
    };
    let text = std::io::read_to_string(std::io::stdin()).map_err(wrong)?;
    args.sentences.iter().map(String::as_str).chain(text.lines()).filter(|l| !l.trim().is_empty()).map(parse).collect()
}

fn embed(args: &Args) -> egret::Result<()> {
    let sentences = token_ids(args)?;
    let longest = sentences.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0);
    if longest == 0 {
        return Err(wrong("no sentences: give them as arguments with --vocab, or token ids on standard input"));
    }
    let graph = egret::onnx::load(&args.model)?;
    let exe = egret::compile(&graph, &args.device)?;
    let mut session = exe.session()?;

    // all sentences in one batch, padded to the longest
    let count = sentences.len();
    let rows = |value: &dyn Fn(&[i64], usize) -> i64| {
        let all: Vec<i64> = sentences.iter().flat_map(|(_, ids)| (0..longest).map(|i| value(ids, i))).collect();
        Tensor::new(&[count, longest], &all).ok_or_else(|| wrong("the batch has no shape"))
    };
    let ids = rows(&|ids, i| ids.get(i).copied().unwrap_or(0))?;
    let mask = rows(&|ids, i| i64::from(i < ids.len()))?;
    let types = rows(&|_, _| 0)?;
    let given = [("input_ids", &ids), ("attention_mask", &mask), ("token_type_ids", &types)];
    let wanted: Vec<(&str, &Tensor)> = given.into_iter().filter(|(name, _)| has_input(&graph, name)).collect();
    let outputs = session.run(&wanted)?;
    let embeddings: Vec<Vec<f32>> = match outputs.iter().find(|o| o.shape().len() == 2) {
        Some(pooled) => {
            pooled.as_slice().unwrap_or_default().chunks(pooled.shape()[1].max(1)).map(<[f32]>::to_vec).collect()
        }
        None => {
            let tokens = outputs.at(0).ok_or_else(|| wrong("the model has no output"))?;
            let features = tokens.shape().last().copied().unwrap_or(1);
            let values: &[f32] = tokens.as_slice().unwrap_or_default();
            let rows = values.chunks(longest * features);
            rows.zip(&sentences).map(|(row, (_, ids))| mean(&row[..ids.len() * features], features)).collect()
        }
    };
    for (i, (sentence, ids)) in sentences.iter().enumerate() {
        println!("[{i}] {sentence} ({} tokens)", ids.len());
    }
    println!("\ncosine similarity");
    for a in &embeddings {
        let row: Vec<String> = embeddings.iter().map(|b| format!("{:7.4}", cosine(a, b))).collect();
        println!("{}", row.join(" "));
    }
    Ok(())
}

fn has_input(graph: &egret::Graph, name: &str) -> bool {
    graph.inputs().iter().any(|id| matches!(&graph.node(*id).op, egret::ir::Op::Input(input) if input.name == name))
}

fn mean(rows: &[f32], features: usize) -> Vec<f32> {
    let count = (rows.len() / features).max(1) as f32;
    (0..features).map(|j| rows.iter().skip(j).step_by(features).sum::<f32>() / count).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f32::MIN_POSITIVE)
}
