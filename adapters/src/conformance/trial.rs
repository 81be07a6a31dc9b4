//! One runtime, and what it is examined with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelFormat, ModelId, Placement, Registration, StorageRef};
use bytes::Bytes;

use crate::tensor::{Datatype, frame, inputs_of};
use crate::{Artifacts, Index, IndexEntry, Infer, InferError, LaidOut, Loaded, Runtime, Unloaded};

/// A runtime that can be examined.
pub trait Examined: Runtime + Infer {}

impl<R: Runtime + Infer> Examined for R {}

/// An output: name, datatype, shape, bytes.
pub type Output = (String, String, Vec<i64>, Bytes);

/// What the model is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// A request that it answers with these outputs, in order, and maybe with more.
    Known {
        /// What it is asked.
        request: Box<ModelInferRequest>,
        /// What the answer is about.
        answer: Vec<Output>,
    },
    /// What the server says that the model takes, filled with zeros. Any answer is right.
    Described,
}

/// A runtime with something to load. It holds nothing yet, and nothing when the examination is over.
pub struct Trial<'a> {
    /// The runtime.
    pub runtime: &'a dyn Examined,
    /// Its clock.
    pub clock: &'a Clock,
    /// What the files are.
    pub format: ModelFormat,
    /// What the files are called where they come from; may be empty.
    pub path: String,
    /// Files that it can load under any id.
    pub good: &'a Artifacts,
    /// Files that are no model, under the id [`super::BROKEN`].
    pub bad: &'a Artifacts,
    /// What the good model is asked.
    pub question: Question,
    /// How long anything may take that a runtime promises to do at all.
    pub patience: Duration,
}

/// Why a rule is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// What came instead.
    Broken(String),
    /// It cannot be told here, and why.
    Unchecked(String),
}

impl From<String> for Short {
    fn from(came: String) -> Self {
        Short::Broken(came)
    }
}

/// Whether a rule is kept.
pub(super) type Checked<T = ()> = Result<T, Short>;

/// `Err` with `came` unless `holds`.
pub(super) fn ensure(holds: bool, came: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Short::Broken(came())) }
}

/// A registration of a model of `format` under this id.
pub(super) fn registered(id: &str, format: ModelFormat, path: &str) -> Registration {
    Registration::new(
        ModelId::new(id).expect("these are valid ids"),
        format,
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::new(BTreeMap::new()), path: path.into(), schema_path: None },
        None,
    )
}

/// How often a runtime that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The largest tensor that is made up: a server that describes a larger one is not asked.
const LARGEST: usize = 64 << 20;

/// A trial under way.
pub(super) struct Bench<'a> {
    trial: &'a Trial<'a>,
    /// `Err`: it cannot be asked anything, and why.
    asked: Result<Asked, String>,
    /// What was there before this rule.
    before: BTreeSet<ModelId>,
}

struct Asked {
    request: ModelInferRequest,
    /// `None`: whatever it answers is right.
    answer: Option<Vec<Output>>,
}

impl<'a> Bench<'a> {
    /// Finds out what the model can be asked.
    pub(super) async fn prepared(trial: &'a Trial<'a>) -> Self {
        let mut bench = Bench::unprepared(trial);
        bench.asked = match &trial.question {
            Question::Known { request, answer } => Ok(Asked { request: (**request).clone(), answer: Some(answer.clone()) }),
            Question::Described => bench.described().await.map(|request| Asked { request, answer: None }),
        };
        if let Ok(Asked { request, .. }) = &bench.asked {
            let nobody = bench.registration("nobody__isvc-0000000000");
            let answer = bench.within("inference", trial.runtime.infer(&nobody.id, request.clone(), bench.soon())).await;
            if let Ok(Err(InferError::Refused { code: UNIMPLEMENTED, .. })) = answer {
                bench.asked = Err("the server has no inference.GRPCInferenceService/ModelInfer at this endpoint".to_owned());
            }
        }
        bench
    }

    /// For nothing but [`Bench::tidy`].
    pub(super) fn unprepared(trial: &'a Trial<'a>) -> Self {
        Bench { trial, asked: Err("it was not asked".to_owned()), before: BTreeSet::new() }
    }

