//! One unary gRPC message in, one out, over an HTTP/2 request.
//!
//! Done here and not by `tonic`'s codec for three reasons: a message over the limit is refused by its announced length
//! with the right code, bytes that are no message are the client's fault and not INTERNAL, and a message that came in one
//! frame is decoded where it lies.

use berth_types::ByteSize;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;

use crate::body::{Incoming, Outgoing, Reader};
use crate::budget::Share;
use crate::codes::Fault;

/// Before each message: one byte that says whether it is compressed, and its length in four.
const PREFIX: usize = 5;

/// The one message of a unary call, as it came; `share` holds its bytes.
///
/// # Errors
/// [`Fault`]: over `limit`, no room for it, compressed, cut short, or followed by another message.
pub(crate) async fn receive(body: impl Incoming, limit: ByteSize, share: &mut Share) -> Result<Bytes, Fault> {
    let mut reader = Reader::new(body, share);
    let Some(mut first) = reader.next().await? else {
        return Err(Fault::BadRequest("the call brought no message".to_owned()));
    };
    let mut head = BytesMut::new();
    while head.len() + first.len() < PREFIX {
        head.extend_from_slice(&first);
        first = reader.next().await?.ok_or_else(|| cut_short(head.len(), PREFIX))?;
    }
    if !head.is_empty() {
        head.extend_from_slice(&first);
        first = head.freeze();
    }
    let prefix = first.split_to(PREFIX);
    if prefix[0] != 0 {
        return Err(Fault::Unimplemented("compressed messages are not supported: send them uncompressed".to_owned()));
    }
    let announced = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if u64::from(announced) > limit.0 {
        return Err(Fault::TooLarge { size: Some(announced.into()), limit });
    }
    let size = announced as usize;
    let whole = if first.len() >= size { first } else { gather(&mut reader, first, size).await? };
    if whole.len() > size || reader.next().await?.is_some() {
        return Err(Fault::Unimplemented("more than one message was sent: streaming is not supported".to_owned()));
    }
    Ok(whole)
}

/// Reads a message; raw contents stay slices of `bytes`.
///
/// # Errors
/// It is no such message.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Fault> {
    M::decode(bytes).map_err(|fault| Fault::BadRequest(format!("the message cannot be read: {fault}")))
}

async fn gather<B: Incoming>(reader: &mut Reader<'_, B>, first: Bytes, size: usize) -> Result<Bytes, Fault> {
    // A client may announce much and send little: start with a part and grow as it arrives.
    const AT_ONCE: usize = 1 << 20;
    let mut whole = BytesMut::with_capacity(size.min(AT_ONCE).max(first.len()));
    whole.extend_from_slice(&first);
    while whole.len() < size {
        let more = reader.next().await?.ok_or_else(|| cut_short(whole.len(), size))?;
        whole.extend_from_slice(&more);
    }
    Ok(whole.freeze())
}

fn cut_short(got: usize, want: usize) -> Fault {
    Fault::Broken(format!("{got} of {want} bytes had arrived"))
}

/// The answer to a call that went well.
pub(crate) fn answer(message: &impl Message) -> Response<Outgoing> {
    let size = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + size);
    bytes.put_u8(0);
    match u32::try_from(size) {
        Ok(size) => bytes.put_u32(size),
        Err(_) => return fault(&Fault::Internal(format!("the answer has {size} bytes, gRPC takes at most 4 GiB"))),
    }
    if let Err(shortage) = message.encode(&mut bytes) {
        return fault(&Fault::Internal(format!("the answer cannot be written: {shortage}")));
    }
    let trailers: HeaderMap = [(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))].into_iter().collect();
    let mut response = Response::new(Outgoing::Ready { pieces: [bytes.freeze()].into(), trailers: Some(trailers) });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The answer to a call that did not.
pub(crate) fn fault(fault: &Fault) -> Response<Outgoing> {
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
        let read = receive(StreamBody::new(futures::stream::iter(frames)), limit, &mut budget.share()).await.and_then(decode);
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
            ("compressed", vec![&[1, 0, 0, 0, 0][..]], limit, "compressed messages are not supported"),
            ("two messages in one frame", vec![&twice[..]], limit, "more than one message was sent"),
            ("two messages in two frames", vec![&good[..], &good[..]], limit, "more than one message was sent"),
            ("no message", vec![&[0, 0, 0, 0, 2, 0xff, 0xff][..]], limit, "the message cannot be read: "),
        ] {
            let fault = read_frames(frames, limit).await.expect_err(case);
            assert!(fault.to_string().starts_with(expected), "{case}: {fault}");
        }
    }
    #[tokio::test]
    async fn a_message_is_held_as_far_as_it_has_arrived_and_refused_when_there_is_no_room() {
        let (bytes, budget) = (framed("digits"), Budget::of(ByteSize(20)));
        let (frames, body) = futures::channel::mpsc::unbounded();
        let mut share = budget.share();
        let frame = |bytes: &[u8]| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(bytes)));
        let mut reading = Box::pin(receive(StreamBody::new(body), ByteSize(1000), &mut share));
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
