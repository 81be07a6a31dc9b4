//! What every runtime must do, as tests: the real ones and the fake pass the same suite.
//!
//! [`runtime_suite`] is for any [`Runtime`] that also answers inference, [`onnx_suite`] for the embedded runtime with
//! whichever engine. They are plain functions that panic at the first fault, with the case in the message, so that
//! tests of other crates and of real servers can call them too.

#![allow(clippy::missing_panics_doc, reason = "panicking is how these report")]

mod onnx;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse};
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelFormat, ModelId, Placement, Registration, StorageRef};
use bytes::Bytes;

pub use onnx::{Abilities, onnx_suite};

use crate::tensor::inputs_of;
use crate::{Artifacts, IndexEntry, Infer, InferError, LaidOut, LoadFault, Runtime, Unloaded};

/// How long anything may take that a runtime promises to do at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime with something to load.
pub struct Subject<R> {
    /// The runtime; holds nothing yet.
    pub runtime: R,
    /// Its clock.
    pub clock: Clock,
    /// The format of the files.
    pub format: &'static str,
    /// Files that it can load under any id.
    pub good: Artifacts,
    /// Files that are no model, under the id [`BROKEN`].
    pub bad: Artifacts,
    /// A request that the good model answers.
    pub request: ModelInferRequest,
    /// The outputs of the answer, in order: name, datatype, shape, bytes.
    pub answer: Vec<(String, String, Vec<i64>, Bytes)>,
}

/// A registration of an ONNX model under this id.
#[must_use]
pub fn registration(id: &str) -> Registration {
    registered(id, "onnx")
}

fn registered(id: &str, format: &str) -> Registration {
    Registration::new(
        ModelId::new(id).expect("tests use valid ids"),
        ModelFormat { name: format.into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::new(BTreeMap::new()), path: "".into(), schema_path: None },
        None,
    )
}

/// The id under which [`Subject::bad`] is loaded, for runtimes that fail by script.
pub const BROKEN: &str = "broken__isvc-0000000000";

/// A request with raw contents: name, datatype, shape and bytes of each input.
#[must_use]
pub fn raw_request(inputs: &[(&str, &str, &[i64], &[u8])]) -> ModelInferRequest {
    let (tensors, raw) = inputs
        .iter()
        .map(|(name, datatype, shape, raw)| {
            let tensor =
                InferInputTensor { name: (*name).to_owned(), datatype: (*datatype).to_owned(), shape: shape.to_vec(), ..InferInputTensor::default() };
            (tensor, Bytes::copy_from_slice(raw))
        })
        .unzip();
    ModelInferRequest { inputs: tensors, raw_input_contents: raw, ..ModelInferRequest::default() }
}

/// Name, datatype, shape and bytes of each output.
#[must_use]
pub fn outputs_of(response: &ModelInferResponse) -> Vec<(String, String, Vec<i64>, Bytes)> {
    assert_eq!(response.outputs.len(), response.raw_output_contents.len(), "one raw content per output");
    let outputs = response.outputs.iter().zip(&response.raw_output_contents);
    outputs.map(|(output, raw)| (output.name.clone(), output.datatype.clone(), output.shape.clone(), raw.clone())).collect()
}

/// The whole suite. Needs a tokio runtime; passes with paused time where the runtime allows it.
pub async fn runtime_suite<R: Runtime + Infer>(subject: &Subject<R>) {
    nothing_is_held_at_first(subject).await;
    a_model_lives_once_from_load_to_proof(subject).await;
    concurrent_loads_are_one(subject).await;
    a_load_outlives_its_caller(subject).await;
    a_bad_model_holds_nothing(subject).await;
    unknown_models_are_no_fault(subject).await;
    a_passed_deadline_is_no_inference(subject).await;
    copies_are_apart(subject).await;
}

impl<R: Runtime + Infer> Subject<R> {
    fn registration(&self, id: &str) -> Registration {
        registered(id, self.format)
    }

    fn soon(&self) -> Deadline {
        self.clock.deadline_in(PATIENCE)
    }