    /// A request that the good model should answer, as the server describes it.
    async fn described(&self) -> Result<ModelInferRequest, String> {
        let told = |short| match short {
            Short::Broken(why) | Short::Unchecked(why) => why,
        };
        let model = self.registration("described__isvc-0000000009");
        let metadata = async {
            self.load(&model).await?;
            let metadata = self.within("the model's metadata", self.runtime().metadata(&model.id)).await?;
            metadata.map_err(|why| Short::Broken(format!("the server does not say what the model takes: {why}")))
        };
        let metadata = metadata.await;
        self.tidy(std::slice::from_ref(&model.id)).await;
        request_of(&metadata.map_err(told)?)
    }

    pub(super) fn runtime(&self) -> &dyn Examined {
        self.trial.runtime
    }

    /// Why no model can be asked anything, if so.
    pub(super) fn is_silent(&self) -> Option<&str> {
        self.asked.as_ref().err().map(String::as_str)
    }

    pub(super) fn registration(&self, id: &str) -> Registration {
        registered(id, self.trial.format.clone(), &self.trial.path)
    }

    pub(super) fn good(&self) -> &Artifacts {
        self.trial.good
    }

    pub(super) fn bad(&self) -> &Artifacts {
        self.trial.bad
    }

    pub(super) fn soon(&self) -> Deadline {
        self.trial.clock.deadline_in(self.trial.patience)
    }

    pub(super) fn now(&self) -> Deadline {
        Deadline::at(self.trial.clock.now())
    }

    /// What `future` gives; a hang has a name.
    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Checked<T> {
        self.trial.clock.until(self.soon(), future).await.ok_or_else(|| Short::Broken(format!("{what}: not done within {:?}", self.trial.patience)))
    }

    /// Begins a rule.
    pub(super) async fn begin(&mut self) -> Checked {
        self.before = self.index().await?.iter().map(|(model, _)| model.clone()).collect();
        Ok(())
    }

    pub(super) async fn index(&self) -> Checked<Index> {
        let deadline = self.soon();
        loop {
            match self.runtime().index().await {
                Ok(index) => return Ok(index),
                Err(down) if deadline.left(self.trial.clock.now()).is_zero() => {
                    return Err(Short::Broken(format!("it cannot be asked what it holds: {down}")));
                }
                Err(_for_now) => self.trial.clock.sleep(ASK_AGAIN).await,
            }
        }
    }

    pub(super) async fn entry(&self, model: &ModelId) -> Checked<Option<IndexEntry>> {
        Ok(self.index().await?.get(model))
    }

    /// The models that it holds since the rule began.
    pub(super) async fn held(&self) -> Checked<Vec<ModelId>> {
        Ok(self.index().await?.iter().map(|(model, _)| model.clone()).filter(|model| !self.before.contains(model)).collect())
    }

    /// Checks how the index lists `model`.
    pub(super) async fn listed(&self, model: &ModelId, expected: Option<IndexEntry>, when: &str) -> Checked {
        let entry = self.entry(model).await?;
        ensure(entry == expected, || format!("{when} it is listed as {}, not as {}", shown(entry), shown(expected)))
    }

    pub(super) async fn lay_out(&self, model: &Registration) -> Checked<LaidOut> {
        let made = self.within("the layout of the files", self.runtime().lay_out(model, self.good())).await?;
        made.map_err(|why| Short::Broken(format!("the good files cannot be laid out: {why}")))
    }

    pub(super) async fn load(&self, model: &Registration) -> Checked<Loaded> {
        let laid_out = self.lay_out(model).await?;
        self.load_laid_out(model, &laid_out).await
    }

    pub(super) async fn load_laid_out(&self, model: &Registration, laid_out: &LaidOut) -> Checked<Loaded> {
        let loaded = self.within("the load of a good model", self.runtime().load(model, laid_out)).await?;
        loaded.map_err(|why| Short::Broken(format!("the good model does not load: {why}")))
    }

    /// Waits as the owner of memory does: look, and look again after each change.
    pub(super) async fn proof(&self, model: &ModelId) -> Checked<Unloaded> {
        let wait = async {
            loop {
                if let Some(proof) = self.index().await?.unloaded(model) {
                    return Ok(proof);
                }
                self.runtime().index_changed().await;
            }
        };
        self.within("the model to go after an unload", wait).await?
    }

    pub(super) async fn unload(&self, model: &ModelId) -> Checked {
        let told = self.within("the order to unload", self.runtime().unload(model)).await?;
        told.map_err(|why| Short::Broken(format!("the order to unload a model is refused: {why}")))?;
        let proof = self.proof(model).await?;
        ensure(proof.model() == model, || format!("another model was proven to be gone: {}", proof.model()))?;
        self.runtime().clear_layout(model).await;
        Ok(())
    }

