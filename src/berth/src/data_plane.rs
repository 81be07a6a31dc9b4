//! The data plane's configuration: which methods clients may call, given as text or in a file that is followed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_proxy::methods::{DataPlane, Methods};
use berth_proxy::{Frontend, Models};
use berth_telemetry::{Clock, Counter, Gauge, Metrics};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::following::{self, News};
use crate::serve::shown;

/// ModelMesh's variables for our keys.
pub(crate) const UPSTREAM: [(&str, &[&str]); 2] =
    [("dataplane-config", &["MM_DATAPLANE_CONFIG"]), ("dataplane-config-path", &["MM_DATAPLANE_CONFIG_PATH"])];

/// No such file is longer; whoever names another one by mistake is told so.
const LONGEST: u64 = 4 << 20;

/// What was configured, and the file to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configured {
    /// What it says now.
    pub(crate) plane: DataPlane,
    /// Where it stands; `None` where a text was given.
    pub(crate) file: Option<PathBuf>,
}

/// Reads the file.
///
/// # Errors
/// The file and what is wrong with it.
pub(crate) fn read(path: &Path) -> Result<DataPlane, String> {
    let told = |why: &dyn std::fmt::Display| format!("{}: {why}", shown(path));
    let about = std::fs::metadata(path).map_err(|fault| told(&fault))?;
    if !about.is_file() {
        return Err(told(&"is not a regular file"));
    }
    if about.len() > LONGEST {
        return Err(told(&format!("has more than {} MiB: is it the right file?", LONGEST >> 20)));
    }
    let text = std::fs::read_to_string(path).map_err(|fault| told(&fault))?;
    DataPlane::parse(&text).map_err(|fault| told(&fault))
}

/// Makes `frontend` allow what is configured of what its runtime has.
pub(crate) fn apply<M: Models>(frontend: &Frontend<M>, runtimes: &Methods, plane: &DataPlane) {
    frontend.set_methods(runtimes.clone().within(plane));
}

/// Follows the file: each good content counts at once, a faulty one is told and changes nothing.
pub(crate) async fn follow<M: Models>(
    path: PathBuf,
    (runtimes, plane): (Methods, DataPlane),
    frontend: Arc<Frontend<M>>,
    clock: Clock,
    metrics: Metrics,
    stop: CancellationToken,
) {
    metrics.set(Gauge::DataPlaneFaulty, &[], 0);
    let (value, present) = watch::channel(plane);
    let looked = path.clone();
    let told = |news: &News| {
        let outcome = match news {
            News::None => return,
            News::Replaced => {
                apply(&frontend, &runtimes, &present.borrow());
                info!(path = %path.display(), "the data plane's configuration was replaced");
                Some("replaced")
            }
            News::Wrong(why) => {
                warn!(error = %why, "the data plane's configuration cannot be used as it is now: the last one goes on to count");
                Some("refused")
            }
            News::RightAgain => {
                info!(path = %path.display(), "the data plane's configuration can be used again: it is the same");
                None
            }
        };
        metrics.set(Gauge::DataPlaneFaulty, &[], u64::from(matches!(news, News::Wrong(_))));
        if let Some(outcome) = outcome {
            metrics.add(Counter::DataPlaneReloads, &[("outcome", outcome)], 1);
        }
    };
    following::follow(move || read(&looked), value, told, clock, stop).await;
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_or_told_with_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("dataplane.json");
        fs::write(&file, r#"{"rpcConfigs": {"a.S/M": {}}}"#).expect("written");
        assert_eq!(read(&file), DataPlane::parse(r#"{"rpcConfigs": {"a.S/M": {"idExtractionPath": []}}}"#));
        fs::write(&file, "{").expect("written");
        let fault = read(&file).expect_err("no JSON");
        assert!(fault.starts_with(&format!("{}: the data plane's configuration cannot be read: ", file.display())), "{fault}");
        assert!(read(folder.path()).expect_err("a folder").ends_with("is not a regular file"));
        assert!(read(&folder.path().join("none")).expect_err("none").contains("No such file"));
        fs::File::create(&file).and_then(|file| file.set_len(LONGEST + 1)).expect("long");
        assert!(read(&file).expect_err("long").ends_with("has more than 4 MiB: is it the right file?"));
    }
}
