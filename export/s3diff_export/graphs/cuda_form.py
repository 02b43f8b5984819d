"""The form of a stage for ONNX Runtime on CUDA: its own fused operators, and channels last.

Convolutions read and write `[N, H, W, C]` (NhwcConv), as Hopper's and Ampere's matrix units want them; group
norm with SiLU is one operator (GroupNorm), attention another (MultiHeadAttention), and so are the gated GELU
with its bias. Between them the layout stays, so that no tensor is turned but at the edges of the stage.
All are operators of ONNX Runtime's domain `com.microsoft`; what has no such form stays as it was.

A form is a small file: it reads the weights of the plain graph from the file beside it, and turns them by
nodes that ONNX Runtime folds when it loads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common
from onnx_ir.tape import Tape

from s3diff_runtime.bundle.opening import cuda_form_of

DOMAIN = "com.microsoft"
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_SPLIT_GELU_WIDTHS = (2560, 5120, 6144, 10240)  # that BiasSplitGelu's kernel knows
_CONVOLVING = ("pads", "strides", "dilations", "kernel_shape", "group")
_ELEMENTWISE = frozenset({"Add", "Mul", "Sub", "Div", "Sigmoid", "Cast", "Relu", "Erf"})

Attributes = dict[str, int | float | ir.Attr]


def write_cuda_form(plain: Path) -> None:
    """Write the form of a graph beside it, where its weights are fp16."""
    model = ir.load(plain)
    if any(weight.dtype == ir.DataType.FLOAT16 for weight in model.graph.initializers.values()):
        to_cuda_form(model)
        ir.save(model, plain.with_name(cuda_form_of(plain.name)))


def to_cuda_form(model: ir.Model) -> None:
    """Rewrite a stage's graph, in place. Inputs and outputs stay as they are."""
    _fuse_attention(model.graph)
    _fuse_gates(model.graph)
    _Layout(model.graph).turn()
    model.opset_imports[DOMAIN] = 1
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initializer; one that has this name already is taken for the same."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The elements of a constant."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    """The one node that reads a value, if it is of a kind and the value is no output."""
    users = value.consumers()
    return users[0] if len(users) == 1 and users[0].op_type == kind and not value.is_graph_output() else None


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes["perm"].as_ints())


