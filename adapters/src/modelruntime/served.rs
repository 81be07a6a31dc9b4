//! The other side of the contract: a runtime of this process served to whoever drives it, such as a ModelMesh. Inference is
//! answered on the same port.
//!
//! `unloadModel` is answered when the runtime's index no longer lists the model, and READY when it lists none: what the contract
//! means by both. Models are loaded from below one folder only.

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use berth_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use berth_proto::mmesh::model_runtime_server::{self, ModelRuntimeServer};
use berth_proto::mmesh::runtime_status_response::{MethodInfo, Status as Standing};
use berth_proto::mmesh::{
    LoadModelRequest, LoadModelResponse, ModelSizeRequest, ModelSizeResponse, PredictModelSizeRequest, PredictModelSizeResponse,
    RuntimeStatusRequest, RuntimeStatusResponse, UnloadModelRequest, UnloadModelResponse,
};
use berth_telemetry::{Clock, Listener};
use berth_types::{ByteSize, Footprint, ModelFormat, ModelId, Placement, Pool, Registration, StorageRef};
use futures::stream::{self, Stream, StreamExt as _};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::UnixListener;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::{Artifacts, IndexEntry, Infer, InferError, LoadError, LoadFault, Runtime};

/// How a runtime is served.
#[derive(Clone, Debug)]
pub struct ServedConfig {
    /// The folder below which models are loaded from, absolute.
    pub models: PathBuf,
    /// What all models may take: told, and kept by whoever drives the runtime.
    pub capacity: ByteSize,
    /// The largest message, in bytes.
    pub max_message: usize,
}

/// Where orders and requests come in.
pub enum Entrance {
    /// A port, at one address or several.
    Tcp(Vec<Listener>),
    /// A Unix socket.
    Unix(UnixListener),
}

/// What a model takes of which nothing is known.
const DEFAULT_SIZE: ByteSize = ByteSize::mib(1);
/// How long a computation may take.
const COMPUTING: Duration = Duration::from_secs(600);
/// How often the index is looked at while a model goes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Files and folders that a model may consist of.
const MOST_FILES: usize = 100_000;
/// The methods that clients may call, of which each names its model in field 1.
const METHODS: [&str; 4] = ["ModelInfer", "ModelMetadata", "ModelReady", "ModelStreamInfer"];

/// Serves `runtime` until `shutdown`, then until the last call has been answered.
///
/// # Errors
/// What the system says of the entrance.
pub async fn serve_contract<R: Runtime + Infer>(
    runtime: Arc<R>,
    config: ServedConfig,
    entrance: Entrance,
    clock: Clock,
    shutdown: impl Future<Output = ()>,
) -> Result<(), String> {
    let most = config.max_message;
    let served = Arc::new(Served { runtime, config, clock, sizes: Mutex::default() });
    let orders = ModelRuntimeServer::new(Contract(Arc::clone(&served)));
    let inference = GrpcInferenceServiceServer::new(Contract(served)).max_decoding_message_size(most).max_encoding_message_size(usize::MAX);
    let services = tonic::transport::Server::builder().add_service(orders).add_service(inference);
    let ended = match entrance {
        Entrance::Tcp(listeners) => {
            let accept = stream::select_all(listeners.into_iter().map(|listener| {
                let listener = listener.into_tokio();
                stream::poll_fn(move |cx| {
                    listener.poll_accept(cx).map(|accepted| Some(accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream))))
                })
            }));
            services.serve_with_incoming_shutdown(accept, shutdown).await
        }
        Entrance::Unix(listener) => {
            let accept = stream::poll_fn(move |cx| listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream))));
            services.serve_with_incoming_shutdown(accept, shutdown).await
        }
    };
    ended.map_err(|fault| fault.to_string())
}

struct Served<R> {
    runtime: Arc<R>,
    config: ServedConfig,
    clock: Clock,
    /// What each loaded model takes.
    sizes: Mutex<HashMap<ModelId, ByteSize>>,
}

/// The services.
struct Contract<R>(Arc<Served<R>>);