    /// What `future` gives; a hang is a failure with a name.
    async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        self.clock.until(self.soon(), future).await.unwrap_or_else(|| panic!("{what}: not done within {PATIENCE:?}"))
    }

    /// The outputs that the answer is about, in raw form however the runtime gave them.
    fn outputs_of(&self, response: ModelInferResponse) -> Vec<(String, String, Vec<i64>, Bytes)> {
        let inputs = response.outputs.into_iter().map(|output| InferInputTensor {
            name: output.name,
            datatype: output.datatype,
            shape: output.shape,
            parameters: HashMap::new(),
            contents: output.contents,
        });
        let as_request =
            ModelInferRequest { inputs: inputs.collect(), raw_input_contents: response.raw_output_contents, ..ModelInferRequest::default() };
        let outputs = inputs_of(as_request, |_any| Ok(())).expect("an answer is made of tensors").into_iter();
        let outputs = outputs.filter(|output| self.answer.iter().any(|(name, ..)| *name == output.name));
        let shape = |dims: Vec<usize>| dims.into_iter().map(|size| i64::try_from(size).expect("it is small")).collect();
        outputs.map(|output| (output.name, output.datatype.to_string(), shape(output.shape), output.raw)).collect()
    }

    async fn entry(&self, model: &ModelId) -> Option<IndexEntry> {
        self.runtime.index().await.expect("the index can be asked").get(model)
    }

    async fn lay_out(&self, model: &Registration) -> LaidOut {
        self.runtime.lay_out(model, &self.good).await.expect("good files can be laid out")
    }

    async fn load(&self, model: &Registration) {
        let laid_out = self.lay_out(model).await;
        self.within("load", self.runtime.load(model, &laid_out)).await.expect("a good model loads");
    }

    /// Waits as the owner of memory does: look, and look again after each change.
    async fn proof(&self, model: &ModelId) -> Unloaded {
        let wait = async {
            loop {
                if let Some(proof) = self.runtime.index().await.expect("the index can be asked").unloaded(model) {
                    return proof;
                }
                self.runtime.index_changed().await;
            }
        };
        self.within("proof of an unload", wait).await
    }

    async fn unload(&self, model: &ModelId) {
        self.runtime.unload(model).await.expect("an unload is taken");
        assert_eq!(self.proof(model).await.model(), model);
        self.runtime.clear_layout(model).await;
    }

    async fn infer(&self, model: &ModelId) -> Result<ModelInferResponse, InferError> {
        self.within("inference", self.runtime.infer(model, self.request.clone(), self.soon())).await
    }
}

async fn nothing_is_held_at_first<R: Runtime + Infer>(subject: &Subject<R>) {
    let index = subject.runtime.index().await.expect("the index can be asked");
    assert_eq!(index.iter().count(), 0, "a fresh runtime holds nothing");
    let info = subject.runtime.info();
    assert!(!info.name.is_empty() && !info.version.is_empty(), "{info:?}");
}

async fn a_model_lives_once_from_load_to_proof<R: Runtime + Infer>(subject: &Subject<R>) {
    let model = subject.registration("first__isvc-0000000001");
    let id = &model.id;
    for round in ["the first time", "again"] {
        assert_eq!(subject.infer(id).await.err(), Some(InferError::NotLoaded(id.clone())), "{round}");
        let first = subject.lay_out(&model).await;
        let laid_out = subject.lay_out(&model).await;
        assert_eq!(first, laid_out, "{round}: a layout made twice is the same layout");
        assert_eq!(subject.entry(id).await, None, "{round}: a layout takes no memory");
        let loaded = subject.within("load", subject.runtime.load(&model, &laid_out)).await.expect(round);
        assert_eq!(subject.entry(id).await, Some(IndexEntry::Ready), "{round}");
        let again = subject.within("load of a loaded model", subject.runtime.load(&model, &laid_out)).await;
        assert_eq!(again, Ok(loaded), "{round}: loading what is loaded is a success");

        let mut request = subject.request.clone();
        request.id = "request 7".to_owned();
        request.model_version = "3".to_owned();
        request.model_name = "some other name".to_owned();
        let response = subject.runtime.infer(id, request, subject.soon()).await.expect(round);
        assert_eq!(subject.outputs_of(response.clone()), subject.answer, "{round}");
        assert_eq!((response.model_name.as_str(), response.id.as_str()), (id.as_str(), "request 7"), "{round}");
        let metadata = subject.runtime.metadata(id).await.expect(round);
        assert_eq!(metadata.name, id.as_str(), "{round}");

        subject.unload(id).await;
        assert_eq!(subject.infer(id).await.err(), Some(InferError::NotLoaded(id.clone())), "{round}: after the unload");
        assert_eq!(subject.runtime.metadata(id).await.err(), Some(InferError::NotLoaded(id.clone())), "{round}: after the unload");
    }
}

