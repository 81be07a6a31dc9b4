//! The one table of what is measured: name, help, kind and base unit of each family.
//!
//! Series are few and bounded: labels come from closed sets (a step, an outcome, a code, a pool), never from anything that
//! a client can make up. A model id is a label only of a [`PassingGauge`], which leaves the page when what it measures ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// Counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// Inference requests by protocol and gRPC code.
    Requests,
    /// Cold loads by step that ended them and outcome.
    Loads,
    /// Copies evicted.
    Evictions,
    /// Copies evicted because memory was nearly full in truth.
    PressureEvictions,
    /// How often the runtime had to be started anew because of memory that it kept.
    RuntimeRecycled,
    /// Bytes fetched from stores.
    FetchedBytes,
    /// Objects fetched from stores.
    FetchedObjects,
    /// Cold loads that found their files on disk.
    DiskHits,
    /// Bytes of downloads that an earlier attempt had left on disk.
    ResumedBytes,
    /// Bytes that were fetched and thrown away: they were not what the store had stated, or the object changed.
    WastedBytes,
    /// Requests to stores by type of store and outcome.
    StoreRequests,
    /// Requests to stores that were tried again, by type of store.
    StoreRetries,
    /// Callers turned away by reason.
    Refused,
    /// Status writes.
    StatusWrites,
    /// Copies loaded from other bytes than the first good copy of their model.
    ContentDrift,
    /// Looks at changed TLS files, by outcome.
    TlsReloads,
    /// Clients with which no TLS came about, by reason.
    TlsRefused,
    /// Payloads delivered, by processor.
    PayloadsSent,
    /// Payloads that did not reach their processor, by processor and reason.
    PayloadsDropped,
    /// Looks at a changed file of the data plane's configuration, by outcome.
    DataPlaneReloads,
}

/// Gauges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gauge {
    /// Whether the runtime answers: 1 or 0.
    RuntimeUp,
    /// Whether the controller answers this agent: 1 or 0.
    ControllerUp,
    /// Agents that attend this controller.
    Agents,
    /// Budget of a memory pool.
    MemoryBudgetBytes,
    /// Bytes of a memory pool under lease.
    MemoryLeasedBytes,
    /// Bytes whose unload is not confirmed.
    MemoryUnconfirmedBytes,
    /// Bytes of a memory that are really in use, whoever uses them.
    MemoryUsedBytes,
    /// Bytes that there are of a memory in truth.
    MemoryLimitBytes,
    /// 1 while a memory is nearly full.
    MemoryStrained,
    /// Bytes of a memory that the runtime's processes hold.
    RuntimeMemoryBytes,
    /// Bytes that they held before the first model.
    RuntimeBaseBytes,
    /// Bytes that they hold beyond that and what models are charged with.
    RuntimeRetainedBytes,
    /// Share of the last ten seconds in which something waited for memory, in hundredths of a percent.
    MemoryStallPermyriad,
    /// Processes that the kernel has ended where the runtime is.
    OomKills,
    /// Budget of the disk tier.
    DiskBudgetBytes,
    /// Bytes in the disk tier.
    DiskUsedBytes,
    /// Free bytes of the file system under the disk tier.
    DiskFreeBytes,
    /// Models by state on this pod.
    Models,
    /// Models registered.
    RegisteredModels,
    /// Callers waiting for a load.
    Waiting,
    /// Requests being served.
    InFlight,
    /// Seconds since the least recently used loaded copy was used.
    LruAgeSeconds,
    /// Bytes held by buffers, by class.
    BufferBytes,
    /// Downloads under way.
    Downloads,
    /// Bytes on disk of a download under way, by model.
    DownloadBytes,
    /// Bytes in all of a download under way, by model.
    DownloadSizeBytes,
    /// Requests to stores under way.
    StoreRequestsUnderWay,
    /// Requests to stores that wait for their turn, by class.
    StoreRequestsQueued,
    /// How many requests to stores may be under way at a time.
    StoreRequestsLimit,
    /// When the certificate of the inference ports expires, Unix time.
    TlsCertificateExpiry,
    /// 1 while the TLS files cannot be used as they are.
    TlsFilesFaulty,
    /// Bytes of payloads that wait for a processor or are being sent.
    PayloadBytes,
    /// 1 while the file of the data plane's configuration cannot be used as it is.
    DataPlaneFaulty,
}

