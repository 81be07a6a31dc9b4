//! The body of a request on its way to the server.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf as _;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::connection::Vital;
use crate::piece::Piece;

/// Frames that are passed on before others get their turn.
const AT_A_TIME: usize = 32;

pub(crate) type BodyError = Arc<dyn Error + Send + Sync>;

/// Passes the frames of a body on as far as the server has room for them. The next frame is asked for when the one before
/// has gone into the stream, so what lies here is one frame and the stream's send buffer.
///
/// Dropped before its end, it lets go of the stream; the stream is reset once the answer is let go of too.
pub(crate) struct Pump<B> {
    body: B,
    stream: SendStream<Piece>,
    vital: Arc<Vital>,
    /// A frame that waits for room, and whether it is the last.
    held: Option<(Piece, bool)>,
    /// The first frame waits for none: a call gets its room when its head is written, and a body that came later than that
    /// would cost a second write and a second turn of the call. It lies in the stream as it would lie here.
    waits: bool,
}

impl<B> Pump<B>
where
    B: Body<Data: Into<Piece>> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) fn new(body: B, stream: SendStream<Piece>, vital: Arc<Vital>) -> Self {
        Pump { body, stream, vital, held: None, waits: false }
    }

    /// Ready when all is passed on or the stream takes no more (the answer says why), or with the body's own error: then
    /// the call must be dropped or [`reset`](Self::reset).
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..AT_A_TIME {
            if self.held.is_some() && !ready!(self.poll_room(cx)) {
                return Poll::Ready(Ok(()));
            }
            if let Some((data, last)) = self.held.take() {
                self.waits = true;
                self.vital.add();
                if self.stream.send_data(data, last).is_err() || last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let (data, last): (Piece, bool) = (data.into(), self.body.is_end_stream());
                        if !data.has_remaining() && !last {
                            continue;
                        }
                        // Room is asked for only when there is something to send: what is asked for is taken from other
                        // calls of this connection. The library asks for the rest when it gets the whole piece.
                        if self.waits {
                            self.stream.reserve_capacity(1);
                        }
                        self.held = Some((data, last));
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        let _ = self.stream.send_trailers(trailers);
                        return Poll::Ready(Ok(()));
                    }
                },
                Some(Err(error)) => {
                    return Poll::Ready(Err(Arc::from(error.into())));
                }
                None => {
                    let _ = self.stream.send_data(Piece::default(), true);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Cancels the call at the server: the rest of its body will not come.
    pub(crate) fn reset(&mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }

    /// Whether there is room for the frame that is held; `false` when there never will be.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if !self.waits || self.held.as_ref().is_none_or(|(data, _)| !data.has_remaining()) {
            return Poll::Ready(true);
        }
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }
}