impl<R: Runtime + Infer> Served<R> {
    /// What an order is about.
    async fn described(&self, id: &str, model_type: &str, path: &str, key: &str) -> Result<(Registration, Artifacts), Status> {
        let id = model_id(id)?;
        let key = Key::read(key)?;
        let model = below(&self.config.models, path)?;
        let schema = key.schema_path.as_deref().map(|path| below(&self.config.models, path)).transpose()?;
        let (at, known) = (model.clone(), key.disk_size_bytes.filter(|bytes| *bytes > 0));
        let size = tokio::task::spawn_blocking(move || match known {
            Some(bytes) => std::fs::metadata(&at).map(|_it_is_there| bytes),
            None => bytes_of(&at),
        });
        let size = match size.await {
            Ok(Ok(size)) => ByteSize(size),
            Ok(Err(fault)) if fault.kind() == io::ErrorKind::NotFound => return Err(Status::not_found(format!("{path}: {fault}"))),
            Ok(Err(fault)) if fault.kind() == io::ErrorKind::InvalidInput => return Err(Status::invalid_argument(format!("{path}: {fault}"))),
            Ok(Err(fault)) => return Err(Status::unavailable(format!("{path}: {fault}"))),
            Err(panic) => return Err(Status::internal(panic.to_string())),
        };
        let format = key.model_type.map_or_else(|| ModelFormat { name: format_of(model_type).into(), version: None }, ModelFormat::from);
        let storage = StorageRef { key: None, parameters: Arc::default(), path: path.into(), schema_path: key.schema_path.map(Arc::from) };
        let registration = Registration::new(id, format, Placement::Format { protocol: None }, storage, None);
        Ok((registration, Artifacts { model, schema, size }))
    }

    async fn load(&self, request: LoadModelRequest) -> Result<LoadModelResponse, Status> {
        let (model, artifacts) = self.described(&request.model_id, &request.model_type, &request.model_path, &request.model_key).await?;
        let laid_out = self.runtime.lay_out(&model, &artifacts).await.map_err(|error| told(&error))?;
        let limit = self.runtime.info().load_timeout;
        let loaded = self.clock.until(self.clock.deadline_in(limit), self.runtime.load(&model, &laid_out)).await;
        let loaded = loaded.ok_or_else(|| Status::deadline_exceeded(format!("it did not load within {limit:?}")))?.map_err(|error| told(&error))?;
        let size = host(loaded.measured.or_else(|| self.runtime.estimate(&artifacts)));
        self.sizes.lock().insert(model.id, size);
        Ok(LoadModelResponse { size_in_bytes: size.0, max_concurrency: loaded.max_concurrency.map_or(0, std::num::NonZeroU32::get) })
    }

    /// Unloads, and waits until the runtime's index says that it is so.
    async fn unload(&self, id: &ModelId) -> Result<(), Status> {
        self.runtime.unload(id).await.map_err(|error| Status::internal(error.to_string()))?;
        loop {
            let index = self.runtime.index().await.map_err(|down| Status::unavailable(down.to_string()))?;
            if index.unloaded(id).is_some() {
                break;
            }
            // Others look as well, and a change may be theirs to see.
            let _ = self.clock.until(self.clock.deadline_in(LOOK_AGAIN), self.runtime.index_changed()).await;
        }
        self.runtime.clear_layout(id).await;
        self.sizes.lock().remove(id);
        Ok(())
    }

    async fn predict(&self, request: PredictModelSizeRequest) -> Result<PredictModelSizeResponse, Status> {
        let (_, artifacts) = self.described(&request.model_id, &request.model_type, &request.model_path, &request.model_key).await?;
        Ok(PredictModelSizeResponse { size_in_bytes: host(self.runtime.estimate(&artifacts)).0 })
    }

    async fn status(&self) -> RuntimeStatusResponse {
        let held = self.runtime.index().await.map(|index| index.iter().map(|(model, _)| model.clone()).collect::<Vec<_>>());
        let Ok(held) = held else { return RuntimeStatusResponse { status: Standing::Starting as i32, ..RuntimeStatusResponse::default() } };
        for model in held {
            if let Err(fault) = self.unload(&model).await {
                tracing::warn!(model = %model, error = fault.message(), "a model from before cannot be unloaded");
                return RuntimeStatusResponse { status: Standing::Failing as i32, ..RuntimeStatusResponse::default() };
            }
        }
        let info = self.runtime.info();
        let method = |name: &str| (format!("inference.GRPCInferenceService/{name}"), MethodInfo { id_injection_path: vec![1] });
        RuntimeStatusResponse {
            status: Standing::Ready as i32,
            capacity_in_bytes: self.config.capacity.0,
            max_loading_concurrency: info.load_concurrency.get(),
            model_loading_timeout_ms: u32::try_from(info.load_timeout.as_millis()).unwrap_or(u32::MAX),
            default_model_size_in_bytes: DEFAULT_SIZE.0,
            runtime_version: info.version.to_string(),
            method_infos: METHODS.into_iter().map(method).collect(),
            ..RuntimeStatusResponse::default()
        }
    }

