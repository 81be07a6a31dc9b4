//! ONNX Runtime, by its shared library: every operator, and fast.
//!
//! One library and one environment per process, opened once and kept (the library cannot be unloaded and opened anew).
//! All sessions share one pool of threads, so that a hundred models do not bring a hundred pools. Memory is not kept
//! after a run: ONNX Runtime's arena never shrinks, and a cache of models must know what each one holds.
//!
//! ONNX Runtime allocates in C++, past Rust's allocator: what a load took is the change of everything that the C
//! library holds and Rust does not, taken only when no other load, run or drop of this engine went on meanwhile.

use std::error::Error as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_types::ByteSize;
use bytes::Bytes;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use ort::session::builder::SessionBuilder;
use ort::session::{SessionInputValue, SessionInputs};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};
use parking_lot::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::engine::{Engine, Opened, Session, brief, contained};
use super::files::ModelFile;
use super::interface::{Dim, Interface, Port};
use crate::tensor::{self, Datatype, Tensor};
use crate::{InferError, LoadError, LoadFault, counting, sample};

#[cfg(target_endian = "big")]
compile_error!("tensors travel little-endian and are handed to ONNX Runtime as they are");

/// The library that this process opened. There can be one.
static OPENED: Mutex<Option<(PathBuf, Arc<Library>)>> = Mutex::new(None);

struct Library {
    environment: Environment,
    version: String,
    busy: Busy,
}

/// What runs inside ONNX Runtime (loads, runs, drops), for deciding whether a measure is one load's alone. One word, so
/// that no call is seen half begun: the upper half counts the calls ever begun (and wraps), the lower one those running.
#[derive(Default)]
struct Busy(AtomicU64);

const BEGUN: u64 = 1 << 32;
const RUNNING: u64 = BEGUN - 1;

struct Call<'a> {
    busy: &'a Busy,
    /// The word once this call had begun; `None` when another was running.
    alone: Option<u64>,
}

impl Busy {
    fn begin(&self) -> Call<'_> {
        let before = self.0.fetch_add(BEGUN + 1, Ordering::SeqCst);
        let alone = (before & RUNNING == 0).then(|| before.wrapping_add(BEGUN + 1));
        Call { busy: self, alone }
    }
}

impl Call<'_> {
    /// Whether nothing else ran since this call began.
    fn was_alone(&self) -> bool {
        self.alone == Some(self.busy.0.load(Ordering::SeqCst))
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.busy.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The engine over the library.
pub(super) struct OnnxRuntimeEngine {
    library: Arc<Library>,
}

impl OnnxRuntimeEngine {
    /// Opens the library at `path`, or goes on with it when this process opened it before. `threads` work on one model
    /// at a time.
    ///
    /// # Errors
    /// Why it cannot be used, as text.
    pub(super) fn open(path: &Path, threads: NonZeroUsize) -> Result<Self, String> {
        // ort takes a relative path from the executable's folder first; users mean the current one.
        let path = &if path.is_file() { std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() };
        let mut opened = OPENED.lock();
        if let Some((first, library)) = &*opened {
            return if first == path {
                Ok(OnnxRuntimeEngine { library: Arc::clone(library) })
            } else {
                Err(format!("this process uses {} already", first.display()))
            };
        }
        let library = contained(|| open(path, threads)).unwrap_or_else(|panic| Err(format!("its start failed: {panic}")))?;
        let library = Arc::new(library);
        *opened = Some((path.clone(), Arc::clone(&library)));
        Ok(OnnxRuntimeEngine { library })
    }
}

fn open(path: &Path, threads: NonZeroUsize) -> Result<Library, String> {
    let builder = ort::init_from(path).map_err(|fault| match &fault {
        // Its own text says that it failed, its source says why.
        ort::LoadDynamicError::Dlopen { error, .. } => error.source().map_or_else(|| error.to_string(), ToString::to_string),
        other => other.to_string(),
    })?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads.get())
        .and_then(|pool| pool.with_inter_threads(1))
        .and_then(|pool| pool.with_spin_control(false));
    let environment = pool
        .and_then(|pool| builder.with_name("berth").with_telemetry(false).with_logger(Arc::new(log)).with_global_thread_pool(pool).build())
        .map_err(|fault| fault.to_string())?;
    environment.set_log_level(LogLevel::Warning);
    let library = Library { environment, version: version(path), busy: Busy::default() };
    // The first session sets up registries that live as long as the process; no model's load should be charged for them.
    library.session(|builder| builder.commit_from_memory(&sample::identity(sample::FLOAT))).map_err(|fault| brief(fault.message()))?;
    Ok(library)
}

