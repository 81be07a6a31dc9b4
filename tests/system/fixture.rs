//! What the tests start from: parts, folders, and the example models in a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use berth_testkit::{Berth, Gateway, Held, Parts, Quickstart, Serve, Transport};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Room for every example at once.
pub(crate) const ROOMY: &str = "256MiB";

/// Long enough for a model to get where it should on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Folders of one test, and the parts.
pub(crate) struct Fixture {
    pub(crate) parts: Parts,
    pub(crate) quickstart: Quickstart,
    folder: TempDir,
    gateway: Option<Gateway>,
}

impl Fixture {
    /// The example models and their manifests, from the folder in the repository.
    pub(crate) fn of_folder() -> Result<Self> {
        let fixture = Fixture::empty()?;
        fixture.quickstart.copy_manifests(&fixture.manifests())?;
        fixture.storage("quickstart", &json!({"type": "folder", "path": fixture.quickstart.models()}))?;
        Ok(fixture)
    }

    /// The same, with the models in a real S3 server.
    pub(crate) async fn of_s3(transport: Transport) -> Result<Self> {
        let mut fixture = Fixture::of_folder()?;
        let gateway = Gateway::start(&fixture.parts, transport).await?;
        gateway.put_folder(&fixture.quickstart.models()).await?;
        fixture.storage("quickstart", &gateway.storage_entry())?;
        fixture.gateway = Some(gateway);
        Ok(fixture)
    }

    /// No manifest and no storage.
    pub(crate) fn empty() -> Result<Self> {
        let fixture = Fixture { parts: Parts::from_env()?, quickstart: Quickstart::committed(), folder: TempDir::new()?, gateway: None };
        for folder in [fixture.manifests(), fixture.storage_config(), fixture.path("models")] {
            fs::create_dir_all(folder)?;
        }
        Ok(fixture)
    }

    /// A path in this test's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of a server's models, empty.
    pub(crate) fn repository(&self) -> Result<PathBuf> {
        let repository = self.path("repository");
        fs::create_dir_all(&repository)?;
        Ok(repository)
    }

    /// The watched folder.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    /// State and fetched models.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn storage_config(&self) -> PathBuf {
        self.path("storage-config")
    }

    /// The S3 server.
    pub(crate) fn gateway(&self) -> Result<&Gateway> {
        self.gateway.as_ref().context("this fixture has no S3 server")
    }

    /// Ends the S3 server.
    pub(crate) fn lose_gateway(&mut self) {
        self.gateway = None;
    }

    /// Writes an entry of the storage configuration.
    pub(crate) fn storage(&self, key: &str, entry: &Value) -> Result<()> {
        Ok(fs::write(self.storage_config().join(key), entry.to_string())?)
    }

    /// An entry `models` for this test's own folder of models.
    pub(crate) fn models_storage(&self) -> Result<()> {
        self.storage("models", &json!({"type": "folder", "path": self.path("models")}))
    }

    /// Writes a manifest of an InferenceService.
    pub(crate) fn service(&self, name: &str, key: &str, path: &str) -> Result<()> {
        self.manifest(&format!("{name}.yaml"), &service(name, key, path))
    }

    /// Writes a file into the watched folder, whole at once, as an editor does.
    pub(crate) fn manifest(&self, file: &str, text: &str) -> Result<()> {
        let unseen = self.path("being-written");
        fs::write(&unseen, text)?;
        Ok(fs::rename(unseen, self.manifests().join(file))?)
    }

    /// `berth serve` over these folders.
    pub(crate) fn serve(&self, host_memory: &str) -> Serve {
        Serve::new(&self.parts, &self.manifests(), &self.data()).flag("--storage-config", self.storage_config()).flag("--host-memory", host_memory)
    }

    /// Gets a request for `name` under way and keeps it there.
    pub(crate) async fn hold(&self, berth: &Berth, name: &str) -> Result<Held> {
        Held::post(&berth.rest(), &format!("/v2/models/{name}/infer"), self.quickstart.request(name)?).await
    }

    /// Checks that every example answers its recorded request rightly over REST.
    pub(crate) async fn all_answer(&self, berth: &Berth) -> Result<()> {
        for name in self.quickstart.names()? {
            berth.answers(&self.quickstart, &name).await?;
        }
        Ok(())
    }
}

/// An InferenceService for an ONNX model.
pub(crate) fn service(name: &str, key: &str, path: &str) -> String {
    format!(
        "apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
  annotations:
    serving.kserve.io/deploymentMode: ModelMesh
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      storage:
        key: {key}
        path: {path}
"
    )
}

/// The sizes of all files below `folder`, added up.
pub(crate) fn bytes_below(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => sum += path.metadata()?.len(),
            }
        }
    }
    Ok(sum)
}