/// Histograms, all in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Histogram {
    /// Whole inference requests, as the client sees them.
    RequestSeconds,
    /// Inference inside the runtime.
    RuntimeInferSeconds,
    /// One step of a cold load or an unload.
    StepSeconds,
    /// From asking for a cold model to serving it.
    ColdStartSeconds,
    /// Whole downloads by outcome.
    DownloadSeconds,
}

struct Family {
    name: &'static str,
    help: &'static str,
}

impl Counter {
    const fn family(self) -> Family {
        match self {
            Counter::Requests => Family { name: "berth_requests_total", help: "Inference requests, by protocol and gRPC code." },
            Counter::Loads => Family { name: "berth_loads_total", help: "Cold loads, by the step that ended them and the outcome." },
            Counter::Evictions => Family { name: "berth_evictions_total", help: "Copies evicted to make room." },
            Counter::PressureEvictions => {
                Family { name: "berth_pressure_evictions_total", help: "Copies evicted because memory was nearly full in truth." }
            }
            Counter::RuntimeRecycled => {
                Family { name: "berth_runtime_recycled_total", help: "How often the runtime had to be started anew because of memory that it kept." }
            }
            Counter::FetchedBytes => Family { name: "berth_fetched_bytes_total", help: "Bytes fetched from model stores." },
            Counter::FetchedObjects => Family { name: "berth_fetched_objects_total", help: "Objects fetched from model stores." },
            Counter::DiskHits => Family { name: "berth_disk_hits_total", help: "Cold loads that found their files on disk." },
            Counter::ResumedBytes => {
                Family { name: "berth_resumed_bytes_total", help: "Bytes of downloads that an earlier attempt had left on disk." }
            }
            Counter::WastedBytes => Family { name: "berth_wasted_bytes_total", help: "Bytes fetched from model stores and thrown away." },
            Counter::StoreRequests => Family { name: "berth_store_requests_total", help: "Requests to model stores, by type of store and outcome." },
            Counter::StoreRetries => {
                Family { name: "berth_store_retries_total", help: "Requests to model stores that were tried again, by type of store." }
            }
            Counter::Refused => Family { name: "berth_refused_total", help: "Callers turned away, by reason." },
            Counter::StatusWrites => Family { name: "berth_status_writes_total", help: "Statuses written to resources." },
            Counter::ContentDrift => {
                Family { name: "berth_content_drift_total", help: "Copies loaded from other bytes than the first good copy of their model." }
            }
            Counter::TlsReloads => Family { name: "berth_tls_reloads_total", help: "TLS files that changed and were taken over or refused." },
            Counter::TlsRefused => Family { name: "berth_tls_refused_total", help: "Clients with which no TLS came about, by reason." },
            Counter::PayloadsSent => Family { name: "berth_payloads_sent_total", help: "Payloads that a payload processor took, by processor." },
            Counter::PayloadsDropped => {
                Family { name: "berth_payloads_dropped_total", help: "Payloads that did not reach their processor, by processor and reason." }
            }
            Counter::DataPlaneReloads => {
                Family { name: "berth_dataplane_config_reloads_total", help: "Changes of the data plane's configuration file, by outcome." }
            }
        }
    }
}