/// Failures come back as errors and are logged where they are handled, so these lines are for the curious.
fn log(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    if level == LogLevel::Fatal {
        tracing::error!(category, location, error = message, "onnxruntime");
    } else {
        tracing::debug!(category, location, level = ?level, text = message, "onnxruntime");
    }
}

/// The version: in the name of the file behind the links; a library file without it says at least which commit it is.
fn version(path: &Path) -> String {
    let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbered = name.split_once(".so.").map(|(_, version)| version.to_owned());
    let commit = || ort::info().split(['=', ',', ' ']).skip_while(|word| *word != "git-commit-id").nth(1).map(|id| format!("(commit {id})"));
    numbered.filter(|version| version.contains('.')).or_else(commit).unwrap_or_else(|| "(unknown version)".to_owned())
}

impl Library {
    fn session(&self, commit: impl FnOnce(&mut SessionBuilder) -> ort::Result<ort::session::Session>) -> ort::Result<ort::session::Session> {
        let mut builder = ort::session::Session::builder(&self.environment)?
            .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(false).build().error_on_failure()])?
            .with_memory_pattern(false)?
            .with_log_level(LogLevel::Warning)?;
        commit(&mut builder)
    }
}

impl Engine for OnnxRuntimeEngine {
    fn platform(&self) -> &'static str {
        "onnxruntime"
    }

    fn version(&self) -> String {
        format!("onnxruntime {}", self.library.version)
    }

    fn estimate(&self, files: ByteSize) -> ByteSize {
        // Measured: weights are kept once (1.0 to 1.2 x the file), a forest of trees takes 4.5 x its file, and a session
        // of any size 70 to 150 KiB.
        files.percent(300) + ByteSize::kib(512)
    }

    fn load(&self, file: &ModelFile) -> Result<Opened, LoadError> {
        let call = self.library.busy.begin();
        let before = counting::native_bytes();
        let session = self.library.session(|builder| builder.commit_from_file(&file.path)).map_err(|fault| {
            let message = brief(fault.message()).replace(&*file.path.to_string_lossy(), &file.name());
            let out_of_memory = message.contains("bad_alloc") || message.contains("Failed to allocate");
            let unknown = message.contains("not a registered function/op");
            let hint = if unknown { "; operators of other libraries are not part of ONNX Runtime" } else { "" };
            LoadError {
                fault: if out_of_memory { LoadFault::OutOfMemory } else { LoadFault::BadModel },
                message: format!("{} cannot be run by ONNX Runtime: {message}{hint}", file.name()),
                nothing_attempted: false,
            }
        })?;
        let interface = Interface { inputs: ports("input", session.inputs(), file)?, outputs: ports("output", session.outputs(), file)? };
        let after = counting::native_bytes();
        let measured = if call.was_alone() { before.zip(after).map(|(before, after)| after.saturating_sub(before)) } else { None };
        // External data is mapped from its file rather than allocated where the layout allows it; counted in full, so
        // that the sum is at least what is held.
        let measured = measured.filter(|bytes| *bytes > ByteSize::ZERO).map(|bytes| bytes + file.external);
        let session = OrtSession { library: Arc::clone(&self.library), outputs: interface.outputs.clone(), session: Mutex::new(Some(session)) };
        Ok(Opened { session: Box::new(session), interface, measured })
    }
}

