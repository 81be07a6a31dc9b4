//! Calls of `mmesh.ModelMesh`, carried out by the manager of this process.

use std::sync::Arc;

use async_trait::async_trait;
use berth_api::Token;
use berth_controller::Manager;
use berth_plan::managed::{ModelStanding, NameStanding, NewModel, Refused, SetName};
use berth_proxy::{Management, Writes};
use berth_types::{ModelId, Name, UnixMillis};
use tokio::sync::watch;

use crate::config::ManagementMode;

/// The manager, as the inference port calls it.
pub(crate) struct Managing(pub(crate) Manager);

#[async_trait]
impl Management for Managing {
    async fn register(&self, model: NewModel) -> Result<(), Refused> {
        self.0.register(model).await
    }

    async fn unregister(&self, id: ModelId) -> Result<(), Refused> {
        self.0.unregister(id).await
    }

    fn model(&self, id: &str) -> Result<ModelStanding, Refused> {
        self.0.model(id)
    }

    async fn model_is(&self, id: &str, wanted: &(dyn Fn(&ModelStanding) -> bool + Send + Sync)) -> ModelStanding {
        self.0.model_is(id, wanted).await
    }

    async fn load(&self, id: &str, used: Option<UnixMillis>) {
        self.0.load(id, used).await;
    }

    async fn set_name(&self, ask: SetName) -> Result<(), Refused> {
        self.0.set_name(ask).await
    }

    async fn delete_name(&self, name: Name, owner: Option<Arc<str>>) -> Result<(), Refused> {
        self.0.delete_name(name, owner).await
    }

    fn name(&self, name: &str, owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        self.0.name(name, owner)
    }

    async fn name_settles(&self, name: &str, target: &ModelId) {
        self.0.name_settles(name, target).await;
    }
}

/// Who may change something, in the mode that was asked for. `token` is the one of the resource API, as it is now.
pub(crate) fn writes(mode: ManagementMode, token: Option<watch::Receiver<Token>>) -> Writes {
    match (mode, token) {
        (ManagementMode::Open, _) => Writes::Open,
        (ManagementMode::Token, Some(token)) => {
            let parsed = |given: &[u8]| Token::new(std::str::from_utf8(given).ok()?).ok();
            Writes::Token(Arc::new(move |given| parsed(given).is_some_and(|given| given == *token.borrow())))
        }
        // Without a token nobody can have it; the configuration refuses that before.
        (ManagementMode::Token, None) | (ManagementMode::Off, _) => Writes::Off,
    }
}
