//! One importer per operator, a file per family.

mod attention;
mod control;
mod conv;
mod elementwise;
mod indexing;
mod linear;
mod loss;
mod movement;
mod norm;
mod order;
mod pool;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod sources;
mod spatial;

use egret_ir::{Diagnostic, ScalarFn, Var};

use crate::cx::{Cx, Source};

/// Makes nodes for one operator and gives its results.
pub(crate) type Nodes = for<'a, 't> fn(&mut Cx<'a, 't>) -> Result<Vec<Var<'t>>, Diagnostic>;

/// Gives the results of one operator, which need not be nodes.
pub(crate) type Values = for<'a, 't> fn(&mut Cx<'a, 't>) -> Result<Vec<Source<'t>>, Diagnostic>;

/// The importer of an operator.
#[derive(Clone, Copy)]
pub(crate) enum Import {
    /// Of one that always makes nodes.
    Nodes(Nodes),
    /// Of one whose results may be known now.
    Values(Values),
}

type Results<'t> = Result<Vec<Var<'t>>, Diagnostic>;
type Sources<'t> = Result<Vec<Source<'t>>, Diagnostic>;

/// Importers of operators whose results need not be nodes.
const VALUES: &[(&str, Values)] = &[
    ("CastLike", elementwise::cast_like),
    ("Constant", sources::constant),
    ("Identity", elementwise::identity),
    ("If", control::conditional),
    ("Loop", control::counted),
    ("Scan", control::scan),
];

