//! What `berth serve` prints for the person who started it: what it loads, when it is ready, a line to paste.
//!
//! On a terminal downloads are shown as bars and everything else as lines above them; elsewhere only lines. Logs go to
//! standard error, this goes to standard output.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IsTerminal, Write};
use std::time::Duration;

use berth_registry::Kind;
use berth_telemetry::field::took;
use berth_types::ByteSize;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Prints to standard output.
pub(crate) struct Ui {
    bars: Option<MultiProgress>,
    downloads: BTreeMap<String, ProgressBar>,
    /// What was last printed of each resource, by a hash of its kind and name: one name may stand for a resource of either
    /// kind, and with many of them nothing more is kept than tells whether something is news.
    states: HashMap<u64, Said>,
}

/// What was last printed of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    /// Its place among [`STATES`].
    state: u8,
    /// A hash of the reason.
    why: u64,
}

/// The words for how a resource stands, in the order in which they are counted.
const STATES: [&str; 7] = ["FailedToLoad", "InvalidSpec", "Loaded", "Loading", "Pending", "Standby", "Unmanaged"];

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// How one resource stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Which of the two kinds.
    pub(crate) kind: Kind,
    /// `<namespace>/<name>`, without the namespace when it is `default`.
    pub(crate) name: String,
    /// The state of the active model, `InvalidSpec` or `Unmanaged`.
    pub(crate) state: String,
    /// Why, where something failed or is left alone.
    pub(crate) failure: Option<String>,
    /// What the copy takes, when one is loaded.
    pub(crate) size: Option<ByteSize>,
}

impl Standing {
    /// True once nothing is on its way for this resource: also when it waits for what may never come, a name that another
    /// resource has or a runtime that nobody runs.
    #[must_use]
    pub(crate) fn settled(&self) -> bool {
        self.failure.is_some() || !matches!(self.state.as_str(), "Pending" | "Loading")
    }
}

impl Ui {
    /// For this process's standard output.
    #[must_use]
    pub(crate) fn new() -> Self {
        let bars = std::io::stdout().is_terminal().then(|| MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout()));
        Ui { bars, downloads: BTreeMap::new(), states: HashMap::new() }
    }

    /// True when a person looks at a terminal.
    #[must_use]
    pub(crate) fn on_terminal(&self) -> bool {
        self.bars.is_some()
    }

    /// One line: a word of what it is about, and the text.
    pub(crate) fn line(&self, word: &str, text: &str) {
        let line = format!("{word:<12} {text}");
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => {
                // A closed pipe is no reason to stop serving.
                let _ = writeln!(std::io::stdout().lock(), "{line}");
            }
        }
    }

    /// Prints `standing` if it is news.
    pub(crate) fn standing(&mut self, standing: &Standing) {
        let mut text = standing.name.clone();
        if let Some(size) = standing.size.filter(|_| standing.state == "Loaded") {
            text = format!("{text:<28} {size}");
        }
        if let Some(failure) = &standing.failure {
            text = format!("{text:<28} {failure}");
        }
        let state = STATES.iter().position(|state| *state == standing.state).and_then(|at| u8::try_from(at).ok());
        let said = Said { state: state.unwrap_or(u8::MAX), why: hash((&standing.state, &standing.failure)) };
        if self.states.insert(hash((standing.kind, &standing.name)), said) != Some(said) {
            self.line(&standing.state, &text);
        }
    }

    /// The resource is gone.
    pub(crate) fn gone(&mut self, kind: Kind, name: &str) {
        if self.states.remove(&hash((kind, name))).is_some() {
            self.line("Deleted", name);
        }
    }

    /// A download moved. A terminal shows a bar; elsewhere the log's line at its end is enough.
    pub(crate) fn download(&mut self, model: &str, done: ByteSize, total: ByteSize, ended: bool) {
        let Some(bars) = &self.bars else { return };
        if ended {
            if let Some(bar) = self.downloads.remove(model) {
                bar.finish_and_clear();
                bars.remove(&bar);
            }
            return;
        }
        let bar = self.downloads.entry(model.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:<28} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            let bar = bars.add(ProgressBar::new(total.0).with_prefix(model.to_owned()));
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        bar.set_length(total.0);
        bar.set_position(done.0);
    }

    /// The line that says that requests are answered, and what was loaded.
    pub(crate) fn ready(&self, since_start: Duration) {
        let counted = STATES.iter().enumerate().map(|(at, state)| (state, self.states.values().filter(|said| usize::from(said.state) == at).count()));
        let parts: Vec<String> = counted.filter(|(_, count)| *count > 0).map(|(state, count)| format!("{count} {state}")).collect();
        let parts = if parts.is_empty() { "no resources yet".to_owned() } else { parts.join(", ") };
        self.line("ready", &format!("{parts} after {}", took(since_start)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(state: &str) -> Standing {
        Standing { kind: Kind::Predictor, name: "m".to_owned(), state: state.to_owned(), failure: None, size: None }
    }

    #[test]
    fn a_resource_is_settled_once_nothing_is_on_its_way() {
        for (state, settled) in
            [("Pending", false), ("Loading", false), ("Loaded", true), ("Standby", true), ("FailedToLoad", true), ("InvalidSpec", true)]
        {
            assert_eq!(standing(state).settled(), settled, "{state}");
            let waiting = Standing { failure: Some("RuntimeUnhealthy: no pod".to_owned()), ..standing(state) };
            assert!(waiting.settled(), "{state} with its reason");
        }
    }

    #[test]
    fn the_same_news_is_printed_once() {
        let mut ui = Ui { bars: None, downloads: BTreeMap::new(), states: HashMap::new() };
        ui.standing(&standing("Loaded"));
        ui.standing(&standing("Loaded"));
        assert_eq!(ui.states.len(), 1);
        ui.standing(&Standing { kind: Kind::InferenceService, ..standing("Pending") });
        assert_eq!(ui.states.len(), 2, "another kind is another resource");
        ui.gone(Kind::Predictor, "m");
        ui.gone(Kind::Predictor, "m");
        assert_eq!(ui.states.len(), 1);
    }
}
