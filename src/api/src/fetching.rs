//! What is being fetched to this machine at the moment: the seam to whoever fetches, and how it is told.
//!
//! Downloads are no part of a resource: nothing of them is kept, and a resource has no version for each percent. They are a
//! document of their own (`/berth/v1/downloads`), which can be watched, and a column of the tables. Whoever reads is given
//! the present picture, never a queue of past ones.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_plan::resource::is_ours;
use berth_plan::status::NAME_TAKEN;
use berth_registry::{Json, Kind, Object};
use berth_telemetry::Clock;
use berth_types::{ByteSize, Deadline, ModelId, Owner};
use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use crate::age::short_duration;
use crate::document;

/// How often somebody who watches is told how far downloads are.
pub(crate) const TELL_EVERY: Duration = Duration::from_secs(1);
/// Whoever watches is told again after this time also where nothing changed: so a connection whose other end has gone is
/// noticed.
const REPEAT_EVERY: Duration = Duration::from_secs(60);

/// Whoever knows what is being fetched.
pub trait Downloads: Send + Sync + 'static {
    /// Each download under way, in the order in which they began.
    fn under_way(&self) -> Vec<Download>;

    /// A number that is another one after every change.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Where a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadStage {
    /// The store has been asked what belongs to the model; then room on disk is made for it.
    Listing,
    /// What belongs to the model is known and has its room. No byte of it has come yet.
    Listed,
    /// Bytes are coming.
    Fetching,
    /// All bytes are here; they are checked and put in place.
    Verifying,
}

impl DownloadStage {
    const fn as_str(self) -> &'static str {
        match self {
            DownloadStage::Listing => "Listing",
            DownloadStage::Listed => "Listed",
            DownloadStage::Fetching => "Fetching",
            DownloadStage::Verifying => "Verifying",
        }
    }
}

/// One download under way. Prints as a cell of a table: `50% (1.2 of 2.5 GiB, 310 MiB/s, 5s left)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Download {
    /// Which version of which model.
    pub model: ModelId,
    /// Where it is.
    pub stage: DownloadStage,
    /// Bytes that are here, those of earlier attempts included.
    pub bytes: ByteSize,
    /// Bytes in all; zero until they are known.
    pub total: ByteSize,
    /// Bytes that an earlier attempt had left.
    pub resumed: ByteSize,
    /// Bytes per second over the last few seconds; `None` until it has been measured.
    pub rate: Option<ByteSize>,
    /// How long the rest takes at this rate, where that can be told.
    pub eta: Option<Duration>,
}

impl fmt::Display for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage {
            DownloadStage::Listing => return f.write_str("listing"),
            DownloadStage::Verifying => return write!(f, "verifying {}", self.total),
            DownloadStage::Listed | DownloadStage::Fetching => {}
        }
        let percent = (u128::from(self.bytes.0) * 100).checked_div(u128::from(self.total.0)).unwrap_or(100).min(100);
        let (bytes, total) = (self.bytes.to_string(), self.total.to_string());
        // `1.2 of 2.6 GiB`: a unit that both have is said once.
        let bytes = match (bytes.split_once(' '), total.split_once(' ')) {
            (Some((number, one)), Some((_, other))) if one == other => number,
            _ => &bytes,
        };
        write!(f, "{percent}% ({bytes} of {total}")?;
        match self.rate {
            None => {}
            Some(ByteSize::ZERO) => f.write_str(", nothing comes")?,
            Some(rate) => write!(f, ", {rate}/s")?,
        }
        if let Some(eta) = self.eta {
            write!(f, ", {} left", short_duration(eta))?;
        }
        f.write_str(")")
    }
}

/// The resource whose version this is, by its kind and name; `None` for ids of another form.
pub(crate) fn resource_of(model: &ModelId) -> Option<(Kind, &str)> {
    let (name, version) = model.as_str().rsplit_once("__")?;
    let (owner, _hash) = version.split_once('-')?;
    let is = |one: Owner| one.to_string() == owner;
    let kind = if is(Owner::Isvc) { Kind::InferenceService } else { Kind::Predictor };
    (is(Owner::Isvc) || is(Owner::Ksp)).then_some((kind, name))
}

impl Download {
    fn resource(&self) -> Option<(Kind, &str)> {
        resource_of(&self.model)
    }

    fn document(&self) -> Value {
        let mut document = json!({
            "model": self.model.as_str(),
            "stage": self.stage.as_str(),
            "bytes": self.bytes.0,
            "totalBytes": self.total.0,
            "resumedBytes": self.resumed.0,
            "summary": self.to_string(),
        });
        if let Some((kind, name)) = self.resource() {
            document["kind"] = kind.as_str().into();
            document["name"] = name.into();
        }
        if let Some(rate) = self.rate {
            document["bytesPerSecond"] = rate.0.into();
        }
        if let Some(eta) = self.eta {
            document["secondsLeft"] = eta.as_secs().into();
        }
        document
    }
}

