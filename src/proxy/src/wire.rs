//! gRPC messages in and out, over an HTTP/2 request.
//!
//! Done here and not by `tonic`'s codec for three reasons: a message over the limit is refused by its announced length
//! with the right code, bytes that are no message are the client's fault and not INTERNAL, and a message that came in one
//! frame is decoded where it lies.

use berth_splice::{Encoding, InflateError};
use berth_types::ByteSize;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;

use crate::body::{self, Incoming, Outgoing};
use crate::budget::Share;
use crate::codes::{self, Fault, Quoted};

/// Before each message: one byte that says whether it is compressed, and its length in four.
const PREFIX: usize = 5;

/// What may become more than this is inflated on a thread that may block.
const AT_ONCE: u64 = 256 * 1024;

/// Deflate makes at most so many bytes of one.
const DENSEST: u64 = 1032;

/// The messages of a call, in their order.
pub(crate) struct Messages<B> {
    body: B,
    /// What came after the last message with its last frame.
    left: Bytes,
    limit: ByteSize,
    /// How compressed ones are compressed; the name of what is not known here.
    encoding: Result<Encoding, Quoted>,
}

impl<B: Incoming> Messages<B> {
    /// `headers`: the call's. `limit`: the largest message, as it comes and inflated.
    pub(crate) fn new(headers: &HeaderMap, body: B, limit: ByteSize) -> Self {
        let encoding = match headers.get("grpc-encoding") {
            None => Ok(Encoding::Identity),
            Some(value) => {
                let name = String::from_utf8_lossy(value.as_bytes());
                Encoding::parse(&name).ok_or_else(|| Quoted::new(&name))
            }
        };
        Messages { body, left: Bytes::new(), limit, encoding }
    }

