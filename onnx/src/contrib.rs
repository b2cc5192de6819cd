//! Operators of ONNX Runtime's own set, as its quantiser writes them: functions of standard operators.
//!
//! What they compute is told by that set's documentation of operators (`com.microsoft`): real numbers between a
//! `DequantizeLinear` of each operand and a `QuantizeLinear` of the result. An attribute that is left out is the standard
//! operator's default: so the axis of a softmax of old models, which had none in the model that was quantised either.

use crate::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto};

/// The domain of these operators.
const DOMAIN: &str = "com.microsoft";
/// The version of the standard operators that functions are written in.
const OPSET: i64 = 13;

/// A standard operator of quantised operands: its name and the standard one's, the operands of which each is followed by
/// its scale and zero point, and where the result's scale is, followed by its zero point.
type Quantised = (&'static str, &'static str, &'static [usize], usize);

const QUANTISED: &[Quantised] = &[
    ("QLinearAdd", "Add", &[0, 3], 6),
    ("QLinearAveragePool", "AveragePool", &[0], 3),
    ("QLinearGlobalAveragePool", "GlobalAveragePool", &[0], 3),
    ("QLinearLeakyRelu", "LeakyRelu", &[0], 3),
    ("QLinearMul", "Mul", &[0, 3], 6),
    ("QLinearSigmoid", "Sigmoid", &[0], 3),
    ("QLinearSoftmax", "Softmax", &[0], 3),
];

/// The names of these operators, with their domain.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let listed = QUANTISED.iter().map(|(name, ..)| *name);
    listed.chain(["QGemm", "QLinearConcat"]).map(|name| format!("{DOMAIN}.{name}"))
}

/// The function that a node of this set calls; `None` for other nodes, and for forms that none says: images whose channels
/// come last.
pub(crate) fn function(node: &NodeProto) -> Option<FunctionProto> {
    if node.domain != DOMAIN || int(node, "channels_last").is_some_and(|i| i != 0) {
        return None;
    }
    let mut body = Body { node, made: Vec::new() };
    let version = match node.op_type.as_str() {
        "QGemm" => body.gemm(),
        "QLinearConcat" => body.concat(),
        name => body.quantised(QUANTISED.iter().find(|(own, ..)| *own == name)?),
    };
    Some(FunctionProto {
        name: node.op_type.clone(),
        domain: DOMAIN.into(),
        input: (0..node.input.len()).map(operand).collect(),
        output: vec!["y".into()],
        node: body.made,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version }],
        ..FunctionProto::default()
    })
}

/// The name of an operand in a function.
fn operand(i: usize) -> String {
    format!("x{i}")
}

fn int(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

/// The nodes of a function for one caller.
struct Body<'n> {
    node: &'n NodeProto,
    made: Vec<NodeProto>,
}