fn ports(what: &str, outlets: &[ort::value::Outlet], file: &ModelFile) -> Result<Vec<Port>, LoadError> {
    let name = file.name();
    let port = |outlet: &ort::value::Outlet| {
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
            let zip_map = file.outline.operators.keys().any(|operator| operator.kind == "ZipMap");
            let hint = if zip_map { " (export it without ZipMap: option zipmap=False)" } else { "" };
            return Err(LoadError::bad_model(format!(
                "{name}: {what} {:?} is not a tensor but {}: inference protocols carry tensors only{hint}",
                outlet.name(),
                outlet.dtype()
            )));
        };
        let datatype = datatype_of(*ty)
            .ok_or_else(|| LoadError::bad_model(format!("{name}: {what} {:?} has the element type {ty}, which the protocol lacks", outlet.name())))?;
        // ONNX Runtime does not hold a model to equal sizes of equally named dimensions, and many exporters name
        // carelessly, so names are not checked.
        let _ = dimension_symbols;
        let dims: Vec<Dim> = shape.iter().map(|dim| usize::try_from(*dim).map_or(Dim::Any, Dim::Fixed)).collect();
        // A shape without dimensions is a scalar's, or none at all: the file says which.
        let any_rank = dims.is_empty() && file.outline.shapeless.contains(outlet.name());
        Ok(Port { name: outlet.name().to_owned(), datatype, shape: (!any_rank).then_some(dims) })
    };
    outlets.iter().map(port).collect()
}

fn datatype_of(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Bfloat16 => Datatype::Bf16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}

struct OrtSession {
    /// `None` only while this is dropped.
    session: Mutex<Option<ort::session::Session>>,
    outputs: Vec<Port>,
    library: Arc<Library>,
}

impl Drop for OrtSession {
    /// What a drop gives back would make another model that is loading look smaller. The environment outlives it.
    fn drop(&mut self) {
        let _call = self.library.busy.begin();
        drop(self.session.get_mut().take());
    }
}

impl Session for OrtSession {
    fn run(&self, inputs: Vec<Tensor>, wanted: &[usize]) -> Result<Vec<Tensor>, InferError> {
        let _call = self.library.busy.begin();
        let failed = |fault: ort::Error| match fault.code() {
            ort::ErrorCode::InvalidArgument => InferError::BadRequest(format!("the model refuses these inputs: {}", brief(fault.message()))),
            _ => InferError::Failed(format!("the model failed: {}", brief(fault.message()))),
        };
        let copies: Vec<Aligned> = inputs.iter().map(Aligned::of).collect::<Result<_, _>>()?;
        let values = inputs.iter().zip(&copies).map(|(input, aligned)| {
            let value =
                aligned.value(&input.shape).map_err(|fault| InferError::BadRequest(format!("input {:?}: {}", input.name, brief(fault.message()))))?;
            Ok((std::borrow::Cow::Borrowed(input.name.as_str()), value))
        });
        let values = values.collect::<Result<Vec<_>, InferError>>()?;
        // Uncontended: the caller lets one in at a time (`parallel` is false).
        let mut session = self.session.lock();
        let session = session.as_mut().ok_or_else(|| InferError::Failed("the model is being dropped".to_owned()))?;
        let results = session.run(SessionInputs::<0>::ValueMap(values)).map_err(failed)?;
        wanted
            .iter()
            .map(|at| {
                let port = self.outputs.get(*at).ok_or_else(|| InferError::Failed(format!("the model has no output number {at}")))?;
                let result = results.get(port.name.as_str()).ok_or_else(|| InferError::Failed(format!("output {:?} was not computed", port.name)))?;
                tensor_of(port, result).map_err(|fault| InferError::Failed(format!("output {:?}: {}", port.name, brief(fault.message()))))
            })
            .collect()
    }

    fn parallel(&self) -> bool {
        // ort asks for exclusive access to a session: parts of ONNX Runtime are not safe to share.
        false
    }
}

