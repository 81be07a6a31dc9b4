//! Takes payloads to their processor: the loop that a few senders of each processor run, and what they do with a payload.

use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::payload::{Packing, Payload};
use super::queue::{Line, Lost, Queue, Waiting};
use crate::budget::Share;

/// How long a sender rests after it reached nobody, the first time; twice as long each further time.
const REST: Duration = Duration::from_millis(100);
/// The longest that it rests.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// Deflate makes at most so many bytes of one.
const DENSEST: u64 = 1032;

/// Delivers one payload after the other. Each sender has one of its own.
pub(super) trait Courier: Send + 'static {
    /// Delivers `payload`; `message` stands for its data, where given. Ends within a time of its own.
    fn deliver(&mut self, payload: &Payload, message: Option<Bytes>) -> impl Future<Output = Result<(), Lost>> + Send;
}

/// Writes a line for each payload.
pub(super) struct Logger;

impl Courier for Logger {
    async fn deliver(&mut self, payload: &Payload, _message: Option<Bytes>) -> Result<(), Lost> {
        let status = payload.status.map_or("", crate::codes::name);
        let (call, name) = (&payload.call, payload.call.name.as_deref().unwrap_or(""));
        info!(id = call.id, model = %call.model, name, method = call.method, kind = payload.kind.as_str(), status, size = payload.size, "payload");
        Ok(())
    }
}

/// One of the senders of a processor.
pub(super) struct SenderOf<C> {
    pub(super) queue: Arc<Queue>,
    pub(super) waiting: Line,
    pub(super) courier: C,
    pub(super) clock: Clock,
}

impl<C: Courier> SenderOf<C> {
    /// Delivers until `closing`, then what still waits.
    pub(super) async fn run(mut self, closing: CancellationToken) {
        let mut rest = REST;
        loop {
            let next = async { self.waiting.lock().await.recv().await };
            let waiting = tokio::select! {
                biased;
                waiting = next => waiting,
                () = closing.cancelled() => None,
            };
            let Some(Waiting { payload, mut share }) = waiting else { return };
            let delivered = match unpacked(&payload, &self.queue, &mut share).await {
                Ok(message) => self.courier.deliver(&payload, message).await,
                Err(lost) => Err(lost),
            };
            drop((payload, share));
            match delivered {
                Ok(()) => {
                    self.queue.sent();
                    rest = REST;
                }
                Err(lost) => {
                    self.queue.drops(lost);
                    if lost == Lost::Unreachable {
                        // Asked for each payload, somebody who is not there would cost more than somebody who is.
                        closing.run_until_cancelled(self.clock.sleep(rest)).await;
                        rest = (rest * 2).min(LONGEST_REST);
                    }
                }
            }
        }
    }
}

/// The message of a payload that is compressed, inflated; `None` for others.
async fn unpacked(payload: &Payload, queue: &Queue, share: &mut Share) -> Result<Option<Bytes>, Lost> {
    let encoding = match payload.packing {
        _ if !queue.wants_data => return Ok(None),
        Packing::Plain => return Ok(None),
        Packing::Unknown => return Err(Lost::Unreadable),
        Packing::Packed(encoding) => encoding,
    };
    // Room for all that it may become, before it does.
    let limit = queue.limit;
    let most = payload.size.saturating_mul(DENSEST).min(limit);
    share.add(most).map_err(|_full| Lost::Budget)?;
    let pieces = payload.data.clone();
    let inflating = move || {
        let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        berth_splice::inflate(encoding, &whole, limit)
    };
    match tokio::task::spawn_blocking(inflating).await {
        Ok(Ok(message)) => Ok(Some(message)),
        Ok(Err(berth_splice::InflateError::TooLarge { .. })) => Err(Lost::Size),
        Ok(Err(_)) | Err(_) => Err(Lost::Unreadable),
    }
}
