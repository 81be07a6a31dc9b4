//! A real MLServer and the models that tests have it serve.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::calls::{Client, Kind, Order};
use crate::http::ready;
use crate::message::text;
use crate::parts::part;
use crate::{Exit, Parts, Process, free_port};

/// A start, and the first load of a kind of model, on a busy machine: it is Python and imports much.
const PATIENCE: Duration = Duration::from_secs(90);

/// The server, with a folder of models of its own. Killed when dropped.
pub struct MlServer {
    process: Process,
    parts: Parts,
    folder: TempDir,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl MlServer {
    /// Starts it without a model.
    ///
    /// # Errors
    /// When it cannot be started or is not ready within 90 seconds.
    pub async fn start(parts: &Parts) -> Result<Self> {
        let folder = TempDir::new()?;
        let [grpc, http, metrics] = [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let models = folder.path().join("models");
        fs::create_dir(&models)?;
        let settings = json!({
            "host": "127.0.0.1", "http_port": http.port(), "grpc_port": grpc.port(), "metrics_port": metrics.port(),
            "parallel_workers": 0, "gzip_enabled": false, "load_models_at_startup": false, "model_repository_root": models,
        });
        fs::write(folder.path().join("settings.json"), settings.to_string())?;
        // Run by name: the first line of the program names the folder that it was installed in, and not the one it is in.
        let program = part("BERTH_MLSERVER")?;
        let mut command = Command::new(program.with_file_name("python"));
        command
            .arg(program)
            .arg("start")
            .arg(folder.path())
            .env("OMP_NUM_THREADS", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(folder.path());
        let server = MlServer { process: Process::start("mlserver", command)?, parts: parts.clone(), folder, grpc, http };
        ready("MLServer", http, PATIENCE).await.with_context(|| server.process.written())?;
        Ok(server)
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

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Trains a classifier on the iris data with sklearn and loads it as `name`.
    ///
    /// # Errors
    /// What training or the server says.
    pub async fn load_iris(&self, name: &str) -> Result<()> {
        let place = self.model(name, "mlserver_sklearn.SKLearnModel", Some("./model.joblib"))?;
        self.train_iris(&place.join("model.joblib")).await?;
        self.load(name).await
    }

    /// Trains that classifier into `file`, whose folder is there.
    ///
    /// # Errors
    /// What training says.
    pub async fn train_iris(&self, file: &Path) -> Result<()> {
        let script = self.path().join("train.py");
        fs::write(&script, include_str!("models/mlserver_iris.py"))?;
        let mut command = Command::new(part("BERTH_MLSERVER")?.with_file_name("python"));
        command.arg("-B").arg(&script).arg(file).env("OMP_NUM_THREADS", "1");
        let mut training = Process::start("training", command)?;
        let exit = training.exit(PATIENCE).await?;
        ensure!(exit == Exit::Code(0), "{exit:?}\n{}", training.written());
        Ok(())
    }

    /// Loads a model that sends its inputs back, also over a stream, as `name`.
    ///
    /// # Errors
    /// What the server says.
    pub async fn load_echo(&self, name: &str) -> Result<()> {
        let place = self.model(name, "echo.Echo", None)?;
        fs::write(place.join("echo.py"), include_str!("models/mlserver_echo.py"))?;
        self.load(name).await
    }

    fn model(&self, name: &str, implementation: &str, uri: Option<&str>) -> Result<PathBuf> {
        let place = self.models().join(name);
        fs::create_dir_all(&place)?;
        let settings = json!({"name": name, "implementation": implementation, "parameters": {"uri": uri}});
        fs::write(place.join("model-settings.json"), settings.to_string())?;
        Ok(place)
    }

    /// The folder that it reads models from.
    #[must_use]
    pub fn models(&self) -> PathBuf {
        self.path().join("models")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Loads a model that is in its folder, over its own API.
    ///
    /// # Errors
    /// What the server says.
    pub async fn load(&self, name: &str) -> Result<()> {
        self.repository("RepositoryModelLoad", name).await
    }

    /// Unloads a model over its own API.
    ///
    /// # Errors
    /// What the server says.
    pub async fn unload(&self, name: &str) -> Result<()> {
        self.repository("RepositoryModelUnload", name).await
    }

    async fn repository(&self, method: &str, name: &str) -> Result<()> {
        let service = "inference.model_repository.ModelRepositoryService";
        let order = Order::new(Kind::Unary, &format!("/{service}/{method}")).message(text(2, name)).timeout(PATIENCE);
        let outcome = Client::Go.call(&self.parts, &self.grpc(), order).await?;
        ensure!(outcome.code == 0, "{method} of {name} ended with {} {}\n{}", outcome.code, outcome.message, self.process.written());
        Ok(())
    }
}