impl Gauge {
    const fn family(self) -> Family {
        match self {
            Gauge::MemoryBudgetBytes => Family { name: "berth_memory_budget_bytes", help: "Budget of a memory pool." },
            Gauge::RuntimeUp => Family { name: "berth_runtime_up", help: "Whether the runtime answers: 1 or 0." },
            Gauge::ControllerUp => Family { name: "berth_controller_up", help: "Whether the controller answers this agent: 1 or 0." },
            Gauge::Agents => Family { name: "berth_agents", help: "Agents that attend this controller." },
            Gauge::MemoryLeasedBytes => Family { name: "berth_memory_leased_bytes", help: "Bytes of a memory pool under lease." },
            Gauge::MemoryUnconfirmedBytes => {
                Family { name: "berth_memory_unconfirmed_bytes", help: "Bytes of a memory pool whose unload is not confirmed." }
            }
            Gauge::MemoryUsedBytes => {
                Family { name: "berth_memory_used_bytes", help: "Bytes of a memory that are really in use, without caches, whoever uses them." }
            }
            Gauge::MemoryLimitBytes => {
                Family { name: "berth_memory_limit_bytes", help: "Bytes that there are of a memory: limit of the cgroup, device, machine." }
            }
            Gauge::MemoryStrained => Family { name: "berth_memory_strained", help: "1 while a memory is nearly full and idle copies are evicted." },
            Gauge::RuntimeMemoryBytes => Family { name: "berth_runtime_memory_bytes", help: "Bytes of a memory that the runtime's processes hold." },
            Gauge::RuntimeBaseBytes => {
                Family { name: "berth_runtime_base_bytes", help: "Bytes of a memory that the runtime's processes held before the first model." }
            }
            Gauge::RuntimeRetainedBytes => Family {
                name: "berth_runtime_retained_bytes",
                help: "Bytes of a memory that the runtime's processes hold beyond their base and what models are charged with.",
            },
            Gauge::MemoryStallPermyriad => Family {
                name: "berth_memory_stall_permyriad",
                help: "Share of the last ten seconds in which something waited for memory, in hundredths of a percent.",
            },
            Gauge::OomKills => {
                Family { name: "berth_memory_kills", help: "Processes that the kernel has ended for want of memory where the runtime is." }
            }
            Gauge::DiskBudgetBytes => Family { name: "berth_disk_budget_bytes", help: "Budget of the disk tier." },
            Gauge::DiskUsedBytes => Family { name: "berth_disk_used_bytes", help: "Bytes held by the disk tier." },
            Gauge::DiskFreeBytes => Family { name: "berth_disk_free_bytes", help: "Free bytes of the file system under the disk tier." },
            Gauge::Models => Family { name: "berth_models", help: "Models on this pod, by state." },
            Gauge::RegisteredModels => Family { name: "berth_registered_models", help: "Models registered." },
            Gauge::Waiting => Family { name: "berth_waiting_callers", help: "Callers waiting for a load." },
            Gauge::InFlight => Family { name: "berth_requests_in_flight", help: "Inference requests being served." },
            Gauge::LruAgeSeconds => Family { name: "berth_lru_age_seconds", help: "Age of the least recently used loaded copy." },
            Gauge::BufferBytes => Family { name: "berth_buffer_bytes", help: "Bytes held by buffers, by class." },
            Gauge::Downloads => Family { name: "berth_downloads", help: "Downloads under way." },
            Gauge::DownloadBytes => {
                Family { name: "berth_download_bytes", help: "Bytes on disk of a download under way, by model; gone when it ends." }
            }
            Gauge::DownloadSizeBytes => {
                Family { name: "berth_download_size_bytes", help: "Bytes in all of a download under way, by model; gone when it ends." }
            }
            Gauge::StoreRequestsUnderWay => Family { name: "berth_store_requests_under_way", help: "Requests to model stores under way." },
            Gauge::StoreRequestsQueued => {
                Family { name: "berth_store_requests_queued", help: "Requests to model stores that wait for their turn, by class." }
            }
            Gauge::StoreRequestsLimit => {
                Family { name: "berth_store_requests_limit", help: "Requests to model stores that may be under way at a time." }
            }
            Gauge::TlsCertificateExpiry => {
                Family { name: "berth_tls_certificate_expiry_seconds", help: "When the certificate of the inference ports expires, Unix time." }
            }
            Gauge::TlsFilesFaulty => {
                Family { name: "berth_tls_files_faulty", help: "1 while the TLS files cannot be used as they are and the last good ones count." }
            }
            Gauge::PayloadBytes => {
                Family { name: "berth_payload_bytes", help: "Bytes of payloads that wait or are being sent, by payload processor." }
            }
            Gauge::DataPlaneFaulty => Family {
                name: "berth_dataplane_config_faulty",
                help: "1 while the file of the data plane's configuration cannot be used and the last good one counts.",
            },
        }
    }
}

