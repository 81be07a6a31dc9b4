//! The downloads of this process, as the resource API tells them.

use berth_api::{Download, DownloadStage, Downloads};
use berth_puller::{Progress, Stage};
use tokio::sync::watch;

/// What the puller is fetching.
pub(crate) struct Fetching(pub(crate) berth_puller::Downloads);

impl Downloads for Fetching {
    fn under_way(&self) -> Vec<Download> {
        self.0.snapshot().into_iter().filter_map(download).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }
}

/// `None` for a download that has ended.
fn download(progress: Progress) -> Option<Download> {
    let Progress { model, stage, bytes, total, resumed, rate, eta } = progress;
    let stage = match stage {
        Stage::Listing => DownloadStage::Listing,
        Stage::Listed => DownloadStage::Listed,
        Stage::Fetching => DownloadStage::Fetching,
        Stage::Verifying => DownloadStage::Verifying,
        Stage::Done | Stage::Failed => return None,
    };
    Some(Download { model, stage, bytes, total, resumed, rate, eta })
}