impl Body<'_> {
    /// Operand `i`, or no name where the caller leaves it out.
    fn given(&self, i: usize) -> String {
        if self.node.input.get(i).is_some_and(|name| !name.is_empty()) { operand(i) } else { String::new() }
    }

    /// Applies an operator; the name of its result.
    fn apply(&mut self, op: &str, input: Vec<String>, attribute: Vec<AttributeProto>) -> String {
        let output = format!("t{}", self.made.len());
        self.made.push(NodeProto {
            op_type: op.into(),
            name: format!("{}/{op}", self.node.name),
            input,
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// The real numbers of operand `i`.
    fn real(&mut self, i: usize) -> String {
        let input = [i, i + 1, i + 2].map(|i| self.given(i));
        self.apply("DequantizeLinear", input.into(), Vec::new())
    }

    /// Quantises the function's result by the scale at `i`.
    fn result(&mut self, x: String, i: usize) {
        let input = vec![x, self.given(i), self.given(i + 1)];
        self.apply("QuantizeLinear", input, Vec::new());
        self.ends();
    }

    /// What was made last is the result.
    fn ends(&mut self) {
        if let Some(last) = self.made.last_mut() {
            last.output = vec!["y".into()];
        }
    }

    fn quantised(&mut self, (_, standard, operands, scale): &Quantised) -> i64 {
        let reals = operands.iter().map(|i| self.real(*i)).collect();
        let own = |a: &&AttributeProto| a.name == "opset" || a.name == "channels_last";
        let attributes = self.node.attribute.iter().filter(|a| !own(a)).cloned().collect();
        let y = self.apply(standard, reals, attributes);
        self.result(y, *scale);
        int(self.node, "opset").filter(|version| *version > 0).map_or(OPSET, |version| version.max(10))
    }

    /// The result's scale and zero point come first.
    fn concat(&mut self) -> i64 {
        let parts = (2..self.node.input.len()).step_by(3).map(|i| self.real(i)).collect();
        let axis = self.node.attribute.iter().filter(|a| a.name == "axis").cloned().collect();
        let y = self.apply("Concat", parts, axis);
        self.result(y, 0);
        OPSET
    }

    /// `alpha (a - za) (b - zb) sa sb + c sa sb alpha`, of which the products and `c` are sums of integers.
    fn gemm(&mut self) -> i64 {
        let turned = |body: &mut Self, i: usize, name: &str| match int(body.node, name) {
            Some(turns) if turns != 0 => body.apply("Transpose", vec![operand(i)], Vec::new()),
            _ => operand(i),
        };
        let (a, b) = (turned(self, 0, "transA"), turned(self, 3, "transB"));
        let mut sum = self.apply("MatMulInteger", vec![a, b, self.given(2), self.given(5)], Vec::new());
        if !self.given(6).is_empty() {
            sum = self.apply("Add", vec![sum, operand(6)], Vec::new());
        }
        let float = AttributeProto { name: "to".into(), i: 1, ..AttributeProto::default() };
        let real = self.apply("Cast", vec![sum], vec![float]);
        let mut scale = self.apply("Mul", vec![operand(1), operand(4)], Vec::new());
        if let Some(alpha) = self.node.attribute.iter().find(|a| a.name == "alpha") {
            let value = AttributeProto { name: "value_float".into(), f: alpha.f, ..AttributeProto::default() };
            let alpha = self.apply("Constant", Vec::new(), vec![value]);
            scale = self.apply("Mul", vec![scale, alpha], Vec::new());
        }
        let y = self.apply("Mul", vec![real, scale], Vec::new());
        match self.given(7).is_empty() {
            true => self.ends(),
            false => self.result(y, 7),
        }
        OPSET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_bytes;
    use crate::proto::{
        DimensionProto, GraphProto, ModelProto, ShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    };
    use crate::tensor::to_proto;
    use egret_ir::{DType, ScalarValue, Tensor, Tensors, interpret};
    use prost::Message;

    fn bytes(shape: &[usize], values: &[i128]) -> Tensor {
        let mut tensor = Tensor::zeros(DType::U8, shape);
        values.iter().enumerate().for_each(|(i, v)| tensor.set(i, ScalarValue::Int(*v)));
        tensor
    }

    fn number(value: f32) -> Tensor {
        Tensor::new(&[], &[value]).expect("one number")
    }

    /// The result of one node on constants and the input `x`.
    fn run(op: &str, operands: &[(&str, Tensor)], x: Tensor, attribute: Vec<AttributeProto>) -> Vec<f64> {
        let dim = |d: &usize| DimensionProto { dim_value: Some(*d as i64), dim_param: None };
        let shape = ShapeProto { dim: x.shape().iter().map(dim).collect() };
        let info = |name: &str, shape| ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type: 2, shape }) }),
        };
        let node = NodeProto {
            op_type: op.into(),
            domain: DOMAIN.into(),
            input: operands.iter().map(|(name, _)| name.to_string()).collect(),
            output: vec!["y".into()],
            attribute,
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node],
            input: vec![info("x", Some(shape))],
            initializer: operands.iter().filter(|(name, _)| *name != "x").map(|(name, t)| to_proto(name, t)).collect(),
            output: vec![info("y", None)],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            ..ModelProto::default()
        };
        let graph = from_bytes(&model.encode_to_vec()).unwrap_or_else(|e| panic!("{e}"));
        let given = Tensors::from([("x".to_string(), x)]);
        let outputs = interpret(&graph, &given, &Tensors::new()).unwrap_or_else(|e| panic!("{e}")).outputs;
        outputs[0].1.values().map(ScalarValue::as_f64).collect()
    }

    fn float(name: &str, f: f32) -> AttributeProto {
        AttributeProto { name: name.into(), f, ..AttributeProto::default() }
    }

    fn whole(name: &str, i: i64) -> AttributeProto {
        AttributeProto { name: name.into(), i, ..AttributeProto::default() }
    }

    /// Figures by hand: (20 − 10)·0.5 = 5 and so on.
    #[test]
    fn real_numbers_between_quantised_ones() {
        let x = || bytes(&[1, 2, 2], &[20, 10, 0, 255]);
        let (half, ten) = (number(0.5), bytes(&[], &[10]));
        let operand = |name: &'static str, t: Tensor| (name, t);
        let unary = |op: &str, attribute: Vec<AttributeProto>, scale: f32| {
            let operands = [
                operand("x", x()),
                operand("s", half.clone()),
                operand("z", ten.clone()),
                operand("ys", number(scale)),
            ];
            run(op, &operands, x(), attribute)
        };
        // 5, 0, −5, 122.5 halved below zero
        assert_eq!(unary("QLinearLeakyRelu", vec![float("alpha", 0.5)], 0.25), [20.0, 0.0, 0.0, 255.0]);
        assert_eq!(unary("QLinearSigmoid", vec![], 1.0 / 256.0), [254.0, 128.0, 2.0, 255.0]);
        assert_eq!(unary("QLinearGlobalAveragePool", vec![], 1.0), [2.0, 59.0]);
        assert_eq!(
            unary("QLinearSoftmax", vec![whole("axis", -1), whole("opset", 13)], 1.0 / 256.0),
            [254.0, 2.0, 0.0, 255.0]
        );
        let other = bytes(&[2], &[4, 8]);
        let two = |op: &str| {
            let b = [operand("b", other.clone()), operand("bs", number(0.25)), operand("bz", bytes(&[], &[0]))];
            let a = [operand("x", x()), operand("s", half.clone()), operand("z", ten.clone())];
            let y = [operand("ys", half.clone()), operand("yz", bytes(&[], &[3]))];
            run(op, &[a.as_slice(), &b, &y].concat(), x(), vec![])
        };
        // b is 1, 2
        assert_eq!(two("QLinearAdd"), [15.0, 7.0, 0.0, 252.0]);
        assert_eq!(two("QLinearMul"), [13.0, 3.0, 0.0, 255.0]);
        let parts = [
            operand("ys", half.clone()),
            operand("yz", bytes(&[], &[3])),
            operand("x", x()),
            operand("s", half.clone()),
            operand("z", ten.clone()),
            operand("b", bytes(&[1, 2, 1], &[4, 8])),
            operand("bs", number(0.25)),
            operand("bz", bytes(&[], &[0])),
        ];
        assert_eq!(run("QLinearConcat", &parts, x(), vec![whole("axis", 2)]), [13.0, 3.0, 5.0, 0.0, 248.0, 7.0]);
    }

    #[test]
    fn products_of_quantised_matrices() {
        let x = bytes(&[1, 2], &[12, 9]);
        let mut bias = Tensor::zeros(DType::I32, &[2]);
        [40, -4].iter().enumerate().for_each(|(i, v)| bias.set(i, ScalarValue::Int(*v)));
        let operands = [
            ("x", x.clone()),
            ("as", number(0.5)),
            ("az", bytes(&[], &[10])),
            ("b", bytes(&[2, 2], &[1, 2, 3, 5])),
            ("bs", number(2.0)),
            ("bz", bytes(&[], &[1])),
            ("c", bias),
        ];
        // (2, −1) by rows (0, 1) and (2, 4) of b less its zero point: −1, 0; with the bias 39, −4; by 0.5 · 2 · 3
        let attributes = || vec![whole("transB", 1), float("alpha", 3.0)];
        assert_eq!(run("QGemm", &operands, x.clone(), attributes()), [117.0, -12.0]);
        let quantised = [operands.as_slice(), &[("ys", number(1.5)), ("yz", bytes(&[], &[20]))]].concat();
        assert_eq!(run("QGemm", &quantised, x, attributes()), [98.0, 12.0]);
    }

    #[test]
    fn other_forms_and_operators_have_none() {
        let node = |op: &str, attribute| NodeProto {
            op_type: op.into(),
            domain: DOMAIN.into(),
            attribute,
            ..NodeProto::default()
        };
        assert!(function(&node("QLinearAveragePool", vec![whole("channels_last", 1)])).is_none());
        assert!(function(&node("FusedConv", vec![])).is_none());
        assert!(function(&NodeProto { domain: String::new(), ..node("QLinearAdd", vec![]) }).is_none());
        assert!(names().all(|name| function(&node(name.rsplit('.').next().expect("a name"), vec![])).is_some()));
    }
}
