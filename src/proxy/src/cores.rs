//! Threads that drive the connections of the gRPC port before a runtime of its own process.
//!
//! A call that is passed on wakes the task of the client's connection, its own and that of the runtime's connection, and all
//! three again for the answer. A scheduler that moves tasks about has these on several threads: each step then takes a system call to
//! wake the next one, and locks that two threads want at a time. Here a connection stays on the thread that it was given to, and
//! its calls go out over connections that the same thread drives; it has a scheduler of its own. Nothing that computes for long belongs
//! there: the REST port, whose JSON is parsed, runs elsewhere.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use berth_upstream::Server;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::opaque::Young;

/// The threads, each with its way to the runtime. They end when this is dropped, and with them whatever they still drive.
pub(crate) struct Cores(Vec<Core>);

struct Core {
    handle: Handle,
    way: Arc<Way>,
    /// Connections that it drives.
    open: Arc<AtomicUsize>,
    _runs: oneshot::Sender<()>,
}

/// What the calls of one thread have in common, or those of all that have none of their own.
pub(crate) struct Way {
    /// The runtime, over connections of that thread.
    pub(crate) server: Server,
    /// Answers that have just begun to be passed on.
    pub(crate) young: Young,
}

impl Way {
    pub(crate) fn to(server: Server) -> Arc<Self> {
        Arc::new(Way { server, young: Young::default() })
    }
}

/// A connection's place on one of the threads, until it is dropped.
pub(crate) struct Place {
    pub(crate) handle: Handle,
    pub(crate) way: Arc<Way>,
    open: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cores {
    /// Starts `count` threads, or as many as the system gives. `server`: the way of one of them, whose connections it drives.
    pub(crate) fn start(count: usize, server: impl Fn(Handle) -> Server) -> Self {
        let mut cores = Vec::with_capacity(count);
        for number in 0..count {
            match run(number) {
                Ok((handle, runs)) => cores.push(Core { way: Way::to(server(handle.clone())), handle, open: Arc::default(), _runs: runs }),
                Err(fault) => {
                    tracing::warn!(error = %fault, threads = number, wanted = count, "the data plane has fewer threads than it was to have");
                    break;
                }
            }
        }
        Cores(cores)
    }

    /// A place for one more connection, where there are fewest. `None`: there are no threads.
    pub(crate) fn place(&self) -> Option<Place> {
        let core = self.0.iter().min_by_key(|core| core.open.load(Ordering::Relaxed))?;
        core.open.fetch_add(1, Ordering::Relaxed);
        Some(Place { handle: core.handle.clone(), way: Arc::clone(&core.way), open: Arc::clone(&core.open) })
    }
}

/// Starts one thread, which ends once what is returned with it is dropped. Its runtime is made there: one must not end where others
/// run.
fn run(number: usize) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let (runs, ended) = oneshot::channel();
    let (tell, made) = mpsc::sync_channel(1);
    thread::Builder::new().name(format!("data-plane-{number}")).spawn(move || match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let _ = tell.send(Ok(runtime.handle().clone()));
            // Dropped or told: over in any case.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        }
        Err(fault) => {
            let _ = tell.send(Err(fault));
        }
    })?;
    let handle = made.recv().map_err(io::Error::other)??;
    Ok((handle, runs))
}

#[cfg(test)]
mod tests {
    use berth_telemetry::{Clock, HostNet};

    use super::*;

    fn cores(count: usize) -> Cores {
        let target: berth_upstream::Target = "127.0.0.1:1".parse().unwrap();
        let server = |_| Server::new(target.clone(), berth_upstream::Config::default(), Clock::system(), HostNet::shared());
        Cores::start(count, server)
    }

    #[test]
    fn connections_go_where_there_are_fewest() {
        let cores = cores(3);
        let open = || cores.0.iter().map(|core| core.open.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut places: Vec<_> = (0..7).map(|_| cores.place().unwrap()).collect();
        assert_eq!(open(), [3, 2, 2]);
        // Those of the second thread end.
        let second = cores.0[1].handle.id();
        places.retain(|place| place.handle.id() != second);
        assert_eq!(open(), [3, 0, 2]);
        places.extend((0..3).map(|_| cores.place().unwrap()));
        assert_eq!(open(), [3, 3, 2]);
        assert!(self::cores(0).place().is_none());
    }

    #[test]
    fn what_is_given_to_a_place_runs_on_its_thread_and_ends_with_all_of_them() {
        let cores = cores(2);
        let runtime = Builder::new_current_thread().build().unwrap();
        let places = [cores.place().unwrap(), cores.place().unwrap()];
        let names = places.each_ref().map(|place| {
            let named = place.handle.spawn(async { thread::current().name().map(str::to_owned) });
            runtime.block_on(named).unwrap().unwrap()
        });
        assert_eq!(names, ["data-plane-0", "data-plane-1"]);
        let left = places[1].handle.spawn(std::future::pending::<()>());
        drop(cores);
        assert!(runtime.block_on(left).unwrap_err().is_cancelled());
    }
}
