//! `cargo bench -p berth-benches`: the promises that one machine can show, each beside its baseline in the same run.
fn main() {}