    pub(super) async fn infer(&self, model: &ModelId) -> Checked<Result<ModelInferResponse, InferError>> {
        let asked = self.asked.as_ref().map_err(|why| Short::Unchecked(why.clone()))?;
        self.within("inference", self.runtime().infer(model, asked.request.clone(), self.soon())).await
    }

    /// The same with a deadline that has passed.
    pub(super) async fn infer_too_late(&self, model: &ModelId) -> Checked<Result<ModelInferResponse, InferError>> {
        let asked = self.asked.as_ref().map_err(|why| Short::Unchecked(why.clone()))?;
        let passed = self.now();
        self.within("inference", self.runtime().infer(model, asked.request.clone(), passed)).await
    }

    /// Checks that `model` answers, and rightly. Nothing where no model can be asked.
    pub(super) async fn answers(&self, model: &ModelId, when: &str) -> Checked {
        let Ok(Asked { request, answer }) = &self.asked else { return Ok(()) };
        let mut request = request.clone();
        "request 7".clone_into(&mut request.id);
        "3".clone_into(&mut request.model_version);
        "some other name".clone_into(&mut request.model_name);
        let response = self.within("inference", self.runtime().infer(model, request, self.soon())).await?;
        let response = response.map_err(|why| format!("{when} it does not answer a request: {why}"))?;
        let (name, id) = (&response.model_name, &response.id);
        ensure(*name == model.as_str(), || format!("the answer of {model} says that it is of {name:?}"))?;
        ensure(id == "request 7", || format!("the answer to the request with the id \"request 7\" says {id:?}"))?;
        let Some(expected) = answer else { return Ok(()) };
        let outputs = outputs(response, expected)?;
        ensure(outputs == *expected, || format!("{when} its answer is {outputs:?}, not {expected:?}"))
    }

    /// Checks that the server says that it does not hold `model`. Nothing where no model can be asked.
    pub(super) async fn does_not_answer(&self, model: &ModelId, when: &str) -> Checked {
        if self.asked.is_err() {
            return Ok(());
        }
        match self.infer(model).await? {
            Err(InferError::NotLoaded(_)) => Ok(()),
            Ok(_answer) => Err(Short::Broken(format!("{when} it answers a request"))),
            Err(other) => Err(Short::Broken(format!("{when} a request is not answered as one for a model that is not there: {other}"))),
        }
    }

    /// The same of the question what the model takes.
    pub(super) async fn is_not_described(&self, model: &ModelId, when: &str) -> Checked {
        if self.asked.is_err() {
            return Ok(());
        }
        match self.within("the model's metadata", self.runtime().metadata(model)).await? {
            Err(InferError::NotLoaded(_) | InferError::Refused { code: UNIMPLEMENTED, .. }) => Ok(()),
            Ok(_metadata) => Err(Short::Broken(format!("{when} it describes the model"))),
            Err(other) => Err(Short::Broken(format!("{when} its metadata is not refused as that of a model that is not there: {other}"))),
        }
    }

    /// Checks what the server says of a loaded model, if it says anything.
    pub(super) async fn is_described(&self, model: &ModelId) -> Checked {
        match self.within("the model's metadata", self.runtime().metadata(model)).await? {
            Ok(metadata) => ensure(metadata.name == model.as_str(), || format!("the metadata of {model} says that it is of {:?}", metadata.name)),
            Err(InferError::NotLoaded(_)) => Err(Short::Broken("its load was answered, and the server does not know the model".to_owned())),
            Err(InferError::Refused { code: UNIMPLEMENTED, .. }) => Ok(()),
            // Then nothing is asked of it for that reason, which is told.
            Err(_why) if self.asked.is_err() => Ok(()),
            Err(why) => Err(Short::Broken(format!("a loaded model has no metadata: {why}"))),
        }
    }

    /// Removes what a rule has left. The models that cannot be.
    pub(super) async fn tidy(&self, models: &[ModelId]) -> Vec<ModelId> {
        let mut left = Vec::new();
        for model in models {
            let listed = self.entry(model).await;
            if listed != Ok(None) && self.unload(model).await.is_err() {
                left.push(model.clone());
            }
            let _ = self.within("the layout to go", self.runtime().clear_layout(model)).await;
        }
        left
    }
}

