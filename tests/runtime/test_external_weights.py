"""Which files a graph reads weights from, and what becomes of a bundle whose graph reads others."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.fake_bundle import edit_manifest, file_records, write_fake_bundle

from s3diff_runtime.bundle.external_weights import external_files
from s3diff_runtime.errors import BundleError
from s3diff_runtime.upscaler import Upscaler

UNET = "onnx/unet.onnx"


def external(name: str, location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_locations_are_found_wherever_a_tensor_can_be() -> None:
    inner = helper.make_graph([], "inner", [], [], [external("inner", "branch.bin")])
    constant = helper.make_node("Constant", [], ["c"], value=external("value", "constant.bin"))
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    sparse = helper.make_sparse_tensor(external("values", "sparse.bin"), external("indices", "i.bin"), [2])
    graph = helper.make_graph(
        [constant, branch], "g", [], [], [external("w", "w.bin")], sparse_initializer=[sparse]
    )
    function = helper.make_function(
        "local", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=external("f", "f.bin"))], []
    )
    model = helper.make_model(graph, functions=[function])
    expected = {"w.bin", "constant.bin", "branch.bin", "sparse.bin", "i.bin", "f.bin"}
    assert external_files(model.SerializeToString()) == expected


def test_entries_in_any_order_and_with_long_numbers() -> None:
    entry = b"\x12\x81\x00x\x0a\x88\x80\x00location"  # value first, lengths in more bytes than they need
    tensor = b"\x6a" + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x08\x08\x3a" + bytes([len(graph)]) + graph
    assert onnx.load_from_string(model).graph.initializer[0].external_data[0].value == "x"
    assert external_files(model) == {"x"}


@given(st.binary(max_size=200))
def test_any_bytes_end_in_names_or_a_refusal(content: bytes) -> None:
    with suppress(ValueError):
        assert all(isinstance(name, str) for name in external_files(content))


def length_of(content: bytes) -> bytes:
    size = len(content)
    return bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])


def test_nesting_has_an_end() -> None:
    content = b""
    for _ in range(500):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # a graph in an attribute of a node of a graph
            content = tag + length_of(content) + content
    with pytest.raises(ValueError, match=r"nested deeper than 32"):
        external_files(
            b"\x3a"
            + bytes([len(content) & 0x7F | 0x80, len(content) >> 7 & 0x7F | 0x80, len(content) >> 14])
            + content
        )


@pytest.mark.parametrize(
    "location", [".hidden.data", "below/weights.data", "../outside.data", "../../outside.data"]
)
def test_weights_that_the_manifest_does_not_name_are_not_read(tmp_path: Path, location: str) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", "dynamic", external_data=True)
    model = onnx.load(bundle / UNET, load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.external_data]
    for tensor in weights:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    assert weights
    target = bundle / "onnx" / location
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle / f"{UNET}.data", target)
    (bundle / UNET).write_bytes(model.SerializeToString())
    record = dict(file_records(bundle))[UNET].model_dump()
    edit_manifest(bundle, lambda manifest: manifest["files"].update({UNET: record}))
    with pytest.raises(
        BundleError, match=r"unet.onnx reads weights from .*, which the manifest does not name"
    ):
        Upscaler.open(bundle)