impl Histogram {
    const fn family(self) -> Family {
        match self {
            Histogram::RequestSeconds => Family { name: "berth_request_seconds", help: "Whole inference requests, by protocol." },
            Histogram::RuntimeInferSeconds => Family { name: "berth_runtime_infer_seconds", help: "Inference inside the runtime." },
            Histogram::StepSeconds => Family { name: "berth_step_seconds", help: "Steps of cold loads and unloads." },
            Histogram::ColdStartSeconds => Family { name: "berth_cold_start_seconds", help: "From asking for a cold model to serving it." },
            Histogram::DownloadSeconds => Family { name: "berth_download_seconds", help: "Whole downloads, by outcome." },
        }
    }
}

/// Upper bounds of the histograms' buckets, in microseconds: 50 us to 5 min.
const BOUNDS_MICROS: [u64; 20] = [
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

#[derive(Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

type Labels = Box<[(&'static str, Box<str>)]>;
type Series<F, V> = RwLock<BTreeMap<(F, Labels), Arc<V>>>;

#[derive(Default)]
struct Tables {
    counters: Series<Counter, AtomicU64>,
    gauges: Series<Gauge, AtomicU64>,
    histograms: Series<Histogram, Buckets>,
}

/// All measurements of this process. Cheap to clone; recording takes a shared lock for the look-up and one atomic add.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Tables>);

fn key<F>(family: F, labels: &[(&'static str, &str)]) -> (F, Labels) {
    (family, labels.iter().map(|(name, value)| (*name, Box::from(*value))).collect())
}

fn series<F: Copy + Ord, V: Default>(table: &Series<F, V>, family: F, labels: &[(&'static str, &str)]) -> Arc<V> {
    let key = key(family, labels);
    if let Some(series) = table.read().get(&key) {
        return Arc::clone(series);
    }
    Arc::clone(table.write().entry(key).or_default())
}

impl Buckets {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// One series of a counter, looked up once: adding to it takes no lock and allocates nothing. For request paths.
#[derive(Clone)]
pub struct CounterHandle(Arc<AtomicU64>);

impl CounterHandle {
    /// Adds `by`.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

/// One series of a gauge, looked up once.
#[derive(Clone)]
pub struct GaugeHandle(Arc<AtomicU64>);

impl GaugeHandle {
    /// Sets it.
    pub fn set(&self, to: u64) {
        self.0.store(to, Ordering::Relaxed);
    }

    /// Counts one more until what is returned is dropped. Not to be mixed with [`GaugeHandle::set`] on one series.
    #[must_use]
    pub fn one_more(&self) -> OneMore {
        self.0.fetch_add(1, Ordering::Relaxed);
        OneMore(Arc::clone(&self.0))
    }
}

/// One unit of a gauge while it lives.
pub struct OneMore(Arc<AtomicU64>);

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A gauge's series that is on the page while this lives: for what comes and goes and has a name of its own. Whoever makes
/// one sees to it that they are bounded, and that there is one at a time for the same labels.
pub struct PassingGauge {
    tables: Arc<Tables>,
    key: (Gauge, Labels),
    value: Arc<AtomicU64>,
}

impl PassingGauge {
    /// Sets it.
    pub fn set(&self, to: u64) {
        self.value.store(to, Ordering::Relaxed);
    }

    /// Adds `by`; the value that this makes.
    pub fn add(&self, by: u64) -> u64 {
        self.value.fetch_add(by, Ordering::Relaxed).wrapping_add(by)
    }

    /// Its present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Drop for PassingGauge {
    fn drop(&mut self) {
        let mut gauges = self.tables.gauges.write();
        // A successor that came too early keeps its series.
        if gauges.get(&self.key).is_some_and(|there| Arc::ptr_eq(there, &self.value)) {
            gauges.remove(&self.key);
        }
    }
}

/// One series of a histogram, looked up once.
#[derive(Clone)]
pub struct HistogramHandle(Arc<Buckets>);

impl HistogramHandle {
    /// Adds a duration.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took);
    }
}

impl Metrics {
    /// A counter's series, to be kept. The series is on the page, as zero, from here on.
    #[must_use]
    pub fn counter(&self, counter: Counter, labels: &[(&'static str, &str)]) -> CounterHandle {
        CounterHandle(series(&self.0.counters, counter, labels))
    }

    /// A gauge's series, to be kept.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge, labels: &[(&'static str, &str)]) -> GaugeHandle {
        GaugeHandle(series(&self.0.gauges, gauge, labels))
    }

    /// A gauge's series that begins at zero and is gone with what is returned.
    #[must_use]
    pub fn passing_gauge(&self, gauge: Gauge, labels: &[(&'static str, &str)]) -> PassingGauge {
        let (key, value) = (key(gauge, labels), Arc::<AtomicU64>::default());
        self.0.gauges.write().insert(key.clone(), Arc::clone(&value));
        PassingGauge { tables: Arc::clone(&self.0), key, value }
    }

    /// A histogram's series, to be kept.
    #[must_use]
    pub fn histogram(&self, histogram: Histogram, labels: &[(&'static str, &str)]) -> HistogramHandle {
        HistogramHandle(series(&self.0.histograms, histogram, labels))
    }

    /// Adds `by` to a counter.
    pub fn add(&self, counter: Counter, labels: &[(&'static str, &str)], by: u64) {
        series(&self.0.counters, counter, labels).fetch_add(by, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: Gauge, labels: &[(&'static str, &str)], to: u64) {
        series(&self.0.gauges, gauge, labels).store(to, Ordering::Relaxed);
    }

    /// Adds a duration to a histogram.
    pub fn observe(&self, histogram: Histogram, labels: &[(&'static str, &str)], took: Duration) {
        series(&self.0.histograms, histogram, labels).observe(took);
    }

    /// The present value of a counter; zero for a series that was never touched. For tests and `describe`.
    #[must_use]
    pub fn count(&self, counter: Counter, labels: &[(&'static str, &str)]) -> u64 {
        self.0.counters.read().get(&key(counter, labels)).map_or(0, |value| value.load(Ordering::Relaxed))
    }

    /// Everything in Prometheus' text format 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for ((family, labels), value) in self.0.counters.read().iter() {
            heading(&mut text, &mut last, &family.family(), "counter");
            line(&mut text, family.family().name, labels, None, value.load(Ordering::Relaxed));
        }
        for ((family, labels), value) in self.0.gauges.read().iter() {
            heading(&mut text, &mut last, &family.family(), "gauge");
            line(&mut text, family.family().name, labels, None, value.load(Ordering::Relaxed));
        }
        for ((family, labels), buckets) in self.0.histograms.read().iter() {
            let Family { name, .. } = family.family();
            heading(&mut text, &mut last, &family.family(), "histogram");
            let mut running = 0;
            for (at, count) in buckets.counts.iter().enumerate() {
                running += count.load(Ordering::Relaxed);
                let bound = BOUNDS_MICROS.get(at).map_or_else(|| "+Inf".to_owned(), |micros| seconds(*micros));
                line(&mut text, &format!("{name}_bucket"), labels, Some(&bound), running);
            }
            line(&mut text, &format!("{name}_sum"), labels, None, seconds(buckets.sum_micros.load(Ordering::Relaxed)));
            line(&mut text, &format!("{name}_count"), labels, None, running);
        }
        text
    }
}

fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn heading(text: &mut String, last: &mut &'static str, family: &Family, kind: &str) {
    if *last != family.name {
        *last = family.name;
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", family.name, family.help, family.name);
    }
}

fn line(text: &mut String, name: &str, labels: &Labels, bound: Option<&str>, value: impl std::fmt::Display) {
    text.push_str(name);
    let all = labels.iter().map(|(name, value)| (*name, &**value)).chain(bound.map(|bound| ("le", bound)));
    let mut separator = '{';
    for (name, value) in all {
        let _ = write!(text, "{separator}{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    let _ = writeln!(text, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_and_the_table_count_in_one_series() {
        let metrics = Metrics::default();
        let (requests, in_flight) = (metrics.counter(Counter::Requests, &[("code", "OK")]), metrics.gauge(Gauge::InFlight, &[]));
        requests.add(2);
        metrics.add(Counter::Requests, &[("code", "OK")], 1);
        assert_eq!(metrics.count(Counter::Requests, &[("code", "OK")]), 3);
        metrics.histogram(Histogram::StepSeconds, &[]).observe(Duration::from_millis(1));
        let two = (in_flight.one_more(), in_flight.one_more());
        assert!(metrics.render().contains("berth_requests_in_flight 2\n"));
        drop(two);
        for expected in ["berth_requests_in_flight 0\n", "berth_step_seconds_count 1\n"] {
            assert!(metrics.render().contains(expected), "{expected:?}");
        }
    }

    #[test]
    fn a_passing_gauge_leaves_the_page_with_its_owner_and_takes_no_successor_along() {
        let metrics = Metrics::default();
        let begin = |model: &str| metrics.passing_gauge(Gauge::DownloadBytes, &[("model", model)]);
        let on_page = |line: &str| metrics.render().contains(line);
        let (one, other) = (begin("a\"b"), begin("c"));
        one.set(5);
        assert_eq!((one.add(2), one.get(), other.get()), (7, 7, 0));
        assert!(on_page("berth_download_bytes{model=\"a\\\"b\"} 7\n") && on_page("berth_download_bytes{model=\"c\"} 0\n"));
        drop(one);
        assert!(!on_page("a\\\"b") && on_page("model=\"c\""));
        let successor = begin("c");
        successor.set(1);
        drop(other);
        assert!(on_page("berth_download_bytes{model=\"c\"} 1\n"));
        drop(successor);
        assert!(!on_page("berth_download_bytes"));
    }

    #[test]
    fn the_page_is_in_the_text_format_with_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.add(Counter::Requests, &[("protocol", "grpc"), ("code", "OK")], 2);
        metrics.add(Counter::Requests, &[("protocol", "rest"), ("code", "NOT_\"FOUND")], 1);
        metrics.set(Gauge::Models, &[("state", "Loaded")], 7);
        metrics.observe(Histogram::StepSeconds, &[("step", "load")], Duration::from_micros(300));
        metrics.observe(Histogram::StepSeconds, &[("step", "load")], Duration::from_secs(900));
        let page = metrics.render();
        for expected in [
            "# TYPE berth_requests_total counter\n",
            "berth_requests_total{protocol=\"grpc\",code=\"OK\"} 2\n",
            "berth_requests_total{protocol=\"rest\",code=\"NOT_\\\"FOUND\"} 1\n",
            "berth_models{state=\"Loaded\"} 7\n",
            "berth_step_seconds_bucket{step=\"load\",le=\"0.00025\"} 0\n",
            "berth_step_seconds_bucket{step=\"load\",le=\"0.0005\"} 1\n",
            "berth_step_seconds_bucket{step=\"load\",le=\"300\"} 1\n",
            "berth_step_seconds_bucket{step=\"load\",le=\"+Inf\"} 2\n",
            "berth_step_seconds_sum{step=\"load\"} 900.0003\n",
            "berth_step_seconds_count{step=\"load\"} 2\n",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
        assert_eq!(page.matches("# TYPE berth_requests_total").count(), 1);
    }
}
