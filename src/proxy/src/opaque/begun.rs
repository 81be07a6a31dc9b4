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
    answer.body_mut().put_back(VecDeque::from([Ok(first)]));
    take_along(answer.body_mut());
    Ok(answer)
}

/// Reads what of an answer is here by now and puts it back: it lies here in place of the connection's window. Nobody may be
/// waiting for its next frame.
pub(super) fn take_along(answer: &mut Answer) {
    let (mut frames, mut bytes) = (VecDeque::new(), 0);
    while bytes <= ALONG
        && !answer.is_end_stream()
        && let Some(Some(frame)) = answer.frame().now_or_never()
    {
        bytes += frame.as_ref().ok().and_then(|frame| frame.data_ref()).map_or(0, Bytes::len);
        frames.push_back(frame);
    }
    answer.put_back(frames);
}
