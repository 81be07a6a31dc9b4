//! Calls that manage models and names, in the process that has them and passed on to a controller.

mod passed_on;
mod world;

use berth_registry::Resolved;
use berth_telemetry::Metrics;

use super::*;
use crate::id::asked;
use crate::scripted::{FakeInfer, FakeModels, Load, registration, rig};

/// A loaded copy that has as many requests as it takes.
struct Busy(FakeModels);

impl Models for Busy {
    type Guard = <FakeModels as Models>::Guard;

    fn resolve(&self, id: &str) -> Resolved {
        self.0.resolve(id)
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        self.0.version(id)
    }

    fn try_acquire(&self, model: &ModelId) -> Option<Self::Guard> {
        self.0.try_acquire(model)
    }

    async fn ensure_loaded(&self, model: &Arc<Registration>, deadline: Deadline) -> Result<Self::Guard, WaitError> {
        self.0.ensure_loaded(model, deadline).await
    }

    async fn turn(_guard: &mut Self::Guard) -> Result<(), WaitError> {
        Err(WaitError::TooManyWaiting { waiting: 16 })
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_model_loaded_takes_no_turn_from_requests_and_waits_for_no_longer_than_it_said() {
    let models = FakeModels::new();
    let (infer, metrics) = (Arc::new(FakeInfer::default()), Metrics::default());
    let front = Frontend::new(Busy(models.clone()), infer, Clock::system(), &metrics, ProxyConfig::default(), Arc::new(|| Ok(())));
    let (digits, deadline) = (registration("digits__isvc-1111111111"), front.clock.deadline_in(Duration::from_secs(7)));
    let headers = HeaderMap::new();
    let fault = front.infer(&asked(&headers, "digits").unwrap(), berth_proto::inference::ModelInferRequest::default(), deadline).await.unwrap_err();
    assert!(matches!(fault, Fault::Wait { error: WaitError::TooManyWaiting { waiting: 16 }, .. }), "{fault}");
    assert!(front.loaded(&digits, deadline).await.is_ok(), "it is loaded, however busy it is");
    models.load.lock().push_back(Load::Never);
    let fault = front.loaded(&digits, deadline).await.err();
    assert_eq!(fault, Some(late("digits__isvc-1111111111")));
    assert_eq!((front.clock.now(), *models.guards.borrow()), (deadline.instant(), 0));
}

#[test]
fn the_service_has_two_names_and_nothing_else_is_one_of_its_methods() {
    for (path, expected) in [
        ("/mmesh.ModelMesh/setVModel", Some("setVModel")),
        ("/com.ibm.watson.tas.proto.TasRuntime/addModel", Some("addModel")),
        ("/mmesh.ModelMesh", None),
        ("/mmesh.ModelMeshes/setVModel", None),
        ("/mmesh.ModelRuntime/loadModel", None),
    ] {
        assert_eq!(method(path), expected, "{path}");
    }
}

#[test]
fn who_may_change_something_is_told_by_mode_and_token() {
    let token = Writes::Token(Arc::new(|given| given == b"s3cret"));
    for (writes, given, code) in [
        (&Writes::Open, None, None),
        (&Writes::Open, Some("Bearer other"), None),
        (&token, None, Some(tonic::Code::Unauthenticated)),
        (&token, Some("Bearer other"), Some(tonic::Code::Unauthenticated)),
        (&token, Some("s3cret"), Some(tonic::Code::Unauthenticated)),
        (&token, Some("Bearer"), Some(tonic::Code::Unauthenticated)),
        (&token, Some("Basic s3cret"), Some(tonic::Code::Unauthenticated)),
        (&token, Some("Bearer s3cret"), None),
        (&token, Some("bearer s3cret"), None),
        (&Writes::Off, Some("Bearer s3cret"), Some(tonic::Code::Unimplemented)),
    ] {
        let headers = given.map(|given| (header::AUTHORIZATION, given.parse().unwrap()));
        let refused = writes.check(&headers.into_iter().collect()).err().map(|fault| fault.verdict().code);
        assert_eq!(refused, code, "{given:?}");
    }
}

#[test]
fn a_model_counts_as_used_when_its_registration_says_and_never_in_the_future() {
    let rig = rig();
    let now = rig.frontend.clock.wall();
    let hour = 3_600_000;
    for (given, load_now, expected) in [(0, false, now.0 - 6 * hour), (0, true, now.0 - hour), (7, true, 7), (now.0 + hour * 1000, false, now.0)] {
        let used = first_use(&rig.frontend.clock, given, load_now).0;
        assert!(used.abs_diff(expected) < hour / 60, "{given} {load_now}: {used}, not {expected}");
    }
}