/// All that is under way, as a document.
pub(crate) fn document(downloads: Option<&dyn Downloads>) -> Value {
    let downloads = downloads.map(Downloads::under_way).unwrap_or_default();
    json!({ "items": downloads.iter().map(Download::document).collect::<Vec<_>>() })
}

/// How far the downloads of resources are, as cells: one picture, taken once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picture(BTreeMap<(Kind, String), String>);

impl Picture {
    /// What is under way now. Of several versions of one resource the one that began last: the others are on their way out.
    pub(crate) fn of(downloads: &dyn Downloads) -> Self {
        let under_way = downloads.under_way();
        let cells = under_way.iter().filter_map(|download| {
            let (kind, name) = download.resource()?;
            Some(((kind, name.to_owned()), download.to_string()))
        });
        Picture(cells.collect())
    }

    /// How far the download for `object` is; empty when there is none.
    pub(crate) fn cell(&self, object: &Object) -> &str {
        let found = if self.0.is_empty() { None } else { self.0.get(&(object.key.kind, object.key.name.as_str().to_owned())) };
        found.filter(|_| is_for(object)).map_or("", String::as_str)
    }

    /// True while something is being fetched for a resource of that kind and name.
    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        self.0.contains_key(&(kind, name.to_owned()))
    }

    /// The names of `kind` whose cells differ between the two.
    pub(crate) fn differences(&self, other: &Picture, kind: Kind) -> Vec<String> {
        let one_way = |one: &Picture, other: &Picture| -> Vec<String> {
            let differ = one.0.iter().filter(|(key, cell)| key.0 == kind && other.0.get(key) != Some(cell));
            differ.map(|((_, name), _)| name.clone()).collect()
        };
        let mut names = one_way(self, other);
        names.extend(one_way(other, self));
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// False for those who share a name with the resource that the model is of: names are shared across namespaces.
fn is_for(object: &Object) -> bool {
    let owner = if object.key.kind == Kind::InferenceService { Owner::Isvc } else { Owner::Ksp };
    if !is_ours(owner, &object.annotations.members()) {
        return false;
    }
    let status = object.status.as_ref().map(Json::value).unwrap_or_default();
    let failure = [&status["lastFailureInfo"]["message"], &status["modelStatus"]["lastFailureInfo"]["message"]];
    !failure.iter().any(|message| message.as_str().is_some_and(|message| message.starts_with(NAME_TAKEN)))
}

/// Somebody who watches the downloads.
struct Watch {
    downloads: Option<Arc<dyn Downloads>>,
    clock: Clock,
    until: Deadline,
    shutdown: CancellationToken,
    told: Option<Vec<u8>>,
    _place: OwnedSemaphorePermit,
}

/// What is under way, as a line of JSON now and whenever it has changed.
pub(crate) fn watch(
    downloads: Option<Arc<dyn Downloads>>,
    clock: Clock,
    until: Deadline,
    shutdown: CancellationToken,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let watch = Watch { downloads, clock, until, shutdown, told: None, _place: place };
    futures::stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok(line), watch))
    })
}

