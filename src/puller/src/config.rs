//! What the puller must be told, and its limits.

use std::path::PathBuf;
use std::time::Duration;

use berth_types::ByteSize;

use crate::PullError;

/// Folders, budgets and limits of a [`crate::Puller`].
#[derive(Clone, Debug)]
pub struct PullerConfig {
    /// The storage configuration: a folder with one JSON file per storage key (in Kubernetes, the mounted secret).
    /// `None`: there are no keys, and models must name their storage in parameters.
    pub storage_config: Option<PathBuf>,
    /// Where volume claims are mounted, one folder per claim.
    pub pvc_mounts: PathBuf,
    /// The disk tier's own folder; nobody else writes in it. Created when missing.
    pub cache: PathBuf,
    /// Bytes that the disk tier may hold, downloads under way included.
    pub disk_budget: ByteSize,
    /// Objects larger than this are fetched in ranges of this size. Whole MiB, at most 5 GiB.
    pub part_size: ByteSize,
    /// What is hashed on its own and recorded as done: a power of two of at least 1 KiB that divides the part size.
    pub(crate) grain: u64,
    /// Objects up to this size are gathered in memory and become a file in one step.
    pub(crate) small: u64,
    /// Large objects' ranges of one model that are fetched at once.
    pub parts_per_model: usize,
    /// Requests to stores at once, over all models. As many connections and open files at most.
    pub requests: usize,
    /// Bytes per second that all downloads may take together; `None` sets no limit.
    pub bytes_per_second: Option<ByteSize>,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest wait for the first or the next byte of an answer. There is no limit on a whole download.
    pub stall_timeout: Duration,
    /// A store that gives no byte for this long is given up, retries included.
    pub give_up_after: Duration,
    /// Tries without a byte of progress before a store is given up.
    pub tries: u32,
    /// Pause before the second try; it doubles with each further one.
    pub backoff: Duration,
}

impl PullerConfig {
    /// The defaults: no storage keys, claims under `/pvc_mounts`, 16 MiB ranges, 8 at once per model and 128 in all; a
    /// store is given up after four tries or 15 seconds without a byte.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>, disk_budget: ByteSize) -> Self {
        PullerConfig {
            storage_config: None,
            pvc_mounts: PathBuf::from("/pvc_mounts"),
            cache: cache.into(),
            disk_budget,
            part_size: ByteSize::mib(16),
            grain: 1 << 20,
            small: 256 << 10,
            parts_per_model: 8,
            requests: 128,
            bytes_per_second: None,
            connect_timeout: Duration::from_secs(3),
            stall_timeout: Duration::from_secs(10),
            give_up_after: Duration::from_secs(15),
            tries: 4,
            backoff: Duration::from_millis(200),
        }
    }

    /// All faults of the configuration in one error.
    pub(crate) fn check(&self) -> Result<(), PullError> {
        let zero = |name: &str, is_zero: bool| is_zero.then(|| format!("{name} is zero"));
        let part = self.part_size;
        let odd_part = part == ByteSize::ZERO || part > ByteSize::mib(5 << 10) || !part.0.is_multiple_of(self.grain);
        let faults: Vec<String> = [
            zero("the disk budget", self.disk_budget == ByteSize::ZERO),
            zero("the number of parts per model", self.parts_per_model == 0),
            zero("the number of requests", self.requests == 0),
            zero("the connect timeout", self.connect_timeout.is_zero()),
            zero("the stall timeout", self.stall_timeout.is_zero()),
            zero("the time after which a store is given up", self.give_up_after.is_zero()),
            zero("the number of tries", self.tries == 0),
            zero("the limit on bytes per second", self.bytes_per_second == Some(ByteSize::ZERO)),
            odd_part.then(|| format!("a part size of {part} is not a number of whole MiB up to 5 GiB")),
        ]
        .into_iter()
        .flatten()
        .collect();
        if faults.is_empty() { Ok(()) } else { Err(PullError::Config(faults.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_all_faults_are_reported_together() {
        let mut config = PullerConfig::new("/tmp/x", ByteSize::mib(1));
        assert_eq!(config.check(), Ok(()));
        config.tries = 0;
        config.part_size = ByteSize(10);
        assert_eq!(
            config.check(),
            Err(PullError::Config("the number of tries is zero; a part size of 10 B is not a number of whole MiB up to 5 GiB".into()))
        );
    }
}
