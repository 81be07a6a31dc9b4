//! What servers say of a model that they do not hold, where it is not simply NOT_FOUND.
//!
//! Triton says it of a streamed request in a message of a call that goes well. So the first message of such an answer is
//! looked at before its head is passed on; of other methods nothing is. What is read for that are the bytes up to the first
//! field of the message, which says of all but errors that they are none, and of an error its few words.

use std::collections::VecDeque;

use berth_adapters::is_unknown_to_triton;
use berth_proto::inference::ModelStreamInferResponse;
use berth_upstream::{Answer, CallError, Piece, Server};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use prost::Message as _;

/// The method whose answers say it in a message.
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
/// The bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The first byte of a message that begins with `error_message`.
const ERROR_MESSAGE: u8 = 0x0a;
/// Longer messages are no word about a model: names have at most 253 bytes.
const LONGEST: usize = 2048;

/// What follows the head of an answer says that the model is not here.
#[derive(Clone, Copy)]
struct NotHere;

/// Whether what follows an answer's head says it, as far as that was looked at.
pub(super) fn is_said<B>(answer: &Response<B>) -> bool {
    answer.extensions().get::<NotHere>().is_some()
}

/// Calls `server`. Of an answer that may say it in its first message, that one has been looked at; none of it is lost.
pub(super) async fn call<B>(server: &Server, request: Request<B>) -> Result<Response<Answer>, CallError>
where
    B: Body<Data: Into<Piece>> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let looks = request.uri().path() == STREAM;
    let answer = server.call(request).await?;
    if looks { Box::pin(look(answer)).await } else { Ok(answer) }
}

async fn look(mut answer: Response<Answer>) -> Result<Response<Answer>, CallError> {
    let (mut begun, mut frames) = (Vec::new(), VecDeque::new());
    let says = loop {
        let Some(frame) = answer.body_mut().frame().await.transpose()? else { break false };
        let data = frame.data_ref();
        begun.extend_from_slice(data.map_or(&[], |data| &data[..data.len().min(LONGEST + PREFIX - begun.len())]));
        let last = data.is_none();
        frames.push_back(Ok(frame));
        match first(&begun) {
            First::Says => break true,
            First::SaysNothing => break false,
            First::More if last => break false,
            First::More => {}
        }
    };
    answer.body_mut().put_back(frames);
    if says {
        say(&mut answer);
    }
    Ok(answer)
}

/// The answer says it.
pub(super) fn say<B>(answer: &mut Response<B>) {
    answer.extensions_mut().insert(NotHere);
}

/// What the first bytes of an answer tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    More,
    Says,
    SaysNothing,
}

fn first(begun: &[u8]) -> First {
    let Some((&[compressed, a, b, c, d], message)) = begun.split_first_chunk::<PREFIX>() else { return First::More };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    // One that is compressed is no error of Triton's: those are too short for it.
    if compressed != 0 || length == 0 || length > LONGEST || message.first().is_some_and(|byte| *byte != ERROR_MESSAGE) {
        return First::SaysNothing;
    }
    let Some(message) = message.get(..length) else { return First::More };
    match ModelStreamInferResponse::decode(message) {
        Ok(answer) if is_unknown_to_triton(&answer.error_message) => First::Says,
        Ok(_) | Err(_) => First::SaysNothing,
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::inference::ModelInferResponse;
    use bytes::BufMut as _;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn framed(error_message: &str, infer_response: Option<ModelInferResponse>) -> Vec<u8> {
        let message = ModelStreamInferResponse { error_message: error_message.to_owned(), infer_response }.encode_to_vec();
        let mut framed = vec![0];
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.extend(message);
        framed
    }

    #[test]
    fn only_tritons_words_in_the_first_message_say_that_a_model_is_not_here() {
        let with_id = Some(ModelInferResponse { id: "7".to_owned(), ..ModelInferResponse::default() });
        let gone = "Request for unknown model: 'm' has no available versions";
        for (case, begun, expected) in [
            ("unknown", framed("Request for unknown model: 'm' is not found", None), First::Says),
            ("unloaded", framed(gone, None), First::Says),
            ("with the request's id", framed(gone, with_id.clone()), First::Says),
            ("another error", framed("[request id: 7] unexpected inference input 'X' for model 'm'", None), First::SaysNothing),
            ("an answer", framed("", with_id), First::SaysNothing),
            ("empty", framed("", None), First::SaysNothing),
            ("compressed", [&[1][..], &framed(gone, None)[1..]].concat(), First::SaysNothing),
            ("long", framed(&format!("Request for unknown model: '{}' is not found", "m".repeat(4096)), None), First::SaysNothing),
            ("no protobuf", vec![0, 0, 0, 0, 2, ERROR_MESSAGE, 9], First::SaysNothing),
            ("an answer begins", vec![0, 0, 1, 0, 0, 0x12], First::SaysNothing),
            ("nothing yet", Vec::new(), First::More),
        ] {
            assert_eq!(first(&begun), expected, "{case}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn a_part_of_the_first_message_never_says_what_the_whole_does_not(error in "(Request for unknown model: '[a-z]{0,9}' is not found)|.{0,40}", cut in 0.0..1.0_f64) {
            let whole = framed(&error, None);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short text")]
            let part = &whole[..(whole.len() as f64 * cut) as usize];
            let told = first(part);
            prop_assert!(told == First::More || told == first(&whole), "{told:?}");
        }
    }
}
