#!/usr/bin/env python3
"""Trains the quickstart's models on the data sets that come with scikit-learn.

For each model it writes, below examples/quickstart:

    models/NAME/model.onnx    the model
    requests/NAME.json        held-out rows as the body of a V2 REST inference request
    expected/NAME.json        what ONNX Runtime answers to them, with the tolerance to compare by

Run it twice and the files are the same: seeds are fixed and one thread computes.

    python3 -m venv /tmp/berth-train && /tmp/berth-train/bin/pip install -r examples/requirements.txt
    /tmp/berth-train/bin/python examples/train.py

Every operator used is one that tract knows: no ZipMap, no Scaler; scaling is folded into the weights.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor

OPSET = 17
SEED = 7
HERE = Path(__file__).resolve().parent / "quickstart"

# How the datatypes of the V2 protocol are called elsewhere.
V2 = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "bool": "BOOL", "object": "BYTES"}


def held_out(data):
    """A fixed quarter of `data` to test on; features as float32, which is what the models compute in."""
    return train_test_split(data.data.astype(np.float32), data.target, test_size=0.25, random_state=SEED, stratify=None)


def from_sklearn(name, model, features):
    """The ONNX form of a scikit-learn model with input X and without ZipMap."""
    options = {id(model): {"zipmap": False}} if hasattr(model, "classes_") else None
    return to_onnx(model, initial_types=[("X", FloatTensorType([None, features]))], options=options, target_opset=OPSET, name=name)


def from_nodes(name, inputs, outputs, nodes, weights):
    """An ONNX model written node by node."""
    value = lambda spec: helper.make_tensor_value_info(spec[0], spec[1], spec[2])
    constants = [numpy_helper.from_array(array, label) for label, array in weights.items()]
    graph = helper.make_graph(nodes, name, [value(spec) for spec in inputs], [value(spec) for spec in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="berth-examples", ir_version=8)


def perceptron(rows, labels, hidden, steps):
    """An MLP for pixels 0..16: trained on 0..1, with the factor folded into the first layer's weights."""
    model = MLPClassifier(hidden_layer_sizes=hidden, max_iter=steps, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows / 16, labels)
    model.coefs_[0] = model.coefs_[0] / 16
    return model


def digits_mlp():
    train, test, labels, truth = held_out(load_digits())
    model = perceptron(train, labels, (64,), 80)
    return from_sklearn("digits-mlp", model, 64), {"X": test}, truth


def digits_wide():
    train, test, labels, truth = held_out(load_digits())
    model = perceptron(train, labels, (448, 448), 20)
    return from_sklearn("digits-wide", model, 64), {"X": test}, truth


def digits_deep():
    train, test, labels, truth = held_out(load_digits())
    model = perceptron(train, labels, (256, 256, 256, 256), 20)
    return from_sklearn("digits-deep", model, 64), {"X": test}, truth


