//! tract: the built-in engine, pure Rust.
//!
//! A model is optimised once with its free dimensions as symbols and runs with any size: one plan per model, so its
//! memory is known after the load (a plan per shape would be about a tenth faster and would grow with each new shape).
//! A run takes scratch memory on top, which is given back at its end and is not part of the measured size.
//!
//! tract names some results in its own symbolic type; they leave in the type that the model declares.

use std::collections::HashSet;
use std::sync::Arc;

use berth_types::ByteSize;
use bytes::Bytes;
use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::{Factoid as _, GenericFactoid, ShapeFactoid};

use super::engine::{Engine, Opened, Session, brief};
use super::files::ModelFile;
use super::interface::{Dim, Interface, Port};
use super::outline::Operator;
use crate::tensor::{self, Datatype, Tensor as Given};
use crate::{InferError, LoadError, LoadFault, counting};

/// The version in `Cargo.lock`; a test compares.
const VERSION: &str = "0.23.9";

/// How users get the other engine.
const OTHER_ENGINE: &str = "ONNX Runtime, used when --onnx-library names its libonnxruntime.so";

/// The built-in engine.
pub(super) struct Tract {
    onnx: tract_onnx::Onnx,
}

impl Tract {
    pub(super) fn new() -> Self {
        Tract { onnx: tract_onnx::onnx() }
    }

    /// Says which operators are missing, all at once.
    fn check_operators(&self, file: &ModelFile) -> Result<(), LoadError> {
        let missing: Vec<(&Operator, &String)> =
            file.outline.operators.iter().filter(|(operator, _)| !self.onnx.op_register.0.contains_key(&operator.kind)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let named = missing.iter().map(|(operator, node)| format!("{operator} (node {node:?})"));
        let everywhere = ["", "ai.onnx.ml", "com.microsoft"];
        let standard =
            missing.iter().all(|(operator, _)| everywhere.contains(&operator.domain.as_str()) && !file.outline.functions.contains(operator));
        let other = if standard { "has them" } else { "may have them" };
        let zip_map = missing.iter().any(|(operator, _)| operator.kind == "ZipMap");
        let hint = if zip_map { "; or export the model without ZipMap (option zipmap=False)" } else { "" };
        Err(LoadError::bad_model(format!(
            "{} uses operators that the built-in engine (tract) lacks: {}; {OTHER_ENGINE}, {other}{hint}",
            file.name(),
            named.collect::<Vec<_>>().join(", ")
        )))
    }

    fn open(&self, file: &ModelFile) -> Result<(TractSession, Interface), LoadError> {
        let name = file.name();
        let fault = |fault: &TractError| LoadError {
            fault: LoadFault::BadModel,
            message: format!("{name} cannot be run by the built-in engine (tract): {}; try {OTHER_ENGINE}", brief(&format!("{fault:#}"))),
            nothing_attempted: false,
        };
        let proto = self.onnx.proto_model_for_path(&file.path).map_err(|error| fault(&error))?;
        let interface = interface_of(&proto, &name)?;
        let folder = file.path.parent().and_then(std::path::Path::to_str);
        let parsed = self.onnx.parse(&proto, folder).map_err(|error| fault(&error))?;
        if let [unresolved, ..] = &parsed.unresolved_inputs[..] {
            return Err(LoadError::bad_model(format!("{name} uses a tensor {unresolved:?} that no node makes")));
        }
        // The weights are in the model now; without this they would be held twice while it is optimised.
        drop(proto);
        let (plan, interface) = match optimised(parsed.model.clone(), &interface, Unnamed::Apart) {
            Ok(plan) => (plan, interface),
            // Free first dimensions without a name are nearly always one batch. Two inputs that are added need that.
            Err(first) => {
                let shared = interface_with_batch(&interface).ok_or_else(|| fault(&first))?;
                (optimised(parsed.model, &shared, Unnamed::FirstShared).map_err(|_| fault(&first))?, shared)
            }
        };
        let outputs = interface.outputs.iter().map(|port| (port.name.clone(), port.datatype)).collect();
        Ok((TractSession { plan, outputs }, interface))
    }
}

impl Engine for Tract {
    fn platform(&self) -> &'static str {
        "onnx_tract"
    }

    fn version(&self) -> String {
        format!("tract {VERSION}")
    }

    fn estimate(&self, files: ByteSize) -> ByteSize {
        // Measured by the counting allocator: 1.0 to 1.2 x the file for weights of 0.8 to 64 MiB, 16 to 150 KiB more
        // for the graph of a small model. The rest is for weights that a kernel keeps in two layouts.
        files.percent(150) + ByteSize::kib(192)
    }

