//! Tiny ONNX models, written field by field: what tests of an engine load.
//!
//! Written by hand rather than through an engine's own types, so that both engines read bytes that neither made.

/// Element types of ONNX (`TensorProto.DataType`) with the datatype of the protocol.
pub const ELEMENT_TYPES: [(i64, &str); 14] = [
    (9, "BOOL"),
    (3, "INT8"),
    (5, "INT16"),
    (6, "INT32"),
    (7, "INT64"),
    (2, "UINT8"),
    (4, "UINT16"),
    (12, "UINT32"),
    (13, "UINT64"),
    (10, "FP16"),
    (16, "BF16"),
    (1, "FP32"),
    (11, "FP64"),
    (8, "BYTES"),
];
/// Element type of 32-bit floats.
pub const FLOAT: i64 = 1;
/// Element type of 64-bit integers.
pub const INT64: i64 = 7;

/// A message under construction.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return self;
            }
            self.0.push(low | 0x80);
        }
    }

    fn number(self, field: u64, value: i64) -> Self {
        // Negative numbers take ten bytes on the wire: their two's complement.
        self.varint(field << 3).varint(value.cast_unsigned())
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut grown = self.varint(field << 3 | 2).varint(value.len() as u64);
        grown.0.extend_from_slice(value);
        grown
    }

    fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum Axis {
    /// Always this size.
    Fixed(i64),
    /// Any size, with a name.
    Named(&'static str),
    /// Any size, without a name.
    Free,
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// One integer.
    Int(&'static str, i64),
    /// One text.
    Text(&'static str, &'static str),
    /// A graph, for control flow.
    Graph(&'static str, Graph),
}

/// A graph: what a model computes.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    body: Message,
}

fn port(name: &str, element: i64, shape: Option<&[Axis]>) -> Message {
    let mut tensor = Message::default().number(1, element);
    if let Some(axes) = shape {
        let dims = axes.iter().fold(Message::default(), |dims, axis| {
            let dim = match axis {
                Axis::Fixed(size) => Message::default().number(1, *size),
                Axis::Named(name) => Message::default().text(2, name),
                Axis::Free => Message::default(),
            };
            dims.message(1, &dim)
        });
        tensor = tensor.message(2, &dims);
    }
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}

impl Graph {
    /// Adds a node. `operator` is `Type` or `domain:Type`.
    #[must_use]
    pub fn node(mut self, operator: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[Attribute]) -> Self {
        let mut node = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
        node = outputs.iter().fold(node, |node, output| node.text(2, output)).text(3, name);
        let (domain, kind) = operator.split_once(':').unwrap_or(("", operator));
        node = node.text(4, kind);
        for attribute in attributes {
            let attribute = match attribute {
                Attribute::Int(name, value) => Message::default().text(1, name).number(3, *value).number(20, 2),
                Attribute::Text(name, value) => Message::default().text(1, name).text(4, value).number(20, 3),
                Attribute::Graph(name, graph) => Message::default().text(1, name).message(6, &graph.body).number(20, 5),
            };
            node = node.message(5, &attribute);
        }
        self.body = self.body.message(1, &node.text(7, domain));
        self
    }

    /// Adds an input; `shape` `None` leaves even its rank open.
    #[must_use]
    pub fn input(mut self, name: &str, element: i64, shape: Option<&[Axis]>) -> Self {
        self.body = self.body.message(11, &port(name, element, shape));
        self
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, name: &str, element: i64, shape: Option<&[Axis]>) -> Self {
        self.body = self.body.message(12, &port(name, element, shape));
        self
    }

    /// Adds a constant of 32-bit floats.
    #[must_use]
    pub fn floats(mut self, name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
        self.body = self.body.message(5, &tensor.number(2, FLOAT).text(8, name).bytes(9, &raw));
        self
    }

    /// Adds a constant of 32-bit floats whose bytes are in a file beside the model.
    #[must_use]
    pub fn external_floats(mut self, name: &str, dims: &[i64], location: &str) -> Self {
        let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.number(1, *dim));
        let entry = Message::default().text(1, "location").text(2, location);
        self.body = self.body.message(5, &tensor.number(2, FLOAT).text(8, name).message(13, &entry).number(14, 1));
        self
    }

    /// The model file.
    #[must_use]
    pub fn model(self) -> Vec<u8> {
        let opset = |domain: &str, version| Message::default().text(1, domain).number(2, version);
        let graph = Message::default().text(2, "sample");
        let graph = Message([graph.0, self.body.0].concat());
        Message::default()
            .number(1, 8)
            .text(2, "berth")
            .message(8, &opset("", 17))
            .message(8, &opset("ai.onnx.ml", 3))
            .message(8, &opset("com.example", 1))
            .message(7, &graph)
            .0
    }
}

/// `y = x` for `x: [rows, 2]` of this element type, rows of any number.
#[must_use]
pub fn identity(element: i64) -> Vec<u8> {
    let shape = [Axis::Named("rows"), Axis::Fixed(2)];
    Graph::default().node("Identity", "same", &["x"], &["y"], &[]).input("x", element, Some(&shape)).output("y", element, Some(&shape)).model()
}

/// `sum = a + b`, `product = a * b` for `a, b: [batch, 3] f32`; `named`: the free dimension has a name.
#[must_use]
pub fn sum_and_product(named: bool) -> Vec<u8> {
    let shape = [if named { Axis::Named("batch") } else { Axis::Free }, Axis::Fixed(3)];
    Graph::default()
        .node("Add", "plus", &["a", "b"], &["sum"], &[])
        .node("Mul", "times", &["a", "b"], &["product"], &[])
        .input("a", FLOAT, Some(&shape))
        .input("b", FLOAT, Some(&shape))
        .output("sum", FLOAT, Some(&shape))
        .output("product", FLOAT, Some(&shape))
        .model()
}

/// `y = relu(x @ w + 1)` with `x: [batch, inputs] f32` and a constant `w: [inputs, outputs]` of ones.
#[must_use]
pub fn dense(inputs: usize, outputs: usize) -> Vec<u8> {
    let (rows, columns) = (inputs.cast_signed() as i64, outputs.cast_signed() as i64);
    Graph::default()
        .node("MatMul", "weigh", &["x", "w"], &["h"], &[])
        .node("Add", "shift", &["h", "one"], &["z"], &[])
        .node("Relu", "cut", &["z"], &["y"], &[])
        .floats("w", &[rows, columns], &vec![1.0; inputs * outputs])
        .floats("one", &[1], &[1.0])
        .input("x", FLOAT, Some(&[Axis::Free, Axis::Fixed(rows)]))
        .output("y", FLOAT, Some(&[Axis::Free, Axis::Fixed(columns)]))
        .model()
}

/// `y = x + w` with `x: [n, 2] f32` and `w: [2]` in the file `location` beside the model.
#[must_use]
pub fn with_external_weights(location: &str) -> Vec<u8> {
    let shape = [Axis::Named("n"), Axis::Fixed(2)];
    Graph::default()
        .node("Add", "plus", &["x", "w"], &["y"], &[])
        .external_floats("w", &[2], location)
        .input("x", FLOAT, Some(&shape))
        .output("y", FLOAT, Some(&shape))
        .model()
}

/// The position of the largest of each row: `x: [n, 4] f32` -> `label: [n] i64`, computed by `ArgMax`.
#[must_use]
pub fn labels() -> Vec<u8> {
    Graph::default()
        .node("ArgMax", "largest", &["x"], &["label"], &[Attribute::Int("axis", 1), Attribute::Int("keepdims", 0)])
        .input("x", FLOAT, Some(&[Axis::Named("n"), Axis::Fixed(4)]))
        .output("label", INT64, Some(&[Axis::Named("n")]))
        .model()
}

/// `y = operator(x)` for `x: [2] f32`; `operator` is `Type` or `domain:Type`.
#[must_use]
pub fn with_operator(operator: &str) -> Vec<u8> {
    Graph::default()
        .node(operator, "odd", &["x"], &["y"], &[])
        .input("x", FLOAT, Some(&[Axis::Fixed(2)]))
        .output("y", FLOAT, Some(&[Axis::Fixed(2)]))
        .model()
}

/// A model with a graph in an attribute, an operator of a domain of its own and external data. For reading, not for
/// running.
#[must_use]
pub fn with_branches_and_external_data() -> Vec<u8> {
    let then = Graph::default().node("Mul", "times", &["x", "w"], &["t"], &[]).output("t", FLOAT, Some(&[Axis::Fixed(2)]));
    let other = Graph::default().node("com.example:Odd", "odd", &["x"], &["o"], &[]).output("o", FLOAT, Some(&[Axis::Fixed(2)]));
    Graph::default()
        .node("If", "choose", &["c"], &["z"], &[Attribute::Graph("then_branch", then), Attribute::Graph("else_branch", other)])
        .node("Add", "plus", &["z", "w"], &["y"], &[])
        .node("Add", "plus_again", &["y", "w"], &["v"], &[])
        .external_floats("w", &[2], "weights.bin")
        .input("c", 9, Some(&[]))
        .input("x", FLOAT, Some(&[Axis::Fixed(2)]))
        .output("v", FLOAT, Some(&[Axis::Fixed(2)]))
        .model()
}
