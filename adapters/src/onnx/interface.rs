//! What a model takes and gives, and whether a request fits it.

use std::collections::BTreeMap;
use std::fmt;

use berth_proto::inference::ModelMetadataResponse;
use berth_proto::inference::model_metadata_response::TensorMetadata;
use berth_types::ModelId;

use crate::InferError;
use crate::tensor::{Datatype, Tensor, bad, quoted, shape_text};

/// One dimension as the model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dim {
    /// Always this size.
    Fixed(usize),
    /// Any size, the same wherever the name stands.
    #[cfg_attr(not(feature = "onnx-tract"), allow(dead_code, reason = "ONNX Runtime does not hold models to names"))]
    Named(String),
    /// Any size.
    Any,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => write!(f, "{size}"),
            Dim::Named(_) | Dim::Any => f.write_str("-1"),
        }
    }
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    /// `None`: of any rank.
    pub(super) shape: Option<Vec<Dim>>,
}

impl Port {
    /// `FP32 [-1, 64]`.
    fn expects(&self) -> String {
        match &self.shape {
            Some(dims) => format!("{} {}", self.datatype, shape_text(dims)),
            None => format!("{} of any shape", self.datatype),
        }
    }

    fn metadata(&self) -> TensorMetadata {
        let dims = self.shape.iter().flatten().map(|dim| match dim {
            Dim::Fixed(size) => i64::try_from(*size).unwrap_or(i64::MAX),
            Dim::Named(_) | Dim::Any => -1,
        });
        // The protocol cannot say "any rank"; one dimension of any size is what other servers say.
        let shape = if self.shape.is_some() { dims.collect() } else { vec![-1] };
        TensorMetadata { name: self.name.clone(), datatype: self.datatype.as_str().to_owned(), shape }
    }
}

/// All inputs and outputs, in the model's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

impl Interface {
    pub(super) fn metadata(&self, model: &ModelId, platform: &str) -> ModelMetadataResponse {
        ModelMetadataResponse {
            name: model.as_str().to_owned(),
            versions: Vec::new(),
            platform: platform.to_owned(),
            inputs: self.inputs.iter().map(Port::metadata).collect(),
            outputs: self.outputs.iter().map(Port::metadata).collect(),
        }
    }

    /// Whether the model has an input of this name.
    ///
    /// # Errors
    /// [`InferError::BadRequest`] says which inputs it has.
    pub(super) fn knows(&self, name: &str) -> Result<(), InferError> {
        if self.inputs.iter().any(|port| port.name == name) {
            return Ok(());
        }
        let known = self.inputs.iter().map(|port| format!("{:?} {}", port.name, port.expects()));
        Err(bad(format!("unknown input {}: the model has {}", quoted(name), shape_text(known))))
    }

    /// The given tensors, each of a name that the model [knows](Self::knows), in the model's order.
    ///
    /// # Errors
    /// [`InferError::BadRequest`] names the tensor, what is expected and what was given.
    pub(super) fn arrange(&self, given: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        let mut given: Vec<Option<Tensor>> = given.into_iter().map(Some).collect();
        let mut sizes: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        self.inputs
            .iter()
            .map(|port| {
                let found = given.iter_mut().find(|tensor| tensor.as_ref().is_some_and(|tensor| tensor.name == port.name));
                let tensor =
                    found.and_then(Option::take).ok_or_else(|| bad(format!("input {:?} is missing: expected {}", port.name, port.expects())))?;
                check(port, &tensor, &mut sizes)?;
                Ok(tensor)
            })
            .collect()
    }
}