    fn load(&self, file: &ModelFile) -> Result<Opened, LoadError> {
        self.check_operators(file)?;
        let (opened, measured) = counting::measure(|| self.open(file));
        let (session, interface) = opened?;
        Ok(Opened { session: Box::new(session), interface, measured })
    }
}

/// What unnamed free dimensions are taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unnamed {
    /// Each may have a size of its own.
    Apart,
    /// The first dimensions of all inputs have one size.
    FirstShared,
}

const BATCH: &str = "berth_batch";

/// The interface with unnamed first dimensions named alike; `None` when there are not two of them.
fn interface_with_batch(interface: &Interface) -> Option<Interface> {
    let mut shared = interface.clone();
    let mut firsts = 0;
    for port in &mut shared.inputs {
        if let Some(first @ Dim::Any) = port.shape.as_mut().and_then(|dims| dims.first_mut()) {
            *first = Dim::Named(BATCH.to_owned());
            firsts += 1;
        }
    }
    (firsts > 1).then_some(shared)
}

fn optimised(mut model: InferenceModel, interface: &Interface, unnamed: Unnamed) -> TractResult<Arc<TypedRunnableModel>> {
    let batch = (unnamed == Unnamed::FirstShared).then(|| model.symbols.sym(BATCH));
    for at in 0..model.inputs.len() {
        let outlet = model.inputs[at];
        let fact = model.outlet_fact(outlet)?.clone();
        if fact.shape.is_open() {
            let name = interface.inputs.get(at).map_or("", |port| port.name.as_str());
            return Err(TractError::msg(format!("input {name:?} has no shape, not even a rank")));
        }
        let dims: TVec<TDim> = fact
            .shape
            .dims()
            .enumerate()
            .map(|(axis, dim)| match (dim.concretize(), &batch) {
                (Some(known), _) => known,
                (None, Some(batch)) if axis == 0 => batch.to_dim(),
                (None, _) => model.symbols.new_with_prefix("free").to_dim(),
            })
            .collect();
        let closed = ShapeFactoid::closed(dims.into_iter().map(GenericFactoid::Only).collect());
        model.set_outlet_fact(outlet, fact.with_shape(closed))?;
    }
    model.into_optimized()?.into_runnable()
}

/// Names, types and shapes as the file declares them.
fn interface_of(proto: &pb::ModelProto, name: &str) -> Result<Interface, LoadError> {
    let graph = proto.graph.as_ref().ok_or_else(|| LoadError::bad_model(format!("{name} has no graph")))?;
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let port = |what: &str, info: &pb::ValueInfoProto| {
        let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|declared| declared.value.as_ref()) else {
            return Err(LoadError::bad_model(format!(
                "{name}: {what} {:?} is not a tensor (a sequence, a map or without a type): inference protocols carry tensors only",
                info.name
            )));
        };
        let datatype = datatype_of(tensor.elem_type).ok_or_else(|| {
            let message = format!(
                "{name}: {what} {:?} has the element type {} of ONNX, which the built-in engine (tract) lacks; try {OTHER_ENGINE}",
                info.name,
                pb::tensor_proto::DataType::try_from(tensor.elem_type)
                    .map_or_else(|_| tensor.elem_type.to_string(), |known| format!("{known:?}").to_uppercase()),
            );
            LoadError::bad_model(message)
        })?;
        Ok(Port { name: info.name.clone(), datatype, shape: tensor.shape.as_ref().map(dims_of) })
    };
    let made: HashSet<&str> =
        graph.node.iter().flat_map(|node| &node.output).chain(graph.input.iter().map(|info| &info.name)).map(String::as_str).collect();
    if let Some(output) = graph.output.iter().find(|info| !made.contains(info.name.as_str()) && !constants.contains(info.name.as_str())) {
        return Err(LoadError::bad_model(format!("{name}: output {:?} is made by no node", output.name)));
    }
    Ok(Interface {
        inputs: graph
            .input
            .iter()
            .filter(|info| !constants.contains(info.name.as_str()))
            .map(|info| port("input", info))
            .collect::<Result<_, _>>()?,
        outputs: graph.output.iter().map(|info| port("output", info)).collect::<Result<_, _>>()?,
    })
}

fn dims_of(shape: &pb::TensorShapeProto) -> Vec<Dim> {
    use pb::tensor_shape_proto::dimension::Value;
    let dims = shape.dim.iter().map(|dim| match &dim.value {
        Some(Value::DimValue(size)) => usize::try_from(*size).map_or(Dim::Any, Dim::Fixed),
        // tract takes a question mark for unnamed, and anything but a plain name for a formula that it resolves itself.
        Some(Value::DimParam(name)) if is_plain_name(name) => Dim::Named(name.clone()),
        Some(Value::DimParam(_)) | None => Dim::Any,
    });
    dims.collect()
}

