//! Whether this server takes requests: one answer for the protocol's own calls, for `grpc.health.v1` and for probes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use futures::Stream;
use futures::stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::reflection::{Serves, services};

/// Says whether requests should come here: `Err` holds the reason why not. Asked often, so it must be cheap.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// How often a watcher's answer is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `grpc.health.v1.Health`.
#[derive(Clone)]
pub(crate) struct HealthService {
    ready: Ready,
    clock: Clock,
    shutdown: CancellationToken,
    serves: Serves,
}

impl HealthService {
    pub(crate) fn new(ready: Ready, clock: Clock, shutdown: CancellationToken, serves: Serves) -> Self {
        HealthService { ready, clock, shutdown, serves }
    }

    /// Whether a client may ask about that service: the empty name is the server as a whole.
    fn is_known(&self, service: &str) -> bool {
        service.is_empty() || services(self.serves).any(|known| known == service)
    }

    fn status(&self) -> ServingStatus {
        if self.shutdown.is_cancelled() || (self.ready)().is_err() { ServingStatus::NotServing } else { ServingStatus::Serving }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !self.is_known(&service) {
            return Err(Status::not_found(format!("service {} is not served here", crate::codes::Quoted::new(&service))));
        }
        Ok(Response::new(HealthCheckResponse { status: self.status().into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The status now and whenever it changes. Ends when the server shuts down, so that no watcher holds it open.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.is_known(&request.into_inner().service);
        let states = stream::unfold((self.clone(), None, false), move |(health, last, ended)| async move {
            if ended {
                return None;
            }
            loop {
                let status = if known { health.status() } else { ServingStatus::ServiceUnknown };
                if last != Some(status) {
                    let ended = health.shutdown.is_cancelled();
                    return Some((Ok(HealthCheckResponse { status: status.into() }), (health, Some(status), ended)));
                }
                if health.shutdown.is_cancelled() {
                    return None;
                }
                tokio::select! {
                    () = health.shutdown.cancelled() => {}
                    () = health.clock.sleep(LOOK_EVERY) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(states)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::StreamExt as _;

    use super::*;

    fn asking(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_hears_each_change_once_and_is_let_go_at_shutdown() {
        let up = Arc::new(AtomicBool::new(true));
        let shutdown = CancellationToken::new();
        let ready: Ready = Arc::new({
            let up = Arc::clone(&up);
            move || if up.load(Ordering::Relaxed) { Ok(()) } else { Err("runtime is down".to_owned()) }
        });
        let health = HealthService::new(ready, Clock::system(), shutdown.clone(), Serves::Inference);
        let mut watch = health.watch(asking("")).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|answer| answer.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::Serving));
        up.store(false, Ordering::Relaxed);
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        up.store(true, Ordering::Relaxed);
        assert_eq!(next().await, Some(ServingStatus::Serving));
        shutdown.cancel();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
        assert_eq!(health.check(asking("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
        assert_eq!(health.check(asking("other")).await.unwrap_err().code(), tonic::Code::NotFound);
    }
    #[tokio::test(start_paused = true)]
    async fn each_service_of_the_port_has_a_status_and_an_unknown_one_is_not_found_or_watched_as_unknown() {
        let shutdown = CancellationToken::new();
        let health = HealthService::new(Arc::new(|| Ok(())), Clock::system(), shutdown.clone(), Serves::Both);
        let unmanaged = HealthService { serves: Serves::Inference, ..health.clone() };
        assert_eq!(unmanaged.check(asking("mmesh.ModelMesh")).await.unwrap_err().code(), tonic::Code::NotFound);
        for service in services(Serves::Both).chain([""]) {
            assert_eq!(health.check(asking(service)).await.unwrap().into_inner().status(), ServingStatus::Serving, "{service}");
            let mut watch = health.watch(asking(service)).await.unwrap().into_inner();
            assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::Serving, "{service}");
        }
        for service in ["inference", "/inference.GRPCInferenceService", "inference.GRPCInferenceService ", "mmesh.Other"] {
            assert_eq!(health.check(asking(service)).await.unwrap_err().code(), tonic::Code::NotFound, "{service}");
            let mut watch = health.watch(asking(service)).await.unwrap().into_inner();
            assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown, "{service}");
            // The stream stays, as the service might come.
            assert!(futures::poll!(watch.next()).is_pending(), "{service}");
        }
        shutdown.cancel();
        let mut watch = health.watch(asking("inference")).await.unwrap().into_inner();
        assert_eq!(watch.next().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        assert!(watch.next().await.is_none());
    }
}
