//! Places at which a test may end the process, as a crash would.
//!
//! `BERTH_HALT_AT=<point>` makes the process kill itself with SIGKILL when it reaches that [`Point`]: no destructor
//! runs, no buffer is flushed, nothing is told to anybody. Tests that restart the program after such an end prove that
//! nothing half-done is served and nothing registered is lost. Without the variable a point costs one atomic load.

use std::sync::OnceLock;

/// A named place on the way of a model. The order is the order of a cold load, then of an eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The store's listing is complete, nothing is fetched yet.
    Listed,
    /// Part of the bytes are on disk.
    Fetching,
    /// All bytes are on disk and checked, still under a temporary name.
    Verified,
    /// The files have their final name.
    Renamed,
    /// The runtime's layout is in place.
    LaidOut,
    /// The runtime was told to load.
    Loading,
    /// The runtime has loaded it, nobody was told.
    Loaded,
    /// The runtime was told to unload, nothing is confirmed.
    Unloading,
}

impl Point {
    /// Every point.
    pub const ALL: [Point; 8] =
        [Point::Listed, Point::Fetching, Point::Verified, Point::Renamed, Point::LaidOut, Point::Loading, Point::Loaded, Point::Unloading];

    /// The value of the variable that stands for this point.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Point::Listed => "listed",
            Point::Fetching => "fetching",
            Point::Verified => "verified",
            Point::Renamed => "renamed",
            Point::LaidOut => "laid-out",
            Point::Loading => "loading",
            Point::Loaded => "loaded",
            Point::Unloading => "unloading",
        }
    }
}

/// The environment variable.
pub const VARIABLE: &str = "BERTH_HALT_AT";

/// What the variable asks for: a point, and optionally `@<text>` that the subject must contain.
fn wanted() -> Option<&'static (String, Option<String>)> {
    static WANTED: OnceLock<Option<(String, Option<String>)>> = OnceLock::new();
    WANTED
        .get_or_init(|| {
            let value = std::env::var(VARIABLE).ok()?;
            Some(match value.split_once('@') {
                Some((point, subject)) => (point.to_owned(), Some(subject.to_owned())),
                None => (value, None),
            })
        })
        .as_ref()
}

/// Ends the process here when the variable names `point` (and, with `@text`, when `subject` contains the text).
pub fn at(point: Point, subject: &str) {
    let Some((name, filter)) = wanted() else { return };
    if name == point.as_str() && filter.as_ref().is_none_or(|text| subject.contains(text.as_str())) {
        #[allow(clippy::print_stderr, reason = "the process ends in the next line, no log would be flushed")]
        {
            eprintln!("{VARIABLE}: {} reached for {subject}", point.as_str());
        }
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        // SIGKILL cannot be caught; this line is only reached where signals are not delivered at all.
        std::process::abort();
    }
}
