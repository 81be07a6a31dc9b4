//! The port of a controller: `mmesh.ModelMesh`, health and reflection, and no inference.

use std::convert::Infallible;
use std::future::Ready as Now;
use std::sync::Arc;

use berth_registry::Management;
use berth_telemetry::{Clock, Gauge, Metrics};
use berth_types::{Deadline, ModelId};
use http::Request;
use tokio_util::sync::CancellationToken;

use super::{Desk, Front, Loads, Writes, method};
use crate::body::{Answer, Outgoing};
use crate::budget::Budget;
use crate::codes::{Fault, Quoted};
use crate::connections::{self, Door, Handler};
use crate::grpc::{Asides, not_grpc};
use crate::health::Ready;
use crate::reflection::Serves;
use crate::{ProxyConfig, wire};

/// What a controller answers calls with.
pub struct ManagementPort {
    /// Carries them out.
    pub by: Arc<dyn Management>,
    /// Who may change something.
    pub writes: Writes,
    /// What health says.
    pub ready: Ready,
    /// Time.
    pub clock: Clock,
    /// Where the bytes of calls are counted.
    pub metrics: Metrics,
    /// Limits.
    pub config: ProxyConfig,
}

/// Serves `mmesh.ModelMesh` on `door` until `shutdown`, then until the last call has been answered. A call that waits for a
/// model waits until some pod says that it is there.
pub async fn serve_management(door: impl Into<Door>, port: ManagementPort, shutdown: CancellationToken) {
    let ManagementPort { by, writes, ready, clock, metrics, config } = port;
    let asides = Asides::new(ready, clock.clone(), shutdown.clone(), Serves::Management);
    let bodies = Budget::new(config.body_budget, metrics.gauge(Gauge::BufferBytes, &[("class", "requests")]));
    let calls = Calls(Arc::new(Shared { desk: Desk { by, writes }, bodies, clock: clock.clone(), config: config.clone() }), asides);
    connections::serve(door.into().for_grpc(), calls, &config, &clock, shutdown).await;
}

#[derive(Clone)]
struct Calls(Arc<Shared>, Asides);

struct Shared {
    desk: Desk,
    bodies: Budget,
    clock: Clock,
    config: ProxyConfig,
}

impl Handler for Calls {
    type Body = Outgoing;

    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        if let Some(refusal) = not_grpc(&request) {
            return Ok(refusal);
        }
        if let Some(aside) = self.1.at(request.uri().path()) {
            return aside.answer(request).await;
        }
        let (head, body) = request.into_parts();
        let Some(called) = method(head.uri.path()) else {
            let why = format!("method {} is not implemented, this is a controller: inference goes to the agents", Quoted::new(head.uri.path()));
            return Ok(wire::fault(&Fault::Unimplemented(why)));
        };
        let Shared { desk, bodies, clock, config } = &*self.0;
        let front = Front { bodies, clock, config };
        Ok(desk.answer(front, &Elsewhere, called, &head, body).await.unwrap_or_else(|fault| wire::fault(&fault)))
    }
}

/// All models are in other processes.
pub(super) struct Elsewhere;

impl Loads for Elsewhere {
    type Guard = Infallible;

    fn loading(&self, _id: &ModelId, _deadline: Deadline) -> Option<impl Future<Output = Result<Infallible, Fault>> + Send> {
        None::<Now<Result<Infallible, Fault>>>
    }
}