def _replace(old: ir.Value, new: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _fuse_attention(graph: ir.Graph) -> None:
    """`softmax(Q K^T) V` by heads, as `graphs.attention` writes it, into MultiHeadAttention."""
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        scores = _producer(softmax.inputs[0], "MatMul")
        attended = _only_user(softmax.outputs[0], "MatMul")
        turned = attended and _only_user(attended.outputs[0], "Transpose")
        joined = turned and _only_user(turned.outputs[0], "Reshape")
        if scores is None or attended is None or joined is None:
            continue
        tape = Tape()
        queries, sides = _split_heads(scores.inputs[0], (0, 2, 1, 3))
        if queries is None or sides is None:
            continue
        heads, width = int(sides[2]), int(sides[3])
        if sides[0]:  # prompts: their images are one sequence
            shape = np.array([sides[0], -1, heads * width], np.int64)
            name = f"{joined.outputs[0].name}/queries"
            queries = tape.op("Reshape", [queries, _constant(graph, name, shape)])
        keys = _tokens_of(graph, tape, scores.inputs[1], (0, 2, 3, 1))
        values = _tokens_of(graph, tape, attended.inputs[1], (0, 2, 1, 3))
        if keys is None or values is None:
            continue
        how: Attributes = {"num_heads": heads, "scale": 1.0}
        fused = tape.op("MultiHeadAttention", [queries, keys, values], how, domain=DOMAIN)
        graph.insert_before(joined, tape.nodes)
        _replace(joined.outputs[0], fused)


def _split_heads(
    value: ir.Value | None, perm: tuple[int, ...]
) -> tuple[ir.Value | None, NDArray[np.generic] | None]:
    """What was split into `[N, T, heads, width]` and turned by `perm`, and the sides of the split."""
    turned = _producer(value, "Transpose")
    split = turned and _perm(turned) == perm and _producer(turned.inputs[0], "Reshape")
    sides = _array(split.inputs[1]) if split else None
    if not split or sides is None or sides.size != 4:
        return None, None
    return split.inputs[0], sides


def _tokens_of(graph: ir.Graph, tape: Tape, value: ir.Value | None, perm: tuple[int, ...]) -> ir.Value | None:
    """Keys or values as `[N, S, C]`, from what was split into heads or folded into a constant."""
    folded = _array(value)
    if value is None or folded is None:
        return _split_heads(value, perm)[0]
    tokens = tape.op("Transpose", [value], {"perm": np.argsort(perm).tolist()})
    shape = _constant(graph, "joined_heads", np.array([0, 0, -1], np.int64))
    return tape.op("Reshape", [tokens, shape])


def _fuse_gates(graph: ir.Graph) -> None:
    """Bias, split, GELU of one half, product: into BiasSplitGelu, for the widths that it knows."""
    for split in [node for node in graph if node.op_type == "Split" and len(node.outputs) == 2]:
        biased = _producer(split.inputs[0], "Add")
        product = _only_user(split.outputs[0], "Mul")
        if biased is None or product is None:
            continue
        linear, bias = sorted(biased.inputs, key=lambda value: _array(value) is not None)
        array = _array(bias)
        gated = any(node.op_type == "Div" for node in split.outputs[1].consumers())
        if array is not None and array.shape[-1] in _SPLIT_GELU_WIDTHS and gated:
            tape = Tape()
            fused = tape.op("BiasSplitGelu", [linear, bias], domain=DOMAIN)
            graph.insert_before(product, tape.nodes)
            _replace(product.outputs[0], fused)


class _Layout:
    """Turns a graph's pictures `[N, C, H, W]` into `[N, H, W, C]`, node by node in their order.

    `last` has the turned form of every value that was turned. A node that has no such form reads the value
    turned back.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.tape = graph, Tape()
        self.last: dict[ir.Value, ir.Value] = {}
        self.first: dict[ir.Value, ir.Value] = {}
        self.turners: dict[str, Callable[[ir.Node], ir.Value | None]] = {
            "Conv": self._convolution,
            "InstanceNormalization": self._group_norm,
            "Concat": self._concat,
            "Resize": self._resize,
            "Pad": self._pad,
            "Shape": self._shape,
            "Transpose": self._transpose,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
        }

    def turn(self) -> None:
        """Go through all nodes; what reads a turned value and was not turned itself, reads it turned back."""
        left = []
        for node in list(self.graph):
            self.tape, turner = Tape(), self.turners.get(node.op_type)
            if not (turner and turner(node)):
                left.append(node)
            self.graph.insert_before(node, self.tape.nodes)
        for node in left:
            self.tape = Tape()
            for index, value in enumerate(node.inputs):
                if value in self.last:
                    node.replace_input_with(index, self._turned_back(value))
            self.graph.insert_before(node, self.tape.nodes)
        for index, value in enumerate(list(self.graph.outputs)):
            if value in self.last:
                node = ir.node("Transpose", [self.last[value]], {"perm": _TO_FIRST})
                self.graph.append(node)
                turned = node.outputs[0]
                turned.name, value.name = value.name, f"{value.name}/first"
                turned.shape, turned.type = value.shape, value.type
                self.graph.outputs[index] = turned

    def _turned_back(self, value: ir.Value) -> ir.Value:
        if value not in self.first:
            self.first[value] = self.tape.op("Transpose", [self.last[value]], {"perm": _TO_FIRST})
        return self.first[value]

    def _channels_last(self, value: ir.Value | None) -> ir.Value:
        if value is None:
            raise ValueError("a convolution or norm without its input")
        if value not in self.last:
            self.last[value] = self.tape.op("Transpose", [value], {"perm": _TO_LAST})
        return self.last[value]

    def _flat(self, value: ir.Value | None) -> ir.Value:
        """`[C, 1, 1]` as `[C]`, which broadcasts over channels that are last."""
        shape = _constant(self.graph, "flat", np.array([-1], np.int64))
        return self.tape.op("Reshape", [value, shape])

    def _convolution(self, node: ir.Node) -> ir.Value | None:
        if len(node.attributes["kernel_shape"].as_ints()) != 2:
            return None
        x = self._channels_last(node.inputs[0])
        turned = self.tape.op("Transpose", [node.inputs[1]], {"perm": _TO_LAST})
        how = {name: node.attributes[name] for name in _CONVOLVING}
        convolved = self.tape.op("NhwcConv", [x, turned, *node.inputs[2:]], how, domain=DOMAIN)
        return self._set(node.outputs[0], convolved)

    def _group_norm(self, node: ir.Node) -> ir.Value | None:
        """Reshape, instance norm, reshape, weight, bias; and SiLU where nothing else reads the sum."""
        split = _producer(node.inputs[0], "Reshape")
        sides = _array(split.inputs[1]) if split else None
        joined = _only_user(node.outputs[0], "Reshape")
        scaled = joined and _only_user(joined.outputs[0], "Mul")
        shifted = scaled and _only_user(scaled.outputs[0], "Add")
        if split is None or sides is None or sides.size != 3 or scaled is None or shifted is None:
            return None
        if any(_array(each.inputs[1]) is None for each in (scaled, shifted)):
            return None
        end, activated = shifted.outputs[0], 0
        kinds = sorted(user.op_type for user in end.consumers())
        if kinds == ["Mul", "Sigmoid"] and not end.is_graph_output():
            sigmoid = next(user for user in end.consumers() if user.op_type == "Sigmoid")
            product = next(user for user in end.consumers() if user.op_type == "Mul")
            if _only_user(sigmoid.outputs[0], "Mul") is product:
                end, activated = product.outputs[0], 1
        x = self._channels_last(split.inputs[0])
        parameters = [
            self.tape.op("Cast", [self._flat(each.inputs[1])], {"to": ir.DataType.FLOAT.value})
            for each in (scaled, shifted)
        ]
        how: Attributes = {
            "groups": int(sides[1]),
            "epsilon": node.attributes["epsilon"],
            "activation": activated,
            "channels_last": 1,
        }
        return self._set(end, self.tape.op("GroupNorm", [x, *parameters], how, domain=DOMAIN))

    def _elementwise(self, node: ir.Node) -> ir.Value | None:
        if node.outputs[0] in self.last:  # part of a fused node
            return self.last[node.outputs[0]]
        inputs = [self._turned_operand(value) for value in node.inputs]
        if None in inputs or not any(value in self.last for value in node.inputs):
            return None
        array = _array(node.inputs[1]) if node.op_type in ("Div", "Mul") else None
        if array is not None and array.size == 1 and array.item() == 1:
            return self._set(node.outputs[0], inputs[0])  # type: ignore[arg-type]
        return self._set(node.outputs[0], self.tape.op(node.op_type, inputs, node.attributes))

    def _turned_operand(self, value: ir.Value | None) -> ir.Value | None:
        """A turned value, or a constant that broadcasts over it; else None."""
        if value in self.last:
            return self.last[value]
        array = _array(value)
        if array is not None and array.size == 1:
            return value
        by_channel = array is not None and array.ndim == 3 and array.shape[1:] == (1, 1)
        return self._flat(value) if by_channel else None

    def _concat(self, node: ir.Node) -> ir.Value | None:
        if not all(value in self.last for value in node.inputs):
            return None
        axis = _TO_FIRST[node.attributes["axis"].as_int()]
        inputs = [self.last[value] for value in node.inputs if value is not None]
        return self._set(node.outputs[0], self.tape.op("Concat", inputs, {"axis": axis}))

    def _resize(self, node: ir.Node) -> ir.Value | None:
        value, *others = node.inputs
        scales = _array(others[1]) if len(others) == 2 else None
        if value not in self.last or scales is None:
            return None
        turned = _constant(self.graph, f"{node.name}/scales", scales[list(_TO_LAST)])
        resized = self.tape.op("Resize", [self.last[value], None, turned], node.attributes)
        return self._set(node.outputs[0], resized)

    def _pad(self, node: ir.Node) -> ir.Value | None:
        value, amounts = node.inputs[0], _array(node.inputs[1])
        if value not in self.last or amounts is None or amounts.size != 8:
            return None
        order = amounts.reshape(2, 4)[:, list(_TO_LAST)].reshape(-1)
        turned = _constant(self.graph, f"{node.name}/pads", order)
        inputs = [self.last[value], turned, *node.inputs[2:3]]
        return self._set(node.outputs[0], self.tape.op("Pad", inputs, node.attributes))

    def _shape(self, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        if value not in self.last or node.attributes:
            return None
        order = _constant(self.graph, "channels_first", np.array(_TO_FIRST, np.int64))
        sides = self.tape.op("Gather", [self.tape.op("Shape", [self.last[value]]), order], {"axis": 0})
        _replace(node.outputs[0], sides)
        return sides

    def _transpose(self, node: ir.Node) -> ir.Value | None:
        value = node.inputs[0]
        if value in self.last and _perm(node) == _TO_LAST:
            _replace(node.outputs[0], self.last[value])
            return self.last[value]
        if _perm(node) == _TO_FIRST and value is not None and value not in self.last:
            return self._set(node.outputs[0], value)
        return None

    def _set(self, value: ir.Value, turned: ir.Value) -> ir.Value:
        self.last[value] = turned
        return turned