impl Watch {
    /// The next line; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        let told = self.told.take();
        let line = tokio::select! {
            line = self.news(told) => line,
            () = self.clock.sleep_until(self.until) => return None,
            () = self.shutdown.cancelled() => return None,
        };
        self.told = Some(line.clone());
        Some(line.into())
    }

    /// A line that differs from the one told last, or the same one after a while.
    async fn news(&self, told: Option<Vec<u8>>) -> Vec<u8> {
        let now = || {
            let mut line = document::text(&document(self.downloads.as_deref()));
            line.push(b'\n');
            line
        };
        let Some(told) = told else { return now() };
        let (not_before, repeat) = (self.clock.deadline_in(TELL_EVERY), self.clock.deadline_in(REPEAT_EVERY));
        let changed = async {
            let Some(downloads) = &self.downloads else { return std::future::pending().await };
            let mut changes = downloads.changes();
            loop {
                // Not more often than anybody can read, and whatever happens meanwhile is one change.
                self.clock.sleep_until(not_before).await;
                changes.mark_unchanged();
                let line = now();
                if line != told {
                    return line;
                }
                if changes.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        self.clock.until(repeat, changed).await.unwrap_or_else(now)
    }
}

#[cfg(test)]
mod tests {
    use berth_plan::resource::{DEPLOYMENT_MODE, MODEL_MESH};
    use berth_registry::{Desired, ObjectKey, Origin};
    use berth_types::{Name, Namespace};

    use super::*;

    fn download(model: &str, stage: DownloadStage, bytes: u64, total: u64) -> Download {
        let model = ModelId::new(model).unwrap();
        Download { model, stage, bytes: ByteSize(bytes), total: ByteSize(total), resumed: ByteSize::ZERO, rate: None, eta: None }
    }

    #[test]
    fn a_download_is_told_in_a_few_words() {
        use DownloadStage::{Fetching, Listed, Listing, Verifying};
        let (mib, gib) = (1 << 20, 1 << 30);
        let at = |bytes, total, rate: u64, eta| Download {
            rate: Some(ByteSize(rate)),
            eta: Some(eta).filter(|eta| *eta > 0).map(Duration::from_secs),
            ..download("m", Fetching, bytes, total)
        };
        for (download, text) in [
            (download("m", Listing, 0, 0), "listing"),
            (download("m", Listed, gib, 3 * gib), "33% (1 of 3 GiB)"),
            (download("m", Verifying, 3 * gib, 3 * gib), "verifying 3 GiB"),
            (download("m", Fetching, 0, 5 * mib), "0% (0 B of 5 MiB)"),
            (download("m", Fetching, 0, 0), "100% (0 of 0 B)"),
            (at(5 * gib / 4, 5 * gib / 2, 310 * mib, 5), "50% (1.2 of 2.5 GiB, 310 MiB/s, 5s left)"),
            (at(800 * mib, 2 * gib, 3 * mib / 2, 832), "39% (800 MiB of 2 GiB, 1.5 MiB/s, 13m left)"),
            (at(800 * mib, 2 * gib, 0, 0), "39% (800 MiB of 2 GiB, nothing comes)"),
        ] {
            assert_eq!(download.to_string(), text);
        }
    }

    #[test]
    fn a_download_belongs_to_the_resource_that_its_id_names() {
        for (model, expected) in [
            ("a__isvc-0123456789", Some((Kind::InferenceService, "a"))),
            ("a__b__ksp-0123456789", Some((Kind::Predictor, "a__b"))),
            ("a__other-0123456789", None),
            ("a__isvc", None),
            ("made-elsewhere", None),
        ] {
            assert_eq!(download(model, DownloadStage::Listing, 0, 0).resource(), expected, "{model}");
        }
    }

    /// One that never changes.
    struct Fixed(Vec<Download>);

    impl Downloads for Fixed {
        fn under_way(&self) -> Vec<Download> {
            self.0.clone()
        }

        fn changes(&self) -> watch::Receiver<u64> {
            watch::channel(0).1
        }
    }

    fn object(kind: Kind, ours: bool, status: Value) -> Object {
        let key = ObjectKey { kind, namespace: Namespace::new("n").ok(), name: Name::new("a").unwrap() };
        let annotations = if ours { json!({ DEPLOYMENT_MODE: MODEL_MESH }).into() } else { Json::EMPTY };
        let object = Object::unsaved(Desired { annotations, ..Desired::new(key, Origin::Api, &json!({})) });
        Object { status: Some(status.into()), ..object }
    }

    #[test]
    fn the_version_that_began_last_is_shown_at_the_resource_that_has_the_name_and_nowhere_else() {
        use DownloadStage::{Fetching, Listing};
        let picture = Picture::of(&Fixed(vec![
            download("a__isvc-1", Fetching, 1, 2),
            download("b__isvc-1", Listing, 0, 0),
            download("a__isvc-2", Fetching, 1, 4),
            download("strange", Listing, 0, 0),
        ]));
        let taken = json!({ "modelStatus": { "lastFailureInfo": { "message": format!("{NAME_TAKEN}: default/a has it") } } });
        for (case, object, cell) in [
            ("its own", object(Kind::InferenceService, true, json!({})), "25% (1 of 4 B)"),
            ("another kind", object(Kind::Predictor, true, json!({})), ""),
            ("one that is left alone", object(Kind::InferenceService, false, json!({})), ""),
            ("one that would like to have the name", object(Kind::InferenceService, true, taken), ""),
        ] {
            assert_eq!(picture.cell(&object), cell, "{case}");
        }
        let later = Picture::of(&Fixed(vec![
            download("a__isvc-2", Fetching, 2, 4),
            download("c__isvc-1", Listing, 0, 0),
            download("d__ksp-1", Listing, 0, 0),
        ]));
        assert_eq!(picture.differences(&later, Kind::InferenceService), ["a", "b", "c"]);
        assert_eq!(picture.differences(&later, Kind::Predictor), ["d"]);
        assert_eq!(later.differences(&later, Kind::InferenceService), Vec::<String>::new());
    }
}