/// As gRPC numbers it.
pub(super) const UNIMPLEMENTED: i32 = 12;

pub(super) fn shown(entry: Option<IndexEntry>) -> &'static str {
    match entry {
        None => "not there",
        Some(IndexEntry::Loading) => "loading",
        Some(IndexEntry::Ready) => "ready",
        Some(IndexEntry::Unloading) => "unloading",
        Some(IndexEntry::Parked) => "parked",
    }
}

/// The outputs that `expected` is about, in raw form however the runtime gave them.
fn outputs(response: ModelInferResponse, expected: &[Output]) -> Checked<Vec<Output>> {
    let inputs = response.outputs.into_iter().map(|output| InferInputTensor {
        name: output.name,
        datatype: output.datatype,
        shape: output.shape,
        parameters: HashMap::new(),
        contents: output.contents,
    });
    let as_request = ModelInferRequest { inputs: inputs.collect(), raw_input_contents: response.raw_output_contents, ..ModelInferRequest::default() };
    let read = inputs_of(as_request, |_any| Ok(())).map_err(|why| format!("the answer is not made of tensors: {why}"))?;
    let read = read.into_iter().filter(|output| expected.iter().any(|(name, ..)| *name == output.name));
    let shape = |dims: Vec<usize>| dims.into_iter().map(|size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
    Ok(read.map(|output| (output.name, output.datatype.to_string(), shape(output.shape), output.raw)).collect())
}

/// A request of zeros for a model so described: sizes that are left open are 1.
fn request_of(metadata: &ModelMetadataResponse) -> Result<ModelInferRequest, String> {
    if metadata.inputs.is_empty() {
        return Err("the server does not say what the model takes".to_owned());
    }
    let mut request = ModelInferRequest::default();
    for input in &metadata.inputs {
        let odd = |why: &str| format!("the server says of input {:?} what cannot be asked: {why}", input.name);
        let datatype = Datatype::parse(&input.datatype).ok_or_else(|| odd(&format!("{} is no datatype", input.datatype)))?;
        let shape: Vec<i64> = input.shape.iter().map(|size| if *size < 0 { 1 } else { *size }).collect();
        let elements = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?));
        let bytes =
            elements.and_then(|elements| elements.checked_mul(datatype.width().unwrap_or(size_of::<u32>()))).filter(|bytes| *bytes <= LARGEST);
        let (Some(elements), Some(bytes)) = (elements, bytes) else { return Err(odd(&format!("{shape:?} is too large"))) };
        let raw = match datatype.width() {
            Some(_) => Bytes::from(vec![0; bytes]),
            None => frame(std::iter::repeat_n(&b""[..], elements)).ok_or_else(|| odd("it is too large"))?,
        };
        request.inputs.push(InferInputTensor { name: input.name.clone(), datatype: datatype.to_string(), shape, ..InferInputTensor::default() });
        request.raw_input_contents.push(raw);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use berth_proto::inference::model_metadata_response::TensorMetadata;

    use super::*;

    #[test]
    fn a_request_is_made_of_what_a_server_says_that_a_model_takes() {
        let describe = |tensors: &[(&str, &str, &[i64])]| {
            let inputs = tensors.iter().map(|(name, datatype, shape)| TensorMetadata {
                name: (*name).to_owned(),
                datatype: (*datatype).to_owned(),
                shape: shape.to_vec(),
            });
            request_of(&ModelMetadataResponse { inputs: inputs.collect(), ..ModelMetadataResponse::default() })
        };
        let request = describe(&[("x", "FP32", &[-1, 3]), ("t", "BYTES", &[2]), ("s", "BOOL", &[])]).expect("it can be asked");
        let shapes: Vec<_> = request.inputs.iter().map(|input| input.shape.clone()).collect();
        let bytes: Vec<_> = request.raw_input_contents.iter().map(Bytes::len).collect();
        assert_eq!((shapes, bytes), (vec![vec![1, 3], vec![2], vec![]], vec![12, 8, 1]));
        for (tensors, says) in [
            (&[][..], "does not say what the model takes"),
            (&[("x", "fp32", &[1][..])], "fp32 is no datatype"),
            (&[("x", "FP64", &[i64::MAX, 2])], "too large"),
            (&[("x", "FP64", &[1 << 30])], "too large"),
        ] {
            let why = describe(tensors).expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }
}
