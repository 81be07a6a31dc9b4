//! Payload processors: copies of requests and answers, for whoever wants to look at them.
//!
//! The request path only copies messages as they pass and puts them into the queue of each processor that wants them; it
//! never waits. A few senders per processor take them from there. What does not fit into the queue or its budget, is too
//! large, or cannot be delivered, is dropped and counted: a processor that hangs or refuses costs nothing but its own
//! payloads. Without processors a request pays for one look whether there are any.
//!
//! Headers that hold secrets are not part of payloads, URIs and data not of the log.

mod courier;
mod payload;
mod post;
mod processor;
mod queue;
mod tap;
#[cfg(test)]
pub(crate) mod tests;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_telemetry::{Clock, Metrics, Net};
use berth_types::{ByteSize, ModelId};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::HeaderMap;
use rustls::ClientConfig;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::courier::{Courier, Logger, SenderOf};
use self::payload::Call;
use self::post::Post;
use self::processor::Target;
pub use self::processor::{Processor, processors};
use self::queue::{Line, Lost, Queue};
pub(crate) use self::tap::{Observed, Tap};
use crate::id::Asked;

/// How long what waits is still delivered at the end.
const LAST: Duration = Duration::from_secs(5);

/// How much may wait, and who takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Payloads that are sent to a processor at a time.
    pub senders: NonZeroUsize,
    /// Payloads that wait for a processor.
    pub capacity: NonZeroUsize,
    /// Bytes of all payloads that wait or are being sent, divided among the processors.
    pub budget: ByteSize,
    /// The largest message; larger ones are dropped whole.
    pub limit: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        let two = NonZeroUsize::MIN.saturating_add(1);
        Settings { senders: two, capacity: NonZeroUsize::MIN.saturating_add(63), budget: ByteSize::mib(64), limit: ByteSize::mib(16) }
    }
}

/// What processors are reached with.
pub struct Deps {
    /// Where payloads go.
    pub processors: Vec<Processor>,
    /// How much may wait.
    pub settings: Settings,
    /// Whom `https` processors are trusted by.
    pub tls: Option<Arc<ClientConfig>>,
    /// What connections are made with.
    pub net: Arc<dyn Net>,
    /// Time.
    pub clock: Clock,
    /// Where is counted.
    pub metrics: Metrics,
    /// What the ids of calls begin with; it should be no other process's.
    pub source: String,
}

/// The processors, as requests see them. Cheap to clone.
#[derive(Clone)]
pub struct Payloads(Arc<Inner>);

struct Inner {
    queues: Vec<Arc<Queue>>,
    source: String,
    calls: AtomicU64,
}

/// Delivers what waits.
pub struct Senders {
    clock: Clock,
    closing: CancellationToken,
    senders: Vec<BoxFuture<'static, ()>>,
    waiting: Vec<(Arc<Queue>, Line)>,
}

impl Payloads {
    /// Sets the queues up; nothing is delivered before [`Senders::run`].
    #[must_use]
    pub fn new(deps: Deps) -> (Payloads, Senders) {
        let Deps { processors, settings, tls, net, clock, metrics, source } = deps;
        let (among, mut queues) = (processors.len(), Vec::new());
        let mut senders = Senders { clock: clock.clone(), closing: CancellationToken::new(), senders: Vec::new(), waiting: Vec::new() };
        for processor in processors {
            let (queue, waiting) = Queue::new(&processor, &settings, among, &clock, &metrics);
            let waiting = Arc::new(Mutex::new(waiting));
            for _ in 0..settings.senders.get() {
                match &processor.target {
                    Target::Logger => senders.add(&queue, &waiting, Logger),
                    Target::Http(receiver) => {
                        let post = Post::new(receiver.clone(), queue.label.clone(), Arc::clone(&net), tls.clone(), clock.clone());
                        senders.add(&queue, &waiting, post);
                    }
                }
            }
            senders.waiting.push((Arc::clone(&queue), waiting));
            queues.push(queue);
        }
        (Payloads(Arc::new(Inner { queues, source, calls: AtomicU64::new(0) })), senders)
    }

    /// Looks at a call of the method at `path` for `model`, when some processor wants it.
    pub(crate) fn observe(&self, path: &str, asked: &Asked<'_>, model: &ModelId, headers: &HeaderMap) -> Option<Observed> {
        let method = path.strip_prefix('/').unwrap_or(path);
        let name = match asked {
            Asked::Name(name) if name != model.as_str() => Some(&**name),
            Asked::Name(_) | Asked::Version(_) => None,
        };
        let queues: Vec<_> = self.0.queues.iter().filter(|queue| queue.takes(method, model.as_str(), name)).cloned().collect();
        if queues.is_empty() {
            return None;
        }
        let id = format!("{}-{}", self.0.source, self.0.calls.fetch_add(1, Ordering::Relaxed));
        let call = Call { id, model: model.clone(), name: name.map(str::to_owned), method: method.to_owned() };
        Some(Observed::new(call, queues, headers))
    }
}

impl Senders {
    fn add(&mut self, queue: &Arc<Queue>, waiting: &Line, courier: impl Courier) {
        let sender = SenderOf { queue: Arc::clone(queue), waiting: Arc::clone(waiting), courier, clock: self.clock.clone() };
        self.senders.push(sender.run(self.closing.clone()).boxed());
    }

    /// Delivers until `stop`, then for a few seconds what still waits.
    pub async fn run(self, stop: CancellationToken) {
        let Senders { clock, closing, senders, waiting } = self;
        let mut running = JoinSet::new();
        for sender in senders {
            running.spawn(sender);
        }
        stop.cancelled().await;
        closing.cancel();
        let delivered = async { while running.join_next().await.is_some() {} };
        let in_time = clock.until(clock.deadline_in(LAST), delivered).await.is_some();
        running.shutdown().await;
        if in_time {
            return;
        }
        for (queue, waiting) in waiting {
            let mut waiting = waiting.lock().await;
            while waiting.try_recv().is_ok() {
                queue.drops(Lost::Shutdown);
            }
        }
    }
}
