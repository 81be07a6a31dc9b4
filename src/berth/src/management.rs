//! Who may call what of `mmesh.ModelMesh` changes something.

use std::sync::Arc;

use berth_api::Token;
use berth_proxy::Writes;
use tokio::sync::watch;

use crate::config::ManagementMode;

/// Who may change something, in the mode that was asked for. `token` is the one of the resource API, as it is now.
pub(crate) fn writes(mode: ManagementMode, token: Option<watch::Receiver<Token>>) -> Writes {
    match (mode, token) {
        (ManagementMode::Open, _) => Writes::Open,
        (ManagementMode::Token, Some(token)) => {
            let parsed = |given: &[u8]| Token::new(std::str::from_utf8(given).ok()?).ok();
            Writes::Token(Arc::new(move |given| parsed(given).is_some_and(|given| given == *token.borrow())))
        }
        // Without a token nobody can have it; the configuration refuses that before.
        (ManagementMode::Token, None) | (ManagementMode::Off, _) => Writes::Off,
    }
}