def digits_denoise():
    """A picture in, a picture out: pixels with noise on them are made clean again."""
    train, test, _, _ = held_out(load_digits())
    noise = np.random.default_rng(SEED)
    noisy = lambda rows: np.clip(rows + noise.normal(0, 3, rows.shape), 0, 16).astype(np.float32)
    model = MLPRegressor(hidden_layer_sizes=(384, 384), max_iter=40, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(noisy(train) / 16, train / 16)
    # Both factors of 16 go into the weights.
    model.coefs_[0] = model.coefs_[0] / 16
    model.coefs_[-1], model.intercepts_[-1] = model.coefs_[-1] * 16, model.intercepts_[-1] * 16
    nodes = [
        helper.make_node("Gemm", ["noisy", "w0", "b0"], ["first"]),
        helper.make_node("Relu", ["first"], ["first_active"]),
        helper.make_node("Gemm", ["first_active", "w1", "b1"], ["second"]),
        helper.make_node("Relu", ["second"], ["second_active"]),
        helper.make_node("Gemm", ["second_active", "w2", "b2"], ["clean"]),
    ]
    weights = {f"w{layer}": array.astype(np.float32) for layer, array in enumerate(model.coefs_)}
    weights |= {f"b{layer}": array.astype(np.float32) for layer, array in enumerate(model.intercepts_)}
    pictures = lambda label: (label, TensorProto.FLOAT, ["batch", 64])
    return from_nodes("digits-denoise", [pictures("noisy")], [pictures("clean")], nodes, weights), {"noisy": noisy(test)}, test


def digits_forest():
    train, test, labels, truth = held_out(load_digits())
    model = RandomForestClassifier(n_estimators=15, max_depth=8, random_state=SEED).fit(train, labels)
    return from_sklearn("digits-forest", model, 64), {"X": test}, truth


def digits_conv():
    """Convolution with fixed random kernels, then a trained linear layer: images in, probabilities out."""
    train, test, labels, truth = held_out(load_digits())
    train, test = train.reshape(-1, 1, 8, 8), test.reshape(-1, 1, 8, 8)
    kernels = np.random.default_rng(SEED).normal(0, 1 / 48, (32, 1, 3, 3)).astype(np.float32)
    image = ("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    body = [
        helper.make_node("Conv", ["image", "kernels"], ["edges"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["active"]),
        helper.make_node("MaxPool", ["active"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
    ]
    features = ("features", TensorProto.FLOAT, ["batch", 512])
    half = from_nodes("features", [image], [features], body, {"kernels": kernels})
    seen = onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": train})[0]
    layer = LogisticRegression(max_iter=500, C=10.0).fit(seen, labels)
    head = [
        helper.make_node("Gemm", ["features", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    weights = {"kernels": kernels, "weights": layer.coef_.T.astype(np.float32), "bias": layer.intercept_.astype(np.float32)}
    out = ("probabilities", TensorProto.FLOAT, ["batch", 10])
    return from_nodes("digits-conv", [image], [out], body + head, weights), {"image": test}, truth


def digits_even():
    """Whole numbers in, a truth value out: is the digit even?"""
    train, test, labels, truth = held_out(load_digits())
    model = perceptron(train, labels % 2 == 0, (32,), 120)
    pixels = ("pixels", TensorProto.INT64, ["batch", 64])
    outs = [("even", TensorProto.BOOL, ["batch", 1]), ("score", TensorProto.FLOAT, ["batch", 1])]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["numbers", "w1", "b1"], ["first"]),
        helper.make_node("Relu", ["first"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["second"]),
        helper.make_node("Sigmoid", ["second"], ["score"]),
        helper.make_node("Greater", ["score", "half"], ["even"]),
    ]
    weights = {label: array.astype(np.float32) for label, array in zip(["w1", "w2"], model.coefs_)}
    weights |= {label: array.astype(np.float32) for label, array in zip(["b1", "b2"], model.intercepts_)}
    weights["half"] = np.array(0.5, dtype=np.float32)
    return from_nodes("digits-even", [pixels], outs, nodes, weights), {"pixels": test.astype(np.int64)}, truth % 2 == 0


def breast_cancer():
    """Logistic regression on scaled features; the scaling is folded into coefficients and intercept."""
    train, test, labels, truth = held_out(load_breast_cancer())
    middle, spread = train.mean(axis=0), train.std(axis=0)
    model = LogisticRegression(max_iter=500).fit((train - middle) / spread, labels)
    model.coef_ = model.coef_ / spread
    model.intercept_ = model.intercept_ - model.coef_ @ middle
    return from_sklearn("breast-cancer", model, 30), {"X": test}, truth


def iris():
    """Labels as text: setosa, versicolor, virginica. The classifier gives numbers, a last node their names."""
    data = load_iris()
    train, test, labels, truth = held_out(data)
    model = from_sklearn("iris", LogisticRegression(max_iter=500).fit(train, labels), 4)
    for node in model.graph.node:
        node.output[:] = ["number" if output == "label" else output for output in node.output]
    names = helper.make_node("CategoryMapper", ["number"], ["label"], domain="ai.onnx.ml")
    names.attribute.append(helper.make_attribute("cats_int64s", list(range(len(data.target_names)))))
    names.attribute.append(helper.make_attribute("cats_strings", data.target_names.astype(str).tolist()))
    names.attribute.append(helper.make_attribute("default_string", "unknown"))
    model.graph.node.append(names)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.STRING, ["batch"]))
    return model, {"X": test}, data.target_names[truth].astype(str)


def diabetes():
    train, test, labels, truth = held_out(load_diabetes())
    return from_sklearn("diabetes", LinearRegression().fit(train, labels), 10), {"X": test}, truth


def v2(array):
    """Elements as V2 JSON writes them: flat, row by row."""
    if array.dtype.name == "float32":
        return [float(str(number)) for number in array.ravel()]  # the shortest text that reads back as the same float32
    return array.ravel().tolist()


def tensor(name, array):
    return {"name": name, "datatype": V2[array.dtype.name], "shape": list(array.shape), "data": v2(array)}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


def accuracy(outputs, truth):
    """How well the model does on all held-out rows: R2 for numbers, the share of right answers for classes."""
    answer = outputs[0].squeeze()
    if answer.ndim > truth.ndim:
        answer = answer.argmax(axis=1)
    if truth.dtype.kind == "f":
        return f"R2 {1 - ((truth - answer) ** 2).sum() / ((truth - truth.mean()) ** 2).sum():.3f}"
    return f"accuracy {(answer == truth).mean():.3f}"


def record(name, build, rows):
    model, inputs, truth = build()
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    quality = accuracy(session.run(None, inputs), truth)

    asked = {label: array[:rows] for label, array in inputs.items()}
    write(HERE / "requests" / f"{name}.json", {"inputs": [tensor(label, array) for label, array in asked.items()]})
    answers = [tensor(label, np.asarray(array)) for label, array in zip(names, session.run(None, asked))]
    for answer in answers:
        answer["tolerance"] = {"absolute": 1e-5, "relative": 1e-4} if answer["datatype"].startswith("FP") else None
    write(HERE / "expected" / f"{name}.json", {"model": name, "held_out": quality, "outputs": answers})

    path = HERE / "models" / name / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    operators = ", ".join(sorted({node.op_type for node in model.graph.node}))
    print(f"{name:14} {path.stat().st_size:>9,} bytes  {quality:15}  {operators}")


def main():
    for folder in ["models", "requests", "expected"]:
        shutil.rmtree(HERE / folder, ignore_errors=True)
    # One row where a person is likely to look at the request, three elsewhere so that batches are tried.
    record("digits-mlp", digits_mlp, 1)
    record("digits-wide", digits_wide, 3)
    record("digits-deep", digits_deep, 3)
    record("digits-denoise", digits_denoise, 1)
    record("digits-forest", digits_forest, 3)
    record("digits-conv", digits_conv, 1)
    record("digits-even", digits_even, 3)
    record("breast-cancer", breast_cancer, 3)
    record("iris", iris, 3)
    record("diabetes", diabetes, 3)


if __name__ == "__main__":
    main()
