//! The leader and what feeds it: the store with the folder of resources, names by calls, and the resource API before them. The same
//! for one process that is everything and for a controller of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_api::{Access, Api, Books, Downloads, Drifts, Limits};
use berth_controller::{Agents, Controller, Endpoints, Manager, ManagerDeps};
use berth_proxy::ProxyConfig;
use berth_registry::{Desired, Faults, Folder, RedbStore, Store as _, Views};
use berth_telemetry::{Clock, Listener, Metrics};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::drifting::Drifting;
use crate::serve::spawn;

/// Connections of the resource API. Each watch may hold one, and the rest is for those who ask.
const API_CONNECTIONS: usize = 2048;

/// Requests that one HTTP/2 connection of the resource API may have open.
const API_STREAMS: u32 = 256;

/// What leads is made of.
pub(crate) struct Parts<'p> {
    pub(crate) config: &'p Config,
    pub(crate) store: Arc<RedbStore>,
    pub(crate) views: Views,
    pub(crate) agents: Arc<dyn Agents>,
    /// The runtimes that need no resource.
    pub(crate) runtimes: Vec<Arc<Desired>>,
    /// What statuses say about where clients connect.
    pub(crate) endpoints: Endpoints,
    /// How long agents of before are waited for.
    pub(crate) settle_within: Duration,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// What leads.
pub(crate) struct Leading {
    pub(crate) store: Arc<RedbStore>,
    pub(crate) views: Views,
    pub(crate) controller: Controller,
    pub(crate) manager: Manager,
    faults: Faults,
    clock: Clock,
}

impl Leading {
    /// Reads the resources once, and leads in tasks of `tasks` until `stop`.
    ///
    /// # Errors
    /// The folder cannot be watched, or the store cannot be written.
    pub(crate) async fn start(parts: Parts<'_>, tasks: &mut JoinSet<&'static str>, stop: &CancellationToken) -> anyhow::Result<Leading> {
        let Parts { config, store, views, agents, runtimes, endpoints, settle_within, clock, metrics } = parts;
        let mut folder = Folder::open(&config.manifests, store.clone(), clock.clone()).context("cannot watch the manifests")?;
        let faults = folder.faults();
        for object in runtimes {
            store.apply(object, None).await.context("cannot keep the bundled runtimes")?;
        }
        folder.rescan().await;
        let (controller, leader) = Controller::new(berth_controller::Deps {
            store: store.clone(),
            views: views.clone(),
            agents: Arc::clone(&agents),
            clock: clock.clone(),
            metrics: metrics.clone(),
            config: berth_controller::Config { endpoints, settle_within, ..berth_controller::Config::default() },
        });
        let manager = Manager::open(ManagerDeps {
            controller: controller.clone(),
            store: store.clone(),
            records: store.clone(),
            views: views.clone(),
            agents,
            clock: clock.clone(),
            metrics,
            default_owner: config.vmodel_owner.clone(),
        });
        spawn(tasks, "the leader", leader.run(stop.clone()));
        spawn(tasks, "the manager of models", manager.clone().run(stop.clone()));
        spawn(tasks, "the folder of manifests", folder.run(stop.clone()));
        Ok(Leading { store, views, controller, manager, faults, clock })
    }

    /// Serves the resource API until `stop`.
    ///
    /// # Errors
    /// The address cannot be served as it is asked for.
    pub(crate) fn serve_api(
        &self,
        (listener, addr): (Listener, SocketAddr),
        access: Access,
        here: Here,
        tasks: &mut JoinSet<&'static str>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let deps = berth_api::Deps {
            store: self.store.clone(),
            views: self.views.clone(),
            clock: self.clock.clone(),
            faults: Some(self.faults.clone()),
            downloads: here.downloads,
            drifts: Some(Arc::new(Drifting(self.controller.drifts())) as Arc<dyn Drifts>),
            memory: here.memory,
            led_by: None,
            access,
            limits: Limits::default(),
        };
        serve_api(deps, (listener, addr), tasks, stop)
    }

    /// Turns true once statuses say what is.
    pub(crate) fn caught_up(&self) -> watch::Receiver<bool> {
        self.controller.caught_up()
    }
}

/// What the resource API tells of this process, where it has models itself.
#[derive(Default)]
pub(crate) struct Here {
    pub(crate) downloads: Option<Arc<dyn Downloads>>,
    pub(crate) memory: Option<Arc<dyn Books>>,
}

/// Serves a resource API until `stop`, as the inference ports are served: heads have their time, connections their number.
///
/// # Errors
/// The address cannot be served as it is asked for.
pub(crate) fn serve_api(
    deps: berth_api::Deps,
    (listener, addr): (Listener, SocketAddr),
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let clock = deps.clock.clone();
    let api = Api::new(deps, addr, stop.clone()).context("--api")?;
    let answer = move |request| {
        let api = api.clone();
        async move { Ok(api.answer(request).await) }
    };
    let stop = stop.clone();
    spawn(tasks, "the resource API", async move {
        let config = ProxyConfig { max_connections: API_CONNECTIONS, max_streams: API_STREAMS, ..ProxyConfig::default() };
        berth_proxy::serve_http(listener, answer, &config, &clock, stop).await;
    });
    Ok(())
}