/// The elements of an input in memory as ONNX Runtime wants it: where the request's bytes are aligned they are used as
/// they are, else copied.
enum Elements<'a, T> {
    Lent(&'a [T]),
    Copied(Vec<T>),
}

impl<'a, T: FromBytes + Immutable + KnownLayout + IntoBytes + Clone + Copy> Elements<'a, T> {
    fn of(raw: &'a [u8]) -> Self {
        match <[T]>::ref_from_bytes(raw) {
            Ok(elements) => Elements::Lent(elements),
            Err(_) => {
                let mut copied = vec![T::new_zeroed(); raw.len() / size_of::<T>()];
                copied.as_mut_bytes_of(raw);
                Elements::Copied(copied)
            }
        }
    }

    fn slice(&self) -> &[T] {
        match self {
            Elements::Lent(elements) => elements,
            Elements::Copied(elements) => elements,
        }
    }
}

trait FillFrom {
    fn as_mut_bytes_of(&mut self, raw: &[u8]);
}

impl<T: FromBytes + IntoBytes> FillFrom for Vec<T> {
    /// Copies `raw`, whose length was checked against datatype and shape before.
    fn as_mut_bytes_of(&mut self, raw: &[u8]) {
        let bytes = self.as_mut_slice().as_mut_bytes();
        let length = bytes.len().min(raw.len());
        bytes[..length].copy_from_slice(&raw[..length]);
    }
}

