//! A real Triton Inference Server with its Python backend, and the models that tests have it serve.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::calls::{Client, Kind, Order};
use crate::http::{post, ready};
use crate::message::text;
use crate::parts::part;
use crate::real_time::{Found, eventually};
use crate::{Parts, Process, free_port};

/// A start, and the load of a model, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder in which the server looks for models.
pub struct TritonModels {
    folder: TempDir,
}

/// A tensor of a configuration: name, datatype as the protocol calls it, dimensions with -1 for any size.
type Tensor<'a> = (&'a str, &'a str, &'a [i64]);

impl TritonModels {
    /// Without a model.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new() -> Result<Self> {
        Ok(TritonModels { folder: TempDir::new()? })
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `name` serves the ONNX file; `request` and `expected` show its tensors, of which the first dimension may vary.
    ///
    /// # Errors
    /// What the file system says, or when a tensor lacks its name, type or shape.
    pub fn onnx(&self, name: &str, file: &Path, request: &Value, expected: &Value) -> Result<()> {
        let tensors = |shown: &Value| -> Result<String> {
            let shown = shown.as_array().context("a list of tensors")?.iter().map(|tensor| {
                let shape = tensor["shape"].as_array().context("a shape")?.iter().skip(1).filter_map(Value::as_i64);
                let dims: Vec<i64> = [-1].into_iter().chain(shape).collect();
                Ok(tensor_text((tensor["name"].as_str().context("a name")?, tensor["datatype"].as_str().context("a datatype")?, &dims), ""))
            });
            Ok(shown.collect::<Result<Vec<_>>>()?.join(",\n"))
        };
        self.write(name, &tensors(&request["inputs"])?, &tensors(&expected["outputs"])?, "", include_str!("models/onnx.py"))?;
        let place = self.folder().join(name).join("1/model.onnx");
        fs::copy(file, place).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// `name` sends each input `IN_T` back as `OUT_T`, for every datatype T but BF16, and the request's parameters as
    /// JSON in `PARAMETERS`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn echo(&self, name: &str) -> Result<()> {
        let types = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"];
        let tensors = |side: &str, more: &str| types.map(|datatype| tensor_text((&format!("{side}_{datatype}"), datatype, &[-1]), more)).join(",\n");
        let outputs = format!("{},\n{}", tensors("OUT", ""), tensor_text(("PARAMETERS", "BYTES", &[1]), ""));
        self.write(name, &tensors("IN", " optional: true"), &outputs, "", include_str!("models/echo.py"))
    }

    /// A model for a store: a folder `place` with a file of weights and a script that takes `percent` of its bytes of memory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn hungry(place: &Path, weights: &[u8], percent: u32) -> Result<()> {
        fs::create_dir_all(place.join("1"))?;
        fs::write(place.join("config.pbtxt"), one_number())?;
        fs::write(place.join("1/weights"), weights)?;
        fs::write(place.join("1/percent"), percent.to_string())?;
        Ok(fs::write(place.join("1/model.py"), include_str!("models/hungry.py"))?)
    }

    /// A model for a store: a folder `place` with a script that multiplies FP32 `IN` by `factor` into `OUT`, and `pad` bytes more.
    /// `script` says what it does before, by stage (`load`, `infer`): `{"infer": {"waits": PATH}}`, `{"load": {"kills": true}}`;
    /// see `models/scripted.py`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scripted(place: &Path, factor: u32, script: &Value, pad: usize) -> Result<()> {
        fs::create_dir_all(place.join("1"))?;
        let mut script = script.clone();
        script["factor"] = json!(factor);
        fs::write(place.join("config.pbtxt"), one_number())?;
        fs::write(place.join("1/script.json"), script.to_string())?;
        fs::write(place.join("1/pad"), vec![0; pad])?;
        Ok(fs::write(place.join("1/model.py"), include_str!("models/scripted.py"))?)
    }

    /// `name` answers a request on a stream as often as its INT32 `IN` has elements, one in each `OUT`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn repeat(&self, name: &str) -> Result<()> {
        let (input, output) = (tensor_text(("IN", "INT32", &[-1]), ""), tensor_text(("OUT", "INT32", &[1]), ""));
        self.write(name, &input, &output, "model_transaction_policy { decoupled: true }", include_str!("models/repeat.py"))
    }

    /// `name` takes as many FP32 `SECONDS` as it is told. It logs `slow: begun ID`, then `slow: ended ID` or `slow:
    /// cancelled ID`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn slow(&self, name: &str) -> Result<()> {
        let (input, output) = (tensor_text(("SECONDS", "FP32", &[1]), ""), tensor_text(("SLEPT", "FP32", &[1]), ""));
        self.write(name, &input, &output, "", include_str!("models/slow.py"))
    }

    fn write(&self, name: &str, inputs: &str, outputs: &str, more: &str, script: &str) -> Result<()> {
        let place = self.folder().join(name);
        fs::create_dir_all(place.join("1"))?;
        let config = format!(
            "name: {}\nbackend: \"python\"\nmax_batch_size: 0\ninput [\n{inputs}\n]\noutput [\n{outputs}\n]\n{more}\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n",
            json!(name)
        );
        fs::write(place.join("config.pbtxt"), config)?;
        Ok(fs::write(place.join("1/model.py"), script)?)
    }
}

