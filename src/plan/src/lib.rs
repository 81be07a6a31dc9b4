//! The decisions, pure: everything a decision needs comes in as an argument (`now` included), what to do comes out as a
//! value. No async, no I/O, no clock, no chance.

mod admit;
pub mod alias;
pub mod background;
pub mod caution;
pub mod device;
pub mod drift;
mod life;
pub mod managed;
pub mod pressure;
pub mod registration;
pub mod resource;
pub mod runtime;
pub mod status;
mod suspects;
mod uri;

pub use admit::{Admission, MayEvict, Memory, Resident, admit, drain_for, free_up, relieve};
pub use life::{Effect, Event, Phase, Unexpected};
pub use suspects::Suspects;