enum Aligned<'a> {
    Bool(Vec<bool>),
    I8(Elements<'a, i8>),
    I16(Elements<'a, i16>),
    I32(Elements<'a, i32>),
    I64(Elements<'a, i64>),
    U8(Elements<'a, u8>),
    U16(Elements<'a, u16>),
    U32(Elements<'a, u32>),
    U64(Elements<'a, u64>),
    F16(Elements<'a, half::f16>),
    Bf16(Elements<'a, half::bf16>),
    F32(Elements<'a, f32>),
    F64(Elements<'a, f64>),
    Text(Vec<String>),
}

impl<'a> Aligned<'a> {
    fn of(input: &'a Tensor) -> Result<Self, InferError> {
        let raw = &input.raw[..];
        Ok(match input.datatype {
            Datatype::Bool => Aligned::Bool(raw.iter().map(|byte| *byte != 0).collect()),
            Datatype::Int8 => Aligned::I8(Elements::of(raw)),
            Datatype::Int16 => Aligned::I16(Elements::of(raw)),
            Datatype::Int32 => Aligned::I32(Elements::of(raw)),
            Datatype::Int64 => Aligned::I64(Elements::of(raw)),
            Datatype::Uint8 => Aligned::U8(Elements::of(raw)),
            Datatype::Uint16 => Aligned::U16(Elements::of(raw)),
            Datatype::Uint32 => Aligned::U32(Elements::of(raw)),
            Datatype::Uint64 => Aligned::U64(Elements::of(raw)),
            Datatype::Fp16 => Aligned::F16(Elements::of(raw)),
            Datatype::Bf16 => Aligned::Bf16(Elements::of(raw)),
            Datatype::Fp32 => Aligned::F32(Elements::of(raw)),
            Datatype::Fp64 => Aligned::F64(Elements::of(raw)),
            Datatype::Bytes => {
                let texts = input.strings().enumerate().map(|(at, text)| {
                    let refused = |what| InferError::BadRequest(format!("input {:?}: BYTES element {at} {what}", input.name));
                    let text = std::str::from_utf8(text).map_err(|_| refused("is not UTF-8, ONNX strings are"))?;
                    if text.contains('\0') { Err(refused("holds a zero byte, which ONNX Runtime cannot take")) } else { Ok(text.to_owned()) }
                });
                Aligned::Text(texts.collect::<Result<_, _>>()?)
            }
        })
    }

    fn value<'v>(&'v self, shape: &[usize]) -> ort::Result<SessionInputValue<'v>> {
        fn view<'v, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
            shape: &[usize],
            elements: &'v [T],
        ) -> ort::Result<SessionInputValue<'v>> {
            Ok(TensorRef::from_array_view((shape.to_vec(), elements))?.into())
        }
        match self {
            Aligned::Bool(elements) => view(shape, elements),
            Aligned::I8(elements) => view(shape, elements.slice()),
            Aligned::I16(elements) => view(shape, elements.slice()),
            Aligned::I32(elements) => view(shape, elements.slice()),
            Aligned::I64(elements) => view(shape, elements.slice()),
            Aligned::U8(elements) => view(shape, elements.slice()),
            Aligned::U16(elements) => view(shape, elements.slice()),
            Aligned::U32(elements) => view(shape, elements.slice()),
            Aligned::U64(elements) => view(shape, elements.slice()),
            Aligned::F16(elements) => view(shape, elements.slice()),
            Aligned::Bf16(elements) => view(shape, elements.slice()),
            Aligned::F32(elements) => view(shape, elements.slice()),
            Aligned::F64(elements) => view(shape, elements.slice()),
            Aligned::Text(texts) => Ok(ort::value::Tensor::from_string_array((shape.to_vec(), texts.as_slice()))?.into()),
        }
    }
}

fn tensor_of(port: &Port, result: &DynValue) -> ort::Result<Tensor> {
    fn bytes_of<T: PrimitiveTensorElementType + IntoBytes + Immutable>(result: &DynValue) -> ort::Result<(Vec<i64>, Bytes)> {
        let (shape, elements) = result.try_extract_tensor::<T>()?;
        Ok((shape.to_vec(), Bytes::copy_from_slice(elements.as_bytes())))
    }
    // The declared type: ONNX Runtime holds models to it.
    let (shape, raw) = match port.datatype {
        Datatype::Bool => bytes_of::<bool>(result)?,
        Datatype::Int8 => bytes_of::<i8>(result)?,
        Datatype::Int16 => bytes_of::<i16>(result)?,
        Datatype::Int32 => bytes_of::<i32>(result)?,
        Datatype::Int64 => bytes_of::<i64>(result)?,
        Datatype::Uint8 => bytes_of::<u8>(result)?,
        Datatype::Uint16 => bytes_of::<u16>(result)?,
        Datatype::Uint32 => bytes_of::<u32>(result)?,
        Datatype::Uint64 => bytes_of::<u64>(result)?,
        Datatype::Fp16 => bytes_of::<half::f16>(result)?,
        Datatype::Bf16 => bytes_of::<half::bf16>(result)?,
        Datatype::Fp32 => bytes_of::<f32>(result)?,
        Datatype::Fp64 => bytes_of::<f64>(result)?,
        Datatype::Bytes => {
            let (shape, texts) = result.try_extract_strings()?;
            let raw = tensor::frame(texts.iter().map(String::as_bytes)).ok_or_else(|| ort::Error::new("an element is longer than 4 GiB"))?;
            (shape.to_vec(), raw)
        }
    };
    let shape = shape.into_iter().map(|dim| usize::try_from(dim).unwrap_or(0)).collect();
    Ok(Tensor { name: port.name.clone(), datatype: port.datatype, shape, raw })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_was_alone_only_when_no_other_ran_at_any_time_of_it() {
        for (case, busy) in [("fresh", Busy::default()), ("about to wrap", Busy(AtomicU64::new(u64::from(u32::MAX) << 32)))] {
            let alone = busy.begin();
            assert!(alone.was_alone(), "{case}");
            let second = busy.begin();
            assert!(!alone.was_alone() && !second.was_alone(), "{case}: two at a time");
            drop(alone);
            assert!(!second.was_alone(), "{case}: the first one ran when it began");
            drop(second);
            let third = busy.begin();
            assert!(third.was_alone(), "{case}: both are over");
            drop(busy.begin());
            assert!(!third.was_alone(), "{case}: another came and went");
        }
    }
}