/// The configuration of a model of the Python backend that makes one `OUT` of one `IN`.
fn one_number() -> String {
    let (input, output) = (tensor_text(("IN", "FP32", &[1]), ""), tensor_text(("OUT", "FP32", &[1]), ""));
    format!("backend: \"python\"\nmax_batch_size: 0\ninput [\n{input}\n]\noutput [\n{output}\n]\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n")
}

/// A tensor as Triton's configuration writes it.
fn tensor_text((name, datatype, dims): Tensor<'_>, more: &str) -> String {
    let datatype = if datatype == "BYTES" { "STRING" } else { datatype };
    format!("  {{ name: {} data_type: TYPE_{datatype} dims: {dims:?}{more} }}", json!(name))
}

/// The server. Ends with all its processes when dropped.
pub struct Triton {
    process: Process,
    parts: Parts,
    models: PathBuf,
    /// The folder of its backends, where it has more than come with it.
    backends: Option<TempDir>,
    grpc: SocketAddr,
    http: SocketAddr,
    /// How the names of its regions of shared memory begin.
    regions: String,
}

impl Triton {
    /// Serves `models`, none of which is loaded yet.
    ///
    /// # Errors
    /// When it cannot be started or is not ready within a minute.
    pub async fn start(parts: &Parts, models: &Path) -> Result<Self> {
        Triton::launch(parts, models, None).await
    }

    /// The same with a backend for ONNX files, which completes their configurations.
    ///
    /// # Errors
    /// When it cannot be started or is not ready within a minute.
    pub async fn with_onnx(parts: &Parts, models: &Path) -> Result<Self> {
        let backends = TempDir::new()?;
        std::os::unix::fs::symlink(place()?.join("backends/python"), backends.path().join("python"))?;
        fs::create_dir(backends.path().join("onnxruntime"))?;
        fs::write(backends.path().join("onnxruntime/model.py"), include_str!("models/onnx_backend.py"))?;
        Triton::launch(parts, models, Some(backends)).await
    }

    async fn launch(parts: &Parts, models: &Path, backends: Option<TempDir>) -> Result<Self> {
        let [grpc, http] = [(); 2].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let regions = format!("berth_{}_{}_", std::process::id(), grpc.port());
        let (parts, models) = (parts.clone(), models.to_owned());
        let process = spawn(&parts, &models, backends.as_ref(), grpc, http, &regions)?;
        let triton = Triton { process, parts, models, backends, grpc, http, regions };
        triton.ready().await?;
        Ok(triton)
    }

    async fn ready(&self) -> Result<()> {
        ready("Triton", self.http, PATIENCE).await.with_context(|| self.process.written())
    }