    /// Waits, maybe for hours, until the next message has begun; what is to be held of it counts from [`Messages::next`]
    /// on. False: there is none.
    ///
    /// # Errors
    /// [`Fault::Broken`].
    pub(crate) async fn begun(&mut self) -> Result<bool, Fault> {
        while self.left.is_empty() {
            match body::frame(&mut self.body).await? {
                Some(data) => self.left = data,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next message, inflated where it was compressed; `share` holds its bytes. `None`: there are no more.
    ///
    /// # Errors
    /// [`Fault`]: over the limit, no room for it, compressed in a way that is not known, or cut short.
    pub(crate) async fn next(&mut self, share: &mut Share) -> Result<Option<Bytes>, Fault> {
        share.add(self.left.len() as u64)?;
        let (mut prefix, mut got) = ([0; PREFIX], 0);
        while got < PREFIX {
            if self.left.is_empty() {
                match body::frame(&mut self.body).await? {
                    Some(data) => {
                        share.add(data.len() as u64)?;
                        self.left = data;
                    }
                    None if got == 0 => return Ok(None),
                    None => return Err(cut_short(got, PREFIX)),
                }
            }
            let taken = (PREFIX - got).min(self.left.len());
            self.left.copy_to_slice(&mut prefix[got..got + taken]);
            got += taken;
        }
        let announced = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        if u64::from(announced) > self.limit.0 {
            return Err(Fault::TooLarge { size: Some(announced.into()), limit: self.limit });
        }
        let message = self.gather(announced as usize, share).await?;
        match prefix[0] {
            0 => Ok(Some(message)),
            1 => inflated(self.encoding.clone(), self.limit, message, share).await.map(Some),
            other => Err(Fault::BadRequest(format!("a message begins with byte {other}; a gRPC message begins with 0 or 1"))),
        }
    }

    /// The only message of a unary call.
    ///
    /// # Errors
    /// As [`Messages::next`]; also when there is none, or another one behind it.
    pub(crate) async fn only(mut self, share: &mut Share) -> Result<Bytes, Fault> {
        let message = self.next(share).await?.ok_or_else(|| Fault::BadRequest("the call brought no message".to_owned()))?;
        // Not read any further than its first bytes.
        if !self.left.is_empty() || body::frame(&mut self.body).await?.is_some() {
            return Err(Fault::Unimplemented("more than one message was sent to a method that takes one".to_owned()));
        }
        Ok(message)
    }

    /// `size` bytes. Those that came in one frame are not copied.
    async fn gather(&mut self, size: usize, share: &mut Share) -> Result<Bytes, Fault> {
        if self.left.len() >= size {
            return Ok(self.left.split_to(size));
        }
        // A client may announce much and send little: start with a part and grow as it arrives.
        const AT_ONCE: usize = 1 << 20;
        let mut whole = BytesMut::with_capacity(size.min(AT_ONCE).max(self.left.len()));
        whole.extend_from_slice(&std::mem::take(&mut self.left));
        while whole.len() < size {
            let mut data = body::frame(&mut self.body).await?.ok_or_else(|| cut_short(whole.len(), size))?;
            share.add(data.len() as u64)?;
            whole.extend_from_slice(&data.split_to(data.len().min(size - whole.len())));
            self.left = data;
        }
        Ok(whole.freeze())
    }
}

/// A message that came compressed; `share` holds what it becomes.
async fn inflated(encoding: Result<Encoding, Quoted>, limit: ByteSize, message: Bytes, share: &mut Share) -> Result<Bytes, Fault> {
    let encoding = match encoding {
        Ok(Encoding::Identity) => {
            return Err(Fault::BadRequest("a message says that it is compressed, grpc-encoding does not say how".to_owned()));
        }
        Ok(encoding) => encoding,
        Err(name) => return Err(Fault::Unimplemented(format!("grpc-encoding {name} is not supported: send gzip, deflate or identity"))),
    };
    // Room for all that it may become, before it does.
    let most = (message.len() as u64).saturating_mul(DENSEST).min(limit.0);
    let mut room = share.another();
    room.add(most)?;
    // The room goes with the work, which outlives its caller on another thread.
    let inflating = move || (berth_splice::inflate(encoding, &message, limit.0), room);
    let (inflated, room) = if most <= AT_ONCE {
        inflating()
    } else {
        let ended = |why| Fault::Internal(format!("inflating a message ended early: {why}"));
        tokio::task::spawn_blocking(inflating).await.map_err(ended)?
    };
    let bytes = inflated.map_err(|fault| match fault {
        InflateError::TooLarge { .. } => Fault::TooLarge { size: None, limit },
        other => Fault::BadRequest(format!("the compressed message cannot be read: {other}")),
    })?;
    drop(room);
    share.add(bytes.len() as u64)?;
    Ok(bytes)
}

/// Reads a message; raw contents stay slices of `bytes`.
///
/// # Errors
/// It is no such message.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Fault> {
    M::decode(bytes).map_err(|fault| Fault::BadRequest(format!("the message cannot be read: {fault}")))
}

fn cut_short(got: usize, want: usize) -> Fault {
    Fault::Broken(format!("{got} of {want} bytes had arrived"))
}

/// The answer to a call that went well.
pub(crate) fn answer(message: &impl Message) -> Response<Outgoing> {
    match framed(message) {
        Ok(bytes) => begun(Outgoing::Ready { pieces: [bytes].into(), trailers: Some(well()) }),
        Err(why) => fault(&why),
    }
}

/// An answer that has begun.
pub(crate) fn begun(body: Outgoing) -> Response<Outgoing> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The trailers of a call that went well.
pub(crate) fn well() -> HeaderMap {
    [(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))].into_iter().collect()
}

/// The trailers of a call that did not, after its answer has begun.
pub(crate) fn badly(fault: &Fault) -> HeaderMap {
    let mut trailers = fault.to_status().into_http::<tonic::body::Body>().into_parts().0.headers;
    trailers.remove(header::CONTENT_TYPE);
    trailers
}

/// A message with its prefix.
pub(crate) fn framed(message: &impl Message) -> Result<Bytes, Fault> {
    let size = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + size);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(size).map_err(|_| Fault::Internal(format!("the answer has {size} bytes, gRPC takes at most 4 GiB")))?);
    message.encode(&mut bytes).map_err(|shortage| Fault::Internal(format!("the answer cannot be written: {shortage}")))?;
    Ok(bytes.freeze())
}