fn is_plain_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn datatype_of(element: i32) -> Option<Datatype> {
    use pb::tensor_proto::DataType;
    Some(match DataType::try_from(element).ok()? {
        DataType::Bool => Datatype::Bool,
        DataType::Int8 => Datatype::Int8,
        DataType::Int16 => Datatype::Int16,
        DataType::Int32 => Datatype::Int32,
        DataType::Int64 => Datatype::Int64,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// tract's type for a datatype; `None` for BF16, which it lacks.
fn datum_type(datatype: Datatype) -> Option<DatumType> {
    Some(match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Fp16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bytes => DatumType::String,
        Datatype::Bf16 => return None,
    })
}

struct TractSession {
    plan: Arc<TypedRunnableModel>,
    /// Name and declared type of each output.
    outputs: Vec<(String, Datatype)>,
}

impl Session for TractSession {
    fn run(&self, inputs: Vec<Given>, wanted: &[usize]) -> Result<Vec<Given>, InferError> {
        let inputs = inputs.iter().map(|input| Ok(tensor_of(input)?.into_tvalue())).collect::<Result<TVec<TValue>, InferError>>()?;
        let results = self.plan.run(inputs).map_err(|fault| InferError::Failed(format!("the model failed: {}", brief(&format!("{fault:#}")))))?;
        wanted
            .iter()
            .map(|at| {
                let (Some((name, datatype)), Some(result)) = (self.outputs.get(*at), results.get(*at)) else {
                    return Err(InferError::Failed(format!("the model gave {} outputs, number {at} is asked for", results.len())));
                };
                given_of(name, *datatype, result).map_err(|fault| InferError::Failed(format!("output {name:?}: {}", brief(&format!("{fault:#}")))))
            })
            .collect()
    }

    fn parallel(&self) -> bool {
        true
    }
}

fn tensor_of(given: &Given) -> Result<Tensor, InferError> {
    let refused = |what: String| InferError::BadRequest(format!("input {:?}: {what}", given.name));
    let datum_type = datum_type(given.datatype).ok_or_else(|| refused(format!("{} is unknown to the built-in engine (tract)", given.datatype)))?;
    if given.datatype == Datatype::Bytes {
        let texts = given.strings().enumerate().map(|(at, text)| {
            std::str::from_utf8(text).map(str::to_owned).map_err(|_| refused(format!("BYTES element {at} is not UTF-8, ONNX strings are")))
        });
        let texts = texts.collect::<Result<Vec<String>, InferError>>()?;
        let array = tract_ndarray::ArrayD::from_shape_vec(given.shape.clone(), texts);
        return array.map(Tensor::from).map_err(|fault| refused(fault.to_string()));
    }
    let mut tensor = Tensor::zero_dt(datum_type, &given.shape).map_err(|fault| refused(fault.to_string()))?;
    let bytes = tensor.as_bytes_mut();
    if bytes.len() != given.raw.len() {
        return Err(refused(format!("{} bytes for a tensor of {}", given.raw.len(), bytes.len())));
    }
    bytes.copy_from_slice(&given.raw);
    Ok(tensor)
}

/// Lends a result's bytes to the answer without a copy.
struct Lent(TValue);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn given_of(name: &str, datatype: Datatype, result: &TValue) -> TractResult<Given> {
    let shape = result.shape().to_vec();
    let declared = datum_type(datatype).ok_or_else(|| TractError::msg("no such type"))?;
    let raw = if datatype == Datatype::Bytes {
        let texts = result.to_plain_array_view::<String>()?;
        let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        tensor::frame(texts.into_iter()).ok_or_else(|| TractError::msg("an element is longer than 4 GiB"))?
    } else if result.datum_type() == declared && result.is_plain_ram() {
        Bytes::from_owner(Lent(result.clone()))
    } else {
        let cast = result.clone().into_tensor().into_plain_ram()?.cast_to_dt(declared)?.into_owned();
        Bytes::from_owner(Lent(cast.into_tvalue()))
    };
    Ok(Given { name: name.to_owned(), datatype, shape, raw })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_built() {
        let lock = include_str!("../../../Cargo.lock");
        let mut lines = lock.lines().skip_while(|line| *line != "name = \"tract-onnx\"");
        assert_eq!(lines.nth(1), Some(format!("version = \"{VERSION}\"").as_str()));
    }

    #[test]
    fn formulas_are_no_names() {
        for (text, plain) in
            [("batch", true), ("unk__12", true), ("N", true), ("", false), ("?", false), ("2*N", false), ("N+1", false), ("1", false)]
        {
            assert_eq!(is_plain_name(text), plain, "{text:?}");
        }
    }
}
