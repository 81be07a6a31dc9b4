//! Bodies: what is read from clients, within a limit, and what is sent to them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use berth_types::ByteSize;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tracing::Span;

use crate::budget::Share;
use crate::codes::Fault;
use crate::opaque::Passed;

/// A body that a client sends.
pub(crate) trait Incoming: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send> + Send + Unpin + 'static {}
impl<B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send> + Send + Unpin + 'static> Incoming for B {}

/// Bytes of a body that arrive one frame after the other, each held by the share of its request.
///
/// What a client sends and nobody reads stays in the HTTP/2 window, which bounds it.
pub(crate) struct Reader<'a, B> {
    body: B,
    share: &'a mut Share,
}

impl<'a, B: Incoming> Reader<'a, B> {
    pub(crate) fn new(body: B, share: &'a mut Share) -> Self {
        Reader { body, share }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let data = self.frame().await?;
        self.share.add(data.as_ref().map_or(0, |data| data.len() as u64))?;
        Ok(data)
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Fault> {
        frame(&mut self.body).await
    }

    /// What is left of the body, after `first`, of `announced` bytes in all where the client said so. One frame is not
    /// copied.
    pub(crate) async fn rest(&mut self, announced: Option<u64>, limit: ByteSize) -> Result<Bytes, Fault> {
        if announced.is_some_and(|size| size > limit.0) {
            return Err(Fault::TooLarge { size: announced, limit });
        }
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if first.len() as u64 > limit.0 {
            return Err(Fault::TooLarge { size: None, limit });
        }
        if announced == Some(first.len() as u64) {
            return Ok(first);
        }
        let Some(second) = self.next().await? else { return Ok(first) };
        // The announced size is within the limit, yet a client may announce much and send little: start with a part.
        const AT_ONCE: u64 = 1 << 20;
        let expected = announced.unwrap_or(0).min(AT_ONCE);
        let mut whole = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
        whole.extend_from_slice(&first);
        let mut next = Some(second);
        while let Some(more) = next {
            if (whole.len() + more.len()) as u64 > limit.0 {
                return Err(Fault::TooLarge { size: None, limit });
            }
            whole.extend_from_slice(&more);
            next = self.next().await?;
        }
        Ok(whole.freeze())
    }

    /// Gives up what was read, reads on and throws away, up to `most` bytes: a client that is still sending reads no
    /// answer, and closing the connection on it would lose the answer with the unread bytes.
    pub(crate) async fn discard(&mut self, most: ByteSize) {
        self.share.give_back();
        let mut left = most.0;
        while let Ok(Some(data)) = self.frame().await {
            match left.checked_sub(data.len() as u64) {
                Some(less) => left = less,
                None => return,
            }
        }
    }
}

/// The next bytes of a body, none at its end.
///
/// # Errors
/// [`Fault::Broken`].
pub(crate) async fn frame(body: &mut impl Incoming) -> Result<Option<Bytes>, Fault> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(fault)) => return Err(Fault::Broken(fault.into().to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What is sent to a client.
pub(crate) enum Outgoing {
    /// Pieces that are all there, then trailers.
    Ready { pieces: VecDeque<Bytes>, trailers: Option<HeaderMap> },
    /// A body that `tonic` makes; only the health service has one.
    Tonic(tonic::body::Body),
    /// Messages as they are made, then trailers.
    Made(BoxStream<'static, Frame<Bytes>>),
    /// What a runtime answers, as it comes.
    Passed(Passed),
    /// Any of them, its lines of the log within the context of its request.
    Within(Box<(Outgoing, Span)>),
}

impl Default for Outgoing {
    fn default() -> Self {
        Outgoing::Ready { pieces: VecDeque::new(), trailers: None }
    }
}

impl Outgoing {
    pub(crate) fn of(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        Outgoing::Ready { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), trailers: None }
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Outgoing::of([Bytes::from(text.into())])
    }

    /// What is sent while nobody waits for anything else has its log context too.
    pub(crate) fn within(self, context: Span) -> Self {
        match self {
            Outgoing::Made(_) | Outgoing::Passed(_) => Outgoing::Within(Box::new((self, context))),
            ready => ready,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        match self.get_mut() {
            Outgoing::Ready { pieces, trailers } => {
                let frame = pieces.pop_front().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
            Outgoing::Tonic(body) => Pin::new(body).poll_frame(cx),
            Outgoing::Made(frames) => frames.as_mut().poll_next(cx).map(|frame| frame.map(Ok)),
            Outgoing::Passed(body) => body.poll_frame(cx),
            Outgoing::Within(within) => {
                let (body, context) = &mut **within;
                context.in_scope(|| Pin::new(body).poll_frame(cx))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Ready { pieces, trailers } => pieces.is_empty() && trailers.is_none(),
            Outgoing::Tonic(body) => body.is_end_stream(),
            Outgoing::Made(_) => false,
            Outgoing::Passed(body) => body.is_end_stream(),
            Outgoing::Within(within) => within.0.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Ready { pieces, .. } => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Outgoing::Tonic(body) => body.size_hint(),
            Outgoing::Made(_) | Outgoing::Passed(_) => SizeHint::default(),
            Outgoing::Within(within) => within.0.size_hint(),
        }
    }
}

/// What every port answers with.
pub(crate) type Answer = Result<http::Response<Outgoing>, Infallible>;
