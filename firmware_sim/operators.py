"""The operators that the simulator knows, by what they do: what is not in KNOWN has no cost rule."""

from __future__ import annotations

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout"}
PLAIN = set(
    "Add Sub Mul Div Max Min Neg Abs Relu LeakyRelu PRelu Clip Where Equal Greater Less GreaterOrEqual "
    "LessOrEqual And Or Not Xor Floor Ceil Round Cast Sign Mod IsNaN IsInf Sum HardSigmoid HardSwish "
    "CumSum Trilu QLinearAdd QLinearMul".split()
)
TRANSCENDENTAL = set(
    "Exp Log Sqrt Reciprocal Sigmoid Tanh Erf Gelu FastGelu QuickGelu BiasGelu Pow Softplus Softsign Elu "
    "Selu Celu Sin Cos Mish QLinearSigmoid".split()
)
SOFTMAX = {"Softmax", "LogSoftmax", "QLinearSoftmax"}
REDUCE = set(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL2 ReduceSumSquare ReduceLogSumExp ArgMax "
    "ArgMin GlobalAveragePool GlobalMaxPool AveragePool MaxPool QLinearGlobalAveragePool "
    "QLinearAveragePool QLinearReduceMean".split()
)
NORM = set(
    "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization BatchNormalization "
    "InstanceNormalization GroupNormalization RMSNormalization".split()
)
MOVE = set(
    "Concat Slice Split Transpose Expand Pad Tile ConstantOfShape Range QLinearConcat EyeLike Resize "
    "DepthToSpace SpaceToDepth".split()
)
GATHER = set("Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot".split())
QUANTISE = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
PRODUCTS = {
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}
PRODUCTS |= {"QLinearMatMul", "QGemm"}
CONVOLUTIONS = {"Conv", "FusedConv", "ConvInteger", "QLinearConv"}
INTEGER_OPERATORS = {
    "DynamicQuantizeLSTM",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
}
INTEGER_OPERATORS |= {"QGemm", "ConvInteger", "QLinearConv"}
KNOWN = (
    VIEWS
    | PLAIN
    | TRANSCENDENTAL
    | SOFTMAX
    | REDUCE
    | NORM
    | MOVE
    | GATHER
    | QUANTISE
    | PRODUCTS
    | CONVOLUTIONS
    | set(RECURRENT_GATES)
)

# Operators that become integer kernels when every float operand comes from DequantizeLinear.
ABSORBS_QDQ = set(
    "Conv MatMul Gemm Add Mul Concat Sigmoid Softmax AveragePool GlobalAveragePool MaxPool Relu LeakyRelu "
    "Clip Transpose Slice Gather Split Pad Expand Where ReduceMean Resize Tanh".split()
) | (VIEWS - {"Dropout"})
PARAMETER_SLOTS = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "DynamicQuantizeLSTM": (8, 9, 10, 11)}
