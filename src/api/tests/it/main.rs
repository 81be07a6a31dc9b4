//! The API as a client sees it, over a socket.
#![allow(clippy::unwrap_used, reason = "tests")]

mod access;
mod contended;
mod forms;
mod limits;
mod patching;
mod reading;
mod server;
mod writing;