/// Importers by operator; the scalar functions of the table in `egret-ir` are not repeated here.
const NODES: &[(&str, Nodes)] = &[
    ("AffineGrid", spatial::affine_grid),
    ("ArgMax", reduce::arg_max),
    ("ArgMin", reduce::arg_min),
    ("Attention", attention::attention),
    ("AveragePool", pool::average_pool),
    ("BatchNormalization", norm::batch_normalization),
    ("Bernoulli", random::bernoulli),
    ("BitCast", elementwise::bit_cast),
    ("BitShift", elementwise::bit_shift),
    ("BlackmanWindow", sources::blackman_window),
    ("Cast", elementwise::cast),
    ("CausalConvWithState", attention::causal_conv_with_state),
    ("Celu", elementwise::celu),
    ("CenterCropPad", movement::center_crop_pad),
    ("Clip", elementwise::clip),
    ("Col2Im", pool::col2im),
    ("Compress", order::compress),
    ("Concat", movement::concat),
    ("ConstantOfShape", sources::constant_of_shape),
    ("Conv", conv::conv),
    ("ConvInteger", quantize::conv_integer),
    ("ConvTranspose", conv::conv_transpose),
    ("CumProd", order::cum_prod),
    ("CumSum", order::cum_sum),
    ("DeformConv", spatial::deform_conv),
    ("DepthToSpace", movement::depth_to_space),
    ("DequantizeLinear", quantize::dequantize_linear),
    ("Det", linear::det),
    ("Dropout", elementwise::dropout),
    ("DynamicQuantizeLinear", quantize::dynamic_quantize_linear),
    ("Einsum", linear::einsum),
    ("Elu", elementwise::elu),
    ("Expand", movement::expand),
    ("EyeLike", sources::eye_like),
    ("Flatten", movement::flatten),
    ("GRU", recurrent::gru),
    ("Gather", indexing::gather),
    ("GatherElements", indexing::gather_elements),
    ("GatherND", indexing::gather_nd),
    ("Gelu", elementwise::gelu),
    ("Gemm", linear::gemm),
    ("GlobalAveragePool", pool::global_average_pool),
    ("GlobalLpPool", pool::global_lp_pool),
    ("GlobalMaxPool", pool::global_max_pool),
    ("GridSample", spatial::grid_sample),
    ("GroupNormalization", norm::group_normalization),
    ("HammingWindow", sources::hamming_window),
    ("HannWindow", sources::hann_window),
    ("HardSigmoid", elementwise::hard_sigmoid),
    ("Hardmax", norm::hardmax),
    ("InstanceNormalization", norm::instance_normalization),
    ("IsInf", elementwise::is_inf),
    ("LRN", norm::lrn),
    ("LSTM", recurrent::lstm),
    ("LayerNormalization", norm::layer_normalization),
    ("LeakyRelu", elementwise::leaky_relu),
    ("LinearAttention", attention::linear_attention),
    ("LogSoftmax", norm::log_softmax),
    ("LpNormalization", norm::lp_normalization),
    ("LpPool", pool::lp_pool),
    ("MatMul", linear::matmul),
    ("MatMulInteger", quantize::matmul_integer),
    ("Max", elementwise::max),
    ("MaxPool", pool::max_pool),
    ("MaxRoiPool", spatial::max_roi_pool),
    ("MaxUnpool", pool::max_unpool),
    ("Mean", elementwise::mean),
    ("MeanVarianceNormalization", norm::mean_variance_normalization),
    ("Min", elementwise::min),
    ("Mod", elementwise::modulo),
    ("Multinomial", random::multinomial),
    ("NegativeLogLikelihoodLoss", loss::negative_log_likelihood),
    ("NonMaxSuppression", order::non_max_suppression),
    ("NonZero", order::non_zero),
    ("OneHot", indexing::one_hot),
    ("PRelu", elementwise::prelu),
    ("Pad", movement::pad),
    ("Pow", elementwise::pow),
    ("QLinearConv", quantize::qlinear_conv),
    ("QLinearMatMul", quantize::qlinear_matmul),
    ("QuantizeLinear", quantize::quantize_linear),
    ("RMSNormalization", norm::rms_normalization),
    ("RNN", recurrent::rnn),
    ("RandomNormal", random::random_normal),
    ("RandomNormalLike", random::random_normal_like),
    ("RandomUniform", random::random_uniform),
    ("RandomUniformLike", random::random_uniform_like),
    ("Range", sources::range),
    ("ReduceL1", reduce::l1),
    ("ReduceL2", reduce::l2),
    ("ReduceLogSum", reduce::log_sum),
    ("ReduceLogSumExp", reduce::log_sum_exp),
    ("ReduceMax", reduce::max),
    ("ReduceMean", reduce::mean),
    ("ReduceMin", reduce::min),
    ("ReduceProd", reduce::prod),
    ("ReduceSum", reduce::sum),
    ("ReduceSumSquare", reduce::sum_square),
    ("Reshape", movement::reshape),
    ("Resize", resize::resize),
    ("ReverseSequence", indexing::reverse_sequence),
    ("RoiAlign", spatial::roi_align),
    ("RotaryEmbedding", attention::rotary_embedding),
    ("Scatter", indexing::scatter_elements),
    ("ScatterElements", indexing::scatter_elements),
    ("ScatterND", indexing::scatter_nd),
    ("Selu", elementwise::selu),
    ("Shape", sources::shape),
    ("Shrink", elementwise::shrink),
    ("Size", sources::shape),
    ("Slice", movement::slice),
    ("Softmax", norm::softmax),
    ("SoftmaxCrossEntropyLoss", loss::softmax_cross_entropy),
    ("SpaceToDepth", movement::space_to_depth),
    ("Split", movement::split),
    ("Squeeze", movement::squeeze),
    ("Sum", elementwise::sum),
    ("SwiGLU", elementwise::swiglu),
    ("Swish", elementwise::swish),
    ("TensorScatter", indexing::tensor_scatter),
    ("ThresholdedRelu", elementwise::thresholded_relu),
    ("Tile", movement::tile),
    ("TopK", order::top_k),
    ("Transpose", movement::transpose),
    ("Trilu", indexing::trilu),
    ("Unique", order::unique),
    ("Unsqueeze", movement::unsqueeze),
    ("Upsample", resize::upsample),
];

/// The importer of an operator of the standard set.
pub(crate) fn find(op_type: &str) -> Option<Import> {
    let values = VALUES.binary_search_by_key(&op_type, |(name, _)| name).ok().map(|at| Import::Values(VALUES[at].1));
    let nodes = || NODES.binary_search_by_key(&op_type, |(name, _)| name).ok().map(|at| Import::Nodes(NODES[at].1));
    let scalar = || ScalarFn::from_onnx(op_type).map(|_| Import::Nodes(elementwise::scalar));
    values.or_else(nodes).or_else(scalar)
}

/// The names of all operators that are imported, sorted; those of other sets follow their domain and a dot.
pub fn supported() -> Vec<String> {
    let scalars = ScalarFn::ALL.iter().map(|f| f.onnx()).filter(|name| !name.is_empty());
    let listed = NODES.iter().map(|(name, _)| *name).chain(VALUES.iter().map(|(name, _)| *name));
    let standard = listed.chain(scalars).map(ToString::to_string);
    let mut names: Vec<String> = standard.chain(crate::contrib::names()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tables_are_sorted() {
        assert!(super::NODES.is_sorted_by_key(|(name, _)| *name));
        assert!(super::VALUES.is_sorted_by_key(|(name, _)| *name));
    }
}