    async fn infer(&self, id: &ModelId, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.runtime.infer(id, request, self.clock.deadline_in(COMPUTING)).await.map_err(|error| refused(&error))
    }
}

fn host(size: Option<Footprint>) -> ByteSize {
    // 0 would mean that the size comes later.
    size.map_or(DEFAULT_SIZE, |size| size.get(Pool::Host)).max(ByteSize(1))
}

/// What of a model key counts here. The rest, and what else there is, is left alone.
#[derive(Default, Deserialize)]
struct Key {
    #[serde(default)]
    model_type: Option<KeyType>,
    #[serde(default)]
    schema_path: Option<String>,
    #[serde(default)]
    disk_size_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KeyType {
    Parts {
        name: String,
        #[serde(default)]
        version: Option<String>,
    },
    Text(String),
}

impl From<KeyType> for ModelFormat {
    fn from(given: KeyType) -> Self {
        match given {
            KeyType::Parts { name, version } => ModelFormat { name: name.into(), version: version.map(Arc::from) },
            KeyType::Text(text) => ModelFormat { name: format_of(&text).into(), version: None },
        }
    }
}

impl Key {
    fn read(text: &str) -> Result<Self, Status> {
        if text.is_empty() {
            return Ok(Key::default());
        }
        serde_json::from_str(text).map_err(|fault| Status::invalid_argument(format!("invalid modelKey: {fault}")))
    }
}

/// The format in a type string: `mt:onnx:1|pv:v2` and `onnx:1` are `onnx`.
fn format_of(text: &str) -> &str {
    let text = text.strip_prefix("mt:").unwrap_or(text);
    text.split([':', '|']).next().unwrap_or_default()
}

fn model_id(text: &str) -> Result<ModelId, Status> {
    ModelId::new(text).map_err(|fault| Status::invalid_argument(fault.to_string()))
}

/// A path below the folder of models. Links in that folder may lead elsewhere: its owner made them.
fn below(folder: &Path, path: &str) -> Result<PathBuf, Status> {
    let full = folder.join(path);
    let plain = full.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain && full.starts_with(folder) {
        return Ok(full);
    }
    Err(Status::invalid_argument(format!("{path:?} is not below {}, where models are", folder.display())))
}

/// The bytes of a file, or of all files in a folder. The path itself may be a link; links below it count as files where they lead
/// to one, and folders that they lead to are somebody else's.
fn bytes_of(path: &Path) -> io::Result<u64> {
    let about = std::fs::metadata(path)?;
    if !about.is_dir() {
        return Ok(about.len());
    }
    let (mut sum, mut entries, mut folders) = (0_u64, 0, vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            entries += 1;
            if entries > MOST_FILES {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it has more than {MOST_FILES} files")));
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                // A link that leads nowhere has nothing to load.
                sum = sum.saturating_add(std::fs::metadata(entry.path()).map_or(0, |file| if file.is_dir() { 0 } else { file.len() }));
            }
        }
    }
    Ok(sum)
}

/// A failed load, in the contract's codes.
fn told(error: &LoadError) -> Status {
    let message = error.message.clone();
    match error.fault {
        LoadFault::BadModel if error.nothing_attempted => Status::invalid_argument(message),
        LoadFault::BadModel => Status::internal(message),
        LoadFault::OutOfMemory => Status::resource_exhausted(message),
        LoadFault::TimedOut => Status::deadline_exceeded(message),
        LoadFault::RuntimeDown | LoadFault::NotNow => Status::unavailable(message),
    }
}

fn refused(error: &InferError) -> Status {
    let message = error.to_string();
    match error {
        InferError::NotLoaded(_) => Status::not_found(message),
        InferError::BadRequest(_) => Status::invalid_argument(message),
        InferError::DeadlineExceeded => Status::deadline_exceeded(message),
        InferError::Busy(_) => Status::resource_exhausted(message),
        InferError::Failed(_) => Status::internal(message),
        InferError::Away(_) => Status::unavailable(message),
        InferError::Refused { code, .. } => Status::new((*code).into(), message),
    }
}

/// Which model is asked: the header counts, as the contract says, before the message.
fn asked(headers: &MetadataMap, named: &str) -> Result<ModelId, Status> {
    if let Some(id) = headers.get("mm-model-id") {
        return model_id(id.to_str().map_err(|_| Status::invalid_argument("mm-model-id is not plain text"))?);
    }
    match headers.get_bin("mm-model-id-bin") {
        Some(id) => {
            let bytes = id.to_bytes().map_err(|_| Status::invalid_argument("mm-model-id-bin is not base64"))?;
            model_id(std::str::from_utf8(&bytes).map_err(|_| Status::invalid_argument("mm-model-id-bin is not UTF-8"))?)
        }
        None => model_id(named),
    }
}

