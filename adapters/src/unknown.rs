//! What servers say of a model that they do not hold.

use tonic::Code;

/// Whether an answer says that the server does not hold a model. Where it is not simply NOT_FOUND, three servers are known by
/// their words: Triton, MLServer, which lets an error of its own get out as UNKNOWN, and TorchServe, for which it is INTERNAL.
#[must_use]
pub fn is_unknown_model(code: Code, message: &str) -> bool {
    match code {
        Code::NotFound => true,
        Code::Unavailable => is_unknown_to_triton(message),
        Code::Unknown => message.starts_with("Unexpected <class 'mlserver.errors.ModelNotFound'>"),
        Code::InvalidArgument => message.starts_with("Model ") && message.contains(" not found"),
        Code::Internal => message.starts_with("Model not found: ") && message.ends_with(".ModelNotFoundException"),
        _ => false,
    }
}

/// Triton's words, which it says in messages of streams, too.
#[must_use]
pub fn is_unknown_to_triton(message: &str) -> bool {
    message.starts_with("Request for unknown model") && (message.ends_with("is not found") || message.ends_with("has no available versions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_models_are_known_by_code_and_by_three_servers_words() {
        for (code, message, unknown) in [
            (Code::NotFound, "", true),
            (Code::Unavailable, "Request for unknown model: 'm' is not found", true),
            (Code::Unavailable, "Request for unknown model: 'm' has no available versions", true),
            (Code::Unavailable, "the server is starting", false),
            (Code::Unknown, "Unexpected <class 'mlserver.errors.ModelNotFound'>: Model m not found", true),
            (Code::Unknown, "Model m not found", false),
            (Code::InvalidArgument, "Model m with version  not found", true),
            (Code::InvalidArgument, "Model m takes no input x", false),
            (Code::Internal, "Model not found: m\norg.pytorch.serve.archive.model.ModelNotFoundException", true),
            (Code::Internal, "Model version: 3 does not exist for model: m\norg.pytorch.serve.archive.model.ModelVersionNotFoundException", false),
            (Code::Internal, "Model not found: in a prediction's own words", false),
            (Code::Internal, "Request for unknown model: 'm' is not found", false),
        ] {
            assert_eq!(is_unknown_model(code, message), unknown, "{code:?} {message}");
        }
    }
}