async fn concurrent_loads_are_one<R: Runtime + Infer>(subject: &Subject<R>) {
    let model = subject.registration("shared__isvc-0000000002");
    let laid_out = subject.lay_out(&model).await;
    let loads = async { tokio::join!(subject.runtime.load(&model, &laid_out), subject.runtime.load(&model, &laid_out)) };
    let (one, other) = subject.within("two loads of one model", loads).await;
    assert_eq!(one.expect("it loads"), other.expect("it loads"), "two loads of one model are one copy");
    assert_eq!(subject.runtime.index().await.expect("the index can be asked").iter().count(), 1);
    subject.unload(&model.id).await;
}

async fn a_load_outlives_its_caller<R: Runtime + Infer>(subject: &Subject<R>) {
    let model = subject.registration("orphan__isvc-0000000003");
    let laid_out = subject.lay_out(&model).await;
    {
        let load = std::pin::pin!(subject.runtime.load(&model, &laid_out));
        // Polled once, so that the runtime was told, then dropped.
        let _ = futures_once(load).await;
    }
    // Whatever the runtime makes of it, the index says so, an unload is taken, and a proof comes.
    subject.unload(&model.id).await;
    assert_eq!(subject.entry(&model.id).await, None);
}

/// Polls once.
async fn futures_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

async fn a_bad_model_holds_nothing<R: Runtime + Infer>(subject: &Subject<R>) {
    let model = subject.registration(BROKEN);
    let failed = match subject.runtime.lay_out(&model, &subject.bad).await {
        Err(failed) => failed,
        Ok(laid_out) => subject.within("load", subject.runtime.load(&model, &laid_out)).await.expect_err("bad files do not load"),
    };
    assert_eq!(failed.fault, LoadFault::BadModel, "{failed}");
    assert!(failed.message.len() > 10, "{failed}");
    assert_eq!(subject.entry(&model.id).await, None, "a model that failed to load takes no memory");
    subject.unload(&model.id).await;
}

async fn unknown_models_are_no_fault<R: Runtime + Infer>(subject: &Subject<R>) {
    let id = subject.registration("never__isvc-0000000004").id;
    assert_eq!(subject.runtime.unload(&id).await, Ok(()), "unloading what is not there is a success");
    assert_eq!(subject.proof(&id).await.model(), &id);
    subject.runtime.clear_layout(&id).await;
    assert_eq!(subject.runtime.metadata(&id).await.err(), Some(InferError::NotLoaded(id)));
}

async fn a_passed_deadline_is_no_inference<R: Runtime + Infer>(subject: &Subject<R>) {
    let model = subject.registration("late__isvc-0000000005");
    subject.load(&model).await;
    let passed = Deadline::at(subject.clock.now());
    let answer = subject.runtime.infer(&model.id, subject.request.clone(), passed).await;
    assert_eq!(answer.err(), Some(InferError::DeadlineExceeded));
    subject.unload(&model.id).await;
}

async fn copies_are_apart<R: Runtime + Infer>(subject: &Subject<R>) {
    let (one, other) = (subject.registration("one__isvc-0000000006"), subject.registration("other__ksp-0000000007"));
    subject.load(&one).await;
    subject.load(&other).await;
    assert_eq!(subject.runtime.index().await.expect("the index can be asked").iter().count(), 2);
    subject.unload(&one.id).await;
    assert_eq!(subject.entry(&other.id).await, Some(IndexEntry::Ready), "the other copy stays");
    assert_eq!(subject.outputs_of(subject.infer(&other.id).await.expect("it answers")), subject.answer);
    subject.unload(&other.id).await;
}
