//! Calls that manage models and names, as whoever receives them hands them on.

use std::sync::Arc;

use async_trait::async_trait;
use berth_plan::managed::{Doing, ModelStanding, NameStanding, NewModel, Refused, SetName};
use berth_types::{ModelId, Name, UnixMillis};

/// Carries out what calls ask for.
#[async_trait]
pub trait Management: Send + Sync + 'static {
    /// Registers a model: durable, and known to requests, when this returns.
    async fn register(&self, model: NewModel) -> Result<(), Refused>;

    /// Removes a model that no name refers to.
    async fn unregister(&self, id: ModelId) -> Result<(), Refused>;

    /// How a model stands.
    fn model(&self, id: &str) -> Result<ModelStanding, Refused>;

    /// Completes when the model is doing one of these, or is gone. Without a deadline of its own.
    async fn model_is(&self, id: &str, wanted: &[Doing]) -> ModelStanding;

    /// Counts a model as used (at this time; `None`: now), and has it loaded where nobody has it. Waits for no load.
    async fn load(&self, id: &str, used: Option<UnixMillis>);

    /// Makes a name, or gives it another target.
    async fn set_name(&self, ask: SetName) -> Result<(), Refused>;

    /// Removes a name of this owner (`None`: the default one).
    async fn delete_name(&self, name: Name, owner: Option<Arc<str>>) -> Result<(), Refused>;

    /// How a name stands; `None` when there is none of this owner (`None`: of anybody).
    fn name(&self, name: &str, owner: Option<&str>) -> Result<Option<NameStanding>, Refused>;

    /// Completes when the name is not on its way to this model any more. Without a deadline of its own.
    async fn name_settles(&self, name: &str, target: &ModelId);
}