#[tonic::async_trait]
impl<R: Runtime + Infer> model_runtime_server::ModelRuntime for Contract<R> {
    async fn load_model(&self, request: Request<LoadModelRequest>) -> Result<Response<LoadModelResponse>, Status> {
        self.0.load(request.into_inner()).await.map(Response::new)
    }

    async fn unload_model(&self, request: Request<UnloadModelRequest>) -> Result<Response<UnloadModelResponse>, Status> {
        let id = model_id(&request.into_inner().model_id)?;
        self.0.unload(&id).await.map(|()| Response::new(UnloadModelResponse {}))
    }

    async fn predict_model_size(&self, request: Request<PredictModelSizeRequest>) -> Result<Response<PredictModelSizeResponse>, Status> {
        self.0.predict(request.into_inner()).await.map(Response::new)
    }

    async fn model_size(&self, request: Request<ModelSizeRequest>) -> Result<Response<ModelSizeResponse>, Status> {
        let id = model_id(&request.into_inner().model_id)?;
        let size = self.0.sizes.lock().get(&id).copied();
        size.map(|size| Response::new(ModelSizeResponse { size_in_bytes: size.0 })).ok_or_else(|| Status::not_found(format!("{id} is not loaded")))
    }

    async fn runtime_status(&self, _request: Request<RuntimeStatusRequest>) -> Result<Response<RuntimeStatusResponse>, Status> {
        Ok(Response::new(self.0.status().await))
    }
}

#[tonic::async_trait]
impl<R: Runtime + Infer> GrpcInferenceService for Contract<R> {
    async fn server_live(&self, _request: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _request: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let id = asked(request.metadata(), &request.get_ref().name)?;
        let index = self.0.runtime.index().await.map_err(|down| Status::unavailable(down.to_string()))?;
        Ok(Response::new(ModelReadyResponse { ready: index.get(&id) == Some(IndexEntry::Ready) }))
    }

