//! Calls to an inference server over a few shared HTTP/2 connections.
//!
//! [`Server::call`] passes a request on, body and trailers untouched, and gives back the answer as it comes. Both bodies
//! stream with flow control from end to end: what the receiver does not read stays with the sender. Each connection is
//! driven by one task, so many callers are spread over several; few callers share one.
//!
//! A call that fails says what is known about it ([`CallError`]): the server was not reached, it did not take the request,
//! the connection broke half-way, or it reset the call. Only in the first two cases can the request be sent once more
//! without being run twice. Nothing is ever sent again in here: whether the body is still whole is the caller's to know.
//!
//! HTTP/2 is spoken through `h2` itself and not through hyper's client, for three reasons: an answer that is dropped resets
//! its stream at once, also while the request's body waits for the peer's window; a reset, a GOAWAY and a broken socket
//! stay apart; and a unary call costs no task of its own.

mod answer;
mod config;
mod connection;
mod error;
mod gather;
mod piece;
mod pool;
mod pump;
mod server;
mod target;

#[cfg(test)]
mod tests;

pub use answer::Answer;
pub use config::Config;
pub use error::{CallError, Code};
pub use gather::Gather;
pub use piece::Piece;
pub use server::{Server, State};
pub use target::{Target, TargetError};
