//! One importer per operator, a file per family.

mod conv;
mod elementwise;
mod indexing;
mod linear;
mod loss;
mod movement;
mod norm;
mod pool;
mod recurrent;
mod reduce;
mod resize;
mod sources;

use egret_ir::{Diagnostic, ScalarFn, Var};

use crate::cx::Cx;

pub(crate) use sources::constant;

/// Makes nodes for one operator and gives its results.
pub(crate) type Import = for<'a, 't> fn(&mut Cx<'a, 't>) -> Result<Vec<Var<'t>>, Diagnostic>;

type Results<'t> = Result<Vec<Var<'t>>, Diagnostic>;

/// Importers by operator; the scalar functions of the table in `egret-ir` are not repeated here.
const TABLE: &[(&str, Import)] = &[
    ("ArgMax", reduce::arg_max),
    ("ArgMin", reduce::arg_min),
    ("AveragePool", pool::average_pool),
    ("BatchNormalization", norm::batch_normalization),
    ("Cast", elementwise::cast),
    ("CastLike", elementwise::cast_like),
    ("Celu", elementwise::celu),
    ("Clip", elementwise::clip),
    ("Concat", movement::concat),
    ("Constant", sources::constant_node),
    ("ConstantOfShape", sources::constant_of_shape),
    ("Conv", conv::conv),
    ("ConvTranspose", conv::conv_transpose),
    ("DepthToSpace", movement::depth_to_space),
    ("Dropout", elementwise::dropout),
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
    ("GlobalMaxPool", pool::global_max_pool),
    ("GroupNormalization", norm::group_normalization),
    ("HardSigmoid", elementwise::hard_sigmoid),
    ("Identity", elementwise::identity),
    ("InstanceNormalization", norm::instance_normalization),
    ("IsInf", elementwise::is_inf),
    ("LRN", norm::lrn),
    ("LSTM", recurrent::lstm),
    ("LayerNormalization", norm::layer_normalization),
    ("LeakyRelu", elementwise::leaky_relu),
    ("LogSoftmax", norm::log_softmax),
    ("LpNormalization", norm::lp_normalization),
    ("MatMul", linear::matmul),
    ("Max", elementwise::max),
    ("MaxPool", pool::max_pool),
    ("Mean", elementwise::mean),
    ("MeanVarianceNormalization", norm::mean_variance_normalization),
    ("Min", elementwise::min),
    ("Mod", elementwise::modulo),
    ("NegativeLogLikelihoodLoss", loss::negative_log_likelihood),
    ("OneHot", indexing::one_hot),
    ("PRelu", elementwise::prelu),
    ("Pad", movement::pad),
    ("Pow", elementwise::pow),
    ("RMSNormalization", norm::rms_normalization),
    ("RNN", recurrent::rnn),
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
    ("Selu", elementwise::selu),
    ("Shape", sources::shape),
    ("Shrink", elementwise::shrink),
    ("Size", sources::shape),
    ("Slice", movement::slice),
    ("Softmax", norm::softmax),
    ("SoftmaxCrossEntropyLoss", loss::softmax_cross_entropy),
    ("Softsign", elementwise::softsign),
    ("SpaceToDepth", movement::space_to_depth),
    ("Split", movement::split),
    ("Squeeze", movement::squeeze),
    ("Sum", elementwise::sum),
    ("Tan", elementwise::tan),
    ("ThresholdedRelu", elementwise::thresholded_relu),
    ("Tile", movement::tile),
    ("Transpose", movement::transpose),
    ("Trilu", indexing::trilu),
    ("Unsqueeze", movement::unsqueeze),
    ("Upsample", resize::upsample),
];

/// The importer of an operator of the standard set.
pub(crate) fn find(op_type: &str) -> Option<Import> {
    let listed = TABLE.binary_search_by_key(&op_type, |(name, _)| name).ok().map(|at| TABLE[at].1);
    listed.or_else(|| ScalarFn::from_onnx(op_type).map(|_| elementwise::scalar as Import))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_table_is_sorted() {
        assert!(super::TABLE.is_sorted_by_key(|(name, _)| *name));
    }
}
