//! How much of an answer is here before its head is passed on.
//!
//! Some runtimes send the head of an answer first and say behind it, in trailers without a message, that they do not hold the
//! model. So the head waits for the first of what follows, for a moment, and only when the client has said all that it has to
//! say: one that has not may be waiting for the head. What else is here by then is taken along. Of most unary answers that is
//! all, and then their copy is free before the client has read a byte.

use std::collections::VecDeque;
use std::time::Duration;

use berth_telemetry::Clock;
use berth_upstream::{Answer, CallError};
use bytes::Bytes;
use futures::FutureExt as _;
use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::{heads, unknown};

/// More than this is not taken along.
const ALONG: usize = 64 * 1024;

/// Longer than this no head waits: a stream may have its first message whenever it likes.
const MOMENT: Duration = Duration::from_millis(50);

/// Waits a moment for the first of what follows the head.
///
/// # Errors
/// Nothing follows: the call has failed.
pub(super) async fn wait(mut answer: Response<Answer>, clock: &Clock) -> Result<Response<Answer>, CallError> {
    let first = match answer.body_mut().frame().now_or_never() {
        Some(first) => Some(first),
        // Read no further than the moment lasts: what comes later is still in the answer.
        None => clock.until(clock.deadline_in(MOMENT), answer.body_mut().frame()).await,
    };
    let Some(Some(first)) = first.map(Option::transpose).transpose()? else { return Ok(answer) };
    if first.trailers_ref().is_some_and(heads::is_not_here) {
        unknown::say(&mut answer);
    }
    let mut bytes = first.data_ref().map_or(0, Bytes::len);
    let mut frames = VecDeque::from([Ok(first)]);
    while bytes <= ALONG
        && !answer.body().is_end_stream()
        && let Some(Some(frame)) = answer.body_mut().frame().now_or_never()
    {
        bytes += frame.as_ref().ok().and_then(|frame| frame.data_ref()).map_or(0, Bytes::len);
        frames.push_back(frame);
    }
    answer.body_mut().put_back(frames);
    Ok(answer)
}
