//! The messages of an ONNX file, with the fields that are read; others are skipped.
//!
//! They are prost messages: a program that makes models encodes them with prost, and [`crate::from_bytes`] reads them.

/// Declares messages whose fields prost reads by tag.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* [$($kind:tt)*] $field:ident : $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name {
            $($(#[$field_doc])* #[prost($($kind)*)] pub $field: $ty,)*
        }
    )*};
}

messages! {
    /// A model.
    ModelProto {
        /// Version of the format.
        [int64, tag = "1"] ir_version: i64,
        /// The program that made it.
        [string, tag = "2"] producer_name: String,
        /// That program's version.
        [string, tag = "3"] producer_version: String,
        /// The main graph.
        [message, optional, tag = "7"] graph: Option<GraphProto>,
        /// Versions of the operator sets.
        [message, repeated, tag = "8"] opset_import: Vec<OperatorSetIdProto>,
        /// Functions that nodes may call.
        [message, repeated, tag = "25"] functions: Vec<FunctionProto>,
    }
    /// A version of an operator set.
    OperatorSetIdProto {
        /// Empty for the standard set.
        [string, tag = "1"] domain: String,
        /// Version.
        [int64, tag = "2"] version: i64,
    }
    /// A graph.
    GraphProto {
        /// Nodes in topological order.
        [message, repeated, tag = "1"] node: Vec<NodeProto>,
        /// Name.
        [string, tag = "2"] name: String,
        /// Constant tensors.
        [message, repeated, tag = "5"] initializer: Vec<TensorProto>,
        /// Constant tensors given by their elements that are not zero.
        [message, repeated, tag = "15"] sparse_initializer: Vec<SparseTensorProto>,
        /// Inputs; in old files also initializers.
        [message, repeated, tag = "11"] input: Vec<ValueInfoProto>,
        /// Outputs.
        [message, repeated, tag = "12"] output: Vec<ValueInfoProto>,
    }
    /// An operator applied to values.
    NodeProto {
        /// Operands by name; empty where absent.
        [string, repeated, tag = "1"] input: Vec<String>,
        /// Results by name; empty where not read.
        [string, repeated, tag = "2"] output: Vec<String>,
        /// Name, perhaps empty.
        [string, tag = "3"] name: String,
        /// Operator.
        [string, tag = "4"] op_type: String,
        /// Attributes.
        [message, repeated, tag = "5"] attribute: Vec<AttributeProto>,
        /// Operator set.
        [string, tag = "7"] domain: String,
    }
    /// A function that nodes may call.
    FunctionProto {
        /// Operator name.
        [string, tag = "1"] name: String,
        /// Formal operands.
        [string, repeated, tag = "4"] input: Vec<String>,
        /// Formal results.
        [string, repeated, tag = "5"] output: Vec<String>,
        /// Attributes with defaults.
        [message, repeated, tag = "11"] attribute_proto: Vec<AttributeProto>,
        /// Body.
        [message, repeated, tag = "7"] node: Vec<NodeProto>,
        /// Versions of the operator sets of the body.
        [message, repeated, tag = "9"] opset_import: Vec<OperatorSetIdProto>,
        /// Operator set.
        [string, tag = "10"] domain: String,
    }
    /// An attribute.
    AttributeProto {
        /// Name.
        [string, tag = "1"] name: String,
        /// A float.
        [float, tag = "2"] f: f32,
        /// An integer.
        [int64, tag = "3"] i: i64,
        /// A text.
        [bytes = "vec", tag = "4"] s: Vec<u8>,
        /// A tensor.
        [message, optional, tag = "5"] t: Option<TensorProto>,
        /// A graph.
        [message, optional, tag = "6"] g: Option<GraphProto>,
        /// Floats.
        [float, repeated, tag = "7"] floats: Vec<f32>,
        /// Integers.
        [int64, repeated, tag = "8"] ints: Vec<i64>,
        /// Texts.
        [bytes = "vec", repeated, tag = "9"] strings: Vec<Vec<u8>>,
        /// A tensor given by its elements that are not zero.
        [message, optional, tag = "22"] sparse_tensor: Option<SparseTensorProto>,
        /// Which of the fields holds the value: 1 a float, 2 an integer, 3 a text, 4 a tensor, 5 a graph, 6 floats,
        /// 7 integers, 8 texts. Not read.
        [int32, tag = "20"] r#type: i32,
        /// In a function: the name of the caller's attribute that stands here.
        [string, tag = "21"] ref_attr_name: String,
    }
    /// A tensor.
    TensorProto {
        /// Extents.
        [int64, repeated, tag = "1"] dims: Vec<i64>,
        /// Element type.
        [int32, tag = "2"] data_type: i32,
        /// Elements of f32.
        [float, repeated, tag = "4"] float_data: Vec<f32>,
        /// Elements of small integers, bool, f16 and bf16.
        [int32, repeated, tag = "5"] int32_data: Vec<i32>,
        /// Elements of i64.
        [int64, repeated, tag = "7"] int64_data: Vec<i64>,
        /// Name.
        [string, tag = "8"] name: String,
        /// Elements as little-endian bytes.
        [bytes = "vec", tag = "9"] raw_data: Vec<u8>,
        /// Elements of f64.
        [double, repeated, tag = "10"] double_data: Vec<f64>,
        /// Elements of u32 and u64.
        [uint64, repeated, tag = "11"] uint64_data: Vec<u64>,
        /// Where elements in another file are.
        [message, repeated, tag = "13"] external_data: Vec<StringStringEntryProto>,
        /// 1 when the elements are in another file.
        [int32, tag = "14"] data_location: i32,
    }
    /// A tensor given by its elements that are not zero.
    SparseTensorProto {
        /// Those elements; the name is that of the whole tensor.
        [message, optional, tag = "1"] values: Option<TensorProto>,
        /// Their places: row-major, or one index an axis.
        [message, optional, tag = "2"] indices: Option<TensorProto>,
        /// Extents.
        [int64, repeated, tag = "3"] dims: Vec<i64>,
    }
    /// A key and its value.
    StringStringEntryProto {
        /// Key.
        [string, tag = "1"] key: String,
        /// Value.
        [string, tag = "2"] value: String,
    }
    /// The name and type of a value.
    ValueInfoProto {
        /// Name.
        [string, tag = "1"] name: String,
        /// Type.
        [message, optional, tag = "2"] r#type: Option<TypeProto>,
    }
    /// A type; `None` when it is no tensor.
    TypeProto {
        /// A tensor type.
        [message, optional, tag = "1"] tensor_type: Option<TensorTypeProto>,
    }
    /// Element type and shape.
    TensorTypeProto {
        /// Element type.
        [int32, tag = "1"] elem_type: i32,
        /// Extents.
        [message, optional, tag = "2"] shape: Option<ShapeProto>,
    }
    /// Extents.
    ShapeProto {
        /// Extents, outermost first.
        [message, repeated, tag = "1"] dim: Vec<DimensionProto>,
    }
    /// An extent: a number, a name, or unknown.
    DimensionProto {
        /// The number.
        [int64, optional, tag = "1"] dim_value: Option<i64>,
        /// The name.
        [string, optional, tag = "2"] dim_param: Option<String>,
    }
}