/// `sizes`: of the named dimensions so far, and which input gave them.
fn check<'a>(port: &'a Port, tensor: &Tensor, sizes: &mut BTreeMap<&'a str, (usize, &'a str)>) -> Result<(), InferError> {
    let fault = |what: String| {
        let given = format!("{} {}", tensor.datatype, shape_text(&tensor.shape));
        Err(bad(format!("input {:?}: expected {}, got {given}: {what}", port.name, port.expects())))
    };
    if tensor.datatype != port.datatype {
        return fault("another datatype".to_owned());
    }
    let Some(dims) = &port.shape else { return Ok(()) };
    if dims.len() != tensor.shape.len() {
        return fault(format!("{} dimensions instead of {}", tensor.shape.len(), dims.len()));
    }
    for (at, (dim, given)) in dims.iter().zip(&tensor.shape).enumerate() {
        match dim {
            Dim::Fixed(size) if size != given => return fault(format!("dimension {at} must be {size}")),
            Dim::Named(name) => {
                let (size, first) = *sizes.entry(name).or_insert((*given, &port.name));
                if size != *given {
                    return fault(format!("dimension {at} ({name}) is {size} in input {first:?}"));
                }
            }
            Dim::Fixed(_) | Dim::Any => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn port(name: &str, datatype: Datatype, shape: Option<Vec<Dim>>) -> Port {
        Port { name: name.to_owned(), datatype, shape }
    }

    fn tensor(name: &str, datatype: Datatype, shape: &[usize]) -> Tensor {
        Tensor { name: name.to_owned(), datatype, shape: shape.to_vec(), raw: Bytes::new() }
    }

    fn model() -> Interface {
        let batch = || Dim::Named("batch".to_owned());
        Interface {
            inputs: vec![
                port("x", Datatype::Fp32, Some(vec![batch(), Dim::Fixed(4)])),
                port("mask", Datatype::Bool, Some(vec![batch()])),
                port("free", Datatype::Bytes, None),
            ],
            outputs: vec![port("y", Datatype::Int64, Some(vec![batch(), Dim::Any]))],
        }
    }

    #[test]
    fn tensors_come_back_in_the_models_order() {
        let given = vec![tensor("free", Datatype::Bytes, &[7, 7, 7]), tensor("mask", Datatype::Bool, &[0]), tensor("x", Datatype::Fp32, &[0, 4])];
        let arranged = model().arrange(given).expect("they fit");
        assert_eq!(arranged.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["x", "mask", "free"]);
    }

    #[test]
    fn a_misfit_names_the_input_with_both_types_and_shapes() {
        let good = || [tensor("x", Datatype::Fp32, &[2, 4]), tensor("mask", Datatype::Bool, &[2]), tensor("free", Datatype::Bytes, &[])];
        for (case, change, message) in [
            ("datatype", tensor("x", Datatype::Int64, &[2, 4]), r#"input "x": expected FP32 [-1, 4], got INT64 [2, 4]: another datatype"#),
            ("rank", tensor("x", Datatype::Fp32, &[8]), r#"input "x": expected FP32 [-1, 4], got FP32 [8]: 1 dimensions instead of 2"#),
            ("size", tensor("x", Datatype::Fp32, &[2, 5]), r#"input "x": expected FP32 [-1, 4], got FP32 [2, 5]: dimension 1 must be 4"#),
            (
                "named",
                tensor("mask", Datatype::Bool, &[3]),
                r#"input "mask": expected BOOL [-1], got BOOL [3]: dimension 0 (batch) is 2 in input "x""#,
            ),
            ("any rank", tensor("free", Datatype::Bool, &[3]), r#"input "free": expected BYTES of any shape, got BOOL [3]: another datatype"#),
        ] {
            let given = good().into_iter().map(|tensor| if tensor.name == change.name { change.clone() } else { tensor }).collect();
            assert_eq!(model().arrange(given), Err(InferError::BadRequest(message.to_owned())), "{case}");
        }
        let missing = model().arrange(good()[..2].to_vec());
        assert_eq!(missing, Err(InferError::BadRequest(r#"input "free" is missing: expected BYTES of any shape"#.to_owned())));
        let unknown = model().knows("z");
        let message = r#"unknown input "z": the model has ["x" FP32 [-1, 4], "mask" BOOL [-1], "free" BYTES of any shape]"#;
        assert_eq!(unknown, Err(InferError::BadRequest(message.to_owned())));
        assert_eq!(model().knows("mask"), Ok(()));
    }

    #[test]
    fn metadata_has_minus_one_for_what_may_vary() {
        let id = ModelId::new("m__isvc-1").expect("an id");
        let metadata = model().metadata(&id, "onnx_tract");
        assert_eq!((metadata.name.as_str(), metadata.platform.as_str()), ("m__isvc-1", "onnx_tract"));
        assert_eq!(metadata.inputs.iter().map(|input| input.shape.clone()).collect::<Vec<_>>(), [vec![-1, 4], vec![-1], vec![-1]]);
        assert_eq!(metadata.outputs[0].datatype, "INT64");
    }
}
