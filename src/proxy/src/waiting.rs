//! What callers hold while they wait for a model.
//!
//! Nobody who calls a model that is loaded finds the memory taken by callers of one that is not: what those hold while they
//! wait is bounded by three quarters of what all requests may hold, and by half of it for one model. It is what has been read of
//! their requests and, where more is to come, the HTTP/2 window of a stream, which their clients fill meanwhile. Who would
//! go beyond a bound is told to come again; nobody waits for room to wait. One caller may always wait.

use std::collections::HashMap;
use std::sync::Arc;

use berth_telemetry::GaugeHandle;
use berth_types::{ByteSize, ModelId};
use parking_lot::Mutex;

use crate::codes::{Fault, Quoted};

/// Who waits, and what for. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waiting(Arc<Inner>);

struct Inner {
    in_all: ByteSize,
    per_model: ByteSize,
    held: Mutex<Held>,
    shown: GaugeHandle,
}

#[derive(Default)]
struct Held {
    in_all: u64,
    /// For each that somebody waits for: the bytes, and how many callers.
    models: HashMap<ModelId, (u64, usize)>,
}

impl Waiting {
    /// `requests`: what all requests may hold.
    pub(crate) fn of(requests: ByteSize, shown: GaugeHandle) -> Self {
        shown.set(0);
        Waiting(Arc::new(Inner { in_all: requests.percent(75), per_model: requests.percent(50), held: Mutex::default(), shown }))
    }

    /// A caller who holds `bytes` begins to wait for `model`; it waits until its place is dropped.
    ///
    /// # Errors
    /// [`Fault::NoRoomToWait`].
    pub(crate) fn place(&self, model: &ModelId, bytes: u64) -> Result<Place, Fault> {
        let mut held = self.0.held.lock();
        let (of_model, callers) = held.models.get(model).copied().unwrap_or_default();
        let refused = |held: u64, bound: ByteSize, all: bool| Fault::NoRoomToWait {
            model: Quoted::new(model.as_str()),
            all,
            more: ByteSize(bytes),
            held: ByteSize(held),
            bound,
        };
        let fits = |held: u64, bound: ByteSize| held == 0 || held.saturating_add(bytes) <= bound.0;
        if !fits(of_model, self.0.per_model) {
            return Err(refused(of_model, self.0.per_model, false));
        }
        if !fits(held.in_all, self.0.in_all) {
            return Err(refused(held.in_all, self.0.in_all, true));
        }
        held.in_all = held.in_all.saturating_add(bytes);
        held.models.insert(model.clone(), (of_model.saturating_add(bytes), callers + 1));
        self.0.shown.set(held.in_all);
        Ok(Place { waiting: self.clone(), model: model.clone(), bytes })
    }
}