    async fn server_metadata(&self, _request: Request<ServerMetadataRequest>) -> Result<Response<ServerMetadataResponse>, Status> {
        let info = self.0.runtime.info();
        let (name, version) = (info.name.to_string(), info.version.to_string());
        Ok(Response::new(ServerMetadataResponse { name, version, ..ServerMetadataResponse::default() }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Result<Response<ModelMetadataResponse>, Status> {
        let id = asked(request.metadata(), &request.get_ref().name)?;
        self.0.runtime.metadata(&id).await.map(Response::new).map_err(|error| refused(&error))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let id = asked(request.metadata(), &request.get_ref().model_name)?;
        self.0.infer(&id, request.into_inner()).await.map(Response::new)
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(&self, request: Request<Streaming<ModelInferRequest>>) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let headers = request.metadata().clone();
        let served = Arc::clone(&self.0);
        let answers = request.into_inner().then(move |message| {
            let (served, headers) = (Arc::clone(&served), headers.clone());
            async move {
                let message = message?;
                let id = asked(&headers, &message.model_name)?;
                let (error_message, infer_response) = match served.infer(&id, message).await {
                    Ok(answer) => (String::new(), Some(answer)),
                    Err(status) => (status.message().to_owned(), None),
                };
                Ok(ModelStreamInferResponse { error_message, infer_response })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn models_are_below_their_folder_or_nowhere() {
        let folder = Path::new("/models");
        for (path, found) in [
            ("/models/m/file", Some("/models/m/file")),
            ("m/file", Some("/models/m/file")),
            ("", Some("/models/")),
            ("/modelsx/m", None),
            ("/etc/passwd", None),
            ("/models/../etc/passwd", None),
            ("../x", None),
            ("./x", Some("/models/x")),
        ] {
            let answer = below(folder, path);
            assert_eq!(answer.as_deref().ok(), found.map(Path::new), "{path}");
            assert!(answer.is_ok() || answer.is_err_and(|told| told.code() == Code::InvalidArgument), "{path}");
        }
    }

    #[test]
    fn the_bytes_of_a_model_are_those_of_its_own_files() {
        use std::os::unix::fs::symlink;
        let place = tempfile::tempdir().expect("a folder");
        let at = |name: &str| place.path().join(name);
        for folder in ["model/deep", "elsewhere"] {
            std::fs::create_dir_all(at(folder)).expect("a folder");
        }
        for (file, bytes) in [("model/a", 10), ("model/deep/b", 100), ("elsewhere/c", 1000), ("blob", 10_000)] {
            std::fs::write(at(file), vec![0; bytes]).expect("written");
        }
        for (link, to) in [("model/file", "blob"), ("model/folder", "elsewhere"), ("model/loop", "model"), ("model/none", "gone"), ("link", "model")]
        {
            symlink(at(to), at(link)).expect("a link");
        }
        for (path, bytes) in [("model", 10_110), ("link", 10_110), ("model/a", 10), ("model/file", 10_000)] {
            assert_eq!(bytes_of(&at(path)).expect("it is there"), bytes, "{path}");
        }
        assert_eq!(bytes_of(&at("gone")).map_err(|fault| fault.kind()), Err(io::ErrorKind::NotFound));
    }

    #[tokio::test]
    async fn what_is_known_of_a_models_size_is_not_looked_up() {
        let place = tempfile::tempdir().expect("a folder");
        std::fs::write(place.path().join("m"), "0123456789").expect("written");
        let clock = Clock::system();
        let config = ServedConfig { models: place.path().to_owned(), capacity: ByteSize::mib(1), max_message: 1 };
        let served = Served { runtime: Arc::new(crate::FakeRuntime::new(clock.clone())), config, clock, sizes: Mutex::default() };
        for (path, key, size) in [
            ("m", r#"{"disk_size_bytes":7}"#, Ok(ByteSize(7))),
            ("m", r#"{"disk_size_bytes":0}"#, Ok(ByteSize(10))),
            ("m", "", Ok(ByteSize(10))),
            ("gone", r#"{"disk_size_bytes":7}"#, Err(Code::NotFound)),
        ] {
            let told = served.described("id", "onnx", path, key).await;
            assert_eq!(told.map(|(_, artifacts)| artifacts.size).map_err(|status| status.code()), size, "{path} {key}");
        }
    }

    #[test]
    fn the_format_is_in_the_key_else_in_the_type() {
        for (key, format) in [
            (r#"{"model_type":{"name":"onnx","version":"1"},"disk_size_bytes":7,"more":[]}"#, Some(("onnx", Some("1")))),
            (r#"{"model_type":"onnx:1"}"#, Some(("onnx", None))),
            (r#"{"model_type":{"name":"onnx"}}"#, Some(("onnx", None))),
            ("{}", None),
            ("", None),
        ] {
            let read = Key::read(key).expect("it is a key").model_type.map(ModelFormat::from);
            let shown = read.as_ref().map(|format| (&*format.name, format.version.as_deref()));
            assert_eq!(shown, format, "{key}");
        }
        for (text, format) in [("mt:onnx:1|pv:v2", "onnx"), ("mt:onnx", "onnx"), ("onnx", "onnx"), ("", "")] {
            assert_eq!(format_of(text), format, "{text}");
        }
        for key in ["[", r#"{"schema_path":7}"#, r#"{"disk_size_bytes":"x"}"#, r#"{"model_type":7}"#] {
            let told = Key::read(key).err().map(|told| (told.code(), told.message().starts_with("invalid modelKey")));
            assert_eq!(told, Some((Code::InvalidArgument, true)), "{key}");
        }
    }

    #[test]
    fn the_header_names_the_model_before_the_message_does() {
        let id = |text: &str| ModelId::new(text).expect("valid");
        let mut headers = MetadataMap::new();
        assert_eq!(asked(&headers, "named").ok(), Some(id("named")));
        headers.insert_bin("mm-model-id-bin", MetadataValue::from_bytes("mü".as_bytes()));
        assert_eq!(asked(&headers, "named").ok(), Some(id("mü")));
        headers.insert("mm-model-id", MetadataValue::from_static("m"));
        assert_eq!(asked(&headers, "named").ok(), Some(id("m")));
        assert_eq!(asked(&MetadataMap::new(), "").err().map(|told| told.code()), Some(Code::InvalidArgument));
    }

    #[test]
    fn what_nothing_was_attempted_of_is_told_apart() {
        let error = |fault, nothing_attempted| LoadError { fault, message: "why".to_owned(), nothing_attempted };
        for (error, code) in [
            (error(LoadFault::BadModel, true), Code::InvalidArgument),
            (error(LoadFault::BadModel, false), Code::Internal),
            (error(LoadFault::OutOfMemory, false), Code::ResourceExhausted),
            (error(LoadFault::TimedOut, false), Code::DeadlineExceeded),
            (error(LoadFault::NotNow, false), Code::Unavailable),
            (error(LoadFault::RuntimeDown, true), Code::Unavailable),
        ] {
            assert_eq!((told(&error).code(), told(&error).message()), (code, "why"), "{error:?}");
        }
    }
}
