//! Devices by a server's own page of metrics: Triton tells how full each GPU is that it uses.

use std::collections::BTreeMap;

use berth_telemetry::{Clock, Net};
use berth_types::{ByteSize, Usage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::host::MetricsPage;

/// A larger page is not read to its end.
const LARGEST: u64 = 4 << 20;

/// The text of the page.
pub(crate) async fn fetch(page: &MetricsPage, net: &dyn Net, clock: &Clock) -> Result<String, String> {
    let asked = async {
        let mut stream = net.dial(&page.server).await?;
        // An answer of this version ends with the connection, so that nothing of it has to be understood but its head.
        stream.write_all(format!("GET {} HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n", page.path).as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(LARGEST).read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    let answer = clock.until(clock.deadline_in(page.patience), asked).await.ok_or("no answer in time")?;
    let answer = String::from_utf8_lossy(&answer.map_err(|fault| fault.to_string())?).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer in HTTP")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(head.lines().next().unwrap_or_default().to_owned()),
    }
}

/// How full each GPU is. Triton names a GPU by its UUID only: `index` says which one that is. Where it does not know, a single one is
/// the first; of several, which stand on the page in any order, nothing is known.
pub(crate) fn gpus(page: &str, index: impl Fn(&str) -> Option<u16>) -> BTreeMap<u16, Usage> {
    let (mut order, mut totals, mut used): (Vec<&str>, BTreeMap<&str, u64>, BTreeMap<&str, u64>) = Default::default();
    for line in page.lines() {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.split_once('}') else { continue };
        let table = match name {
            "nv_gpu_memory_total_bytes" => &mut totals,
            "nv_gpu_memory_used_bytes" => &mut used,
            _ => continue,
        };
        let uuid = labels.split(',').find_map(|label| label.trim().strip_prefix("gpu_uuid=\"")?.strip_suffix('"'));
        let (Some(uuid), Some(value)) = (uuid, value.split_whitespace().next().and_then(bytes)) else { continue };
        if !order.contains(&uuid) {
            order.push(uuid);
        }
        table.insert(uuid, value);
    }
    let only = (order.len() == 1).then_some(0);
    let each = order.iter().filter_map(|uuid| {
        let (total, used) = (totals.get(uuid)?, used.get(uuid)?);
        let usage = Usage { used: ByteSize(*used), limit: ByteSize(*total) };
        index(uuid).or(only).filter(|_| *total > 0).map(|index| (index, usage))
    });
    each.collect()
}

/// A number of the page, which may be written with an exponent: whole bytes, not negative.
fn bytes(text: &str) -> Option<u64> {
    let number: f64 = text.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite, not negative and far below 64 bits")]
    let whole = (number.is_finite() && (0.0..1e18).contains(&number)).then_some(number as u64);
    whole
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_telemetry::{HostNet, Peer};
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = "# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes\n# TYPE nv_gpu_memory_total_bytes gauge\n\
        nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-b\"} 16000000000.000000\nnv_gpu_memory_total_bytes{gpu_uuid=\"GPU-a\"} 8e9\n\
        nv_gpu_memory_used_bytes{gpu_uuid=\"GPU-b\"} 1000000000.000000\nnv_gpu_memory_used_bytes{gpu_uuid=\"GPU-a\",x=\"y\"} 5 1700000000000\n\
        nv_gpu_utilization{gpu_uuid=\"GPU-a\"} 0.5\n";

    fn usage(used: u64, limit: u64) -> Usage {
        Usage { used: ByteSize(used), limit: ByteSize(limit) }
    }

    #[test]
    fn a_page_of_triton_tells_how_full_each_gpu_is() {
        let by_name = BTreeMap::from([(0, usage(1_000_000_000, 16_000_000_000)), (1, usage(5, 8_000_000_000))]);
        assert_eq!(gpus(PAGE, |uuid| ["GPU-b", "GPU-a"].iter().zip(0..).find(|(known, _)| **known == uuid).map(|(_, place)| place)), by_name);
        assert_eq!(gpus(PAGE, |uuid| (uuid == "GPU-a").then_some(3)), BTreeMap::from([(3, usage(5, 8_000_000_000))]));
        assert!(gpus(PAGE, |_| None).is_empty(), "which is which nobody knows");
        let one: String = PAGE.lines().filter(|line| !line.contains("GPU-a")).flat_map(|line| [line, "\n"]).collect();
        assert_eq!(gpus(&one, |_| None).keys().copied().collect::<Vec<_>>(), [0]);
        for damaged in [
            "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-a\"} NaN\nnv_gpu_memory_used_bytes{gpu_uuid=\"GPU-a\"} 5",
            "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-a\"} 5",
            "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-a\"} -1\nnv_gpu_memory_used_bytes{gpu_uuid=\"GPU-a\"} 5",
            "nv_gpu_memory_total_bytes{} 7\nnv_gpu_memory_used_bytes{gpu_uuid} 5",
            "nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-a\"",
            "",
        ] {
            assert_eq!(gpus(damaged, |_| None), BTreeMap::new(), "{damaged}");
        }
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a server that a test speaks with")]
    async fn a_page_is_fetched_and_what_is_none_is_told() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\na 1\n", Ok("a 1\n")),
            ("HTTP/1.0 404 Not Found\r\n\r\nno", Err("HTTP/1.0 404 Not Found")),
            ("rubbish", Err("no answer in HTTP")),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = listener.local_addr().expect("bound").port();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut head = [0; 512];
                let read = stream.read(&mut head).await.expect("a request");
                stream.write_all(answer.as_bytes()).await.expect("the client reads");
                String::from_utf8_lossy(&head[..read]).into_owned()
            });
            let page = MetricsPage {
                server: Peer::Tcp { host: "127.0.0.1".to_owned(), port },
                path: "/metrics".to_owned(),
                patience: Duration::from_secs(10),
            };
            let text = fetch(&page, &HostNet, &Clock::system()).await;
            assert_eq!(text.as_deref().map_err(String::as_str), expected);
            assert!(server.await.expect("no panic").starts_with("GET /metrics HTTP/1.0\r\n"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn no_page_makes_the_reader_panic(text in "(nv_gpu_memory_(total|used)_bytes)?.{0,80}\\{?.{0,20}gpu_uuid=\".{0,8}\\}? ?[0-9e.+-]{0,30}") {
            let _ = gpus(&text, |_| None);
        }
    }
}
