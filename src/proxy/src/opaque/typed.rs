//! Requests of our own making to a runtime of its own process: those of the REST port, as the Open Inference Protocol has
//! them.

use berth_adapters::InferError;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse};
use berth_types::{Deadline, ModelId};
use berth_upstream::Server;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Uri, header};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Code;

use super::infer_fault;
use super::sending::{Deadlines, Head};
use super::whole::{Collected, Whole};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::frontend::{Call, Frontend, weight_of};
use crate::id::Asked;
use crate::payloads::Observed;
use crate::route::Models;
use crate::wire;

impl<M: Models> Frontend<M> {
    /// Runs the model on a copy in the runtime behind `server`; the call's metadata goes with the request.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn infer_there(
        &self,
        server: &Server,
        asked: &Asked<'_>,
        mut request: ModelInferRequest,
        call: Call<'_>,
        deadline: Deadline,
        observed: &mut Option<Observed>,
    ) -> Result<ModelInferResponse, Fault> {
        let (id, held) = (request.id.clone(), weight_of(&request));
        let (mut copied, mut share) = (self.bodies.share(), self.bodies.share());
        let headers = headers(call.metadata);
        let mut whole = Whole {
            pieces: |model: &ModelId| {
                self.observe_once(observed, call, asked, model, &request);
                request.model_name = model.to_string();
                pieces(&mut request, &mut copied)
            },
            held,
        };
        let head = Head { uri: &Uri::from_static("/inference.GRPCInferenceService/ModelInfer"), headers: &headers };
        let begun = self.send(server, head, asked, Deadlines { answer: deadline, end: deadline }, &mut whole).await?;
        let since = begun.since;
        let mut response: ModelInferResponse = decoded(&self.collect(begun, deadline, &mut share).await?)?;
        self.meters.runtime.observe(self.clock.now().saturating_duration_since(since));
        response.id = id;
        Ok(response)
    }

    /// Inputs and outputs of a model in the runtime behind `server`; `metadata` goes with the request.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn metadata_there(
        &self,
        server: &Server,
        asked: &Asked<'_>,
        metadata: &HeaderMap,
        deadline: Deadline,
    ) -> Result<ModelMetadataResponse, Fault> {
        let (headers, mut share) = (headers(metadata), self.bodies.share());
        let mut whole = Whole {
            pieces: |model: &ModelId| Ok(vec![wire::framed(&ModelMetadataRequest { name: model.to_string(), version: String::new() })?]),
            held: 0,
        };
        let head = Head { uri: &Uri::from_static("/inference.GRPCInferenceService/ModelMetadata"), headers: &headers };
        let begun = self.send(server, head, asked, Deadlines { answer: deadline, end: deadline }, &mut whole).await?;
        decoded(&self.collect(begun, deadline, &mut share).await?)
    }
}

fn headers(metadata: &HeaderMap) -> HeaderMap {
    let mut headers = metadata.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    headers
}

/// The message of an answer, or what the runtime said against it.
fn decoded<A: Message + Default>(answer: &Collected) -> Result<A, Fault> {
    let model = &answer.model;
    let lost = |why: &str| Fault::RuntimeLost { model: Quoted::new(model.as_str()), why: why.to_owned() };
    let status = answer.status().ok_or_else(|| lost("its answer ended without a status"))?;
    if status.code() != Code::Ok {
        return Err(infer_fault(model, InferError::Refused { code: status.code() as i32, message: status.message().to_owned() }));
    }
    let wrong = |fault: prost::DecodeError| InferError::Failed(format!("the runtime's answer cannot be read: {fault}"));
    A::decode(answer.message()?).map_err(|fault| infer_fault(model, wrong(fault)))
}

/// Contents of up to this many bytes are copied: a frame costs more than the copy.
const SMALL: usize = 4 << 10;

/// `request` with its prefix. What is copied of it is held by `share`; large raw contents are not.
fn pieces(request: &mut ModelInferRequest, share: &mut Share) -> Result<Vec<Bytes>, Fault> {
    /// The number of `raw_input_contents`, the last of the fields.
    const RAW: u32 = 7;
    let raw = std::mem::take(&mut request.raw_input_contents);
    let field = |content: &Bytes| key_len(RAW) + encoded_len_varint(content.len() as u64) + content.len();
    let (begins, size) = (request.encoded_len(), request.encoded_len() + raw.iter().map(field).sum::<usize>());
    let large = raw.iter().map(Bytes::len).filter(|length| *length > SMALL).sum::<usize>();
    share.hold((size - large) as u64)?;
    let (mut joint, mut pieces) = (BytesMut::with_capacity(begins + 32), Vec::new());
    joint.put_u8(0);
    joint.put_u32(u32::try_from(size).map_err(|_| Fault::Internal(format!("the request has {size} bytes, gRPC takes at most 4 GiB")))?);
    request.encode(&mut joint).map_err(|shortage| Fault::Internal(format!("the request cannot be written: {shortage}")))?;
    for content in &raw {
        encode_key(RAW, WireType::LengthDelimited, &mut joint);
        encode_varint(content.len() as u64, &mut joint);
        if content.len() > SMALL {
            pieces.extend([joint.split().freeze(), content.clone()]);
        } else {
            joint.extend_from_slice(content);
        }
    }
    pieces.push(joint.freeze());
    request.raw_input_contents = raw;
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use berth_types::ByteSize;

    use super::*;
    use crate::budget::Budget;

    #[test]
    fn a_request_is_written_as_its_encoder_would_and_large_contents_are_not_copied() {
        let large = Bytes::from(vec![7; SMALL + 1]);
        for contents in
            [vec![], vec![Bytes::new()], vec![large.clone()], vec![Bytes::from_static(b"a"), large.clone(), Bytes::from_static(b"b"), large]]
        {
            let mut request = ModelInferRequest { model_name: "m".to_owned(), raw_input_contents: contents.clone(), ..ModelInferRequest::default() };
            let budget = Budget::of(ByteSize(100));
            let mut share = budget.share();
            let written = pieces(&mut request, &mut share).unwrap();
            assert_eq!(request.raw_input_contents, contents);
            let mut expected = vec![0];
            expected.put_u32(u32::try_from(request.encoded_len()).unwrap());
            expected.extend(request.encode_to_vec());
            assert_eq!(written.concat(), expected);
            for content in contents.iter().filter(|content| content.len() > SMALL) {
                assert!(written.iter().any(|piece| piece.as_ptr() == content.as_ptr()), "copied");
            }
            let large = contents.iter().map(Bytes::len).filter(|length| *length > SMALL).sum::<usize>();
            assert_eq!(budget.taken(), (request.encoded_len() - large) as u64, "what is copied counts");
        }
    }

    #[test]
    fn a_request_without_room_for_what_is_copied_is_refused() {
        let mut request = ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![7; SMALL])], ..ModelInferRequest::default() };
        let budget = Budget::of(ByteSize(SMALL as u64));
        assert!(matches!(pieces(&mut request, &mut budget.share()), Err(Fault::TooHeavy { .. })));
    }
}
