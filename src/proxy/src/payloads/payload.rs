//! One message of a call, as processors get it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_splice::Encoding;
use berth_types::ModelId;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use serde_json::json;
use tonic::Code;

use crate::codes;
use crate::context::is_secret;

/// A call that processors look at.
#[derive(Debug)]
pub(super) struct Call {
    /// The same for all payloads of the call, and for no other call.
    pub(super) id: String,
    pub(super) model: ModelId,
    /// What the client asked for, where that is a name.
    pub(super) name: Option<String>,
    /// `package.Service/Method`.
    pub(super) method: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Request => "request",
            Kind::Response => "response",
        }
    }
}

/// How a message is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Packed(Encoding),
    /// In a way that is not known here.
    Unknown,
}

/// The metadata of one direction, without secrets.
pub(super) type Metadata = BTreeMap<String, String>;

/// What processors see of `headers`: several values of one name are joined, binary ones stay base64.
pub(super) fn metadata(headers: &HeaderMap) -> Arc<Metadata> {
    let mut seen = Metadata::new();
    for (name, value) in headers.iter().filter(|(name, _)| !is_secret(name)) {
        let value = String::from_utf8_lossy(value.as_bytes());
        match seen.get_mut(name.as_str()) {
            None => drop(seen.insert(name.to_string(), value.into_owned())),
            Some(before) => {
                before.push_str(", ");
                before.push_str(&value);
            }
        }
    }
    Arc::new(seen)
}

/// One message of a call, or how it ended without one.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) call: Arc<Call>,
    pub(super) kind: Kind,
    /// Of a response: how the call went.
    pub(super) status: Option<Code>,
    pub(super) metadata: Arc<Metadata>,
    /// The message in pieces; none where nobody reads it.
    pub(super) data: Vec<Bytes>,
    /// Bytes of the message, as it came.
    pub(super) size: u64,
    pub(super) packing: Packing,
}

impl Payload {
    /// What it takes in memory, beside the message.
    pub(super) fn overhead(call: &Call, metadata: &Metadata) -> u64 {
        const FIXED: usize = 512;
        let texts = call.id.len() + call.method.len() + call.model.as_str().len() + call.name.as_ref().map_or(0, String::len);
        let pairs: usize = metadata.iter().map(|(name, value)| name.len() + value.len() + 2 * size_of::<String>()).sum();
        (FIXED + texts + pairs) as u64
    }

    /// What is posted: a JSON object, its data written as it is sent. `message` in the place of its own data, where given.
    pub(super) fn json(&self, message: Option<Bytes>) -> Json {
        let pieces: VecDeque<Bytes> = message.map_or_else(|| self.data.iter().cloned().collect(), |message| VecDeque::from([message]));
        let Call { id, model, name, method: _ } = &*self.call;
        let mut head = json!({
            "id": id,
            "modelid": model.as_str(),
            "vModelId": name.as_deref().unwrap_or(""),
            "kind": self.kind.as_str(),
            "status": self.status.map_or("", codes::name),
            "metadata": &*self.metadata,
        })
        .to_string();
        head.pop(); // the closing brace comes after the data
        head.push_str(",\"data\":\"");
        Json::new(head, pieces)
    }
}

/// The body of a post, written piece by piece: base64 of a whole message would be another copy of it, and a third larger.
pub(super) struct Json {
    head: Option<Bytes>,
    pieces: VecDeque<Bytes>,
    /// Bytes that are not written yet.
    left: u64,
    tail: Option<Bytes>,
}

/// Raw bytes of one frame; a multiple of three, so that base64 needs no padding within.
const STEP: usize = 3 * 8 * 1024;

impl Json {
    fn new(head: String, pieces: VecDeque<Bytes>) -> Self {
        let raw: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let (head, tail) = (Bytes::from(head), Bytes::from_static(b"\"}"));
        let left = head.len() as u64 + raw.div_ceil(3) * 4 + tail.len() as u64;
        Json { head: Some(head), pieces, left, tail: Some(tail) }
    }

    fn next(&mut self) -> Option<Bytes> {
        if let Some(head) = self.head.take() {
            return Some(head);
        }
        let mut raw: Vec<u8> = Vec::new();
        while let Some(piece) = self.pieces.front_mut() {
            let room = STEP - raw.len();
            // Whole and alone: encoded where it lies.
            if raw.is_empty() && piece.len() >= STEP {
                return Some(STANDARD.encode(piece.split_to(STEP)).into());
            }
            raw.extend_from_slice(&piece.split_to(room.min(piece.len())));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            if raw.len() == STEP {
                break;
            }
        }
        if raw.is_empty() { self.tail.take() } else { Some(STANDARD.encode(raw).into()) }
    }
}

impl Body for Json {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let next = this.next();
        this.left -= next.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Poll::Ready(next.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.tail.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use serde_json::Value;

    use super::*;

    fn payload(kind: Kind, status: Option<Code>, data: Vec<Bytes>) -> Payload {
        let call = Call { id: "i-1".to_owned(), model: ModelId::new("m__isvc-1").unwrap(), name: Some("m\"".to_owned()), method: "a.S/M".to_owned() };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-many", &b"1"[..]),
            ("x-many", b"2"),
            ("x-some-bin", b"AAE"),
            ("x-odd", b"\xff"),
            ("authorization", b"Bearer s3cret"),
            ("cookie", b"s3cret"),
            ("x-api-key", b"s3cret"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let size = data.iter().map(|piece| piece.len() as u64).sum();
        Payload { call: Arc::new(call), kind, status, metadata: metadata(&headers), data, size, packing: Packing::Plain }
    }

    async fn written(json: Json) -> (u64, Bytes) {
        (json.size_hint().exact().unwrap(), json.collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_post_has_the_seven_members_and_no_secrets() {
        for (kind, status, data, expected_status, expected_data) in [
            (Kind::Request, None, vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")], "", "YWJj"),
            (Kind::Response, Some(Code::Ok), vec![Bytes::from_static(b"abcd")], "OK", "YWJjZA=="),
            (Kind::Response, Some(Code::NotFound), vec![], "NOT_FOUND", ""),
        ] {
            let (announced, body) = written(payload(kind, status, data).json(None)).await;
            assert_eq!(announced, body.len() as u64);
            let read: Value = serde_json::from_slice(&body).unwrap();
            let expected = json!({
                "id": "i-1", "modelid": "m__isvc-1", "vModelId": "m\"", "data": expected_data, "kind": kind.as_str(),
                "status": expected_status, "metadata": {"x-many": "1, 2", "x-some-bin": "AAE", "x-odd": "\u{fffd}"},
            });
            assert_eq!(read, expected);
        }
        let other = payload(Kind::Request, None, vec![Bytes::from_static(b"packed")]).json(Some(Bytes::from_static(b"abc")));
        assert!(written(other).await.1.ends_with(b"\"data\":\"YWJj\"}"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]
        #[test]
        fn the_data_is_the_message_however_it_was_cut(
            sizes in prop::collection::vec(prop_oneof![0usize..10, 0usize..60_000], 0..6),
            seed in any::<u8>(),
        ) {
            let pieces: Vec<Bytes> = sizes.iter().map(|size| (0..*size).map(|at| (at % 251) as u8 ^ seed).collect::<Vec<_>>().into()).collect();
            let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
            let (announced, body) = futures::executor::block_on(written(payload(Kind::Request, None, pieces).json(None)));
            prop_assert_eq!(announced, body.len() as u64);
            let read: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(STANDARD.decode(read["data"].as_str().unwrap()).unwrap(), whole);
        }
    }
}