    /// Kills it with all its processes, as the kernel does when memory has run out.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&mut self) -> Result<()> {
        self.end();
        self.process.exit(PATIENCE).await.map(drop)
    }

    /// Completes when it has ended by itself. What its models run in may still be there: [`Triton::kill`] ends that too.
    ///
    /// # Errors
    /// When that cannot be known.
    pub async fn ended(&mut self) -> Result<()> {
        self.process.ended().await.map(drop)
    }

    /// Names of the models that it lists in this state, sorted: `READY`, `UNAVAILABLE` and the like.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn listed(&self, state: &str) -> Result<Vec<String>> {
        let index = post(&format!("http://{}/v2/repository/index", self.http), "").await?.good()?;
        let entries = index.as_array().into_iter().flatten().filter(|entry| entry["state"] == state);
        let mut names: Vec<String> = entries.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Starts it anew where it was, after [`Triton::kill`].
    ///
    /// # Errors
    /// When it cannot be started or is not ready within a minute.
    pub async fn again(&mut self) -> Result<()> {
        self.process = spawn(&self.parts, &self.models, self.backends.as_ref(), self.grpc, self.http, &self.regions)?;
        self.ready().await
    }

    fn end(&self) {
        // Each model is a process of its own. They are in the server's group, and nobody else is.
        if let Some(group) = Pid::from_raw(self.process.id()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        // Killed, it leaves its shared memory behind.
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.regions) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Where it takes gRPC.
    #[must_use]
    pub fn grpc(&self) -> String {
        self.grpc.to_string()
    }

    /// Where it takes HTTP.
    #[must_use]
    pub fn http(&self) -> String {
        self.http.to_string()
    }

    /// The process: what it logs is on its standard error.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Loads a model over its own API; it can be asked when this returns.
    ///
    /// # Errors
    /// What the server says.
    pub async fn load(&self, name: &str) -> Result<()> {
        self.repository("RepositoryModelLoad", name).await
    }

    /// Unloads a model over its own API and waits until the index says that it is gone, which is later than the answer.
    ///
    /// # Errors
    /// What the server says.
    pub async fn unload(&self, name: &str) -> Result<()> {
        self.repository("RepositoryModelUnload", name).await?;
        eventually(&format!("{name} to be unloaded"), PATIENCE, || async {
            let index = post(&format!("http://{}/v2/repository/index", self.http), "").await?.good()?;
            let entry = index.as_array().into_iter().flatten().find(|entry| entry["name"] == name).cloned().unwrap_or_default();
            Ok(if entry["state"] == "UNAVAILABLE" { Found::Yes(()) } else { Found::NotYet(entry.to_string()) })
        })
        .await
    }

    async fn repository(&self, method: &str, name: &str) -> Result<()> {
        let order = Order::new(Kind::Unary, &format!("/inference.GRPCInferenceService/{method}")).message(text(2, name)).timeout(PATIENCE);
        let outcome = Client::Go.call(&self.parts, &self.grpc(), order).await?;
        ensure!(outcome.code == 0, "{method} of {name} ended with {} {}\n{}", outcome.code, outcome.message, self.process.written());
        Ok(())
    }
}

impl Drop for Triton {
    fn drop(&mut self) {
        self.end();
    }
}

/// The folder that the server came in.
fn place() -> Result<PathBuf> {
    Ok(part("BERTH_TRITON")?.ancestors().nth(2).context("the server lies in bin")?.to_owned())
}

fn spawn(parts: &Parts, models: &Path, backends: Option<&TempDir>, grpc: SocketAddr, http: SocketAddr, regions: &str) -> Result<Process> {
    let place = place()?;
    let libraries = place.ancestors().nth(2).context("the server lies in a Python package")?.join("nvidia_pytriton.libs");
    // Models run in a Python of their own, which is the first one on the path: the one that has ONNX Runtime.
    let python = parts.python.parent().context("a program lies in a folder")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([python.to_owned()].into_iter().chain(std::env::split_paths(&path)))?;
    let mut command = Command::new(part("BERTH_TRITON")?);
    command.env("PATH", path).env("LD_LIBRARY_PATH", libraries).env("OMP_NUM_THREADS", "1").env("BERTH_TEST_REPOSITORY", models);
    let (folder, more) = backends.map_or((place.join("backends"), Some("--disable-auto-complete-config")), |more| (more.path().to_owned(), None));
    command.arg("--model-repository").arg(models).arg("--backend-directory").arg(folder).args(more);
    command.args(["--model-control-mode=explicit", "--strict-readiness=false"]);
    command.args(["--allow-metrics=false", "--exit-timeout-secs=5", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]);
    command.args([format!("--http-port={}", http.port()), format!("--grpc-port={}", grpc.port())]);
    command.arg(format!("--backend-config=python,shm-region-prefix-name={regions}")).process_group(0);
    Process::start("tritonserver", command)
}

/// These examples of the quickstart, in a folder for Triton.
///
/// # Errors
/// What the file system says.
pub fn examples_for_triton(quickstart: &crate::Quickstart, names: &[&str]) -> Result<TritonModels> {
    let models = TritonModels::new()?;
    for name in names {
        let request = serde_json::from_slice(&quickstart.request(name)?)?;
        models.onnx(name, &quickstart.models().join(name).join("model.onnx"), &request, &quickstart.expected(name)?)?;
    }
    Ok(models)
}
