//! Residency under paused time, with a scripted runtime and a scripted store: nothing here waits for real.

mod away;
mod beware;
mod devices;
mod evicting;
mod failing;
mod leaving;
mod memory;
mod remembering;
mod rig;
mod schedule;
mod sizing;
mod waiting;