/// One caller who waits.
pub(crate) struct Place {
    waiting: Waiting,
    model: ModelId,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.waiting.0.held.lock();
        held.in_all = held.in_all.saturating_sub(self.bytes);
        self.waiting.0.shown.set(held.in_all);
        if let Some((bytes, callers)) = held.models.get_mut(&self.model) {
            (*bytes, *callers) = (bytes.saturating_sub(self.bytes), callers.saturating_sub(1));
            if *callers == 0 {
                held.models.remove(&self.model);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use berth_proto::inference::ModelInferRequest;
    use berth_telemetry::{Gauge, Metrics};
    use bytes::Bytes;
    use futures::{FutureExt as _, poll};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use tonic::Code;

    use super::*;
    use crate::id::Asked;
    use crate::scripted::rig;

    fn waiting(requests: u64) -> (Waiting, Metrics) {
        let metrics = Metrics::default();
        (Waiting::of(ByteSize(requests), metrics.gauge(Gauge::BufferBytes, &[("class", "requests-waiting")])), metrics)
    }

    fn id(name: &str) -> ModelId {
        ModelId::new(name).unwrap()
    }

    #[test]
    fn callers_of_one_model_hold_half_at_most_all_of_them_three_quarters_and_one_alone_what_it_must() {
        let (waiting, metrics) = waiting(100);
        let told = |model: &str, bytes| waiting.place(&id(model), bytes).map(drop).map_err(|fault| fault.to_string());
        let _a = (waiting.place(&id("a"), 30).unwrap(), waiting.place(&id("a"), 20).unwrap());
        assert_eq!(told("a", 1).unwrap_err(), "model \"a\": callers who wait for it hold 50 B of 50 B, and this one brings 1 B: try again");
        let b = waiting.place(&id("b"), 25).unwrap();
        assert_eq!(told("b", 1).unwrap_err(), "model \"b\": callers who wait for models hold 75 B of 75 B, and this one brings 1 B: try again");
        assert!(told("a", 0).is_ok(), "who holds nothing takes no room");
        assert!(metrics.render().contains("berth_buffer_bytes{class=\"requests-waiting\"} 75\n"));
        drop((_a, b));
        let _large = waiting.place(&id("a"), 500).unwrap();
        assert!(told("b", 1).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn no_order_of_coming_and_going_exceeds_a_bound_or_forgets_a_byte(steps in proptest::collection::vec((0..3usize, 0..40u64, any::<bool>()), 0..60)) {
            let (waiting, _metrics) = waiting(100);
            let mut places: Vec<(usize, u64, Place)> = Vec::new();
            for (model, bytes, leaves) in steps {
                if leaves && !places.is_empty() {
                    places.remove(bytes as usize % places.len());
                } else if let Ok(place) = waiting.place(&id(["a", "b", "c"][model]), bytes) {
                    places.push((model, bytes, place));
                }
                let sum = |of: Option<usize>| places.iter().filter(|place| of.is_none_or(|of| of == place.0)).map(|place| place.1).sum::<u64>();
                prop_assert!(sum(None) <= 75 && (0..3).all(|model| sum(Some(model)) <= 50));
                prop_assert_eq!(waiting.0.held.lock().in_all, sum(None));
            }
            drop(places);
            prop_assert!(waiting.0.held.lock().models.is_empty());
        }
    }

    const KIB: usize = 1024;

    fn request(bytes: usize) -> ModelInferRequest {
        ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![0; bytes])], ..ModelInferRequest::default() }
    }

    /// Callers of two models that never load hold all that they may; a loaded model's calls end the moment they are made:
    /// there is no permit, queue or room that they could wait for, and no time passes.
    #[tokio::test(start_paused = true)]
    async fn however_many_wait_for_cold_models_a_hot_one_answers_at_once() {
        let rig = rig();
        let (frontend, models) = (&rig.frontend, &rig.models);
        models.never_loads("cold");
        models.never_loads("colder");
        let hour = frontend.clock.deadline_in(std::time::Duration::from_secs(3600));
        let call = |model: &'static str, bytes: usize| {
            let frontend = Arc::clone(frontend);
            Box::pin(async move { frontend.infer(&Asked::Name(model.into()), request(bytes), hour).await })
        };
        let refused = |outcome: Poll<Result<_, Fault>>| match outcome {
            Poll::Ready(Err(fault)) => fault,
            other => panic!("{}", other.is_pending()),
        };
        let since = frontend.clock.now();
        let mut callers = Vec::new();
        let mut fill = async |model: &'static str, most: usize| {
            for _ in 0..most {
                let mut caller = call(model, 600 * KIB);
                match poll!(caller.as_mut()) {
                    Poll::Pending => callers.push(caller),
                    refusal => return (refused(refusal), callers.len()),
                }
                tokio::task::yield_now().await;
            }
            panic!("{model}: all of {most} may wait");
        };
        let (own_bound, of_cold) = fill("cold", 1000).await;
        assert!(matches!(own_bound, Fault::NoRoomToWait { all: false, .. }), "{own_bound}");
        let (bound_of_all, in_all) = fill("colder", 1000).await;
        assert!(matches!(bound_of_all, Fault::NoRoomToWait { all: true, .. }), "{bound_of_all}");
        assert_eq!((of_cold, in_all), (218, 327), "128 MiB and 192 MiB of 256");
        for fault in [own_bound, bound_of_all] {
            let (verdict, status) = (fault.verdict(), fault.to_status());
            assert!(verdict.code == Code::ResourceExhausted && verdict.retry_after.is_some(), "{fault}");
            assert!(!status.details().is_empty(), "RetryInfo");
        }
        for _ in 0..500 {
            let answer = call("digits", 600 * KIB).now_or_never();
            assert!(answer.is_some_and(|answer| answer.is_ok()), "it had to wait for something");
            tokio::task::yield_now().await;
        }
        assert_eq!(frontend.clock.now(), since);
        drop(callers);
        assert!(poll!(call("cold", 600 * KIB).as_mut()).is_pending(), "there is room again");
    }
}