/// The answer to a call that did not.
pub(crate) fn fault(fault: &Fault) -> Response<Outgoing> {
    tracing::debug!(code = codes::name(fault.verdict().code), error = %fault, "a request gets an error");
    fault.to_status().into_http()
}

#[cfg(test)]
mod tests {
    use berth_proto::inference::ModelReadyRequest;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;
    use crate::budget::Budget;

    async fn read_frames(frames: Vec<&[u8]>, limit: ByteSize) -> Result<ModelReadyRequest, Fault> {
        let frames: Vec<_> = frames.into_iter().map(|frame| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(frame)))).collect();
        let budget = Budget::of(ByteSize::MAX);
        let messages = Messages::new(&HeaderMap::new(), StreamBody::new(futures::stream::iter(frames)), limit);
        let read = messages.only(&mut budget.share()).await.and_then(decode);
        assert_eq!(budget.taken(), 0, "nothing outlives its share");
        read
    }

    fn framed(name: &str) -> Vec<u8> {
        let message = ModelReadyRequest { name: name.to_owned(), version: "1".to_owned() }.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&message);
        bytes
    }

    #[tokio::test]
    async fn a_message_is_read_the_same_however_it_is_cut_into_frames() {
        let bytes = framed("digits");
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let frames = vec![&bytes[..first], &bytes[first..second], &bytes[second..]];
                let message = read_frames(frames, ByteSize(1000)).await.unwrap();
                assert_eq!((message.name.as_str(), message.version.as_str()), ("digits", "1"), "cut at {first} and {second}");
            }
        }
        assert_eq!(read_frames(vec![&[0, 0, 0, 0, 0]], ByteSize(0)).await, Ok(ModelReadyRequest::default()));
    }

    #[tokio::test]
    async fn what_is_not_one_message_within_the_limit_is_refused_by_its_kind() {
        let good = framed("digits");
        let limit = ByteSize(good.len() as u64 - PREFIX as u64);
        assert!(read_frames(vec![&good], limit).await.is_ok(), "the limit itself is allowed");
        let twice = [good.clone(), good.clone()].concat();
        let less = ByteSize(limit.0 - 1);
        for (case, frames, limit, expected) in [
            ("over the limit", vec![&good[..]], less, "the request has 11 bytes, the limit is 10 (10 B)"),
            ("over the limit, only the length is there", vec![&[0, 255, 255, 255, 255][..]], limit, "the request has 4294967295 bytes"),
            ("nothing", vec![], limit, "the call brought no message"),
            ("half a prefix", vec![&good[..3]], limit, "the request ended early: 3 of 5 bytes had arrived"),
            ("half a message", vec![&good[..9]], limit, "the request ended early: 4 of 11 bytes had arrived"),
            ("compressed, nobody says how", vec![&[1, 0, 0, 0, 0][..]], limit, "a message says that it is compressed"),
            ("neither compressed nor not", vec![&[2, 0, 0, 0, 0][..]], limit, "a message begins with byte 2"),
            ("two messages in one frame", vec![&twice[..]], limit, "more than one message was sent"),
            ("two messages in two frames", vec![&good[..], &good[..]], limit, "more than one message was sent"),
            ("no message", vec![&[0, 0, 0, 0, 2, 0xff, 0xff][..]], limit, "the message cannot be read: "),
        ] {
            let fault = read_frames(frames, limit).await.expect_err(case);
            assert!(fault.to_string().starts_with(expected), "{case}: {fault}");
        }
    }
    #[tokio::test]
    async fn a_compressed_message_is_inflated_within_the_limit_and_the_budget() {
        use std::io::Write as _;
        let plain = ModelReadyRequest { name: "d".repeat(5000), version: "1".to_owned() }.encode_to_vec();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut framed = vec![1];
        framed.extend_from_slice(&u32::try_from(gzip.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&gzip);
        let framed = Bytes::from(framed);
        let read = |name: &'static str, limit, budget| {
            let headers: HeaderMap = [(http::HeaderName::from_static("grpc-encoding"), HeaderValue::from_static(name))].into_iter().collect();
            let body = StreamBody::new(futures::stream::iter([Ok::<_, std::io::Error>(Frame::data(framed.clone()))]));
            let budget = Budget::of(ByteSize(budget));
            async move {
                let read = Messages::new(&headers, body, ByteSize(limit)).only(&mut budget.share()).await.and_then(decode::<ModelReadyRequest>);
                assert_eq!(budget.taken(), 0, "nothing outlives its share");
                read
            }
        };
        assert_eq!(read("gzip", 10_000, 100_000).await.unwrap().name.len(), 5000);
        let fault = read("gzip", 4000, 100_000).await.unwrap_err();
        assert_eq!(fault, Fault::TooLarge { size: None, limit: ByteSize(4000) });
        assert!(matches!(read("gzip", 10_000, 9000).await.unwrap_err(), Fault::TooHeavy { .. } | Fault::NoBuffer { .. }), "room comes before bytes");
        for (name, text) in [("deflate", "the compressed message cannot be read"), ("br", "grpc-encoding \"br\" is not supported")] {
            let fault = read(name, 10_000, 100_000).await.unwrap_err();
            assert!(fault.to_string().starts_with(text), "{fault}");
        }
    }

    #[tokio::test]
    async fn what_inflates_to_much_leaves_its_thread_to_others_meanwhile() {
        use std::io::Write as _;
        let plain = ModelReadyRequest { name: "d".repeat(4 << 20), version: "1".to_owned() }.encode_to_vec();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let framed = Bytes::from([&[1][..], &u32::try_from(gzip.len()).unwrap().to_be_bytes(), &gzip].concat());
        let headers: HeaderMap = [(http::HeaderName::from_static("grpc-encoding"), HeaderValue::from_static("gzip"))].into_iter().collect();
        let body = StreamBody::new(futures::stream::iter([Ok::<_, std::io::Error>(Frame::data(framed))]));
        let budget = Budget::of(ByteSize::mib(16));
        let mut share = budget.share();
        let mut reading = Box::pin(Messages::new(&headers, body, ByteSize::mib(8)).only(&mut share));
        assert!(futures::poll!(&mut reading).is_pending());
        assert_eq!(reading.await.unwrap().len(), plain.len());
    }

    #[tokio::test]
    async fn several_messages_are_read_one_by_one_however_they_are_cut() {
        let bytes = [framed("a"), framed("bb"), framed("")].concat();
        for cut in 1..bytes.len() {
            let frames: Vec<_> = bytes.chunks(cut).map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
            let mut messages = Messages::new(&HeaderMap::new(), StreamBody::new(futures::stream::iter(frames)), ByteSize(100));
            let (budget, mut names) = (Budget::of(ByteSize::MAX), Vec::new());
            while let Some(message) = messages.next(&mut budget.share()).await.unwrap() {
                names.push(decode::<ModelReadyRequest>(message).unwrap().name);
            }
            assert_eq!(names, ["a", "bb", ""], "cut in pieces of {cut}");
        }
    }

    #[tokio::test]
    async fn a_message_is_held_as_far_as_it_has_arrived_and_refused_when_there_is_no_room() {
        let (bytes, budget) = (framed("digits"), Budget::of(ByteSize(20)));
        let (frames, body) = futures::channel::mpsc::unbounded();
        let mut share = budget.share();
        let frame = |bytes: &[u8]| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(bytes)));
        let messages = Messages::new(&HeaderMap::new(), StreamBody::new(body), ByteSize(1000));
        let mut reading = Box::pin(messages.only(&mut share));
        for (at, end) in [(0, 5), (5, 9)] {
            frames.unbounded_send(frame(&bytes[at..end])).unwrap();
            assert!(futures::poll!(&mut reading).is_pending());
            assert_eq!(budget.taken(), end as u64, "the announced length is not taken, what came is");
        }
        let mut other = budget.share();
        other.add(10).unwrap();
        frames.unbounded_send(frame(&bytes[9..])).unwrap();
        let fault = reading.await.unwrap_err();
        assert_eq!(fault.to_string(), "requests hold 19 B of 20 B, and this one needs 7 B more: try again");
        drop(share);
        assert_eq!(budget.taken(), 10);
    }
}
